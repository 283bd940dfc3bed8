"""A report as CSV: flat tables with plain numbers, a file for each kind of thing."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from seqrl.report import published as papers
from seqrl.report import settings as chosen
from seqrl.report.content import Report
from seqrl.report.records import MEASURES, SPEED, Value
from seqrl.report.statistics import Estimate

Rows = list[dict[str, Any]]


def tables(report: Report) -> dict[str, Rows]:
    """Name of each table that has rows to its rows."""
    found = {
        "results": results(report),
        "scores": scores(report),
        "glance": glance(report),
        "aggregate": aggregates(report),
        "speed": speed(report),
        "curves": curves(report),
        "settings": settings(report),
        "published": published(report),
        "failed": failed(report),
    }
    return {name: rows for name, rows in found.items() if rows}


def csv_text(rows: Rows) -> str:
    """Rows as CSV; columns in the order they first appear."""
    names = list(dict.fromkeys(k for r in rows for k in r))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in r.items()} for r in rows)
    return out.getvalue()


def results(report: Report) -> Rows:
    """A line a cell, measure and target: what the records say."""
    out = []
    for c in report.cells:
        if c.kind == "speed":
            continue
        for r in c.results:
            line: dict[str, Any] = {
                **_place(c.suite, c.row, c.entrant),
                "seed": c.seed,
                "label": r.label,
                "group": r.group,
                "length": r.x,
                "target": r.target,
                "target_label": r.target_label,
                "episodes": r.n,
                "checkpoint": r.checkpoint,
                **r.protocol,
                "environment": r.env,
            }
            line["evaluation_seed"] = r.protocol.get("seed")
            line["seed"] = c.seed
            for measure in MEASURES:
                line |= _value(measure, r.values.get(measure))
            out.append(line)
    return out


def _place(suite: str, row: str, entrant: str) -> dict[str, Any]:
    return {"suite": suite, "row": row, "entrant": entrant}


def _value(name: str, v: Value | None) -> dict[str, Any]:
    low, high, over = (v.low, v.high, v.over) if v else (None, None, None)
    return {
        name: v.mean if v else None,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_interval": over,
    }


def _estimate(e: Estimate | None) -> dict[str, Any]:
    if e is None:
        return {"mean": None, "low": None, "high": None, "seeds": 0, "interval": None}
    return {"mean": e.value, "low": e.low, "high": e.high, "seeds": e.seeds, "interval": e.over}


def scores(report: Report) -> Rows:
    """A line an entrant and column: the mean over seeds at the last-listed target."""
    out = []
    for row in report.trained_rows:
        for e in row.entrants:
            for c in row.columns:
                estimate = row.estimate(e, c)
                if estimate is None:
                    continue
                solved = row.solved(e, c)
                best = row.best_over_targets(e, c)
                targets = list(row.by_target(e, c))
                out.append(
                    {
                        **_place(*row.info.key, e),
                        "measure": c.group,
                        "length": c.x,
                        "target": targets[-1],
                        "score": row.info.score,
                        **_estimate(estimate),
                        "episodes": " ".join(map(str, row.episodes())),
                        "solved": None if solved is None else solved[0] / solved[1],
                        "best_over_targets": None if best is None else best[1].value,
                        "best_target": None if best is None else best[0],
                        "targets": len(targets),
                        "chance": row.info.chance,
                    }
                )
    return out


def glance(report: Report) -> Rows:
    """A line an entrant and row, as on the terminal."""
    out = []
    for line in report.lines:
        found = _estimate(line.estimate)
        found = {
            "statistic": "mean" if line.two_valued else "iqm",
            "value": found.pop("mean"),
        } | found
        out.append(
            {
                **_place(*line.key, line.entrant),
                "score": line.score,
                **found,
                "columns": line.columns,
                "last": line.last,
                "best": line.best,
                "best_is_periodic": line.periodic,
                "minutes_per_seed": line.minutes,
            }
        )
    return out


def aggregates(report: Report) -> Rows:
    """A line an entrant and aggregate."""
    out = []
    for a in report.aggregates:
        for e in dict.fromkeys([*a.iqm, *a.improvement]):
            iqm, mean = _estimate(a.iqm.get(e)), _estimate(a.mean.get(e))
            p = _estimate(a.improvement.get(e))
            out.append(
                {
                    "suite": a.suite,
                    "score": a.score,
                    "entrant": e,
                    "rows": len(a.columns),
                    "iqm": iqm["mean"],
                    "iqm_low": iqm["low"],
                    "iqm_high": iqm["high"],
                    "mean": mean["mean"],
                    "mean_low": mean["low"],
                    "mean_high": mean["high"],
                    "interval": iqm["interval"] or p["interval"],
                    "baseline": a.baseline,
                    "improvement": p["mean"],
                    "improvement_low": p["low"],
                    "improvement_high": p["high"],
                }
            )
    return out


def speed(report: Report) -> Rows:
    """A line a speed cell and point, with the reason where it is missing."""
    return [
        {
            **_place(c.suite, c.row, c.entrant),
            "seed": c.seed,
            "batch": r.protocol.get("batch"),
            "steps": r.x,
            "rule": r.protocol.get("rule"),
            **{key: r.values[m].mean if m in r.values else None for m, key in SPEED.items()},
            "reason": r.reason,
        }
        for c in report.cells
        if c.kind == "speed"
        for r in c.results
    ]


def curves(report: Report) -> Rows:
    """A line a cell and point of its learning curve."""
    return [
        {**_place(c.suite, c.row, c.entrant), "seed": c.seed, **point}
        for c in report.cells
        for point in c.curve
    ]


def settings(report: Report) -> Rows:
    """A line an entrant and row: size, cost, and the settings it has different."""
    out = []
    for row in report.rows:
        differing = chosen.differing(row)
        for e in row.trained:
            cells = [c for c in row.cells if c.entrant == e]
            costs = dict(zip(chosen.COST_HEADS, chosen.cost_cells(cells), strict=True))
            facts = {"agent": cells[0].agent, "preset": cells[0].preset, **costs}
            text = json.dumps(differing.get(e, {}), default=str)
            out.append({**_place(*row.info.key, e), **facts, "differing": text})
    return out


def published(report: Report) -> Rows:
    """A line a published number, with what was measured here."""
    out = []
    for suite in dict.fromkeys(k.suite for k in report.infos if k.suite):
        for p in papers.pairs(suite, report.rows):
            e = _estimate(p.measured)
            out.append(
                {
                    **vars(p.published),
                    "measured": e["mean"],
                    "measured_low": e["low"],
                    "measured_high": e["high"],
                    "measured_seeds": e["seeds"],
                    "differences": "; ".join(p.differences),
                    "command": p.command,
                }
            )
    return out


def failed(report: Report) -> Rows:
    """A line a failed cell."""
    return [
        {**_place(c.suite, c.row, c.entrant), "seed": c.seed, "error": c.error, "hint": c.hint}
        for c in report.found.failed
    ]
