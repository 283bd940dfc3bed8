"""What agents that learn in context share: action features, places, causal layers.

Shapes: B rows, L tokens, D width, A action features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.mixer import Place, Readers, build_mixers, take_tokens
from seqrl.layers.stack import MixerStack, residual_stack
from seqrl.layers.token_memory import AttentionMemory, MixerMemory, TokenMemory
from seqrl.layers.transformer import Transformer
from seqrl.spec import ActionSpec

Positions = Literal["learned", "relative", "none"]


def action_features(spec: ActionSpec, actions: Tensor) -> Tensor:
    """Actions as numbers ``[..., A]``: one-hot where discrete, as they are where continuous.

    >>> spec = ActionSpec("discrete", (), nvec=(3,))
    >>> action_features(spec, torch.tensor([2])).tolist()
    [[0.0, 0.0, 1.0]]
    """
    return F.one_hot(actions, spec.n).float() if spec.kind == "discrete" else actions


def count_action_features(spec: ActionSpec) -> int:
    """A of :func:`action_features`."""
    return spec.n if spec.kind == "discrete" else spec.size


class ContextModel(nn.Module):
    """Causal layers over tokens, each with a learned vector for its place (or none).

    Args:
        width: D.
        length: most tokens L of a sequence.
        n_layer: blocks.
        n_head: attention heads.
        mixer: what mixes tokens, one name for all blocks or one a block.
        attention: ``relu`` builds the blocks of :class:`ReluStack` instead.
        positions: learned table, rotation by distance, or nothing.
        dropout: within blocks and on the tokens.
        attn_dropout: on attention weights.
        init: how the linear layers of attention blocks start: N(0, 0.02) of ``gpt2`` is little at
            small widths; ``torch`` is uniform in 1/sqrt(inputs).
    """

    stack: Transformer | MixerStack | ReluStack

    def __init__(
        self,
        width: int,
        length: int,
        n_layer: int,
        n_head: int,
        mixer: Sequence[str] = ("attention",),
        attention: Literal["softmax", "relu"] = "softmax",
        positions: Positions = "learned",
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        init: Literal["torch", "gpt2"] = "torch",
    ):
        super().__init__()
        self.width, self.length, self.mixer = width, length, tuple(mixer)
        self.table = None
        if positions == "learned":
            self.table = nn.Parameter(0.02 * torch.randn(length, width))
        self.dropout = nn.Dropout(dropout)
        if attention == "relu":
            if n_head != 1:  # the theory's code takes a number of heads and ignores it
                raise SeqrlError(
                    f"ReLU attention has one head of full width, not {n_head}",
                    hint="--agent.n-head 1",
                )
            if any(name != "attention" for name in mixer) or positions == "relative":
                raise SeqrlError(
                    "ReLU attention stands alone, without other mixers or relative positions",
                    hint="--agent.attention softmax",
                )
            self.stack = ReluStack(width, n_layer)
        elif all(name == "attention" for name in mixer):
            relative = positions == "relative"
            self.stack = Transformer(
                width, n_layer, n_head, "gelu", dropout, attn_dropout, relative
            )
        else:
            place = Place(width=width, heads=n_head, window=length, period=1, dropout=attn_dropout)
            mixers = build_mixers(tuple(mixer), place, n_layer)
            self.stack = residual_stack(mixers, width, "gelu", dropout)

        if init == "torch" and isinstance(self.stack, Transformer):
            for module in self.stack.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()

    def finish(self, x: Tensor, position: Tensor) -> Tensor:
        """Tokens ``[B, L, D]`` with the vectors of their places ``[L]`` or ``[B, L]`` added.

        Places beyond the table are the last one's.
        """
        if self.table is not None:
            x = x + self.table[position.clamp(0, self.length - 1)]
        return self.dropout(x)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states of a whole sequence of tokens ``[B, L, D]`` not yet finished."""
        x = self.finish(x, torch.arange(x.shape[1], device=x.device))
        return self.stack.read(x, slice(None))

    def memory(self, width: int | None = None) -> TokenMemory:
        """Acting memory of one token a step; its tokens may be of another width until finished."""
        kind = AttentionMemory if isinstance(self.stack, Transformer) else MixerMemory
        return kind(self.length, 1, 0, width or self.width)


class ReluStack(nn.Module):
    """Blocks of averaging ReLU attention (Lin, Bai and Mei 2023, arXiv 2310.08566).

    ::

        y_i = 1/(i+1) sum_{j <= i} relu(q_i . k_j) v_j       one head of full width, no biases
        x <- LN(x + y);   x <- LN(x + W2 relu(W1 x))          both networks D -> D -> D
    """

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.blocks = nn.ModuleList(_ReluBlock(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, D]`` to ``[B, L, D]``."""
        for block in self.blocks:
            x = block(x)
        return x

    def read(self, x: Tensor, readers: Readers) -> Tensor:
        """Hidden states ``[B, Q, D]`` of some tokens."""
        return take_tokens(self(x), readers)


class _ReluBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = torch.relu(q @ k.transpose(1, 2)).tril()
        seen = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        x = self.norm1(x + weights @ v / seen.unsqueeze(-1))
        return self.norm2(x + self.down(torch.relu(self.up(x))))


def refuse_stream_of_relu(model: ContextModel) -> None:
    """Raise SeqrlError where there is no cache to stream with."""
    if isinstance(model.stack, ReluStack):
        raise SeqrlError("ReLU attention has no streaming form here", hint="use --acting recompute")


def roll_in(buffer: Tensor, count: Tensor, item: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Append one item a row, dropping the oldest where the buffer is full.

    Args:
        buffer: ``[n, C, F]``, valid up to ``count``.
        count: ``[n]``.
        item: ``[n, F]``.
        rows: ``[n]`` bool, the rows that get theirs.
    """
    capacity = buffer.shape[1]
    full = (count >= capacity) & rows
    buffer = torch.where(full[:, None, None], buffer.roll(-1, 1), buffer)
    place = count.clamp(max=capacity - 1)
    at = F.one_hot(place, capacity).bool() & rows[:, None]
    buffer = torch.where(at.unsqueeze(-1), item.unsqueeze(1), buffer)
    return buffer, torch.where(rows, (count + 1).clamp(max=capacity), count)


def pour(
    buffer: Tensor, count: Tensor, more: Tensor, extra: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Append the first ``extra [n]`` items of ``more [n, M, F]`` in some rows, keeping the newest.

    Returns:
        The buffer ``[n, C, F]`` and its counts, unchanged in the other rows.
    """
    capacity = buffer.shape[1]
    extra = extra * rows
    total = count + extra
    drop = (total - capacity).clamp(min=0)
    # Item k of the joined sequence stands in the buffer below `count`, in `more` above.
    k = torch.arange(capacity, device=count.device) + drop.unsqueeze(1)
    inside = k < count.unsqueeze(1)
    both = torch.cat([buffer, more], 1)
    source = torch.where(inside, k, k - count.unsqueeze(1) + capacity)
    source = source.clamp(max=both.shape[1] - 1)
    joined = both.gather(1, source.unsqueeze(-1).expand(-1, -1, both.shape[-1]))
    return torch.where(rows[:, None, None], joined, buffer), total.clamp(max=capacity)
