"""The scores of a row: entrant by column by seed, and the estimates that tables print.

A **column** is a measure at a length (``limit 90``), or a measure where there are none (``last``).
Where a policy was asked for several returns, a column's score is the one at the last-listed target,
which is fixed beforehand; the others, and the best of them, are kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from seqrl.report.records import Cell, Result
from seqrl.report.rows import RowInfo, RowKey
from seqrl.report.statistics import (
    Estimate,
    aggregate,
    interquartile_mean,
    over_seeds,
    plain_mean,
)

FIRST = "first measure"
"""Group of columns that stand for each entrant's own first measure."""

Run = tuple[int, int]
"""Training seed, and a number for runs that share it."""


class Column(NamedTuple):
    """A measure, at a length where there are any."""

    group: str
    x: float | None

    @property
    def name(self) -> str:
        """For table heads."""
        x = "" if self.x is None else f"{self.x:g}"
        return " ".join(w for w in (self.group, x) if w) or "score"


@dataclass
class RowScores:
    """Everything measured of a row's score."""

    info: RowInfo
    cells: list[Cell]
    entrants: list[str]
    columns: list[Column] = field(default_factory=list)
    results: dict[tuple[str, Column], dict[Run, dict[str, Result]]] = field(default_factory=dict)
    """By entrant and column: of each run, its results by target, in the order they were asked."""
    references: frozenset[str] = frozenset()
    """Entrants that are not trained."""

    @property
    def trained(self) -> list[str]:
        """Entrants that are."""
        return [e for e in self.entrants if e not in self.references]

    @property
    def groups(self) -> list[str]:
        """Measures, in order."""
        return list(dict.fromkeys(c.group for c in self.columns))

    def columns_of(self, group: str) -> list[Column]:
        """Columns of a measure."""
        return [c for c in self.columns if c.group == group]

    @cached_property
    def first(self) -> dict[str, str]:
        """The first measure of each entrant that has the row's score."""
        out: dict[str, str] = {}
        for group in self.groups:
            for e in self.entrants:
                if e not in out and any(self._scores(e, c) for c in self.columns_of(group)):
                    out[e] = group
        return out

    @cached_property
    def primary(self) -> list[Column]:
        """Columns that rank the entrants: those of the measure that is listed first.

        Where entrants are measured in different ways, each one's own first measure; one that was
        asked at lengths only is not ranked among others that were not. Of a training run all
        columns: they are its tasks, not other ways to ask the same.
        """
        if not self.info.key.suite:
            return [c for c in self.columns if c.group not in self._best_groups] or self.columns
        groups = set(self.first.values())
        if len(groups) < 2:
            return self.columns_of(groups.pop()) if groups else list(self.columns)
        lengths = {c.x for e, g in self.first.items() for c in self.columns_of(g)
                   if self._scores(e, c)}  # fmt: skip
        if None in lengths:  # a number of its own and a series of them have no common place
            lengths = {None}
        return [Column(FIRST, x) for x in sorted(lengths, key=_length)]

    @cached_property
    def _best_groups(self) -> list[str]:
        """Measures of the checkpoint that was best in training."""
        found: dict[str, set[str]] = {}
        for (e, c), runs in self.results.items():
            if e in self.trained:
                used = found.setdefault(c.group, set())
                used |= {r.checkpoint for by_target in runs.values() for r in by_target.values()}
        return [g for g in self.groups if found.get(g) == {"best"}]

    @property
    def best(self) -> list[Column]:
        """Columns of the first measure of the checkpoint that was best in training."""
        return self.columns_of(self._best_groups[0]) if self._best_groups else []

    @property
    def last(self) -> list[Column]:
        """The primary columns, or where these are of the best checkpoint, those of the last one."""
        if not any(c.group in self._best_groups for c in self.primary):
            return self.primary
        others = [g for g in self.groups if g not in self._best_groups]
        return self.columns_of(others[0]) if others else []

    def runs(self, entrant: str, column: Column) -> dict[Run, dict[str, Result]]:
        """Results of each run by target, in the order they were asked."""
        if column.group == FIRST:
            column = Column(self.first.get(entrant, ""), column.x)
        return self.results.get((entrant, column), {})

    def _scores(self, entrant: str, column: Column) -> bool:
        runs = self.results.get((entrant, column), {})
        return any(self.info.score in r.values for found in runs.values() for r in found.values())

    def values(self, entrant: str, column: Column) -> dict[Run, float]:
        """Score of each run at its last-listed target."""
        out = {}
        for run, by_target in self.runs(entrant, column).items():
            found = list(by_target.values())[-1].values.get(self.info.score)
            if found is not None:
                out[run] = found.mean
        return out

    def estimate(self, entrant: str, column: Column) -> Estimate | None:
        """Mean over seeds; None where nothing was measured."""
        values = list(self.values(entrant, column).values())
        return over_seeds(values) if values else None

    def solved(self, entrant: str, column: Column) -> tuple[int, int] | None:
        """How many runs solve the column, of how many; None where that is no question."""
        values = list(self.values(entrant, column).values())
        if self.info.solved is None or not values:
            return None
        return sum(v >= self.info.solved for v in values), len(values)

    def episodes(self) -> list[int]:
        """Different numbers of episodes behind a score of one run."""
        found = (r.n for runs in self.results.values() for by_target in runs.values()
                 for r in by_target.values())  # fmt: skip
        return sorted({n for n in found if n is not None})

    def trials(self, entrant: str) -> dict[tuple[str, str], list[Result]]:
        """Results with trials by measure and target, one of each run."""
        out: dict[tuple[str, str], list[Result]] = {}
        for (e, column), runs in self.results.items():
            if e != entrant:
                continue
            for by_target in runs.values():
                for target, r in by_target.items():
                    if r.trials is not None:
                        out.setdefault((column.name, target), []).append(r)
        return out

    def targets(self, entrant: str) -> list[str]:
        """Target labels of an entrant, as asked."""
        found = [t for (e, _), runs in self.results.items() if e == entrant
                 for by_target in runs.values() for t in by_target]  # fmt: skip
        return list(dict.fromkeys(found))

    def by_target(self, entrant: str, column: Column) -> dict[str, dict[Run, Result]]:
        """Results by target label, then by run."""
        out: dict[str, dict[Run, Result]] = {}
        for run, found in self.runs(entrant, column).items():
            for label, r in found.items():
                out.setdefault(label, {})[run] = r
        return out

    def best_over_targets(self, entrant: str, column: Column) -> tuple[str, Estimate] | None:
        """The target whose mean over seeds is best, chosen afterwards, and that mean.

        None where fewer than two targets were asked.
        """
        score, found = self.info.score, {}
        for label, runs in self.by_target(entrant, column).items():
            values = [r.values[score].mean for r in runs.values() if score in r.values]
            if values:
                found[label] = over_seeds(values)
        if len(found) < 2:
            return None
        sign = -1 if self.info.lower else 1
        label = max(found, key=lambda k: sign * found[k].value)
        return label, found[label]

    def matrix(self, entrant: str, columns: Sequence[Column]) -> np.ndarray:
        """Scores ``[seeds, columns]`` of the runs that have every column."""
        found = [self.values(entrant, c) for c in columns]
        runs = [r for r in (found[0] if found else {}) if all(r in f for f in found)]
        return np.array([[f[r] for f in found] for r in runs]).reshape(len(runs), len(columns))

    def common(self, entrants: Sequence[str] | None = None) -> list[Column]:
        """Primary columns that every one of some entrants was asked (default: those trained)."""
        names = self.trained if entrants is None else entrants
        return [c for c in self.primary if all(self.values(e, c) for e in names)]


