"""Causal depthwise convolution over time, in the layout ``[B, L, E]`` that sequence layers have.

A few multiplications of whole sequences take a fraction of the library's time on a CPU, which
wants channels before time.

Shapes: B rows, L tokens, E channels, k taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class CausalConv(nn.Module):
    """``y_t = bias + sum_j w_j x_{t-k+1+j}``, zeros before the start.

    ``weight [E, 1, k]`` and ``bias [E]`` start as in ``nn.Conv1d``: uniform to 1 / sqrt(k).
    State: the last k - 1 inputs ``[B, k-1, E]``, oldest first.
    """

    def __init__(self, channels: int, taps: int = 4):
        super().__init__()
        self.taps = taps
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))
        self.bias = nn.Parameter(torch.empty(channels))
        for p in (self.weight, self.bias):
            nn.init.uniform_(p, -(taps**-0.5), taps**-0.5)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """``[B, L, E]`` to ``[B, L, E]``; ``before [B, k-1, E]`` are the inputs that came first."""
        return _Convolve.apply(x, self.weight.squeeze(1), self.bias, before)

    def after(self, x: Tensor, before: Tensor) -> Tensor:
        """The state after the inputs ``x [B, L, E]``."""
        if x.shape[1] >= self.taps - 1:
            return x[:, x.shape[1] - self.taps + 1 :]
        return torch.cat([before, x], 1)[:, x.shape[1] :]

    def step(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """One input ``[B, E]``: output ``[B, E]`` and the new state."""
        seen = torch.cat([before, x.unsqueeze(1)], 1)
        y = (seen * self.weight.squeeze(1).t()).sum(1) + self.bias
        return y, seen[:, 1:]

    def initial_state(self, rows: int) -> Tensor:
        """Zeros."""
        return self.weight.new_zeros(rows, self.taps - 1, self.weight.shape[0])


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor, before: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w, before)
        taps = w.t().contiguous().to(x.dtype)
        length, last = x.shape[1], len(taps) - 1
        y = torch.addcmul(bias.to(x.dtype), x, taps[last])
        for j in range(1, last + 1):  # what came j tokens earlier
            tap = taps[last - j]
            if j < length:
                y[:, j:].addcmul_(x[:, : length - j], tap)
            if before is not None:
                n = min(j, length)
                y[:, :n].addcmul_(before[:, last - j : last - j + n], tap)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        x, w, before = ctx.saved_tensors
        taps = w.t().contiguous().to(x.dtype)
        length, last = g.shape[1], len(taps) - 1
        gx, gw = g * taps[last], torch.zeros_like(taps)
        gb = None if before is None else torch.zeros_like(before)
        part = torch.empty_like(g)
        gw[last] = torch.mul(x, g, out=part).sum((0, 1))
        for j in range(1, last + 1):
            tap = taps[last - j]
            if j < length:
                gx[:, : length - j].addcmul_(g[:, j:], tap)
                here = part[:, j:]
                gw[last - j] = torch.mul(x[:, : length - j], g[:, j:], out=here).sum((0, 1))
            if before is not None and gb is not None:
                n = min(j, length)
                old = slice(last - j, last - j + n)
                gw[last - j] += (before[:, old] * g[:, :n]).sum((0, 1))
                gb[:, old].addcmul_(g[:, :n], tap)
        return gx, gw.t().to(w.dtype), g.sum((0, 1)).to(w.dtype), gb
