"""Acting memory of Decision ConvFormer: steps ending with their state, stacks of filters alone.

Shapes: n environment rows, K steps of a window, m tokens of a step, D width, L taps of a filter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrl.layers.conv import ThreeFilterConv
from seqrl.layers.stack import MixerStack
from seqrl.layers.token_memory import MixerMemory, TokenModel


class FilterMemory(MixerMemory):
    """As :class:`MixerMemory`, with two additions.

    A step may end with its state (``reader`` is the last place): then no action comes belated, and
    what is given for one is not looked at. In a stack of filters alone a step's tokens go through
    each block at once; ``mixers`` is then each block's last L - 1 inputs ``[n, L-1, D]``.

    Args:
        stack: decides which of the two ways is taken.
        context: K.
        period: m.
        reader: place of the state among the tokens of a step.
        width: D.
        cacheable: False where all tokens of a window change at every step.
    """

    def __init__(
        self,
        stack: MixerStack,
        context: int,
        period: int,
        reader: int,
        width: int,
        cacheable: bool = True,
    ):
        super().__init__(context, period, reader, width, cacheable)
        self.ended = reader == period - 1
        self.filters = all(isinstance(b.mixer, ThreeFilterConv) for b in stack.blocks)

    def initial_state(self, stack: MixerStack, n: int, rule: str) -> dict[str, Any]:
        state = super().initial_state(stack, n, rule)
        if self.filters and "mixers" in state:
            state["mixers"] = [s["past"] for s in state["mixers"]]
        return state

    def reset(self, stack: MixerStack, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        if not self.filters or "mixers" not in state:
            return super().reset(stack, state, rows)
        fresh: dict[str, Any] = {"count": state["count"].masked_fill(rows, 0)}
        fresh["mixers"] = [past.masked_fill(rows[:, None, None], 0) for past in state["mixers"]]
        return {**state, **fresh}

    def push(self, state: dict[str, Any], tokens: Tensor, action: Tensor) -> Tensor:
        if not self.ended:
            return super().push(state, tokens, action)
        window, count, k = state["window"], state["count"], self.context
        window = torch.where((count >= k)[:, None, None, None], window.roll(-1, 1), window)
        window[torch.arange(len(count), device=count.device), count.clamp(max=k - 1)] = tokens
        return window

    def reencode(
        self, model: TokenModel, stack: Any, window: Tensor, count: Tensor, timestep: Tensor
    ) -> Tensor:
        if not self.ended:
            return super().reencode(model, stack, window, count, timestep)
        x = model.finish_tokens(window.flatten(1, 2), self.places, timestep)
        newest = count.clamp(max=self.context - 1) * self.period + self.reader
        y, _ = stack(x)
        out: Tensor = y[torch.arange(len(count), device=count.device), newest]
        return out

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
        if not (self.ended or self.filters):
            return super()._carried(model, stack, state, tokens, action, timestep, first)
        x = tokens if self.ended else torch.cat([action.unsqueeze(1), tokens], 1)
        offsets = self.offsets + 1 if self.ended else self.offsets
        position = state["count"].unsqueeze(1) * self.period + offsets
        x = model.finish_tokens(x, position, timestep)
        if self.filters:
            # Before a first step there was no action: the filters see nothing in its place.
            real = None if self.ended else ~(first.unsqueeze(1) & (offsets < 0)).unsqueeze(2)
            return self._filtered(stack, x, real, state["mixers"])
        y, mixers = x[:, 0], state["mixers"]
        for token in x.unbind(1):
            y, mixers = stack.step(token, mixers)
        return y, mixers

    def _filtered(
        self, stack: MixerStack, x: Tensor, real: Tensor | None, pasts: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens ``[n, m, D]`` through all blocks; the hidden state of the last one ``[n, D]``."""
        after: list[Tensor] = []
        blocks: list[Any] = list(stack.blocks)
        for block, past in zip(blocks, pasts, strict=True):
            seen = block.norm1(x)
            seen = seen if real is None else seen * real
            y, past = block.mixer.few(seen, past, 0 if self.ended else self.period - 1)
            after.append(past)
            # Of the last block nobody reads the others.
            x = x + y if len(after) < len(blocks) else x[:, -1] + y[:, -1]
            x = x + block.mlp(block.norm2(x))
        hidden: Tensor = stack.norm(x)
        return hidden, after
