"""``seqrl bench`` at the terminal: what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.conftest import tiny
from tests.cli.conftest import Cli


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny()))
    return str(path)


def test_dry_run_shows_cells_and_cost(cli: Cli, file: str) -> None:
    done = cli("bench", file, "--dry-run", "--rows", "maze", "--seeds", "0-1")
    assert done.code == 0
    assert "maze  lstm     0/2" in done.out
    assert "core-hours to go" in done.out
    assert "nothing was run" in done.out
    assert not Path("runs").exists()
    listed = json.loads(cli("bench", file, "--dry-run", "--no-probe", "--json").out)
    assert {g["entrant"] for g in listed["groups"]} == {"bc", "lstm", "random"}
    assert all(g["core_seconds"] is None for g in listed["groups"])


@pytest.mark.slow
def test_running_keeps_what_is_finished(cli: Cli, file: str) -> None:
    words = ("bench", file, "--rows", "maze", "--agents", "bc", "random", "--jobs", "2")
    first = cli(*words)
    assert first.code == 0, first.err
    assert "[2/2] maze · " in first.err
    assert "ENTRANT  SEEDS  9" in first.out
    assert "next:  seqrl report runs/bench/tiny" in first.out
    again = cli(*words, "--json")
    assert json.loads(again.out)["kept"] == 2
    more = cli(*words, "--dry-run")
    assert "2 of 2 cells are finished" in more.out


@pytest.mark.slow
def test_a_failed_cell_makes_the_exit_code(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    broken = {"agent": "lstm", "agent_config": {"width": 0}}
    path.write_text(json.dumps(tiny(entrants={"broken": broken, "bc": None})))
    done = cli("bench", str(path), "--rows", "maze", "--jobs", "2")
    assert done.code == 1
    assert "failed: width is 0" in done.err
    assert "1 of 3 cells failed" in done.err
    assert "maze/broken_s0/log.txt" in done.err
    assert "lstm" in done.out, "the others went on"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tmase"], "no suite 'tmase'"),
        (["tmaze", "--agents", "lstmm"], "no entrant 'lstmm'"),
        (["tmaze", "--budget", "time"], "--budget is 'time'"),
        (["tmaze", "--budget", "seconds"], "--budget seconds and --seconds N go together"),
        (["tmaze", "--seconds", "5"], "--budget seconds and --seconds N go together"),
        (["tmaze", "--budget", "seconds", "--seconds", "5", "--steps", "5"], "both given"),
        (["tmaze", "--launcher", "slurm"], "--launcher is 'slurm'"),
        (["tmaze", "--address", "auto"], "--address is for --launcher ray"),
        (["tmaze", "--jobs", "0"], "--jobs is 0"),
        (["tmaze", "--data", "tmaze-30"], "--data does not fit"),
        (["speed", "--rows", "nothing"], "no row 'nothing'"),
    ],
)
def test_mistakes(cli: Cli, words: list[str], message: str) -> None:
    done = cli("bench", *words)
    assert done.code == 2
    assert message in done.err
    assert not Path("runs").exists()


def test_suites_are_listed(cli: Cli) -> None:
    listed = json.loads(cli("list", "suites", "--json").out)["suites"]
    assert {"smoke", "tmaze", "locomotion", "speed"} <= {s["name"] for s in listed}


@pytest.mark.slow
def test_smoke_suite_runs_and_is_reported(cli: Cli) -> None:
    """Every kind of row, measure and agent that the other suites use, in one command."""
    done = cli("bench", "smoke", "--jobs", "2", "--out", "out")
    assert done.code == 0, done.err
    assert "[14/14]" in done.err
    assert "best: " in done.err, "progress names measures as the table does"
    for title in ("T-Maze", "Repeat previous", "Bandits, ten pulls", "Acting latency"):
        assert f"{title}: mean " in done.out
    assert cli("report", "out").code == 0
    page = next(Path("out").rglob("*.html")).read_text()
    for title in ("Key-to-Door, best checkpoint", "CartPole from random", "Pendulum from random"):
        assert title in page
