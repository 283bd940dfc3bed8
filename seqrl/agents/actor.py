"""What an agent adds to be fine-tuned by actor-critic: a differentiable action and its critics.

The on-policy loop (``seqrl.finetune``) knows no agent. One that extends :class:`RecurrentActor`
tells it how to act with a gradient from a remembered state, what must stay as it is, and what its
critics look at. The defaults serve any agent with continuous actions that acts by carrying a state
of fixed size.

Shapes: n transitions, A action dimension, S observation dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqrl.agents.agent import Agent, AgentConfig
from seqrl.errors import SeqrlError
from seqrl.layers.critics import build_critic
from seqrl.spec import DataStats, Step, TaskSpec


class RecurrentActor(Agent):
    """An agent that actor-critic fine-tuning can take as its actor."""

    action_low: Tensor
    action_high: Tensor

    def __init__(self, config: AgentConfig, tasks: Sequence[TaskSpec], stats: Sequence[DataStats]):
        super().__init__(config, tasks, stats)
        action = self.tasks[0].action
        self.register_buffer("action_low", torch.tensor(action.low), persistent=False)
        self.register_buffer("action_high", torch.tensor(action.high), persistent=False)

    def check_actor(self) -> None:
        """Raise SeqrlError for a task without an action gradient or without critics."""
        task = self.tasks[0]
        if task.action.kind != "continuous" or task.observation.kind != "vector":
            what = task.action if task.action.kind != "continuous" else task.observation
            raise SeqrlError(
                f"actor-critic fine-tuning needs continuous actions and vector observations, "
                f"the task has {what.describe()}",
                hint="use --method weighted_bc",
            )

    def within_bounds(self, action: Tensor) -> Tensor:
        """Continuous actions ``[n, A]`` cut at the bounds of their space."""
        return torch.clamp(action, self.action_low, self.action_high)

    def act_with_grad(self, state: Any, step: Step) -> Tensor:
        """The action ``[n, A]`` at a step, within its bounds, with a gradient to the weights.

        Args:
            state: the acting state before the step, as remembered; gets no gradient.
            step: the step.
        """
        prediction, _ = self.step(state, step)
        return self.within_bounds(prediction)

    def freeze_for_finetune(self) -> None:
        """Stop training what on-policy updates would damage; by default nothing."""

    def critic_inputs(self, observation: Tensor, rtg: Tensor) -> Tensor:
        """What critics see of a step besides the action: ``[n, S + 1]``, in network units.

        Args:
            observation: ``[n, S]``, raw.
            rtg: ``[n]``, raw.
        """
        return torch.cat([self.observe(observation), self.scaled(rtg).unsqueeze(-1)], -1)

    def make_critic(self, kind: str, see_returns: bool) -> nn.Module:
        """A critic: called with :meth:`critic_inputs` and actions in [-1, 1], gives ``[n]``."""
        spec = self.tasks[0]
        return build_critic(kind, spec.observation.shape[0], spec.action.size, see_returns)

    def in_unit_box(self, action: Tensor) -> Tensor:
        """Actions as critics see them: their bounds stretched to [-1, 1] where they have any."""
        if not self.tasks[0].action.bounded:
            return action
        return 2 * (action - self.action_low) / (self.action_high - self.action_low) - 1
