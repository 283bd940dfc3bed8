"""Evaluation reports: the same again and again, complete, and right in their numbers."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from eval_toys import Gru, Probe, Trial, stats_of, task_of

from seqrl.draws import derive_seed
from seqrl.errors import SeqrlError
from seqrl.eval_report import EvalReport, Outcome
from seqrl.evaluation import EvalConfig, evaluate, format_report, to_outcome
from seqrl.references import make_reference


def fixed(report: EvalReport) -> str:
    """Everything that must not change when an evaluation is run again."""
    data = report.to_json()
    del data["timing"]
    return json.dumps(data)


@pytest.fixture(scope="module")
def gru() -> Gru:
    return Gru(task_of("toy/Walk-v0", reward=0.5))


def test_running_again_gives_the_same_report_whatever_the_number_of_environments(gru):
    config = EvalConfig(targets=("1", "p90"), episodes=12)
    report = evaluate(gru, config=config)
    again = [
        evaluate(gru, config=dataclasses.replace(config, num_envs=n)) for n in (None, 1, 3, 20)
    ]
    assert {fixed(r) for r in again} == {fixed(report)}
    assert report.timing["num_envs"] == 16
    assert again[1].timing["num_envs"] == 1
    assert again[1].timing["policy_ms"]["median"] > 0


def test_the_report_is_plain_json_and_can_be_read_back(gru):
    report = evaluate(gru, config=EvalConfig(targets=("1",), episodes=4))
    text = json.dumps(report.to_json(), allow_nan=False)
    assert EvalReport.from_json(json.loads(text)) == report
    assert next(iter(report.to_json())) == "schema"
    with pytest.raises(SeqrlError, match="schema 9"):
        EvalReport.from_json({"schema": 9})


def test_the_report_holds_every_episode_and_how_it_was_measured(gru):
    config = EvalConfig(targets=("1", "30"), episodes=5, seed=3, stream=0, max_steps=40)
    info = {"checkpoint": "best", "step": 700}
    r = evaluate(gru, config=config, info=info)
    assert [e["index"] for e in r.episodes] == [0, 1, 2, 3, 4] * 2
    assert [e["seed"] for e in r.episodes] == [derive_seed(3, 0, i) for i in range(5)] * 2
    assert [e["target"] for e in r.episodes] == [1.0] * 5 + [30.0] * 5
    assert [e["target_label"] for e in r.episodes] == ["1"] * 5 + ["30"] * 5
    assert set(r.episodes[0]) == {
        *("index", "seed", "target", "target_label", "return", "length"),
        *("success", "terminated", "truncated", "normalized"),
    }
    # The toy's class states its scores: 0 for random, 60 steps of reward 0.5 for the oracle.
    assert r.normaliser["source"] == "toy/Walk-v0 itself"
    for e in r.episodes:
        assert e["return"] == 0.5 * e["length"]
        assert e["normalized"] == pytest.approx(100 * e["return"] / 30)
        assert e["terminated"] != e["truncated"]
        assert e["length"] <= 40
    s = r.summary[0]
    returns = [e["return"] for e in r.episodes[:5]]
    assert s["return"]["mean"] == pytest.approx(np.mean(returns))
    assert s["return"]["std"] == pytest.approx(np.std(returns))
    assert s["return"]["ci_kind"] == "bootstrap over 5 episodes"
    assert s["normalized"]["mean"] == pytest.approx(np.mean(returns) / 0.3)
    assert r.env["id"] == "toy/Walk-v0"
    assert r.env["kwargs"] == {"reward": 0.5}
    assert r.env["version"].startswith("gymnasium ")
    assert r.policy == {"agent": "toy", "checkpoint": "best", "step": 700}
    assert r.protocol == {
        "seed": 3,
        "stream": 0,
        "row_block": 8,
        "rule": "stream",
        "decode": "greedy",
        "temperature": 1.0,
        "rtg_update": "reward",
        "trial_episodes": 1,
        "max_steps": 40,
        "device": "cpu",
    }


def test_all_targets_run_the_same_episodes_and_streams_run_others(gru):
    a = evaluate(gru, config=EvalConfig(targets=("1", "2"), episodes=3))
    b = evaluate(gru, config=EvalConfig(targets=("1",), episodes=3, stream=0))
    seeds = [e["seed"] for e in a.episodes]
    assert seeds[:3] == seeds[3:]
    assert not set(seeds) & {e["seed"] for e in b.episodes}


def test_success_counts_every_episode_when_an_environment_tells_only_of_achievement(gru):
    r = evaluate(gru, config=EvalConfig(targets=("1",), episodes=20))
    wins = [e["success"] for e in r.episodes]
    assert set(wins) <= {True, False}  # episodes that end before anything is said count as failed
    s = r.summary[0]["success"]
    assert s["rate"] == sum(wins) / 20
    assert s["ci_kind"] == "wilson over 20 episodes"
    silent = evaluate(Probe(task_of("toy/Counting-v0")), config=EvalConfig(episodes=2, max_steps=9))
    assert silent.summary[0]["success"] is None
    assert [e["success"] for e in silent.episodes] == [None] * len(silent.episodes)


def test_a_sweep_works_where_rewards_are_negative():
    task = task_of("toy/Counting-v0", sign=-1.0)
    policy = Probe(task, stats_of(task, p50=-40.0, p90=-20.0, max=-15.0))
    config = EvalConfig(targets=("p50", "max", "max*1.2"), episodes=2, max_steps=9)
    r = evaluate(policy, config=config)
    assert [s["target"] for s in r.summary] == [-40, -15, -12]
    assert {s["return"]["mean"] for s in r.summary} == {-15}
    assert r.normaliser is None
    assert r.episodes[0]["normalized"] is None
    assert "norm." not in format_report(r)


def test_a_policy_that_ignores_returns_has_one_target():
    policy = Probe(task_of("toy/Counting-v0"))
    policy.uses_returns = False
    r = evaluate(policy, config=EvalConfig(targets=("p50", "max"), episodes=3, max_steps=9))
    assert len(r.summary) == 1
    assert r.summary[0]["target_label"] == "-"
    assert r.episodes[0]["target"] is None
    assert r.notes == ["the policy ignores target returns: run once"]
    assert "eval/return" in to_outcome(r).scalars


def test_default_targets_are_the_policys_own_else_quantiles():
    policy = Probe(task_of("toy/Counting-v0"))
    config = EvalConfig(episodes=1, max_steps=9)
    assert [s["target"] for s in evaluate(policy, config=config).summary] == [3, 5, 6]
    own = evaluate(policy, config=config, info={"targets": [7.5, "max"]})
    assert [s["target_label"] for s in own.summary] == ["7.5", "max"]


def test_delayed_data_keep_the_return_to_go_constant():
    policy = Probe(task_of("toy/Counting-v0"))
    config = EvalConfig(targets=("15",), episodes=1, max_steps=9)
    assert evaluate(policy, config=config, info={"delayed": True}).protocol["rtg_update"] == "none"
    assert {s.rtg[0].item() for s in policy.seen} == {15.0}
    forced = dataclasses.replace(config, rtg_update="reward")
    report = evaluate(policy, config=forced, info={"delayed": True})
    assert report.protocol["rtg_update"] == "reward"


def test_environments_choose_the_options_of_their_evaluation_episodes():
    r = evaluate(
        Probe(task_of("toy/Offering-v0")),
        config=EvalConfig(targets=("1",), episodes=6, max_steps=9, vector="sync"),
    )
    assert [e["success"] for e in r.episodes] == [False, True] * 3
    assert r.summary[0]["success"]["rate"] == 0.5


def test_trials_are_evaluated_whole():
    policy = Trial(task_of("toy/Offering-v0"))
    config = EvalConfig(targets=("1",), episodes=6, max_steps=9, trial_episodes=3)
    r = evaluate(policy, config=config)
    # Options are asked once a trial, so that its episodes are of one task.
    assert [e["success"] for e in r.episodes] == [False] * 3 + [True] * 3
    with pytest.raises(SeqrlError, match="no whole number of trials of 3") as e:
        evaluate(policy, config=dataclasses.replace(config, episodes=4))
    assert e.value.hint == "--episodes 6"


def test_mode_and_acting_options_are_left_as_found():
    policy = Gru(task_of("toy/Walk-v0", actions=3))
    policy.train()
    policy.head.eval()  # a frozen part
    before = policy.acting
    config = EvalConfig(
        targets=("1",), episodes=2, acting="recompute", decode="sample", temperature=3.0
    )
    r = evaluate(policy, config=config)
    assert (r.protocol["rule"], r.protocol["decode"]) == ("recompute", "sample")
    assert r.protocol["temperature"] == 3.0
    assert policy.acting is before
    assert policy.training
    assert policy.cell.training
    assert not policy.head.training
    with pytest.raises(SeqrlError, match="cannot act by 'refill'"):
        evaluate(policy, config=EvalConfig(targets=("1",), episodes=1, acting="refill"))
    assert policy.training


def test_evaluation_leaves_the_global_random_state_alone(gru):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    evaluate(gru, config=EvalConfig(targets=("1",), episodes=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_environment_may_be_named():
    policy = Probe(task_of("toy/Counting-v0"))
    config = EvalConfig(targets=("1",), episodes=1)
    r = evaluate(policy, env_id="toy/Limited-v0", env_kwargs={"length": 20}, config=config)
    assert r.episodes[0]["length"] == 7  # the registered limit
    with pytest.raises(SeqrlError, match="policy acts on Discrete"):
        evaluate(policy, env_id="toy/Walk-v0", config=config)
    unnamed = Probe(dataclasses.replace(task_of("toy/Counting-v0"), env_id=None))
    with pytest.raises(SeqrlError, match="name no environment") as e:
        evaluate(unnamed, config=config)
    assert e.value.hint == "add --env ID"


def test_the_dataset_normaliser_plays_at_random_and_says_so():
    task = task_of("toy/Walk-v0")
    policy = Gru(task, stats_of(task, p90=500.0))
    config = EvalConfig(targets=("1",), episodes=2, normaliser="dataset")
    a, b = evaluate(policy, config=config), evaluate(policy, config=config)
    assert a.normaliser == b.normaliser
    assert a.normaliser["name"] == "dataset"
    assert a.normaliser["expert"] == 500.0
    assert a.normaliser["source"] == "mean of 20 random episodes; p90 of the training returns"
    assert "normaliser dataset: random" in format_report(a)
    off = evaluate(policy, config=dataclasses.replace(config, normaliser="none"))
    assert off.normaliser is None


def test_reference_policies_are_evaluated_like_any_other():
    task = task_of("seqrl/TMaze-v0", limit=9)
    config = EvalConfig(episodes=10)
    oracle = evaluate(make_reference("oracle", task), config=config)
    assert oracle.summary[0]["success"]["rate"] == 1.0
    assert oracle.summary[0]["normalized"]["mean"] == 100.0
    random = evaluate(make_reference("random", task), config=config)
    assert random.summary[0]["return"]["mean"] < 1
    with pytest.raises(SeqrlError, match="no acting options"):
        evaluate(make_reference("random", task), config=EvalConfig(decode="sample"))
    with pytest.raises(SeqrlError, match="no reference policy 'rando'") as e:
        make_reference("rando", task)
    assert e.value.hint == "did you mean 'random'?"


def test_the_table_fits_a_terminal_and_names_what_was_measured(gru):
    config = EvalConfig(targets=("1.0", "max*1.5", "n100"), episodes=10)
    report = evaluate(gru, config=config, info={"checkpoint": "last", "step": 5000})
    lines = format_report(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split("  ")[0] == "target"
    assert lines[1].startswith("1.0 ")
    assert lines[2].startswith("9 (max*1.5)")
    assert lines[3].startswith("30 (n100)")
    assert "normaliser toy/Walk-v0: random 0, expert 30 · checkpoint last (step 5000)" in lines
    assert any("intervals: bootstrap over 10 episodes" in line for line in lines)


def test_a_training_loop_gets_a_score_and_scalars(gru):
    report = evaluate(gru, config=EvalConfig(targets=("1.0", "max"), episodes=4))
    out = to_outcome(report)
    assert isinstance(out, Outcome)
    assert out.score == report.summary[1]["return"]["mean"]
    assert out.scalars["eval/return[1.0]"] == report.summary[0]["return"]["mean"]
    assert out.scalars["eval/success[max]"] == report.summary[1]["success"]["rate"]
    assert all(math.isfinite(v) for v in out.scalars.values())
    assert out.line.startswith("eval[max] success ")
    assert out.report == report.to_json()
    assert to_outcome(report, 0).score == report.summary[0]["return"]["mean"]


@pytest.mark.parametrize(
    "bad",
    [
        {"episodes": 0},
        {"num_envs": 0},
        {"row_block": 0},
        {"max_steps": 0},
        {"seed": -1},
        {"vector": "fast"},
        {"rtg_update": "some"},
        {"normaliser": "d4rl"},
    ],
)
def test_impossible_settings_are_refused_with_their_value(bad):
    with pytest.raises(SeqrlError) as e:
        EvalConfig(**bad)
    assert next(iter(bad)) in e.value.message
