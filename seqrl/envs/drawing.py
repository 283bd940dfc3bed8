"""Pictures of the T-Mazes: pixel observations for agents, text and images for people.

The two must not be confused. A pixel observation is a function of the observation *vector* alone
(:func:`observation_images` receives nothing else), so it cannot show the agent's position along
the corridor or the goal. A rendering (:func:`render`) shows the whole maze, goal included.
Everything is plain numpy; an image is ``uint8 [height, width, 3]``, RGB, row 0 at the top.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from seqrl.errors import SeqrlError

__all__ = ["MAX_PATCHES", "OBSERVATION_SHAPE", "MazeView", "observation_images", "render"]

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

OBSERVATION_SHAPE = (64, 64, 3)
MAX_PATCHES = 16
"""How many noise-like channels fit into the bottom strip of a pixel observation (2 rows of 8)."""

WALL: Colour = (52, 56, 66)
FLOOR: Colour = (226, 224, 216)
START: Colour = (196, 208, 232)
AGENT: Colour = (46, 107, 222)
CUE: Colour = (245, 190, 30)
GOAL: Colour = (56, 168, 92)
OTHER_GOAL: Colour = (205, 84, 74)
DIM: Colour = (92, 96, 106)
SIGNS: NDArray[np.uint8] = np.array([(214, 62, 120), (128, 128, 128), (40, 190, 200)], np.uint8)
"""Colours of a channel at -1, 0 and +1."""

_CELL = 16  # pixels per maze cell in an observation
_PATCH = 8  # pixels per noise patch


@dataclass(frozen=True)
class MazeView:
    """All a person may see of a running episode; never handed to an agent."""

    x: int
    """Agent's cell along the corridor, 0 at the cue cell."""
    y: int
    """Agent's side: 0 in the corridor, +1 or -1 in a goal cell."""
    start: int
    """Cell in which episodes start."""
    junction: int
    """Last corridor cell."""
    goal: int
    """Side of the rewarded goal cell, +1 (up) or -1 (down)."""
    cue: int
    """The cue in the current observation, 0 when it is hidden."""
    step: int
    """Actions taken so far."""
    limit: int
    """Actions an episode may take."""
    notes: tuple[str, ...] = ()
    """Further lines of text."""


def _fill(image: Image, top: float, left: float, height: float, width: float, c: Colour) -> None:
    """Paint a rectangle in place (pixel units, rounded)."""
    image[round(top) : round(top + height), round(left) : round(left + width)] = c


def _disc(image: Image, centre: tuple[float, float], radius: float, colour: Colour) -> None:
    """Paint a disc in place around ``(row, column)``."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    inside = (rows + 0.5 - centre[0]) ** 2 + (columns + 0.5 - centre[1]) ** 2 <= radius**2
    image[inside] = colour


def _triangle(image: Image, centre: tuple[float, float], size: float, up: bool, c: Colour) -> None:
    """Paint an upright or inverted triangle of height ``size`` in place around its centre."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    depth = (rows + 0.5 - centre[0]) * (1 if up else -1) + size / 2  # 0 at the tip, `size` at base
    inside = (depth >= 0) & (depth <= size) & (np.abs(columns + 0.5 - centre[1]) <= depth * 0.6)
    image[inside] = c


# --- pixel observations ---------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _maze_images() -> Image:
    """Return the maze part for every value of (y, cue, flag): ``[3, 3, 2, 64, 64, 3]``.

    The view is centred on the agent, so that equal vectors give equal pictures: the corridor runs
    through the middle row, the flag turns its end into a junction, the cue is an arrow to the left.
    """
    images = np.empty((3, 3, 2, *OBSERVATION_SHAPE), np.uint8)
    for y in (-1, 0, 1):
        for cue in (-1, 0, 1):
            for flag in (0, 1):
                image = images[y + 1, cue + 1, flag]
                image[:] = WALL
                if flag:
                    _fill(image, _CELL, 0, _CELL, 2.75 * _CELL, FLOOR)
                    _fill(image, 0, 1.75 * _CELL, 3 * _CELL, _CELL, FLOOR)
                else:
                    _fill(image, _CELL, 0, _CELL, 4 * _CELL, FLOOR)
                _disc(image, ((1.5 - y) * _CELL, 2.25 * _CELL), 0.36 * _CELL, AGENT)
                if cue:
                    middle = (0.5 if cue > 0 else 2.5) * _CELL
                    _triangle(image, (middle, 0.75 * _CELL), 0.75 * _CELL, cue > 0, CUE)
                _fill(image, 3 * _CELL, 0, _CELL, 4 * _CELL, (0, 0, 0))
    images.flags.writeable = False
    return images


