"""Causal self-attention over tokens, with a key/value cache for streaming.

What a full cache gives up is its **eviction**: ``window`` keeps the newest tokens;
``window+first`` those and the first step's (Xiao et al. 2024, arXiv 2309.17453, keep the first
tokens for the same reason); ``tova`` drops whatever the newest token looks at least (Oren et al.
2024, arXiv 2401.06104).

Shapes: B rows, L tokens, D width, H heads, C cache slots, M new tokens, Q of them read.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.dropout import fast_dropout
from seqrl.layers.mixer import Mixer, Place, Readers, take_tokens

Eviction = Literal["window", "window+first", "tova"]
EVICTIONS = ("window", "window+first", "tova")


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which token i sees tokens 0..i.

    Args:
        width: D.
        heads: H, a divisor of D.
        attn_dropout: on attention weights. The fused CPU kernel refuses it, so training with it
            takes the written-out path; evaluation is always fused.
        relative: rotate queries and keys by their position (Su et al. 2021, arXiv 2104.09864), so
            that scores depend on how far apart two tokens are.
    """

    def __init__(self, width: int, heads: int, attn_dropout: float = 0.0, relative: bool = False):
        super().__init__()
        if relative and (width // heads) % 2:
            raise SeqrlError(
                f"relative positions need an even head size, not {width // heads}",
                hint="another number of heads, or other positions",
            )
        self.heads = heads
        self.relative = relative
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.attn_dropout = attn_dropout

    def forward(self, x: Tensor, readers: Readers | None = None) -> Tensor:
        """Attend over a whole sequence.

        Args:
            x: ``[B, L, D]``.
            readers: tokens whose output is wanted; None means all. Keys and values are still those
                of every token, so the result is exactly the full one at these.

        Returns:
            ``[B, L, D]``, or ``[B, Q, D]`` with ``readers``.
        """
        steps = torch.arange(x.shape[1], device=x.device)
        if readers is None:
            q, k, v = self._split(self.qkv(x), 3)
            q, k = self._rotate(q, steps), self._rotate(k, steps)
            return self._finish(self._attend(q, k, v, None))
        width = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = self._split(F.linear(take_tokens(x, readers), weight[:width], bias[:width]), 1)[0]
        k, v = self._split(F.linear(x, weight[width:], bias[width:]), 2)
        position = steps[readers] if isinstance(readers, slice) else readers
        q, k = self._rotate(q, position), self._rotate(k, steps)
        mask = steps <= position.unsqueeze(-1)  # (Q, L) or (B, Q, L)
        return self._finish(self._attend(q, k, v, mask if mask.dim() == 2 else mask.unsqueeze(1)))

    def key_values(self, x: Tensor) -> Tensor:
        """Keys and values of all tokens, to fill a cache: ``[B, L, 2, H, D/H]``."""
        b, n, width = x.shape
        kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
        kv = kv.view(b, n, 2, self.heads, -1)
        if not self.relative:
            return kv
        k = self._rotate(kv[:, :, 0].transpose(1, 2), torch.arange(n, device=x.device))
        return torch.stack([k.transpose(1, 2), kv[:, :, 1]], 2)

    def extend(
        self,
        x: Tensor,
        cache: Tensor,
        slots: Tensor,
        mask: Tensor,
        position: Tensor | None = None,
    ) -> Tensor:
        """Append tokens to a cache and attend over it.

        Args:
            x: ``[B, M, D]`` new tokens.
            cache: ``[B, C, 2, H, D/H]``, written in place.
            slots: ``[B, M]`` int64 cache slot of each new token.
            mask: ``[B, 1, Q, C]`` bool, slots that each of the last Q new tokens may see.
            position: ``[B, M]`` of the new tokens; only for relative positions.

        Returns:
            ``[B, Q, D]``.
        """
        q = self._append(x, cache, slots, position)[:, :, -mask.shape[2] :]
        k, v = cache.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, C, D/H) each, views
        return self._finish(self._attend(q, k, v, mask))

    def over(self, x: Tensor, mask: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attend from new tokens over what came before and themselves, by any mask.

        Nothing is written in place, so gradients may pass: the same call serves a whole sequence
        and its continuation.

        Args:
            x: ``[B, M, D]`` new tokens.
            mask: ``[B or 1, 1, Q, P + M]`` bool, what each of the last Q new tokens sees of the P
                before and the new ones.
            past: ``[2, B, H, P, D/H]`` keys and values of what came before.

        Returns:
            ``[B, Q, D]``, and the keys and values with the new tokens'.
        """
        q, k, v = self._split(self.qkv(x), 3)
        both = torch.stack([k, v])
        both = both if past is None else torch.cat([past, both], 3)
        y = self._attend(q[:, :, -mask.shape[2] :], both[0], both[1], mask)
        return self._finish(y), both

    def extend_scored(
        self, x: Tensor, cache: Tensor, places: Tensor, scores: Tensor, position: Tensor
    ) -> Tensor:
        """As ``extend`` with eviction ``tova``: new tokens take the slots looked at least.

        Args:
            x: ``[B, M, D]`` new tokens.
            cache: ``[B, C, 2, H, D/H]``, written in place.
            places: ``[B, C]`` int64 position each slot holds, -1 for none; written in place.
            scores: ``[B, C]`` attention that the newest token paid to each slot, -1 where a slot
                is free; written in place.
            position: ``[B, M]`` of the new tokens; a negative one is no token and stays unseen.

        Returns:
            ``[B, M, D]``.
        """
        slots = scores.topk(x.shape[1], largest=False).indices
        places.scatter_(1, slots, position)
        q = self._append(x, cache, slots, position)
        k, v = cache.permute(2, 0, 3, 1, 4).unbind(0)
        # A token that is none is let see the oldest, only so that its attention is defined.
        upto = position.clamp(min=0).unsqueeze(2)
        seen = (places >= 0).unsqueeze(1) & (places.unsqueeze(1) <= upto)  # (B, M, C)
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        weights = weights.masked_fill(~seen.unsqueeze(1), float("-inf")).softmax(-1)
        scores.copy_(weights[:, :, -1].mean(1).masked_fill(places < 0, -1.0))
        return self._finish(weights @ v)

    def _append(self, x: Tensor, cache: Tensor, slots: Tensor, position: Tensor | None) -> Tensor:
        """Write new tokens into the cache; their queries ``[B, H, M, D/H]``."""
        b, m, _ = x.shape
        qkv = self.qkv(x).view(b, m, 3, self.heads, -1)
        q, kv = qkv[:, :, 0].transpose(1, 2), qkv[:, :, 1:]
        if self.relative and position is not None:
            q = self._rotate(q, position)
            k = self._rotate(kv[:, :, 0].transpose(1, 2), position).transpose(1, 2)
            kv = torch.stack([k, kv[:, :, 1]], 2)
        cache[torch.arange(b, device=x.device).unsqueeze(1), slots] = kv
        return q

    def _rotate(self, x: Tensor, position: Tensor) -> Tensor:
        """Turn pairs of channels of ``x [B, H, N, D/H]`` by angles ``position [N] or [B, N]``."""
        if not self.relative:
            return x
        half = x.shape[-1] // 2
        rates = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
        angle = position.unsqueeze(-1).double() * rates  # exact at any position
        if position.dim() == 2:
            angle = angle.unsqueeze(1)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def new_cache(self, rows: int, slots: int) -> Tensor:
        """An empty cache of ``slots`` tokens for ``rows`` rows: ``[B, C, 2, H, D/H]``."""
        weight = self.qkv.weight
        head = weight.shape[1] // self.heads
        return weight.new_zeros(rows, slots, 2, self.heads, head)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        b, n, width = x.shape
        head = width // (parts * self.heads)
        return x.view(b, n, parts, self.heads, head).permute(2, 0, 3, 1, 4).unbind(0)

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


class Ring(NamedTuple):
    """Where new tokens go in a cache that is written around, and what they may see there."""

    slots: Tensor
    """``[B, M]`` int64."""
    mask: Tensor
    """``[B, 1, M, C]`` bool."""


def ring(
    position: Tensor,
    capacity: Tensor | int,
    oldest: Tensor,
    first: int = 0,
    used: int | None = None,
) -> Ring:
    """Place tokens in a cache of C slots whose first ``first`` slots are never written again.

    Args:
        position: ``[B, M]`` consecutive positions of the new tokens; a negative one is no token:
            nothing sees it, and it sees position 0 only so that its attention is defined.
        capacity: C.
        oldest: ``[B, 1]`` oldest position in sight (besides the first ones).
        first: tokens at positions below this stay.
        used: slots from here on were never written, and are left out of the mask.
    """
    c = int(capacity)
    around = c - first
    newest = position[:, -1:]
    slots = torch.arange(c if used is None else used, device=position.device)
    holds = newest - (newest - slots).remainder(around)
    visible = holds >= oldest.clamp(min=first)
    if first:
        kept = slots < first
        holds = torch.where(kept, slots, holds)
        visible = torch.where(kept, slots <= newest, visible)
        taken = first + (position - first).remainder(around)
        taken = torch.where((position >= 0) & (position < first), position, taken)
    else:
        taken = position.remainder(c)
    upto = position.clamp(min=0).unsqueeze(2)
    return Ring(taken, (visible.unsqueeze(1) & (holds.unsqueeze(1) <= upto)).unsqueeze(1))


class AttentionMixer(Mixer):
    """Attention over the last ``window`` tokens, for stacks of several kinds of mixers.

    State: ``kv [B, C, 2, H, D/H]``, ``count [B]`` tokens seen; with ``tova`` also what each slot
    holds and how much it was looked at.

    Args:
        eviction: see the module's docstring. ``tova`` depends on the order of calls, so it serves
            ``step`` only; ``forward`` with a state is refused.
        first: tokens that ``window+first`` keeps: those of the first step.
    """

    unlimited = False

    def __init__(
        self,
        width: int,
        heads: int = 1,
        window: int = 60,
        attn_dropout: float = 0.0,
        relative: bool = False,
        eviction: str = "window",
        first: int = 3,
    ):
        super().__init__()
        if width % heads:
            raise SeqrlError(f"{heads} attention heads do not divide the width {width}")
        if eviction not in EVICTIONS:
            raise SeqrlError(f"eviction '{eviction}' is not one of {', '.join(EVICTIONS)}")
        self.attention = CausalSelfAttention(width, heads, attn_dropout, relative)
        for part in (self.attention.qkv, self.attention.out):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
        self.window, self.eviction = window, eviction
        self.first = min(first, window - 1) if eviction == "window+first" else 0

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> AttentionMixer:
        given = {
            "heads": place.heads,
            "window": place.window,
            "attn_dropout": place.dropout,
            "relative": place.positions == "relative",
            "first": place.period,
        }
        return cls(place.width, **{**given, **options})

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        n = x.shape[1]
        if state is None and n <= self.window:
            return self.attention(x), None
        if state is None:
            return self._over(x, self.initial_state(x.shape[0]))[0], None
        if self.eviction == "tova":
            raise SeqrlError("eviction 'tova' serves single steps only")
        return self._over(x, state)

    def read(self, x: Tensor, readers: Readers, state: Any = None) -> tuple[Tensor, Any]:
        if state is None and x.shape[1] <= self.window:
            return self.attention(x, readers), None
        return super().read(x, readers, state)

    def _over(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """New tokens over what the cache holds and themselves, each seeing its own window."""
        a, c, n = self.attention, self.window, x.shape[1]
        count = state["count"].unsqueeze(1)
        position = count + torch.arange(n, device=x.device)
        slots = torch.arange(c, device=x.device)
        around = c - self.first
        held = count - 1 - (count - 1 - slots).remainder(around)
        held = held.masked_fill((held < self.first) | (count == 0), -1)
        held = torch.where((slots < self.first) & (slots < count), slots, held)
        there = torch.cat([held, position], 1).unsqueeze(1)  # (B, 1, C + L)
        mask = (there >= 0) & (there <= position.unsqueeze(2))
        near = there > position.unsqueeze(2) - around
        mask = mask & (near | (there < self.first)) if self.first else mask & near
        q, k, v = a._split(a.qkv(x), 3)
        q, k = a._rotate(q, position), a._rotate(k, position)
        new = torch.stack([k, v]).permute(1, 3, 0, 2, 4)  # (B, L, 2, H, D/H)
        every = torch.cat([state["kv"], new], 1)
        keys, values = every.permute(2, 0, 3, 1, 4).unbind(0)
        y = a._finish(a._attend(q, keys, values, mask.unsqueeze(1)))
        # What stays: for each slot the newest position that belongs there.
        last = count + n - 1
        holds = last - (last - slots).remainder(around)
        holds = torch.where(slots < self.first, slots, holds)
        source = torch.where(holds >= count, c + holds - count, slots)
        source = torch.where(holds > last, slots, source)
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        return y, {"kv": every[rows, source], "count": state["count"] + n}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        position = state["count"].unsqueeze(1)
        after = {**state, "count": state["count"] + 1}
        if self.eviction == "tova":
            y = self.attention.extend_scored(
                x.unsqueeze(1), state["kv"], state["places"], state["scores"], position
            )
            return y[:, 0], after
        # The newest token sees itself and the window - 1 before it.
        oldest = position - (self.window - self.first) + 1
        r = ring(position, self.window, oldest, self.first)
        y = self.attention.extend(x.unsqueeze(1), state["kv"], r.slots, r.mask, position)
        return y[:, 0], after

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        kv = self.attention.new_cache(rows, self.window)
        count = torch.zeros(rows, dtype=torch.int64, device=kv.device)
        if self.eviction != "tova":
            return {"kv": kv, "count": count}
        places = count.new_full((rows, self.window), -1)
        scores = kv.new_full((rows, self.window), -1.0)
        return {"kv": kv, "count": count, "places": places, "scores": scores}
