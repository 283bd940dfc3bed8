"""What the memory tasks with cards share: packs, settings, the environment around a script.

Source: Morad, Kortvelesy, Bettini, Liwicki, Prorok, "POPGym: Benchmarking Partially Observable
Reinforcement Learning", ICLR 2023, and the package ``popgym`` 1.0.7; the tasks are in
:mod:`seqrl.envs.card_tasks`.

A pack has 52 cards of four suits, thirteen ranks and two colours. Card c has suit ``c % 4``, colour
``c % 2`` and rank ``c // 4 % 13``; N = 52 * decks cards are dealt without replacement.

Shapes: E episodes, T actions, N cards, C components of an observation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import generation, tape
from seqrl.envs.checks import check_choice, check_int, known_options, settings_from
from seqrl.envs.recall import NOT_ASKED, RecallEnv, one_hot
from seqrl.errors import SeqrlError

__all__ = ["VALUES", "CardEnv", "CardSettings", "Ints", "Script", "value_of"]

Ints = NDArray[np.int64]

PACK = 52
VALUES = {"colors": "br", "suits": "sdch", "ranks": "a23456789tjqk"}
"""What of a card may be counted, and a letter for each of its values."""


def value_of(cards: Ints, value: str) -> Ints:
    """Return colour, suit or rank of card numbers of any shape."""
    if value == "ranks":
        return cards // 4 % 13
    return cards % len(VALUES[value])


def deal(rng: np.random.Generator, episodes: int, decks: int, cards: int) -> Ints:
    """Shuffle ``decks`` decks of ``cards`` cards for each episode: ``[E, decks, cards]``."""
    rows = np.tile(np.arange(cards, dtype=np.int64), (episodes * decks, 1))
    return rng.permuted(rows, axis=1).reshape(episodes, decks, cards)


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CardSettings:
    """Checked settings of a card task; what is None is filled in from the level."""

    level: str = "easy"
    """``"easy"``, ``"medium"`` or ``"hard"``."""
    decks: Any = None
    """Packs of 52 cards that are shuffled together."""
    obs: str = "vector"
    """``"vector"``: one-hot groups, float32; ``"discrete"``: the choices, int64."""

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Level to the settings it stands for."""

    def __post_init__(self) -> None:
        check_choice("level", self.level, tuple(self.LEVELS))
        check_choice("obs", self.obs, ("vector", "discrete"))
        for name, value in self.LEVELS[self.level].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        object.__setattr__(self, "decks", check_int("decks", self.decks, 1))

    @property
    def cards(self) -> int:
        """Cards of all packs, N."""
        return PACK * int(self.decks)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of choices of each component of an observation."""
        return (4,)

    @property
    def choices(self) -> int:
        """Number of actions."""
        return 4

    @property
    def steps(self) -> int:
        """Actions of an episode, T."""
        return self.cards - 1

    @property
    def counted(self) -> int:
        """Steps that ask something."""
        return self.steps

    def observation_space(self) -> spaces.Space[Any]:
        """Return the space of the observations."""
        if self.obs == "vector":
            return spaces.Box(0, 1, (sum(self.sizes),), np.float32)
        if len(self.sizes) == 1:
            return spaces.Discrete(self.sizes[0])
        return spaces.MultiDiscrete(list(self.sizes))


# --- the environment ------------------------------------------------------------------------------


class Script(NamedTuple):
    """Episodes as they follow from their cards."""

    symbols: Ints
    """Choices shown, ``[E, T + 1, C]``."""
    answers: Ints
    """Right answers, ``[E, T]``; ``NOT_ASKED`` where no action counts."""


class CardEnv(RecallEnv):
    """What the card tasks share; make one of the four.

    Observations are float32 one-hot groups, one for each component, or with ``obs="discrete"`` the
    choices themselves (``Discrete`` or ``MultiDiscrete``). Reward, end and ``info`` are those of
    :class:`~seqrl.envs.recall.RecallEnv`: every step that asks is worth plus or minus one part of
    the return 1. The published score is this return, in [-1, 1].

    Args:
        settings: of the task.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; shows what is to be remembered.
    """

    settings_class: ClassVar[type[CardSettings]] = CardSettings
    deck_options: ClassVar[tuple[str, ...]] = ("deck",)
    """Options of ``reset``, one for each deck that is shuffled."""
    data_options: ClassVar[tuple[str, ...]] = ()
    """Arguments of :meth:`oracle_columns` that describe the data and not the environment: none."""

    def __init__(self, settings: CardSettings, render_mode: str | None) -> None:
        s = self.settings = settings
        super().__init__(s.steps, s.choices, s.counted, s.observation_space(), render_mode)
        self._symbols: Ints = np.zeros((0, len(s.sizes)), np.int64)

    @classmethod
    @abstractmethod
    def script(cls, settings: Any, cards: Ints) -> Script:
        """Return the episodes of cards ``[E, decks, N]`` in the order in which they are dealt."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Shuffle and show the first card.

        Args:
            seed: seeds the shuffling; ``None`` continues the present stream.
            options: ``{"deck": numbers}`` fixes the order, all N card numbers as they are dealt
                (CountRecall also has ``"queries"``).

        Raises:
            SeqrlError: unknown option, or not each card once.
        """
        super().reset(seed=seed)
        given = known_options(options, self.deck_options)
        cards = deal(self.np_random, 1, len(self.deck_options), self.settings.cards)
        for row, name in enumerate(self.deck_options):
            if name in given:
                cards[0, row] = _check_deck(name, given[name], self.settings.cards)
        symbols, answers = self.script(self.settings, cards)
        self._symbols = symbols[0]
        shown: NDArray[Any] = self._symbols
        if self.settings.obs == "vector":
            shown = one_hot(shown, self.settings.sizes)
        elif shown.shape[1] == 1:
            shown = shown[:, 0]
        self._begin(shown, answers[0])
        return self._observation(), {}

    def _tape(self) -> tape.Tape:
        shown = self._symbols[: self._time + 1, -1].tolist()
        return self._tape_of(shown, "suits", (self._asked(VALUES["suits"]),))

    def _tape_of(self, shown: list[int], value: str, notes: tuple[str, ...]) -> tape.Tape:
        letters = VALUES[value]
        return tape.Tape(shown, letters, self._time, self._steps, self._right, self._wrong, notes)

    @classmethod
    def reference_scores(cls, **kwargs: Any) -> dict[str, float]:
        """Return the expected returns of uniformly random play and of the oracle, both exact.

        Whatever the right answer is, one action of A gives it: ``2 / A - 1``.

        Args:
            **kwargs: settings of the environment, as given to the constructor.

        Raises:
            SeqrlError: unknown setting or value out of range.
        """
        settings = settings_from(cls.settings_class, kwargs)
        return {"random": 2 / settings.choices - 1, "oracle": 1.0}

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
        :meth:`oracle_action` gives with the same cards. Where nothing is asked, the action is 0.

        Args:
            episodes: number of episodes E.
            seed: of the shuffling, 0 or more.
            **env_kwargs: settings of the environment.

        Returns:
            ``observations [N, width]`` float32 (one-hot, whatever ``obs``: the form in which seqrl
            stores choices), ``actions [N]`` int64, ``rewards [N]`` float32, ``terminations [N]``
            and ``truncations [N]`` bool, ``final_observations [E, width]``,
            ``episode_starts [E + 1]`` int64; here N = E * T.

        Raises:
            SeqrlError: unknown setting or value out of range.
        """
        episodes, seed = check_int("episodes", episodes, 1), check_int("seed", seed, 0)
        settings = settings_from(cls.settings_class, env_kwargs)
        # Two numbers, so that no episode is that of an environment reset with this seed.
        rng = np.random.default_rng((seed, settings.cards))
        cards = deal(rng, episodes, len(cls.deck_options), settings.cards)
        symbols, answers = cls.script(settings, cards)
        rewards = np.where(answers == NOT_ASKED, 0.0, 1 / settings.counted)
        return generation.equal_length_columns(
            one_hot(symbols, settings.sizes), np.maximum(answers, 0), rewards
        )


def _check_deck(name: str, value: Any, cards: int) -> Ints:
    """Return the order of a deck given by a caller.

    Raises:
        SeqrlError: not each card once.
    """
    try:
        order = np.array(list(value))
    except (TypeError, ValueError):
        order = np.zeros(0)
    if not np.array_equal(np.sort(order, axis=None), np.arange(cards)) or order.ndim != 1:
        raise SeqrlError(
            f"{name} is not allowed", f"{name} must hold each of the cards 0 to {cards - 1} once"
        )
    return order.astype(np.int64)
