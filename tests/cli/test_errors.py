"""Every mistake of the error table: message, hint, exit code, and no traceback."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from seqrl import runfolder
from seqrl.agents import registry
from tests.cli.conftest import QUICK_EVAL, TINY, Cli

MISTAKES = [
    (["trian", "dt"], "no command 'trian'", "did you mean 'train'?"),
    (
        ["train", "dt", "--data", "tmaze-3"],
        "dataset 'tmaze-3' is not in ",
        'close: tmaze-30, tmaze-90, tmaze-smoke; make it: --data "oracle:seqrl/TMaze-v0?limit=3"; '
        "or download: add --download",
    ),
    (
        ["train", "dt", "--agent.widht", "5"],
        "agent 'dt' has no option 'widht'",
        "did you mean --agent.width (int, default 128)?",
    ),
    (["train", "dtt"], "no agent 'dtt'", "did you mean 'dt' or 'dpt'?"),
    (
        ["train", "dt", "--stepz", "5"],
        "'seqrl train' has no option '--stepz'",
        "did you mean --steps",
    ),
    (["train", "dt", "--width", "5"], "no option '--width'", "did you mean --agent.width (int"),
    (["train", "--preset", "dt/hoper-medium"], "no preset 'dt/hoper-medium'", "dt/hopper-medium"),
    (["train", "--preset", "dt/hopper-medium"], "names no data", "--data d4rl:hopper_medium"),
    (["train", "bc", "--preset", "dt/tmaze-30"], "is for agent 'dt', not 'bc'", "drop 'bc'"),
    (["train", "dt/tmaze-30"], "is a preset, not an agent", "--preset dt/tmaze-30"),
    (["train"], "no agent named", "seqrl list agents"),
    (["train", "--data", "tmaze-30", "dt"], "'dt' was taken for data", "seqrl train dt --data"),
    (["train", "dt", "--steps", "1.5"], "--steps takes int, got '1.5'", "5k"),
    (["train", "dt", "--precision", "fp8"], "--precision takes fp32|bf16|fp16", ""),
    (["train", "dt", "--seed", "1", "--seeds", "0-2"], "--seed and --seeds", "keep one"),
    (["train", "dt", "--seeds", "4-1"], "runs backwards", "1-4"),
    (
        ["train", "dt", *TINY, "--holdout", "2"],
        "holdout is 2.0, must be at least 0",
        "set --holdout",
    ),
    (
        ["train", "dt", *TINY, "--agent.width", "0"],
        "width is 0, must be at least 1",
        "--agent.width",
    ),
    (
        ["train", "dt", *TINY, "--device", "cuda"],
        "--device cuda, but torch was built",
        "drop --device",
    ),
    (["list", "agent"], "there is no list of 'agent'", "did you mean 'agents'?"),
    (["data", "inspct"], "no command 'data inspct'", "did you mean 'inspect'"),
    (["data", "inspect", "npz:nowhere.npz"], "nowhere.npz", ""),
    (["data", "convert", "tmaze-smoke"], "needs a source and a destination", "cache:FOLDER"),
    (
        ["data", "collect", "CartPol-v1", "--to", "npz:x.npz"],
        "no environment 'CartPol-v1'",
        "CartPole-v1",
    ),
    (["eval", "nowhere"], "nowhere does not exist", "seqrl list runs"),
    (["resume", "nowhere"], "nowhere does not exist", "seqrl list runs"),
    (["config", "diff", "dt/tmaze-30", "dt/tmaze-31"], "'dt/tmaze-31' is no run", "dt/tmaze-30"),
    (["doctor", "Hoper-v5x"], "Hoper-v5x", ""),
]


@pytest.mark.parametrize(("words", "message", "hint"), MISTAKES, ids=lambda v: str(v)[:40])
def test_mistake(cli: Cli, words: list[str], message: str, hint: str) -> None:
    done = cli(*words)
    assert done.code in (2, 3)
    lines = done.err.strip().splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert message in done.err + done.out
    if hint:
        assert lines[-1].startswith("hint: ")
        assert hint in lines[-1]


def test_horizon_beyond_the_position_table(cli: Cli) -> None:
    words = ["--agent.positions", "timestep", "--agent.max-timestep", "3"]
    done = cli("train", "dt", *TINY, *words)
    assert done.code == 2
    assert "agent.max_timestep is 3" in done.err
    assert "hint: --agent.max-timestep " in done.err


def test_loss_becomes_nan(cli: Cli, tmp_path: Path) -> None:
    done = cli("train", "dt", *TINY, *QUICK_EVAL, "--steps", "20", "--lr", "1e30", "--out", "run",
               "-q", "--save-every", "1", "--no-evaluate")  # fmt: skip
    assert done.code == 1
    assert "error: loss is NaN at step 2 (last finite 1)" in done.err
    assert "--lr" in done.err
    assert "seqrl data inspect" in done.err
    assert (tmp_path / "run/checkpoints/last/weights.safetensors").is_file()
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"


def test_output_exists(cli: Cli, run_dir: Path) -> None:
    done = cli("train", "dt", *TINY, "--out", str(run_dir))
    assert done.code == 2
    assert f"error: run folder exists: {run_dir}" in done.err
    assert "hint: seqrl resume " in done.err


def test_name_taken(cli: Cli) -> None:
    words = ["train", "dt", *TINY, "--steps", "1", "--no-evaluate", "-q", "--name", "mine"]
    assert cli(*words).code == 0
    done = cli(*words)
    assert done.code == 2
    assert "error: run folder exists: runs/tmaze-smoke/dt/mine_s0" in done.err
    assert "or --name other" in done.err


def test_checkpoint_of_another_environment(cli: Cli, run_dir: Path) -> None:
    done = cli("eval", str(run_dir), "--env", "Pendulum-v1")
    assert done.code == 2
    assert "error: policy acts on Discrete(4), env wants Box(1,)" in done.err
    assert "hint: trained on seqrl/TMaze-v0" in done.err


def test_resume_with_changed_flags(cli: Cli, run_dir: Path) -> None:
    done = cli("resume", str(run_dir), "--lr", "3e-4")
    assert done.code == 2
    assert "optim.lr 0.003 → 3e-4" in done.err
    assert "--allow-change" in done.err


CONTINUOUS_ONLY = """
from seqrl.agents.bc import BehaviourCloning

