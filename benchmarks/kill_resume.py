"""Kill a training run at random moments, resume it each time, and compare with one left alone.

    OMP_NUM_THREADS=1 python benchmarks/kill_resume.py --kills 20 -- \\
        train dt --data tmaze-30 --steps 300 --no-evaluate

What follows ``--`` is any ``seqrl train`` command without ``--out``. It runs once untouched. Then
it runs again and gets SIGKILL at a random moment after its first update has begun, is resumed,
killed again, and so on; when it ends before the kills are used up, another run is begun. Every run
has to end with the same weights, byte for byte, the same optimiser state and the same rows of
metrics (times aside). Exit code 1 when one does not.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, table
from seqrl.checkpoint import find_checkpoint
from seqrl.runfolder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
_TIMES = ("it_per_s", "data_share", "seconds")


def launch(arguments: list[str]) -> subprocess.Popen[bytes]:
    """``python -m seqrl ARGUMENTS`` with its output thrown away but for the end of stderr."""
    log = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
    process = subprocess.Popen(
        [sys.executable, "-m", "seqrl", *arguments], stdout=subprocess.DEVNULL, stderr=log, cwd=ROOT
    )
    process.log = log  # type: ignore[attr-defined]
    return process


def wait_until_training(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Until the process has entered its training loop; False when it ended before."""
    while process.poll() is None:
        if (folder / "run.json").is_file():
            record = RunFolder(folder).read()
            if record.get("pid") == process.pid and "step" in record:
                return True
        time.sleep(0.01)
    return False


def need(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that has to succeed."""
    if process.wait() != 0:
        process.log.seek(0)  # type: ignore[attr-defined]
        tail = process.log.read()[-2000:].decode(errors="replace")  # type: ignore[attr-defined]
        sys.exit(f"{' '.join(map(str, process.args))}\nended with {process.returncode}:\n{tail}")  # type: ignore[arg-type]


def last_step(folder: Path) -> int:
    """Step of the last checkpoint, 0 when there is none."""
    try:
        return int(find_checkpoint(folder).name.removeprefix("step_"))
    except Exception:  # no run folder or no checkpoint yet
        return 0


def differences(a: Path, b: Path) -> list[str]:
    """In what two finished runs differ."""
    one, two = find_checkpoint(a), find_checkpoint(b)
    found = []
    if one.name != two.name:
        found.append(f"last checkpoint {one.name} / {two.name}")
    name = "weights.safetensors"
    if (one / name).read_bytes() != (two / name).read_bytes():
        found.append("weights")
    states = [torch.load(f / "optimizer.pt", weights_only=True) for f in (one, two)]
    if not _equal(*states):
        found.append("optimiser state")
    if _rows(a) != _rows(b):
        found.append("metrics")
    return found


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in _TIMES} for r in rows]


def main() -> None:
    """Kill, resume, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--span", type=float, default=None, help="longest time from first update to kill, seconds"
    )
    parser.add_argument("command", nargs="+", help="-- train AGENT ... (without --out)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as root:
        whole = Path(root) / "whole"
        need(launch([*args.command, "--out", str(whole)]))
        state = json.loads((find_checkpoint(whole) / "trainer.json").read_text())
        # Long enough to reach a new checkpoint now and then, short enough for many kills a run.
        span = args.span or state["seconds"] * max(2 / args.kills, 0.2)
        kills: list[list[str]] = []
        runs, wrong = 0, []
        while len(kills) < args.kills:
            runs += 1
            folder = Path(root) / f"killed{runs}"
            process = launch([*args.command, "--out", str(folder)])
            while len(kills) < args.kills:
                before, moment = last_step(folder), rng.uniform(0, span)
                if not wait_until_training(process, folder):
                    break
                time.sleep(moment)
                if process.poll() is not None:
                    break
                process.kill()
                process.wait()
                after = last_step(folder)
                kills.append([str(len(kills) + 1), f"{moment:.2f}", str(before), str(after)])
                process = launch(["resume", str(folder)])
            need(process)
            wrong += [f"run {runs}: {d} differ" for d in differences(whole, folder)]
    print(f"Killed and resumed, {machine()}: seqrl {' '.join(args.command)}")
    print(table(["kill", "seconds into training", "began at step", "last checkpoint"], kills))
    print(
        f"{len(kills)} kills over {runs} runs of {state['step']} steps; "
        + (
            "; ".join(wrong)
            if wrong
            else "every run ended with identical weights, optimiser state and metrics"
        )
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
