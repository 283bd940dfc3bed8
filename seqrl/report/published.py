"""Published numbers beside ours, and what is different about them.

``bench/published/SUITE.csv`` has the columns of :class:`Published`. A row's name there is that of a
suite's row; data that only share a name with the published ones are not the same, and it is said.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from seqrl.bench.suite import FOLDER as SUITES
from seqrl.report.records import Cell
from seqrl.report.rows import known_suite
from seqrl.report.scores import Column, RowScores
from seqrl.report.statistics import Estimate

FOLDER = SUITES.parent / "published"


@dataclass(frozen=True)
class Published:
    """One number of a publication, as it stands there."""

    suite: str
    row: str
    entrant: str
    label: str
    """Of the measure (``limit 90``); empty: the row's first."""
    value: str
    spread: str
    """As printed, with what it is (``sem 0.07``, ``std 1.0``); empty where none is given."""
    n_seeds: str
    protocol: str
    best_of: str
    """What the number is the largest of (``6 targets``); empty where it is no maximum."""
    source: str


@dataclass(frozen=True)
class Pair:
    """A published number and what was measured here."""

    published: Published
    measured: Estimate | None
    score: str
    differences: list[str]
    """In what the two differ, where something was measured."""
    command: str
    """What would measure it; empty where nothing here can."""


def published(suite: str) -> list[Published]:
    """The published numbers of a shipped suite; none where it has no file."""
    known = known_suite(suite)
    file = FOLDER / str(known.published if known else f"{suite}.csv")
    if not file.is_file():
        return []
    return [p for p in read(file) if p.suite == suite]


def read(file: Path) -> list[Published]:
    """Every line of a file of published numbers."""
    names = [f.name for f in fields(Published)]
    with open(file, encoding="utf-8", newline="") as lines:
        return [Published(**{k: (r.get(k) or "").strip() for k in names})
                for r in csv.DictReader(lines)]  # fmt: skip


def pairs(suite: str, rows: Sequence[RowScores]) -> list[Pair]:
    """Every published number of a suite with what was measured here; measured ones first."""
    out = []
    for p in published(suite):
        row = next((r for r in rows if _same_row(p, r)), None)
        column = None if row is None else _column(p, row)
        e = None if row is None or column is None else row.estimate(p.entrant, column)
        score = row.info.score if row is not None else _score(suite, p)
        out.append(
            Pair(
                p,
                e,
                score,
                _differences(p, row, e) if row is not None and e is not None else [],
                "" if e is not None else _command(p),
            )
        )
    return sorted(out, key=lambda pair: pair.measured is None)


def _same_row(p: Published, row: RowScores) -> bool:
    return row.info.key.suite == p.suite and plain(row.info.key.row) == plain(p.row)


def plain(name: str) -> str:
    """A dataset's name without path, suffix and version.

    >>> plain("data/hopper_medium_replay-v2.hdf5"), plain("hopper-medium-replay")
    ('hopper-medium-replay', 'hopper-medium-replay')
    """
    base = re.sub(r"\.(hdf5|npz)$", "", name.rpartition("/")[2])
    return re.sub(r"-v\d+$", "", base.replace("_", "-").lower())


def _column(p: Published, row: RowScores) -> Column | None:
    if not p.label:
        return row.primary[0] if row.primary else None
    labels = {
        r.label: column
        for (_, column), runs in row.results.items()
        for found in runs.values()
        for r in found.values()
    }
    return labels.get(p.label)


def _score(suite: str, p: Published) -> str:
    known = known_suite(suite)
    rows = known.rows if known else ()
    return next((r.score for r in rows if r.name == p.row), rows[0].score if rows else "return")


def _differences(p: Published, row: RowScores, e: Estimate) -> list[str]:
    """What is known to be different between a published number and ours."""
    cells: list[Cell] = [c for c in row.cells if c.entrant == p.entrant]
    out = []
    data = sorted({d for c in cells for d in c.data})
    if p.suite == "locomotion" and not all(d.startswith("d4rl:") for d in data):
        out.append(f"**other data** ({', '.join(data) or row.info.key.row}, not D4RL)")
    oracle = data and all(d.startswith("oracle:") for d in data)
    if oracle and p.protocol.startswith("data from PPO"):
        out.append("**other data** (the oracle's episodes here)")
    if p.n_seeds and p.n_seeds != str(e.seeds):
        out.append(f"{e.seeds} seed{'' if e.seeds == 1 else 's'} here, {p.n_seeds} there")
    if p.best_of:
        out.append(f"there the best of {p.best_of}, here one target set beforehand")
    updates = sorted({c.updates for c in cells if c.updates})
    if updates:
        out.append(f"{', '.join(map(str, updates))} updates here")
    return out


def _command(p: Published) -> str:
    """What would fill the cell; empty where the suite has no such row or entrant."""
    known = known_suite(p.suite)
    if known is None:
        return ""
    if known.data_template:
        found = p.entrant in known.entrants()
        data = f"d4rl:{p.row.replace('-', '_', p.row.count('-'))}-v2.hdf5"
        return f"seqrl bench {p.suite} --data {data} --agents {p.entrant}" if found else ""
    row = next((r for r in known.rows if r.name == p.row), None)
    if row is None or p.entrant not in [e.name for e in row.entrants]:
        return ""
    length = p.label.rpartition(" ")[2]
    asked = [f"{x:g}" for x in (*row.lengths, *row.long)]
    extra = f" --lengths {length}" if length.isdigit() and length not in asked else ""
    return f"seqrl bench {p.suite} --rows {p.row} --agents {p.entrant}{extra}"
