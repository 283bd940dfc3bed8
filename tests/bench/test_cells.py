"""Workers: what a record says, what is kept, what is done again, what fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seqrl.bench import runner, worker
from seqrl.cli.main import main
from seqrl.errors import SeqrlError
from tests.bench.conftest import lasting, planned, tiny, work


def test_a_record_says_what_was_measured(tmp_path: Path) -> None:
    cell = next(c for c in planned(tmp_path) if c.id == "maze/lstm_s0")
    assert cell.status() == "new"
    assert work([cell]) == [worker.DONE]
    assert cell.status() == "done"
    record = json.loads(cell.record_file.read_text())
    assert [r["x"] for r in record["results"]] == [9, 12, 20]
    first = record["results"][0]
    assert first["n"] == 4
    assert first["success"]["ci_kind"] == "wilson over 4 episodes"
    assert first["env"]["kwargs"]["limit"] == 9
    assert first["rule"] == "stream"
    assert record["updates"] == 8
    assert record["parameters"] > 0
    assert record["data"][0]["fingerprint"]
    assert [row["step"] for row in record["curve"]] == [4, 8]
    assert record["settings"]["train"]["seed"] == 0
    assert record["timing"]["train_seconds"] > 0


def test_the_same_cell_gives_the_same_record(tmp_path: Path) -> None:
    for place in ("a", "b"):
        cells = planned(tmp_path / place, rows=("pole",))
        assert work(cells) == [0, 0, 0]
    for cell in cells:
        twin = tmp_path / "a" / "cells" / f"{cell.id}.json"
        assert lasting(twin) == lasting(cell.record_file), cell.title
    random = lasting(tmp_path / "a" / "cells" / "pole" / "random_s0.json")
    assert random["results"][0]["return"]["mean"] > 5
    assert random["parameters"] == 0


def test_more_lengths_train_nothing_anew(tmp_path: Path) -> None:
    cell = planned(tmp_path, rows=("maze",), agents=("lstm",), lengths=(9,))[0]
    work([cell])
    before = (cell.folder / "run" / "run.json").read_text()
    longer = planned(tmp_path, rows=("maze",), agents=("lstm",), lengths=(9, 12))[0]
    assert longer.status() == "unfinished"
    work([longer])
    assert (cell.folder / "run" / "run.json").read_text() == before
    assert [r["x"] for r in lasting(longer.record_file)["results"]] == [9, 12]
    assert longer.status() == "done"


def test_other_settings_are_refused(tmp_path: Path) -> None:
    cell = planned(tmp_path, rows=("maze",), agents=("bc",))[0]
    work([cell])
    other = planned(tmp_path, rows=("maze",), agents=("bc",), steps=9)[0]
    with pytest.raises(SeqrlError, match=r"train\.steps 8 → 9"):
        runner.run_cells([other])
    cell.record_file.unlink()
    with pytest.raises(SeqrlError, match="unfinished run of other settings"):
        runner.run_cells([other])


def test_a_failed_cell_is_recorded_and_tried_again(tmp_path: Path) -> None:
    content = tiny(entrants={"broken": {"agent": "lstm", "agent_config": {"width": 0}}})
    cell = planned(tmp_path, content, rows=("maze",), agents=("broken",))[0]
    assert work([cell]) == [worker.FAILED]
    record = json.loads(cell.record_file.read_text())
    assert record["status"] == "failed"
    assert "width" in record["error"]
    assert cell.status() == "failed"
    assert work([cell]) == [worker.FAILED], "it is tried again, not taken for finished"


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    cell = planned(tmp_path, rows=("maze",), agents=("bc",))[0]
    cell.record_file.parent.mkdir(parents=True)
    cell.record_file.write_text('{"key": ')
    with pytest.raises(SeqrlError, match=r"bc_s0\.json is damaged"):
        cell.status()


def test_two_processes_do_not_run_one_cell(tmp_path: Path) -> None:
    cell = planned(tmp_path, rows=("maze",), agents=("bc",))[0]
    runner._settle(cell)
    with worker.locked(cell.folder) as mine:
        assert mine
        assert worker.main([str(cell.folder)]) == worker.BUSY
    assert not cell.record_file.exists()


def test_a_budget_of_time_fixes_the_updates_once(tmp_path: Path) -> None:
    content = tiny(from_steps={"train.optim.warmup_steps": 0.5})
    cell = planned(tmp_path, content, rows=("maze",), agents=("bc",), seconds=0.2)[0]
    assert work([cell]) == [0]
    record = json.loads(cell.record_file.read_text())
    steps = record["updates"]
    assert steps > 8
    assert record["settings"]["train"]["optim"]["warmup_steps"] == max(1, round(steps / 2))
    assert record["plan"]["seconds"] == 0.2
    cell.record_file.unlink()
    assert work([cell]) == [0]
    assert json.loads(cell.record_file.read_text())["updates"] == steps


def test_speed_cells(tmp_path: Path) -> None:
    size = {"width": 8, "n_layer": 1, "positions": "none"}
    whole = {"acting": "recompute", "from_length": {"context": [1, 0]}}
    acting = {
        "name": "acting",
        "kind": "speed",
        "lengths": [5, 30, 3000],
        "batches": [1, 2],
        "limits": {"seconds": 0.5},
        "axis": {"title": "steps"},
        "entrants": {
            "bc": None,
            "random": None,
            "dt": {"agent": "dt", "agent_config": size, "eval": whole},
        },
    }
    content = tiny(rows=[acting])
    cells = planned(tmp_path, content)
    assert [c.id for c in cells] == ["acting/lstm_s0", "acting/dt_s0"]
    assert work(cells) == [0, 0]
    lstm, dt = (json.loads(c.record_file.read_text())["results"] for c in cells)
    assert [(r["batch"], r["x"]) for r in lstm] == [(b, t) for b in (1, 2) for t in (5, 30, 3000)]
    assert all(r["latency_ms"] > 0 and r["state_mb"] > 0 for r in lstm[:2])
    assert lstm[0]["steps_per_s"] == pytest.approx(1000 / lstm[0]["latency_ms"])
    # The window of each age is as long as the episode, so its memory grows; walking far takes
    # longer than the limit allows.
    assert dt[1]["state_mb"] > 2 * dt[0]["state_mb"]
    assert "over 0.5 s" in dt[2]["reason"]


# --- whole benchmarks, in processes of their own -------------------------------------------------


def bench(*words: str) -> list[str]:
    return [sys.executable, "-m", "seqrl", "bench", *words]


@pytest.mark.slow
def test_killed_twice_and_finished(tmp_path: Path) -> None:
    """kill -9 of the whole benchmark in mid-training: the results are those of an unbroken run."""
    file = tmp_path / "suite.json"
    train = {"steps": 400, "save_every": 10}
    file.write_text(json.dumps(tiny(settings={"train": train}, entrants={"bc": None})))
    words = [str(file), "--rows", "maze", "--quiet", "--out"]
    assert main(["bench", *words, str(tmp_path / "whole")]) == 0
    broken = tmp_path / "broken"
    for kill in range(2):
        process = subprocess.Popen(bench(*words, str(broken)), start_new_session=True)
        saved = broken / "work" / "maze" / "lstm_s0" / "run" / "checkpoints"
        wanted = (kill + 1) * 60
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            steps = [int(p.name[5:]) for p in saved.glob("step_*") if p.name[5:].isdigit()]
            if steps and max(steps) >= wanted:
                break
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (broken / "cells" / "maze" / "lstm_s0.json").exists(), "killed too late"
    assert main(["bench", *words, str(broken)]) == 0
    for name in ("lstm_s0", "random_s0"):
        one, two = (tmp_path / p / "cells" / "maze" / f"{name}.json" for p in ("whole", "broken"))
        assert lasting(one) == lasting(two)


@pytest.mark.slow
def test_workers_end_with_the_benchmark(tmp_path: Path) -> None:
    """A benchmark killed alone leaves no worker behind to write into its folder."""
    file = tmp_path / "suite.json"
    file.write_text(json.dumps(tiny(settings={"train": {"steps": 10**6}})))
    out = tmp_path / "out"
    words = [str(file), "--rows", "maze", "--agents", "lstm", "--out", str(out), "-q"]
    process = subprocess.Popen(bench(*words))
    folder = out / "work" / "maze" / "lstm_s0"
    deadline = time.monotonic() + 60
    while not (folder / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (folder / "run" / "metrics.jsonl").exists()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    with worker.locked(folder) as free:
        assert free, "a worker still holds the cell"
    assert json.loads((folder / "run" / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_local_and_ray_give_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from tests.bench import ray_case

    ray_case.compare(tmp_path)


def test_the_estimate_counts_evaluations_during_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqrl.bench import probe

    monkeypatch.setattr(probe, "_seconds_per_step", lambda *_: 1.0)
    changes = {
        "settings": {"evaluate": True, "eval_episodes": 20, "train": {"eval_every": 4}},
        "entrants": {"lstm": {"eval": {"targets": ["1"], "episodes": 40}}},
    }
    quiet = next(c for c in planned(tmp_path) if c.id == "maze/lstm_s0")
    busy = next(c for c in planned(tmp_path, tiny(**changes)) if c.id == "maze/lstm_s0")
    assert probe.estimate(quiet).measuring == 9 + 12 + 20, "one round of 16 at each length"
    # Twice in eight updates 20 episodes are two rounds, in the end 40 are three; 9 steps at most.
    assert probe.estimate(busy).measuring == 9 + 12 + 20 + 9 * (2 * 2 + 3)
