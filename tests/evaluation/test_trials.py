"""Trials: what a report says of them, and references on the same tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seqrl
from seqrl.cli.main import main
from seqrl.envs.pool import env_factory, make_pool, task_of
from seqrl.errors import SeqrlError
from seqrl.eval_report import EvalReport, across_seeds, format_report, target_summary
from seqrl.evaluation import EvalConfig, evaluate
from seqrl.references import make_reference
from seqrl.rollout import EpisodePlan, EpisodeRecord
from seqrl.spec import TaskSpec
from seqrl.trials import plot_trials, trial_summary


def task(env_id: str, **kwargs: Any) -> TaskSpec:
    with make_pool(env_factory(env_id, kwargs), 1, "sync") as pool:
        return task_of(pool, env_id, kwargs)


def record(value: float, regrets: list[float] | None) -> EpisodeRecord:
    line = None if regrets is None else np.array(regrets)
    return EpisodeRecord(EpisodePlan(0, 0), value, 2, None, False, True, regrets=line)


def test_returns_by_place_and_regret_by_step() -> None:
    records = [record(1, [1, 0]), record(3, [0, 1]), record(5, [2, 0]), record(2, [0, 0])]
    found = trial_summary("-", records, 2, seed=0)
    assert [r["mean"] for r in found["returns"]] == [3.0, 2.5]
    assert found["best"]["mean"] == 4.0
    assert found["last"]["mean"] == 2.5
    regret = found["regret"]
    assert regret["total"]["mean"] == 2.0
    assert regret["steps"] == [1, 2, 3, 4]
    assert regret["cumulative"] == [1.5, 1.5, 1.5, 2.0]
    assert regret["stderr"] == pytest.approx([0.5, 0.5, 0.5, 0.0])


def test_regret_is_told_by_all_or_not_at_all_and_a_curve_needs_equal_lengths() -> None:
    silent = trial_summary("-", [record(1, [1, 0]), record(3, None)], 1, seed=0)
    assert silent["regret"] is None
    uneven = trial_summary("-", [record(1, [1, 0]), record(3, [1])], 1, seed=0)
    assert uneven["regret"]["total"]["mean"] == 1.0
    assert uneven["regret"]["steps"] is None


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_the_regret_of_an_environment_reaches_the_report(vector: Any) -> None:
    bandit = task("seqrl/Bandit-v0", horizon=20, n_arms=3)
    config = EvalConfig(episodes=6, num_envs=3, vector=vector)
    uniform = evaluate(make_reference("random", bandit), config=config)
    best = evaluate(make_reference("oracle", bandit), config=config)
    assert best.trials is not None
    assert best.trials[0]["regret"]["total"]["mean"] == 0
    assert uniform.trials is not None
    curve = uniform.trials[0]["regret"]["cumulative"]
    assert curve == sorted(curve)
    assert curve[-1] > 2
    assert "regret of a trial" in format_report(uniform)
    again = EvalReport.from_json(json.loads(json.dumps(uniform.to_json())))
    assert again.trials == uniform.trials
    # Silent environments have no trials, and records of earlier versions have no such field.
    plain = evaluate(make_reference("random", task("CartPole-v1")), config=EvalConfig(episodes=2))
    assert plain.trials is None
    old = plain.to_json()
    del old["trials"]
    assert EvalReport.from_json(old).trials is None


def test_regrets_of_a_room_add_up_to_what_the_optimum_had_over_the_return() -> None:
    room = task("seqrl/DarkRoom-v0", size=4, horizon=12)
    report = evaluate(make_reference("random", room), config=EvalConfig(episodes=16))
    best = evaluate(make_reference("oracle", room), config=EvalConfig(episodes=16))
    assert report.trials is not None
    lost = best.summary[0]["return"]["mean"] - report.summary[0]["return"]["mean"]
    assert report.trials[0]["regret"]["total"]["mean"] == pytest.approx(lost)


def test_any_policy_can_be_asked_for_trials_of_one_task() -> None:
    room = task("seqrl/DarkRoom-v0", size=4, horizon=12, split="test")
    config = EvalConfig(episodes=9, trial_episodes=3)
    report = evaluate(make_reference("oracle", room), config=config)
    assert report.protocol["trial_episodes"] == 3
    returns = np.array([e["return"] for e in report.episodes]).reshape(3, 3)
    assert (returns == returns[:, :1]).all(), "the same goal throughout a trial"
    assert report.trials is not None
    assert report.trials[0]["trials"] == 3
    with pytest.raises(SeqrlError, match="whole number of trials"):
        evaluate(make_reference("oracle", room), config=EvalConfig(episodes=10, trial_episodes=3))


def test_evaluations_during_training_take_whole_trials(tmp_path: Path) -> None:
    run = seqrl.train(
        "ad",
        "histories:seqrl/DarkRoom-v0?size=3&horizon=4&histories=2&episodes=5",
        steps=2,
        agent_config={"context": 8, "width": 16, "n_layer": 1, "n_head": 2, "trial_episodes": 4},
        eval_every=1,
        eval_episodes=6,
        eval={"episodes": 8},
        loggers=["jsonl"],
        out=tmp_path / "run",
    )
    periodic = json.loads(next((run.dir / "eval").glob("step_*.json")).read_text())
    assert len(periodic["episodes"]) == 8
    assert periodic["trials"][0]["trials"] == 2
    assert run.summary()["final"][0]["n"] == 8


@pytest.fixture(scope="module")
def bandit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = seqrl.train(
        "dpt",
        "incontext:seqrl/Bandit-v0?tasks=50&horizon=10",
        steps=2,
        agent_config={"context": 10, "width": 16, "n_layer": 1},
        eval={"episodes": 8, "acting": "stream", "decode": "sample"},
        loggers=["jsonl"],
        out=tmp_path_factory.mktemp("runs") / "bandit",
    )
    return run.dir


def test_the_command_compares_with_references_and_draws(
    bandit_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "regret.png"
    words = ["eval", str(bandit_run), "--against", "oracle", "thompson?sigma=0.2"]
    assert main([*words, "--plot", str(file), "--episodes", "6", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "thompson?sigma=0.2" in text
    assert "0 [0, 0]" in text, "the oracle regrets nothing"
    assert file.read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--json", "--quiet"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record["against"]) == {"oracle", "thompson?sigma=0.2"}
    assert [e["seed"] for e in record["against"]["oracle"]["episodes"]] == [
        e["seed"] for e in record["episodes"]
    ]


def test_intervals_are_over_the_trials_not_over_their_episodes() -> None:
    episodes = [
        {"target": None, "target_label": "-", "return": v, "normalized": None, "length": 1,
         "success": v > 1}
        for v in (0.0, 0.0, 0.0, 4.0, 4.0, 4.0)
    ]  # fmt: skip
    alone, trials = (target_summary("-", episodes, 0, per) for per in (1, 3))
    assert alone["return"]["ci_kind"] == "bootstrap over 6 episodes"
    assert trials["return"]["ci_kind"] == "bootstrap over 2 trials"
    assert trials["return"]["mean"] == alone["return"]["mean"] == 2.0
    # Two independent parts, 0 and 4: the interval is all of it. Six would narrow it.
    assert trials["return"]["ci"] == [0.0, 4.0]
    assert alone["return"]["ci"][0] > 0
    assert trials["success"]["ci"] == [0.0, 1.0]
    record = {"summary": [trials], "episodes": episodes, "protocol": {"trial_episodes": 3}}
    (row,) = across_seeds([record, record])
    assert row["return"]["ci_kind"] == "bootstrap over 4 trials"


def test_trials_that_do_not_fit_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(SeqrlError, match="100 episodes are no whole number of trials of 7"):
        seqrl.train(
            "ad",
            "histories:seqrl/DarkRoom-v0?size=3&horizon=4&histories=2&episodes=5",
            steps=100_000,
            agent_config={"context": 8, "width": 16, "n_layer": 1, "n_head": 2,
                          "trial_episodes": 7},
            out=tmp_path / "run",
        )  # fmt: skip
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_is_for_one_task_is_refused_for_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = seqrl.train(
        "lram",
        ["tmaze-smoke", "random:CartPole-v1?episodes=5"],
        steps=1,
        agent_config={"context": 4, "width": 16, "n_layer": 1, "n_head": 1},
        evaluate=False,
        loggers=["jsonl"],
        out=tmp_path / "run",
    )
    for words in (["--against", "random"], ["--plot", str(tmp_path / "a.png")]):
        assert main(["eval", str(run.dir), *words, "--quiet"]) == 2
        assert f"{words[0]} is for one task, the policy has 2" in capsys.readouterr().err


def test_mistakes_are_named_before_anything_is_run(
    bandit_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set((bandit_run / "eval").iterdir())
    assert main(["eval", str(bandit_run), "--against", "tompson", "--quiet"]) == 2
    assert "thompson" in capsys.readouterr().err
    assert set((bandit_run / "eval").iterdir()) == before


def test_a_plot_that_cannot_be_written_costs_no_record(
    bandit_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    before = set((bandit_run / "eval").iterdir())
    words = ["eval", str(bandit_run), "--episodes", "4", "--plot", "/proc/no/plot.png", "--quiet"]
    assert main(words) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert len(set((bandit_run / "eval").iterdir()) - before) == 1


def test_nothing_to_draw_is_said() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(SeqrlError, match="no trial of several"):
        plot_trials({"a": []}, "x.png")
