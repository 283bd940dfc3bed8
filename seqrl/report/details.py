"""The later parts of a report: targets, trials, speed, published numbers, settings, provenance."""

from __future__ import annotations

from seqrl.report import drawings
from seqrl.report import provenance as origin
from seqrl.report import published as papers
from seqrl.report import settings as chosen
from seqrl.report.blocks import Block, Bullets, Code, Folded, Pictures, Table, Text
from seqrl.report.content import Report
from seqrl.report.figures import SCORE_NAMES
from seqrl.report.format import NOTHING, estimate_text, score_text
from seqrl.report.records import SPEED, Result
from seqrl.report.scores import RowScores
from seqrl.report.statistics import over_seeds


def targets(report: Report) -> list[Block]:
    """Every target, and the best of them in columns of their own, last and best side by side."""
    blocks: list[Block] = []
    for row in report.trained_rows:
        if any(len(row.targets(e)) > 1 for e in row.entrants):
            blocks.append(_targets_table(report, row))
            if pictures := drawings.target_picture(report, row):
                blocks.append(Pictures(pictures))
    return blocks


def _targets_table(report: Report, row: RowScores) -> Table:
    labels = list(dict.fromkeys(t for e in row.entrants for t in row.targets(e) if t != "-"))
    score = row.info.score
    heads, rows = ["entrant"], []
    for c in row.columns:
        heads += [f"{c.name} at {t}" for t in labels] + [f"{c.name}, best of targets"]
    for e in row.entrants:
        cells = [e]
        for c in row.columns:
            found = row.by_target(e, c)
            for t in labels:
                mine = [r.values[score].mean for r in found.get(t, {}).values()
                        if score in r.values]  # fmt: skip
                cells.append(_split(estimate_text(over_seeds(mine) if mine else None, score)))
            best = row.best_over_targets(e, c)
            if best is not None:
                cells.append(f"{_split(estimate_text(best[1], score))} at {best[0]}")
            elif found and (estimate := row.estimate(e, c)) is not None:
                cells.append(f"{_split(estimate_text(estimate, score))} (asked for none)")
            else:
                cells.append(NOTHING)
        rows.append(cells)
    measure = SCORE_NAMES.get(score, score)
    caption = (
        f"{report.row_name(row.info.key)}: {measure}, mean over seeds [95% CI]. "
        "**Best of targets** is chosen afterwards: the target with the best mean over seeds, "
        "which flatters."
    )
    return Table(heads, rows, caption, "tn", entrants=0)


def _split(text: str) -> str:
    """The mean large, the rest small."""
    return text.replace(" ", "\n", 1)


def trials(report: Report) -> list[Block]:
    """Regret and returns by episode of policies that learn within a trial."""
    blocks: list[Block] = []
    for row in report.trained_rows:
        found = {(e, *k): r for e in row.entrants for k, r in row.trials(e).items()}
        if found:
            blocks.append(_trials_table(report, row, found))
            if pictures := drawings.trial_pictures(report, row):
                blocks.append(Pictures(pictures))
    return blocks


def _trials_table(
    report: Report, row: RowScores, found: dict[tuple[str, str, str], list[Result]]
) -> Table:
    """A line for every measure and target; the columns that say something here."""
    trials = {key: [r.trials or {} for r in results] for key, results in found.items()}
    several = any(t["episodes"] > 1 for mine in trials.values() for t in mine)
    keys = {"total": "regret of a trial", "best": "largest return of a trial"}
    keys["last"] = "its last return" if several else "its return"
    if not several:
        del keys["best"]
    keys = {k: text for k, text in keys.items()
            if any(t[k] is not None for mine in trials.values() for t in mine)}  # fmt: skip
    asked = len({target for _, _, target in found} - {"-"}) > 1
    measured = len({measure for _, measure, _ in found}) > 1
    heads = ["entrant", *(["measure"] if measured else []), *(["target"] if asked else [])]
    shape = "t" * len(heads) + "n"
    heads += ["seeds", "trials", "episodes", *keys.values()]
    rows = []
    for (entrant, measure, target), mine in trials.items():
        cells = [entrant, *([measure] if measured else []), *([target] if asked else [])]
        cells += [str(len(mine)), str(mine[0]["trials"]), str(mine[0]["episodes"])]
        for key in keys:
            values = [t[key].mean for t in mine if t[key] is not None]
            score = "regret" if key == "total" else "return"
            cells.append(estimate_text(over_seeds(values) if values else None, score))
        rows.append(cells)
    caption = f"{report.row_name(row.info.key)}: means over seeds [95% CI]."
    if several:
        caption += " The largest return of a trial grows with the number of attempts by luck alone."
    return Table(tuple(heads), rows, caption, shape, entrants=0)


# --- speed -------------------------------------------------------------------------------------


def speed(report: Report) -> list[Block]:
    """Latency, throughput and memory against steps since reset."""
    blocks: list[Block] = []
    for row in report.speed_rows:
        blocks.append(Pictures(drawings.speed_pictures(report, row)))
        for group in dict.fromkeys(c.group for c in row.columns):
            tables: list[Block] = [
                table for measure in SPEED if (table := _speed_table(report, row, group, measure))
            ]
            blocks += tables[:1]
            if tables[1:]:
                blocks.append(Folded(f"Throughput and memory, {group}", tables[1:]))
        blocks += _missing(row)
    return blocks


