"""A stack of residual blocks around mixers: any mixer at any layer, one state for all.

::

    x <- x + dropout(mixer(norm(x)));   x <- x + dropout(mlp(norm(x)))  where the block has an MLP
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.layers.dropout import add_dropped
from seqrl.layers.mixer import Mixer, Readers, take_tokens


class MLP(nn.Module):
    """Linear D -> H, activation, Linear H -> D."""

    def __init__(self, width: int, hidden: int, activation: str = "gelu"):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.activation: Callable[[Tensor], Tensor] = F.relu if activation == "relu" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class MixerBlock(nn.Module):
    """One layer: a mixer and, unless None, a token-wise network, both pre-norm and residual.

    Args:
        mixer: mixes over time.
        norm: makes a normalisation layer for the width.
        width: D.
        mlp: token-wise network ``[..., D] -> [..., D]``; None leaves it out.
        dropout: on what is added to the residual.
    """

    def __init__(
        self,
        mixer: Mixer,
        norm: Callable[[int], nn.Module],
        width: int,
        mlp: nn.Module | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.norm1 = norm(width)
        self.mixer = mixer
        self.norm2 = norm(width) if mlp is not None else None
        self.mlp = mlp
        self.dropout = dropout

    def forward(
        self, x: Tensor, state: Any = None, readers: Readers | None = None
    ) -> tuple[Tensor, Any]:
        """``[B, L, D]`` to ``[B, L, D]``, or to the tokens ``readers`` alone ``[B, Q, D]``, and the
        state after all tokens (None for None)."""
        if readers is None:
            y, state = self.mixer(self.norm1(x), state)
        else:
            y, state = self.mixer.read(self.norm1(x), readers, state)
            x = take_tokens(x, readers)
        return self._rest(add_dropped(x, y, self.dropout, self.training)), state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token ``[B, D]``."""
        y, state = self.mixer.step(self.norm1(x), state)
        return self._rest(add_dropped(x, y, self.dropout, self.training)), state

    def _rest(self, x: Tensor) -> Tensor:
        if self.mlp is None or self.norm2 is None:
            return x
        return add_dropped(x, self.mlp(self.norm2(x)), self.dropout, self.training)


class MixerStack(nn.Module):
    """Blocks one above the other and a final norm; its state is a list, one entry a block."""

    def __init__(self, blocks: Iterable[MixerBlock], norm: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(
        self, x: Tensor, state: Sequence[Any] | None = None, readers: Readers | None = None
    ) -> tuple[Tensor, Any]:
        """Hidden states of a whole sequence, or of its next piece.

        Args:
            x: ``[B, L, D]``.
            state: from :meth:`initial_state` or the last call; None for a fresh start.
            readers: tokens wanted; None means all. The last block computes for them alone what
                lies behind its mixer, since nothing else looks at it.

        Returns:
            ``[B, L, D]`` or ``[B, Q, D]``, and the states after all tokens (None for None).
        """
        after: list[Any] = []
        last = len(self.blocks) - 1
        for i, block in enumerate(self._blocks()):
            own = None if state is None else state[i]
            x, own = block(x, own, readers if i == last else None)
            after.append(own)
        return self.norm(x), None if state is None else after

    def read(self, x: Tensor, readers: Readers) -> Tensor:
        """Hidden states ``[B, Q, D]`` of some tokens; every stack has this."""
        hidden: Tensor = self(x, None, readers)[0]
        return hidden

    def step(self, x: Tensor, state: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        """One token ``[B, D]``."""
        after = []
        for block, s in zip(self._blocks(), state, strict=True):
            x, new = block.step(x, s)
            after.append(new)
        return self.norm(x), after

    def initial_state(self, rows: int) -> list[Any]:
        """States before the first token."""
        return [b.mixer.initial_state(rows) for b in self._blocks()]

    def reset(self, state: Sequence[Any], rows: Tensor) -> list[Any]:
        """The states with some rows made fresh."""
        return [b.mixer.reset(s, rows) for b, s in zip(self._blocks(), state, strict=True)]

    @property
    def unlimited(self) -> bool:
        """Whether no layer forgets by a window."""
        return all(b.mixer.unlimited for b in self._blocks())

    def _blocks(self) -> list[MixerBlock]:
        return list(self.blocks)  # type: ignore[arg-type]


def residual_stack(
    mixers: Sequence[Mixer], width: int, activation: str = "gelu", dropout: float = 0.0
) -> MixerStack:
    """GPT-2 blocks with these mixers: LayerNorm, mixer, LayerNorm, MLP D -> 4D -> D.

    MLP weights start as N(0, 0.02), biases at 0; mixers keep their own start.
    """
    blocks = []
    for mixer in mixers:
        mlp = MLP(width, 4 * width, activation)
        for part in (mlp.up, mlp.down):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
        blocks.append(MixerBlock(mixer, nn.LayerNorm, width, mlp, dropout))
    return MixerStack(blocks, nn.LayerNorm(width))


class RMSNorm(nn.Module):
    """``w * x / sqrt(mean(x^2) + eps)`` over the last axis, computed in float32 or wider."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


def grouped_parameters(module: nn.Module) -> list[dict[str, Any]]:
    """Optimiser groups of a model with mixers: each mixer's special ones, then all others.

    Every trained parameter is in exactly one group.
    """
    special: list[dict[str, Any]] = []
    taken: set[int] = set()
    for part in module.modules():
        if not isinstance(part, Mixer):
            continue
        for group in part.parameter_groups():
            fresh = [p for p in group["params"] if p.requires_grad and id(p) not in taken]
            taken |= {id(p) for p in fresh}
            if fresh:
                special.append({**group, "params": fresh})
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    return [{"params": rest}, *special] if rest else special


def decay_by_kind(module: nn.Module, *kinds: type[nn.Module]) -> list[dict[str, Any]]:
    """Optimiser groups: decay on the ``weight`` of layers of these kinds alone.

    What mixers ask for their own parameters stays as they ask.
    """
    decayed = {id(m.weight) for m in module.modules() if isinstance(m, kinds)}
    rest, *special = grouped_parameters(module)  # no model here is mixers alone
    return [
        {"params": [p for p in rest["params"] if id(p) in decayed]},
        {"params": [p for p in rest["params"] if id(p) not in decayed], "weight_decay": 0.0},
        *special,
    ]
