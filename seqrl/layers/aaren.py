"""Aaren, attention as a recurrence (Feng et al. 2024, arXiv 2405.13956).

The query is one learned vector a head instead of a function of the token, so every prefix has its
attention from a state of fixed size. With scores ``s_i = q . k_i / sqrt(E)``:

    o_t = sum_{i <= t} softmax(s_1..s_t)_i v_i
    m_t = max(m_{t-1}, s_t);   u_t = u_{t-1} exp(m_{t-1} - m_t) + exp(s_t - m_t)
    o_t = o_{t-1} + (v_t - o_{t-1}) exp(s_t - m_t) / u_t,   start m = -inf, u = 0, o = 0

which is the paper's (m, u, w) with ``o = w / u`` kept in place of w: u counts exactly to 2^24, and
o does not grow. Keys have no bias (a softmax would not notice it), and a score needs no keys: it is
the inner product of the token with ``W_k^T q``.

Shapes: B rows, L tokens, D width, H heads, E = D / H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.mixer import Mixer, Place

CHUNK = 64
"""Tokens whose prefixes are weighed in one matrix; longer sequences go from chunk to chunk."""

PADDING = -1e30
"""Score of padding: nothing beside any token, but unlike -inf safe to subtract from itself."""

State = dict[str, Tensor]


class Aaren(Mixer):
    """See the module's docstring. State: ``m [B, H]``, ``u [B, H]`` and ``o [B, H, E]``.

    Args:
        width: D.
        heads: H, must divide D.
    """

    def __init__(self, width: int, heads: int = 1):
        super().__init__()
        if width % heads:
            raise SeqrlError(f"{heads} attention heads do not divide the width {width}")
        self.heads, self.head = heads, width // heads
        self.query = nn.Parameter(torch.randn(heads, self.head))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        for part in (self.key, self.value, self.out):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> Aaren:
        return cls(place.width, **{"heads": place.heads, **options})

    def forward(
        self, x: Tensor, state: Any = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """See :meth:`Mixer.forward`.

        Args:
            mask: ``[B, L]``, False at padding, which nothing attends to and which leaves the state
                as it is. Padding after the last real token needs no mask.
        """
        b, n, _ = x.shape
        # Scores in float32 or wider: what bf16 rounds off would be exponentiated.
        with torch.autocast(x.device.type, enabled=False):
            score = self._scores(x.to(self.query.dtype)).transpose(1, 2)  # (B, H, L)
        if mask is not None:
            score = score.masked_fill(~mask.bool().unsqueeze(1), PADDING)
        value = self.value(x).view(b, n, self.heads, self.head).transpose(1, 2)  # (B, H, L, E)
        value = value.to(score.dtype)
        carry = state
        outs = []
        for s, v in zip(score.split(CHUNK, 2), value.split(CHUNK, 2), strict=True):
            y = _prefixes(s, v, carry)
            outs.append(y)
            if state is not None or n > CHUNK:
                carry = _advanced(s, y[:, :, -1], carry)
        y = outs[0] if len(outs) == 1 else torch.cat(outs, 2)
        y = self.out(y.transpose(1, 2).reshape(b, n, -1).to(x.dtype))
        return y, None if state is None else carry

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        s = self._scores(x)  # (B, H)
        v = self.value(x).view(-1, self.heads, self.head)
        m = torch.maximum(state["m"], s)
        new = torch.exp(s - m)
        u = torch.addcmul(new, state["u"], torch.exp(state["m"] - m))
        o = torch.lerp(state["o"], v, (new / u).unsqueeze(-1))
        return self.out(o.flatten(1)), {"m": m, "u": u, "o": o}

    def initial_state(self, rows: int) -> State:
        zeros = self.query.new_zeros(rows, self.heads)
        m = torch.full_like(zeros, float("-inf"))
        return {"m": m, "u": zeros, "o": self.query.new_zeros(rows, self.heads, self.head)}

    def _scores(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., H]``."""
        query = self.query.unsqueeze(1) * self.head**-0.5
        reader = torch.bmm(query, self.key.weight.view(self.heads, self.head, -1))[:, 0]
        return F.linear(x, reader)


def _prefixes(score: Tensor, value: Tensor, carry: State | None) -> Tensor:
    """Attention of every prefix of a chunk.

    Args:
        score: ``[B, H, C]``.
        value: ``[B, H, C, E]``.
        carry: the state before the chunk; None where there is none.

    Returns:
        ``[B, H, C, E]``.
    """
    c = score.shape[2]
    future = torch.ones(c, c, dtype=torch.bool, device=score.device).triu(1)
    weights = score.unsqueeze(2).expand(-1, -1, c, -1).masked_fill(future, float("-inf"))
    if carry is not None:
        # All that came before is one more token: its score is the log of its summed weights.
        past = (carry["m"] + carry["u"].log())[:, :, None, None].expand(-1, -1, c, 1)
        weights = torch.cat([past, weights], 3)
        value = torch.cat([carry["o"].unsqueeze(2), value], 2)
    return weights.softmax(-1) @ value


def _advanced(score: Tensor, last: Tensor, carry: State | None) -> State:
    """The state after a chunk with scores ``[B, H, C]`` and last output ``[B, H, E]``."""
    m = score.detach().amax(2)  # any m serves, so no gradient goes through it
    if carry is not None:
        m = torch.maximum(m, carry["m"].detach())
    u = torch.exp(score - m.unsqueeze(2)).sum(2)
    if carry is not None:
        u = u + carry["u"] * torch.exp(carry["m"] - m)
    # Nothing but padding so far is no state yet.
    none = m <= PADDING
    m = m.masked_fill(none, float("-inf"))
    o = last.to(u.dtype).masked_fill(none.unsqueeze(-1), 0)
    return {"m": m, "u": u.masked_fill(none, 0), "o": o}
