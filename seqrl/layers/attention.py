"""Causal self-attention over tokens, with a key/value cache for streaming.

Shapes: B rows, L tokens, D width, H heads, C cache slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.layers.dropout import fast_dropout


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which token i sees tokens 0..i.

    Args:
        width: D.
        heads: H, a divisor of D.
        attn_dropout: on attention weights. The fused CPU kernel refuses it, so training with it
            takes the written-out path; evaluation is always fused.
    """

    def __init__(self, width: int, heads: int, attn_dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.attn_dropout = attn_dropout

    def forward(self, x: Tensor, readers: Tensor | None = None) -> Tensor:
        """Attend over a whole sequence.

        Args:
            x: ``[B, L, D]``.
            readers: token positions whose output is wanted, ``[Q]`` for all rows or ``[B, Q]``;
                None means all. Keys and values are still those of every token, so the result is
                exactly the full one at these positions.

        Returns:
            ``[B, L, D]``, or ``[B, Q, D]`` with ``readers``.
        """
        if readers is None:
            q, k, v = self._split(self.qkv(x), 3)
            return self._finish(self._attend(q, k, v, None))
        width = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = self._split(F.linear(take_tokens(x, readers), weight[:width], bias[:width]), 1)[0]
        k, v = self._split(F.linear(x, weight[width:], bias[width:]), 2)
        steps = torch.arange(x.shape[1], device=x.device)
        mask = steps <= readers.unsqueeze(-1)  # (Q, L) or (B, Q, L)
        return self._finish(self._attend(q, k, v, mask if mask.dim() == 2 else mask.unsqueeze(1)))

    def key_values(self, x: Tensor) -> Tensor:
        """Keys and values of all tokens, to fill a cache: ``[B, L, 2, H, D/H]``."""
        b, n, width = x.shape
        kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
        return kv.view(b, n, 2, self.heads, -1)

    def extend(self, x: Tensor, cache: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
        """Append tokens to a cache and attend over it.

        Args:
            x: ``[B, M, D]`` new tokens.
            cache: ``[B, C, 2, H, D/H]``, written in place.
            slots: ``[B, M]`` int64 cache slot of each new token.
            mask: ``[B, 1, Q, C]`` bool, slots that each of the last Q new tokens may see.

        Returns:
            ``[B, Q, D]``.
        """
        b, m, _ = x.shape
        qkv = self.qkv(x).view(b, m, 3, self.heads, -1)
        cache[torch.arange(b, device=x.device).unsqueeze(1), slots] = qkv[:, :, 1:]
        q = qkv[:, -mask.shape[2] :, 0].transpose(1, 2)  # (B, H, Q, D/H)
        k, v = cache.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, C, D/H) each, views
        return self._finish(self._attend(q, k, v, mask))

    def new_cache(self, rows: int, slots: int) -> Tensor:
        """An empty cache of ``slots`` tokens for ``rows`` rows: ``[B, C, 2, H, D/H]``."""
        weight = self.qkv.weight
        head = weight.shape[1] // self.heads
        return weight.new_zeros(rows, slots, 2, self.heads, head)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        b, n, _ = x.shape
        return x.view(b, n, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if not (self.training and self.attn_dropout > 0):
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        if mask is None:
            n = q.shape[-2]
            mask = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        weights = scores.masked_fill_(~mask, float("-inf")).softmax(-1)
        return fast_dropout(weights, self.attn_dropout) @ v

    def _finish(self, y: Tensor) -> Tensor:
        b, h, n, d = y.shape
        return self.out(y.transpose(1, 2).reshape(b, n, h * d))


def take_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Tokens of ``x [B, L, D]`` at ``positions``, ``[Q]`` for all rows or ``[B, Q]``."""
    if positions.dim() == 1:
        return x[:, positions]
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
