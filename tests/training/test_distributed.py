"""Two processes learn what one does, stop together, and resume bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from children import finish, start, start_several
from safetensors.torch import load_file
from test_resume import assert_same_run, rows, wait_for_step

from seqrl.checkpoint import find_checkpoint
from seqrl.distributed import Processes
from seqrl.errors import SeqrlError
from seqrl.runfolder import RunFolder

HERE = Path(__file__).parent


def assert_same_curve(one: Path, two: Path) -> None:
    """Loss curves and final weights agree to rounding."""
    a, b = rows(one), rows(two)
    assert [r["step"] for r in a] == [r["step"] for r in b]
    for x, y in zip(a, b, strict=True):
        for name in ("loss", "grad_norm", "lr", "val_loss"):
            assert x.get(name) == (y.get(name) and pytest.approx(y[name], rel=1e-5))
    weights = [load_file(find_checkpoint(f) / "weights.safetensors") for f in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_give_the_loss_curve_of_one(tmp_path: Path, accumulation: int) -> None:
    options: dict[str, Any] = {"agent": {"dropout": 0.0}, "optim": {"accumulation": accumulation}}
    assert finish(start(tmp_path / "one", **options)) == 0
    assert [finish(p) for p in start_several(tmp_path / "two", 2, **options)] == [0, 0]
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    assert find_checkpoint(tmp_path / "one", "best").name == (
        find_checkpoint(tmp_path / "two", "best").name
    )


def test_two_processes_stop_together_and_resume_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"agent": {"delay": 0.01}, "optim": {"accumulation": 1}}
    whole = start_several(tmp_path / "whole", 2, **options)
    folder = tmp_path / "run"
    processes = start_several(folder, 2, **options)
    wait_for_step(folder, 4)
    # Only one of them is told; neither may wait for the other in vain.
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGTERM)
    assert [finish(p) for p in processes] == [130, 130]
    record = RunFolder(folder).read()
    assert record["status"] == "interrupted"
    assert find_checkpoint(folder).name == f"step_{record['step']:07d}"
    resumed = start_several(folder, 2, resume=True, **options)
    assert [finish(p) for p in resumed] == [0, 0]
    assert [finish(p) for p in whole] == [0, 0]
    assert_same_run(tmp_path / "whole", folder, stopped=True)


def test_a_nan_in_one_process_stops_all_of_them(tmp_path: Path) -> None:
    options: dict[str, Any] = {"optim": {"accumulation": 1}}
    first = {"poison": None}
    processes = start_several(tmp_path / "run", 2, agents=[first, {"poison": 6}], **options)
    assert [finish(p) for p in processes] == [1, 1]
    assert "loss is NaN at step 7 (last finite 6)" in (tmp_path / "run.err").read_text()
    record = json.loads((tmp_path / "run/nan_step_0000007.json").read_text())
    assert len(record["rows"]) == 8, "the rows of all processes"
    assert find_checkpoint(tmp_path / "run").name == "step_0000005"


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path: Path) -> None:
    options = {"agent": {"dropout": 0.0}, "optim": {"accumulation": 1}}
    assert finish(start(tmp_path / "one", **options)) == 0  # type: ignore[arg-type]
    script = [str(HERE / "tiny_run.py"), str(tmp_path / "two"), json.dumps(options)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", *script],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_curve(tmp_path / "one", tmp_path / "two")


def test_the_environment_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processes.from_env() == Processes(0, 1, 0)
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    found = Processes.from_env()
    assert (found, found.first, found.alone) == (Processes(3, 4, 1), False, False)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(SeqrlError, match="names no valid process"):
        Processes.from_env()
