"""Bins whose bounds are bins: what they hold, what stands for them, and that they round-trip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seqrl.datasets.bins import LevelBins, finite_bounds
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError

RNG = np.random.default_rng(0)
SATURATED = np.clip(RNG.normal(size=(5000, 2)), -1, [1, 0.5]).astype(np.float32)


def round_trip(bins: LevelBins) -> bool:
    values, _ = bins.tables()
    index = torch.arange(values.shape[1]).unsqueeze(1).clamp(max=torch.tensor(bins.sizes) - 1)
    return torch.equal(bins.encode(bins.decode(index)), index)


@pytest.mark.parametrize("count", [2, 4, 16, 32, 256])
def test_bounds_are_bins_and_encoding_undoes_decoding(count: int) -> None:
    bins = LevelBins.uniform((-1.0, 0.0), (1.0, 4.0), count)
    assert bins.sizes == (count, count)
    assert round_trip(bins)
    ends = torch.tensor([[-1.0, 0.0], [1.0, 4.0]])
    assert torch.equal(bins.decode(bins.encode(ends)), ends)
    assert bins.encode(torch.tensor([[-7.0, 9.0]])).tolist() == [[0, count - 1]]
    actions = torch.rand(1000, 2) * torch.tensor([2.0, 4.0]) - torch.tensor([1.0, 0.0])
    error = (bins.decode(bins.encode(actions)) - actions).abs().max(0).values
    half = 1 / (count - 1)
    assert float(error[0]) <= half + 1e-6
    assert float(error[1]) <= 2 * half + 1e-6


def test_quantile_bins_hold_equal_shares() -> None:
    actions = RNG.normal(size=(8000, 1)).astype(np.float32)
    low, high = (float(actions.min()),), (float(actions.max()),)
    bins = LevelBins.quantile(actions, low, high, 16)
    counts = np.bincount(bins.encode(torch.from_numpy(actions)).flatten().numpy())
    assert len(counts) == 16
    assert counts.min() > 490
    assert counts.max() < 510
    assert round_trip(bins)


def test_saturated_actions_get_bins_of_their_own() -> None:
    bins = LevelBins.quantile(SATURATED, (-1.0, -1.0), (1.0, 0.5), 32)
    assert all(2 < n < 32 for n in bins.sizes)
    assert bins.sizes[0] != bins.sizes[1]
    assert round_trip(bins)
    ends = torch.tensor([[-1.0, -1.0], [1.0, 0.5]])
    assert torch.allclose(bins.decode(bins.encode(ends)), ends, atol=1e-6)
    inside = torch.tensor([[0.999, 0.499]])
    assert not (bins.encode(inside) == bins.encode(ends[1:])).any()


@pytest.mark.parametrize("edges", ["uniform", "quantile"])
def test_means_stand_for_the_data_in_a_bin(edges: str) -> None:
    low, high = (-1.0, -1.0), (1.0, 0.5)
    plain = LevelBins.uniform(low, high, 8)
    if edges == "quantile":
        plain = LevelBins.quantile(SATURATED, low, high, 8)
    bins = plain.at_means(SATURATED)
    assert bins.edges == plain.edges
    index = bins.encode(torch.from_numpy(SATURATED)).numpy()
    for j, b in ((0, 0), (0, 3), (1, 5)):
        mean = SATURATED[index[:, j] == b, j].mean()
        assert bins.values[j][b] == pytest.approx(float(mean), abs=1e-5)
    assert round_trip(bins)
    # Where nothing was seen the centre stays.
    lonely = LevelBins.uniform((-1.0,), (1.0,), 5).at_means(np.ones((3, 1), np.float32))
    assert lonely.values == ((-1.0, -0.5, 0.0, 0.5, 1.0),)


def data_of(actions: np.ndarray) -> Trajectories:
    n = len(actions)
    return Trajectories.from_arrays(
        np.zeros((n, 1)), actions, np.zeros(n), np.arange(n) == n - 1, name="bins"
    )


def test_bins_of_a_set_end_at_its_space_or_its_data() -> None:
    data = data_of(RNG.uniform(-0.5, 0.25, (200, 1)).astype(np.float32))
    space = LevelBins.fitted(data, 5)
    assert space.values == ((-1.0, -0.5, 0.0, 0.5, 1.0),)
    seen = LevelBins.fitted(data, 5, bounds="data").values[0]
    assert (seen[0], seen[-1]) == (data.stats.action_low[0], data.stats.action_high[0])
    half = data.select([0])
    assert LevelBins.fitted(half, 5, "quantile", "data", means=True).sizes == (5,)


def test_endless_spaces_take_what_was_seen() -> None:
    inf = math.inf
    assert finite_bounds((-inf, -1), (inf, 1), (-3.0, 0), (5.0, 0)) == ((-3.0, -1), (5.0, 1))
    assert finite_bounds((-inf,), (inf,)) == ((-1.0,), (1.0,))
    assert finite_bounds((-inf,), (inf,), (-inf,), (inf,)) == ((-1.0,), (1.0,))


def test_nonsense_is_refused() -> None:
    with pytest.raises(SeqrlError, match="at least 2"):
        LevelBins.uniform((-1.0,), (1.0,), 1)
    with pytest.raises(SeqrlError, match="low < high"):
        LevelBins.quantile(SATURATED, (1.0, 0.0), (1.0, 1.0), 4)