def _length(x: float | None) -> float:
    return -1.0 if x is None else x


def row_scores(
    cells: Sequence[Cell], infos: Mapping[RowKey, RowInfo], order: Sequence[str]
) -> list[RowScores]:
    """Scores of every row, rows and entrants in order."""
    return [_row(info, [c for c in cells if RowKey(c.suite, c.row) == key], order)
            for key, info in infos.items()]  # fmt: skip


def _row(info: RowInfo, cells: list[Cell], order: Sequence[str]) -> RowScores:
    here = {c.entrant for c in cells}
    row = RowScores(
        info,
        cells,
        [e for e in order if e in here],
        references=frozenset(c.entrant for c in cells if c.reference),
    )
    groups: list[str] = []
    columns: set[Column] = set()
    times: dict[tuple[str, int], int] = {}
    for c in cells:
        again = times.get((c.entrant, c.seed), 0)
        times[c.entrant, c.seed] = again + 1
        for r in c.results:
            if r.group not in groups:
                groups.append(r.group)
            column = Column(r.group, r.x)
            columns.add(column)
            runs = row.results.setdefault((c.entrant, column), {})
            runs.setdefault((c.seed, again), {})[r.target_label] = r

    def place(c: Column) -> tuple[int, int, float]:
        # As the suite lists its measures; parts of one ("given, reward seen") where it stands.
        listed = [i for i, m in enumerate(info.measures) if m and c.group.startswith(m)]
        return (max(listed) if listed else len(info.measures)), groups.index(c.group), _length(c.x)

    row.columns = sorted(columns, key=place)
    return row


