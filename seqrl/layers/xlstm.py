"""Stacks of xLSTM blocks (Beck et al. 2024, arXiv 2405.04517, as arranged by the released code).

    mLSTM block:  x <- x + mLSTM(norm(x))
    sLSTM block:  x <- x + sLSTM(norm(x));  x <- x + FFN(norm(x))
                  FFN(x) = W_2 (GELU(g) p),  [g; p] = W_1 x

and one more norm after the last block. Norms have a scale stored as its difference from 1 and no
bias; no linear map outside the gates has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.mlstm import MLSTM
from seqrl.layers.slstm import SLSTM
from seqrl.layers.stack import MixerBlock, MixerStack


class ScaleNorm(nn.Module):
    """LayerNorm without bias and with scale ``1 + weight``."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], 1 + self.weight, eps=self.eps)


class GatedMLP(nn.Module):
    """``W_2 (GELU(g) p)`` with ``[g; p] = W_1 x``; inner width 1.3 D rounded up to 64s.

    Args:
        width: D.
        layers: blocks of the stack, which decide how small ``W_2`` starts.
        factor: inner width over D.
    """

    def __init__(self, width: int, layers: int = 1, factor: float = 1.3):
        super().__init__()
        inner = 64 * math.ceil(factor * width / 64)
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        nn.init.normal_(self.up.weight, std=math.sqrt(2 / (5 * width)))
        nn.init.normal_(self.down.weight, std=2 / (layers * math.sqrt(width)))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.gelu(gate) * value)


def xlstm_stack(
    width: int,
    layers: int,
    heads: int = 4,
    slstm_at: Sequence[int] = (),
    dropout: float = 0.0,
    bias: str = "powerlaw",
) -> MixerStack:
    """Blocks of mLSTM, and of sLSTM where asked.

    Args:
        width: D.
        layers: number of blocks.
        heads: of every block.
        slstm_at: numbers of the sLSTM blocks, from 0.
        dropout: on what is added to the residual.
        bias: first forget biases of the sLSTM blocks, ``powerlaw`` or ``small``.

    Raises:
        SeqrlError: a block number that does not exist.
    """
    if outside := sorted(i for i in set(slstm_at) if not 0 <= i < layers):
        raise SeqrlError(
            f"sLSTM at block {outside[0]}, the blocks are 0 to {layers - 1}",
            hint="--agent.slstm-at 1",
        )
    blocks = []
    for i in range(layers):
        if i in slstm_at:
            cell = SLSTM(width, heads, layer=i, layers=layers, bias=bias)
            mlp = GatedMLP(width, layers)
            blocks.append(MixerBlock(cell, ScaleNorm, width, mlp, dropout))
        else:
            mixer = MLSTM(width, heads, layers=layers)
            blocks.append(MixerBlock(mixer, ScaleNorm, width, None, dropout))
    return MixerStack(blocks, ScaleNorm(width))
