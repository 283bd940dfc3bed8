"""A report before it is written down: cells, rows, aggregates, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seqrl.errors import SeqrlError, did_you_mean
from seqrl.report import naming, records
from seqrl.report.palette import Look, looks
from seqrl.report.records import Cell, Found
from seqrl.report.rows import COMMENSURABLE, RowInfo, RowKey, describe_rows, entrant_order
from seqrl.report.scores import Column, Line, RowScores, glance, row_scores
from seqrl.report.statistics import (
    Estimate,
    aggregate,
    plain_mean,
    probability_of_improvement,
)


@dataclass(frozen=True)
class Aggregate:
    """Rows of one suite and score, taken together."""

    suite: str
    score: str
    columns: dict[RowKey, list[Column]]
    """What the average is over: columns that every entrant of it was asked."""
    iqm: dict[str, Estimate]
    """By entrant; empty where scores of different rows have no common scale."""
    mean: dict[str, Estimate]
    """The same for the mean."""
    improvement: dict[str, Estimate]
    """Probability that an entrant beats the baseline, by entrant."""
    baseline: str | None
    left_out: list[str]
    """Entrants that were not asked every row."""


@dataclass
class Report:
    """Everything that a report says, as data."""

    title: str
    found: Found
    cells: list[Cell]
    rows: list[RowScores]
    infos: dict[RowKey, RowInfo]
    entrants: list[str]
    looks: dict[str, Look]
    lines: list[Line]
    aggregates: list[Aggregate]
    notes: list[str]

    @property
    def trained_rows(self) -> list[RowScores]:
        """Rows with scores of policies."""
        return [r for r in self.rows if r.info.kind != "speed" and r.columns]

    @property
    def speed_rows(self) -> list[RowScores]:
        """Rows with figures of speed."""
        return [r for r in self.rows if r.info.kind == "speed" and r.columns]

    def row_name(self, key: RowKey) -> str:
        """A row, with its suite where there are several."""
        several = len({k.suite for k in self.infos}) > 1
        return f"{key.suite or 'runs'}: {key.row}" if several else key.row


def build(
    folders: Sequence[str | Path],
    *,
    title: str | None = None,
    baseline: str | None = None,
    by: Sequence[str] = (),
) -> Report:
    """Load folders and work out what a report says of them.

    Args:
        folders: of ``seqrl bench`` and training runs, in any mix.
        title: of the page.
        baseline: entrant that the others are compared with; the first of each suite by default.
        by: facts that name rows and entrants, see :func:`seqrl.report.naming.regroup`.

    Raises:
        SeqrlError: no folder, no results, or an unknown baseline or fact.
    """
    found = records.load(folders)
    cells, notes = naming.regroup(found.cells, by) if by else naming.separate(found.cells)
    order = entrant_order(cells)
    if baseline is not None and baseline not in order:
        hint = did_you_mean(baseline, order, f"entrants: {', '.join(order)}")
        raise SeqrlError(f"no entrant '{baseline}' for --baseline", hint=hint)
    infos = describe_rows(cells)
    rows = row_scores(cells, infos, order)
    references = {c.entrant for c in cells if c.reference} - {
        c.entrant for c in cells if not c.reference
    }
    return Report(
        title=title or _title(infos, found.folders),
        found=found,
        cells=cells,
        rows=rows,
        infos=infos,
        entrants=order,
        looks=looks(order, references),
        lines=glance(rows),
        aggregates=_aggregates(rows, order, baseline),
        notes=notes,
    )


def _title(infos: dict[RowKey, RowInfo], folders: Sequence[Path]) -> str:
    names = list(dict.fromkeys(k.suite for k in infos if k.suite))
    what = ", ".join(names) or ", ".join(f.absolute().name for f in folders)
    return f"seqrl report: {what}"


def _aggregates(
    rows: Sequence[RowScores], order: Sequence[str], baseline: str | None
) -> list[Aggregate]:
    groups: dict[tuple[str, str], list[RowScores]] = {}
    for row in rows:
        if row.info.kind != "speed" and row.trained:
            groups.setdefault((row.info.key.suite, row.info.score), []).append(row)
    found = (_aggregate(*key, members, order, baseline) for key, members in groups.items())
    return [a for a in found if a is not None]


def _aggregate(
    suite: str, score: str, rows: list[RowScores], order: Sequence[str], baseline: str | None
) -> Aggregate | None:
    """Rows of one score together; None where nobody was asked all of them, or only one was."""
    names = [e for e in order if any(e in r.trained for r in rows)]
    whole = [e for e in names if all(len(r.matrix(e, r.primary[:1])) for r in rows)]
    columns = {r.info.key: r.common(whole) for r in rows}
    if len(whole) < 2 or not all(columns.values()):
        return None
    strata = {e: [r.matrix(e, columns[r.info.key]) for r in rows] for e in whole}
    strata = {e: s for e, s in strata.items() if all(len(m) for m in s)}
    sign = -1 if rows[0].info.lower else 1
    base = baseline if baseline is not None else next(iter(strata), None)
    iqm, mean, improvement = {}, {}, {}
    for e, mine in strata.items():
        if score in COMMENSURABLE or len(rows) == 1:
            iqm[e], mean[e] = aggregate(mine), aggregate(mine, plain_mean)
        if base in strata and e != base:
            theirs = [sign * m for m in strata[str(base)]]
            improvement[e] = probability_of_improvement([sign * m for m in mine], theirs)
    left_out = [e for e in names if e not in strata]
    return Aggregate(suite, score, columns, iqm, mean, improvement, base, left_out)