# --- one line for each entrant and row ---------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """An entrant on a row at a glance."""

    key: RowKey
    title: str
    entrant: str
    score: str
    seeds: int
    columns: int
    estimate: Estimate | None
    two_valued: bool
    """Whether the estimate is a mean: the IQM would drop just the seeds that fail."""
    last: float | None
    best: float | None
    periodic: bool
    """Whether ``best`` is the highest periodic evaluation rather than a measure of its own."""
    minutes: float | None
    """Training time a seed."""
    reference: bool = False
    """Whether it is a reference policy, which has no seeds."""


def glance(rows: Sequence[RowScores]) -> list[Line]:
    """A line for each entrant of each row that has scores of training.

    Averages are over seeds and those columns that all trained entrants of the row were asked, so
    that those which were asked longer corridors are not averaged over more than others.
    """
    lines = []
    for row in rows:
        if row.info.kind == "speed":
            continue
        columns = row.common() or row.primary[:1]
        two_valued = row.info.solved is not None
        statistic = plain_mean if two_valued else interquartile_mean
        for entrant in row.entrants:
            scores = row.matrix(entrant, columns)
            if not scores.size and entrant in row.references:
                continue
            spent = [c.train_seconds for c in row.cells if c.entrant == entrant]
            known = [s for s in spent if s is not None]
            lengths = {c.x for c in columns}
            best, periodic = _best(row, entrant, lengths)
            lines.append(
                Line(
                    key=row.info.key,
                    title=row.info.title,
                    entrant=entrant,
                    score=row.info.score,
                    seeds=len(scores),
                    columns=len(columns),
                    estimate=aggregate([scores], statistic) if scores.size else None,
                    two_valued=two_valued,
                    last=_mean(row, entrant, row.last, lengths),
                    best=best,
                    periodic=periodic,
                    minutes=sum(known) / len(known) / 60 if known else None,
                    reference=entrant in row.references,
                )
            )
    return lines


def _mean(
    row: RowScores, entrant: str, columns: Sequence[Column], lengths: set[float | None]
) -> float | None:
    """Mean over seeds and those columns that have some lengths."""
    scores = row.matrix(entrant, [c for c in columns if c.x in lengths])
    return float(scores.mean()) if scores.size else None


def _best(row: RowScores, entrant: str, lengths: set[float | None]) -> tuple[float | None, bool]:
    """Mean at the best checkpoint where it was measured, else the highest periodic evaluation."""
    if row.best and entrant in row.trained:
        return _mean(row, entrant, row.best, lengths), False
    highs = []
    for c in row.cells:
        if c.entrant == entrant and (name := curve_key(c, row.info.score)) is not None:
            found = [p[name] for p in c.curve if name in p]
            highs.append(min(found) if row.info.lower else max(found))
    return (float(np.mean(highs)) if highs else None), True


def curve_key(cell: Cell, score: str) -> str | None:
    """Name in the learning curve of a row's score at the last-listed target."""
    names = list(dict.fromkeys(k for p in cell.curve for k in p))
    found = [k for k in names if k == f"eval/{score}" or k.startswith(f"eval/{score}[")]
    return found[-1] if found else None
