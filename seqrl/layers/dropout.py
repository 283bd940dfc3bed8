"""Dropout whose mask comes from 16 random bits an element instead of one generator call each.

On a CPU the library's Bernoulli generator costs more than the layer it regularises. Here one
64-bit draw decides four elements. The drop probability is ``p`` rounded to a multiple of 2**-16
and kept elements are scaled by the exact inverse of their probability, so means are unbiased.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fast_dropout(x: Tensor, p: float) -> Tensor:
    """Zero elements of ``x`` with probability ``p`` and scale the rest (training only).

    Draws from torch's global generator, so it is deterministic under ``torch.manual_seed``.
    """
    if x.device.type != "cpu" or round(p * 65536) >= 65536:
        return F.dropout(x, p)
    keep, scale = _keep(x, p)
    return x * keep.mul_(scale)


def add_dropped(residual: Tensor, x: Tensor, p: float, training: bool) -> Tensor:
    """``residual + dropout(x)``, on a CPU in one pass over the three."""
    if not training or p == 0:
        return residual + x
    if x.device.type != "cpu" or x.dtype != residual.dtype or round(p * 65536) >= 65536:
        return residual + fast_dropout(x, p)
    keep, scale = _keep(x, p)
    return torch.addcmul(residual, x, keep, value=scale)


def _keep(x: Tensor, p: float) -> tuple[Tensor, float]:
    """A 0/1 mask of ``x``'s shape and type, and the scale of what is kept."""
    dropped = round(p * 65536)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    keep = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(bits, dropped - 32768, out=keep)
    return keep, 65536 / (65536 - dropped)


class Dropout(nn.Module):
    """``nn.Dropout`` with the cheap mask of :func:`fast_dropout`."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return fast_dropout(x, self.p) if self.training and self.p > 0 else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
