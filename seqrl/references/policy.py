"""The reference policies that need no learning: uniform actions, and the environment's oracle."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from seqrl.draws import RowDraws
from seqrl.errors import SeqrlError
from seqrl.spec import Step, TaskSpec


class ReferencePolicy(ABC):
    """A policy without parameters that the rollout engine runs like an agent."""

    name: ClassVar[str]
    memory: Literal["episode", "trial"] = "episode"
    uses_returns = False
    needs_oracle = False

    def __init__(self, task: TaskSpec):
        self.tasks = (task,)

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Names of the keyword arguments that the policy takes besides its task: none."""
        return ()

    def initial_state(self, n: int) -> Any:
        """Acting state of ``n`` rows: none, where a policy does not say otherwise."""
        return None

    def reset(self, state: Any, rows: Tensor) -> Any:
        """The state with the rows set in ``rows [n]`` bool made fresh: nothing to forget here."""
        return state

    @abstractmethod
    def act(self, state: Any, step: Step, generator: RowDraws | None = None) -> tuple[Tensor, Any]:
        """Actions ``[n, A]`` or ``[n]`` for one step of every row, and the state."""


class RandomPolicy(ReferencePolicy):
    """Uniform over the action space; a dimension without bounds is drawn from [-1, 1]."""

    name = "random"

    def __init__(self, task: TaskSpec):
        super().__init__(task)
        action = task.action
        if action.kind == "continuous":
            bounds = [
                (lo, hi) if math.isfinite(lo) and math.isfinite(hi) else (-1.0, 1.0)
                for lo, hi in zip(action.low, action.high, strict=True)
            ]
            self._low, self._high = torch.tensor(bounds).float().T
        else:
            self._choices = torch.tensor(action.nvec)

    def act(self, state: Any, step: Step, generator: RowDraws | None = None) -> tuple[Tensor, Any]:
        if generator is None:
            raise SeqrlError("the random policy needs a generator", hint="pass one to act()")
        action = self.tasks[0].action
        u = generator.uniform(action.size)  # (n, A)
        if action.kind == "continuous":
            return self._low + u * (self._high - self._low), state
        drawn = (u * self._choices).long()
        return drawn[:, 0] if action.kind == "discrete" else drawn, state


class OraclePolicy(ReferencePolicy):
    """What the environment's ``oracle_action`` says, which may use what observations hide."""

    name = "oracle"
    needs_oracle = True

    def act(self, state: Any, step: Step, generator: RowDraws | None = None) -> tuple[Tensor, Any]:
        if step.oracle_action is None:
            raise SeqrlError(
                "the oracle policy was given no oracle action",
                hint="it needs an environment with oracle_action()",
            )
        return step.oracle_action, state
