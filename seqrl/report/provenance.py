"""Where the numbers come from: commands that give them again, versions, machines, dates."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrl.bench.cells import Choice, plan_cells
from seqrl.bench.suite import Suite
from seqrl.errors import SeqrlError
from seqrl.report.format import numbers
from seqrl.report.records import Cell
from seqrl.report.rows import known_suite


def suite_command(suite: str, cells: Sequence[Cell]) -> tuple[str, str]:
    """The command that runs the cells of a suite, and whether that was checked.

    Returns:
        The command, and a sentence: whether the shipped suite plans exactly these cells.
    """
    known = known_suite(suite)
    if known is None:
        return f"seqrl bench {suite}.json", "The suite is not a shipped one; its file is needed."
    choice, words = _choice(known, cells)
    command = shlex.join(["seqrl", "bench", suite, *words])
    keys = {(c.row, c.entrant, c.seed): c.plan.get("key") for c in cells if c.plan.get("key")}
    if not keys:
        return command, "The records hold no plan, so the settings could not be compared."
    try:
        planned = {(p["row"], p["entrant"], p["seed"]): p["key"]
                   for p in (c.plan for c in plan_cells(known, choice, Path()))}  # fmt: skip
    except SeqrlError as e:
        return command, f"The suite as it is now cannot be planned: {e.message}."
    other = [k for k, v in keys.items() if planned.get(k) != v]
    if not other:
        return command, "Checked: the suite as it is now plans these cells with these settings."
    row, entrant, seed = other[0]
    return command, (
        f"The suite as it is now plans {len(other)} of {len(keys)} cells differently, among them "
        f"{row} · {entrant} · seed {seed}; the settings they were run with are in their records."
    )


def _choice(suite: Suite, cells: Sequence[Cell]) -> tuple[Choice, list[str]]:
    """What was chosen of a suite, as far as records tell, and the same as flags."""
    words: list[str] = []
    given: dict[str, Any] = {}

    def option(flag: str, key: str, values: Any, shown: Iterable[str]) -> None:
        given[key] = values
        words.extend([f"--{flag}", *shown])

    plans = [c.plan for c in cells if c.plan]
    rows = list(dict.fromkeys(c.row for c in cells))
    listed = [r.name for r in suite.rows]
    if suite.data_template and not set(rows) <= set(listed):
        data = list(dict.fromkeys(d for p in plans for d in p.get("data") or ()))
        option("data", "data", tuple(data), data)
    elif set(rows) < set(listed):
        option("rows", "rows", tuple(rows), rows)
    entrants = list(dict.fromkeys(c.entrant for c in cells))
    usual = [e.name for r in suite.rows if r.name in rows or "data" in given for e in r.entrants]
    if set(entrants) != set(usual):
        option("agents", "agents", tuple(entrants), entrants)
    seeds = sorted({c.seed for c in cells if not c.reference})
    if seeds and tuple(seeds) != suite.seeds:
        option("seeds", "seeds", tuple(seeds), [numbers(seeds).replace(" ", "")])
    seconds = {p.get("seconds") for p in plans} - {None}
    if len(seconds) == 1:
        value = seconds.pop()
        option("budget", "seconds", value, ["seconds", "--seconds", f"{value:g}"])
    elif (steps := _steps(suite, cells)) is not None:
        option("steps", "steps", steps, [str(steps)])
    return Choice(**given), words


def _steps(suite: Suite, cells: Sequence[Cell]) -> int | None:
    """The one number of updates of all cells, where it is not their suite's."""
    found = {
        ((c.plan.get("settings") or {}).get("train") or {}).get("steps")
        for c in cells
        if c.plan.get("settings") and c.kind == "train"
    }
    if len(found) != 1 or None in found:
        return None
    usual = {
        (e.settings.get("train") or {}).get("steps")
        for r in suite.rows
        for e in r.entrants
        if r.kind == "train"
    }
    value = found.pop()
    return None if value in usual else int(str(value))


def run_commands(cells: Sequence[Cell]) -> list[str]:
    """What was typed for training runs, each once."""
    return list(dict.fromkeys(shlex.join(c.command) for c in cells if c.command))


def machine_rows(cells: Sequence[Cell]) -> list[list[str]]:
    """Facts and their values, each with the number of cells it holds for where they differ."""
    facts: dict[str, dict[str, int]] = {}

    def count(name: str, value: Any) -> None:
        if value not in (None, "", [], {}):
            here = facts.setdefault(name, {})
            here[str(value)] = here.get(str(value), 0) + 1

    for c in cells:
        for name, version in c.versions.items():
            count(name, version)
        count("processor", _processor(c.machine))
        count("platform", c.machine.get("platform"))
        count("CUDA devices", ", ".join(map(str, c.machine.get("cuda") or ())))
        if c.git:
            dirty = " with changes" if c.git.get("dirty") else ""
            count("revision", f"{str(c.git.get('revision'))[:12]}{dirty}")
    rows = []
    for name, values in facts.items():
        several = len(values) > 1
        shown = (f"{v} ({n} cells)" if several else v for v, n in values.items())
        rows.append([name, "; ".join(shown)])
    if dates := sorted(d for c in cells for d in (c.started, c.finished) if d):
        rows.append(["run between", f"{dates[0]} and {dates[-1]}"])
    return rows


def _processor(machine: Mapping[str, Any]) -> str:
    parts = [str(machine["cpu"])] if machine.get("cpu") else []
    if machine.get("cores"):
        parts.append(f"{machine['cores']} cores")
    if machine.get("threads"):
        parts.append(f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'} used")
    return ", ".join(parts)
