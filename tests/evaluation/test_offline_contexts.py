"""What policies make of recorded contexts: bandits by size, rooms with a context each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seqrl import offline_contexts as offline
from seqrl.agents.dpt import DPT
from seqrl.datasets.catalog import LoadOptions, load_dataset
from seqrl.envs.bandit import VectorBandit
from seqrl.envs.context_data import recorded_pulls
from seqrl.errors import SeqrlError
from seqrl.evaluation import EvalConfig
from seqrl.testing.battery import build

BANDITS = "incontext:seqrl/Bandit-v0?horizon=12&tasks=8"
ROOMS = "incontext:seqrl/DarkRoom-v0?size=4&horizon=6&split=test&histories=5&steps=6&seed=3"


def small(uri: str, **fields: object) -> DPT:
    data = load_dataset(uri, options=LoadOptions(cache=False))
    agent = build(DPT, data, **fields).eval()
    assert isinstance(agent, DPT)
    return agent


def test_the_best_arm_has_no_suboptimality_and_the_rules_find_it() -> None:
    task = load_dataset(BANDITS, options=LoadOptions(cache=False)).task
    choosers = {
        **offline.reference_choosers_named(["emp", "lcb", "thompson"], task, 0),
        "best": lambda pulls, sizes: np.repeat(pulls.means.argmax(1)[:, None], len(sizes), 1),
        "worst": lambda pulls, sizes: np.repeat(pulls.means.argmin(1)[:, None], len(sizes), 1),
    }
    found = offline.suboptimality(task, choosers, (0, 1, 5, 50), tasks=2000, seed=4)
    assert [r["size"] for r in found["emp"]] == [0, 1, 5, 50]
    assert all(r["mean"] == 0 for r in found["best"])
    # The gap of the extremes of five uniform means is 4/6 on average; of a fixed arm 5/6 - 1/2.
    assert found["worst"][0]["mean"] == pytest.approx(4 / 6, abs=0.02)
    assert found["emp"][0]["mean"] == pytest.approx(1 / 3, abs=0.02)
    for rule in ("emp", "lcb", "thompson"):
        means = [r["mean"] for r in found[rule]]
        assert means[-1] < 0.12 < means[1], rule
    # Yardsticks of the specification, 200 stored contexts: LCB loses to a posterior at few pulls.
    assert found["thompson"][1]["mean"] < found["lcb"][1]["mean"]


def test_an_agents_arms_are_those_of_its_prefixes() -> None:
    agent = small(BANDITS, context=12, shuffle=True)
    for p in agent.parameters():
        p.data.mul_(2)  # so that contexts matter to an untrained network
    pulls = recorded_pulls(VectorBandit, 6, seed=5, horizon=12)
    sizes = (0, 3, 7, 12)
    arms = offline.agent_chooser(agent)(pulls, sizes)
    assert arms.shape == (6, 4)
    for i, n in enumerate(sizes):
        # By hand: a context of the first n pulls alone, padded with nothing.
        window = offline._window(pulls, slice(0, 6), n + 1)
        with torch.inference_mode():
            alone = agent.prefix_predictions(window)[:, n].argmax(-1).numpy()
        assert (arms[:, i] == alone).all()
    other = pulls.rewards.copy()
    other[:, 7:] += 5  # later pulls are no part of shorter prefixes
    changed = offline.agent_chooser(agent)(
        type(pulls)(pulls.means, None, pulls.observations, pulls.actions, other), sizes
    )
    assert (changed[:, :3] == arms[:, :3]).all()
    with pytest.raises(SeqrlError, match="the agent takes 12"):
        offline.agent_chooser(agent)(recorded_pulls(VectorBandit, 2, 0, horizon=13), (13,))


def test_recorded_pulls_are_those_of_their_bandits() -> None:
    pulls = recorded_pulls(VectorBandit, 500, seed=1, horizon=400, sigma=0.1)
    again = recorded_pulls(VectorBandit, 500, seed=1, horizon=400, sigma=0.1)
    assert (pulls.rewards == again.rewards).all()
    paid = np.take_along_axis(pulls.means, pulls.actions, 1)
    assert (pulls.rewards - paid).std() == pytest.approx(0.1, rel=0.02)
    assert abs((pulls.rewards - paid).mean()) < 0.002


def test_rooms_show_who_could_know_the_goal() -> None:
    agent = small(ROOMS, context=6)
    config = EvalConfig(episodes=12, decode="sample")
    report, groups = offline.with_contexts(agent, ROOMS, config)
    assert len(report.episodes) == 12
    assert groups["shown"]["episodes"] + groups["hidden"]["episodes"] == 12
    assert groups["shown"]["oracle"] > 0
    data = load_dataset(ROOMS, options=LoadOptions(cache=False))
    contexts = offline._contexts_in_turn(agent, data, 12)
    goals = len(np.unique(data.episode_task))
    first = data.rewards.reshape(goals, 5, 6)[:, 0]  # the first history of every goal
    assert np.array_equal(contexts.rewards[:goals].numpy(), first)
    assert np.array_equal(contexts.rewards[goals].numpy(), data.rewards.reshape(goals, 5, 6)[0, 1])
    with pytest.raises(SeqrlError, match="need 6 histories of each"):
        offline.with_contexts(agent, ROOMS, EvalConfig(episodes=5 * goals + 1))
    with pytest.raises(SeqrlError, match="no contexts of"):
        offline.with_contexts(agent, BANDITS, config)


@pytest.mark.parametrize(
    ("names", "sizes", "message"),
    [
        (["ucb"], (1,), "'ucb' names no arm"),
        (["linucb"], (1,), "needs a linear bandit"),
        ([], (), "are not numbers"),
        ([], (-1,), "are not numbers"),
    ],
)
def test_faults(names: list[str], sizes: tuple[int, ...], message: str) -> None:
    task = load_dataset(BANDITS, options=LoadOptions(cache=False)).task

    def judge() -> None:
        choosers = offline.reference_choosers_named(names, task, 0)
        offline.suboptimality(task, choosers, sizes, tasks=3)

    with pytest.raises(SeqrlError, match=message):
        judge()


def test_rooms_have_no_context_sizes() -> None:
    task = load_dataset(ROOMS, options=LoadOptions(cache=False)).task
    with pytest.raises(SeqrlError, match="is none") as e:
        offline.suboptimality(task, {}, (1,))
    assert "--contexts" in str(e.value.hint)
