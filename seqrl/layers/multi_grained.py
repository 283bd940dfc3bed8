"""Blocks of Decision Mamba (Lv et al. 2024, arXiv 2406.05427): one mixer over tokens (coarse), one
over steps (fine).

    h = RMSNorm(x);   g_t = W [h at the three tokens up to s_t];   x <- x + S6(h) + LN(S6(g))

``fusion="shared_gate"`` (the paper's figure): one gate and one output projection for both branches,
``x <- x + W_out((y_coarse + y_fine) SiLU(z))``.

The summary g_t holds (a_{t-1}, R_t, s_t), zeros for the action before the first step, and is added
at the tokens R_t, s_t, a_t. So the state token sees nothing after itself; the return token sees its
own step's state, which no head reads. The released code groups (R_t, s_t, a_t) and hands token p
the summary of step p modulo K: state tokens then see later actions while training.

Shapes: B rows, L tokens (three a step: return, state, action; the last may be missing), K steps,
D width, E inner channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.layers.mixer import Readers, take_tokens
from seqrl.layers.s6 import S6
from seqrl.layers.stack import RMSNorm
from seqrl.layers.state import select_rows
from seqrl.layers.token_memory import MixerMemory, NewTokens, TokenModel

PERIOD = 3
Fusion = Literal["dual", "shared_gate"]


class MultiGrainedBlock(nn.Module):
    """See the module's docstring. State: those of the mixers, and what the fine branch added at
    the newest step (``last``), since the action token comes one call later.

    Args:
        width: D.
        fusion: two complete mixers and a LayerNorm, or one gate for both.
        options: of :class:`S6`.
    """

    def __init__(self, width: int, fusion: Fusion = "dual", **options: Any):
        super().__init__()
        self.norm = RMSNorm(width)
        self.coarse = S6(width, **options)
        self.group = nn.Linear(PERIOD * width, width)
        self.fine = S6(width, gated=fusion == "dual", **options)
        self.fine_norm = nn.LayerNorm(width) if fusion == "dual" else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, L, D]`` to ``[B, L, D]``.

        Args:
            mask: ``[B, L]``, False at padding (whole steps) before the first real token.
        """
        h = self.norm(x)
        h = h if mask is None else h * mask.unsqueeze(-1)
        steps = (x.shape[1] + 1) // PERIOD
        before = F.pad(h[:, : PERIOD * steps - 1], (0, 0, 1, 0))  # one token later, zeros first
        g = self.group(before.view(x.shape[0], steps, -1))
        fine, _ = self._fine(g, None, None if mask is None else mask[:, 1::PERIOD])
        fine = fine.repeat_interleave(PERIOD, 1)[:, : x.shape[1]]
        return x + self._joined(h, fine, None, mask)[0]

    def extend(self, x: Tensor, state: dict[str, Any], first: Tensor) -> tuple[Tensor, Any]:
        """The three tokens ``x [B, 3, D]`` that came since the last call: a_{t-1}, R_t, s_t.

        Args:
            state: from :meth:`initial_state` or the last call.
            first: ``[B]`` bool, rows without an action before; its output means nothing.
        """
        keep = torch.ones_like(x[:, :, 0])
        keep[:, 0] = (~first).to(x.dtype)
        h = self.norm(x) * keep.unsqueeze(-1)
        g = self.group(h.flatten(1)).unsqueeze(1)
        fine, fine_state = self._fine(g, state["fine"], None)
        added = torch.cat([state["last"].unsqueeze(1), fine, fine], 1)
        y, coarse_state = self._joined(h, added, state["coarse"], keep)
        return x + y, {"coarse": coarse_state, "fine": fine_state, "last": fine[:, 0]}

    def initial_state(self, rows: int) -> dict[str, Any]:
        """The state before the first step."""
        width = self.coarse.D if self.fine_norm is None else self.norm.weight
        return {
            "coarse": self.coarse.initial_state(rows),
            "fine": self.fine.initial_state(rows),
            "last": width.new_zeros(rows, len(width)),
        }

    def _fine(self, g: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, Any]:
        """What the fine branch adds at the tokens of each step ``g [B, K, D]``."""
        if self.fine_norm is None:
            return self.fine.inner(self.fine.in_proj(g), state, mask)
        y, state = self.fine(g, state, mask)
        return self.fine_norm(y), state

    def _joined(
        self, h: Tensor, fine: Tensor, state: Any, mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Both branches together; ``fine [B, L, D]`` (dual) or ``[B, L, E]``."""
        if self.fine_norm is not None:
            y, state = self.coarse(h, state, mask)
            return y + fine, state
        u, z = self.coarse.in_proj(h).chunk(2, -1)
        y, state = self.coarse.inner(u, state, mask)
        return self.coarse.out_proj((y + fine) * F.silu(z)), state


class MultiGrainedStack(nn.Module):
    """Blocks one above the other and a final RMSNorm; its state is a list, one entry a block."""

    def __init__(self, blocks: Iterable[MultiGrainedBlock], width: int):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        """Whole windows ``[B, L, D]``; see :meth:`MultiGrainedBlock.forward`."""
        for block in self._blocks():
            x = block(x, mask)
        return self.norm(x), None

    def read(self, x: Tensor, readers: Readers) -> Tensor:
        """Hidden states ``[B, Q, D]`` of some tokens; every stack has this."""
        return take_tokens(self(x)[0], readers)

    def extend(self, x: Tensor, state: list[Any], first: Tensor) -> tuple[Tensor, list[Any]]:
        """One step ``[B, 3, D]``; see :meth:`MultiGrainedBlock.extend`."""
        after = []
        for block, own in zip(self._blocks(), state, strict=True):
            x, new = block.extend(x, own, first)
            after.append(new)
        return self.norm(x), after

    def initial_state(self, rows: int) -> list[Any]:
        """States before the first step."""
        return [b.initial_state(rows) for b in self._blocks()]

    def reset(self, state: list[Any], rows: Tensor) -> list[Any]:
        """The states with some rows made fresh."""
        fresh: list[Any] = select_rows(rows, self.initial_state(int(rows.shape[0])), state)
        return fresh

    def _blocks(self) -> list[MultiGrainedBlock]:
        return list(self.blocks)  # type: ignore[arg-type]


class MultiGrainedMemory(MixerMemory):
    """As its base, for a stack that takes a step's tokens together."""

    def _carried(
        self, model: TokenModel, stack: Any, state: dict[str, Any], place: Tensor, new: NewTokens
    ) -> Tensor:
        x, _ = self.arrived(model, place, new)
        y, state["mixers"] = stack.extend(x, state["mixers"], new.first)
        return y[:, -1]
