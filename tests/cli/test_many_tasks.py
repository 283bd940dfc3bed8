"""Training, resuming and evaluating one model on several tasks, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import seqrl
from seqrl import evaluating
from seqrl.api import evaluate_tasks
from seqrl.errors import SeqrlError
from seqrl.evaluation import EvalConfig
from seqrl.targets import targets_of
from tests.cli.conftest import Cli

MAZE = "oracle:seqrl/TMaze-v0?limit=9&episodes=40"
PLAYED = ("random:CartPole-v1?episodes=20", "random:Pendulum-v1?episodes=3")
DATA = [MAZE, f"{MAZE}&obs=pixels", *PLAYED]
SMALL = ["--agent.width", "16", "--agent.n-layer", "2", "--agent.n-head", "2", "--context", "8"]
TRAIN = ["train", "lram", "--data", *DATA, *SMALL, "--agent.slstm-at", "1", "--batch-size", "8",
         "--steps", "8", "--eval-every", "4", "--eval-episodes", "2", "--eval-tasks", "2",
         "--eval.episodes", "3", "--eval.max-steps", "25", "--targets", "p90,0:0.5,0:1.0",
         "--loggers", "jsonl"]  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over four tasks."""
    from seqrl.cli.main import main

    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SEQRL_HOME", str(folder / "home"))
        assert main([*TRAIN, "--out", str(folder / "run"), "-q"]) == 0
    return folder / "run"


def test_a_run_has_a_result_for_every_task_and_their_mean(run_dir: Path) -> None:
    summary = json.loads((run_dir / "run.json").read_text())["summary"]
    names = [t["name"] for t in summary["tasks"]]
    assert names == ["seqrl/TMaze-v0 #0", "seqrl/TMaze-v0 #1", "CartPole-v1", "Pendulum-v1"]
    scores = [t["summary"][-1]["normalized"]["mean"] for t in summary["tasks"]]
    assert summary["mean_normalized"] == pytest.approx(sum(scores) / 4)
    # Targets: task 0 has two of its own, the others the quantile of their own data.
    labels = [[s["target_label"] for s in t["summary"]] for t in summary["tasks"]]
    assert labels == [["0.5", "1.0"], ["p90"], ["p90"], ["p90"]]
    targets = [t["summary"][-1]["target"] for t in summary["tasks"]]
    assert targets[1] == 1
    assert targets[2] > 15
    assert targets[3] < -500
    files = {p.name for p in (run_dir / "eval").iterdir()}
    assert files >= {"final.json", *(f"final_task{i}.json" for i in (1, 2, 3))}


def test_evaluations_on_the_way_ask_some_tasks_and_score_by_their_mean(run_dir: Path) -> None:
    record = json.loads((run_dir / "eval/step_0000004.json").read_text())
    assert [t["task"] for t in record["tasks"]] == [0, 2]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    assert last["eval/score"] == last["eval/normalized"]
    assert "eval/CartPole-v1/return[p90]" in last
    assert {f"loss/{i}" for i in range(4)} <= set(last)


def test_eval_repeats_the_final_evaluation_of_all_tasks(run_dir: Path, cli: Cli) -> None:
    done = cli("eval", str(run_dir), "--json", "-q")
    assert done.code == 0
    found = json.loads(done.out)
    summary = json.loads((run_dir / "run.json").read_text())["summary"]
    assert found["mean_normalized"] == summary["mean_normalized"]
    assert [t["summary"] for t in found["tasks"]] == [t["summary"] for t in summary["tasks"]]
    text = cli("eval", str(run_dir), "--episodes", "2").out.splitlines()
    assert " ".join(text[0].split()) == "TASK TARGET EPISODES RETURN [95% CI] NORM. SUCCESS"
    assert text[5].startswith("mean normalised ")
    assert text[5].endswith("over 4 tasks")


def test_eval_of_one_task_is_that_task_s_own(run_dir: Path, cli: Cli) -> None:
    done = json.loads(cli("eval", str(run_dir), "--task", "2", "--json", "-q").out)
    final = json.loads((run_dir / "eval/final_task2.json").read_text())
    assert [s["return"] for s in done["summary"]] == [s["return"] for s in final["summary"]]
    assert done["env"]["id"] == "CartPole-v1"


