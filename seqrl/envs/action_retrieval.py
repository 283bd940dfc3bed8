"""Action Associative Retrieval: repeat at the end the action that was chosen at the start.

Source: Cherepanov et al., "Recurrent Action Transformer with Memory", arXiv 2306.09459, appendix D.
Built from the paper's description; what it leaves open is decided in the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import generation, tape
from seqrl.envs.checks import check_bool, check_choice, check_int, known_options, settings_from
from seqrl.envs.recall import answer_of
from seqrl.errors import SeqrlError

__all__ = ["NO_OP", "ActionRetrievalEnv", "ActionRetrievalSettings"]

NO_OP = 2


@dataclass(frozen=True)
class ActionRetrievalSettings:
    """Checked settings of an :class:`ActionRetrievalEnv`."""

    limit: int = 90
    """Actions of an episode, T."""
    noise: bool = True
    """Whether the third channel is redrawn from {-1, 0, 1} at every step; otherwise it is 0."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", check_int("limit", self.limit, 2))
        object.__setattr__(self, "noise", check_bool("noise", self.noise))


class ActionRetrievalEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Action Associative Retrieval, ``seqrl/ActionRetrieval-v0`` (arXiv 2306.09459, appendix D).

    Actions ``Discrete(3)``: 0 and 1 to choose and to repeat, 2 does nothing. Observation, float32
    ``[state, flag, noise]``: state 0 until the first 0 or 1 has been played and 1 from then on;
    flag 1 in the observation that the last action answers; noise uniform on {-1, 0, 1}, redrawn at
    every step. The observations never tell which action was chosen: only an agent that sees its own
    actions can know. Episodes take T = ``limit`` actions and terminate; the last one earns +1 if it
    repeats the chosen action, else -1, all others 0.

    Left open by the paper, and decided here: an agent may choose later than at the first step (2
    keeps state 0); what it plays in state 1 before the flag changes nothing; who reaches the flag
    without a choice has nothing to repeat and earns -1. The last ``info`` holds ``success`` (bool)
    and ``chosen`` (0, 1 or None); earlier ones are empty.

    The agent is free in its choice, so one that always plays the same action succeeds without
    memory. The paper's measure is p(0 at the flag | chose 0) + p(1 at the flag | chose 1), which
    exceeds 1 only with memory.

    Args:
        limit: actions of an episode, 2 or more.
        noise: whether the noise channel is on.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; shows the choice.

    Raises:
        SeqrlError: a setting out of its range.

    Example:
        >>> env = ActionRetrievalEnv(limit=3, noise=False)
        >>> env.reset(seed=0)[0].tolist()
        [0.0, 0.0, 0.0]
        >>> [env.step(action)[:2] for action in (1, 2)][-1][0].tolist(), env.step(1)[1]
        ([1.0, 1.0, 0.0], 1.0)
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}
    data_options: ClassVar[tuple[str, ...]] = ()
    """Arguments of :meth:`oracle_columns` that describe the data and not the environment: none."""

    def __init__(self, limit: int = 90, noise: bool = True, render_mode: str | None = None) -> None:
        self.settings = ActionRetrievalSettings(limit, noise)
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(3)
        low, high = np.array([0, 0, -1], np.float32), np.ones(3, np.float32)
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self._limit = self.settings.limit
        self._noise: NDArray[np.float32] = np.zeros(0, np.float32)
        self._time = self._plan = 0
        self._chosen: int | None = None
        self._states: list[int] = []
        self._success: bool | None = None
        self._running = False

    @property
    def max_episode_steps(self) -> int:
        """Actions of every episode."""
        return self._limit

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds the noise and the oracle's choice; ``None`` continues the present stream.
            options: ``{"first": 0}`` or ``{"first": 1}`` fixes what the *oracle* chooses; the
                environment itself is the same.

        Raises:
            SeqrlError: unknown option or value.
        """
        super().reset(seed=seed)
        given = known_options(options, ("first",))
        self._plan = int(self.np_random.integers(2))
        if "first" in given:
            self._plan = check_int("first", given["first"], 0, 1)
        self._noise = _noise(self.np_random, self.settings, 1)[0]
        self._time, self._chosen, self._success = 0, None, None
        self._states, self._running = [0], True
        return self._observation(), {}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one action: 0, 1 or 2 (nothing).

        Raises:
            SeqrlError: no episode is running, or the action is none of the three.
        """
        if not self._running:
            raise SeqrlError("step() without a running episode", "call reset() first")
        given = answer_of(action, 3)
        self._time += 1
        if self._time < self._limit:
            if self._chosen is None and given != NO_OP:
                self._chosen = given
            self._states.append(int(self._chosen is not None))
            return self._observation(), 0.0, False, False, {}
        self._states.append(self._states[-1])
        self._running, self._success = False, given == self._chosen
        info = {"success": self._success, "chosen": self._chosen}
        return self._observation(), 1.0 if self._success else -1.0, True, False, info

    def _observation(self) -> NDArray[np.float32]:
        flag = self._time == self._limit - 1
        return np.array((self._states[-1], flag, self._noise[self._time]), np.float32)

    def oracle_action(self) -> int:
        """Return the expert's action: choose at once, wait, repeat at the flag."""
        if self._chosen is None:
            return self._plan
        return self._chosen if self._time == self._limit - 1 else NO_OP

    def episode_options(self, i: int) -> dict[str, Any]:
        """Return the reset options of episode ``i``: the oracle's choices alternate, 0 first."""
        return {"first": i % 2}

    def render(self) -> Any:
        """Draw the episode in the ``render_mode`` given at construction, ``None`` without one.

        The strip holds the state of each observation so far and ``!`` for the flag.

        Raises:
            SeqrlError: before the first ``reset``.
        """
        if self.render_mode is None:
            return None
        if not len(self._noise):
            raise SeqrlError("render() before the first episode", "call reset() first")
        shown = list(self._states)
        if self._time >= self._limit - 1:
            shown[self._limit - 1] = 2
        chosen = "nothing chosen yet" if self._chosen is None else f"chosen: {self._chosen}"
        right, wrong = int(self._success is True), int(self._success is False)
        notes = (chosen,)
        drawn = tape.Tape(shown, "01!", self._time, self._limit, right, wrong, notes)
        return tape.render(drawn, self.render_mode)

    @classmethod
    def reference_scores(cls, **kwargs: Any) -> dict[str, float]:
        """Return the expected returns of uniformly random play and of the oracle, both exact.

        Something is chosen before the flag with probability 1 - 3**(1 - T), and is then repeated
        with probability 1/3.

        Args:
            **kwargs: settings of the environment, as given to the constructor.

        Raises:
            SeqrlError: unknown setting or value out of range.

        Example:
            >>> ActionRetrievalEnv.reference_scores(limit=2)["random"] == 4 / 9 - 1
            True
        """
        settings = settings_from(ActionRetrievalSettings, kwargs)
        success = (1 - 3.0 ** (1 - settings.limit)) / 3
        return {"random": 2 * success - 1, "oracle": 1.0}

    @classmethod
    def data_env_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Return the settings of the environment that data of :meth:`oracle_columns` belong to."""
        return dict(kwargs)

    @classmethod
    def oracle_columns(
        cls, episodes: int, seed: int = 0, **env_kwargs: Any
    ) -> dict[str, NDArray[Any]]:
        """Generate episodes of the oracle as flat columns (the paper: 6000 winning ones).

        An episode equals what stepping the environment with :meth:`oracle_action` gives when
        episode ``i`` is reset with ``episode_options(i)``, up to the noise.

        Args:
            episodes: number of episodes E; chosen actions alternate.
            seed: of the noise, 0 or more.
            **env_kwargs: settings of the environment.

        Returns:
            ``observations [N, 3]`` float32, ``actions [N]`` int64, ``rewards [N]`` float32,
            ``terminations [N]`` and ``truncations [N]`` bool, ``final_observations [E, 3]``,
            ``episode_starts [E + 1]`` int64; N = E * limit.

        Raises:
            SeqrlError: unknown setting or value out of range.
        """
        episodes, seed = check_int("episodes", episodes, 1), check_int("seed", seed, 0)
        settings = settings_from(ActionRetrievalSettings, env_kwargs)
        limit = settings.limit
        observations = np.zeros((episodes, limit + 1, 3), np.float32)
        observations[:, 1:, 0] = 1
        observations[:, -2, 1] = 1
        rng = np.random.default_rng((seed, limit))
        observations[:, :, 2] = _noise(rng, settings, episodes)
        actions = np.full((episodes, limit), NO_OP, np.int64)
        actions[:, 0] = actions[:, -1] = np.arange(episodes) % 2
        rewards = np.zeros((episodes, limit), np.float32)
        rewards[:, -1] = 1
        return generation.equal_length_columns(observations, actions, rewards)


def _noise(
    rng: np.random.Generator, settings: ActionRetrievalSettings, episodes: int
) -> NDArray[np.float32]:
    """Draw the noise channel of whole episodes, ``[E, T + 1]``."""
    shape = (episodes, settings.limit + 1)
    if not settings.noise:
        return np.zeros(shape, np.float32)
    return rng.integers(-1, 2, size=shape, dtype=np.int8).astype(np.float32)
