"""What rows are about: title, score, chance, solved; from the suite where it is known."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from seqrl.bench import suite as suites
from seqrl.bench.suite import Suite
from seqrl.errors import SeqrlError
from seqrl.report.records import Cell, mapping

LOWER_IS_BETTER = ("regret", "latency")
COMMENSURABLE = ("success", "normalized")
"""Scores that mean the same on every task, so that an average over tasks means something."""


class RowKey(NamedTuple):
    """A row, within its suite."""

    suite: str
    row: str


@dataclass(frozen=True)
class RowInfo:
    """What is known of a row beyond its numbers."""

    key: RowKey
    title: str
    score: str
    kind: str = "train"
    axis: str | None = None
    """What its lengths are."""
    chance: float | None = None
    """The score of guessing."""
    solved: float | None = None
    """The score from which a run counts as having solved it; rows with one are two-valued."""
    measures: tuple[str, ...] = ()
    """Labels of its measures, in the suite's order."""

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.score in LOWER_IS_BETTER


@functools.cache
def known_suite(name: str) -> Suite | None:
    """A shipped suite; None where there is none of the name, or it cannot be read."""
    if name not in suites.names():
        return None
    try:
        return suites.load(name)
    except SeqrlError:
        return None


def describe_rows(cells: Sequence[Cell]) -> dict[RowKey, RowInfo]:
    """Every row that cells are of, in the order of their suites."""
    members: dict[RowKey, list[Cell]] = {}
    for c in cells:
        members.setdefault(RowKey(c.suite, c.row), []).append(c)
    infos = {key: _describe(key, mine) for key, mine in members.items()}
    return dict(sorted(infos.items(), key=lambda item: _place(item[0])))


def _place(key: RowKey) -> tuple[str, int, str]:
    suite = known_suite(key.suite)
    names = [r.name for r in suite.rows] if suite else []
    return key.suite, names.index(key.row) if key.row in names else len(names), key.row


def _describe(key: RowKey, cells: Sequence[Cell]) -> RowInfo:
    suite = known_suite(key.suite)
    rows = {r.name: r for r in suite.rows} if suite else {}
    row = rows.get(key.row)
    if row is None and suite is not None and suite.data_template:
        row = suite.rows[0]  # --data put another dataset into its place
        title = key.row
    else:
        title = row.title if row else key.row
    # A suite of one's own is not at hand: its cells say how their row is to be shown.
    told = next((mapping(c.plan.get("shown")) for c in cells if c.plan.get("shown")), {})
    if row is not None:
        told = {}
    title = str(told.get("title") or title)
    results = [r for c in cells for r in c.results]
    speed = cells[0].kind == "speed"
    axis = row.axis.title if row and row.axis else told.get("axis")
    if axis is None and any(r.x is not None for r in results):
        axis = "steps since reset" if speed else _axis(cells)
    score = row.score if row else told.get("score")
    measured = {m for r in results for m in r.values}
    if score is None or (measured and score not in measured):
        score = _guess(measured, speed)
    return RowInfo(
        key,
        title,
        score,
        cells[0].kind,
        axis,
        chance=row.chance if row else told.get("chance"),
        solved=row.solved if row else told.get("solved"),
        measures=tuple(str(m.get("label", "")) for m in row.measures) if row else (),
    )


def _guess(measured: set[str], speed: bool) -> str:
    """The score of a row of which nothing is known."""
    if speed:
        return "latency"
    return next((m for m in ("success", "normalized") if m in measured), "return")


def _axis(cells: Sequence[Cell]) -> str:
    """The environment's argument that lengths are of: ``limit`` of the label ``limit 30``."""
    for c in cells:
        for r in c.results:
            if r.x is not None:
                if r.label == f"{r.group} {r.x:g}":  # as measures on recorded contexts are called
                    return "recorded steps given"
                words = r.label.rpartition(", ")[2].rpartition(" ")
                return words[0] or "length"
    return "length"


def entrant_order(cells: Sequence[Cell]) -> list[str]:
    """Names of all entrants: trained ones as their suites list them, then reference policies."""
    listed: dict[str, int] = {}
    for c in cells:
        suite = known_suite(c.suite)
        for name in suite.entrants() if suite else ():
            listed.setdefault(name, len(listed))
    names = list(dict.fromkeys(c.entrant for c in cells))
    trained = {c.entrant for c in cells if not c.reference}

    def place(name: str) -> tuple[bool, int, str]:
        # A name like "dt (context 30)" stands where "dt" does.
        base = name if name in listed else name.partition(" (")[0]
        return name not in trained, listed.get(base, len(listed)), name

    return sorted(names, key=place)
