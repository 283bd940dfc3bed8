"""How cells get a process: on this machine, or on a Ray cluster.

Both start the same command, ``python -m seqrl.bench.worker FOLDER``, with as many threads as the
cell has CPUs, so results do not depend on the launcher. A cluster's machines must see the results
folder under the same path.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrl.bench.cells import Cell
from seqrl.errors import SeqrlError

_POLL = 0.1
_GRACE = 60.0
"""Seconds that workers have to save themselves when the benchmark is stopped."""


def execute(folder: str, cpus: float, gpus: Mapping[str, str] | None = None) -> int:
    """Run the worker of a folder to its end; its exit code."""
    process = start(Path(folder), cpus, gpus)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        raise


def start(
    folder: Path, cpus: float, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the worker of a folder; what it prints goes to ``log.txt`` there."""
    threads = str(max(1, int(cpus)))
    env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    env |= {"PYTHONUNBUFFERED": "1", **(environment or {})}
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "seqrl.bench.worker", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def _end_with_parent() -> None:
    """Have the kernel stop this process when its parent dies, however that dies."""
    import ctypes

    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)


def local(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, int]]:
    """Run cells on this machine, ``jobs`` CPUs at a time; yields each with its exit code.

    A cell that needs more CPUs than there are jobs runs alone.
    """
    waiting, running = list(cells), dict[subprocess.Popen[bytes], Cell]()
    cards = _CudaCards()
    try:
        while waiting or running:
            busy = sum(c.plan["cpus"] for c in running.values())
            while waiting and (not running or busy + waiting[0].plan["cpus"] <= jobs):
                cell = waiting.pop(0)
                process = start(cell.folder, cell.plan["cpus"], cards.environment(cell))
                running[process] = cell
                busy += cell.plan["cpus"]
            time.sleep(_POLL)
            for process in [p for p in running if p.poll() is not None]:
                yield running.pop(process), process.returncode
    finally:
        _stop(list(running))


class _CudaCards:
    """Hands the GPUs of this machine round, where cells ask for some."""

    def __init__(self) -> None:
        self.next = 0

    def environment(self, cell: Cell) -> dict[str, str]:
        """What the worker's environment says of GPUs."""
        wanted = int(-(-cell.plan["gpus"] // 1))
        if not wanted:
            return {}
        known = os.environ.get("CUDA_VISIBLE_DEVICES")
        ids = known.split(",") if known else [str(i) for i in range(_gpu_count())]
        if not ids:
            raise SeqrlError(f"{cell.title} asks for a GPU, there is none")
        mine = [ids[(self.next + i) % len(ids)] for i in range(min(wanted, len(ids)))]
        self.next += wanted
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}


def _gpu_count() -> int:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        return len(done.stdout.splitlines()) if done.returncode == 0 else 0
    return 0


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask workers to save themselves and end; wait until they have."""
    for p in processes:
        p.terminate()
    deadline = time.monotonic() + _GRACE
    for p in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            p.wait(max(0.1, deadline - time.monotonic()))
        if p.poll() is None:
            p.kill()


def ray(cells: Sequence[Cell], address: str | None = None) -> Iterator[tuple[Cell, int]]:
    """Run cells on a Ray cluster, which places them; yields each with its exit code.

    Args:
        address: of a running cluster (``auto``, ``ray://host:port``); by default the one that the
            environment names, else one of this machine's own, which ends with the benchmark.

    Raises:
        SeqrlError: Ray is not installed, no cluster at the address, or a cell that fits nowhere.
    """
    try:
        import ray as engine
    except ImportError:
        raise SeqrlError("Ray is not installed", hint='pip install "seqrl[ray]"') from None
    mine = not engine.is_initialized()
    if mine:
        try:
            engine.init(address=address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError) as e:
            raise SeqrlError(f"no Ray cluster at {address}: {e}") from None
    try:
        _check_resources(cells, engine.cluster_resources())
        task = engine.remote(max_retries=0)(execute)
        futures: dict[Any, Cell] = {}
        for cell in cells:
            p = cell.plan
            placed = task.options(num_cpus=p["cpus"], num_gpus=p["gpus"])
            futures[placed.remote(str(cell.folder), p["cpus"])] = cell
        while futures:
            ready, _ = engine.wait(list(futures), num_returns=1)
            for future in ready:
                cell = futures.pop(future)
                try:
                    yield cell, int(engine.get(future))
                except engine.exceptions.RayError as e:
                    with open(cell.folder / "log.txt", "a", encoding="utf-8") as log:
                        log.write(f"Ray: {e}\n")
                    yield cell, 1
    finally:
        if mine:
            engine.shutdown()


def _check_resources(cells: Sequence[Cell], there: Mapping[str, float]) -> None:
    """Refuse what Ray would wait for in vain."""
    for cell in cells:
        for key, name in (("cpus", "CPU"), ("gpus", "GPU")):
            if cell.plan[key] > there.get(name, 0):
                raise SeqrlError(
                    f"{cell.title} asks for {cell.plan[key]} {name}, "
                    f"the Ray cluster has {there.get(name, 0):g}",
                    hint="change its cpus or gpus in the suite",
                )
