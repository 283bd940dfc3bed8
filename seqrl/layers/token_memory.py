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

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from seqrl.errors import SeqrlError
from seqrl.layers.attention import ring
from seqrl.layers.state import exporting, select_rows
from seqrl.layers.transformer import Transformer

RULES = ("recompute", "stream", "refill", "stream:window+first", "stream:tova")
"""Of a stack of attention alone; any other stack has the first two."""

_BLOCK = 512
"""Keys that torch's fused attention on CPUs takes in at a time."""


class NewTokens(NamedTuple):
    """One environment step of every row, as an agent hands it to its memory."""

    tokens: Tensor
    """``[n, m-1, D]`` this step's, up to the state; ``[n, m, D]`` where it ends a step."""
    action: Tensor
    """``[n, D]`` the previous step's action token; not looked at where a step ends with its state.
    """
    timestep: Tensor
    """``[n]``."""
    first: Tensor
    """``[n]`` bool, rows whose episode begins: their action is no token."""


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
    """Base of the memories; without parameters.

    A step may also end with its state (``reader`` is the last place): then no action comes belated.

    Args:
        context: K.
        period: m.
        reader: place of the state among the tokens of a step.
        width: D.
        cacheable: False where all tokens of a window change at every step.
    """

    rules: tuple[str, ...] = ("recompute", "stream")
    offsets: Tensor
    """``[m]`` places, from the step's first token on, of what comes with a step."""
    places: Tensor

    def __init__(self, context: int, period: int, reader: int, width: int, cacheable: bool = True):
        super().__init__()
        self.context, self.period, self.reader = context, period, reader
        self.width, self.cacheable = width, cacheable
        self.ended = reader == period - 1
        first = 0 if self.ended else -1
        self.register_buffer("offsets", torch.arange(first, first + period), persistent=False)
        self.register_buffer("places", torch.arange(period * context), persistent=False)

    def check_rule(self, rule: str, mixers: Sequence[str]) -> None:
        """Raise SeqrlError for a rule that stacks of these mixers cannot follow."""
        if rule not in self.rules:
            raise SeqrlError(
                f"rule '{rule}' needs attention in every layer, this agent has "
                f"mixer {' '.join(mixers)}",
                hint=f"its rules: {', '.join(self.rules)}",
            )

    def initial_state(self, stack: Any, n: int, rule: str) -> dict[str, Any]:
        """Acting state of ``n`` fresh rows."""
        weight = next(stack.parameters())
        state: dict[str, Any] = {"count": torch.zeros(n, dtype=torch.int64, device=weight.device)}
        if not rule.startswith("stream"):
            state["window"] = weight.new_zeros(n, self.context, self.period, self.width)
        return state

    def reset(self, stack: Any, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        """The state with the rows set in ``rows [n] bool`` made fresh."""
        # A window beyond its count is never read.
        return {**state, "count": state["count"].masked_fill(rows, 0)}

    def advance(
        self, model: TokenModel, stack: Any, state: dict[str, Any], rule: str, new: NewTokens
    ) -> tuple[Tensor, dict[str, Any]]:
        """Take in one step of every row.

        Returns:
            Hidden state ``[n, D]`` of the newest state token, and the state.
        """
        state = dict(state)
        if "window" in state:
            state["window"] = self.push(state, new)
        if rule == "recompute" or not self.cacheable:
            hidden = self._recomputed(model, stack, state, new)
        else:
            hidden = self._by_rule(model, stack, state, rule, new)
        state["count"] = state["count"] + 1
        return hidden, state

    def _by_rule(
        self, model: TokenModel, stack: Any, state: dict[str, Any], rule: str, new: NewTokens
    ) -> Tensor:
        """Hidden state ``[n, D]`` by a rule other than ``recompute``; may replace state entries."""
        raise NotImplementedError

    def _carried(
        self, model: TokenModel, stack: Any, state: dict[str, Any], place: Tensor, new: NewTokens
    ) -> Tensor:
        """Hidden state ``[n, D]`` from what is carried along; may replace state entries.

        Args:
            place: ``[n]`` the step's number in the window or in the episode.
        """
        raise NotImplementedError

    def _recomputed(
        self, model: TokenModel, stack: Any, state: dict[str, Any], new: NewTokens
    ) -> Tensor:
        """Equal to re-encoding the last K steps, from what is carried while t < K.

        Each row's path depends on its own age alone, so its result does not depend on the others.
        """
        count = state["count"]
        young = count < self.context
        if not self.cacheable or not bool(young.any()):
            return self.reencode(model, stack, state["window"], count, new.timestep)
        place = count.clamp(max=self.context - 1)
        carried = self._carried(model, stack, state, place, new)
        if bool(young.all()):
            return carried
        old = self.reencode(model, stack, state["window"], count, new.timestep)
        return torch.where(young.unsqueeze(1), carried, old)

    def arrived(self, model: TokenModel, place: Tensor, new: NewTokens) -> tuple[Tensor, Tensor]:
        """What came since the last step, in order and finished: ``[n, m, D]``, and its positions
        ``[n, m]``."""
        position = place.unsqueeze(1) * self.period + self.offsets
        x = new.tokens if self.ended else torch.cat([new.action.unsqueeze(1), new.tokens], 1)
        return model.finish_tokens(x, position, new.timestep), position

    def push(self, state: dict[str, Any], new: NewTokens) -> Tensor:
        """The window with the last action completed and the new step's tokens appended."""
        window, count, k = state["window"], state["count"], self.context
        rows = torch.arange(len(count), device=count.device)
        window = torch.where((count >= k)[:, None, None, None], window.roll(-1, 1), window)
        place = count.clamp(max=k - 1)
        if not self.ended:
            # A first step has no action before it; slot 0's is written again one step later.
            window[rows, (place - 1).clamp(min=0), self.period - 1] = new.action
        window[rows, place, : self.reader + 1] = new.tokens
        return window

    def reencode(
        self, model: TokenModel, stack: Any, window: Tensor, count: Tensor, timestep: Tensor
    ) -> Tensor:
        """Hidden state ``[n, D]`` of the newest state token from the whole window's tokens."""
        n, k, m, d = window.shape
        length = (k - 1) * m + self.reader + 1
        x = window.reshape(n, k * m, d)[:, :length]
        x = model.finish_tokens(x, self.places[:length], timestep)
        newest = count.clamp(max=k - 1) * m + self.reader
        hidden: Tensor = stack.read(x, newest.unsqueeze(-1))
        return hidden[:, 0]


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
        state = super().reset(stack, state, rows)
        if "filled" in state:
            state["filled"] = state["filled"].masked_fill(rows, 0)
        for name in ("places", "scores"):
            if name in state:
                state[name] = state[name].masked_fill(rows[:, None, None], -1)
        return state

    def _by_rule(
        self, model: TokenModel, stack: Any, state: dict[str, Any], rule: str, new: NewTokens
    ) -> Tensor:
        if rule == "refill":
            self._refill(model, stack, state, new.timestep)
        kept = self.period if rule == "stream:window+first" else 0
        place = state["filled"]
        state["filled"] = place + 1
        return self._carried(model, stack, state, place, new, kept)

    def _carried(
        self,
        model: TokenModel,
        stack: Transformer,
        state: dict[str, Any],
        place: Tensor,
        new: NewTokens,
        kept: int = 0,
    ) -> Tensor:
        """From the caches, in whose counting ``place`` is; ``kept`` tokens are never given up."""
        k, m = self.context, self.period
        x, position = self.arrived(model, place, new)
        if "places" in state:
            return stack.extend_scored(
                x, state["caches"], state["places"], state["scores"], position
            )
        oldest = ((place - k + 1) * m + kept).clamp(min=0).unsqueeze(1)
        if k * m <= _BLOCK or exporting():
            return stack.extend(x, state["caches"], ring(position, k * m, oldest, kept), position)
        # Leave out blocks that no row has reached. The fused kernel sums block by block, so blocks
        # that are masked throughout change no bit: rows stay independent.
        used = min((int(position.max()) // _BLOCK + 1) * _BLOCK, k * m)
        caches = [c[:, :used] for c in state["caches"]]
        where = ring(position, k * m, oldest, kept, used)
        # A missing action's slot is any that its row does not use.
        where = where._replace(slots=where.slots.clamp(max=used - 1))
        return stack.extend(x, caches, where, position)

    def _refill(
        self, model: TokenModel, stack: Transformer, state: dict[str, Any], timestep: Tensor
    ) -> None:
        """Empty full caches and fill them again from the last K/2 steps."""
        k, keep = self.context, max(self.context // 2, 1)
        full = state["filled"] >= k
        if not bool(full.any()):
            return
        # All but the newest step go back in; the newest follows like any other.
        if keep > 1:
            x = state["window"][:, k - keep : k - 1].flatten(1, 2)
            x = model.finish_tokens(x, self.places[: x.shape[1]], timestep)
            stack.prefill(x, state["caches"], full)
        state["filled"] = torch.where(full, keep - 1, state["filled"])


class MixerMemory(TokenMemory):
    """Memory of a :class:`MixerStack`: window of tokens and/or the mixers' carried states.

    State: ``count [n]``; ``window [n, K, m, D]`` (``recompute``); ``mixers`` (where cacheable).
    """

    def initial_state(self, stack: Any, n: int, rule: str) -> dict[str, Any]:
        state = super().initial_state(stack, n, rule)
        if self.cacheable:
            state["mixers"] = stack.initial_state(n)
        return state

    def reset(self, stack: Any, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        state = super().reset(stack, state, rows)
        if "mixers" in state:
            state["mixers"] = stack.reset(state["mixers"], rows)
        return state

    def _by_rule(
        self, model: TokenModel, stack: Any, state: dict[str, Any], rule: str, new: NewTokens
    ) -> Tensor:
        return self._carried(model, stack, state, state["count"], new)

    def _carried(
        self, model: TokenModel, stack: Any, state: dict[str, Any], place: Tensor, new: NewTokens
    ) -> Tensor:
        """Token by token: the last action, then this step's."""
        x, _ = self.arrived(model, place, new)
        tokens, mixers = x.unbind(1), state["mixers"]
        y, mixers = stack.step(tokens[0], mixers)
        # Before a first step there was no action: forget that token where it was none.
        if not self.ended and exporting():
            mixers = select_rows(new.first, stack.initial_state(x.shape[0]), mixers)
        elif not self.ended and bool(new.first.any()):
            mixers = stack.reset(mixers, new.first)
        for token in tokens[1:]:
            y, mixers = stack.step(token, mixers)
        state["mixers"] = mixers
        return y
