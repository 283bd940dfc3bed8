"""Memory valves: how the memory of a segment becomes that of the next (Cherepanov et al. 2023).

The transformer rewrites the memory at the end of every segment; a valve decides how much of it is
let through. With M the memory that a segment read, and ``H = act(what it wrote)``:

========  =========================================================================================
``ca2``   ``W_o MultiHead(Q = W_q M, K = W_k H, V = W_v H)``: the old memory asks the new one (the
          Memory Retention Valve; arXiv 2306.09459, section 3)
``ca1``   the same with the roles exchanged: Q from H, K and V from M
``gru``   a GRU cell, row by row: input H, state M
``lstm``  an LSTM cell: input H; hidden and cell state both start as M, the hidden one is kept
``gate``  the gate "G" of the paper's ablation, whose output is squashed to (0, 1)
``none``  no valve: the raw output, without activation (RMT, Bulatov et al. 2022)
========  =========================================================================================

Shapes: B rows, m memory tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.layers.dropout import Dropout

ValveName = Literal["ca2", "ca1", "gru", "lstm", "gate", "none"]
ValveActivation = Literal["relu", "leaky_relu", "elu", "tanh", "none"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "none": lambda x: x,
}


class CrossValve(nn.Module):
    """Multi-head attention between old and new memory, with biases, no mask, no residual.

    The paper writes a feed-forward network around it; the released code has the one linear layer
    built here. Dropout on attention weights acts in training alone (the release never turns it
    off).

    Args:
        width: D.
        heads: attention heads, a divisor of D.
        dropout: on attention weights.
        ask_old: queries from the old memory (``ca2``), or from the new one (``ca1``).
    """

    def __init__(self, width: int, heads: int, dropout: float, ask_old: bool):
        super().__init__()
        self.heads, self.ask_old = heads, ask_old
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, written: Tensor, memory: Tensor) -> Tensor:
        asking, asked = (memory, written) if self.ask_old else (written, memory)
        b, m, d = memory.shape
        q = self.query(asking).view(b, m, self.heads, -1).transpose(1, 2)  # (B, H, m, D/H)
        kv = self.key_value(asked).view(b, m, 2, self.heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        y = self.dropout(weights) @ v
        return self.out(y.transpose(1, 2).reshape(b, m, d))


class CellValve(nn.Module):
    """A recurrent cell on each row of the memory: input what was written, state the memory."""

    def __init__(self, width: int, kind: Literal["gru", "lstm"]):
        super().__init__()
        self.cell = nn.GRUCell(width, width) if kind == "gru" else nn.LSTMCell(width, width)

    def forward(self, written: Tensor, memory: Tensor) -> Tensor:
        x, h = written.flatten(0, 1), memory.flatten(0, 1)
        if isinstance(self.cell, nn.LSTMCell):
            new = self.cell(x, (h, h))[0]
        else:
            new = self.cell(x, h)
        return new.view_as(memory)


class GateValve(nn.Module):
    """``sig(M (1-z) + z h)`` with ``r = sig(M W_r + H U_r)``, ``z = sig(M W_z + H U_z - b)`` and
    ``h = tanh(M W_g + (H r) U_g)``; the paper prints U_r for U_g as well, which we take apart."""

    def __init__(self, width: int):
        super().__init__()
        self.old = nn.Linear(width, 3 * width, bias=False)
        self.new = nn.Linear(width, 2 * width, bias=False)
        self.gated = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, written: Tensor, memory: Tensor) -> Tensor:
        old_r, old_z, old_g = self.old(memory).chunk(3, -1)
        new_r, new_z = self.new(written).chunk(2, -1)
        r, z = torch.sigmoid(old_r + new_r), torch.sigmoid(old_z + new_z - self.bias)
        h = torch.tanh(old_g + self.gated(written * r))
        return torch.sigmoid(memory * (1 - z) + z * h)


class MemoryValve(nn.Module):
    """A valve by its name: ``(written [B, m, D], memory [B, m, D])`` to the next memory."""

    def __init__(
        self,
        kind: ValveName,
        width: int,
        heads: int = 1,
        activation: ValveActivation = "relu",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.inner: nn.Module | None
        if kind in ("ca2", "ca1"):
            self.inner = CrossValve(width, heads, dropout, ask_old=kind == "ca2")
        elif kind == "gru" or kind == "lstm":
            self.inner = CellValve(width, kind)
        else:
            self.inner = GateValve(width) if kind == "gate" else None

    def forward(self, written: Tensor, memory: Tensor) -> Tensor:
        if self.inner is None:
            return written
        new: Tensor = self.inner(self.activation(written), memory)
        return new
