"""Windows over several episodes: histories, contexts with a query, chains."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from seqrl.datasets.context_windows import history_offsets
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from seqrl.spec import Batch, WindowSpec

TASKS = [3, 3, 3, 3, 1, 1, 1, 3, 3]
ORDER = [0, 1, 0, 1, 0, 1, 2, 0, 1]
LENGTHS = [4, 2, 5, 3, 1, 6, 2, 3, 3]
HISTORIES = [[0, 1], [2, 3], [4, 5, 6], [7, 8]]


def histories(structured: bool = True) -> Trajectories:
    """Observation = (episode, timestep, task); the reward of every step is the episode's number."""
    episodes = [
        {
            "observations": np.stack(
                [np.full(n + 1, e), np.arange(n + 1), np.full(n + 1, TASKS[e])], 1
            ).astype(np.float32),
            "actions": np.arange(n) % 2,
            "rewards": np.full(n, e, np.float32),
            "terminated": False,
        }
        for e, n in enumerate(LENGTHS)
    ]
    data = Trajectories.from_episodes(episodes)
    data.extras["optimal_action"] = data.actions.copy()
    if not structured:
        return data
    return dataclasses.replace(
        data, episode_task=np.array(TASKS), episode_order=np.array(ORDER), validated=False
    )


def steps_of(batch: Batch, row: int) -> list[tuple[int, int]]:
    """(episode, timestep) of the valid steps of a window."""
    n = int(batch.mask[row].sum())
    assert bool(batch.mask[row, :n].all())
    assert not batch.observations[row, n:].any()
    assert batch.timesteps[row, :n].tolist() == batch.observations[row, :n, 1].tolist()
    pairs = batch.observations[row, :n, :2].long().tolist()
    return [(e, t) for e, t in pairs]


def all_steps(episodes: list[int]) -> list[tuple[int, int]]:
    return [(e, t) for e in episodes for t in range(LENGTHS[e])]


def test_histories_are_runs_of_a_task_in_rising_order() -> None:
    assert history_offsets(histories()).tolist() == [0, 2, 4, 7, 9]
    assert history_offsets(histories(structured=False)).tolist() == [0, 9]
    # Every second episode of each history: shorter histories, still apart.
    assert history_offsets(histories().select([0, 2, 4, 6, 7])).tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("length", [1, 4, 7, 30])
def test_a_history_window_is_consecutive_and_never_leaves_its_history(length: int) -> None:
    batches = Sampler([histories()], WindowSpec("history", length, next_observation=True), 64)
    seen = set()
    for u in range(10):
        batch = batches.batch(u)
        for row in range(batch.size):
            steps = steps_of(batch, row)
            seen.add(steps[-1])
            (own,) = [h for h in HISTORIES if steps[0][0] in h]
            line = all_steps(own)
            at = line.index(steps[0])
            assert line[at : at + len(steps)] == steps
            assert len(steps) == length or at == 0
            following = batch.next_observations[row, : len(steps)].long()  # type: ignore[index]
            assert following[:, 0].tolist() == [e for e, _ in steps]
            assert following[:, 1].tolist() == [t + 1 for _, t in steps]
    assert seen == set(all_steps(list(range(9)))), "every step may be a window's last"


def test_a_thinned_history_joins_the_episodes_that_are_left() -> None:
    data = histories().select([4, 6])
    for row in range(16):
        steps = steps_of(Sampler([data], WindowSpec("history", 3), 16).batch(0), row)
        assert steps in ([(4, 0)], [(4, 0), (6, 0)], [(4, 0), (6, 0), (6, 1)])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("length", [2, 4, 8, 20])
