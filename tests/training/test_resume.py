"""A run that was killed, stopped or split ends exactly where an uninterrupted one does."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from children import finish, start
from tiny_run import build, config

from seqrl.checkpoint import find_checkpoint, load_agent
from seqrl.errors import RunInterrupted, SeqrlError
from seqrl.runfolder import RunFolder
from seqrl.training import Callback

TIMES = ("it_per_s", "data_share", "seconds")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics, without what measures time."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMES} for x in lines]


def assert_same_run(a: Path, b: Path, stopped: bool = False) -> None:
    """Weights byte for byte, optimiser state, best step, rows and evaluations are equal."""
    last = [find_checkpoint(f) for f in (a, b)]
    assert last[0].name == last[1].name
    one, two = ((f / "weights.safetensors").read_bytes() for f in last)
    assert one == two, "weights differ"
    saved = [torch.load(f / "optimizer.pt", weights_only=True) for f in last]
    assert str(saved[0]) == str(saved[1]), "optimiser states differ"
    assert rows(a) == rows(b), "metrics differ"
    assert find_checkpoint(a, "best").name == find_checkpoint(b, "best").name
    names = [sorted(p.name for p in f.parent.iterdir()) for f in last]
    # A stop saves a checkpoint at a step of its own.
    assert stopped or names[0] == names[1], "checkpoints differ"
    evals = [{p.name: p.read_bytes() for p in (f / "eval").iterdir()} for f in (a, b)]
    assert evals[0] == evals[1], "evaluations differ"


class StopAt(Callback):
    """Sends a signal to this very process after an update."""

    def __init__(self, step: int, number: int = signal.SIGTERM):
        self.step, self.number = step, number

    def on_step(self, trainer: Any, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


class Boom(Callback):
    """Breaks the run after an update, with no chance to save."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, trainer: Any, step: int) -> None:
        if step == self.step:
            raise ZeroDivisionError("boom")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    build(folder, config()).fit()
    torch.set_num_threads(before)
    return folder


@pytest.mark.parametrize("step", [1, 8, 10, 19, 39, 40])
def test_a_run_stopped_by_a_signal_resumes_bit_for_bit(
    whole: Path, tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunInterrupted) as stop:
        build(folder, config(), callbacks=[StopAt(step)]).fit()
    assert str(step) in stop.value.message
    assert "seqrl resume" in (stop.value.hint or "")
    assert RunFolder(folder).read()["status"] == "interrupted"
    assert find_checkpoint(folder).name == f"step_{step:07d}"
    result = build(folder, config(), resume=True).fit(resume=True)
    assert result.step == 40
    assert RunFolder(folder).read()["status"] == "done"
    assert_same_run(whole, folder, stopped=True)


@pytest.mark.parametrize("step", [2, 5, 23])
def test_a_run_that_broke_down_resumes_bit_for_bit(whole: Path, tmp_path: Path, step: int) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        build(folder, config(), callbacks=[Boom(step)]).fit()
    record = RunFolder(folder).read()
    assert (record["status"], record["reason"]) == ("failed", "ZeroDivisionError: boom")
    build(folder, config(), resume=True).fit(resume=True)
    assert_same_run(whole, folder)


def test_a_hundred_updates_equal_fifty_and_fifty(tmp_path: Path) -> None:
    conf = config(steps=100, log_every=7, eval_every=20, save_every=50)
    build(tmp_path / "a", conf).fit()
    with pytest.raises(RunInterrupted):
        build(tmp_path / "b", conf, callbacks=[StopAt(50)]).fit()
    build(tmp_path / "b", conf, resume=True).fit(resume=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def kill_and_resume(whole: Path, folder: Path, moments: list[float]) -> int:
    """SIGKILL a run at each moment (seconds after its start), then let it finish; kills made."""
    kills = 0
    for moment in moments:
        process = start(folder, agent={"delay": 0.003}, resume=True)
        while process.is_alive() and not (folder / "checkpoints").is_dir():
            time.sleep(0.002)
        process.join(moment)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        elif process.exitcode == 0:
            break
        # Whenever it was killed, the last checkpoint loads.
        if list((folder / "checkpoints").glob("step_*")):
            load_agent(folder)
    assert finish(start(folder, agent={"delay": 0.003}, resume=True)) == 0
    assert_same_run(whole, folder)
    return kills


def delayed_whole(folder: Path) -> Path:
    """An uninterrupted run with the killed ones' config (its delay is part of the policy file)."""
    assert finish(start(folder, agent={"delay": 0.003})) == 0
    return folder


def killed_runs(tmp_path: Path, kills: int, seed: int) -> None:
    """Runs that die at random moments, as many as it takes: a fast machine ends one before its
    last moment has come."""
    whole, rng = delayed_whole(tmp_path / "whole"), random.Random(seed)
    made = 0
    for i in range(5 * kills):
        moments = [rng.uniform(0.0, 0.4) for _ in range(5)]
        made += kill_and_resume(whole, tmp_path / f"killed{i}", moments)
        if made >= kills:
            return
    raise AssertionError(f"only {made} of {kills} kills met a run that was still alive")


def test_a_run_killed_at_random_moments_resumes_bit_for_bit(tmp_path: Path) -> None:
    killed_runs(tmp_path, kills=4, seed=0)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_resumes_bit_for_bit(tmp_path: Path) -> None:
    killed_runs(tmp_path, kills=20, seed=1)


def test_sigterm_ends_a_process_with_130_and_a_line_that_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, agent={"delay": 0.02}, steps=2000, eval_every=0)
    wait_for_step(folder, 4)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 130
    said = Path(f"{folder}.err").read_text()
    assert "interrupted at step" in said
    assert f"seqrl resume {folder}" in said
    assert "Traceback" not in said
    record = RunFolder(folder).read()
    assert record["status"] == "interrupted"
    assert find_checkpoint(folder).name == f"step_{record['step']:07d}"


