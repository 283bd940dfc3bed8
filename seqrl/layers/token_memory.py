"""Acting memory of agents whose steps are m tokens, the last of them the action.

One environment step hands over the tokens up to the state and, belated, the previous action's; what
is wanted is the hidden state at the newest state token. Rules beyond the training window of K
steps:

=====================  ===========================================================================
rule                   what is remembered
=====================  ===========================================================================
``recompute``          the last K steps, encoded anew: exactly what training saw. While the episode
                       is younger than K, the same values come from a cache or a carried state
``stream``             a recurrent state without limit; for attention a cache of the last K steps
                       (its entries were computed when older steps were still in sight, so it is
                       another function than ``recompute``)
``stream:window+first``  attention only: the first step and the last K - 1
``stream:tova``        attention only: the tokens each layer still looks at, K steps' worth
``refill``             attention only: up to K steps; when full, emptied and re-encoded from the
                       last K/2
=====================  ===========================================================================

Shapes: n environment rows, K steps, m tokens of a step, D width, C = K * m cache slots.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from seqrl.layers.attention import Ring, ring
from seqrl.layers.stack import MixerStack
from seqrl.layers.state import exporting, select_rows
from seqrl.layers.transformer import Transformer

RULES = ("recompute", "stream", "refill", "stream:window+first", "stream:tova")
"""Of a stack of attention alone; any other stack has the first two."""

_BLOCK = 512
"""Keys that torch's fused attention on CPUs takes in at a time."""


class TokenModel(Protocol):
    """What the memory asks of its agent."""

    def finish_tokens(self, x: Tensor, position: Tensor, timestep: Tensor) -> Tensor:
        """Add what depends on a token's place in the window, then normalise.

        Args:
            x: ``[n, L, D]``.
            position: ``[L]`` or ``[n, L]`` places in the window (in the episode for ``stream``);
                negative for the missing action before a first step.
            timestep: ``[n]`` the newest step's number in its episode.
        """


