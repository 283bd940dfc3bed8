"""The pictures of a report: small panels, one message each, readable on a phone.

Every function returns a matplotlib figure and needs the extra ``plot``. An entrant's look comes
from the report's palette alone, so it is the same everywhere.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from seqrl.report.format import NOTHING, score_text
from seqrl.report.palette import Look
from seqrl.report.scores import Column, RowScores
from seqrl.report.statistics import Estimate
from seqrl.trials import figure_class

WIDTH, HEIGHT = 5.0, 3.2
"""Inches of a panel without its legend; it is shown at about 100 pixels an inch or below."""

_GRID = {"color": "#DDDDDD", "linewidth": 0.7}
_LEGEND_ROW = 0.2

SCORE_NAMES = {
    "success": "success rate",
    "normalized": "normalised score",
    "return": "return",
    "regret": "regret",
    "latency": "milliseconds a step",
    "throughput": "steps a second",
    "state": "memory of the state (MiB)",
    "resident": "memory of the process (MiB)",
}
"""Axis titles."""


def panel(legend_entries: Sequence[str] = (), height: float = HEIGHT) -> tuple[Any, Any]:
    """An empty panel with room for a legend below; figure and axes."""
    rows = math.ceil(len(legend_entries) / legend_columns(legend_entries)) if legend_entries else 0
    figure = figure_class()(
        figsize=(WIDTH, height + _LEGEND_ROW * rows + (0.1 if rows else 0)), layout="constrained"
    )
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", **_GRID)
    axes.set_axisbelow(True)
    return figure, axes


def legend_columns(names: Sequence[str]) -> int:
    """As many columns as fit below a panel."""
    longest = max((len(n) for n in names), default=1)
    return max(1, min(4, len(names), int(58 / (longest + 7))))


def legend(figure: Any, axes: Any) -> None:
    """The legend below the panel, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    if names:
        figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=legend_columns(names),
            frameon=False,
            fontsize=9,
            handlelength=2.6,
            columnspacing=1.4,
        )


def _style(look: Look, hollow: bool = False) -> dict[str, Any]:
    return {
        "color": look.colour,
        "linestyle": look.line,
        "marker": look.marker,
        "markersize": 5.5,
        "markerfacecolor": "white" if hollow else look.colour,
        "linewidth": 1.5,
    }


# --- scores ------------------------------------------------------------------------------------


def length_figure(
    row: RowScores, looks: Mapping[str, Look], names: Sequence[str], columns: Sequence[Column]
) -> Any:
    """Score against length: means over seeds, intervals, hollow where there is one seed.

    Lengths are evenly spaced and entrants stand side by side within each, because policies that
    remember everything, or nothing, have equal scores and would hide each other.

    Args:
        names: entrants to draw.
        columns: of one measure, by length.
    """
    figure, axes = panel([*names, "chance"], height=3.5)
    for i, name in enumerate(names):
        shift = 0.0 if len(names) == 1 else 0.66 * (i / (len(names) - 1) - 0.5)
        found = [(k, e) for k, c in enumerate(columns) if (e := row.estimate(name, c)) is not None]
        x = [k + shift for k, _ in found]
        y = [e.value for _, e in found]
        axes.plot(x, y, label=name, **{**_style(looks[name]), "linewidth": 1.0}, alpha=0.95)
        _bars(axes, x, [e for _, e in found], looks[name])
        single = [(a, e.value) for a, (_, e) in zip(x, found, strict=True) if e.low is None]
        if single:
            axes.plot(*zip(*single, strict=True), **{**_style(looks[name], True), "linestyle": ""})
    for k in range(1, len(columns)):
        axes.axvline(k - 0.5, color="#EEEEEE", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(columns)), [f"{c.x:g}" for c in columns])
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xlabel(row.info.axis or "length")
    _score_axis(axes, row)
    legend(figure, axes)
    return figure


def _bars(axes: Any, x: Sequence[float], estimates: Sequence[Estimate], look: Look) -> None:
    """Interval bars; nothing for a single seed."""
    for place, e in zip(x, estimates, strict=True):
        if e.low is not None and e.high is not None:
            axes.vlines(place, e.low, e.high, color=look.colour, linewidth=1.4, alpha=0.8)


def _score_axis(axes: Any, row: RowScores, horizontal: bool = False) -> None:
    """Title and limits of the score's axis, and the line of guessing."""
    title = SCORE_NAMES.get(row.info.score, row.info.score)
    line = axes.axvline if horizontal else axes.axhline
    if row.info.chance is not None:
        line(row.info.chance, color="#777777", linestyle=(0, (1, 1.5)), linewidth=1.6,
             label="chance", zorder=1)  # fmt: skip
    if horizontal:
        axes.set_xlabel(title)
    else:
        axes.set_ylabel(title)
    if row.info.score == "success":
        (axes.set_xlim if horizontal else axes.set_ylim)(-0.04, 1.04)