def test_a_signal_ends_a_long_evaluation_which_is_made_again_on_resume(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start(folder, eval_seconds=60.0)
    deadline = time.monotonic() + 20
    while not (folder / "checkpoints" / "last").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # step 4 is saved, the evaluation of step 5 has begun
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, 10) == 130
    assert find_checkpoint(folder).name == "step_0000005"
    assert not list((folder / "eval").iterdir())
    build(folder, config(), resume=True).fit(resume=True)
    assert_same_run(whole, folder, stopped=True)


def test_a_second_ctrl_c_aborts_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, agent={"delay": 5.0}, optim={"accumulation": 1})
    while process.is_alive() and not (folder.exists() and "step" in RunFolder(folder).read()):
        time.sleep(0.01)
    time.sleep(0.5)  # the first update has begun
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    begin = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 130
    assert time.monotonic() - begin < 3
    assert "aborted" in Path(f"{folder}.err").read_text()
    assert RunFolder(folder).read()["status"] == "interrupted"


def test_extending_a_finished_run_trains_on_from_its_last_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    build(folder, config(steps=10)).fit()
    assert build(folder, config(steps=10), resume=True).fit(resume=True).step == 10
    result = build(folder, config(steps=16), resume=True).fit(resume=True)
    assert result.step == 16
    steps = [r["step"] for r in rows(folder)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 16


def test_a_run_cannot_be_made_shorter_than_it_is(tmp_path: Path) -> None:
    build(tmp_path / "run", config(steps=10)).fit()
    with pytest.raises(SeqrlError, match="at step 10, past the 5"):
        build(tmp_path / "run", config(steps=5), resume=True).fit(resume=True)


def test_a_trained_folder_is_not_trained_in_from_the_start(tmp_path: Path) -> None:
    build(tmp_path / "run", config(steps=10)).fit()
    with pytest.raises(SeqrlError, match="has been trained in"):
        build(tmp_path / "run", config(steps=10), resume=True).fit()
    assert RunFolder(tmp_path / "run").read()["status"] == "done"


def test_other_data_are_refused_unless_allowed(tmp_path: Path) -> None:
    build(tmp_path / "run", config(steps=8)).fit()
    before = RunFolder(tmp_path / "run").read()
    conf = config(steps=10, seed=1)
    with pytest.raises(SeqrlError, match="seed changed since the checkpoint: 0 → 1"):
        build(tmp_path / "run", conf, resume=True).fit(resume=True)
    assert RunFolder(tmp_path / "run").read() == before, "a refusal leaves the record alone"
    result = build(tmp_path / "run", conf, resume=True).fit(resume=True, allow_change=True)
    assert result.step == 10


def test_what_makes_a_resumed_run_inexact_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "run", config(steps=8)).fit()
    build(tmp_path / "run", config({"accumulation": 4}, steps=10), resume=True).fit(resume=True)
    assert "note: accumulation 2 → 4" in capsys.readouterr().err


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", config={})
    with run.locked(), pytest.raises(SeqrlError, match="another process is training"):
        build(tmp_path / "run", config(), resume=True).fit(resume=True)


@pytest.mark.parametrize("name", ["trainer.json", "optimizer.pt"])
def test_a_checkpoint_that_cannot_be_resumed_is_one_clear_error(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    build(folder, config(steps=4)).fit()
    path = find_checkpoint(folder) / name
    for damage in (path.read_bytes()[:50], b"", b"{}"):
        path.write_bytes(damage)
        with pytest.raises(SeqrlError, match=name) as error:
            build(folder, config(steps=8), resume=True).fit(resume=True)
        assert error.value.hint
    path.unlink()
    with pytest.raises(SeqrlError, match=f"{name} is missing"):
        build(folder, config(steps=8), resume=True).fit(resume=True)


def wait_for_step(folder: Path, step: int, seconds: float = 30.0) -> None:
    """Until a run has logged a step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        path = folder / "checkpoints"
        if path.is_dir() and any(p.name >= f"step_{step:07d}" for p in path.glob("step_*")):
            return
        time.sleep(0.02)
    raise TimeoutError(f"{folder} did not reach step {step}")