def test_a_context_is_of_one_history_and_its_query_of_the_same_task(
    shuffle: bool, length: int
) -> None:
    window = WindowSpec("context", length, True, ("optimal_action",), shuffle=shuffle)
    sampler = Sampler([histories()], window, 64, seed=2)
    queries = set()
    ordered = True
    for u in range(10):
        batch = sampler.batch(u)
        for row in range(batch.size):
            *context, query = steps_of(batch, row)
            (own,) = [h for h in HISTORIES if context[0][0] in h]
            line = all_steps(own)
            rank = [line.index(s) for s in context]
            assert len(set(rank)) == len(rank)
            # In order, the early part of a long history is seen as it grows.
            growing = not shuffle and len(line) >= length and rank[0] == 0
            assert len(rank) == min(len(line), length - 1) or growing
            if shuffle:
                ordered &= rank == sorted(rank)
            else:
                assert rank == list(range(rank[0], rank[0] + len(rank)))
            assert TASKS[query[0]] == TASKS[own[0]]
            queries.add((own[0], query))
            label = batch.extras["optimal_action"][row, len(context)]
            assert int(label) == query[1] % 2
    assert not shuffle or length == 2 or not ordered
    # Queries come from all histories of the task, and from nowhere else.
    assert {q for own, q in queries if own == 4} == set(all_steps([4, 5, 6]))
    assert {q[0] for own, q in queries if own == 0} == {0, 1, 2, 3, 7, 8}


def test_shuffled_contexts_differ_from_draw_to_draw_and_are_reproducible() -> None:
    window = WindowSpec("context", 6, True, shuffle=True)
    one, two = (Sampler([histories()], window, 32, seed=s) for s in (0, 0))
    assert torch.equal(one.batch(3).observations, two.batch(3).observations)
    assert not torch.equal(one.batch(3).observations, one.batch(4).observations)
    halves = [Sampler([histories()], window, 32, rank=r, world=2).batch(3) for r in (0, 1)]
    both = torch.cat([h.observations for h in halves])
    assert torch.equal(both, one.batch(3).observations), "ranks share the global batch"


def test_few_of_many_transitions_are_drawn_evenly() -> None:
    episodes = [
        {"observations": np.full((2, 1), i, np.float32), "actions": [0], "rewards": [0.0]}
        for i in range(200)
    ]
    data = Trajectories.from_episodes(episodes)
    data = dataclasses.replace(
        data, episode_task=np.zeros(200, int), episode_order=np.arange(200), validated=False
    )
    batch = Sampler([data], WindowSpec("context", 11, shuffle=True), 400).batch(0)
    drawn = batch.observations[:, :10, 0].long()
    assert all(len(set(row.tolist())) == 10 for row in drawn)
    counts = torch.bincount(drawn.flatten(), minlength=200)
    assert counts.min() > 0
    assert counts.max() < 3 * counts.float().mean()
    # Every place in the context is as likely to hold any of them.
    assert abs(float(drawn[:, 0].float().mean()) - 99.5) < 15


def test_a_context_needs_task_numbers() -> None:
    with pytest.raises(SeqrlError, match="which task an episode is of"):
        Sampler([histories(structured=False)], WindowSpec("context", 4), 2)


@pytest.mark.parametrize("length", [3, 9, 30])
def test_a_chain_rises_to_the_best_and_is_relabelled_by_it(length: int) -> None:
    data = histories()
    sampler = Sampler([data], WindowSpec("chain", length, episodes=3), 64, seed=1)
    sizes = set()
    for u in range(10):
        batch = sampler.batch(u)
        for row in range(batch.size):
            steps = steps_of(batch, row)
            chain = list(dict.fromkeys(e for e, _ in steps))
            sizes.add(len(chain))
            returns = [e * LENGTHS[e] for e in chain]
            assert returns == sorted(returns)
            assert len({TASKS[e] for e in chain}) == 1
            expected = [
                (e, t) for e in chain for t in range(max(0, LENGTHS[e] - length // 3), LENGTHS[e])
            ]
            assert steps == expected, "packed, each episode's last steps"
            asked = batch.returns_to_go[row, : len(steps)].tolist()
            assert asked == [max(returns) - e * t for e, t in steps]
            left = [asked[k] - steps[k][0] for k in range(len(steps))]
            ends = [k for k, (e, t) in enumerate(steps) if t == LENGTHS[e] - 1]
            assert left[ends[-1]] == 0, "only the best episode ends at 0"
            assert all(left[k] > 0 for k in ends[:-1] if returns[ends.index(k)] < max(returns))
    assert sizes == {1, 2, 3}


def test_windows_too_short_for_their_kind_are_refused() -> None:
    for kind, options in (("context", {"length": 1}), ("chain", {"length": 3, "episodes": 4})):
        with pytest.raises(SeqrlError, match="needs at least"):
            WindowSpec(kind, **options)  # type: ignore[arg-type]
