"""The boards of Key-to-Door: moves, shortest ways and what is seen, as tables over cells.

Rules: the public game of Hung et al., "Optimizing agent behavior over long time scales by
transporting value", arXiv 1810.06721 (``tvt/pycolab`` of google-deepmind/deepmind-research).

A board has 7 rows and 11 columns; cell ``row * 11 + column`` counts from the top left. An episode
plays three boards one after the other: 0 with the key, 1 with apples, 2 with the door. One
environment and thousands of generated episodes read the same tables.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "APPLE_SITES",
    "CELLS",
    "CODES",
    "COLOURS",
    "COLUMNS",
    "DISTRACTOR_START",
    "INDICATOR_CELL",
    "KEY_CELLS",
    "LAYOUTS",
    "ROUND",
    "ROWS",
    "START_CELLS",
    "View",
    "cell_of",
    "encoded",
    "following",
    "steps_between",
    "view_of",
    "ways",
]

Codes = NDArray[np.uint8]
Cells = NDArray[np.int64]

ROWS, COLUMNS = 7, 11
CELLS = ROWS * COLUMNS
NORTH, SOUTH, WEST, EAST = range(4)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Change of (row, column) by each action."""

FLOOR, WALL, AGENT, KEY, DOOR, APPLE, INDICATOR = range(7)
CODES = ("floor", "wall", "agent", "key", "door", "apple", "indicator")
"""What the integer codes of symbolic observations stand for."""
COLOURS: Codes = np.array(
    [
        (204, 204, 204),
        (25, 25, 25),
        (228, 148, 109),
        (159, 81, 44),
        (134, 206, 235),
        (140, 178, 0),
        (255, 255, 255),
    ],
    np.uint8,
)
"""Red, green and blue of each code, ``[7, 3]``."""

_WINDOW = 5  # cells along each side of what the agent sees


def cell_of(row: int, column: int) -> int:
    """Number of a cell."""
    return row * COLUMNS + column


def _area(top: int, left: int, bottom: int, right: int) -> list[int]:
    """Cells of a rectangle, both ends included, row by row."""
    return [cell_of(r, c) for r in range(top, bottom + 1) for c in range(left, right + 1)]


def _ring(top: int, left: int, bottom: int, right: int) -> set[int]:
    """Cells of a rectangle's edge."""
    inside = _area(top + 1, left + 1, bottom - 1, right - 1)
    return set(_area(top, left, bottom, right)) - set(inside)


START_CELLS: Cells = np.array(_area(4, 3, 5, 7))
"""Where the first board may place the agent, ``[10]``."""
KEY_CELLS: Cells = np.array(_area(1, 3, 2, 7))
"""Where it may place the key, ``[10]``."""
INDICATOR_CELL = cell_of(0, 5)
"""Lights up in the one observation after the key was picked up."""
DISTRACTOR_START = cell_of(5, 5)
APPLE_SITES: Cells = np.array(
    [c for c in _area(1, 1, 5, 9) if sum(divmod(c, COLUMNS)) % 2 == 0 and c != DISTRACTOR_START]
)
"""Where apples may lie, ``[22]``: every second cell, as on a chessboard."""

# Two chambers that a passage three cells wide connects.
_CHAMBERS = _ring(0, 2, 6, 8) | {cell_of(3, 3), cell_of(3, 7)}


class DoorLayout(NamedTuple):
    """The third board."""

    walls: frozenset[int]
    starts: Cells
    """Where the agent may start, ``[n]``."""
    doors: Cells
    """Where the door may be, ``[m]``."""


LAYOUTS: dict[str, DoorLayout] = {
    "sr": DoorLayout(
        frozenset(_ring(1, 3, 5, 7) - {cell_of(1, 5)}),
        np.array([cell_of(3, 5)]),
        np.array([cell_of(1, 5)]),
    ),
    "cca": DoorLayout(frozenset(_CHAMBERS), KEY_CELLS, START_CELLS),
}
"""Third boards by name: a closed room with one way out, or the chambers of the first board."""

_ARROWS = {"^": NORTH, "v": SOUTH, "<": WEST, ">": EAST}
_ROUND = (
    ">>>>>>>>v",
    "^v<v<<v<v",
    "^v^>v^v^v",
    "^v^v<^v^v",
    "^<^<^^<^<",
)
ROUND: Cells = np.full(CELLS, NORTH)
"""Action that the expert takes in each cell of the second board, ``[77]``: from the start into a
round of 44 steps over all other cells, which enters an apple site at every second step."""
ROUND[_area(1, 1, 5, 9)] = [_ARROWS[arrow] for row in _ROUND for arrow in row]


def _walls(layout: str, phase: int) -> frozenset[int]:
    if phase == 2:
        return LAYOUTS[layout].walls
    return frozenset(_CHAMBERS if phase == 0 else _ring(0, 0, ROWS - 1, COLUMNS - 1))


@lru_cache(maxsize=8)
def following(layout: str, phase: int) -> Cells:
    """Cell after each action in each cell of a board, ``[77, 4]``; the door is open. Read-only."""
    walls = _walls(layout, phase)
    table = np.repeat(np.arange(CELLS)[:, None], 4, axis=1)
    for cell in range(CELLS):
        row, column = divmod(cell, COLUMNS)
        for action, (down, right) in enumerate(MOVES):
            r, c = row + down, column + right
            if 0 <= r < ROWS and 0 <= c < COLUMNS and cell_of(r, c) not in walls:
                table[cell, action] = cell_of(r, c)
    table.flags.writeable = False
    return table


