"""One look for each entrant, the same in every picture and table of a report.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart, without the
yellow that vanishes on white. Beyond seven entrants the line is dashed and the marker another one,
so that no two share colour, line and marker. Reference policies are grey.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h", "<", ">", "p", "d", "8")
_GREYS = ("#6B6B6B", "#A0A0A0")


class Look(NamedTuple):
    """How an entrant is drawn."""

    colour: str
    line: str
    marker: str


def looks(entrants: Sequence[str], references: Collection[str] = ()) -> dict[str, Look]:
    """The look of every entrant of a report.

    Args:
        entrants: all of them, in the report's order.
        references: those that are not trained.
    """
    out, trained, grey = {}, 0, 0
    for name in entrants:
        if name in references:
            out[name] = Look(_GREYS[grey % 2], ":", MARKERS[grey % len(MARKERS)])
            grey += 1
        else:
            line = LINES[trained // len(COLOURS) % len(LINES)]
            colour = COLOURS[trained % len(COLOURS)]
            out[name] = Look(colour, line, MARKERS[trained % len(MARKERS)])
            trained += 1
    return out
