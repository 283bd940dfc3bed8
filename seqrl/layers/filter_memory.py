"""Acting memory of Decision ConvFormer: stacks of filters alone take a step's tokens at once.

Shapes: n environment rows, m tokens of a step, D width, L taps of a filter.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqrl.layers.conv import ThreeFilterConv
from seqrl.layers.stack import MixerStack
from seqrl.layers.token_memory import MixerMemory, NewTokens, TokenModel


class FilterMemory(MixerMemory):
    """As :class:`MixerMemory`, but in a stack of filters alone a step's tokens go through each
    block at once; ``mixers`` is then each block's last L - 1 inputs ``[n, L-1, D]``.

    Args:
        stack: decides which of the two ways is taken.
        sizes: context, period, reader and width, as :class:`TokenMemory` takes them.
        cacheable: False where all tokens of a window change at every step.
    """

    def __init__(self, stack: MixerStack, sizes: tuple[int, int, int, int], cacheable: bool = True):
        super().__init__(*sizes, cacheable)
        self.filters = all(isinstance(b.mixer, ThreeFilterConv) for b in stack.blocks)

    def initial_state(self, stack: MixerStack, n: int, rule: str) -> dict[str, Any]:
        state = super().initial_state(stack, n, rule)
        if self.filters and "mixers" in state:
            state["mixers"] = [s["past"] for s in state["mixers"]]
        return state

    def reset(self, stack: MixerStack, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        if not self.filters or "mixers" not in state:
            return super().reset(stack, state, rows)
        past = [x.masked_fill(rows[:, None, None], 0) for x in state["mixers"]]
        return {**state, "count": state["count"].masked_fill(rows, 0), "mixers": past}

    def _carried(
        self, model: TokenModel, stack: Any, state: dict[str, Any], place: Tensor, new: NewTokens
    ) -> Tensor:
        if not self.filters:
            return super()._carried(model, stack, state, place, new)
        x, _ = self.arrived(model, place, new)
        # Before a first step there was no action: the filters see nothing in its place.
        real = None if self.ended else ~(new.first.unsqueeze(1) & (self.offsets < 0)).unsqueeze(2)
        y, state["mixers"] = self._filtered(stack, x, real, state["mixers"])
        return y

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
