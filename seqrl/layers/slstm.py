"""The sLSTM layer (Beck et al. 2024, arXiv 2405.04517, section 2.2): a recurrent cell per head.

With ``c = SiLU(conv(u))`` and, per head, maps G and R of its own for each gate::

    i = G_i c + R_i h_{t-1} + b_i;  f = G_f c + ...;  z = G_z u + ...;  o = G_o u + ...
    m_t = max(i, logsigmoid(f) + m_{t-1})
    i' = exp(i - m_t);  f' = exp(logsigmoid(f) + m_{t-1} - m_t)
    C_t = f' C_{t-1} + i' tanh(z);  n_t = f' n_{t-1} + i';  h_t = sigmoid(o) C_t / n_t
    y = HeadNorm(h)

The memory starts at m = -inf, which also makes a single row of a batch fresh. The time loop cannot
be avoided (h feeds back); ``slstm_cell.py`` has it.

Shapes: B rows, L tokens, D width, H heads, P = D / H.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.causal_conv import CausalConv
from seqrl.layers.mixer import Mixer, Place
from seqrl.layers.slstm_cell import Memory, slstm, slstm_step
from seqrl.layers.state import exporting

NORM_EPS = 1e-5

State = dict[str, Tensor]


class SLSTM(Mixer):
    """See the module's docstring. State: ``conv [B, 3, D]`` and ``h, c, n, m``, each ``[B, D]``.

    Args:
        width: D.
        heads: H, a divisor of D.
        conv: taps of the convolution.
        layer: number of this block in its stack (decides how long the memory starts).
        layers: blocks of the stack.
        bias: first forget biases: ``powerlaw`` from 5 down to -7 over a head's channels, steeper
            in later blocks; ``small`` from 3 to 6.

    Raises:
        SeqrlError: heads that do not divide the width, or an unknown ``bias``.
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        conv: int = 4,
        layer: int = 0,
        layers: int = 1,
        bias: str = "powerlaw",
    ):
        super().__init__()
        if width % heads:
            raise SeqrlError(f"{heads} heads do not divide the width {width}")
        if bias not in ("powerlaw", "small"):
            raise SeqrlError(f"bias '{bias}' is not one of powerlaw, small")
        self.heads, self.head_width = heads, width // heads
        p = self.head_width
        self.conv = CausalConv(width, conv)
        self.inputs = nn.Parameter(torch.empty(4, heads, p, p))
        """Gate (i, f, z, o), head, output, input."""
        self.recurrent = nn.Parameter(torch.zeros(4, heads, p, p))
        self.bias = nn.Parameter(torch.zeros(4, heads, p))
        self.norm = nn.Parameter(torch.zeros(width))
        self._kept: tuple[Any, tuple[Tensor, Tensor]] | None = None
        self.start(bias, layer, layers)

    @torch.no_grad()
    def start(self, bias: str, layer: int, layers: int) -> None:
        """First values."""
        heads, p = self.heads, self.head_width
        nn.init.normal_(self.inputs, std=math.sqrt(2 / (5 * heads * p)))
        place = torch.arange(p) / max(p - 1, 1)
        depth = layer / (layers - 1) if layers > 1 else 0.0
        self.bias[1] = 3 + 3 * place if bias == "small" else 5 - 12 * place ** (0.3 + 1.3 * depth)

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> SLSTM:
        given = {"heads": place.heads, "layer": place.layer, "layers": place.layers}
        return cls(place.width, **{**given, **options})

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.norm, self.bias, self.conv.bias], "weight_decay": 0.0}]

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        if not torch.is_autocast_enabled(x.device.type):
            return self._core(x, state)
        with torch.autocast(x.device.type, enabled=False):
            return self._core(x.float(), state)

    def _core(self, x: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        before = None if state is None else state["conv"]
        c = F.silu(self.conv(x, before))
        memory = None if state is None else self._memory_of(state)
        h, memory = slstm(c, x, *self._maps(), memory)
        scale = (1 + self.norm).view(self.heads, self.head_width)
        y = (F.layer_norm(h, h.shape[-1:], eps=NORM_EPS) * scale).view(x.shape)
        if before is None or memory is None:
            return y, None
        return y, {"conv": self.conv.after(x, before), **self._state_of(memory)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        rows = x.shape[0]
        weight, bias = self._maps()
        c, conv = self.conv.step(x, state["conv"])
        memory = self._memory_of(state)
        # The three parts of each head's input side by side, rows innermost.
        parts = torch.stack([state["h"], F.silu(c), x]).view(3, rows, self.heads, -1)
        seen = parts.permute(2, 0, 3, 1).reshape(self.heads, -1, rows)
        gates = torch.baddbmm(bias, weight, seen).view(self.heads, 4, self.head_width, rows)
        after = self._state_of(slstm_step(gates, memory))
        y = F.group_norm(after["h"], self.heads, 1 + self.norm, eps=NORM_EPS)
        return y, {"conv": conv, **after}

    def initial_state(self, rows: int) -> State:
        zeros = self.norm.new_zeros(rows, len(self.norm))
        state = {"conv": self.conv.initial_state(rows)}
        state |= {name: zeros.clone() for name in ("h", "c", "n")}
        return {**state, "m": torch.full_like(zeros, -torch.inf)}

    def _memory_of(self, state: State) -> Memory:
        shape = (-1, self.heads, self.head_width)
        h, c, n, m = (state[k].view(shape).permute(1, 2, 0) for k in ("h", "c", "n", "m"))
        return h, c, n, m

    @staticmethod
    def _state_of(memory: Memory) -> State:
        flat = (t.permute(2, 0, 1).reshape(t.shape[2], -1) for t in memory)
        return dict(zip(("h", "c", "n", "m"), flat, strict=True))

    def _maps(self) -> tuple[Tensor, Tensor]:
        """As :meth:`_make_maps`, kept between calls that need no gradients.

        Fused optimisers write without counting a version, so a call with gradients forgets them.
        """
        params = (self.inputs, self.recurrent, self.bias)
        if torch.is_grad_enabled() or self.bias.is_inference() or exporting():
            self._kept = None
            return self._make_maps()
        key = (self.bias.data_ptr(), self.bias.dtype, *(p._version for p in params))
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._make_maps()
        return self._kept[1]

    def _make_maps(self) -> tuple[Tensor, Tensor]:
        """``[H, 4P, 3P]`` from ``[h; c; u]`` to all gates, and biases ``[H, 4P, 1]``."""
        of_c, of_u = self.inputs.split(2)
        none = torch.zeros_like(of_c)
        inputs = torch.cat([torch.cat([of_c, none], -1), torch.cat([none, of_u], -1)])
        weight = torch.cat([self.recurrent, inputs], -1).transpose(0, 1).flatten(1, 2)
        return weight, self.bias.transpose(0, 1).reshape(self.heads, -1, 1)