def ranking_figure(row: RowScores, looks: Mapping[str, Look]) -> Any:
    """Scores of a row without lengths: mean, interval, a tick a seed; other checkpoint hollow."""
    column = row.primary[0]
    best = next((c for c in (*row.best, *row.last) if c != column), None)
    names = [e for e in row.entrants if row.values(e, column)]
    names.sort(key=lambda e: np.mean(list(row.values(e, column).values())), reverse=row.info.lower)
    figure, axes = panel(height=max(2.0, 0.7 + 0.36 * len(names)))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", **_GRID)
    for i, name in enumerate(names):
        look = looks[name]
        _dots(axes, row, name, column, i + (0.12 if best else 0), look, hollow=False)
        if best is not None and row.values(name, best):
            _dots(axes, row, name, best, i - 0.2, look, hollow=True)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    _score_axis(axes, row, horizontal=True)
    what = "ticks: seeds"
    if best is not None:
        what = f"filled: {column.name}, hollow: {best.name}; {what}"
    figure.supxlabel("\n".join(textwrap.wrap(what, 58)), fontsize=9)
    return figure


def _dots(
    axes: Any, row: RowScores, name: str, column: Column, y: float, look: Look, hollow: bool
) -> None:
    values = list(row.values(name, column).values())
    e = row.estimate(name, column)
    if e is None:
        return
    if e.low is not None:
        axes.hlines(y, e.low, e.high, color=look.colour, linewidth=4, alpha=0.3)
    axes.plot(values, [y] * len(values), linestyle="", marker="|", color=look.colour,
              markersize=7)  # fmt: skip
    axes.plot([e.value], [y], **{**_style(look, hollow), "linestyle": "", "markersize": 7})


