"""Does a row tell the entrants apart? Said from the data, column by column."""

from __future__ import annotations

from typing import NamedTuple

from seqrl.report.format import score_text
from seqrl.report.scores import Column, RowScores
from seqrl.report.statistics import Estimate


class Gap(NamedTuple):
    """Best and worst entrant of a column."""

    column: Column
    best: str
    worst: str
    high: Estimate
    low: Estimate

    @property
    def size(self) -> float:
        """How far their means are apart."""
        return abs(self.high.value - self.low.value)

    @property
    def apart(self) -> bool | None:
        """Whether their intervals are disjoint; None where one has a single seed."""
        bounds = (self.high.low, self.high.high, self.low.low, self.low.high)
        if None in bounds:
            return None
        a, b, c, d = (float(v) for v in bounds if v is not None)
        return d < a or b < c


def gaps(row: RowScores) -> list[Gap]:
    """Best against worst trained entrant, for each column that at least two were asked.

    Those with fewer than three seeds are left out where two others have as many, and those with one
    where two others have two: few runs tell nothing apart.
    """
    out = []
    sign = -1 if row.info.lower else 1
    for column in row.columns:
        found = [(e, est) for e in row.trained if (est := row.estimate(e, column)) is not None]
        if len(found) < 2:
            continue
        for least in (3, 2):
            several = [f for f in found if f[1].seeds >= least]
            if len(several) >= 2:
                found = several
                break
        # Of equal means the one with more seeds: its interval says more.
        top = max(found, key=lambda f: (sign * f[1].value, f[1].seeds))
        bottom = min(found, key=lambda f: (sign * f[1].value, -f[1].seeds))
        out.append(Gap(column, top[0], bottom[0], top[1], bottom[1]))
    return out


def verdict(row: RowScores) -> str:
    """A sentence: whether a row separates its entrants, and where."""
    found, score = gaps(row), row.info.score
    name = f"**{row.info.key.row}**"
    if not found:
        return f"{name}: fewer than two trained entrants, nothing to compare."
    widest = max(found, key=lambda g: g.size)
    if widest.size == 0:
        return f"{name}: all trained entrants score the same."
    names = [g.column.name for g in found]
    apart = [g.column.name for g in found if g.apart]
    alike = [g.column.name for g in found if g.apart is False]
    single = [g.column.name for g in found if g.apart is None]
    largest = (
        f"the largest gap is {score_text(widest.size, score)}{_at(widest.column.name, names)} "
        f"({widest.best} {score_text(widest.high.value, score)}, "
        f"{widest.worst} {score_text(widest.low.value, score)})"
    )
    if apart:
        text = f"{name} separates its entrants: best and worst have disjoint intervals"
        text += _at(", ".join(apart), names, len(apart) == len(names))
    elif alike:
        text = f"{name} does not separate its entrants: the intervals of best and worst overlap"
        text += _at(", ".join(alike), names, len(alike) == len(names))
    else:
        text = f"{name}: best or worst have one seed, so it cannot be said whether they differ"
        return f"{text}; {largest}."
    if apart and alike:
        text += f", and overlap at {', '.join(alike)}"
    if single:
        text += f"; at {', '.join(single)} one of them has a single seed"
    return f"{text}; {largest}."


def _at(which: str, names: list[str], everywhere: bool = False) -> str:
    if names == ["score"]:
        return ""
    if everywhere and len(names) > 1:
        return " in every column"
    return f" at {which}"
