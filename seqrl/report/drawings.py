"""Which pictures a report has: from rows and aggregates to :class:`~seqrl.report.blocks.Picture`.

Nothing is drawn here, and nothing imports matplotlib before a picture is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from seqrl.report import figures
from seqrl.report.blocks import Picture
from seqrl.report.content import Aggregate, Report
from seqrl.report.format import score_text
from seqrl.report.records import Result
from seqrl.report.scores import Column, RowScores, curve_key
from seqrl.scores import Z95

_MOST = 8
"""Most entrants of a panel whose lines run close to each other."""

Curves = dict[str, list[tuple[list[float], list[float]]]]


def file_name(*words: str) -> str:
    """A name for a picture's file.

    >>> file_name("score", "tmaze", "tmaze-90, long")
    'score-tmaze-tmaze-90.long'
    """
    return "-".join(re.sub(r"[^0-9A-Za-z+%_-]+", ".", w).strip(".") for w in words if w)


def score_pictures(report: Report, row: RowScores) -> list[Picture]:
    """Score against length and its heat map, for every measure that has lengths; else a ranking."""
    if not any(row.values(e, c) for e in row.entrants for c in row.primary):
        return []
    out = []
    if len(_with_length(row.primary)) > 1:
        out += _length_pictures(report, row, "", row.primary)
    elif sum(bool(row.values(e, row.primary[0])) for e in row.entrants) > 1:
        out.append(_ranking(report, row))
    shown = {c.group for c in row.primary}
    for group in row.groups:
        columns = row.columns_of(group)
        if group not in shown and len(_with_length(columns)) > 1:
            out += _length_pictures(report, row, group, columns)
    return out


def _with_length(columns: Sequence[Column]) -> list[Column]:
    return [c for c in columns if c.x is not None]


def _ranking(report: Report, row: RowScores) -> Picture:
    info = row.info
    title = f"{report.row_name(info.key)}: {figures.SCORE_NAMES.get(info.score, info.score)}"
    alt = f"{title} of {len(row.entrants)} entrants, mean over seeds with intervals."
    return Picture(
        file_name("score", info.key.suite, info.key.row),
        title,
        f"{alt} {_best_words(row, row.primary)}",
        lambda: figures.ranking_figure(row, report.looks),
    )


def _length_pictures(
    report: Report, row: RowScores, group: str, columns: Sequence[Column]
) -> list[Picture]:
    """Lines, shared out over panels where there are many, and the heat map of the same means."""
    name, info = report.row_name(row.info.key), row.info
    columns = _with_length(columns)
    where = file_name(info.key.suite, info.key.row, group)
    of = f" ({group})" if group and group not in str(info.axis) else ""
    title = f"{name}: {figures.SCORE_NAMES.get(info.score, info.score)} against {info.axis}{of}"
    line = " and the line of chance" if info.chance is not None else ""
    alt = f"{title}, mean over seeds with intervals{line}."
    asked = [e for e in row.entrants if any(row.values(e, c) for c in columns)]
    out = [
        Picture(f"score-{where}{part}", f"{title}{words}", f"{alt} {_best_words(row, columns)}",
                partial(figures.length_figure, row, report.looks, names, columns))
        for part, words, names in panels(asked)
    ]  # fmt: skip
    if asked:
        heat = f"{name}: entrants by {info.axis}{of}"
        out.append(_heat(report, row, f"heat-{where}", heat, columns))
    return out


def panels(names: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Entrants in groups that one panel can hold: part of the file's name, of the title, names.

    >>> panels(["a", "b"])
    [('', '', ['a', 'b'])]
    """
    count = -(-len(names) // _MOST)
    each = -(-len(names) // max(1, count))
    if count <= 1:
        return [("", "", list(names))]
    return [(f"-{i + 1}", f" ({i + 1} of {count})", list(names[i * each : (i + 1) * each]))
            for i in range(count)]  # fmt: skip


def _best_words(row: RowScores, columns: Sequence[Column]) -> str:
    last = columns[-1]
    found = {e: row.estimate(e, last) for e in row.entrants}
    values = {e: v.value for e, v in found.items() if v is not None}
    if not values:
        return ""
    best = (min if row.info.lower else max)(values, key=lambda e: values[e])
    chance = row.info.chance
    if chance is not None and (values[best] - chance) * (-1 if row.info.lower else 1) <= 0:
        return f"At {last.name} none does better than guessing."
    return f"At {last.name} the best is {best} with {score_text(values[best], row.info.score)}."


def _heat(
    report: Report, row: RowScores, name: str, title: str, columns: Sequence[Column]
) -> Picture:
    means = {
        e: [None if (v := row.estimate(e, c)) is None else v.value for c in columns]
        for e in row.entrants
    }
    means = _ranked(means, row.info.lower)
    names = list(means)
    return Picture(
        name,
        title,
        f"Heat map, the same means as numbers; on top {names[0]}, at the bottom {names[-1]}.",
        lambda: figures.heat_figure(
            names,
            [f"{c.x:g}" for c in columns],
            [means[e] for e in names],
            row.info.score,
            row.info.axis or "length",
            row.info.lower,
        ),
    )


def _ranked(means: dict[str, list[float | None]], lower: bool) -> dict[str, list[float | None]]:
    """Entrants that were measured at all, the best on top, by the columns that all of them have."""
    means = {e: m for e, m in means.items() if any(v is not None for v in m)}
    width = len(next(iter(means.values()), []))
    shared = [k for k in range(width) if all(m[k] is not None for m in means.values())]

    def rank(e: str) -> tuple[float, float]:
        own = [v for v in means[e] if v is not None]
        both = [v for k in shared if (v := means[e][k]) is not None] or own
        sign = 1 if lower else -1
        return sign * float(np.mean(both)), sign * float(np.mean(own))

    return {e: means[e] for e in sorted(means, key=rank)}


def suite_heat(report: Report, suite: str, score: str) -> list[Picture]:
    """Entrants by rows, for the rows of a suite that have no lengths."""
    rows = [
        r
        for r in report.trained_rows
        if (r.info.key.suite, r.info.score) == (suite, score)
        and not any(c.x is not None for c in r.primary)
    ]
    if len(rows) < 2:
        return []
    means = {
        e: [
            None if e not in r.entrants or (v := r.estimate(e, r.primary[0])) is None else v.value
            for r in rows
        ]
        for e in report.entrants
    }
    means = _ranked(means, rows[0].info.lower)
    title = f"{suite or 'runs'}: {figures.SCORE_NAMES.get(score, score)}, entrants by rows"
    return [
        Picture(
            file_name("heat", suite, score),
            title,
            f"Heat map of the mean {figures.SCORE_NAMES.get(score, score)}, entrants by rows.",
            lambda: figures.heat_figure(
                list(means),
                [r.info.key.row for r in rows],
                list(means.values()),
                score,
                "",
                rows[0].info.lower,
            ),
        )
    ]


def aggregate_pictures(report: Report, a: Aggregate) -> list[Picture]:
    """Interquartile means and probabilities of improvement with their intervals."""
    measure = figures.SCORE_NAMES.get(a.score, a.score)
    where, out = file_name(a.suite, a.score), []
    if a.iqm:
        title = f"{a.suite or 'runs'}: IQM of the {measure}"
        best = max(a.iqm, key=lambda e: a.iqm[e].value)
        alt = f"{title} over {len(a.columns)} rows; highest {best}."
        out.append(
            Picture(f"iqm-{where}", title, alt,
                    lambda: figures.estimates_figure(a.iqm, report.looks, f"IQM, {measure}",
                                                     share=a.score == "success"))
        )  # fmt: skip
    if a.improvement:
        title = f"{a.suite or 'runs'}: probability of improvement over {a.baseline}"
        alt = f"{title}, by entrant, with intervals; 0.5 is no difference."
        out.append(
            Picture(f"improvement-{where}", title, alt,
                    lambda: figures.estimates_figure(
                        a.improvement, report.looks, f"P(entrant beats {a.baseline})", 0.5, True))
        )  # fmt: skip
    return out


def curve_pictures(report: Report, row: RowScores) -> list[Picture]:
    """Losses and periodic evaluations against updates."""
    name, where = report.row_name(row.info.key), file_name(row.info.key.suite, row.info.key.row)
    score, out = row.info.score, []
    losses = _curves(row, lambda c: "loss")
    if losses:
        title = f"{name}: training loss"
        out += _curve_pictures(report, f"loss-{where}", title, losses, "loss", log=True)
    evals = _curves(row, lambda c: curve_key(c, score))
    if evals:
        title = f"{name}: evaluations during training"
        measure = figures.SCORE_NAMES.get(score, score)
        out += _curve_pictures(report, f"training-{where}", title, evals, measure, log=False)
    return out


def _curves(row: RowScores, key: Callable[[Any], str | None]) -> Curves:
    out: Curves = {}
    for e in row.entrants:
        for c in row.cells:
            k = key(c) if c.entrant == e else None
            points = [(p["step"], p[k]) for p in c.curve if k in p] if k is not None else []
            if len(points) > 1:
                x, y = zip(*points, strict=True)
                out.setdefault(e, []).append((list(x), list(y)))
    return out


def _curve_pictures(
    report: Report, file: str, title: str, curves: Curves, y_title: str, log: bool
) -> list[Picture]:
    alt = f"{title}: mean over seeds against updates, with the range of the seeds."

    def draw(names: Sequence[str]) -> Callable[[], Any]:
        mine = {e: curves[e] for e in names}
        return lambda: figures.band_figure(mine, report.looks, "updates", y_title, log)

    return [Picture(f"{file}{part}", f"{title}{words}", alt, draw(names))
            for part, words, names in panels(list(curves))]  # fmt: skip


def target_picture(report: Report, row: RowScores) -> list[Picture]:
    """Return asked against return achieved, where some entrant was asked for several."""
    points, flat = asked_and_achieved(row)
    if not points:
        return []
    name = report.row_name(row.info.key)
    title = f"{name}: return asked against return achieved"
    alt = f"{title}, mean over seeds of the first measure; the dotted diagonal is doing as asked."
    return [
        Picture(
            file_name("targets", row.info.key.suite, row.info.key.row), title, alt,
            lambda: figures.targets_figure(points, flat, report.looks),
        )
    ]  # fmt: skip


def asked_and_achieved(
    row: RowScores,
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    """(asked, achieved) by entrant with several numeric targets; the returns of all others."""
    points: dict[str, list[tuple[float, float]]] = {}
    flat: dict[str, float] = {}
    column = row.primary[0] if row.primary else None
    for e in row.entrants if column is not None else ():
        mine = []
        for runs in row.by_target(e, row.primary[0]).values():
            got = [r.values["return"].mean for r in runs.values() if "return" in r.values]
            asked = [r.target for r in runs.values() if r.target is not None]
            if got and asked:
                mine.append((float(np.mean(asked)), float(np.mean(got))))
            elif got:
                flat[e] = float(np.mean(got))
        if len(mine) > 1:
            points[e] = mine
    return points, flat


def trial_pictures(report: Report, row: RowScores) -> list[Picture]:
    """Regret by step, and return by episode of a trial."""
    name, where = report.row_name(row.info.key), file_name(row.info.key.suite, row.info.key.row)
    found = {e: r for e in row.entrants if (r := trial_results(row, e))}
    regret: Curves = {}
    spread: dict[str, list[float]] = {}
    returns: Curves = {}
    bands: dict[str, list[float]] = {}
    for e, results in found.items():
        for t in (r.trials for r in results if r.trials is not None):
            if t["steps"]:
                regret.setdefault(e, []).append((t["steps"], t["cumulative"]))
                spread[e] = [Z95 * v for v in t["stderr"]]
            if t["episodes"] > 1 and len(t["returns"]) == t["episodes"]:
                x = [float(k + 1) for k in range(t["episodes"])]
                returns.setdefault(e, []).append((x, [v.mean for v in t["returns"]]))
                bands[e] = [0.0 if v.low is None else (v.high - v.low) / 2 for v in t["returns"]]
    out = []
    for file, title, curves, widths, x_title, y_title in (
        ("regret", "cumulative regret", regret, spread, "step of the trial", "cumulative regret"),
        ("trials", "return by episode", returns, bands, "episode of the trial", "return"),
    ):
        if curves:
            out.append(_trial_picture(report, f"{file}-{where}", f"{name}: {title} of a trial",
                                      curves, widths, x_title, y_title))  # fmt: skip
    return out


def _trial_picture(
    report: Report,
    file: str,
    title: str,
    curves: Curves,
    spread: Mapping[str, Sequence[float]],
    x_title: str,
    y_title: str,
) -> Picture:
    alt = f"{title}: mean over seeds; bands are the range of the seeds, of one seed its interval."
    return Picture(
        file, title, alt,
        lambda: figures.band_figure(curves, report.looks, x_title, y_title, spread=spread),
    )  # fmt: skip


def trial_results(row: RowScores, entrant: str) -> list[Result]:
    """Results with trials of an entrant, of the first measure at the last target, by run."""
    if not row.primary:
        return []
    runs = row.runs(entrant, row.primary[0])
    last = [list(by_target.values())[-1] for by_target in runs.values()]
    return [r for r in last if r.trials is not None]


def speed_pictures(report: Report, row: RowScores) -> list[Picture]:
    """Latency for each batch, memory of the smallest, throughput of the largest."""
    where = file_name(row.info.key.suite, row.info.key.row)
    groups = list(dict.fromkeys(c.group for c in row.columns))
    wanted = [("latency", g) for g in groups]
    wanted += [("state", groups[0]), ("throughput", groups[-1])] if groups else []
    out = []
    for measure, group in wanted:
        points = speed_points(row, measure, group)
        if any(points.values()):
            title = f"{report.row_name(row.info.key)}: {figures.SCORE_NAMES[measure]}, {group}"
            out.append(_speed_picture(report, row, f"{measure}-{where}-{file_name(group)}", title,
                                      points, figures.SCORE_NAMES[measure]))  # fmt: skip
    return out


def _speed_picture(
    report: Report,
    row: RowScores,
    file: str,
    title: str,
    points: Mapping[str, list[tuple[float, float]]],
    y_title: str,
) -> Picture:
    axis = row.info.axis or "steps since reset"
    alt = f"{title} against {axis}, by logarithms; lines end where a limit was reached."
    return Picture(
        file, title, alt, lambda: figures.speed_figure(points, report.looks, axis, y_title)
    )


def speed_points(row: RowScores, measure: str, group: str) -> dict[str, list[tuple[float, float]]]:
    """(age, mean over seeds) of a measure, by entrant."""
    out: dict[str, list[tuple[float, float]]] = {}
    for e in row.entrants:
        for c in row.columns:
            found = [
                by_target["-"].values[measure].mean
                for by_target in row.runs(e, c).values()
                if measure in by_target["-"].values
            ]
            if c.group == group and c.x is not None and found:
                out.setdefault(e, []).append((c.x, float(np.mean(found))))
    return out
