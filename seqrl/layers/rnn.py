"""LSTM (Hochreiter & Schmidhuber 1997) and GRU (Cho et al. 2014) layers as mixers.

Whole sequences go through the library's layers, steps through one cell call.

Shapes: B rows, L tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqrl.layers.mixer import Mixer, Place


class LSTMMixer(Mixer):
    """One LSTM layer. State: ``h [B, D]`` and ``c [B, D]``."""

    def __init__(self, width: int):
        super().__init__()
        self.cell = nn.LSTM(width, width, batch_first=True)

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> LSTMMixer:
        return cls(place.width, **options)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        before = None if state is None else (_layered(state["h"]), _layered(state["c"]))
        y, (h, c) = _in_full_precision(self.cell, x, before)
        return y, None if state is None else {"h": h[0], "c": c[0]}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h, c = torch.lstm_cell(x, (state["h"], state["c"]), *self.cell.all_weights[0])
        return h, {"h": h, "c": c}

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        zeros = self.cell.all_weights[0][0].new_zeros(rows, self.cell.hidden_size)
        return {"h": zeros, "c": zeros.clone()}


class GRUMixer(Mixer):
    """One GRU layer. State: ``h [B, D]``."""

    def __init__(self, width: int):
        super().__init__()
        self.cell = nn.GRU(width, width, batch_first=True)

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> GRUMixer:
        return cls(place.width, **options)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        before = None if state is None else _layered(state["h"])
        y, h = _in_full_precision(self.cell, x, before)
        return y, None if state is None else {"h": h[0]}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = torch.gru_cell(x, state["h"], *self.cell.all_weights[0])
        return h, {"h": h}

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        return {"h": self.cell.all_weights[0][0].new_zeros(rows, self.cell.hidden_size)}


def _layered(x: Tensor) -> Tensor:
    return x.unsqueeze(0).contiguous()


def _in_full_precision(cell: nn.RNNBase, x: Tensor, before: Any) -> tuple[Tensor, Any]:
    """Run a layer outside autocast on CPUs: those without bf16 instructions have no bf16 cell."""
    if x.device.type != "cpu":
        y, after = cell(x, before)
        return y, after
    with torch.autocast("cpu", enabled=False):
        y, after = cell(x.to(cell.all_weights[0][0].dtype), before)
    return y, after