@lru_cache(maxsize=8)
def steps_between(layout: str, phase: int) -> Cells:
    """Fewest moves to a cell (first index) from another (second), ``[77, 77]``; 77 for no way."""
    moves = following(layout, phase)
    steps = np.where(np.eye(CELLS, dtype=bool), 0, CELLS)
    for _ in range(CELLS):
        closer = np.minimum(steps, steps[:, moves].min(axis=2) + 1)
        if (closer == steps).all():
            break
        steps = closer
    steps.flags.writeable = False
    return steps


@lru_cache(maxsize=8)
def ways(layout: str, phase: int) -> Cells:
    """First action on a shortest way to a cell (first index) from another, ``[77, 77]``."""
    steps = steps_between(layout, phase)
    table: Cells = steps[:, following(layout, phase)].argmin(axis=2)
    table.flags.writeable = False
    return table


# --- what is seen -------------------------------------------------------------------------------


class View(NamedTuple):
    """What an agent sees from each cell: ``S = height * width`` places."""

    height: int
    width: int
    backgrounds: Codes
    """Codes of board and agent, by board and cell, ``[3, 77, S]``."""
    places: NDArray[np.int16]
    """Where a cell (second index) is seen from another (first), ``[77, 77]``; -1 for nowhere."""


@lru_cache(maxsize=8)
def view_of(layout: str, crop: bool) -> View:
    """The window of 5 x 5 cells around the agent, or (without ``crop``) the whole board.

    Cells outside the board look like floor.
    """
    boards = np.full((3, ROWS, COLUMNS), FLOOR, np.uint8)
    for phase in range(3):
        boards[phase].flat[sorted(_walls(layout, phase))] = WALL
    numbers = np.arange(CELLS).reshape(ROWS, COLUMNS)
    height, width, margin = ROWS, COLUMNS, 0
    if crop:
        height, width, margin = _WINDOW, _WINDOW, _WINDOW // 2
    around = ((0, 0), (margin, margin), (margin, margin))
    boards = np.pad(boards, around, constant_values=FLOOR)
    numbers = np.pad(numbers, margin, constant_values=-1)
    backgrounds = np.empty((3, CELLS, height * width), np.uint8)
    places = np.full((CELLS, CELLS), -1, np.int16)
    for cell in range(CELLS):
        top, left = divmod(cell, COLUMNS) if crop else (0, 0)
        part = (slice(top, top + height), slice(left, left + width))
        seen = numbers[part].ravel()
        places[cell, seen[seen >= 0]] = np.flatnonzero(seen >= 0)
        backgrounds[:, cell] = boards[:, *part].reshape(3, -1)
        backgrounds[:, cell, places[cell, cell]] = AGENT
    backgrounds.flags.writeable = places.flags.writeable = False
    return View(height, width, backgrounds, places)


def encoded(codes: Codes, view: View, mode: str) -> Codes:
    """Codes ``[..., S]`` in the form of an observation, newly allocated.

    Args:
        mode: ``pixels``: ``[..., H, W, 3]``; ``flat``: the same, colours first and flattened,
            ``[..., 3 S]``; ``symbolic`` and ``full``: ``[..., H, W]``; ``one_hot``: ``[..., 7 S]``.
    """
    lead = codes.shape[:-1]
    if mode in ("symbolic", "full"):
        return codes.reshape(*lead, view.height, view.width).copy()
    if mode == "one_hot":
        return np.eye(len(CODES), dtype=np.uint8)[codes].reshape(*lead, -1)
    if mode == "flat":
        return np.stack([COLOURS[:, k][codes] for k in range(3)], axis=-2).reshape(*lead, -1)
    return COLOURS[codes].reshape(*lead, view.height, view.width, 3)


# --- pictures for people ------------------------------------------------------------------------

_LETTERS = ".#AkDa*"
_SIDE = 24  # pixels along a cell


def drawn(codes: Codes, mode: str, agent: int, caption: str, played: float) -> str | Codes:
    """Draw a whole board for a person.

    Args:
        codes: of all its cells, ``[77]``.
        mode: ``ansi`` for text, ``rgb_array`` for a picture ``[178, 264, 3]`` in which what the
            agent does not see is darker.
        agent: its cell.
        caption: a line below the text.
        played: part of the episode that is over, 0 to 1: a bar below the picture.
    """
    board = codes.reshape(ROWS, COLUMNS)
    if mode == "ansi":
        rows = ["".join(_LETTERS[code] for code in row) for row in board]
        return "\n".join([*rows, caption]) + "\n"
    row, column = divmod(agent, COLUMNS)
    half = _WINDOW // 2
    seen = np.zeros((ROWS, COLUMNS, 1), bool)
    seen[max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1] = True
    colours = np.where(seen, COLOURS[board], COLOURS[board] // 5 * 3)
    image = colours.repeat(_SIDE, axis=0).repeat(_SIDE, axis=1)
    bar = np.zeros((10, image.shape[1], 3), np.uint8)
    bar[2:8, : round(played * image.shape[1])] = COLOURS[AGENT]
    picture: Codes = np.concatenate([image, bar]).astype(np.uint8)
    return picture
