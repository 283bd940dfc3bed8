"""``seqrl bench``: run a suite, cell by cell, and go on where it was stopped."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl.cli import output
from seqrl.cli.flags import Flag, FlagSet, Parsed, Positional
from seqrl.cli.settings import absolute
from seqrl.errors import RunFailed, RunInterrupted, SeqrlError
from seqrl.units import duration, parse_count, parse_duration, parse_seeds

if TYPE_CHECKING:
    from seqrl.bench.cells import Cell
    from seqrl.bench.suite import Suite


def _flags() -> FlagSet:
    what = [
        Flag("agents", str, "Entrants of the suite, or any agent or preset.", metavar="NAME …",
             many=True, group="what"),
        Flag("rows", str, "Rows of the suite (default: all).", metavar="NAME …", many=True,
             group="what"),
        Flag("seeds", str, "Seeds instead of the suite's: 0-4 or 0,1,7.", parse=parse_seeds,
             group="what"),
        Flag("lengths", str, "Lengths instead of the suite's: 30,90,300.", parse=_counts,
             metavar="N,…", group="what"),
        Flag("steps", int, "Updates of every cell, instead of the suite's.", group="what"),
        Flag("episodes", int, "Episodes of every measure and target.", group="what"),
        Flag("data", str, "Other datasets, for suites that take any (locomotion).",
             metavar="URI …", many=True, group="what"),
        Flag("budget", str, "Equal updates, or equal training time (then --seconds).", "updates",
             metavar="updates|seconds", group="what"),
        Flag("seconds", str, "Training time of each cell: 600, 10m.", parse=parse_duration,
             group="what"),
    ]  # fmt: skip
    how = [
        Flag("out", str, "Folder of results (default: runs/bench/SUITE).", metavar="DIR",
             group="how"),
        Flag("jobs", int, "CPUs of this machine to use at once, a thread each.", 1, group="how"),
        Flag("launcher", str, "Worker processes here, or a Ray cluster.", "local",
             metavar="local|ray", group="how"),
        Flag("address", str, "Of the Ray cluster (default: one of this machine).", group="how"),
        Flag("dry-run", bool, "Show the cells, what is finished and what the rest will cost.",
             group="how"),
        Flag("probe", bool, "With --dry-run: time a few updates of each cell.", True,
             group="how"),
        Flag("quiet", bool, "Show results only.", short="q", group="output"),
        Flag("json", bool, "One JSON object on standard output.", group="output"),
    ]  # fmt: skip
    return FlagSet(
        "bench",
        [*what, *how],
        [Positional("SUITE", "name (seqrl list suites) or a FILE.json of your own")],
    )


def _counts(text: str) -> tuple[int, ...]:
    return tuple(parse_count(t) for t in text.split(",") if t.strip())


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl bench --help``."""
    return output.help_text(
        _flags(),
        "Run a benchmark suite: every entrant on every row under every seed, on the same data, "
        "with the same budget and the same evaluation episodes. What is finished is kept: run the "
        "same command again after an interruption, or with more seeds. A cell that fails is "
        "recorded, the others go on.",
        examples=[
            "seqrl bench smoke",
            "seqrl bench tmaze --dry-run",
            "seqrl bench tmaze --agents dt lstm rate --seeds 0-2 --jobs 2",
            "seqrl bench locomotion --data minari:ID d4rl:FILE.hdf5 --agents dt bc",
            "seqrl bench memory --launcher ray --address auto",
            "seqrl report runs/bench/tmaze",
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Run a suite."""
    from seqrl.bench import suite as suites
    from seqrl.bench.cells import Choice, plan_cells

    parsed = _flags().parse(argv)
    _check_words(parsed)
    suite = suites.load(parsed.get("suite"))
    choice = Choice(
        agents=tuple(parsed.get("agents") or ()),
        rows=tuple(parsed.get("rows") or ()),
        seeds=None if "seeds" not in parsed else tuple(parsed.get("seeds")),
        lengths=parsed.get("lengths"),
        steps=parsed.get("steps"),
        episodes=parsed.get("episodes"),
        data=tuple(absolute(uri) for uri in parsed.get("data") or ()),
        seconds=parsed.get("seconds"),
    )
    out = Path(parsed.get("out") or Path("runs") / "bench" / suite.name).absolute()
    cells = plan_cells(suite, choice, out)
    if parsed.get("dry_run"):
        return _dry_run(suite, cells, parsed)
    return _run(suite, cells, parsed, out)


def _check_words(parsed: Parsed) -> None:
    for name, allowed in (("budget", ("updates", "seconds")), ("launcher", ("local", "ray"))):
        if parsed.get(name, allowed[0]) not in allowed:
            raise SeqrlError(f"--{name} is '{parsed.get(name)}'", hint=f"one of {allowed}")
    if (parsed.get("budget") == "seconds") != ("seconds" in parsed):
        raise SeqrlError("--budget seconds and --seconds N go together")
    if "seconds" in parsed and "steps" in parsed:
        raise SeqrlError("--seconds and --steps are both given", hint="keep one of them")
    if "address" in parsed and parsed.get("launcher") != "ray":
        raise SeqrlError("--address is for --launcher ray")
    for name in ("jobs", "steps", "episodes"):
        if parsed.get(name, 1) < 1:
            raise SeqrlError(f"--{name} is {parsed.get(name)}, must be at least 1")


# --- running -----------------------------------------------------------------------------------


def _run(suite: Suite, cells: list[Cell], parsed: Parsed, out: Path) -> int:
    from seqrl.bench.runner import run_cells, shown

    quiet = parsed.get("quiet") or parsed.get("json")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcome = run_cells(
            cells,
            launcher=parsed.get("launcher", "local"),
            jobs=parsed.get("jobs", 1),
            address=parsed.get("address"),
            say=(lambda text: None) if quiet else output.log,
        )
    except KeyboardInterrupt as e:
        text = "interrupted; what was finished is kept"
        raise RunInterrupted(text, hint="the same command goes on") from e
    finally:
        signal.signal(signal.SIGTERM, before)
    counts: dict[str, Any] = {
        "cells": len(cells),
        "kept": len(outcome.kept),
        "done": len(outcome.done),
        "failed": [c.title for c in outcome.failed],
        "busy": [c.title for c in outcome.busy],
    }
    if parsed.get("json"):
        output.print_json({"suite": suite.name, "out": str(out), **counts})
    else:
        output.out(summary(suite, cells))
        output.out(f"next:  seqrl report {shown(out)}")
    if outcome.failed:
        names = ", ".join(counts["failed"][:3])
        raise RunFailed(
            f"{len(outcome.failed)} of {len(cells)} cells failed: {names}",
            hint="their errors are in their records and logs; the same command tries them again",
        )
    return 0 if outcome.complete else 1


def summary(suite: Suite, cells: Sequence[Cell]) -> str:
    """A table for every row: the mean score of each entrant, with its seeds."""
    from seqrl.bench.runner import column, score_of, several_targets
    from seqrl.runfolder import read_json

    parts = []
    for row in suite_rows(cells):
        mine = [c for c in cells if c.plan["row"] == row and c.record_file.exists()]
        if not mine:
            continue
        score = mine[0].row.score
        records = [read_json(c.record_file, "delete it") for c in mine]
        results = [r for rec in records for r in rec["results"]]
        several = several_targets(results)
        columns = list(dict.fromkeys(column(r, several) for r in results))
        shown = columns if len(columns) <= 8 else [*columns[:7], columns[-1]]
        rows = []
        for entrant in dict.fromkeys(r["entrant"] for r in records):
            own = [r for r in records if r["entrant"] == entrant and r["status"] == "done"]
            cells_text = []
            for name in shown:
                same = [x for r in own for x in r["results"] if column(x, several) == name]
                found = [score_of(x, score) for x in same]
                values = [v for v in found if v is not None]
                cells_text.append(f"{sum(values) / len(values):.3g}" if values else "-")
            rows.append([entrant, str(len(own)), *cells_text])
        title = f"{mine[0].row.title}: mean {score}"
        parts.append(f"{title}\n{output.table(['ENTRANT', 'SEEDS', *shown], rows)}")
    return "\n\n".join(parts)


def suite_rows(cells: Sequence[Cell]) -> list[str]:
    """Names of the rows that cells are of, in order."""
    return list(dict.fromkeys(c.plan["row"] for c in cells))


# --- planning ----------------------------------------------------------------------------------


def _dry_run(suite: Suite, cells: list[Cell], parsed: Parsed) -> int:
    states = [c.status() for c in cells]
    groups: dict[tuple[str, str], list[int]] = {}
    for i, c in enumerate(cells):
        groups.setdefault((c.plan["row"], c.plan["entrant"]), []).append(i)
    probing = parsed.get("probe", True)
    rows, hours, facts = [], 0.0, []
    for (row, entrant), numbers in groups.items():
        missing = [cells[i] for i in numbers if states[i] != "done"]
        steps = ((cells[numbers[0]].plan["settings"] or {}).get("train") or {}).get("steps")
        cost = each = None
        problem = None
        if missing and probing:
            from seqrl.bench.probe import estimate

            if not parsed.get("quiet"):
                output.log(f"probing {row} · {entrant}")
            try:
                found = estimate(missing[0])
                each, cost = found.update, found.total * len(missing) * missing[0].plan["cpus"]
                hours += cost / 3600
            except SeqrlError as e:
                problem = e.message
        seeds = [cells[i].plan["seed"] for i in numbers]
        facts.append(
            {
                "row": row,
                "entrant": entrant,
                "seeds": seeds,
                "finished": len(numbers) - len(missing),
                "updates": steps,
                "seconds_per_update": each,
                "core_seconds": cost,
                "problem": problem,
            }
        )
        ms = "-" if not each else f"{1e3 * each:.1f}"
        price = problem or ("-" if cost is None else duration(cost))
        done = f"{len(numbers) - len(missing)}/{len(numbers)}"
        rows.append([row, entrant, done, "-" if steps is None else str(steps), ms, price])
    if parsed.get("json"):
        output.print_json({"suite": suite.name, "groups": facts, "core_hours": hours})
        return 0
    output.out(f"{suite.title}: {len(cells)} cells in {len(groups)} groups")
    output.out(output.table(["ROW", "ENTRANT", "DONE", "UPDATES", "MS/UPDATE", "CORE TIME"], rows))
    finished = states.count("done")
    cost_text = f"about {hours:.1f} core-hours to go" if probing else "not probed"
    output.out(f"{finished} of {len(cells)} cells are finished; {cost_text} (nothing was run)")
    return 0