class Continuous(BehaviourCloning):
    name = "continuous-only"
    action_kinds = ("continuous",)
"""


def test_discrete_data_for_a_continuous_agent(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_agent.py").write_text(CONTINUOUS_ONLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_agent", raising=False)
    done = cli("train", "my_agent:Continuous", "--data", "tmaze-smoke")
    assert done.code == 2
    assert (
        "error: agent 'continuous-only' needs continuous actions, dataset has Discrete(4)"
        in done.err
    )
    others = " ".join(r.name for r in registry.ROWS if "discrete" in r.actions)
    assert f"hint: agents for discrete data: {others}" in done.err


def test_newer_schema_is_refused_and_an_older_one_upgraded(
    cli: Cli, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, symlinks=True)
    record = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**record, "schema": 99}))
    done = cli("config", "show", str(copy))
    assert done.code == 2
    assert "config schema 99, this seqrl reads up to 1" in done.err

    def rename(old: dict) -> tuple[dict, str]:
        config = dict(old["config"])
        steps = config["train"].pop("updates")
        config["train"] = {**config["train"], "steps": steps}
        config["agent"] = config.pop("algorithm")
        return {**old, "config": config}, "2 fields renamed"

    old = json.loads(json.dumps(record))
    old["config"]["algorithm"] = old["config"].pop("agent")
    old["config"]["train"]["updates"] = old["config"]["train"].pop("steps")
    (copy / "config.json").write_text(json.dumps(old))
    monkeypatch.setattr(runfolder, "CONFIG_SCHEMA", 2)
    monkeypatch.setattr(runfolder, "CONFIG_UPGRADES", [rename])
    done = cli("config", "show", str(copy))
    assert done.code == 0
    assert "upgraded config 1 → 2 (2 fields renamed)" in done.err
    assert "train.steps" in done.out


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    from seqrl.cli.main import main

    assert main(["--debug", "eval", "nowhere"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_unexpected_errors_are_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from seqrl.cli import info

    def broken() -> None:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(info, "collect", broken)
    done = cli("info")
    assert done.code == 1
    assert done.err.splitlines()[0] == "error: unexpected ZeroDivisionError: oh"
    assert "--debug" in done.err
