"""The goal side of a T-Maze episode: how a caller fixes it and how evaluation balances it."""

from __future__ import annotations

from typing import Any

import numpy as np

from seqrl.errors import SeqrlError, did_you_mean

__all__ = ["balanced_goal", "choose_goal"]


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
