"""The token mixer of Decision ConvFormer (Kim et al. 2024, arXiv 2310.03022, section 4).

One causal depth-wise filter for each kind of token. Token p has type ``p % P`` (return, state,
action for P = 3), and its own type chooses the filter that reads the L tokens up to it:

    y[p, c] = b_type(p)[c] + sum_{l < L} W_type(p)[c, L-1-l] x[p-l, c],   x = 0 before the start

Every position is computed once, with its own filter; the release computes all P filters everywhere
and keeps one of them. Weights are those of P ``nn.Conv1d(D, D, L, groups=D)``, one after another.

Shapes: B rows, N tokens, D width, P types, L taps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seqrl.errors import SeqrlError
from seqrl.layers.dropout import Dropout
from seqrl.layers.mixer import Mixer, Place, Readers


class ThreeFilterConv(Mixer):
    """See the module's docstring. State: the last L - 1 inputs ``past [B, L-1, D]``, oldest first,
    and ``phase [B]`` int64, the type of the next token.

    Args:
        width: D.
        period: P, 3 for (return, state, action); 2 where one of them is left out.
        kernel: L.
        proj: a linear layer and dropout after the filters (``conv_proj`` of the Atari release).
        dropout: after that layer.
    """

    unlimited = False

    def __init__(
        self,
        width: int,
        period: int = 3,
        kernel: int = 6,
        proj: bool = False,
        dropout: float = 0.1,
    ):
        super().__init__()
        if min(period, kernel) < 1:
            raise SeqrlError(f"period {period} and kernel {kernel} must be at least 1")
        self.period, self.kernel = period, kernel
        self.weight = nn.Parameter(torch.empty(period, width, kernel))
        self.bias = nn.Parameter(torch.empty(period, width))
        for p in (self.weight, self.bias):  # as nn.Conv1d with one input channel a filter
            nn.init.uniform_(p, -(kernel**-0.5), kernel**-0.5)
        self.proj = nn.Linear(width, width) if proj else None
        self.dropout = Dropout(dropout)
        if self.proj is not None:
            nn.init.normal_(self.proj.weight, std=0.02)
            nn.init.zeros_(self.proj.bias)

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> ThreeFilterConv:
        return cls(place.width, **{"period": place.period, **options})

    def forward(
        self, x: Tensor, state: Any = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """See :meth:`Mixer.forward`.

        Args:
            mask: ``[B, N]``, False or 0 at padding, which then counts as what comes before the
                start. Padding after the last real token needs no mask.
        """
        x = x if mask is None else x * mask.unsqueeze(-1).to(x.dtype)
        if state is None:
            return self._finish(_Filter.apply(x, self.weight, self.bias, None)), None
        n = x.shape[1]
        seen = torch.cat([state["past"], x], 1)
        # Rows may stand at different types, so each has its own sequence of filters.
        types = state["phase"].unsqueeze(1) + torch.arange(n, device=x.device)
        types = types.remainder(self.period)
        y = self.bias[types]  # (B, N, D)
        for i, taps in enumerate(self.weight.permute(2, 0, 1).unbind(0)):
            y = torch.addcmul(y, seen[:, i : i + n], taps[types])
        phase = (state["phase"] + n).remainder(self.period)
        return self._finish(y), {"past": seen[:, n:], "phase": phase}

    def read(self, x: Tensor, readers: Readers, state: Any = None) -> tuple[Tensor, Any]:
        """See :meth:`Mixer.read`; the tokens of one type cost a share of 1 / P."""
        p = self.period
        kinds = [slice(j, None, p) for j in range(p)]
        if state is not None or not isinstance(readers, slice) or readers not in kinds:
            return super().read(x, readers, state)
        y = _Filter.apply(x, self.weight, self.bias, kinds.index(readers))
        return self._finish(y), None

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        phase = state["phase"]
        seen = torch.cat([state["past"], x.unsqueeze(1)], 1)  # (B, L, D)
        taps = self.weight.index_select(0, phase).transpose(1, 2)
        y = (seen * taps).sum(1) + self.bias.index_select(0, phase)
        after = {"past": seen[:, 1:], "phase": (phase + 1).remainder_(self.period)}
        return self._finish(y), after

    def few(self, x: Tensor, past: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """The tokens of one environment step at once, for acting.

        Args:
            x: ``[B, n, D]``, n at most P.
            past: ``[B, L-1, D]`` the inputs before them.
            start: type of the first one, of all rows.

        Returns:
            ``[B, n, D]`` and the last L - 1 inputs.
        """
        n = x.shape[1]
        seen = torch.cat([past, x], 1)
        windows = seen.unfold(1, self.kernel, 1).transpose(2, 3)  # (B, n, L, D)
        taps = self.weight.roll(-start, 0)[:n].transpose(1, 2)
        y = (windows * taps).sum(2) + self.bias.roll(-start, 0)[:n]
        return self._finish(y), seen[:, n:]

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        past = self.weight.new_zeros(rows, self.kernel - 1, self.weight.shape[1])
        return {"past": past, "phase": torch.zeros(rows, dtype=torch.int64, device=past.device)}

    def _finish(self, y: Tensor) -> Tensor:
        return y if self.proj is None else self.dropout(self.proj(y))


class _Filter(torch.autograd.Function):
    """``x [B, N, D]``, ``weight [P, D, L]``, ``bias [P, D]`` to ``[B, N, D]``, from type 0; or,
    for one type ``only``, to its tokens' outputs alone.

    Tokens of one type are every P-th: a few multiplications of such strided sequences take a third
    of the library's time on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, only: int | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.only = only
        period, _, length = weight.shape
        taps = _taps(weight, x.dtype)
        y = torch.empty_like(x if only is None else x[:, only::period])
        own = _by_type(y, period, only)
        for j, out in own.items():
            torch.addcmul(bias[j].to(x.dtype), x[:, j::period], taps[-1, j], out=out)
        for j, lag, skip, there in _reads(period, length, x.shape[1], own):
            own[j][:, skip:].addcmul_(x[:, there], taps[length - 1 - lag, j])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        period, _, length = weight.shape
        taps = _taps(weight, x.dtype)
        gx = torch.empty_like(x) if ctx.only is None else torch.zeros_like(x)
        gw, gb = torch.zeros_like(taps), torch.zeros_like(taps[0])
        own = _by_type(g, period, ctx.only)
        for j, out in own.items():
            gx[:, j::period] = out * taps[-1, j]
            gw[-1, j] = (x[:, j::period] * out).sum((0, 1))
            gb[j] = out.sum((0, 1))
        for j, lag, skip, there in _reads(period, length, x.shape[1], own):
            out = own[j][:, skip:]
            gx[:, there].addcmul_(out, taps[length - 1 - lag, j])
            gw[length - 1 - lag, j] = (x[:, there] * out).sum((0, 1))
        return gx, gw.permute(1, 2, 0).to(weight.dtype), gb.to(weight.dtype), None


def _taps(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``[L, P, D]``, contiguous."""
    return weight.permute(2, 0, 1).to(dtype).contiguous()


def _by_type(y: Tensor, period: int, only: int | None) -> dict[int, Tensor]:
    """Type to its tokens among outputs of all types, or of the one."""
    return {j: y[:, j::period] for j in range(period)} if only is None else {only: y}


def _reads(
    period: int, length: int, tokens: int, types: Iterable[int]
) -> list[tuple[int, int, int, slice]]:
    """``(type, lag, skip, there)``, lags from 1: all but the first ``skip`` tokens of the type have
    one that many places before them, and those are the tokens ``there``."""
    out = []
    for lag in range(1, min(length, tokens)):
        for j in types:
            skip = max(0, -((j - lag) // period))
            first = j + skip * period
            if first < tokens:
                out.append((j, lag, skip, slice(first - lag, tokens - lag, period)))
    return out
