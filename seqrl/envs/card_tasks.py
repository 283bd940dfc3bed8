"""Memory tasks with packs of cards, after POPGym: repeat, play back, count.

Source: Morad, Kortvelesy, Bettini, Liwicki, Prorok, "POPGym: Benchmarking Partially Observable
Reinforcement Learning", ICLR 2023, and the package ``popgym`` 1.0.7, whose environments these equal
in observations, rewards, lengths and action spaces when the same cards are dealt. Written anew:

| point | popgym | here |
|---|---|---|
| observation | Discrete, MultiDiscrete or Tuple | the same as one-hot groups; ``obs="discrete"`` |
| making an episode | card by card | whole episodes at once, from the cards in their order |
| ``error_clamp`` of CountRecall | a parameter without effect | left out |

The settings classes give each task's sizes; ``script`` gives its episodes. N is the number of cards
and T that of actions, see :mod:`seqrl.envs.cards`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from seqrl.envs import tape
from seqrl.envs.cards import VALUES, CardEnv, CardSettings, Ints, Script, value_of
from seqrl.envs.checks import check_choice, check_int
from seqrl.envs.recall import NOT_ASKED, one_hot

__all__ = ["AutoencodeEnv", "CountRecallEnv", "RepeatFirstEnv", "RepeatPreviousEnv"]


@dataclass(frozen=True)
class RepeatPreviousSettings(CardSettings):
    """Checked settings of a :class:`RepeatPreviousEnv`."""

    k: Any = None
    """Which card is asked for: the k-th newest (1: the one just shown)."""

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"decks": 1, "k": 4},
        "medium": {"decks": 2, "k": 32},
        "hard": {"decks": 3, "k": 64},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "k", check_int("k", self.k, 1, self.cards - 1))

    @property
    def counted(self) -> int:
        """Steps at which k cards have been shown."""
        return self.cards - int(self.k)


class RepeatPreviousEnv(CardEnv):
    """Name the suit of the k-th newest card, ``seqrl/RepeatPrevious-v0``.

    Observation: the suit of the card just dealt. From the k-th card on, every action (4 suits) is
    an answer, worth ``1 / (N - k)``. T = N - 1; 51, 103 and 155 by level.

    Args:
        level: ``"easy"`` (1 pack, k = 4), ``"medium"`` (2, 32) or ``"hard"`` (3, 64).
        decks: packs of cards, instead of the level's.
        k: 1 (the card just shown) to N - 1, instead of the level's.
        obs: ``"vector"`` (float32 ``[4]``) or ``"discrete"``.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``.

    Raises:
        SeqrlError: a setting out of its range.

    Example:
        >>> env = RepeatPreviousEnv(k=2, obs="discrete")
        >>> int(env.reset(options={"deck": range(52)})[0]), env.oracle_action()
        (0, 0)
        >>> [float(env.step(action)[1] * 50) for action in (3, 0, 0)]
        [0.0, 1.0, -1.0]
    """

    settings_class = RepeatPreviousSettings

    def __init__(
        self,
        level: str = "easy",
        decks: int | None = None,
        k: int | None = None,
        obs: str = "vector",
        render_mode: str | None = None,
    ) -> None:
        settings = RepeatPreviousSettings(level=level, decks=decks, k=k, obs=obs)
        super().__init__(settings, render_mode)

    @classmethod
    def script(cls, settings: Any, cards: Ints) -> Script:
        suits, k = value_of(cards[:, 0], "suits"), settings.k
        answers = np.full((len(suits), settings.steps), NOT_ASKED)
        answers[:, k - 1 :] = suits[:, : settings.cards - k]
        return Script(suits[..., None], answers)


@dataclass(frozen=True)
class RepeatFirstSettings(CardSettings):
    """Checked settings of a :class:`RepeatFirstEnv`."""

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"decks": 1},
        "medium": {"decks": 8},
        "hard": {"decks": 16},
    }


class RepeatFirstEnv(CardEnv):
    """Name the suit of the first card at every step, ``seqrl/RepeatFirst-v0``.

    Observation: the suit of the card just dealt. Every action (4 suits) is an answer, worth
    ``1 / (N - 1)``. T = N - 1; 51, 415 and 831 by level.

    Args:
        level: ``"easy"`` (1 pack), ``"medium"`` (8) or ``"hard"`` (16).
        decks: packs of cards, instead of the level's.
        obs: ``"vector"`` (float32 ``[4]``) or ``"discrete"``.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``.

    Raises:
        SeqrlError: a setting out of its range.
    """

    settings_class = RepeatFirstSettings

    def __init__(
        self,
        level: str = "easy",
        decks: int | None = None,
        obs: str = "vector",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(RepeatFirstSettings(level=level, decks=decks, obs=obs), render_mode)

    @classmethod
    def script(cls, settings: Any, cards: Ints) -> Script:
        suits = value_of(cards[:, 0], "suits")
        return Script(suits[..., None], np.repeat(suits[:, :1], settings.steps, axis=1))


@dataclass(frozen=True)
class AutoencodeSettings(CardSettings):
    """Checked settings of an :class:`AutoencodeEnv`."""

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"decks": 1},
        "medium": {"decks": 2},
        "hard": {"decks": 3},
    }

    @property
    def sizes(self) -> tuple[int, ...]:
        """Mode and suit."""
        return (2, 4)

    @property
    def steps(self) -> int:
        """N - 1 to watch and N to play."""
        return 2 * self.cards - 1

    @property
    def counted(self) -> int:
        """One for each card."""
        return self.cards


class AutoencodeEnv(CardEnv):
    """Watch all cards, then name their suits from the last to the first, ``seqrl/Autoencode-v0``.

    Observation: mode (1 watch, 0 play) and suit. Cards are shown for N observations, the last one
    already with mode 0; from that one on every action (4 suits) is an answer, worth ``1 / N``, and
    the following observations show the constant (0, 0). T = 2 N - 1; 103, 207 and 311 by level.

    Args:
        level: ``"easy"`` (1 pack), ``"medium"`` (2) or ``"hard"`` (3).
        decks: packs of cards, instead of the level's.
        obs: ``"vector"`` (float32 ``[6]``) or ``"discrete"``.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``.

    Raises:
        SeqrlError: a setting out of its range.
    """

    settings_class = AutoencodeSettings

    def __init__(
        self,
        level: str = "easy",
        decks: int | None = None,
        obs: str = "vector",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(AutoencodeSettings(level=level, decks=decks, obs=obs), render_mode)

    @classmethod
    def script(cls, settings: Any, cards: Ints) -> Script:
        suits, n = value_of(cards[:, 0], "suits"), settings.cards
        symbols = np.zeros((len(suits), 2 * n, 2), np.int64)
        symbols[:, : n - 1, 0] = 1
        symbols[:, :n, 1] = suits
        answers = np.full((len(suits), settings.steps), NOT_ASKED)
        answers[:, n - 1 :] = suits[:, ::-1]
        return Script(symbols, answers)

    def _tape(self) -> tape.Tape:
        shown = self._symbols[: self._time + 1, -1].tolist()
        n = self.settings.cards
        shown[n:] = [-1] * len(shown[n:])
        return self._tape_of(shown, "suits", (self._asked(VALUES["suits"]),))


@dataclass(frozen=True)
class CountRecallSettings(CardSettings):
    """Checked settings of a :class:`CountRecallEnv`."""

    value: Any = None
    """What is counted: ``"colors"``, ``"suits"`` or ``"ranks"``."""

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"decks": 1, "value": "colors"},
        "medium": {"decks": 2, "value": "suits"},
        "hard": {"decks": 4, "value": "ranks"},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("value", self.value, tuple(VALUES))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Value dealt and value queried."""
        return 2 * (len(VALUES[self.value]),)

    @property
    def choices(self) -> int:
        """Counts from 0 to the number of cards of one value."""
        return self.cards // len(VALUES[self.value]) + 1