def test_what_only_one_task_can_mean_is_refused_for_all(run_dir: Path, cli: Cli) -> None:
    done = cli("eval", str(run_dir), "--env", "Acrobot-v1")
    assert done.code == 2
    assert "the policy has 4 tasks: another environment of which?" in done.err
    done = cli("eval", str(run_dir), "--targets", "7:1.0")
    assert done.code == 2
    assert "target '7:1.0' is for task 7, the policy has 4" in done.err
    done = cli("eval", str(run_dir), "--task", "9")
    assert done.code == 2
    assert "the policy has no task 9, it has 4" in done.err


def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "run"
    assert cli(*TRAIN, "--out", str(out), "--save-every", "4", "-q").code == 0
    assert cli("resume", str(out), "--steps", "12", "-q").code == 0
    whole = tmp_path / "whole"
    words = list(TRAIN)
    words[words.index("--steps") + 1] = "12"
    assert cli(*words, "--out", str(whole), "--optim.schedule", "constant", "-q").code == 0
    records = [json.loads((f / "run.json").read_text())["summary"] for f in (out, whole)]
    assert records[0]["mean_normalized"] == records[1]["mean_normalized"]
    assert records[0]["metrics"]["loss"] == records[1]["metrics"]["loss"]


def test_lists_and_starts_say_how_many_tasks(run_dir: Path, tmp_path: Path, cli: Cli) -> None:
    listed = cli("list", "runs", str(run_dir.parent)).out
    assert "(4 tasks)" in " ".join(listed.split())  # a long folder name wraps the last column
    out = tmp_path / "new"
    done = cli(*TRAIN[:-2], "--loggers", "none", "--no-evaluate", "--out", str(out))
    assert "lram on 4 tasks" in done.err
    assert "data 3 Pendulum-v1:" in done.err


def test_tasks_without_environment_are_left_out_with_a_note(tmp_path: Path) -> None:
    from seqrl.testing.battery import tiny_data

    data = [seqrl.load_dataset("random:CartPole-v1?episodes=5"), tiny_data("continuous")]
    run = seqrl.train(
        "lram", data, steps=2, batch_size=4, out=tmp_path / "run", context=4, eval_episodes=1,
        agent_config={"width": 16, "n_layer": 1, "n_head": 1}, eval={"episodes": 2},
    )  # fmt: skip
    assert run.tasks is not None
    assert run.tasks.labels == ["CartPole-v1"]
    assert "not evaluated, no environment is named: tiny-continuous" in (
        (run.dir / "log.txt").read_text() + " ".join(_notes(data))
    )
    policy = seqrl.load_policy(run.dir)
    found = evaluate_tasks(policy, episodes=2, targets=["max"])
    assert found.tasks == [0]
    with pytest.raises(SeqrlError, match="name no environment"):
        evaluating.evaluate_tasks(seqrl.make_agent("lram", data[1]), EvalConfig())


def _notes(data: list) -> list[str]:
    from seqrl.experiment import ExperimentConfig, prepare

    settings = {"agent": "lram", "data": ["a", "b"]}
    return prepare(ExperimentConfig.from_json(settings), data).notes


def test_targets_of_one_task_replace_the_common_ones() -> None:
    asked = ("p90", "2:3600", "2:max", "0:-5")
    assert targets_of(asked, 0, 3) == ("-5",)
    assert targets_of(asked, 1, 3) == ("p90",)
    assert targets_of(asked, 2, 3) == ("3600", "max")
    assert targets_of(("1:5",), 0, 2) == ()
    with pytest.raises(SeqrlError, match="is for task 2, the policy has 2"):
        targets_of(asked, 0, 2)


@pytest.mark.parametrize(
    ("most", "chosen"), [(None, [1, 3, 4, 7, 8]), (9, [1, 3, 4, 7, 8]), (2, [1, 4]), (1, [1])]
)
def test_tasks_asked_are_spread(most: int | None, chosen: list[int]) -> None:
    assert evaluating._spread([1, 3, 4, 7, 8], most) == chosen


def test_scales_are_found_for_tasks_that_have_none() -> None:
    task = seqrl.load_dataset("random:CartPole-v1?episodes=2").task
    config = EvalConfig(video="films")
    several = evaluating.task_config(config, task, "a/b", several=True)
    assert (several.normaliser, several.video) == ("dataset", "films/a_b")
    assert evaluating.task_config(config, task, "a/b", several=False) is config
    maze = seqrl.load_dataset(MAZE).task
    assert evaluating.task_config(EvalConfig(), maze, "m", several=True).normaliser == "auto"