def observation_images(
    y: NDArray[np.integer],
    cue: NDArray[np.integer],
    flag: NDArray[np.integer],
    channels: NDArray[np.integer],
) -> Image:
    """Draw observation vectors as pictures, one to one.

    Args:
        y: agent's side, -1, 0 or +1, shape ``[N]``.
        cue: shown cue, -1, 0 or +1, shape ``[N]``.
        flag: junction flag, 0 or 1, shape ``[N]``.
        channels: noise and distractor columns, values -1, 0, +1, shape ``[N, P]``, P <= 16. Each
            is a patch of 8 x 8 pixels in the bottom strip, pink, grey or cyan.

    Returns:
        ``uint8 [N, 64, 64, 3]``, newly allocated; different vectors always give different pictures.
    """
    images: Image = _maze_images()[y + 1, cue + 1, flag]
    for patch in range(channels.shape[1]):
        top = 3 * _CELL + _PATCH * (patch // 8)
        left = _PATCH * (patch % 8)
        colours = SIGNS[channels[:, patch] + 1]  # (N, 3)
        images[:, top : top + _PATCH, left : left + _PATCH] = colours[:, None, None, :]
    return images


# --- renderings for people ------------------------------------------------------------------------

_TEXT_CELLS = 60
_IMAGE_CELLS = 15
_SIDE = 28  # pixels per cell of a rendering


def render(view: MazeView, mode: str) -> str | Image:
    """Draw a running episode for a person.

    Args:
        view: the state of the episode.
        mode: ``"ansi"`` for text of at most 64 columns, ``"rgb_array"`` for an image of at most
            436 x 132 pixels. A longer corridor is shown through a window around the agent.

    Raises:
        SeqrlError: unknown mode.
    """
    if mode == "ansi":
        return _render_text(view)
    if mode == "rgb_array":
        return _render_image(view)
    raise SeqrlError(f"cannot render in mode {mode!r}", "use 'ansi' or 'rgb_array'")


def _window(view: MazeView, cells: int) -> tuple[int, int]:
    """Return the first cell shown and one past the last one, at most ``cells`` around the agent."""
    total = view.junction + 1
    first = min(max(view.x - cells // 2, 0), max(total - cells, 0))
    return first, min(first + cells, total)


def _render_text(view: MazeView) -> str:
    first, last = _window(view, _TEXT_CELLS)
    width = last - first
    rows = {1: ["#"] * width, 0: ["."] * width, -1: ["#"] * width}
    for cell, letter in ((view.start, "S"), (0, "C")):
        if first <= cell < last:
            rows[0][cell - first] = letter
    if last == view.junction + 1:
        rows[view.goal][-1] = "G"
        rows[-view.goal][-1] = "x"
    rows[view.y][view.x - first] = "A"
    ends = ("#" if first == 0 else "<", "#" if last == view.junction + 1 else ">")
    side = {1: "up", -1: "down", 0: "hidden"}
    lines = [f"#{''.join(rows[1])}#", f"{ends[0]}{''.join(rows[0])}{ends[1]}"]
    lines.append(f"#{''.join(rows[-1])}#")
    lines.append(f"step {view.step} of {view.limit}, cell {view.x} of {view.junction}")
    lines.append(f"goal {side[view.goal]}, cue {side[view.cue]}")
    lines += [note if len(note) <= 64 else note[:61] + "..." for note in view.notes]
    return "\n".join(lines) + "\n"


def _render_image(view: MazeView) -> Image:
    """Corridor window, and below it the cue sign and bars for position (blue) and time (grey)."""
    first, last = _window(view, _IMAGE_CELLS)
    # At least five cells wide, so that the bars of the status strip stay readable.
    width = max(last - first, 5) * _SIDE + 16
    image: Image = np.empty((3 * _SIDE + 48, width, 3), np.uint8)
    image[:] = WALL
    middle, left = _SIDE + 8, 8
    open_left = 0 if first > 0 else left
    open_right = width if last <= view.junction else left + (last - first) * _SIDE
    _fill(image, middle, open_left, _SIDE, open_right - open_left, FLOOR)
    if first <= view.start < last:
        _fill(image, middle, left + (view.start - first) * _SIDE, _SIDE, _SIDE, START)
    for cell in range(first, last):
        _fill(image, middle, left + (cell - first + 1) * _SIDE - 1, _SIDE, 1, (198, 196, 188))
    if last == view.junction + 1:
        column = left + (view.junction - first) * _SIDE
        for side, colour in ((view.goal, GOAL), (-view.goal, OTHER_GOAL)):
            _fill(image, middle - side * _SIDE, column, _SIDE, _SIDE, colour)
    if first == 0:  # the sign hangs on the side it names, bright while the agent is told
        sign = (middle + _SIDE * (0.5 - view.goal), left + 0.5 * _SIDE)
        _triangle(image, sign, 0.5 * _SIDE, view.goal > 0, CUE if view.cue else DIM)
    agent = (middle + _SIDE * (0.5 - view.y), left + (view.x - first + 0.5) * _SIDE)
    _disc(image, agent, 0.34 * _SIDE, AGENT)
    _draw_status(image, view)
    return image


def _draw_status(image: Image, view: MazeView) -> None:
    """Paint the bottom strip of a rendering in place."""
    top = 3 * _SIDE + 16
    width = image.shape[1]
    image[top:] = (24, 26, 31)
    if view.cue:
        _triangle(image, (top + 16, 18), 18, view.cue > 0, CUE)
    else:
        _fill(image, top + 14, 10, 4, 16, DIM)
    length = width - 48
    bars = ((view.x / max(view.junction, 1), AGENT), (view.step / view.limit, (176, 180, 190)))
    for row, (part, colour) in enumerate(bars):
        _fill(image, top + 7 + 11 * row, 40, 7, length, DIM)
        _fill(image, top + 7 + 11 * row, 40, 7, max(length * part, 1), colour)
