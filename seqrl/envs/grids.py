"""Square rooms without walls: moves, shortest ways, task splits, exact random play, pictures.

Cells are pairs (x, y), ``0 .. size - 1`` each; a cell's number is ``x * size + y``. Everything here
is a pure function of arrays and serves one room and thousands of them alike.

Sources: Lee et al., arXiv 2306.14892, and jon--lee/decision-pretrained-transformer (numbering of
the actions, split of the goals, permuted actions).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrl.envs import drawing
from seqrl.envs.checks import check_choice
from seqrl.errors import SeqrlError

__all__ = [
    "ACTION_NAMES",
    "PERMUTATIONS",
    "SPLITS",
    "cells",
    "check_cell",
    "distance",
    "moved",
    "random_play",
    "render",
    "shortest_action",
    "split_of",
]

Cells = NDArray[np.int64]
Cell = tuple[int, int]

ACTION_NAMES = ("x + 1", "x - 1", "y + 1", "y - 1", "stay")
"""What each of the five actions does."""
STAY = 4
MOVES: Cells = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)], np.int64)
"""Change of (x, y) by each action, ``[5, 2]``."""
PERMUTATIONS: Cells = np.array(list(itertools.permutations(range(5))), np.int64)
"""All orders of the five actions, ``[120, 5]``; number 0 leaves them as they are."""
SPLITS = ("all", "train", "test")


# --- moves --------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def cells(size: int) -> Cells:
    """All cells of a room in the order of their numbers, ``[size * size, 2]``; read-only."""
    room = np.stack(np.divmod(np.arange(size * size, dtype=np.int64), size), axis=1)
    room.flags.writeable = False
    return room


def moved(positions: Cells, actions: NDArray[Any], size: int) -> Cells:
    """Cells ``[..., 2]`` after actions ``[...]``; a move into the wall stays where it is.

    >>> moved(np.array([[0, 0], [0, 0]]), np.array([0, 1]), 10).tolist()
    [[1, 0], [0, 0]]
    """
    after: Cells = np.clip(positions + MOVES[actions], 0, size - 1)
    return after


def distance(positions: Cells, goals: Cells) -> Cells:
    """Moves from cells to cells (both ``[..., 2]``)."""
    total: Cells = np.abs(np.asarray(positions) - goals).sum(axis=-1)
    return total


def shortest_action(positions: Cells, goals: Cells) -> Cells:
    """An action ``[...]`` on a shortest way from cells to cells ``[..., 2]``: x, then y, then stay.

    >>> shortest_action(np.array([[0, 5], [3, 5], [3, 3]]), np.array([3, 3])).tolist()
    [0, 3, 4]
    """
    dx, dy = np.moveaxis(np.asarray(goals) - positions, -1, 0)
    along_y = np.where(dy > 0, 2, np.where(dy < 0, 3, STAY))
    action: Cells = np.where(dx > 0, 0, np.where(dx < 0, 1, along_y))
    return action


# --- tasks --------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _order(count: int) -> Cells:
    # The legacy generator, because the published split was drawn by it.
    order = np.random.RandomState(0).permutation(count).astype(np.int64)
    order.flags.writeable = False
    return order


def split_of(count: int, part: str, train: int | None = None) -> Cells:
    """Numbers of the tasks in a part of a fixed split, in a fixed shuffled order; read-only.

    Args:
        count: number of tasks. With 100 the test part is the official one of Dark Room.
        part: ``train``, ``test`` (what is left) or ``all`` (train, then test).
        train: tasks in the training part; four fifths by default.

    >>> split_of(100, "test")[:4].tolist()
    [25, 37, 81, 46]
    """
    check_choice("split", part, SPLITS)
    order = _order(count)
    cut = count * 4 // 5 if train is None else train
    return order if part == "all" else order[:cut] if part == "train" else order[cut:]


def check_cell(name: str, value: Any, size: int) -> tuple[int, int]:
    """A cell given as a pair of integers, or as the text ``x,y``.

    Raises:
        SeqrlError: it is neither, or lies outside the room.
    """
    given: Any = value.split(",") if isinstance(value, str) else value
    try:
        x, y = (int(v) for v in given)
        exact = isinstance(value, str) or (x, y) == tuple(given)
    except (TypeError, ValueError):
        exact = False
    if not exact or not (0 <= x < size and 0 <= y < size):
        allowed = f"{name} must be a cell (x, y) with both from 0 to {size - 1}"
        raise SeqrlError(f"{name}={value!r} is not allowed", allowed)
    return x, y


# --- exact random play --------------------------------------------------------------------------


def random_play(
    size: int, horizon: int, goals: Cells, absorbing: bool, keep: bool = False
) -> NDArray[np.float64]:
    """What uniformly random actions achieve within some steps, from every cell, exactly.

    With ``absorbing`` the probability of entering the goal, otherwise the expected number of steps
    that end on it (staying there counts).

    Args:
        size: of the room.
        horizon: number of steps.
        goals: numbers of the goal cells, ``[G]``.
        absorbing: see above.
        keep: return the values of 0, 1 .. ``horizon`` steps, not of ``horizon`` alone.

    Returns:
        ``[G, size * size]``, with ``keep`` ``[horizon + 1, G, size * size]``.
    """
    room = cells(size)
    steps = moved(room[:, None], np.arange(5), size)  # (C, 5, 2)
    following = steps[..., 0] * size + steps[..., 1]
    value = np.zeros((len(goals), size * size))
    history = [value]
    rows = np.arange(len(goals))
    for _ in range(horizon):
        # What entering each cell is worth; the goal pays 1, and ends it if it absorbs.
        entering = value.copy()
        entering[rows, goals] = 1.0 if absorbing else entering[rows, goals] + 1.0
        value = entering[:, following[:, 0]]
        for action in range(1, 5):
            value = value + entering[:, following[:, action]]
        value /= 5
        if keep:
            history.append(value)
    return np.stack(history) if keep else value


# --- pictures -----------------------------------------------------------------------------------

_PIXELS = 20


def render(
    mode: str, size: int, agent: Cell, marks: Mapping[str, Cell], caption: str
) -> str | NDArray[np.uint8]:
    """Draw a room for a person: x to the right, y upwards, hidden cells included.

    Args:
        mode: ``ansi`` for text, ``rgb_array`` for a picture of 20 pixels a cell.
        size: of the room.
        agent: its cell.
        marks: cells by their letter; G is green, K yellow, D red.
        caption: a line below the text.
    """
    if mode == "ansi":
        rows = [["."] * size for _ in range(size)]
        for letter, (x, y) in {**marks, "A": agent}.items():
            rows[size - 1 - y][x] = letter
        return "\n".join([*("".join(row) for row in rows), caption]) + "\n"
    colours = {"G": drawing.GOAL, "K": drawing.CUE, "D": drawing.OTHER_GOAL}
    image = np.empty((size * _PIXELS + 1, size * _PIXELS + 1, 3), np.uint8)
    image[:] = drawing.FLOOR
    for letter, cell in marks.items():
        image[_square(size, cell)] = colours[letter]
    image[::_PIXELS] = image[:, ::_PIXELS] = drawing.WALL
    # A smaller square than the cell, so that a goal below it can still be seen.
    image[_square(size, agent, margin=_PIXELS // 4)] = drawing.AGENT
    return image


def _square(size: int, cell: Cell, margin: int = 0) -> tuple[slice, slice]:
    top, left = (size - 1 - cell[1]) * _PIXELS, cell[0] * _PIXELS
    inside = slice(margin + 1, _PIXELS - margin)
    return (
        slice(top + inside.start, top + inside.stop),
        slice(left + inside.start, left + inside.stop),
    )
