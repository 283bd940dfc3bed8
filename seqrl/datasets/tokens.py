"""Triplet tokens: the order of return, state and action tokens, and action discretisers.

A window of T steps becomes ``m*T`` tokens, m = 3 for (return-to-go, state, action). The action of
step t is read at the state token of step t, so it can depend on everything before it and on the
return-to-go and state of its own step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqrl.errors import SeqrlError

RTG, OBS, ACTION = "rtg", "obs", "action"


@dataclass(frozen=True)
class TripletLayout:
    """Which tokens a step has and in which order.

    >>> TripletLayout().readers(OBS)
    slice(1, None, 3)
    """

    order: tuple[str, ...] = (RTG, OBS, ACTION)

    def __post_init__(self) -> None:
        if OBS not in self.order or len(set(self.order)) != len(self.order):
            raise SeqrlError(f"token order {self.order} needs each token once and an 'obs' token")

    @property
    def size(self) -> int:
        """Tokens m of one step."""
        return len(self.order)

    def place(self, token: str) -> int:
        """Index of a token within its step."""
        return self.order.index(token)

    def readers(self, token: str) -> slice:
        """Places of one kind of token in a sequence of steps."""
        return slice(self.place(token), None, self.size)

    def interleave(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Token vectors ``[B, T, D]`` of each kind, in order: ``[B, m*T, D]``."""
        stacked = torch.stack([tokens[k] for k in self.order], dim=2)  # (B, T, m, D)
        return stacked.flatten(1, 2)

    def read(self, x: Tensor, token: str) -> Tensor:
        """The vectors at one kind of token: ``[B, m*T, D]`` to ``[B, T, D]``."""
        return x[:, self.readers(token)]

    def mask(self, steps: Tensor) -> Tensor:
        """Step mask ``[B, T]`` as a token mask ``[B, m*T]``."""
        return steps.repeat_interleave(self.size, dim=1)


@dataclass(frozen=True)
class UniformBins:
    """Equal bins of ``[low, high]`` per action dimension; a bin stands for its centre.

    >>> bins = UniformBins((-1.0,), (1.0,), 4)
    >>> bins.encode(torch.tensor([[-1.0], [0.1], [1.0]])).tolist()
    [[0], [2], [3]]
    >>> bins.decode(torch.tensor([[0], [3]])).tolist()
    [[-0.75], [0.75]]
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    bins: int = 256

    def __post_init__(self) -> None:
        check_bins(self.bins)
        check_bounds(self.low, self.high)

    def encode(self, actions: Tensor) -> Tensor:
        """``[..., A]`` float to bin numbers ``[..., A]`` int64; values outside go to the ends."""
        low = torch.tensor(self.low, device=actions.device)
        span = torch.tensor(self.high, device=actions.device) - low
        return ((actions - low) / span * self.bins).long().clamp(0, self.bins - 1)

    def decode(self, index: Tensor) -> Tensor:
        """Bin numbers ``[..., A]`` to bin centres ``[..., A]`` float32."""
        low = torch.tensor(self.low, device=index.device)
        span = torch.tensor(self.high, device=index.device) - low
        return low + (index + 0.5) / self.bins * span


@dataclass(frozen=True)
class MuLawBins:
    """Bins that are uniform after mu-law companding, finer near zero (Reed et al. 2022, Gato).

    ``f(x) = sign(x) * log(|x| * mu + 1) / log(limit * mu + 1)``, clipped to [-1, 1], in equal
    bins. A bin decodes to the value at its companded centre.
    """

    bins: int = 1024
    mu: float = 100.0
    limit: float = 256.0

    def __post_init__(self) -> None:
        check_bins(self.bins)
        if not (self.mu > 0 and self.limit > 0):
            raise SeqrlError(f"mu is {self.mu} and limit {self.limit}, both must be above 0")

    def encode(self, values: Tensor) -> Tensor:
        """``[...]`` float to bin numbers ``[...]`` int64."""
        top = torch.log(torch.tensor(self.limit * self.mu + 1.0, device=values.device))
        companded = values.sign() * torch.log(values.abs() * self.mu + 1) / top
        return ((companded.clamp(-1, 1) + 1) / 2 * self.bins).long().clamp(0, self.bins - 1)

    def decode(self, index: Tensor) -> Tensor:
        """Bin numbers ``[...]`` to values ``[...]`` float32."""
        top = torch.log(torch.tensor(self.limit * self.mu + 1.0, device=index.device))
        companded = (index + 0.5) / self.bins * 2 - 1
        return companded.sign() * (torch.exp(companded.abs() * top) - 1) / self.mu


def check_bins(bins: int) -> None:
    """Raise SeqrlError for fewer than 2 bins."""
    if bins < 2:
        raise SeqrlError(f"bins is {bins}, must be at least 2")


def check_bounds(low: Sequence[float], high: Sequence[float]) -> None:
    """Raise SeqrlError unless every dimension's bounds differ."""
    if len(low) != len(high) or any(not lo < hi for lo, hi in zip(low, high, strict=False)):
        raise SeqrlError(f"bins need low < high per dimension, got {low} and {high}")
