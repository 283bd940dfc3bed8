"""Renderings of tasks without a place: what was shown so far, as text or as a strip of squares.

Only for people: the strip keeps what the agent has to remember.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrl.envs import drawing
from seqrl.errors import SeqrlError

__all__ = ["Tape", "render"]

_TEXT_CELLS = 60
_IMAGE_CELLS = 15
_SIDE = 28  # pixels of a square
_BACK: drawing.Colour = (24, 26, 31)


class Tape(NamedTuple):
    """All a person may see of a running episode; never handed to an agent."""

    shown: Sequence[int]
    """What each observation so far has shown: places in ``letters``, or -1 for nothing."""
    letters: str
    """A character for each thing that can be shown."""
    step: int
    """Actions taken so far."""
    limit: int
    """Actions of an episode."""
    right: int
    """Right answers so far."""
    wrong: int
    """Wrong answers so far."""
    notes: tuple[str, ...] = ()
    """Further lines of text, each of at most 64 columns."""


def render(tape: Tape, mode: str) -> str | NDArray[np.uint8]:
    """Draw a running episode for a person.

    Args:
        tape: what happened.
        mode: ``"ansi"`` for text of at most 64 columns, the newest in brackets, or
            ``"rgb_array"`` for an image of 92 x 436 pixels: the newest fifteen squares, below them
            a bar of the right (green) and wrong (red) answers and one of time (grey).

    Raises:
        SeqrlError: unknown mode.
    """
    if mode == "ansi":
        return _text(tape)
    if mode == "rgb_array":
        return _image(tape)
    raise SeqrlError(f"cannot render in mode {mode!r}", "use 'ansi' or 'rgb_array'")


def _text(tape: Tape) -> str:
    line = "".join("." if place < 0 else tape.letters[place] for place in tape.shown)
    before = line[:-1] if len(line) <= _TEXT_CELLS else "<" + line[:-1][-_TEXT_CELLS + 1 :]
    lines = [f"{before}[{line[-1:]}]", f"step {tape.step} of {tape.limit}"]
    lines.append(f"{tape.right} right, {tape.wrong} wrong")
    return "\n".join([*lines, *tape.notes]) + "\n"


def _image(tape: Tape) -> NDArray[np.uint8]:
    image = np.full((_SIDE + 64, _IMAGE_CELLS * _SIDE + 16, 3), _BACK, np.uint8)
    recent = tape.shown[-_IMAGE_CELLS:]
    for cell, place in enumerate(recent):
        left = 8 + cell * _SIDE
        if cell == len(recent) - 1:  # a frame around the newest
            image[6 : _SIDE + 10, left - 2 : left + _SIDE + 2] = drawing.FLOOR
        colour = drawing.WALL if place < 0 else _colour(place, len(tape.letters))
        image[8 : _SIDE + 8, left : left + _SIDE] = colour
        image[8 : _SIDE + 8, left + _SIDE - 1] = _BACK
    length, answers = image.shape[1] - 16, max(tape.right + tape.wrong, 1)
    bars = (
        (tape.right / answers, drawing.GOAL),
        (tape.wrong / answers, drawing.OTHER_GOAL),
        (tape.step / tape.limit, (176, 180, 190)),
    )
    for row, (part, colour) in enumerate(bars):
        top = _SIDE + 20 + 14 * row
        image[top : top + 8, 8 : 8 + length] = drawing.DIM
        image[top : top + 8, 8 : 8 + round(length * part)] = colour
    return image


def _colour(place: int, count: int) -> drawing.Colour:
    """One of ``count`` colours as far apart as hues can be."""
    red, green, blue = colorsys.hsv_to_rgb(place / count, 0.65, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)