def _speed_table(report: Report, row: RowScores, group: str, measure: str) -> Table | None:
    columns = [c for c in row.columns if c.group == group]
    points = drawings.speed_points(row, measure, group)
    if not points:
        return None
    rows = []
    for e in row.entrants:
        mine = dict(points.get(e, []))
        cells = [score_text(mine[c.x], measure) if c.x in mine else NOTHING for c in columns]
        rows.append([e, *cells])
    seeds = len({c.seed for c in row.cells})
    caption = (
        f"{report.row_name(row.info.key)}, {group}: {SCORE_NAMES[measure]}; columns: "
        f"{row.info.axis or 'steps since reset'}; median of a walk"
        f"{'' if seeds == 1 else f', mean over {seeds} seeds'}, no interval."
    )
    heads = ["entrant", *(f"{c.x:g}" for c in columns)]
    return Table(heads, rows, caption, "tn", entrants=0)


def _missing(row: RowScores) -> list[Block]:
    """Why points are missing."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for (e, column), runs in row.results.items():
        for found in runs.values():
            for r in found.values():
                if r.reason is not None:
                    ages = reasons.setdefault((e, column.group, r.reason), [])
                    ages.append(f"{column.x:g}" if column.x is not None else r.label)
    if not reasons:
        return []
    words = [f"{e}, {group}, at {', '.join(dict.fromkeys(ages))} steps: {reason}"
             for (e, group, reason), ages in reasons.items()]  # fmt: skip
    return [Folded(f"Points that are missing ({len(words)})", [Bullets(words)])]


# --- published numbers -------------------------------------------------------------------------


def published(report: Report) -> list[Block]:
    """Published numbers beside those measured here, and commands for the others."""
    blocks: list[Block] = []
    for suite in dict.fromkeys(k.suite for k in report.infos if k.suite):
        found = papers.pairs(suite, report.rows)
        here = [p for p in found if p.measured is not None]
        rest = [p for p in found if p.measured is None]
        if here:
            rows = [
                [*_published_cells(p), estimate_text(p.measured, p.score, seeds=True),
                 "; ".join(p.differences) or NOTHING, p.published.protocol, p.published.source]
                for p in here
            ]  # fmt: skip
            heads = (*_PUBLISHED_HEADS, "measured here", "differences", "protocol there", "source")
            caption = (
                f"Suite {suite}. Budgets, sizes and often data are ours and smaller: this places "
                "numbers side by side, it does not reproduce the publication."
            )
            blocks.append(Table(heads, rows, caption, "tttnnnwww", entrants=1))
        if rest:
            blocks.append(Folded(f"Not measured here ({len(rest)})", _not_measured(rest)))
    return blocks


def _not_measured(pairs: list[papers.Pair]) -> list[Block]:
    """A table for each protocol, with commands that would fill it."""
    groups: dict[tuple[str, str], list[papers.Pair]] = {}
    for p in pairs:
        groups.setdefault((p.published.source, p.published.protocol), []).append(p)
    blocks: list[Block] = []
    for (source, protocol), members in groups.items():
        rows = [
            [*_published_cells(p), f"`{p.command}`" if p.command else "no such row or entrant here"]
            for p in members
        ]
        heads = (*_PUBLISHED_HEADS, "what would measure it")
        blocks.append(Table(heads, rows, f"{source}: {protocol}.", "tttnnw", entrants=1))
    return blocks


_PUBLISHED_HEADS = ("row", "entrant", "measure", "published", "seeds there")


def _published_cells(p: papers.Pair) -> list[str]:
    it = p.published
    value = it.value
    words = [w for w in (it.spread, f"best of {it.best_of}" if it.best_of else "") if w]
    if words:
        value += f"\n{', '.join(words)}"
    return [it.row, it.entrant, it.label or "first", value, it.n_seeds or "not said"]


# --- settings and provenance -------------------------------------------------------------------


def settings(report: Report) -> list[Block]:
    """Sizes, costs, and the settings in which entrants of a row differ."""
    blocks: list[Block] = []
    for row in report.rows:
        differing = chosen.differing(row)
        rows = []
        for e in row.trained:
            cells = [c for c in row.cells if c.entrant == e]
            presets = sorted({c.preset for c in cells if c.preset})
            text = chosen.settings_text(differing.get(e, {}))
            name = cells[0].agent or NOTHING
            rows.append([e, name, ", ".join(presets) or NOTHING, *chosen.cost_cells(cells), text])
        if rows:
            heads = ("entrant", "agent", "preset", *chosen.COST_HEADS, "settings that differ")
            caption = (
                f"{report.row_name(row.info.key)}. Seconds are means over seeds on the machine "
                "below; ms/action: of the policy alone, in the evaluation's batches."
            )
            blocks.append(Table(heads, rows, caption, "tttnnnnnw", entrants=0))
    return [Folded("Settings and cost, row by row", blocks)] if len(blocks) > 3 else blocks


def provenance(report: Report) -> list[Block]:
    """Commands, versions, machine, dates."""
    blocks: list[Block] = []
    everything = [*report.cells, *report.found.failed]
    for suite in dict.fromkeys(k.suite for k in report.infos):
        mine = [c for c in report.cells if c.suite == suite]
        if suite:
            command, said = origin.suite_command(suite, mine)
            blocks += [Code(command), Text(said)]
        elif commands := origin.run_commands(mine):
            blocks.append(Code("\n".join(commands[:20])))
            if commands[20:]:
                blocks.append(Folded("More commands", [Code("\n".join(commands[20:]))]))
    rows = origin.machine_rows(everything)
    if rows:
        blocks.append(Table(("what", "value"), rows, "", "tw"))
    folders = ", ".join(f"`{f}`" for f in report.found.folders)
    blocks.append(Text(f"Read from {folders}."))
    return blocks
