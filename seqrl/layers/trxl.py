"""Transformer-XL layers over cached inputs and memory tokens (attention in ``relative.py``).

Kinds of layer (``A`` attention, ``FF`` Linear-ReLU-Linear, optional everywhere):

==========  =======================================================================================
``trxl``    ``x = LN(x + A(x)); x = LN(x + FF(x))``; ``double_residual``: ``LN(2 x + A(x))``
``trxl-i``  ``x = x + relu(A(LN x)); x = x + relu(FF(LN x))`` (Parisotto et al. 2020,
            arXiv 1910.06764); a last LN after the stack
``gtrxl``   ``x = g(x, relu(A(LN x))); x = g(x, relu(FF(LN x)))``, g a GRU gate whose bias of 2
            starts it near the identity; a last LN after the stack
==========  =======================================================================================

The position biases u and v of the attention are shared by all layers of a stack.

Shapes: B rows, L tokens, C cached tokens before them, D width, H heads, E head size, Q tokens whose
output is wanted, S slots of an acting cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.dropout import Dropout, add_dropped, fast_dropout
from seqrl.layers.mixer import Mixer, Place
from seqrl.layers.relative import RelativeAttention, waves

Variant = Literal["trxl", "trxl-i", "gtrxl"]


def segment_mask(
    cached: int, memory: int, tokens: int, written: int, memory_reads_cache: bool, device: Any
) -> Tensor:
    """What each token of ``[M_read | tokens | M_write]`` may not see of ``[cached | all three]``.

    M_read sees itself; a token sees the cache, M_read and the tokens up to itself; M_write sees
    everything. The memory rows see the cache only with ``memory_reads_cache``.

    Returns:
        ``[L, C + L]`` bool, True where blocked.
    """
    n = memory + tokens + written
    seen = torch.ones(n, n, dtype=torch.bool, device=device).tril()
    seen[:memory, :memory] = True
    seen[memory + tokens :] = True
    before = torch.ones(n, cached, dtype=torch.bool, device=device)
    if not memory_reads_cache:
        before[:memory] = False
        before[memory + tokens :] = False
    return torch.cat([before, seen], 1).logical_not_()


@dataclass(frozen=True)
class TrXLSettings:
    """Sizes and kind of a stack."""

    width: int
    layers: int
    heads: int
    head: int
    inner: int = 0
    """Hidden units of the feed-forward network; 0 leaves it out."""
    variant: Variant = "trxl"
    double_residual: bool = False
    """As released: the attention adds its input, and the layer adds it again (``trxl`` only)."""
    dropout: float = 0.0
    """On attention output, inside and after the feed-forward network, and on the sinusoids."""
    attn_dropout: float = 0.0


class TrXLLayer(nn.Module):
    """One layer; see the module's docstring."""

    def __init__(self, s: TrXLSettings):
        super().__init__()
        self.variant, self.twice, self.dropout = s.variant, s.double_residual, s.dropout
        self.attention = RelativeAttention(s.width, s.heads, s.head, s.attn_dropout)
        self.norm1 = nn.LayerNorm(s.width)
        gated, network = s.variant == "gtrxl", s.inner > 0
        self.gate1 = GRUGate(s.width) if gated else None
        self.norm2 = nn.LayerNorm(s.width) if network else None
        self.up = nn.Linear(s.width, s.inner) if network else None
        self.down = nn.Linear(s.inner, s.width) if network else None
        self.gate2 = GRUGate(s.width) if gated and network else None
        self.inner_dropout = Dropout(s.dropout)

    def before(self, x: Tensor) -> Tensor:
        """What attention sees of an input."""
        return x if self.variant == "trxl" else self.norm1(x)

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output from its input ``x [B, Q, D]`` and what attention said to it."""
        if self.variant == "trxl":
            x = self.norm1(add_dropped(2 * x if self.twice else x, y, self.dropout, self.training))
        else:
            x = self._add(x, y, self.gate1)
        if self.up is None or self.down is None or self.norm2 is None:
            return x
        if self.variant == "trxl":
            return self.norm2(add_dropped(x, self._network(x), self.dropout, self.training))
        return self._add(x, self._network(self.norm2(x)), self.gate2)

    def _network(self, x: Tensor) -> Tensor:
        if self.up is None or self.down is None:
            return x
        y: Tensor = self.down(self.inner_dropout(F.relu(self.up(x))))
        return y

    def _add(self, x: Tensor, y: Tensor, gate: nn.Module | None) -> Tensor:
        y = F.relu(y)
        if gate is None:
            return add_dropped(x, y, self.dropout, self.training)
        if self.training and self.dropout > 0:
            y = fast_dropout(y, self.dropout)
        new: Tensor = gate(x, y)
        return new


class GRUGate(nn.Module):
    """``(1-z) x + z tanh(W y + U (r x))``, r and z from both; ``z`` starts low by its bias."""

    def __init__(self, width: int, bias: float = 2.0):
        super().__init__()
        self.from_y = nn.Linear(width, 3 * width, bias=False)
        self.from_x = nn.Linear(width, 2 * width, bias=False)
        self.gated = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.full((width,), bias))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y_r, y_z, y_h = self.from_y(y).chunk(3, -1)
        x_r, x_z = self.from_x(x).chunk(2, -1)
        r, z = torch.sigmoid(y_r + x_r), torch.sigmoid(y_z + x_z - self.bias)
        return (1 - z) * x + z * torch.tanh(y_h + self.gated(r * x))


def as_penalty(blocked: Tensor, like: Tensor) -> Tensor:
    """Minus infinity where ``blocked``, else 0."""
    return torch.zeros_like(blocked, dtype=like.dtype).masked_fill_(blocked, float("-inf"))


class TrXLStack(nn.Module):
    """Layers that share u and v."""

    def __init__(self, settings: TrXLSettings):
        super().__init__()
        s = self.settings = settings
        self.layers = nn.ModuleList(TrXLLayer(s) for _ in range(s.layers))
        self.bias = nn.Parameter(torch.empty(2, s.heads, s.head))
        for part in self.bias:
            nn.init.xavier_uniform_(part.data)
        self.norm = nn.Identity() if s.variant == "trxl" else nn.LayerNorm(s.width)
        self.dropout = Dropout(s.dropout)

    def forward(
        self,
        x: Tensor,
        blocked: Tensor,
        rows: Sequence[slice] = (slice(None),),
        past: Sequence[Tensor] | None = None,
        ahead: int = 0,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run a segment.

        Args:
            x: ``[B, L, D]``.
            blocked: ``[L, C + L]`` bool.
            rows: tokens wanted; the last layer computes no others (exact: no one reads them).
            past: each layer's cached inputs ``[B, C, D]``.
            ahead: how far a token may look to its right.

        Returns:
            ``[B, Q, D]``, and each layer's inputs ``[B, L, D]``, for the cache.
        """
        everything = (slice(None),)
        penalty = as_penalty(blocked, self.bias)
        reach = max(ahead, *(s.step or 1 for s in rows))
        table = self.dropout(waves(blocked.shape[1] - 1, reach, x.shape[2], self.bias))
        inputs = []
        for i, layer in enumerate(self._layers()):
            wanted = rows if i == len(self.layers) - 1 else everything
            before = None if past is None else layer.before(past[i])
            inputs.append(x)
            y = layer.attention(layer.before(x), before, self.bias, table, penalty, wanted, ahead)
            kept = x if wanted is everything else torch.cat([x[:, s] for s in wanted], 1)
            x = layer.after(kept, y)
        return self.norm(x), inputs

    def extend(
        self,
        x: Tensor,
        caches: Sequence[Tensor],
        slots: Tensor,
        positions: Tensor,
        seen: Tensor,
        wanted: int,
        only: Tensor | None = None,
    ) -> Tensor:
        """Append tokens to the layers' caches, where slot s holds the token at position s.

        Args:
            x: ``[B, L, D]`` new tokens.
            caches: ``[B, S, 2, H, E]`` a layer, written in place.
            slots: ``[B, L]`` where they are kept.
            positions: ``[B, L]`` where they stand.
            seen: ``[B, L, S]`` bool, what each may see.
            wanted: how many of the last tokens' outputs are.
            only: ``[B]`` bool, rows whose caches are written.

        Returns:
            ``[B, wanted, D]``.
        """
        size = caches[0].shape[1]
        ahead = x.shape[1]
        table = waves(size - 1, ahead, x.shape[2], self.bias)
        places = torch.arange(size, device=x.device) - positions.unsqueeze(2) + (size - 1)
        for i, (layer, cache) in enumerate(zip(self._layers(), caches, strict=True)):
            q = layer.attention.append(layer.before(x), cache, slots, only)
            from_ = x.shape[1] - wanted if i == len(self.layers) - 1 else 0
            if from_ == x.shape[1]:
                return x[:, :0]
            y = layer.attention.over(
                q[:, from_:], cache, self.bias, table, places[:, from_:], seen[:, from_:]
            )
            x = layer.after(x[:, from_:], y)
        return self.norm(x)

    def new_caches(self, rows: int, slots: int, pieces: Sequence[int] = ()) -> list[Tensor]:
        """One empty cache a layer.

        Args:
            rows: B.
            slots: S.
            pieces: how many tokens :meth:`extend` will take at once, for the numbers there will be.
                Their tables are made now: one that a trace is the first to ask for would be a
                tensor of the tracer's, kept for everybody.
        """
        for length in pieces:
            waves(slots - 1, length, self.settings.width, self.bias)
        return [layer.attention.new_cache(rows, slots) for layer in self._layers()]

    def _layers(self) -> list[TrXLLayer]:
        return list(self.layers)  # type: ignore[arg-type]


