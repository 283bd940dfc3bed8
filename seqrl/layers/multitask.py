"""What lets one model serve many tasks: one space of inputs and one vocabulary of actions.

Vectors are zero-padded at the end to one size and share a linear layer; images are padded at the
bottom and right and share convolutions. Every action dimension is a choice among the same ids::

    0 .. n_discrete-1                     choices of discrete actions
    n_discrete .. n_discrete+bins-1       equal bins between an action's bounds

Shapes: B rows, D width, A action dimensions of a task, V = n_discrete + bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.datasets.bins import finite_bounds
from seqrl.datasets.tokens import UniformBins
from seqrl.errors import SeqrlError
from seqrl.spec import ActionSpec, DataStats, ObservationSpec

DecodeBins = Literal["centre", "lower_edge"]


class ImpalaEncoder(nn.Module):
    """The residual convolutions of IMPALA (Espeholt et al. 2018): 16, 32 and 32 channels.

    A stage is a 3x3 convolution, a max-pooling that halves the image, and two residual units; ReLU,
    a linear layer and ReLU end it. Images ``[..., H, W, C]`` in [0, 1] up to ``size`` are padded
    with zeros at the bottom and right, missing channels at the end.
    """

    def __init__(self, size: int, channels: int, width: int, stages: Sequence[int] = (16, 32, 32)):
        super().__init__()
        self.size, self.channels = size, channels
        parts: list[nn.Module] = []
        for out in stages:
            parts += [_Stage(channels, out)]
            channels, size = out, (size + 1) // 2
        self.stages = nn.Sequential(*parts)
        self.out = nn.Linear(channels * size * size, width)

    def forward(self, x: Tensor) -> Tensor:
        lead, (height, breadth, channels) = x.shape[:-3], x.shape[-3:]
        missing = (self.channels - channels, self.size - breadth, self.size - height)
        if any(missing):
            x = F.pad(x, [v for n in missing for v in (0, n)])
        # The layout of the data is already the one that convolutions on a CPU are fastest in.
        x = x.reshape(-1, *x.shape[-3:]).permute(0, 3, 1, 2)
        x = F.relu(self.stages(x)).flatten(1)
        return F.relu(self.out(x)).view(*lead, -1)


class _Stage(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, padding=1)
        self.units = nn.ModuleList(_Residual(out) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x), 3, stride=2, padding=1)
        for unit in self.units:
            x = unit(x)
        return x


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1)
        self.b = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(F.relu(x))))


class SharedObservations(nn.Module):
    """Observations of several tasks as vectors of one space.

    Args:
        specs: of every task.
        width: D.
        largest: entries that vectors are padded to; None means the longest task's.
        image_size: side that images are padded to; None means the largest task's.

    Raises:
        SeqrlError: a task that does not fit.
    """

    def __init__(
        self,
        specs: Sequence[ObservationSpec],
        width: int,
        largest: int | None = None,
        image_size: int | None = None,
    ):
        super().__init__()
        vectors = [s.shape[0] for s in specs if s.kind == "vector"]
        images = [s.shape for s in specs if s.kind == "image"]
        longest = max(vectors, default=0)
        side = max((max(s[:2]) for s in images), default=0)
        if largest is not None and longest > largest:
            raise SeqrlError(
                f"observations have {longest} entries, max_observation is {largest}",
                hint=f"--agent.max-observation {longest}",
            )
        if image_size is not None and side > image_size:
            raise SeqrlError(
                f"images have {side} pixels a side, image_size is {image_size}",
                hint=f"--agent.image-size {side}",
            )
        self.vector = nn.Linear(largest or longest, width) if vectors else None
        self.image = None
        if images:
            self.image = ImpalaEncoder(image_size or side, max(s[2] for s in images), width)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised vectors ``[B, T, S]`` or images ``[B, T, H, W, C]`` to ``[B, T, D]``; as well
        without T."""
        if x.dim() > 3 and self.image is not None:
            return self.image(x)
        if self.vector is None:
            raise SeqrlError(f"no task has observations of shape {tuple(x.shape)}")
        # Equal to padding the observations with zeros.
        return F.linear(x, self.vector.weight[:, : x.shape[-1]], self.vector.bias)


