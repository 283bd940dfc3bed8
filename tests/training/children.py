"""Runs in child processes that can be killed, at little cost: torch is imported once, then forked.

The server process is started fresh (it has never computed anything), so forking it is safe.
"""

from __future__ import annotations

import faulthandler
import functools
import multiprocessing
import os
import socket
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tiny_run

_HERE = str(Path(__file__).parent)
_ROOT = str(Path(__file__).parents[2])


@functools.cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    # torch.optim imports torch._dynamo when the first optimiser is made.
    context.set_forkserver_preload(["tiny_run", "torch._dynamo"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([_HERE, _ROOT, before or ""])
    try:
        multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def _child(folder: str, options: dict[str, Any], env: dict[str, str], stderr: str) -> None:
    os.environ.update(env)
    with open(stderr, "a", buffering=1) as f:
        os.dup2(f.fileno(), 2)
        faulthandler.dump_traceback_later(50, file=f)  # says where a child hangs
        tiny_run.run(folder, options)


def start(folder: Path, env: dict[str, str] | None = None, **options: Any) -> BaseProcess:
    """Begin ``tiny_run.run(folder, options)`` in a child; what it says goes to FOLDER.err."""
    arguments = (str(folder), options, env or {}, f"{folder}.err")
    process = _context().Process(target=_child, args=arguments)
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 60.0) -> int | None:
    """Wait for a child; its exit code."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"the child was still running after {seconds} s")
    return process.exitcode


def start_several(
    folder: Path, world: int, agents: Sequence[dict[str, Any]] | None = None, **options: Any
) -> list[BaseProcess]:
    """As many processes as ``torchrun --nproc-per-node`` would start, with its environment.

    Args:
        agents: config fields of each process's agent, where they are to differ.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    base = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    base["GLOO_SOCKET_IFNAME"] = "lo"
    ranks = [{**base, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]
    if agents is None:
        return [start(folder, env, **options) for env in ranks]
    pairs = zip(ranks, agents, strict=True)
    return [start(folder, env, **{**options, "agent": fields}) for env, fields in pairs]
