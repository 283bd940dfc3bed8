"""Memory length: bits are shown once, one of them is asked for at the very end.

Source: the memory tasks of bsuite (Osband et al., "Behaviour Suite for Reinforcement Learning",
ICLR 2020), as ``MemoryLength-v0`` of MIKASA-Base (arXiv 2502.10550, repository
CognitiveAISystems/MIKASA-Base), whose presets these are.

| point | MIKASA-Base | here |
|---|---|---|
| observation after an action | that of before it: the bits are seen twice | that of after it |
| actions of an episode | length + 1 | length |
| query in the last but one observation | 0 | 0: it is shown in the one that is answered |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import generation, tape
from seqrl.envs.checks import check_choice, check_int, known_options, settings_from
from seqrl.envs.recall import NOT_ASKED, RecallEnv
from seqrl.errors import SeqrlError

__all__ = ["MemoryLengthEnv", "MemoryLengthSettings"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MemoryLengthSettings:
    """Checked settings of a :class:`MemoryLengthEnv`; what is None is filled in from the level."""

    level: str = "easy"
    """``"easy"``, ``"medium"`` or ``"hard"``."""
    length: Any = None
    """Actions of an episode, T."""
    bits: Any = None
    """Bits to remember, b."""

    LEVELS: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "easy": {"length": 10, "bits": 1},
        "medium": {"length": 30, "bits": 1},
        "hard": {"length": 100, "bits": 3},
    }

    def __post_init__(self) -> None:
        check_choice("level", self.level, tuple(self.LEVELS))
        # With a single action the bits would be before the agent when it answers.
        for name, least in (("length", 2), ("bits", 1)):
            given = getattr(self, name)
            value = self.LEVELS[self.level][name] if given is None else given
            object.__setattr__(self, name, check_int(name, value, least))

    def observation_space(self) -> spaces.Box:
        """Return the space of the observations."""
        low = np.array([0, 0, *self.bits * [-1]], np.float32)
        # With one bit the query is always 0, but Gymnasium warns of bounds that leave no room.
        high = np.array([1, max(self.bits - 1, 1), *self.bits * [1]], np.float32)
        return spaces.Box(low, high, dtype=np.float32)


class MemoryLengthEnv(RecallEnv):
    """Remember bits for a fixed time, ``seqrl/MemoryLength-v0`` (bsuite, arXiv 2502.10550).

    Observation, float32 ``[2 + b]``: ``1 - t / T``, then the number of the queried bit in the
    observation that the last action answers (t = T - 1; else 0), then the bits, each +1 or -1, at
    t = 0 (else 0). Actions ``Discrete(2)``: 1 says +1, 0 says -1. Only the last action counts: +1
    if it is the queried bit, else -1. Episodes take T actions and terminate. The last ``info``
    holds ``success`` (bool) and ``accuracy`` (the same as a number).

    Args:
        level: ``"easy"`` (T = 10, b = 1), ``"medium"`` (30, 1) or ``"hard"`` (100, 3).
        length: T, 2 or more, instead of the level's.
        bits: b, 1 or more, instead of the level's.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; shows the bits and the answer.

    Raises:
        SeqrlError: a setting out of its range.

    Example:
        >>> env = MemoryLengthEnv(length=2, bits=2)
        >>> env.reset(options={"bits": [1, -1], "query": 1})[0].tolist()
        [1.0, 0.0, 1.0, -1.0]
        >>> observation, reward, *_ = env.step(1)
        >>> observation.tolist(), reward, env.step(0)[1]
        ([0.5, 1.0, 0.0, 0.0], 0.0, 1.0)
    """

    data_options: ClassVar[tuple[str, ...]] = ()
    """Arguments of :meth:`oracle_columns` that describe the data and not the environment: none."""

    def __init__(
        self,
        level: str = "easy",
        length: int | None = None,
        bits: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        s = self.settings = MemoryLengthSettings(level, length, bits)
        super().__init__(s.length, 2, 1, s.observation_space(), render_mode)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw bits and query, and show the bits.

        Args:
            seed: seeds both; ``None`` continues the present stream.
            options: ``{"answer": 0}`` or ``{"answer": 1}`` fixes the queried bit; or
                ``{"bits": [...], "query": q}``, both or one, fixes what they say.

        Raises:
            SeqrlError: unknown option or value, or an answer besides bits.
        """
        super().reset(seed=seed)
        given = known_options(options, ("answer", "bits", "query"))
        bits, queries = _draw(self.np_random, self.settings, 1)
        if "query" in given:
            queries[0] = check_int("query", given["query"], 0, self.settings.bits - 1)
        if "bits" in given:
            bits[0] = _check_bits(given["bits"], self.settings.bits)
        if "answer" in given:
            if "bits" in given:
                raise SeqrlError("answer is not allowed with bits", "bits and query determine it")
            bits[0, queries[0]] = 2 * check_int("answer", given["answer"], 0, 1) - 1
        shown, answers = _script(self.settings, bits, queries)
        self._begin(shown[0], answers[0])
        return self._observation(), {}

    def episode_options(self, i: int) -> dict[str, Any]:
        """Return the reset options of evaluation episode ``i``: answers alternate, 1 first.

        Over an even number of episodes a constant answer thus returns exactly 0.
        """
        return {"answer": 1 - i % 2}

    def _tape(self) -> tape.Tape:
        shown = [-1] * (self._time + 1)
        bits = "".join("+" if bit > 0 else "-" for bit in self._shown[0, 2:])
        shown[0] = int(self._shown[0, 2] > 0)
        query = int(self._shown[-2, 1])
        notes = (f"bits {bits}"[:64], f"bit {query} is asked for at the end", self._asked())
        return tape.Tape(shown, "-+", self._time, self._steps, self._right, self._wrong, notes)

    @classmethod
    def reference_scores(cls, **kwargs: Any) -> dict[str, float]:
        """Return the expected returns of uniformly random play (0) and of the oracle, both exact.

        Args:
            **kwargs: settings of the environment, as given to the constructor.

        Raises:
            SeqrlError: unknown setting or value out of range.
        """
        settings_from(MemoryLengthSettings, kwargs)
        return {"random": 0.0, "oracle": 1.0}

    @classmethod
    def data_env_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Return the settings of the environment that data of :meth:`oracle_columns` belong to."""
        return dict(kwargs)

    @classmethod
    def oracle_columns(
        cls, episodes: int, seed: int = 0, **env_kwargs: Any
    ) -> dict[str, NDArray[Any]]:
        """Generate episodes of the oracle as flat columns.

        An episode equals, value for value, what stepping the environment with
        :meth:`oracle_action` gives with the same bits and query. Right answers alternate, 1 first;
        before the end the action is 0.

        Args:
            episodes: number of episodes E.
            seed: of bits and queries, 0 or more.
            **env_kwargs: settings of the environment.

        Returns:
            ``observations [N, 2 + b]`` float32, ``actions [N]`` int64, ``rewards [N]`` float32,
            ``terminations [N]`` and ``truncations [N]`` bool, ``final_observations [E, 2 + b]``,
            ``episode_starts [E + 1]`` int64; N = E * T.

        Raises:
            SeqrlError: unknown setting or value out of range.
        """
        episodes, seed = check_int("episodes", episodes, 1), check_int("seed", seed, 0)
        settings = settings_from(MemoryLengthSettings, env_kwargs)
        # Two numbers, so that no episode is that of an environment reset with this seed.
        bits, queries = _draw(np.random.default_rng((seed, settings.length)), settings, episodes)
        bits[np.arange(episodes), queries] = generation.alternating_goals(episodes)
        shown, answers = _script(settings, bits, queries)
        rewards = (answers != NOT_ASKED).astype(np.float32)
        return generation.equal_length_columns(shown, np.maximum(answers, 0), rewards)


def _draw(
    rng: np.random.Generator, settings: MemoryLengthSettings, episodes: int
) -> tuple[Ints, Ints]:
    """Draw bits ``[E, b]``, +1 or -1, and the number of the queried one ``[E]``."""
    bits = 1 - 2 * rng.integers(2, size=(episodes, settings.bits))
    return bits, rng.integers(settings.bits, size=episodes)


def _script(
    settings: MemoryLengthSettings, bits: Ints, queries: Ints
) -> tuple[NDArray[np.float32], Ints]:
    """Return the observations ``[E, T + 1, 2 + b]`` and right answers ``[E, T]`` of episodes."""
    episodes, length = len(bits), settings.length
    shown = np.zeros((episodes, length + 1, 2 + settings.bits), np.float32)
    shown[..., 0] = 1 - np.arange(length + 1) / length
    shown[:, -2, 1] = queries
    shown[:, 0, 2:] = bits
    answers = np.full((episodes, length), NOT_ASKED)
    answers[:, -1] = bits[np.arange(episodes), queries] > 0
    return shown, answers


def _check_bits(value: Any, count: int) -> Ints:
    """Return bits given by a caller.

    Raises:
        SeqrlError: not ``count`` numbers, or another than +1 or -1.
    """
    try:
        bits = np.array(list(value))
    except (TypeError, ValueError):
        bits = np.zeros(0)
    if bits.shape != (count,) or not np.isin(bits, (-1, 1)).all():
        raise SeqrlError(
            f"bits={value!r} is not allowed", f"bits must be {count} numbers, each +1 or -1"
        )
    return bits.astype(np.int64)
