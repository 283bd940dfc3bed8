"""Bins of continuous actions whose bounds are bins too: what critics choose among.

``UniformBins`` (``tokens.py``) cuts a range into equal bins and decodes to their middles, which
never are the bounds. Squashed policies saturate there, so here the outermost values are the bounds
themselves; bins may also hold equal shares of the data, or stand for its means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from seqrl.datasets.statistics import rows_in_use
from seqrl.datasets.tokens import check_bins, check_bounds

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories


@dataclass(frozen=True)
class LevelBins:
    """Bins per action dimension, each any interval with any value in it; dimensions may have
    unequal numbers of them.

    Bin b of a dimension holds the actions above ``edges[b - 1]`` and up to ``edges[b]``; the last
    one's value stands for it. Encoding what a bin decodes to gives the bin again.

    >>> bins = LevelBins.uniform((-1.0,), (1.0,), 5)
    >>> bins.encode(torch.tensor([[-1.0], [0.2], [0.3], [1.0]])).flatten().tolist()
    [0, 2, 3, 4]
    >>> bins.decode(torch.tensor([[0], [3], [4]])).flatten().tolist()
    [-1.0, 0.5, 1.0]
    """

    values: tuple[tuple[float, ...], ...]
    """Per dimension, ascending."""
    edges: tuple[tuple[float, ...], ...]
    """Per dimension, one fewer, between the values."""

    @classmethod
    def fitted(
        cls,
        data: Trajectories,
        bins: int,
        edges: Literal["uniform", "quantile"] = "uniform",
        bounds: Literal["space", "data"] = "space",
        means: bool = False,
    ) -> LevelBins:
        """Bins for the continuous actions of a set.

        Args:
            data: its episodes in use.
            bins: of a dimension, at most.
            edges: see :meth:`uniform` and :meth:`quantile`.
            bounds: those of the action space, the data's where it has none; or always the data's.
            means: see :meth:`at_means`.
        """
        spec, stats = data.task.action, data.stats
        seen = (stats.action_low, stats.action_high)
        endless = ((-math.inf,) * spec.size, (math.inf,) * spec.size)
        own = (spec.low, spec.high) if bounds == "space" else endless
        low, high = finite_bounds(*own, *seen)
        actions = rows_in_use(data, data.actions)
        made = cls.uniform(low, high, bins)
        if edges == "quantile":
            made = cls.quantile(actions, low, high, bins)
        return made.at_means(actions) if means else made

    @classmethod
    def uniform(cls, low: Sequence[float], high: Sequence[float], bins: int) -> LevelBins:
        """Values evenly spread over ``[low, high]``, both ends among them; nearest value wins.

        The ends count because squashed policies saturate there. The largest error of a round trip
        is half a spacing, ``(high - low) / (2 (bins - 1))``.
        """
        check_bins(bins)
        check_bounds(low, high)
        spread = np.linspace(np.asarray(low, float), np.asarray(high, float), bins, axis=-1)
        middle = (spread[:, 1:] + spread[:, :-1]) / 2
        return cls(_rows(spread), _rows(middle))

    @classmethod
    def quantile(
        cls, actions: np.ndarray, low: Sequence[float], high: Sequence[float], bins: int
    ) -> LevelBins:
        """Bins that hold equal shares of ``actions [N, A]``; a bin's value is its middle.

        Where one action is more common than a bin's share it gets a bin of its own and the
        dimension has fewer of them.
        """
        check_bins(bins)
        check_bounds(low, high)
        values, edges = [], []
        for j, (lo, hi) in enumerate(zip(low, high, strict=True)):
            column = np.clip(actions[:, j], lo, hi).astype(np.float32)
            cuts = np.quantile(column, np.arange(1, bins) / bins, method="lower")
            # A cut at the upper end would leave the actions there without a bin of their own.
            below = np.nextafter(np.float32(hi), np.float32(-np.inf))
            cuts = np.unique(np.minimum(cuts, below)).astype(np.float64)
            left = np.concatenate([[lo], cuts])
            right = np.concatenate([cuts, [hi]])
            middle = ((left + right) / 2).astype(np.float32)
            values.append(np.where(middle > left.astype(np.float32), middle, right))
            edges.append(cuts)
        return cls(tuple(map(_floats, values)), tuple(map(_floats, edges)))

    def at_means(self, actions: np.ndarray) -> LevelBins:
        """The same bins, each standing for the mean of the ``actions [N, A]`` in it, if any."""
        index = self.encode(torch.from_numpy(np.asarray(actions, np.float32))).numpy()
        values = []
        for j, row in enumerate(self.values):
            count = np.bincount(index[:, j], minlength=len(row))
            total = np.bincount(index[:, j], actions[:, j].astype(np.float64), len(row))
            values.append(np.where(count > 0, total / np.maximum(count, 1), row))
        return LevelBins(tuple(map(_floats, values)), self.edges)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of bins of each dimension."""
        return tuple(map(len, self.values))

    def tables(self) -> tuple[Tensor, Tensor]:
        """``values [A, B]`` and ``edges [A, B-1]`` float32 for B bins at most; the rest is filled
        with the last value and with infinity."""
        most = max(self.sizes)
        values = [[*row, *[row[-1]] * (most - len(row))] for row in self.values]
        edges = [[*row, *[math.inf] * (most - 1 - len(row))] for row in self.edges]
        return torch.tensor(values), torch.tensor(edges).view(len(edges), most - 1)

    def encode(self, actions: Tensor) -> Tensor:
        """``[..., A]`` float to bin numbers ``[..., A]`` int64; values outside go to the ends."""
        return encode_levels(actions, self.tables()[1].to(actions.device))

    def decode(self, index: Tensor) -> Tensor:
        """Bin numbers ``[..., A]`` to values ``[..., A]`` float32."""
        return decode_levels(index, self.tables()[0].to(index.device))


def encode_levels(actions: Tensor, edges: Tensor) -> Tensor:
    """Bin numbers ``[..., A]`` of actions ``[..., A]``, by ``edges [A, B-1]``."""
    return (actions.unsqueeze(-1) > edges).sum(-1)


def decode_levels(index: Tensor, values: Tensor) -> Tensor:
    """Values ``[..., A]`` of bins ``[..., A]``, by ``values [A, B]``."""
    dims = torch.arange(values.shape[0], device=index.device)
    return values[dims, index]


def finite_bounds(
    low: Sequence[float],
    high: Sequence[float],
    seen_low: Sequence[float] = (),
    seen_high: Sequence[float] = (),
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Bounds to put bins between: an action's own where finite, else those seen, else -1 and 1.

    >>> finite_bounds((-1.0, -math.inf), (1.0, math.inf), (-0.5, 3.0), (0.5, 3.0))
    ((-1.0, 3.0), (1.0, 4.0))
    """
    seen_low, seen_high = seen_low or [-1.0] * len(low), seen_high or [1.0] * len(high)
    lows = [_first_finite(*each, -1.0) for each in zip(low, seen_low, strict=True)]
    highs = [_first_finite(*each, 1.0) for each in zip(high, seen_high, strict=True)]
    # An action that never varies still gets bins of some width.
    highs = [b if a < b else a + 1.0 for a, b in zip(lows, highs, strict=True)]
    return tuple(lows), tuple(highs)


def _first_finite(*values: float) -> float:
    return next(v for v in values if math.isfinite(v))


def _floats(row: np.ndarray) -> tuple[float, ...]:
    return tuple(row.tolist())


def _rows(table: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(_floats, table))