class CountRecallEnv(CardEnv):
    """Say how often a value has been dealt so far, ``seqrl/CountRecall-v0``.

    Observation: the value of the card just dealt and the value asked for, which is that of the next
    card of a second deck. Every action is an answer, worth ``1 / (N - 1)``: how many cards of the
    queried value have been dealt, the one just dealt included, 0 to N / values. T = N - 1; 51, 103
    and 207 steps, 27, 27 and 17 actions by level.

    Args:
        level: ``"easy"`` (1 pack, colours), ``"medium"`` (2, suits) or ``"hard"`` (4, ranks).
        decks: packs of cards of each deck, instead of the level's.
        value: ``"colors"``, ``"suits"`` or ``"ranks"``, instead of the level's.
        obs: ``"vector"`` (float32 ``[4]``, ``[8]`` or ``[26]``) or ``"discrete"``.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``.

    Raises:
        SeqrlError: a setting out of its range.
    """

    settings_class = CountRecallSettings
    deck_options: ClassVar[tuple[str, ...]] = ("deck", "queries")

    def __init__(
        self,
        level: str = "easy",
        decks: int | None = None,
        value: str | None = None,
        obs: str = "vector",
        render_mode: str | None = None,
    ) -> None:
        settings = CountRecallSettings(level=level, decks=decks, value=value, obs=obs)
        super().__init__(settings, render_mode)

    @classmethod
    def script(cls, settings: Any, cards: Ints) -> Script:
        symbols = np.moveaxis(value_of(cards, settings.value), 1, 2)  # (E, N, 2)
        counts = one_hot(symbols[..., :1], settings.sizes[:1]).cumsum(axis=1)  # (E, N, values)
        asked = np.take_along_axis(counts, symbols[..., 1:], axis=2)[:, :-1, 0]
        return Script(symbols, asked.astype(np.int64))

    def _tape(self) -> tape.Tape:
        value = self.settings.value  # type: ignore[attr-defined]
        shown = self._symbols[: self._time + 1, 0].tolist()
        query = f"asked for {VALUES[value][self._symbols[self._time, 1]]}"
        return self._tape_of(shown, value, (query, self._asked("")))