class ActionCodes:
    """Actions of several tasks as ids of one vocabulary.

    >>> import torch
    >>> codes = ActionCodes([ActionSpec("continuous", (1,), (0.0,), (4.0,))], [None], bins=4)
    >>> codes.encode(torch.tensor([[0.1], [3.9]]), 0).tolist()
    [[18], [21]]
    >>> codes.decode(torch.tensor([[0], [3]]), 0).tolist()
    [[0.5], [3.5]]

    Args:
        specs: of every task.
        stats: of every task's data, whose largest actions bound what the space leaves unbounded.
        n_discrete: ids of discrete actions.
        bins: of continuous ones.
        most: action dimensions that the head can serve.
        decode_bins: a bin stands for its centre, or for its lower edge (as LRAM's code has it).

    Raises:
        SeqrlError: a task with more choices or dimensions than that.
    """

    def __init__(
        self,
        specs: Sequence[ActionSpec],
        stats: Sequence[DataStats | None],
        n_discrete: int = 18,
        bins: int = 256,
        most: int = 8,
        decode_bins: DecodeBins = "centre",
    ):
        self.specs, self.n_discrete, self.bins = tuple(specs), n_discrete, bins
        self.size = n_discrete + bins
        self.shift = 0.0 if decode_bins == "centre" else 0.5
        for s in specs:
            if s.kind == "discrete" and s.n > n_discrete:
                raise SeqrlError(
                    f"{s.describe()} actions do not fit n_discrete {n_discrete}",
                    hint=f"--agent.n-discrete {s.n}",
                )
            if s.size > most:
                raise SeqrlError(
                    f"{s.describe()} actions do not fit max_actions {most}",
                    hint=f"--agent.max-actions {s.size}",
                )
        self.grids = [_grid(s, d, bins) for s, d in zip(specs, stats, strict=True)]

    def legal(self, task: int) -> slice:
        """The ids that a task's actions may have."""
        if self.specs[task].kind == "discrete":
            return slice(0, self.specs[task].n)
        return slice(self.n_discrete, self.size)

    def encode(self, actions: Tensor, task: int) -> Tensor:
        """``[..., A]`` float or ``[...]`` int64 to ids ``[..., A]`` (A = 1 for a discrete one)."""
        grid = self.grids[task]
        if grid is None:
            return actions.unsqueeze(-1)
        return grid.encode(actions) + self.n_discrete

    def decode(self, choice: Tensor, task: int) -> Tensor:
        """Numbers among the legal ids ``[..., A]`` to actions ``[..., A]`` or ``[...]``."""
        grid = self.grids[task]
        return choice.squeeze(-1) if grid is None else grid.decode(choice - self.shift)


def _grid(spec: ActionSpec, stats: DataStats | None, bins: int) -> UniformBins | None:
    """Bins between a continuous action's bounds; None for a discrete one."""
    if spec.kind != "continuous":
        return None
    seen = (stats.action_low, stats.action_high) if stats is not None else ((), ())
    return UniformBins(*finite_bounds(spec.low, spec.high, *seen), bins)


class SharedHead(nn.Linear):
    """One linear layer to the logits of every id of every action dimension.

    Args:
        width: D.
        most: action dimensions; a task uses the first of them.
        vocabulary: V.
    """

    def __init__(self, width: int, most: int, vocabulary: int):
        super().__init__(width, most * vocabulary)
        self.vocabulary = vocabulary

    def logits(self, x: Tensor, dims: int) -> Tensor:
        """``[..., D]`` to ``[..., dims, V]``."""
        n = dims * self.vocabulary
        y = F.linear(x, self.weight[:n], self.bias[:n])
        return y.view(*x.shape[:-1], dims, self.vocabulary)
