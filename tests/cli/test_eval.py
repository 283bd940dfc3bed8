"""Evaluating from the command line, and its Python mirror: the same numbers everywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import seqrl
from tests.cli.conftest import TINY, Cli
from tests.cli.schema import EVAL, check


@pytest.fixture
def run(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may write to."""
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    return Path("run")


def comparable(report: dict) -> dict:
    return {
        k: report[k] for k in ("episodes", "summary", "env", "policy", "protocol", "normaliser")
    }


def test_command_line_equals_final_evaluation_and_python(cli: Cli, run: Path) -> None:
    final = comparable(json.loads((run / "eval/final.json").read_text()))
    done = cli("eval", str(run), "--json", "--num-envs", "3", "-q")
    assert done.code == 0
    report = json.loads(done.out)
    check(report, EVAL)
    assert comparable(report) == final
    assert comparable(json.loads((run / "eval/cli_0001.json").read_text())) == final
    assert comparable(seqrl.evaluate(str(run)).to_json()) == final


def test_records_are_numbered_and_the_table_says_where(cli: Cli, run: Path) -> None:
    assert "written eval/cli_0001.json" in cli("eval", str(run), "--episodes", "2").out
    done = cli("eval", f"{run}/checkpoints/best", "--targets", "1", "--episodes", "2")
    assert done.out.splitlines()[-1] == "written eval/cli_0002.json"
    assert done.out.splitlines()[0].startswith("target")


def test_targets_environment_and_checkpoint(cli: Cli, run: Path) -> None:
    words = ["--targets", "0.5,p90", "max*1.5", "--episodes", "3", "--json", "--checkpoint", "best"]
    report = json.loads(cli("eval", str(run), *words, "--env-kwargs", "limit=15").out)
    assert [s["target_label"] for s in report["summary"]] == ["0.5", "p90", "max*1.5"]
    assert report["env"]["kwargs"]["limit"] == 15
    assert report["policy"]["checkpoint"] == "best"
    best = json.loads((run / "run.json").read_text())["summary"]["best"]["step"]
    assert report["policy"]["step"] == best


def test_a_policy_alone_is_evaluated_without_a_run(cli: Cli, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints/last", tmp_path / "alone")
    done = cli("eval", "alone", "--episodes", "2", "--out", "mine.json")
    assert done.code == 0
    assert "written eval" not in done.out
    check(json.loads(Path("mine.json").read_text()), EVAL)


def test_play_writes_a_film(cli: Cli, run: Path) -> None:
    done = cli("play", str(run), "--video", "film.gif", "--episodes", "2")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "written film.gif"
    assert Path("film.gif").read_bytes()[:3] == b"GIF"
    rows = json.loads(cli("play", str(run), "--video", "b.gif", "--target", "max", "--json").out)
    check(rows, {"video": str, "episodes": [{"seed": int, "return": float, "length": int}]})
    assert cli("play", str(run)).code == 2


def test_the_python_mirror(cli: Cli, run_dir: Path) -> None:
    settings = {"width": 16, "n_layer": 1, "positions": "none"}
    data = seqrl.load_dataset("tmaze-smoke")
    run = seqrl.train(
        "dt", data, steps=60, seed=0, lr=3e-3, context=10, agent_config=settings, targets=[0, 1],
        eval_every=20, eval_episodes=4, eval={"episodes": 8}, out="mine",
    )  # fmt: skip
    assert cli("config", "diff", "mine", str(run_dir)).out.strip() == "no difference"
    weights = "checkpoints/last/weights.safetensors"
    assert (run.dir / weights).read_bytes() == (run_dir / weights).read_bytes()
    assert run.final is not None
    assert run.final.summary == json.loads((run_dir / "eval/final.json").read_text())["summary"]
    report = seqrl.evaluate(run, targets=[1.0], episodes=8)
    assert report.summary[0]["return"] == run.final.summary[1]["return"]
    assert run.evaluate(targets=["1"]).summary[0]["return"] == report.summary[0]["return"]
    policy = seqrl.load_policy(run.dir)
    policy.reset(target=1.0)
    obs = data[0].observations[0]
    assert policy.act(obs) in range(4)
    assert policy.act(obs, 0.0) in range(4)


def test_python_mistakes_are_named() -> None:
    with pytest.raises(seqrl.SeqrlError, match=r"no setting 'step'.*did you mean 'steps'"):
        seqrl.train("dt", "tmaze-smoke", step=5)
    with pytest.raises(seqrl.SeqrlError, match="load_dataset has no setting 'bset'"):
        seqrl.load_dataset("tmaze-smoke", bset=10)
    with pytest.raises(seqrl.SeqrlError, match="agent 'bc' has no option 'widht'"):
        seqrl.make_agent("bc", seqrl.load_dataset("tmaze-smoke"), widht=3)


def test_agents_can_be_made_from_data_or_from_a_bare_task() -> None:
    data = seqrl.load_dataset("tmaze-smoke")
    assert np.isclose(seqrl.make_agent("dt", data).stats[0].obs_mean, data.stats.obs_mean).all()
    bare = seqrl.make_agent("dt", data.task, width=16)
    assert bare.stats[0].obs_std == (1.0,) * 4


def test_importing_the_module_does_not_hide_the_function() -> None:
    import seqrl.evaluation

    assert callable(seqrl.evaluate)


def test_delayed_rewards_keep_the_target_fixed_everywhere(cli: Cli) -> None:
    words = ["--delayed", "--steps", "2", "--eval-every", "0", "--eval.episodes", "2", "-q"]
    assert cli("train", "dt", *TINY, *words, "--out", "late").code == 0
    final = json.loads(Path("late/eval/final.json").read_text())
    assert final["protocol"]["rtg_update"] == "none"
    again = json.loads(cli("eval", "late", "--json").out)
    assert comparable(again) == comparable(final)
    assert comparable(seqrl.evaluate("late").to_json()) == comparable(final)