class TokenMemory(nn.Module):
    """Base of the two memories; without parameters.

    Args:
        context: K.
        period: m.
        reader: place of the state among the tokens of a step.
        width: D.
        cacheable: False where all tokens of a window change at every step.
    """

    rules: tuple[str, ...] = ("recompute", "stream")
    offsets: Tensor
    places: Tensor

    def __init__(self, context: int, period: int, reader: int, width: int, cacheable: bool = True):
        super().__init__()
        self.context, self.period, self.reader = context, period, reader
        self.width, self.cacheable = width, cacheable
        self.register_buffer("offsets", torch.arange(-1, period - 1), persistent=False)
        self.register_buffer("places", torch.arange(period * context), persistent=False)

    def initial_state(self, stack: Any, n: int, rule: str) -> dict[str, Any]:
        """Acting state of ``n`` fresh rows."""
        weight = next(stack.parameters())
        state: dict[str, Any] = {"count": torch.zeros(n, dtype=torch.int64, device=weight.device)}
        if not rule.startswith("stream"):
            state["window"] = weight.new_zeros(n, self.context, self.period, self.width)
        return state

    def reset(self, stack: Any, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        """The state with the rows set in ``rows [n] bool`` made fresh."""
        raise NotImplementedError

    def advance(
        self,
        model: TokenModel,
        stack: Any,
        state: dict[str, Any],
        rule: str,
        tokens: Tensor,
        action: Tensor,
        timestep: Tensor,
        first: Tensor,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Take in one step of every row.

        Args:
            tokens: ``[n, m-1, D]`` this step's, up to the state.
            action: ``[n, D]`` the previous step's action token.
            timestep: ``[n]``.
            first: ``[n]`` bool, rows whose episode begins (their action is no token).

        Returns:
            Hidden state ``[n, D]`` of the newest state token, and the state.
        """
        raise NotImplementedError

    def push(self, state: dict[str, Any], tokens: Tensor, action: Tensor) -> Tensor:
        """The window with the last action completed and the new step's tokens appended."""
        window, count = state["window"], state["count"]
        n, k, m, _ = window.shape
        rows = torch.arange(n, device=count.device)
        full = count >= k
        window = torch.where(full[:, None, None, None], window.roll(-1, 1), window)
        place = count.clamp(max=k - 1)
        before = (place - 1).clamp(min=0)
        # A first step has no action before it; slot 0's action is written again one step later.
        window[rows, before, m - 1] = action
        window[rows, place, : m - 1] = tokens
        return window

    def reencode(
        self, model: TokenModel, stack: Any, window: Tensor, count: Tensor, timestep: Tensor
    ) -> Tensor:
        """Hidden state ``[n, D]`` of the newest state token from the whole window's tokens."""
        n, k, m, d = window.shape
        x = window.reshape(n, k * m, d)[:, :-1]
        x = model.finish_tokens(x, self.places[:-1], timestep)
        newest = count.clamp(max=k - 1) * m + self.reader
        if isinstance(stack, Transformer):
            return stack(x, newest.unsqueeze(-1))[:, 0]
        y, _ = stack(x)
        return y.gather(1, newest[:, None, None].expand(n, 1, d))[:, 0]


class AttentionMemory(TokenMemory):
    """Memory of a :class:`Transformer`: window of tokens and/or key-value caches.

    State: ``count [n]`` steps taken; ``window [n, K, m, D]`` tokens of the last K steps (before
    ``finish_tokens``); ``caches`` one a block; ``filled [n]`` steps the cache holds; for ``tova``
    ``places`` and ``scores [n, layers, C]``.
    """

    rules = RULES

    def initial_state(self, stack: Transformer, n: int, rule: str) -> dict[str, Any]:
        state = super().initial_state(stack, n, rule)
        if self.cacheable:
            slots = self.period * self.context
            state["caches"] = stack.new_caches(n, slots)
            state["filled"] = torch.zeros_like(state["count"])
            if rule == "stream:tova":
                shape = (n, len(stack.blocks), slots)
                state["places"] = state["count"].new_full(shape, -1)
                state["scores"] = state["caches"][0].new_full(shape, -1.0)
        return state

    def reset(self, stack: Transformer, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        # What lies beyond the counts is never read, so forgetting is setting them to zero.
        fresh = {k: v.masked_fill(rows, 0) for k, v in state.items() if k in ("count", "filled")}
        for name in ("places", "scores"):
            if name in state:
                fresh[name] = state[name].masked_fill(rows[:, None, None], -1)
        return {**state, **fresh}

    def advance(
        self,
        model: TokenModel,
        stack: Transformer,
        state: dict[str, Any],
        rule: str,
        tokens: Tensor,
        action: Tensor,
        timestep: Tensor,
        first: Tensor,
    ) -> tuple[Tensor, dict[str, Any]]:
        count = state["count"]
        state = dict(state)
        if "window" in state:
            state["window"] = self.push(state, tokens, action)
        if not self.cacheable:
            hidden = self.reencode(model, stack, state["window"], count, timestep)
        elif rule == "recompute":
            hidden = self._cached_then_reencoded(model, stack, state, tokens, action, timestep)
        elif rule == "refill":
            hidden = self._refilled(model, stack, state, tokens, action, timestep)
        else:
            kept = self.period if rule == "stream:window+first" else 0
            place = state["filled"]
            hidden = self._cached(model, stack, state, tokens, action, place, timestep, kept)
            state["filled"] = place + 1
        state["count"] = count + 1
        return hidden, state

    def _cached(
        self,
        model: TokenModel,
        stack: Transformer,
        state: dict[str, Any],
        tokens: Tensor,
        action: Tensor,
        place: Tensor,
        timestep: Tensor,
        kept: int = 0,
    ) -> Tensor:
        """Hidden state ``[n, D]`` of the newest state token over the cache.

        ``place [n]`` is the step's number in the cache's own counting, ``kept`` the number of
        tokens that are never given up.
        """
        k, m = self.context, self.period
        position = place.unsqueeze(1) * m + self.offsets
        x = torch.cat([action.unsqueeze(1), tokens], 1)  # (n, m, D)
        x = model.finish_tokens(x, position, timestep)
        if "places" in state:
            return stack.extend_scored(
                x, state["caches"], state["places"], state["scores"], position
            )
        oldest = ((place - k + 1) * m + kept).clamp(min=0).unsqueeze(1)
        where, caches = ring(position, k * m, oldest, kept), state["caches"]
        if k * m > _BLOCK and not exporting():
            # Leave out blocks that no row has reached. The fused kernel sums block by block, so
            # blocks that are masked throughout change no bit: rows stay independent.
            used = min((int(position.max()) // _BLOCK + 1) * _BLOCK, k * m)
            caches = [c[:, :used] for c in caches]
            # A missing action's slot is any that its row does not use.
            where = Ring(where.slots.clamp(max=used - 1), where.mask[..., :used])
        return stack.extend(x, caches, where, position)

    def _cached_then_reencoded(
        self,
        model: TokenModel,
        stack: Transformer,
        state: dict[str, Any],
        tokens: Tensor,
        action: Tensor,
        timestep: Tensor,
    ) -> Tensor:
        """Rule ``recompute``: equal to re-encoding the last K steps, from the cache while t < K.

        Each row's path depends on its own age alone, so its result does not depend on the others.
        """
        count, k = state["count"], self.context
        young = count < k
        if not bool(young.any()):
            return self.reencode(model, stack, state["window"], count, timestep)
        place = count.clamp(max=k - 1)
        cached = self._cached(model, stack, state, tokens, action, place, timestep)
        if bool(young.all()):
            return cached
        old = self.reencode(model, stack, state["window"], count, timestep)
        return torch.where(young.unsqueeze(1), cached, old)

    def _refilled(
        self,
        model: TokenModel,
        stack: Transformer,
        state: dict[str, Any],
        tokens: Tensor,
        action: Tensor,
        timestep: Tensor,
    ) -> Tensor:
        """Rule ``refill``: a cache of up to K steps, re-encoded from the last K/2 when full."""
        k, m = self.context, self.period
        keep = max(k // 2, 1)
        full = state["filled"] >= k
        if bool(full.any()):
            # All but the newest step go back in; the newest follows like any other.
            steps = state["window"][:, k - keep : k - 1]
            if keep > 1:
                x = steps.reshape(len(full), (keep - 1) * m, -1)
                x = model.finish_tokens(x, self.places[: x.shape[1]], timestep)
                stack.prefill(x, state["caches"], full)
            state["filled"] = torch.where(full, keep - 1, state["filled"])
        hidden = self._cached(model, stack, state, tokens, action, state["filled"], timestep)
        state["filled"] = state["filled"] + 1
        return hidden


class MixerMemory(TokenMemory):
    """Memory of a :class:`MixerStack`: window of tokens and/or the mixers' carried states.

    State: ``count [n]``; ``window [n, K, m, D]`` (``recompute``); ``mixers`` (where cacheable).
    """

    def initial_state(self, stack: MixerStack, n: int, rule: str) -> dict[str, Any]:
        state = super().initial_state(stack, n, rule)
        if self.cacheable:
            state["mixers"] = stack.initial_state(n)
        return state

    def reset(self, stack: MixerStack, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        # A window beyond its count is never read.
        fresh: dict[str, Any] = {"count": state["count"].masked_fill(rows, 0)}
        if "mixers" in state:
            fresh["mixers"] = stack.reset(state["mixers"], rows)
        return {**state, **fresh}

    def advance(
        self,
        model: TokenModel,
        stack: MixerStack,
        state: dict[str, Any],
        rule: str,
        tokens: Tensor,
        action: Tensor,
        timestep: Tensor,
        first: Tensor,
    ) -> tuple[Tensor, dict[str, Any]]:
        count, k = state["count"], self.context
        after = {**state, "count": count + 1}
        if rule == "stream":
            hidden, after["mixers"] = self._carried(
                model, stack, state, tokens, action, timestep, first
            )
            return hidden, after
        after["window"] = window = self.push(state, tokens, action)
        young = count < k
        if not self.cacheable or not bool(young.any()):
            return self.reencode(model, stack, window, count, timestep), after
        carried, after["mixers"] = self._carried(
            model, stack, state, tokens, action, timestep, first
        )
        if bool(young.all()):
            return carried, after
        old = self.reencode(model, stack, window, count, timestep)
        return torch.where(young.unsqueeze(1), carried, old), after

    def _carried(
        self,
        model: TokenModel,
        stack: MixerStack,
        state: dict[str, Any],
        tokens: Tensor,
        action: Tensor,
        timestep: Tensor,
        first: Tensor,
    ) -> tuple[Tensor, Any]:
        """Step token by token: the last action, then this step's tokens."""
        position = state["count"].unsqueeze(1) * self.period + self.offsets
        x = torch.cat([action.unsqueeze(1), tokens], 1)
        x = model.finish_tokens(x, position, timestep)
        y, mixers = stack.step(x[:, 0], state["mixers"])
        # Before a first step there was no action: forget that token where it was none.
        if exporting():
            mixers = select_rows(first, stack.initial_state(x.shape[0]), mixers)
        elif bool(first.any()):
            mixers = stack.reset(mixers, first)
        for i in range(1, x.shape[1]):
            y, mixers = stack.step(x[:, i], mixers)
        return y, mixers
