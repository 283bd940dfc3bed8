"""Running a suite: which cells are missing, running them, saying what came of it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seqrl.bench import launchers
from seqrl.bench.cells import Cell
from seqrl.bench.worker import BUSY, DONE
from seqrl.errors import SeqrlError
from seqrl.runfolder import read_json, write_json
from seqrl.units import duration

Launcher = Literal["local", "ray"]


@dataclass
class Outcome:
    """How a benchmark ended."""

    cells: list[Cell]
    kept: list[Cell] = field(default_factory=list)
    """Finished before."""
    done: list[Cell] = field(default_factory=list)
    failed: list[Cell] = field(default_factory=list)
    busy: list[Cell] = field(default_factory=list)
    """Run by another process at the same time."""

    @property
    def complete(self) -> bool:
        """Whether every cell is finished."""
        return not self.failed and not self.busy


def run_cells(
    cells: Sequence[Cell],
    *,
    launcher: Launcher = "local",
    jobs: int = 1,
    address: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Run every cell that is not finished; a failed one does not stop the others.

    Args:
        launcher: ``local`` worker processes, or ``ray``.
        jobs: CPUs to use at once, of this machine.
        address: of the Ray cluster.
        say: called with a line for each cell that ends.

    Raises:
        SeqrlError: a cell has a record of other settings; before anything runs.
    """
    outcome = Outcome(list(cells))
    states = {c.id: c.status() for c in cells}
    missing = [c for c in cells if states[c.id] != "done"]
    outcome.kept = [c for c in cells if states[c.id] == "done"]
    for cell in missing:
        _settle(cell)
    if outcome.kept:
        say(f"{len(outcome.kept)} of {len(cells)} cells are finished already")
    if not missing:
        return outcome
    begin = time.monotonic()
    source = (
        launchers.ray(missing, address) if launcher == "ray" else launchers.local(missing, jobs)
    )
    for cell, code in source:
        where = {DONE: outcome.done, BUSY: outcome.busy}.get(code, outcome.failed)
        where.append(cell)
        ended = len(outcome.done) + len(outcome.failed) + len(outcome.busy)
        left = ""
        if ended < len(missing):
            more = len(missing) - ended
            each = (time.monotonic() - begin) / ended
            left = f" · {more} to go, about {duration(each * more)}"
        say(f"[{ended}/{len(missing)}] {cell.title}: {describe(cell, code)}{left}")
    return outcome


def _settle(cell: Cell) -> None:
    """Write the plan of a cell; what a run of other settings left behind is in the way."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    file = cell.folder / "plan.json"
    if file.exists():
        before = read_json(file, "delete it")
        started = (cell.folder / "run").exists()
        if before.get("key") != cell.plan["key"] and started:
            raise SeqrlError(
                f"{cell.folder} has an unfinished run of other settings",
                hint="another --out, or delete that folder",
            )
    write_json(file, cell.plan)


def describe(cell: Cell, code: int) -> str:
    """A finished cell in a few words."""
    if code == BUSY:
        return "another process is running it"
    if not cell.record_file.exists():
        return f"ended with exit code {code}, see {shown(cell.folder / 'log.txt')}"
    record = read_json(cell.record_file, "delete it")
    if record["status"] == "failed":
        return f"failed: {record['error']} ({shown(cell.folder / 'log.txt')})"
    spent = _seconds(record)
    took = "" if spent is None else f" in {duration(spent)}"
    return f"{_scores(record, cell.row.score)}{took}"


def _seconds(record: dict[str, Any]) -> float | None:
    """Wall-clock seconds between start and end of the worker that finished the cell."""
    t = record["timing"]
    begin, end = (datetime.datetime.fromisoformat(t[k]) for k in ("started", "finished"))
    return (end - begin).total_seconds()


def _scores(record: dict[str, Any], score: str, most: int = 6) -> str:
    """The scores of a record in the order of its measures."""
    parts = []
    several = several_targets(record["results"])
    for r in record["results"]:
        value = score_of(r, score)
        if value is not None:
            parts.append(f"{column(r, several)}: {value:.3g}")
    text = "  ".join(parts[:most]).removeprefix("score: ")
    return f"{score} {text}{' …' if len(parts) > most else ''}" if parts else "done"


def several_targets(results: Iterable[Mapping[str, Any]]) -> bool:
    """Whether results differ in what they were asked for."""
    return len({r.get("target_label") for r in results} - {None, "-"}) > 1


def column(result: Mapping[str, Any], several: bool) -> str:
    """What a result is called in its row; targets are told apart where there are ``several``."""
    words = [result["group"]] if result.get("group") else []
    if result.get("x") is not None:
        words.append(str(result["x"]))
    if several and result.get("target_label") not in (None, "-"):
        words.append(f"target {result['target_label']}")
    return " ".join(words) or "score"


def score_of(result: dict[str, Any], score: str) -> float | None:
    """The number that a row is about, of one of its results; None where it was not measured."""
    if score == "latency":
        return result.get("latency_ms")
    found = result.get(score)
    if found is None:
        return None
    return float(found["rate"] if score == "success" else found["mean"])


def shown(path: Path) -> str:
    """A path as short as it can be from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
