"""From observations, actions and returns to token vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqrl.errors import SeqrlError
from seqrl.spec import ActionSpec, ObservationSpec


class ImageEncoder(nn.Module):
    """Convolutions over an image ``[..., H, W, C]`` in [0, 1], then a linear layer to the width.

    From 36 pixels up these are the three layers of Mnih et al. 2015 (kernels 8, 4, 3; strides
    4, 2, 1; 32, 64, 64 channels); smaller images take 3x3 layers that keep their resolution.
    """

    def __init__(self, shape: tuple[int, ...], width: int):
        super().__init__()
        height, breadth, channels = shape
        if min(height, breadth) < 3:
            raise SeqrlError(f"images of {height}x{breadth} are too small to convolve")
        if min(height, breadth) >= 36:
            sizes = [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
        else:
            sizes = [(16, 3, 1), (32, 3, 1)]
        layers: list[nn.Module] = []
        for out, kernel, stride in sizes:
            padding = 1 if kernel == 3 and min(height, breadth) < 36 and len(sizes) == 2 else 0
            layers += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
            height = (height + 2 * padding - kernel) // stride + 1
            breadth = (breadth + 2 * padding - kernel) // stride + 1
            channels = out
        self.convolutions = nn.Sequential(*layers)
        self.out = nn.Linear(channels * height * breadth, width)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:]).permute(0, 3, 1, 2)
        return self.out(self.convolutions(x).flatten(1)).view(*lead, -1)


class ActionEmbedding(nn.Module):
    """Actions as vectors: a linear layer (continuous), a table (discrete), or a sum of tables."""

    def __init__(self, spec: ActionSpec, width: int):
        super().__init__()
        self.kind = spec.kind
        if spec.kind == "continuous":
            self.linear = nn.Linear(spec.size, width)
        self.tables = nn.ModuleList(nn.Embedding(k, width) for k in spec.nvec)

    def forward(self, actions: Tensor) -> Tensor:
        """``[..., A]`` float, ``[...]`` int64 or ``[..., A]`` int64 to ``[..., D]``."""
        if self.kind == "continuous":
            return self.linear(actions)
        columns = [actions] if self.kind == "discrete" else actions.unbind(-1)
        vectors = [table(c) for table, c in zip(self.tables, columns, strict=True)]
        return vectors[0] if len(vectors) == 1 else torch.stack(vectors).sum(0)


def observation_embedding(spec: ObservationSpec, width: int, bias: bool = True) -> nn.Module:
    """A linear layer for vectors ``[..., S]``, convolutions for images ``[..., H, W, C]``."""
    if spec.kind == "image":
        return ImageEncoder(spec.shape, width)
    return nn.Linear(spec.shape[0], width, bias=bias)
