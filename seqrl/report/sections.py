"""The parts of a report: which tables and pictures say what, in which order."""

from __future__ import annotations

from collections.abc import Sequence

from seqrl.report import details, drawings
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
from seqrl.report.content import Report
from seqrl.report.figures import SCORE_NAMES
from seqrl.report.format import NOTHING, estimate_text, numbers, reference_text, score_text
from seqrl.report.rows import COMMENSURABLE, RowKey
from seqrl.report.scores import FIRST, Column, Line, RowScores
from seqrl.report.separation import gaps, verdict

STATISTICS = (
    "Intervals are 95 % percentile bootstrap intervals over training seeds; with two seeds that is "
    "their range, with one there is none, and of seeds that agree it has no width, which is no "
    "certainty. They speak of training again, not of more episodes. Explained in docs/reports.md."
)


def page(report: Report) -> Page:
    """The whole report."""
    parts = [
        Section("glance", "At a glance", [Text(_lead(report)), *_glance(report)]),
        Section("run", "What was run", _what_was_run(report)),
        *_headlines(report),
        Section("separation", "Which rows tell the entrants apart", _separation(report)),
        Section("aggregate", "Over all rows", _aggregate(report)),
        Section("learning", "Learning curves", _pictures(
            [p for r in report.trained_rows for p in drawings.curve_pictures(report, r)],
            "Lines are means over seeds, bands their range; hollow markers: one seed. Losses of "
            "different agents are of different kinds and do not compare.")),
        Section("targets", "Return asked against return achieved", details.targets(report)),
        Section("trials", "Learning within a trial", details.trials(report)),
        Section("speed", "Speed and memory", details.speed(report)),
        Section("published", "Published next to measured", details.published(report)),
        Section("settings", "Settings", details.settings(report)),
        Section("provenance", "Provenance", details.provenance(report)),
    ]  # fmt: skip
    colours = {e: (look.colour, look.line != "-") for e, look in report.looks.items()}
    return Page(report.title, [], [s for s in parts if s.blocks], colours)


def _pictures(pictures: Sequence[Picture], words: str) -> list[Block]:
    return [Text(words), Pictures(pictures)] if pictures else []


# --- at a glance -------------------------------------------------------------------------------