def heat_figure(
    names: Sequence[str],
    heads: Sequence[str],
    values: Sequence[Sequence[float | None]],
    score: str,
    axis: str,
    lower: bool = False,
) -> Any:
    """Entrants by columns, the mean score in numbers and in colour.

    Args:
        names: of the rows.
        heads: of the columns.
        values: ``[rows][columns]``; None where nothing was measured.
        axis: title of the columns.
        lower: whether less is better.
    """
    slanted = max(map(len, heads)) > max(6, 44 // len(heads))
    figure, axes = panel(height=max(1.8, 0.9 + 0.27 * len(names)) + 0.8 * slanted)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    grid = np.array([[np.nan if v is None else v for v in r] for r in values], dtype=float)
    low, high = (0.0, 1.0) if score == "success" else _range(grid)
    axes.set_facecolor("#F0F0F0")
    axes.imshow(grid, cmap="cividis_r" if lower else "cividis", vmin=low, vmax=high, aspect="auto")
    size = 9 if len(heads) <= 7 else 8 if len(heads) <= 9 else 6.5
    for i, row in enumerate(values):
        for j, v in enumerate(row):
            share = 0.0 if v is None or high == low else (v - low) / (high - low)
            bright = v is None or (share < 0.45 if lower else share > 0.55)
            axes.text(j, i, NOTHING if v is None else score_text(v, score), ha="center",
                      va="center", fontsize=size, color="black" if bright else "white")  # fmt: skip
    axes.set_xticks(range(len(heads)), heads, fontsize=10 if len(heads) <= 9 else 8)
    if slanted:
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.set_xlabel(axis)
    axes.set_xticks(np.arange(len(heads) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    return figure


def _range(grid: np.ndarray) -> tuple[float, float]:
    if np.isnan(grid).all():
        return 0.0, 1.0
    return float(np.nanmin(grid)), float(np.nanmax(grid))


def estimates_figure(
    estimates: Mapping[str, Estimate],
    looks: Mapping[str, Look],
    title: str,
    middle: float | None = None,
    share: bool = False,
) -> Any:
    """Numbers with intervals, one below the other, best on top.

    Args:
        title: of the axis.
        middle: where a line is drawn (0.5 of a probability, 0 of a difference).
        share: whether they lie between 0 and 1.
    """
    names = sorted(estimates, key=lambda e: estimates[e].value)
    figure, axes = panel(height=max(1.7, 0.8 + 0.28 * len(names)))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", **_GRID)
    if middle is not None:
        axes.axvline(middle, color="#777777", linestyle=(0, (1, 1.5)), linewidth=1.6)
    plain = Look("#0072B2", "-", "o")
    for i, name in enumerate(names):
        e, look = estimates[name], looks.get(name, plain)
        if e.low is not None:
            axes.hlines(i, e.low, e.high, color=look.colour, linewidth=5, alpha=0.35)
        axes.plot([e.value], [i], **{**_style(look, e.low is None), "linestyle": ""})
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(title)
    if share:
        axes.set_xlim(-0.03, 1.03)
    return figure


# --- curves ------------------------------------------------------------------------------------


def band_figure(
    curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
    looks: Mapping[str, Look],
    x_title: str,
    y_title: str,
    log: bool = False,
    spread: Mapping[str, Sequence[float]] | None = None,
) -> Any:
    """Curves over seeds: the mean, and the range of the seeds behind it.

    Args:
        curves: by entrant, ``(x, y)`` of each seed.
        log: whether to draw values by their logarithm where they allow it.
        spread: of entrants with one curve, half the width of a band around it.
    """
    figure, axes = panel(list(curves))
    positive = all(v > 0 for runs in curves.values() for _, y in runs for v in y)
    for name, runs in curves.items():
        x, mean, low, high = _over_runs(runs)
        if len(runs) == 1 and spread and name in spread:
            half = np.asarray(spread[name])
            low, high = mean - half, mean + half
        look = looks[name]
        dense = len(x) > 12
        style = {**_style(look, hollow=len(runs) == 1), "markevery": max(1, len(x) // 6)}
        axes.plot(x, mean, label=name, **({**style, "markersize": 4} if dense else style))
        axes.fill_between(x, low, high, color=look.colour, alpha=0.13, linewidth=0)
    values = [v for runs in curves.values() for _, y in runs for v in y]
    if log and positive and max(values) > 10 * min(values):
        _log_axis(axes.yaxis, values)
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    axes.margins(x=0.03)
    legend(figure, axes)
    return figure


def _over_runs(
    runs: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places that every run has; mean, lowest and highest value there."""
    tables = [dict(zip(x, y, strict=True)) for x, y in runs]
    places = sorted(set(tables[0]).intersection(*tables[1:])) or sorted(tables[0])
    kept = [t for t in tables if all(p in t for p in places)]
    values = np.array([[t[p] for p in places] for t in kept])
    return np.array(places), values.mean(0), values.min(0), values.max(0)


def targets_figure(
    points: Mapping[str, Sequence[tuple[float, float]]],
    flat: Mapping[str, float],
    looks: Mapping[str, Look],
) -> Any:
    """Return achieved against return asked; on the diagonal a policy does as it is told.

    Args:
        points: by entrant, (asked, achieved), means over seeds.
        flat: entrants that are not asked for a return, and what they achieve.
    """
    figure, axes = panel([*points, *flat, "as asked"])
    asked = [a for mine in points.values() for a, _ in mine]
    achieved = [b for mine in points.values() for _, b in mine] + list(flat.values())
    low, high = min(asked), max(asked)
    pad = 0.06 * ((high - low) or abs(high) or 1.0)
    for name, mine in points.items():
        axes.plot(*zip(*sorted(mine), strict=True), label=name, **_style(looks[name]))
    for name, level in flat.items():
        look = looks[name]
        axes.plot([low - pad, high + pad], [level, level], color=look.colour, label=name,
                  linestyle=(0, (6, 2, 1, 2)), linewidth=1.4)  # fmt: skip
    ends = np.array([low - pad, high + pad])
    axes.plot(ends, ends, color="#777777", linestyle=(0, (1, 1.5)), linewidth=1.6, label="as asked")
    axes.set_xlim(*ends)
    bottom, top = min([*achieved, low]), max([*achieved, high])
    axes.set_ylim(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom))
    axes.set_xticks(sorted(set(asked)) if len(set(asked)) <= 6 else axes.get_xticks())
    axes.set_xlabel("return asked for")
    axes.set_ylabel("return achieved")
    legend(figure, axes)
    return figure


def _log_axis(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, and with room for at least a few of them."""
    low, high = min(values), max(values)
    if high < 5 * low:
        low, high = low / 2, high * 2
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(decades) > 4 else (1, 2, 5)
    ticks = [s * 10.0**d for d in decades for s in steps]
    pad = (high / low) ** 0.05
    axis.axes.set_yscale("log")
    axis.axes.set_ylim(low / pad, high * pad)
    shown = [t for t in ticks if low / pad <= t <= high * pad]
    axis.set_ticks(shown, [f"{t:g}" for t in shown])
    axis.minorticks_off()


def speed_figure(
    points: Mapping[str, Iterable[tuple[float, float]]],
    looks: Mapping[str, Look],
    x_title: str,
    y_title: str,
) -> Any:
    """A cost against the steps since reset, both by their logarithms."""
    drawn = {e: sorted((x, y) for x, y in p if x > 0 and y > 0) for e, p in points.items()}
    drawn = {e: p for e, p in drawn.items() if p}
    figure, axes = panel(list(drawn))
    for name, mine in drawn.items():
        axes.plot(*zip(*mine, strict=True), label=name, **_style(looks[name]))
    axes.set_xscale("log")
    _log_axis(axes.yaxis, [y for mine in drawn.values() for _, y in mine])
    lengths = sorted({x for mine in drawn.values() for x, _ in mine})
    shown = lengths if len(lengths) <= 6 else lengths[:: math.ceil(len(lengths) / 6)]
    axes.set_xticks(shown, [f"{x:g}" for x in shown])
    axes.xaxis.minorticks_off()
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    legend(figure, axes)
    return figure
