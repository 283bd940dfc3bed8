"""Action heads and the losses that read them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.spec import ActionSpec, LossOut


class ActionHead(nn.Module):
    """Linear layer from the hidden state to an action prediction.

    Continuous actions with finite bounds get a tanh stretched to them (the identity for the
    usual [-1, 1]); unbounded ones stay linear. Discrete actions give logits.
    """

    low: Tensor
    span: Tensor

    def __init__(self, spec: ActionSpec, width: int, bias: bool = True):
        super().__init__()
        if spec.kind == "multidiscrete":
            raise SeqrlError(f"{spec.describe()} actions have no single head")
        self.squash = spec.bounded
        self.out = nn.Linear(width, spec.size if spec.kind == "continuous" else spec.n, bias=bias)
        low, high = torch.tensor(spec.low), torch.tensor(spec.high)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("span", high - low, persistent=False)
        self.unit = self.squash and all(
            math.isclose(a, -1) and math.isclose(b, 1)
            for a, b in zip(spec.low, spec.high, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to means ``[..., A]`` or logits ``[..., V]``."""
        y = self.out(x)
        if not self.squash:
            return y
        y = torch.tanh(y)
        return y if self.unit else self.low + (y + 1) * 0.5 * self.span


def masked_mean(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of ``values [B, T, ...]`` over the steps where ``mask [B, T]`` is set.

    The one place where losses meet padding: the divisor is the number of valid entries, never the
    number of positions.

    Returns:
        The mean (0 when nothing is valid) and the number of entries it averages over.
    """
    weight = mask.to(values.dtype).view(*mask.shape, *[1] * (values.dim() - mask.dim()))
    count = weight.sum() * (values.numel() / mask.numel())
    return (values * weight).sum() / count.clamp_min(1), count


def action_loss(
    spec: ActionSpec,
    prediction: Tensor,
    actions: Tensor,
    mask: Tensor,
    common: int | None = None,
) -> LossOut:
    """Squared error (continuous) or cross-entropy (discrete) of actions at valid steps.

    Args:
        prediction: ``[B, T, A]`` means or ``[B, T, V]`` logits.
        actions: ``[B, T, A]`` float32 or ``[B, T]`` int64.
        mask: ``[B, T]`` bool.
        common: the most frequent discrete action of the data. Where it dominates (walking
            straight on), the mean hides the decisions; ``rare_action_error`` leaves it out.

    Returns:
        Loss, count, and ``action_error`` (root mean squared error in action units, or the share
        of wrong choices).
    """
    prediction = prediction.float()
    if spec.kind == "continuous":
        loss, count = masked_mean((prediction - actions).square(), mask)
        return LossOut(loss, count, {"action_error": loss.detach().sqrt()})
    losses = F.cross_entropy(prediction.flatten(0, 1), actions.flatten(), reduction="none")
    loss, count = masked_mean(losses.view(mask.shape), mask)
    wrong = (prediction.detach().argmax(-1) != actions).float()
    metrics = {"action_error": masked_mean(wrong, mask)[0]}
    if common is not None:
        metrics["rare_action_error"] = masked_mean(wrong, mask & (actions != common))[0]
    return LossOut(loss, count, dict(metrics))