def glance_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table at a glance, also printed on the terminal."""
    scores = {line.score for line in report.lines}
    kinds = {line.two_valued for line in report.lines}
    what = "IQM/mean" if len(kinds) > 1 else "mean" if kinds == {True} else "IQM"
    one = f"{next(iter(scores))} " if len(scores) == 1 else ""
    heads = ["entrant", "row", *(["score"] if not one else []), "seeds"]
    heads += [f"{one}{what} [95% CI]", "last", "best", "min/seed"]
    rows = [
        [
            line.entrant,
            report.row_name(line.key),
            *([line.score] if not one else []),
            NOTHING if line.reference else str(line.seeds),
            _estimate(line),
            score_text(line.last, line.score),
            score_text(line.best, line.score) + ("*" if line.periodic and line.best else ""),
            NOTHING if line.minutes is None else f"{line.minutes:.2g}",
        ]
        for line in report.lines
    ]
    return heads, rows


def glance_note(lines: Sequence[Line], short: bool = False) -> str:
    """What the columns mean; in short, what is averaged."""
    over = "over seeds"
    if any(line.columns > 1 for line in lines):
        over += " and the columns that all trained entrants of the row share"
    names = {True: f"mean {over}", False: f"interquartile mean (IQM) {over}"}
    kinds = {line.two_valued for line in lines}
    parts = [names[k] for k in (False, True) if k in kinds]
    if len(kinds) > 1:
        parts = [f"interquartile mean (IQM), of rows that are solved or not the mean, {over}"]
    parts = [parts[0][0].upper() + parts[0][1:]]
    if short:
        return f"{parts[0]} [95% CI]"
    parts.append("last: mean at the last checkpoint")
    if any(line.best is not None and not line.periodic for line in lines):
        parts.append("best: mean at the checkpoint that was best in training, on other episodes")
    if any(line.best is not None and line.periodic for line in lines):
        parts.append("* the highest periodic evaluation, which chance flatters")
    parts.append("min/seed: minutes of training")
    return "; ".join(parts) + "."


def _glance(report: Report) -> list[Block]:
    heads, rows = glance_table(report)
    if not rows:
        return []
    keys = list(dict.fromkeys(line.key for line in report.lines))
    note = glance_note(report.lines)
    if len(keys) == 1:  # its name goes into the caption: phones have little room
        heads, rows = _without(heads, 1), [_without(r, 1) for r in rows]
        note = f"{report.row_name(keys[0])}. {note}"
    place = next(i for i, h in enumerate(heads) if "CI" in h)
    small = [[*r[:place], _stacked(r[place]), *r[place + 1 :]] for r in rows]
    table = Table(heads, small, note, "t" * (place - 1) + "n", entrants=0, one_line=True)
    if len(keys) == 1:
        return [table]
    found = {(line.entrant, line.key): line for line in report.lines}
    across = []
    for e in dict.fromkeys(line.entrant for line in report.lines):
        cells = [e]
        for k in keys:
            line = found.get((e, k))
            cells.append(NOTHING if line is None else _stacked(_estimate(line, seeds=True)))
        across.append(cells)
    scores = {line.key: line.score for line in report.lines}
    names = [f"{report.row_name(k)}\n{scores[k]}" for k in keys]
    caption = f"{glance_note(report.lines, short=True)} (seeds)."
    wide = Table(["entrant", *names], across, caption, "tn", entrants=0)
    return [wide, Folded("Last and best checkpoint, minutes of training", [table])]


def _estimate(line: Line, seeds: bool = False) -> str:
    text = estimate_text(line.estimate, line.score, seeds)
    return reference_text(text) if line.reference else text


def _stacked(text: str) -> str:
    """The number large, what belongs to it small."""
    return text.replace(" ", "\n", 1)


def _lead(report: Report) -> str:
    suites = list(dict.fromkeys(k.suite for k in report.infos))
    known = [s for s in suites if s]
    seeds = sorted({c.seed for c in report.cells})
    parts = []
    if known:
        parts.append(f"suite{'' if len(known) == 1 else 's'} {', '.join(known)}")
    if "" in suites:
        parts.append(f"{sum(not c.suite for c in report.cells)} training runs")
    parts += [
        f"{len(report.infos)} row{'' if len(report.infos) == 1 else 's'}",
        f"{len(report.entrants)} entrants",
        f"{len(report.cells)} finished cells",
        f"seeds {numbers(seeds) or 'none'}",
    ]
    return " · ".join(parts) + ". " + STATISTICS


# --- what was run ------------------------------------------------------------------------------


def _what_was_run(report: Report) -> list[Block]:
    rows = []
    for row in report.rows:
        key = row.info.key
        failed = sum((c.suite, c.row) == tuple(key) for c in report.found.failed)
        trained = [c for c in row.cells if not c.reference] or row.cells
        data = sorted({d for c in trained for d in c.data})
        seeds = [c.seed for c in row.cells if not c.reference]
        rows.append(
            [
                report.row_name(key),
                row.info.title,
                ", ".join(data) or NOTHING,
                row.info.score,
                str(len(row.entrants)),
                str(len(row.cells)),
                str(failed),
                numbers(seeds) or NOTHING,
                ", ".join(map(str, row.episodes())) or NOTHING,
            ]
        )
    heads = ["row", "title", "data", "score", "entrants", "cells", "failed", "seeds", "episodes"]
    kinds = "ttwtnnntn"
    if all(r.info.title == r.info.key.row for r in report.rows):
        heads, rows, kinds = _without(heads, 1), [_without(r, 1) for r in rows], "twtnnntn"
    caption = "A cell is one entrant of one row under one seed. Episodes: of each score of a cell."
    blocks: list[Block] = [Table(heads, rows, caption, kinds)] if rows else []
    blocks += _problems(report)
    return blocks


def _without(cells: list[str], place: int) -> list[str]:
    return [c for i, c in enumerate(cells) if i != place]


def _problems(report: Report) -> list[Block]:
    blocks: list[Block] = []
    if report.found.failed:
        rows = [
            [c.row, c.entrant, str(c.seed), c.error + (f" (hint: {c.hint})" if c.hint else "")]
            for c in report.found.failed
        ]
        blocks.append(Text(f"**{len(rows)} cell{'' if len(rows) == 1 else 's'} failed:**"))
        blocks.append(Table(("row", "entrant", "seed", "error"), rows, "", "ttnw", entrants=1))
    if report.found.unfinished:
        names = report.found.unfinished
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        blocks.append(Text(f"Not finished: {', '.join(names[:12])}{more}."))
    if words := [*report.found.warnings, *report.notes]:
        blocks.append(Folded(f"Notes on what was read ({len(words)})", [Bullets(words)]))
    return blocks


# --- headline tables ---------------------------------------------------------------------------


def _headlines(report: Report) -> list[Section]:
    sections = []
    for row in report.trained_rows:
        if not any(row.values(e, c) for e in row.entrants for c in row.columns):
            continue
        blocks: list[Block] = [headline(row), Pictures(drawings.score_pictures(report, row))]
        anchor = drawings.file_name("row", row.info.key.suite, row.info.key.row)
        title = report.row_name(row.info.key)
        if row.info.title != row.info.key.row:
            title = f"{title}: {row.info.title}"
        sections.append(Section(anchor, title, blocks))
    heats = [
        p
        for suite, score in dict.fromkeys((r.info.key.suite, r.info.score)
                                          for r in report.trained_rows)
        for p in drawings.suite_heat(report, suite, score)
    ]  # fmt: skip
    if heats:
        sections.append(Section("heat", "Entrants by rows", [Pictures(heats)]))
    return sections


def headline(row: RowScores) -> Table:
    """Entrants by columns: mean over seeds with its interval, and how many seeds solve it."""
    info = row.info
    rows, means = [], {}
    for i, e in enumerate(row.entrants):
        counts = {c: len(row.values(e, c)) for c in row.columns}
        seeds = max(counts.values(), default=0)
        cells = []
        for j, c in enumerate(row.columns):
            estimate = row.estimate(e, c)
            if estimate is not None:
                means[i, j + 2] = estimate.value
            cells.append(_headline_cell(row, e, c, seeds))
        rows.append([e, NOTHING if e in row.references else str(seeds), *cells])
    bold: set[tuple[int, int]] = set()
    several = {i for i, e in enumerate(row.entrants) if e in row.trained and rows[i][1] != "1"}
    for j in range(len(row.columns)):
        column = {k: v for k, v in means.items() if k[1] == j + 2 and k[0] in several}
        if len(set(column.values())) > 1:
            top = (min if info.lower else max)(column.values())
            bold |= {k for k, v in column.items() if v == top}
    heads = ["entrant", "seeds", *(c.name for c in row.columns)]
    return Table(heads, rows, _headline_caption(row), "tnn", frozenset(bold), entrants=0)


def _headline_cell(row: RowScores, entrant: str, column: Column, seeds: int) -> str:
    e = row.estimate(entrant, column)
    if e is None:
        return NOTHING
    text = estimate_text(e, row.info.score)
    text = reference_text(text) if entrant in row.references else text
    main, _, small = text.partition(" ")
    if 1 < e.seeds < seeds:
        small += f" {e.seeds} seeds"
    if (solved := row.solved(entrant, column)) is not None:
        main += f" ({solved[0]}/{solved[1]})"
    return f"{main}\n{small.strip()}"


def _headline_caption(row: RowScores) -> str:
    info = row.info
    parts = [f"{SCORE_NAMES.get(info.score, info.score).capitalize()}, mean over seeds [95% CI]"]
    if episodes := row.episodes():
        parts[0] += f"; n = {', '.join(map(str, episodes))} episodes a seed"
    if info.axis and any(c.x is not None for c in row.columns):
        parts.append(f"columns: {info.axis}")
    if info.solved is not None:
        parts.append(f"(a/b): a of b seeds solve it, that is, score at least {info.solved:g}")
    if info.chance is not None:
        parts.append(f"guessing scores {info.chance:g}")
    if any(c.group == FIRST for c in row.primary):
        measures = "; ".join(f"{e} {g or 'all'}" for e, g in row.first.items())
        parts.append(f"entrants are ranked by the first measure of each ({measures})")
    several = {t: None for e in row.entrants if len(row.targets(e)) > 1 for t in row.targets(e)}
    if several:
        parts.append(f"at the last-listed target (of {', '.join(several)})")
    if any(len(row.values(e, c)) > 1 for e in row.trained for c in row.columns):
        which = "lowest" if info.lower else "highest"
        parts.append(f"bold: {which} mean of those with several seeds")
    return "; ".join(parts) + "."


# --- separation and aggregates -----------------------------------------------------------------


def _separation(report: Report) -> list[Block]:
    sentences, rows = [], []
    for row in report.trained_rows:
        sentences.append(verdict(row))
        for g in gaps(row):
            said = {True: "yes", False: "no", None: "one seed"}[g.apart]
            score = row.info.score
            rows.append(
                [
                    report.row_name(row.info.key),
                    g.column.name,
                    g.best,
                    estimate_text(g.high, score),
                    g.worst,
                    estimate_text(g.low, score),
                    score_text(g.size, score),
                    said,
                ]
            )
    if not rows:
        return []
    heads = ("row", "column", "best", "its score", "worst", "its score", "gap", "disjoint")
    caption = (
        "Best and worst trained entrant of each column; disjoint: whether their intervals are. "
        "They are chosen afterwards among all entrants, which widens the gap; those with "
        "fewer than three seeds are left out where two others have as many."
    )
    table = Table(heads, rows, caption, "tttntnnt")
    return [Bullets(sentences), Folded(f"Every column ({len(rows)})", [table])]


def _aggregate(report: Report) -> list[Block]:
    blocks: list[Block] = []
    for a in report.aggregates:
        where = f"suite {a.suite}" if a.suite else "training runs"
        over = "; ".join(
            f"{k.row} ({', '.join(c.name for c in columns)})" for k, columns in a.columns.items()
        )
        words = f"**{where}, {SCORE_NAMES.get(a.score, a.score)}**, over {over}."
        if a.score not in COMMENSURABLE and not a.iqm:
            words += f" A {a.score} of one row is none of another: no average over them."
        if a.left_out:
            words += f" Not asked all of it: {', '.join(a.left_out)}."
        rows = [
            [
                e,
                _seeds(report, e, list(a.columns)),
                estimate_text(a.iqm.get(e), a.score),
                estimate_text(a.mean.get(e), a.score),
                "baseline"
                if e == a.baseline
                else estimate_text(a.improvement.get(e), "probability"),
            ]
            for e in dict.fromkeys([*a.iqm, *a.improvement])
        ]
        rows.sort(key=lambda r: -a.iqm[r[0]].value if r[0] in a.iqm else 0.0)
        beats = f"P(beats {a.baseline}) [95% CI]"
        heads = ("entrant", "seeds", "IQM [95% CI]", "mean [95% CI]", beats)
        if rows:
            blocks += [Text(words), Table(heads, rows, _aggregate_caption(), "tnn", entrants=0)]
            blocks.append(Pictures(drawings.aggregate_pictures(report, a)))
    return blocks


def _seeds(report: Report, entrant: str, keys: Sequence[RowKey]) -> str:
    """Seeds of an entrant: one number, or the fewest and the most of any row."""
    counts = sorted(
        len({(c.seed, c.path) for c in report.cells
             if c.entrant == entrant and (c.suite, c.row) == tuple(k)})
        for k in keys
    )  # fmt: skip
    return f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]}-{counts[-1]}"


def _aggregate_caption() -> str:
    return (
        "IQM: mean of the middle half of all runs of all rows; where runs solve a row or do not, "
        "it drops those that fail, so look at the mean too. P: probability that a run beats one "
        "of the baseline, averaged over columns, ties counting half; 0.5 is no difference. "
        "Stratified bootstrap: seeds within rows; no interval where a row has one seed. "
        "Definitions: Agarwal et al. 2021 (rliable)."
    )
