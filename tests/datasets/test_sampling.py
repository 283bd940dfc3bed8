"""Windows: where they lie, what pads them, and that they are a pure function of their address."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seqrl.datasets.sampling import Sampler, ordered_batches
from seqrl.datasets.trajectories import Trajectories
from seqrl.draws import RowDraws, derive_seed, uniform64
from seqrl.errors import SeqrlError
from seqrl.spec import Batch, WindowSpec

LENGTHS = [1, 2, 3, 4, 5, 6, 10, 90]


def numbered(lengths: list[int] = LENGTHS) -> Trajectories:
    """Observation = (episode, timestep); rewards 1..T; the final observation carries T."""
    episodes = [
        {
            "observations": np.stack([np.full(n + 1, e), np.arange(n + 1)], 1).astype(np.float32),
            "actions": np.stack([np.arange(n)], 1).astype(np.float32),
            "rewards": np.arange(1, n + 1, dtype=np.float32),
            "terminated": e % 2 == 0,
        }
        for e, n in enumerate(lengths)
    ]
    return Trajectories.from_episodes(episodes)


def rows(batch: Batch) -> list[tuple[int, list[int]]]:
    """Episode and timesteps of the valid steps of each window; checks that padding is zero."""
    out = []
    for i in range(batch.size):
        n = int(batch.mask[i].sum())
        assert bool(batch.mask[i, :n].all()), "valid steps come first"
        for column in (batch.observations, batch.actions, batch.rewards, batch.returns_to_go,
                       batch.timesteps, batch.terminations, batch.truncations):  # fmt: skip
            assert not column[i, n:].any(), "padding is zero"
        episode = batch.observations[i, :n, 0]
        assert bool((episode == episode[0]).all()), "a window crosses episodes"
        out.append((int(episode[0]), batch.timesteps[i, :n].tolist()))
        assert batch.observations[i, :n, 1].tolist() == out[-1][1]
    return out


@pytest.mark.parametrize("kind", ["any_start", "any_end", "episode_start", "episode"])
@pytest.mark.parametrize("k", [1, 3, 5, 6, 200])
def test_windows_stay_in_their_episode_and_carry_its_columns(kind: str, k: int) -> None:
    data = numbered()
    sampler = Sampler([data], WindowSpec(kind, k, next_observation=True), 64, seed=1)
    for u in range(20):
        batch = sampler.batch(u)
        for i, (e, steps) in enumerate(rows(batch)):
            n, length = len(steps), LENGTHS[e]
            assert steps == list(range(steps[0], steps[0] + n))
            if kind == "any_start":
                assert n == min(k, length - steps[0])
            elif kind == "any_end":
                assert n == k or steps[0] == 0
            else:
                assert steps[0] == 0
                assert n == min(k, length)
            total = length * (length + 1) / 2
            first = batch.returns_to_go[i, 0]
            assert float(first) == total - steps[0] * (steps[0] + 1) / 2
            assert batch.next_observations is not None
            assert batch.next_observations[i, :n, 1].tolist() == [s + 1 for s in steps]
            assert not batch.next_observations[i, n:].any()
            ends = steps[-1] == length - 1
            assert bool(batch.terminations[i, n - 1]) == (ends and e % 2 == 0)
            assert bool(batch.truncations[i, n - 1]) == (ends and e % 2 == 1)
            assert int(batch.rows[i]) == int(data.starts[e]) + steps[0]


def test_padded_window_of_three_in_five() -> None:
    batch = Sampler([numbered([3])], WindowSpec("episode_start", 5), 2).batch(0)
    assert batch.mask[0].tolist() == [True, True, True, False, False]
    assert batch.returns_to_go[0].tolist() == [6, 5, 3, 0, 0]


def test_golden_returns_to_go() -> None:
    batch = Sampler([numbered([5])], WindowSpec("episode_start", 5), 1).batch(0)
    assert batch.returns_to_go[0].tolist() == [15, 14, 12, 9, 5]


def test_whole_episodes_are_as_long_as_the_longest_drawn() -> None:
    data = numbered()
    sampler = Sampler([data], WindowSpec("episode"), 8, seed=2)
    batch = sampler.batch(0)
    assert batch.mask.shape[1] == int(batch.mask.sum(1).max())


def test_episodes_are_drawn_in_proportion_to_their_length() -> None:
    data = numbered([10, 90])
    sampler = Sampler([data], WindowSpec("any_start", 1), 1000, seed=3)
    drawn = torch.cat([sampler.batch(u).observations[:, 0] for u in range(10)])
    share = float((drawn[:, 0] == 0).float().mean())
    assert abs(share - 0.1) < 5 * (0.09 / 1e4) ** 0.5
    starts = np.bincount(drawn[drawn[:, 0] == 1, 1].long().numpy(), minlength=90)
    assert abs(starts - starts.mean()).max() < 6 * starts.mean() ** 0.5


def test_a_batch_is_a_pure_function_of_seed_update_and_row() -> None:
    data, window = numbered(), WindowSpec("any_start", 4)
    a, b = (Sampler([data], window, 16, seed=7) for _ in range(2))
    b.batch(3)  # what was asked before does not matter
    assert torch.equal(a.batch(12).observations, b.batch(12).observations)
    assert not torch.equal(a.batch(12).rows, a.batch(13).rows)
    assert not torch.equal(a.batch(12).rows, Sampler([data], window, 16, seed=8).batch(12).rows)
    # A larger batch begins with the same rows.
    big = Sampler([data], window, 32, seed=7)
    assert torch.equal(big.batch(12).rows[:16], a.batch(12).rows)


def test_ranks_share_one_global_batch() -> None:
    data, window = numbered(), WindowSpec("any_start", 4)
    whole = Sampler([data], window, 12, seed=7).batch(5)
    parts = [Sampler([data], window, 12, seed=7, rank=r, world=3).batch(5) for r in range(3)]
    assert torch.equal(torch.cat([p.rows for p in parts]), whole.rows)
    with pytest.raises(SeqrlError, match="cannot be shared by 5"):
        Sampler([data], window, 12, seed=7, world=5)


def test_selected_episodes_are_the_only_ones_drawn() -> None:
    data = numbered()
    chosen = data.select([2, 6])
    for kind in ("any_start", "any_end", "episode_start"):
        sampler = Sampler([chosen], WindowSpec(kind, 3), 64, seed=1)
        drawn = {e for u in range(5) for e, _ in rows(sampler.batch(u))}
        assert drawn == {2, 6}


def test_validation_windows_are_the_same_every_time_and_no_training_windows() -> None:
    data, window = numbered(), WindowSpec("any_start", 4)
    once = [b.rows for b in ordered_batches([data], window, 16, 3)]
    again = [b.rows for b in ordered_batches([data], window, 16, 3)]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once[0], Sampler([data], window, 16, 0).batch(0).rows)


def test_tasks_take_turns() -> None:
    sampler = Sampler([numbered(), numbered([4, 4])], WindowSpec("any_start", 2), 4, seed=0)
    assert [int(sampler.batch(u).task[0]) for u in range(4)] == [0, 1, 0, 1]


def test_a_missing_optional_column_is_named() -> None:
    with pytest.raises(SeqrlError, match="no column 'optimal_action'"):
        Sampler([numbered()], WindowSpec("any_start", 2, extras=("optimal_action",)), 4)


def test_memory_mapped_columns_sample_the_same(tmp_path) -> None:
    data = numbered()
    path = tmp_path / "obs.npy"
    np.save(path, data.observations)
    import dataclasses

    mapped = dataclasses.replace(data, observations=np.load(path, mmap_mode="r"))
    window = WindowSpec("any_start", 4, next_observation=True)
    a, b = (Sampler([d], window, 16, seed=7).batch(3) for d in (data, mapped))
    assert torch.equal(a.observations, b.observations)
    assert torch.equal(a.next_observations, b.next_observations)


def test_uniform_numbers_fill_the_unit_interval() -> None:
    u = np.concatenate([uniform64(5, 0, k, 1000) for k in range(20)])
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, 20, (0, 1))[0]
    assert abs(counts - 1000).max() < 6 * 1000**0.5
    assert uniform64(5, 0, 3, 4).tolist() == uniform64(5, 0, 3, 8)[:4].tolist()
    assert uniform64(5, 1, 3, 4).tolist() != uniform64(5, 0, 3, 4).tolist()


def test_row_draws_belong_to_the_episode_not_the_row() -> None:
    a, b = RowDraws(2), RowDraws(3)
    a.restart(0, 11)
    a.restart(1, 22)
    first = a.uniform(4)
    b.restart(2, 11)
    assert torch.equal(b.uniform(4)[2], first[0])
    second = a.uniform(4)
    assert not torch.equal(first, second)
    a.restart(0, 11)
    again = a.uniform(4)
    assert torch.equal(again[0], first[0])
    assert not torch.equal(again[1], first[1])


def test_episode_seeds_differ_by_seed_stream_and_index() -> None:
    seeds = {derive_seed(s, t, i) for s in (0, 1) for t in (0, 1) for i in range(500)}
    assert len(seeds) == 2000
    assert all(0 <= s < 2**31 for s in seeds)


@pytest.mark.parametrize("kind", ["any_start", "any_end", "episode_start", "episode"])
def test_better_episodes_can_be_given_a_share(kind: str) -> None:
    lengths = [3, 9, 5, 4, 7, 6, 8, 5, 9, 4]
    wins = {2, 6}
    data = Trajectories.from_episodes(
        [
            {
                "observations": np.full((n + 1, 1), i, np.float32),
                "actions": np.zeros((n, 1), np.float32),
                "rewards": np.array([0.0] * (n - 1) + [float(i in wins)]),
                "terminated": True,
            }
            for i, n in enumerate(lengths)
        ]
    )
    window = WindowSpec(kind, None if kind == "episode" else 4)
    sampler = Sampler([data], window, 50, seed=1, best_share=0.4)
    drawn = np.concatenate(
        [sampler.batch(u).observations[:, 0, 0].numpy().astype(int) for u in range(200)]
    )
    better = np.isin(drawn, list(wins))
    assert better.mean() == pytest.approx(0.4, abs=0.03)
    # Inside either group, chances are what they are without: by steps, or all alike.
    size = np.array(lengths) if kind.startswith("any") else np.ones(10)
    for group, is_mine in ((sorted(wins), better), (sorted(set(range(10)) - wins), ~better)):
        counts = np.bincount(drawn[is_mine], minlength=10)[group] / is_mine.sum()
        assert counts == pytest.approx(size[group] / size[group].sum(), abs=0.04)


def test_a_share_changes_nothing_where_all_returns_are_alike_and_is_refused_elsewhere() -> None:
    flat = Trajectories.from_episodes(
        [
            {
                "observations": np.arange(6, dtype=np.float32)[:, None],
                "actions": np.zeros((5, 1), np.float32),
                "rewards": np.ones(5),
                "terminated": True,
            }
        ]
        * 4
    )
    window = WindowSpec("any_start", 3)
    plain, shared = (Sampler([flat], window, 16, best_share=s).batch(3) for s in (None, 0.5))
    assert torch.equal(plain.observations, shared.observations)
    with pytest.raises(SeqrlError, match="inside one episode"):
        Sampler([flat], WindowSpec("history", 3), 16, best_share=0.5)
