"""What memory tasks share in which actions are answers and change nothing of what is seen."""

from __future__ import annotations

import operator
from abc import abstractmethod
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import tape
from seqrl.envs.checks import check_choice
from seqrl.errors import SeqrlError

__all__ = ["NOT_ASKED", "RecallEnv", "answer_of", "one_hot"]

NOT_ASKED = -1
"""In place of a right answer: no action counts at this step."""


class RecallEnv(gymnasium.Env[Any, np.int64]):
    """All observations of an episode are settled at reset, and the right answer of every step.

    A right answer earns ``1 / counted``, a wrong one loses as much, steps that ask nothing are
    worth 0: returns lie in [-1, 1]. Every episode takes the same number of actions and terminates
    with the last one, whose ``info`` holds ``success`` (bool: no answer was wrong) and
    ``accuracy`` (the right part of all answers that counted); earlier ones are empty.

    Args:
        steps: actions of an episode T.
        choices: number of possible answers.
        counted: number of steps that ask something.
        observation_space: of the observations.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}

    def __init__(
        self,
        steps: int,
        choices: int,
        counted: int,
        observation_space: spaces.Space[Any],
        render_mode: str | None,
    ) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(choices)
        self.observation_space = observation_space
        self._steps, self._choices, self._worth = steps, choices, 1 / counted
        self._shown: NDArray[Any] = np.zeros(0)
        self._answers: list[int] = []
        self._time = self._right = self._wrong = 0
        self._running = False

    @property
    def max_episode_steps(self) -> int:
        """Actions of every episode."""
        return self._steps

    def _begin(self, shown: NDArray[Any], answers: NDArray[np.int64]) -> None:
        """Start an episode with observations ``[T + 1, ...]`` and right answers ``[T]``."""
        self._shown, self._answers = shown, answers.tolist()
        self._time = self._right = self._wrong = 0
        self._running = True

    def step(self, action: np.int64 | int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Give an answer.

        Raises:
            SeqrlError: no episode is running, or the action is not of the action space.
        """
        if not self._running:
            raise SeqrlError("step() without a running episode", "call reset() first")
        given, wanted, reward = answer_of(action, self._choices), self._answers[self._time], 0.0
        if wanted != NOT_ASKED:
            right = given == wanted
            self._right += right
            self._wrong += not right
            reward = self._worth if right else -self._worth
        self._time += 1
        self._running = self._time < self._steps
        info: dict[str, Any] = {}
        if not self._running:
            accuracy = self._right / (self._right + self._wrong)
            info = {"success": self._wrong == 0, "accuracy": accuracy}
        return self._observation(), reward, not self._running, False, info

    def _observation(self) -> Any:
        # A copy, because callers keep what they are given; a single choice is a scalar anyway.
        return self._shown[self._time].copy()

    def oracle_action(self) -> int:
        """Return the right answer; 0 where none is asked for."""
        if not self._running:
            return 0
        return max(self._answers[self._time], 0)

    def render(self) -> Any:
        """Draw what was shown so far in the ``render_mode`` given at construction.

        Raises:
            SeqrlError: before the first ``reset``.
        """
        if self.render_mode is None:
            return None
        if not self._answers:
            raise SeqrlError("render() before the first episode", "call reset() first")
        return tape.render(self._tape(), self.render_mode)

    def _asked(self, names: str = "0123456789") -> str:
        """What a rendering says of the question of this step.

        Args:
            names: a character for each answer.
        """
        if not self._running:
            return "the episode is over"
        wanted = self._answers[self._time]
        if wanted == NOT_ASKED:
            return "nothing is asked"
        return f"right answer {names[wanted] if wanted < len(names) else wanted}"

    @abstractmethod
    def _tape(self) -> tape.Tape:
        """What a rendering shows."""


def answer_of(action: Any, choices: int) -> int:
    """Return a discrete action as an ``int``.

    Raises:
        SeqrlError: it is none of ``0 .. choices - 1``.
    """
    try:
        given = operator.index(action)
    except TypeError:
        given = -1
    if not 0 <= given < choices:
        raise SeqrlError(f"action={action!r} is not allowed", f"actions are 0 to {choices - 1}")
    return given


def one_hot(symbols: NDArray[np.int64], sizes: tuple[int, ...]) -> NDArray[np.float32]:
    """Encode choices ``[..., C]``, component c one of ``sizes[c]``, as ``[..., sum(sizes)]``."""
    out = np.zeros((*symbols.shape[:-1], sum(sizes)), np.float32)
    offsets = np.cumsum((0, *sizes[:-1]))
    np.put_along_axis(out, symbols + offsets, 1, axis=-1)
    return out
