"""Multi-head attention by relative distance (Transformer-XL, Dai et al. 2019, arXiv 1901.02860).

The score of query i and key j has a content and a distance term:

    score_ij = ( (q_i + u) . k_j + (q_i + v) . W_r s(i - j) ) / sqrt(E)

with ``s`` the sinusoids of the distance. Distances come from the tokens' true places, so they are
negative where a token looks to its right (the usual shift would wrap around to another row there).

Shapes: B rows, L tokens, C cached tokens before them, D width, H heads, E head size, Q tokens whose
output is wanted, S = C + L columns (or slots of an acting cache), R distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.layers.dropout import fast_dropout


def waves(furthest: int, ahead: int, width: int, like: Tensor) -> Tensor:
    """Sinusoids of the distances ``furthest``, ``furthest - 1``, ... down to ``-ahead``.

    Returns:
        ``[furthest + ahead + 1, D]``: sines, then cosines; dtype and device of ``like``.
    """
    return _waves(furthest, ahead, width, like.dtype, like.device)


@lru_cache(maxsize=64)
def _waves(
    furthest: int, ahead: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # the same table serves acting and training
        half = (width + 1) // 2
        rates = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(furthest, -ahead - 1, -1, dtype=torch.float64)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], 1)[:, :width].to(device, dtype)


class RelativeAttention(nn.Module):
    """Multi-head attention with relative distances and without biases.

    Args:
        width: D.
        heads: H.
        head: E, free of D.
        attn_dropout: on attention weights.
    """

    def __init__(self, width: int, heads: int, head: int, attn_dropout: float = 0.0):
        super().__init__()
        self.heads, self.head, self.attn_dropout = heads, head, attn_dropout
        self.qkv = nn.Linear(width, 3 * heads * head, bias=False)
        self.positions = nn.Linear(width, heads * head, bias=False)
        self.out = nn.Linear(heads * head, width, bias=False)

    def forward(
        self,
        x: Tensor,
        past: Tensor | None,
        bias: Tensor,
        table: Tensor,
        penalty: Tensor,
        rows: Sequence[slice],
        ahead: int = 0,
    ) -> Tensor:
        """Attend over a whole segment.

        Args:
            x: ``[B, L, D]``.
            past: ``[B, C, D]`` inputs before the first token, or None.
            bias: ``[2, H, E]``: u and v.
            table: sinusoids of the distances ``C + L - 1`` down to ``-max(ahead, steps of rows)``.
            penalty: ``[L, C + L]`` added to scores: minus infinity where a token may not look.
            rows: tokens whose output is wanted; none looks beyond its slice's last token.
            ahead: how far a token may look to its right.

        Returns:
            ``[B, Q, D]``, the slices one after the other.
        """
        b, n, _ = x.shape
        inner = self.heads * self.head
        source = x if past is None else torch.cat([past, x], 1)
        k, v = self._split(F.linear(source, self.qkv.weight[inner:]), 2)
        whole = len(rows) == 1 and rows[0].indices(n) == (0, n, 1)
        asking = x if whole else torch.cat([x[:, s] for s in rows], 1)
        q = self._split(F.linear(asking, self.qkv.weight[:inner]), 1)[0]  # (H, B, Q, E)
        r = self.positions(table).view(-1, self.heads, self.head).permute(1, 2, 0)  # (H, E, R)
        scale = self.head**-0.5
        u, w = (bias * scale)[:, :, None, None]
        q = q * scale
        with_u, with_v = q + u, q + w
        outputs, at = [], 0
        for s in rows:
            start, stop, step = s.indices(n)
            count = len(range(start, stop, step))
            columns = source.shape[1] - n + start + step * (count - 1) + 1
            mine = slice(at, at + count)
            at += count
            width = columns + max(step, ahead)
            r_mine = r[:, :, source.shape[1] - columns :][:, :, :width]
            distance = _shifted(with_v[:, :, mine], r_mine, step, columns)
            scores = torch.baddbmm(
                distance.flatten(0, 1),
                with_u[:, :, mine].flatten(0, 1),
                k[:, :, :columns].flatten(0, 1).transpose(1, 2),
            )
            scores += penalty[s, :columns]  # cheaper than a mask: nothing to do on the way back
            weights = scores.softmax(-1)
            if self.training and self.attn_dropout > 0:
                weights = fast_dropout(weights, self.attn_dropout)
            outputs.append(weights @ v[:, :, :columns].flatten(0, 1))
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)  # (H B, Q, E)
        return self.out(y.view(self.heads, b, at, -1).permute(1, 2, 0, 3).flatten(2))

    def over(
        self,
        q: Tensor,
        kv: Tensor,
        bias: Tensor,
        table: Tensor,
        distance: Tensor,
        seen: Tensor,
    ) -> Tensor:
        """Attend where every pair has a distance of its own.

        Args:
            q: ``[B, Q, H, E]`` queries.
            kv: ``[B, S, 2, H, E]`` keys and values.
            bias: ``[2, H, E]``: u and v.
            table: sinusoids of descending distances.
            distance: ``[B, Q, S]`` int64 rows of ``table`` (where not seen: any).
            seen: ``[B, Q, S]`` bool.

        Returns:
            ``[B, Q, D]``.
        """
        b, n, h, _ = q.shape
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, S, E) each, views
        r = self.positions(table).view(-1, h, self.head).permute(1, 2, 0)  # (H, E, R)
        with_u, with_v = (q.unsqueeze(0) + bias[:, None, None]).transpose(2, 3) * self.head**-0.5
        places = distance.clamp(0, table.shape[0] - 1).unsqueeze(1).expand(b, h, n, -1)
        scores = with_u @ k.transpose(2, 3) + (with_v @ r).gather(3, places)
        scores = scores.masked_fill(~seen.unsqueeze(1), float("-inf"))
        y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))

    def append(self, x: Tensor, kv: Tensor, slots: Tensor, only: Tensor | None = None) -> Tensor:
        """Write new tokens into a cache; their queries ``[B, L, H, E]``.

        Args:
            x: ``[B, L, D]``.
            kv: ``[B, S, 2, H, E]``, written in place.
            slots: ``[B, L]`` int64.
            only: ``[B]`` bool, rows that are written; None means all.
        """
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, self.head)
        rows = torch.arange(b, device=x.device).unsqueeze(1)
        new = qkv[:, :, 1:]
        if only is not None:
            new = torch.where(only[:, None, None, None, None], new, kv[rows, slots])
        kv[rows, slots] = new
        return qkv[:, :, 0]

    def new_cache(self, rows: int, slots: int) -> Tensor:
        """An empty cache: ``[B, S, 2, H, E]``."""
        return self.qkv.weight.new_zeros(rows, slots, 2, self.heads, self.head)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """``[B, L, parts H E]`` as ``parts`` tensors ``[H, B, L, E]``."""
        b, n, _ = x.shape
        return x.view(b, n, parts, self.heads, self.head).permute(2, 3, 0, 1, 4).unbind(0)


def _shifted(q: Tensor, r: Tensor, step: int, columns: int) -> Tensor:
    """Distance scores ``[H, B, Q, columns]`` of queries ``step`` tokens apart, the last at the
    last column.

    Args:
        q: ``[H, B, Q, E]``.
        r: ``[H, E, R]``, of distances ``columns - 1`` downwards; ``R >= columns + step``.

    Query i needs the scores of distances from ``step * (Q - 1 - i)`` less than the first on: every
    row one ``step`` further to the left. Read with rows ``step`` shorter, they stand so by
    themselves; entries of distances that ``r`` does not have are other rows', and blocked.
    """
    h, b, n, _ = q.shape
    size = r.shape[2]
    scores = torch.bmm(q.reshape(h, b * n, -1), r).view(h, b, n * size)
    scores = scores[..., step * (n - 1) :][..., : n * (size - step)]
    return scores.unflatten(2, (n, size - step))[..., :columns]
