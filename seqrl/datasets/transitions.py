"""Logged steps and what follows them, read from windows: what temporal differences are made of.

In windows of kind ``any_end`` the steps before a trained one are its history, those behind it lead
to its bootstrap. A step is read from the one window whose end it needs: all steps of the data are
drawn equally often, whatever the reach.

Shapes: B windows of T steps, N transitions, n time steps of a transition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqrl.errors import SeqrlError
from seqrl.spec import Batch


class Transitions(NamedTuple):
    """N logged steps of a batch, each with the place its return is bootstrapped from."""

    row: Tensor
    """``[N]`` window."""
    step: Tensor
    """``[N]`` place of the step in it."""
    next_step: Tensor
    """``[N]`` n places on; or where the episode ends before, the place behind its last step."""
    over: Tensor
    """``[N]`` bool: it lies behind the window's last step, where no action is logged."""
    terminated: Tensor
    """``[N]`` bool: there the episode is over, and there is nothing to bootstrap from."""

    def discounted(self, rewards: Tensor, gamma: float, n: int) -> Tensor:
        """``[N]``: sum of gamma^k times the k-th reward on the way, of ``rewards [B, T]``."""
        k = torch.arange(n, device=rewards.device)
        way = self.step.unsqueeze(1) + k  # (N, n)
        found = rewards[self.row.unsqueeze(1), way.clamp(max=rewards.shape[1] - 1)]
        return (found * gamma**k * (way < self.next_step.unsqueeze(1))).sum(1)


def read_transitions(batch: Batch, n: int, reach: int) -> Transitions:
    """The steps that the ends of windows make ready.

    The step ``reach`` from the end (1 is the last itself); where a window ends with its episode
    also those behind it, whose transitions are shorter. Left out are those that lead to the end of
    a cut episode whose last observation was not recorded.

    Args:
        batch: of ``any_end`` windows with ``next_observation``.
        n: time steps of a transition.
        reach: n, or n + 1 where the action logged at the bootstrap is needed, too.
    """
    if batch.next_known is None:
        raise SeqrlError("the windows lack next observations", hint="WindowSpec(next_observation)")
    last = batch.mask.sum(1) - 1  # (B), -1 for an empty window
    rows, back = (torch.arange(k, device=last.device) for k in (len(last), reach))
    end = last.clamp(min=0)
    terminated = batch.terminations[rows, end]
    ended = terminated | batch.truncations[rows, end]
    step = last.unsqueeze(1) - back  # (B, reach)
    over = step + n > last.unsqueeze(1)
    known = (terminated | batch.next_known[rows, end]).unsqueeze(1)
    ready = (step >= 0) & (ended.unsqueeze(1) | (back == reach - 1)) & (~over | known)
    row, k = ready.nonzero(as_tuple=True)
    step, over = step[row, k], over[row, k]
    following = torch.where(over, last[row] + 1, step + n)
    return Transitions(row, step, following, over, over & terminated[row])
