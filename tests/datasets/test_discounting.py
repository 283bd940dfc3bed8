"""Discounted returns, what lies behind a cut, and transitions read from windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from seqrl.datasets.discounting import discounted_columns, discounted_returns, value_range
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.datasets.transitions import read_transitions
from seqrl.errors import SeqrlError
from seqrl.spec import WindowSpec


def numbered(lengths: list[int], known: bool = True) -> Trajectories:
    """Observation = (episode, timestep), odd episodes cut, rewards at random."""
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observations": np.stack([np.full(n + 1, e), np.arange(n + 1)], 1).astype(np.float32),
            "actions": np.zeros((n, 1), np.float32),
            "rewards": rng.normal(size=n).astype(np.float32),
            "terminated": e % 2 == 0,
        }
        for e, n in enumerate(lengths)
    ]
    data = Trajectories.from_episodes(episodes)
    unknown = np.zeros(len(lengths), dtype=bool)
    return data if known else dataclasses.replace(data, final_known=unknown)


@pytest.mark.parametrize("gamma", [0.5, 0.99, 1.0])
def test_returns_and_tails_are_those_of_the_definition(gamma: float) -> None:
    data = numbered([1, 4, 9, 4, 2])
    returns, tails = discounted_columns(data, gamma)
    for e in range(len(data)):
        a, n = int(data.starts[e]), int(data.lengths[e])
        for t in range(n):
            rewards = data.rewards[a + t : a + n]
            want = sum(float(r) * gamma**k for k, r in enumerate(rewards))
            assert returns[a + t] == pytest.approx(want, abs=1e-5)
            assert tails[a + t] == pytest.approx(gamma ** (n - t) if e % 2 else 0.0, abs=1e-6)
    assert discounted_columns(data, gamma)[0] is returns, "computed once"


def test_windows_carry_them_and_know_what_follows() -> None:
    data = numbered([3, 5, 8])
    window = WindowSpec("any_end", 4, next_observation=True, discount=0.9)
    batch = Sampler([data], window, 64, seed=0).batch(0)
    returns, tails = discounted_columns(data, 0.9)
    for i in range(batch.size):
        n, first = int(batch.mask[i].sum()), int(batch.rows[i])
        assert np.array_equal(batch.discounted_returns[i, :n], returns[first : first + n])
        assert np.array_equal(batch.discounted_tails[i, :n], tails[first : first + n])
        assert not batch.discounted_returns[i, n:].any()
    assert torch.equal(batch.next_known, batch.mask)
    unasked = Sampler([data], WindowSpec("any_end", 4), 2).batch(0)
    assert unasked.discounted_returns is unasked.next_known is None


def test_a_repeated_last_observation_is_not_taken_for_the_next() -> None:
    data = numbered([3, 5], known=False)
    window = WindowSpec("any_end", 2, next_observation=True)
    batch = Sampler([data], window, 64, seed=0).batch(0)
    ended = batch.terminations | batch.truncations
    assert bool(ended.any())
    assert torch.equal(batch.next_known, batch.mask & ~ended)
    found = read_transitions(batch, 1, 1)
    assert not bool(batch.truncations[found.row, found.step].any()), "cut steps are left out"
    assert bool(found.terminated.any()), "terminated ones need no next observation"


@pytest.mark.parametrize(("n", "more"), [(1, 0), (3, 0), (1, 1), (3, 1)])
def test_every_step_is_read_equally_often(n: int, more: int) -> None:
    """Whatever the reach, and close to the end of an episode as well."""
    lengths, context, reach = [1, 2, 5, 9], 2, n + more
    data = numbered(lengths)
    window = WindowSpec("any_end", context + reach - 1, next_observation=True, discount=0.9)
    sampler = Sampler([data], window, 1000, seed=1)
    counts = np.zeros(sum(lengths))
    rewards = data.rewards
    for u in range(20):
        batch = sampler.batch(u)
        found = read_transitions(batch, n, reach)
        where = batch.rows[found.row] + found.step
        counts += np.bincount(where.numpy(), minlength=len(counts))
        sums = found.discounted(batch.rewards, 0.9, n)
        for k in range(0, len(where), 97):
            t = int(where[k])
            e = int(np.searchsorted(data.episode_starts, t, side="right") - 1)
            end = int(data.episode_starts[e + 1])
            stop = min(t + n, end)
            assert int(found.next_step[k] - found.step[k]) == stop - t
            want = sum(float(rewards[t + j]) * 0.9**j for j in range(stop - t))
            assert float(sums[k]) == pytest.approx(want, abs=1e-5)
            assert bool(found.terminated[k]) == (stop == end and e % 2 == 0 and bool(found.over[k]))
            if more:
                assert bool(found.over[k]) == (t + n >= end)
            history = min(context, t - int(data.starts[e]) + 1)
            assert int(found.step[k]) >= history - 1, "its history is in the window"
    expected = 20_000 / len(counts)
    assert np.abs(counts - expected).max() < 6 * expected**0.5


def test_transitions_need_next_observations() -> None:
    batch = Sampler([numbered([3])], WindowSpec("any_end", 2), 2).batch(0)
    with pytest.raises(SeqrlError, match="next observations"):
        read_transitions(batch, 1, 1)


@pytest.mark.parametrize("discount", [0.0, 1.5])
def test_discounts_outside_their_range_are_refused(discount: float) -> None:
    with pytest.raises(SeqrlError, match="discount"):
        WindowSpec("any_end", 2, discount=discount)


def made(rewards: list[list[float]], terminated: bool) -> Trajectories:
    return Trajectories.from_episodes([
        {"observations": np.zeros((len(r) + 1, 1)), "actions": np.zeros((len(r), 1)),
         "rewards": np.array(r), "terminated": terminated}
        for r in rewards
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("rewards", "terminated", "top", "floor", "span"),
    [
        ([[0, 0, 1], [0, 0]], True, "auto", 0, 1),  # success at the end
        ([[1, 1, 1]], True, "auto", 0, 2),  # one a step, discount 0.5: 1 / (1 - 0.5)
        ([[-1, -1], [-1]], True, "auto", -1.5, 1.5),  # costs: 0 is the best there is
        ([[0, -2]], True, "auto", -2, 2),
        ([[0, 0]], False, "auto", 0, 1),  # no reward at all
        ([[2, -4]], True, "data", -4, 4.4),  # returns 0 and -4
        ([[0, 0, 1]], False, "auto", 0, 2),  # a reward where an episode was cut may come again
    ],
)
def test_value_ranges(rewards, terminated, top, floor, span) -> None:
    found = value_range(made(rewards, terminated), 0.5, top)
    assert found["floor"] == pytest.approx(floor)
    assert found["span"] == pytest.approx(span)


def test_value_ranges_are_of_the_episodes_in_use() -> None:
    data = made([[1, 1], [50, 50]], True)
    assert value_range(data.select([0]), 0.5)["span"] == pytest.approx(2)


def test_one_long_episode_and_many_short_ones() -> None:
    starts = np.array([0, 2000, 2001, 2003])
    r = np.ones(2003)
    returns, tails = discounted_returns(r, np.zeros(2003, bool), starts, 0.9)
    assert returns[0] == pytest.approx(10)
    assert returns[2000:].tolist() == pytest.approx([1, 1.9, 1])
    assert tails[2000:].tolist() == pytest.approx([0.9, 0.81, 0.9])