class TrXLMixer(Mixer):
    """Relative attention over the last ``window`` tokens, with u and v of its own.

    State: ``kv [B, window, 2, H, E]``, written around, and ``count [B]`` tokens seen. What is
    cached are the keys and values of past inputs: the inputs themselves would give the same ones.
    """

    unlimited = False

    def __init__(
        self,
        width: int,
        heads: int = 1,
        window: int = 60,
        head: int | None = None,
        attn_dropout: float = 0.0,
    ):
        super().__init__()
        if head is None and width % heads:
            raise SeqrlError(f"{heads} attention heads do not divide the width {width}")
        if min(window, heads, head or 1) < 1:
            raise SeqrlError(f"window {window}, heads {heads} and head {head} must be at least 1")
        self.attention = RelativeAttention(width, heads, head or width // heads, attn_dropout)
        for part in (self.attention.qkv, self.attention.positions, self.attention.out):
            nn.init.normal_(part.weight, std=0.02)
        self.bias = nn.Parameter(torch.zeros(2, heads, self.attention.head))
        self.width, self.window = width, window

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> TrXLMixer:
        given = {"heads": place.heads, "window": place.window, "attn_dropout": place.dropout}
        return cls(place.width, **{**given, **options})

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        n = x.shape[1]
        if state is not None:
            return self._over(x, state)
        seen = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        blocked = ~seen.triu(1 - self.window)
        table = waves(n - 1, 1, self.width, self.bias)
        penalty = as_penalty(blocked, self.bias)
        return self.attention(x, None, self.bias, table, penalty, (slice(None),)), None

    def _over(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """New tokens over what the cache holds and themselves."""
        b, n, _ = x.shape
        count = state["count"].unsqueeze(1)
        slots = torch.arange(self.window, device=x.device)
        held = count - 1 - (count - 1 - slots).remainder(self.window)  # negative where free
        position = count + torch.arange(n, device=x.device)
        qkv = self.attention.qkv(x).view(b, n, 3, self.attention.heads, self.attention.head)
        every = torch.cat([state["kv"], qkv[:, :, 1:]], 1)
        y = self._attend(qkv[:, :, 0], every, position, torch.cat([held, position], 1))
        # What stays: for each slot the newest position that belongs there.
        last = count + n - 1
        holds = last - (last - slots).remainder(self.window)
        source = torch.where(holds >= count, self.window + holds - count, slots)
        rows = torch.arange(b, device=x.device).unsqueeze(1)
        return y, {"kv": every[rows, source], "count": state["count"] + n}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        position = state["count"].unsqueeze(1)
        slots = torch.arange(self.window, device=x.device)
        q = self.attention.append(x.unsqueeze(1), state["kv"], position.remainder(self.window))
        held = position - (position - slots).remainder(self.window)
        y = self._attend(q, state["kv"], position, held)
        return y[:, 0], {**state, "count": state["count"] + 1}

    def _attend(self, q: Tensor, kv: Tensor, position: Tensor, there: Tensor) -> Tensor:
        distance = position.unsqueeze(2) - there.unsqueeze(1)  # (B, Q, S)
        seen = (there >= 0).unsqueeze(1) & (distance >= 0) & (distance < self.window)
        table = waves(self.window - 1, 0, self.width, self.bias)
        return self.attention.over(q, kv, self.bias, table, self.window - 1 - distance, seen)

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        kv = self.attention.new_cache(rows, self.window)
        return {"kv": kv, "count": torch.zeros(rows, dtype=torch.int64, device=kv.device)}
