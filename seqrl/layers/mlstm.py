"""The mLSTM layer (Beck et al. 2024, arXiv 2405.04517, appendix; pre up-projection block).

    [a; z] = W_up x;   c = SiLU(conv(a));   q = B_q c;  k = B_k c;  v = B_v a
    i, f = W_g [q; k; v] + b_g;   h = HeadNorm(cell(q, k, v, i, f));   y = W_down((h + s c) SiLU(z))

B are block-diagonal maps of 4x4 blocks, s a learned vector, the cell is that of ``mlstm_cell.py``.

Two things are computed another way than they are written, with equal results up to rounding. The
small blocks are spread over square matrices of a head's width, so that one batched product projects
all heads and leaves them in the order in which the cell wants them. And the gates, linear in q, k
and v, are read from c and a by the product of both maps.

Shapes: B rows, L tokens, D width, E = inner width, H heads, P = E / H.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.causal_conv import CausalConv
from seqrl.layers.mixer import Mixer, Place
from seqrl.layers.mlstm_cell import EPS, Memory, fresh_memory, mlstm, mlstm_step
from seqrl.layers.state import exporting

BLOCK = 4
"""Side of the blocks of B_q, B_k and B_v."""
_SQUARE = 64
"""Widest matrix that the blocks are spread over."""
NORM_EPS = 1e-5

State = dict[str, Tensor]


class _Maps(NamedTuple):
    """What the layer multiplies by, made from its parameters."""

    qk: Tensor
    """``[G, S, 2 S]``, input before output, G S = E: queries, then keys divided by sqrt(P)."""
    v: Tensor
    """``[G, S, S]``."""
    gates_c: Tensor
    """``[2H, E]``: the gates by way of q and k."""
    gates_a: Tensor
    """``[2H, E]``: the gates by way of v."""
    scale: Tensor
    """``[E]`` of the norm."""
    taps: Tensor
    """``[k, E]`` of the convolution."""


class MLSTM(Mixer):
    """See the module's docstring. State: ``conv [B, 3, E]``, ``c [B, H, P, P]``, ``n [B, H, P]``,
    ``m [B, H, 1]``, which together hold H (P^2 + P + 1) + 3 E numbers a row.

    Args:
        width: D.
        heads: H; P must be a multiple of 4.
        expand: E is ``expand * D``, rounded up to a multiple of 64.
        conv: taps of the convolution.
        layers: blocks of the stack, which decide how small the last map starts.
        chunk: tokens of a chunk in ``forward``; by default up to 128 whole, about 64 beyond.

    Raises:
        SeqrlError: heads that do not divide E into multiples of 4.
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        expand: float = 2.0,
        conv: int = 4,
        layers: int = 1,
        chunk: int | None = None,
    ):
        super().__init__()
        inner = 64 * math.ceil(expand * width / 64)
        if inner % (heads * BLOCK):
            raise SeqrlError(
                f"{heads} heads do not divide the inner width {inner} into multiples of {BLOCK}",
                hint="use 1, 2, 4, 8 or 16 heads",
            )
        self.inner, self.heads, self.head_width, self.chunk = inner, heads, inner // heads, chunk
        self.square = _square(self.head_width)
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.conv = CausalConv(inner, conv)
        blocks = (inner // BLOCK, BLOCK, BLOCK)
        self.q, self.k, self.v = (nn.Parameter(torch.empty(blocks)) for _ in range(3))
        self.gates = nn.Linear(3 * inner, 2 * heads)
        self.norm = nn.Parameter(torch.zeros(inner))
        self.skip = nn.Parameter(torch.ones(inner))
        self.down = nn.Linear(inner, width, bias=False)
        self._kept: tuple[Any, _Maps] | None = None
        self.start(layers)

    @torch.no_grad()
    def start(self, layers: int) -> None:
        """First values: gates that forget little, whatever the input."""
        width, heads = self.up.in_features, self.heads
        for w in (self.up.weight, self.q, self.k, self.v):
            nn.init.normal_(w, std=math.sqrt(2 / (5 * width)))
        nn.init.normal_(self.down.weight, std=2 / (layers * math.sqrt(width)))
        nn.init.zeros_(self.gates.weight)
        nn.init.normal_(self.gates.bias[:heads], std=0.1)
        self.gates.bias[heads:] = torch.linspace(3.0, 6.0, heads)

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> MLSTM:
        given = {"heads": place.heads, "layers": place.layers}
        return cls(place.width, **{**given, **options})

    def parameter_groups(self) -> list[dict[str, Any]]:
        plain = [self.norm, self.skip, self.gates.bias, self.conv.bias]
        return [{"params": plain, "weight_decay": 0.0}]

    # --- sequences ----------------------------------------------------------------------------

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        wa, wz = self.up.weight.chunk(2)
        a, z = F.linear(x, wa), F.linear(x, wz)  # two products: their gradients need no joining
        if not torch.is_autocast_enabled(x.device.type):
            y, state = self._core(a, z, state)
        else:  # sums over time and exponentials want more than the eight bits of bf16
            with torch.autocast(x.device.type, enabled=False):
                y, state = self._core(a.float(), z.float(), state)
        return self.down(y), state

    def _core(self, a: Tensor, z: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """All between the outer maps: ``[B, L, E]`` twice to ``[B, L, E]``."""
        maps = self._maps()
        rows, length, inner = a.shape
        heads, p = self.heads, self.head_width
        before = None if state is None else state["conv"]
        c = F.silu(self.conv(a, before))
        gates = F.linear(c, maps.gates_c, self.gates.bias) + F.linear(a, maps.gates_a)
        i, f = gates.view(rows, length, 2, heads).permute(2, 3, 0, 1).reshape(2, -1, length)
        wq, wk = maps.qk.chunk(2, -1)
        q, k, v = (self._project(x, w) for x, w in ((c, wq), (c, wk), (a, maps.v)))
        memory = None if state is None else self._rows_of(state)
        h, memory = mlstm(q, k, v, i, f, memory, self.chunk)
        h = F.layer_norm(h, (p,), eps=NORM_EPS).view(heads, rows, length, p).permute(1, 2, 0, 3)
        shape = (rows, length, heads, p)
        y = torch.addcmul((self.skip * c).view(shape), h, maps.scale.view(heads, p))
        y = y.view(rows, length, inner) * F.silu(z)
        if state is None or before is None or memory is None:
            return y, None
        return y, {"conv": self.conv.after(a, before), **self._state_of(memory, rows)}

    def _rows_of(self, state: State) -> Memory:
        """The cell's memory with heads and rows as one leading dimension, heads first."""
        c, n, m = (state[name].transpose(0, 1).flatten(0, 1) for name in ("c", "n", "m"))
        return c, n, m.squeeze(-1)

    def _state_of(self, memory: Memory, rows: int) -> State:
        c, n, m = (t.view(self.heads, rows, *t.shape[1:]).transpose(0, 1) for t in memory)
        return {"c": c.contiguous(), "n": n.contiguous(), "m": m.unsqueeze(-1).contiguous()}

    def _project(self, x: Tensor, w: Tensor) -> Tensor:
        """``[B, L, E]`` by ``[G, S, S]`` to ``[H B, L, P]``, heads first."""
        rows, length, _ = x.shape
        groups, side, _ = w.shape
        y = torch.bmm(x.reshape(-1, groups, side).transpose(0, 1), w)
        if groups > self.heads:  # several squares a head
            y = y.view(self.heads, -1, rows * length, side).transpose(1, 2)
        return y.reshape(self.heads * rows, length, self.head_width)

    # --- single tokens ------------------------------------------------------------------------

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        maps = self._maps()
        rows, heads, p = x.shape[0], self.heads, self.head_width
        a, z = self.up(x).chunk(2, -1)
        seen = torch.cat([state["conv"], a.unsqueeze(1)], 1)
        c = F.silu((seen * maps.taps).sum(1).add_(self.conv.bias))
        gates = torch.addmm(F.linear(c, maps.gates_c, self.gates.bias), a, maps.gates_a.t())
        i, f = gates.view(rows, 2, heads, 1).unbind(1)
        groups = (rows, *maps.v.shape[:2])
        q, k = torch.bmm(c.view(groups).transpose(0, 1), maps.qk).transpose(0, 1).chunk(2, -1)
        v = torch.bmm(a.view(groups).transpose(0, 1), maps.v).transpose(0, 1)
        if groups[1] > heads:  # several squares a head
            q, k, v = (t.reshape(rows, heads, p) for t in (q, k, v))
        memory = (state["c"], state["n"], state["m"])
        step = _step_in_place if _may_overwrite(memory[0]) else mlstm_step
        h, (cell, n, m) = step(q, k, v, i, f, memory)
        h = F.group_norm(h.reshape(rows, self.inner), heads, maps.scale, eps=NORM_EPS)
        y = torch.addcmul(h, self.skip, c) * F.silu(z)
        return self.down(y), {"conv": seen[:, 1:], "c": cell, "n": n, "m": m}

    def initial_state(self, rows: int) -> State:
        c, n, m = fresh_memory(self.norm, rows, self.heads, self.head_width)
        return {"conv": self.conv.initial_state(rows), "c": c, "n": n, "m": m.unsqueeze(-1)}

    # --- maps ---------------------------------------------------------------------------------

    def _maps(self) -> _Maps:
        """The maps of the present parameters; kept between calls that need no gradients.

        Fused optimisers write without counting a version, so a call with gradients forgets them.
        """
        params = (self.q, self.k, self.v, self.gates.weight, self.norm, self.conv.weight)
        if torch.is_grad_enabled() or self.q.is_inference() or exporting():
            self._kept = None
            return self._make_maps()
        key = (self.q.data_ptr(), self.q.dtype, *(p._version for p in params))
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._make_maps()
        return self._kept[1]

    def _make_maps(self) -> _Maps:
        gq, gk, gv = self.gates.weight.view(-1, 3, self.inner // BLOCK, BLOCK).unbind(1)
        through = "gno,noi->gni"
        gates_c = torch.einsum(through, gq, self.q) + torch.einsum(through, gk, self.k)
        gates_a = torch.einsum(through, gv, self.v)
        keys = _spread(self.k * self.head_width**-0.5, self.square)
        return _Maps(
            torch.cat([_spread(self.q, self.square), keys], -1),
            _spread(self.v, self.square),
            gates_c.flatten(1),
            gates_a.flatten(1),
            1 + self.norm,
            self.conv.weight.squeeze(1).t().contiguous(),
        )


def _square(head_width: int) -> int:
    """The largest multiple of the blocks' side up to 64 that divides a head's width."""
    sides = range(BLOCK, min(head_width, _SQUARE) + 1, BLOCK)
    return max(s for s in sides if head_width % s == 0)


def _spread(blocks: Tensor, side: int) -> Tensor:
    """Blocks ``[n, 4 out, 4 in]`` along the diagonals of ``[4 n / side, side in, side out]``."""
    each = side // BLOCK
    eye = torch.eye(each, dtype=blocks.dtype, device=blocks.device)
    b = blocks.view(-1, each, BLOCK, BLOCK)
    return torch.einsum("gnoi,nm->gnimo", b, eye).reshape(-1, side, side)


def _may_overwrite(memory: Tensor) -> bool:
    """Whether a state may be updated in place."""
    if torch.is_grad_enabled() or exporting():
        return False
    return torch.is_inference_mode_enabled() or not memory.is_inference()


def _step_in_place(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, memory: Memory
) -> tuple[Tensor, Memory]:
    """:func:`mlstm_step` that writes into C and n, for the traffic of C is what a step costs."""
    c, n, m = memory
    rows, heads, p = q.shape
    kept = F.logsigmoid(f) + m
    m = torch.maximum(kept, i)
    kept = kept.sub_(m).exp_()
    k = k * torch.exp(i - m)
    c.mul_(kept.unsqueeze(-1)).addcmul_(k.unsqueeze(-1), v.unsqueeze(-2))
    n.mul_(kept).add_(k)
    h = torch.bmm(q.reshape(-1, 1, p), c.view(-1, p, p)).view(rows, heads, p)
    norm = torch.maximum((q * n).sum(-1, keepdim=True).abs_(), m.neg().exp_()).add_(EPS)
    return h.div_(norm), (c, n, m)
