"""Two result folders side by side: what changed from A to B, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqrl.errors import SeqrlError
from seqrl.report import figures
from seqrl.report.blocks import (
    Block,
    Bullets,
    Folded,
    Page,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
)
from seqrl.report.content import Report, build
from seqrl.report.format import estimate_text, score_text
from seqrl.report.rows import RowInfo
from seqrl.report.scores import Column
from seqrl.report.statistics import Estimate, difference, over_seeds

MIN_SEEDS = 3
"""Seeds that a verdict needs: two differ in the same direction half of the time by chance."""

_MOST = 16
"""Most differences of a row that its picture shows."""


@dataclass(frozen=True)
class Change:
    """A score in both folders, of one entrant, column and target."""

    info: RowInfo
    entrant: str
    column: Column
    target: str
    before: Estimate
    after: Estimate
    difference: Estimate
    verdict: str

    @property
    def name(self) -> str:
        """The entrant with its column and target, where there are several."""
        words = [self.entrant, self.column.name.replace("score", "")]
        if self.target != "-":
            words.append(f"target {self.target}")
        return ", ".join(w for w in words if w)


@dataclass
class Comparison:
    """What is in both folders, and what is in one alone."""

    a: Report
    b: Report
    changes: list[Change]
    only_a: list[str]
    only_b: list[str]


def verdict(e: Estimate, lower: bool) -> str:
    """A word for a difference B - A.

    >>> verdict(Estimate(0.5, 0.1, 0.9, 3, ""), lower=False)
    'better'
    >>> verdict(Estimate(0.5, 0.1, 0.9, 2, ""), lower=False)
    'few seeds'
    """
    if e.value == 0 and (e.low, e.high) in ((None, None), (0, 0)):
        return "equal"
    if e.low is None or e.high is None or e.seeds < MIN_SEEDS:
        return "few seeds"
    if e.low <= 0 <= e.high:
        return "unclear"
    return "better" if (e.value > 0) != lower else "worse"


def compare(a: str | Path, b: str | Path, by: Sequence[str] = ()) -> Comparison:
    """Differences B - A of every score that both folders have.

    Args:
        a, b: folders of results.
        by: see :func:`seqrl.report.naming.regroup`.

    Raises:
        SeqrlError: no results in one of them, or nothing that both have.
    """
    first, second = build([a], by=by), build([b], by=by)
    old, new = _points(first), _points(second)
    changes = []
    for key, (info, before) in old.items():
        if key in new:
            after = new[key][1]
            e = difference(before, after)
            changes.append(
                Change(
                    info,
                    key[2],
                    key[3],
                    key[4],
                    over_seeds(list(before.values())),
                    over_seeds(list(after.values())),
                    e,
                    verdict(e, info.lower),
                )
            )
    if not changes:
        raise SeqrlError(
            f"{a} and {b} have no row and entrant in common",
            hint="compare two folders of the same suite, or of runs on the same data",
        )
    only = [[_words(k) for k in one if k not in other] for one, other in ((old, new), (new, old))]
    return Comparison(first, second, changes, *only)


_Key = tuple[str, str, str, Column, str]


def _points(report: Report) -> dict[_Key, tuple[RowInfo, dict[int, float]]]:
    """Scores by seed, of every entrant, column and target."""
    out: dict[_Key, tuple[RowInfo, dict[int, float]]] = {}
    for row in report.rows:
        for e in row.entrants:
            for c in row.columns:
                for target, runs in row.by_target(e, c).items():
                    score = row.info.score
                    values = {run[0]: r.values[score].mean for run, r in runs.items()
                              if score in r.values}  # fmt: skip
                    if values:
                        out[(*row.info.key, e, c, target)] = (row.info, values)
    return out


def _words(key: _Key) -> str:
    target = "" if key[4] == "-" else f" at target {key[4]}"
    return f"{key[1]} · {key[2]} · {key[3].name}{target}"


HEADS = ("row", "entrant", "column", "target", "A", "B", "B - A [95% CI]", "over", "verdict")


def change_rows(changes: Sequence[Change]) -> list[list[str]]:
    """Cells of the table of changes."""
    return [
        [
            c.info.key.row,
            c.entrant,
            c.column.name,
            c.target,
            score_text(c.before.value, c.info.score),
            score_text(c.after.value, c.info.score),
            _signed(c.difference, c.info.score),
            c.difference.over,
            c.verdict,
        ]
        for c in changes
    ]


def _signed(e: Estimate, score: str) -> str:
    text = estimate_text(e, score)
    return f"+{text}" if e.value > 0 else text


def counts(changes: Sequence[Change]) -> str:
    """How many of each verdict."""
    words = ("better", "worse", "unclear", "equal", "few seeds")
    found = {w: sum(c.verdict == w for c in changes) for w in words}
    return ", ".join(f"{n} {w}" for w, n in found.items() if n)


def page(found: Comparison, title: str | None = None) -> Page:
    """The comparison as a page."""
    a, b = (" ".join(map(str, r.found.folders)) for r in (found.a, found.b))
    caption = (
        "Scores are means over seeds. B - A: bootstrap over seeds, paired where at least two seeds "
        "match. Verdict: **better** or **worse** where the interval leaves out 0 (of regret and "
        "latency less is better), **unclear** where it holds 0, **equal** where nothing changed at "
        f"all, **few seeds** below {MIN_SEEDS}. Chance alone puts n paired differences on one side "
        "of 0 in 1 of 2^(n-1) cases: with three seeds in 1 of 4, with ten in 1 of 512."
    )
    table = Table(HEADS, change_rows(found.changes), caption, "ttttnnntt", entrants=1)
    blocks: list[Block] = [
        Text(f"A is `{a}`, B is `{b}`: {counts(found.changes)}."),
        table,
        Pictures(_pictures(found)),
    ]
    for name, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            blocks.append(Folded(f"Only in {name} ({len(only)})", [Bullets(only)]))
    notes = [*found.a.found.warnings, *found.b.found.warnings, *found.a.notes, *found.b.notes]
    if notes:
        blocks.append(Folded(f"Notes on what was read ({len(notes)})", [Bullets(notes)]))
    looks = {**found.b.looks, **found.a.looks}
    return Page(
        title or "seqrl report: B compared with A",
        [],
        [Section("changes", "Differences", blocks)],
        {e: (look.colour, look.line != "-") for e, look in looks.items()},
    )


def _pictures(found: Comparison) -> list[Picture]:
    looks = {**found.b.looks, **found.a.looks}
    rows: dict[Any, list[Change]] = {}
    for c in found.changes:
        rows.setdefault(c.info.key, []).append(c)
    out: list[Picture] = []
    for key, members in rows.items():
        # Those that changed most; the table has all.
        shown = sorted(members, key=lambda c: -abs(c.difference.value))[:_MOST]
        names = {c.name: c.difference for c in shown}
        colours = {c.name: looks[c.entrant] for c in shown}
        title = f"{key.row}: B - A"
        alt = f"{title}, {len(shown)} of {len(members)} differences with intervals; 0 is none."
        measure = figures.SCORE_NAMES.get(members[0].info.score, members[0].info.score)
        out.append(_picture(f"difference-{len(out)}", title, alt, names, colours, measure))
    return out


def _picture(
    name: str, title: str, alt: str, names: dict[str, Estimate], colours: Any, measure: str
) -> Picture:
    axis = f"difference in {measure}"
    return Picture(name, title, alt, lambda: figures.estimates_figure(names, colours, axis, 0.0))


def change_table(found: Comparison) -> list[dict[str, Any]]:
    """The changes with plain numbers, for CSV and JSON."""
    return [
        {
            "suite": c.info.key.suite,
            "row": c.info.key.row,
            "entrant": c.entrant,
            "measure": c.column.group,
            "length": c.column.x,
            "target": c.target,
            "score": c.info.score,
            "a": c.before.value,
            "a_seeds": c.before.seeds,
            "b": c.after.value,
            "b_seeds": c.after.seeds,
            "difference": c.difference.value,
            "low": c.difference.low,
            "high": c.difference.high,
            "over": c.difference.over,
            "verdict": c.verdict,
        }
        for c in found.changes
    ]
