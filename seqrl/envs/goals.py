"""The goal sides of a T-Maze episode: how a caller fixes them and how evaluation balances them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrl.envs.checks import known_options
from seqrl.errors import SeqrlError, did_you_mean

__all__ = ["balanced_goal", "balanced_goals", "choose_goal", "choose_goals", "turn_signs"]


def choose_goal(rng: np.random.Generator, options: dict[str, Any] | None) -> int:
    """Return the goal side of a new episode, +1 (up) or -1 (down).

    The generator is advanced by one draw whether or not ``options`` fixes the goal, so two
    episodes of one seed that differ only in the goal see the same noise.

    Args:
        rng: the environment's generator.
        options: the ``options`` of ``reset``: nothing, or ``{"goal": 1}`` / ``{"goal": -1}``.

    Raises:
        SeqrlError: an unknown option, or another goal.
    """
    goal = 1 - 2 * int(rng.integers(2))
    if not options:
        return goal
    for name in options:
        if name != "goal":
            known = "the only option is 'goal' (+1 or -1)"
            hint = did_you_mean(str(name), ["goal"], otherwise=known)
            raise SeqrlError(f"reset() has no option {name!r}", hint)
    chosen = options["goal"]
    is_integer = isinstance(chosen, (int, np.integer)) and not isinstance(chosen, bool)
    if not is_integer or chosen not in (-1, 1):
        raise SeqrlError(f"goal={chosen!r} is not allowed", "goal must be +1 (up) or -1 (down)")
    return int(chosen)


def balanced_goal(i: int) -> dict[str, Any]:
    """Return the reset options of evaluation episode ``i``: even ones up, odd ones down."""
    return {"goal": 1 if i % 2 == 0 else -1}


def turn_signs(episodes: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """Return ``count`` signs (at most 64) for each of ``episodes [E]``, shape ``[E, count]``.

    Every 2**m consecutive episodes go once through all combinations of the first m signs; the first
    one alternates, +1 for even numbers, and each later one is balanced over every four episodes.
    The bits of the episode's number have the first property, too, but in the first hundred
    episodes all signs from the eighth on would be +1, and a constant guess there would look like
    memory. So every sign from the third on is flipped by a hash of the earlier bits.
    """
    number = np.asarray(episodes, np.uint64)[:, None]
    place = np.arange(count, dtype=np.uint64)
    one = np.uint64(1)
    bits = number >> place
    # Without the lowest bit, so that each sign of an odd episode is opposite to that of the even
    # one before it. The hash is the last part of SplitMix64 (Steele, Lea, Flood, 2014).
    earlier = (number & ((one << place) - one)) >> one
    mixed = (earlier << np.uint64(6)) + place + one
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    flips = number ^ (mixed >> np.uint64(63))
    bits = np.where(place < 2, bits, bits ^ flips)
    return 1 - 2 * (bits & one).astype(np.int64)


def choose_goals(
    rng: np.random.Generator, options: dict[str, Any] | None, junctions: int
) -> tuple[int, ...]:
    """Return the goal side of each junction, like :func:`choose_goal` for one.

    Args:
        rng: the environment's generator.
        options: the ``options`` of ``reset``: nothing, or a ``"goal"``, for several junctions a
            sequence of as many sides.
        junctions: how many.

    Raises:
        SeqrlError: an unknown option, or other goals.
    """
    if junctions == 1:
        return (choose_goal(rng, options),)
    goals = 1 - 2 * rng.integers(2, size=junctions)
    given = known_options(options, ("goal",))
    if "goal" in given:
        try:
            chosen = np.array(given["goal"])
        except ValueError:  # ragged
            chosen = np.zeros(0)
        fits = chosen.shape == (junctions,) and np.issubdtype(chosen.dtype, np.integer)
        if not fits or (np.abs(chosen) != 1).any():
            raise SeqrlError(
                f"goal={given['goal']!r} is not allowed",
                f"goal must be {junctions} sides, each +1 (up) or -1 (down)",
            )
        goals = chosen
    return tuple(goals.tolist())


def balanced_goals(i: int, junctions: int) -> dict[str, Any]:
    """Return the reset options of evaluation episode ``i``: all combinations in turn."""
    if junctions == 1:
        return balanced_goal(i)
    return {"goal": tuple(turn_signs(np.array([i]), junctions)[0].tolist())}
