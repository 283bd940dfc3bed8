"""Loading: every benchmark record and training run below some folders, in one flat form.

A :class:`Cell` is one entrant of one row under one seed, whatever it came from. What cannot be read
is named in a warning and left out; nothing of a file is trusted before it has been looked at.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from seqrl.bench.cells import SCHEMA
from seqrl.bench.runner import shown
from seqrl.bench.worker import record_file
from seqrl.errors import SeqrlError
from seqrl.runfolder import read_json

MEASURES = ("success", "normalized", "return", "regret")
SPEED = {
    "latency": "latency_ms",
    "throughput": "steps_per_s",
    "state": "state_mb",
    "resident": "resident_mb",
}
"""What a speed record measures, and its key there."""

_SKIPPED = ("checkpoints", "tb", "eval")


class Value(NamedTuple):
    """A mean over the episodes of one cell, with the interval that its record gives."""

    mean: float
    low: float | None = None
    high: float | None = None
    over: str = ""
    """What the interval is over, in the record's words."""


@dataclass(frozen=True)
class Result:
    """A measure of a cell at one target."""

    label: str
    values: dict[str, Value]
    """By measure: those of ``MEASURES`` or ``SPEED`` that were taken."""
    group: str = ""
    """The measure without its length: ``last``, ``sampled``, ``batch 16``."""
    x: float | None = None
    """Length (an environment's argument), or steps since reset."""
    target: float | None = None
    target_label: str = "-"
    n: int | None = None
    """Episodes."""
    checkpoint: str = "last"
    protocol: dict[str, Any] = field(default_factory=dict)
    """``rule``, ``decode``, ``temperature``, ``trial_episodes`` and ``seed`` of the evaluation."""
    env: str = ""
    trials: dict[str, Any] | None = None
    reason: str | None = None
    """Why a point of a speed record is missing."""


@dataclass(frozen=True)
class Cell:
    """One entrant of one row under one seed."""

    suite: str
    """Empty for training runs."""
    row: str
    entrant: str
    seed: int
    path: Path
    kind: str = "train"
    status: str = "done"
    error: str = ""
    hint: str | None = None
    agent: str | None = None
    preset: str | None = None
    reference: bool = False
    """Whether it is a reference policy, which is not trained."""
    parameters: int | None = None
    updates: int | None = None
    data: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    curve: tuple[dict[str, float], ...] = ()
    results: tuple[Result, ...] = ()
    plan: dict[str, Any] = field(default_factory=dict)
    train_seconds: float | None = None
    updates_per_s: float | None = None
    policy_ms: float | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    started: str = ""
    finished: str = ""
    command: tuple[str, ...] = ()
    """Of a training run: what was typed."""


@dataclass
class Found:
    """Everything below the folders of a report."""

    folders: list[Path]
    cells: list[Cell] = field(default_factory=list)
    failed: list[Cell] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load(folders: Sequence[str | Path]) -> Found:
    """Read every benchmark record and training run below some folders.

    Raises:
        SeqrlError: a folder does not exist, or there are no results in any.
    """
    from seqrl.report.runs import run_cells

    found = Found([Path(f) for f in folders])
    seen: set[Path] = set()
    for folder in found.folders:
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "does not exist"
            raise SeqrlError(f"{folder} {what}", hint="seqrl report DIR: a folder of results")
        for kind, path in _walk(folder):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                if kind == "work":
                    if not record_file(path.absolute()).exists():
                        found.unfinished.append(f"{path.parent.name}/{path.name}")
                    continue
                read = run_cells(path) if kind == "run" else [bench_cell(path)]
            except SeqrlError as e:
                found.warnings.append(e.message)
                continue
            for cell in read:
                if cell.status == "unfinished":
                    found.unfinished.append(shown(path.absolute()))
                else:
                    (found.cells if cell.status == "done" else found.failed).append(cell)
    if not (found.cells or found.failed or found.unfinished):
        where = " and ".join(str(f) for f in found.folders)
        read_of = f"; {found.warnings[0]}" if found.warnings else ""
        raise SeqrlError(
            f"no results in {where}{read_of}",
            hint="they come from: seqrl bench SUITE --out DIR, or seqrl train",
        )
    return found


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Records (``cell``), run folders (``run``) and folders of unfinished cells (``work``)."""
    for where, names, files in os.walk(folder):
        here = Path(where)
        names[:] = sorted(n for n in names if n not in _SKIPPED and not n.startswith("."))
        if here.absolute().parent.name == "cells":
            yield from (("cell", here / f) for f in sorted(files) if f.endswith(".json"))
        elif "plan.json" in files and here.absolute().parent.parent.name == "work":
            # The run inside belongs to the cell.
            names[:] = []
            yield "work", here
        elif "run.json" in files:
            names[:] = []
            yield "run", here


# --- benchmark records -------------------------------------------------------------------------


def bench_cell(path: Path) -> Cell:
    """The cell of a record that ``seqrl bench`` wrote.

    Raises:
        SeqrlError: it is torn, of another program, or of a newer version.
    """
    record = read_json(path, "run the suite again")
    if not {"suite", "row", "entrant", "results"} <= record.keys():
        raise SeqrlError(f"{shown(path.absolute())} is no record of seqrl bench")
    if record.get("schema") != SCHEMA:
        schema = record.get("schema")
        raise SeqrlError(f"{shown(path.absolute())} has schema {schema!r}, not {SCHEMA}")
    try:
        return _bench_cell(record, path)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise SeqrlError(
            f"{shown(path.absolute())} is damaged: {type(e).__name__} {e}".strip()
        ) from e


def _bench_cell(record: Mapping[str, Any], path: Path) -> Cell:
    plan, timing = mapping(record.get("plan")), mapping(record.get("timing"))
    if plan.get("settings") is not None:
        plan["settings"] = mapping(plan["settings"])
        mapping(plan["settings"].get("train"))
    speed = record.get("kind") == "speed"
    done = record.get("status") == "done"
    results = (speed_result(r) if speed else result(r) for r in record["results"])
    return Cell(
        suite=str(record["suite"]),
        row=str(record["row"]),
        entrant=str(record["entrant"]),
        seed=int(record["seed"]),
        path=path,
        kind="speed" if speed else "train",
        status="done" if done else "failed",
        error=str(record.get("error") or ""),
        hint=name(record.get("hint")),
        agent=name(record.get("agent")),
        preset=name(record.get("preset")),
        reference=bool(plan.get("reference")),
        parameters=whole(record.get("parameters")),
        updates=whole(record.get("updates")),
        data=sources(record.get("data")) or tuple(map(str, plan.get("data") or ())),
        settings=mapping(record.get("settings")),
        curve=curve(record.get("curve") or ()),
        results=tuple(results) if done else (),
        plan=plan,
        train_seconds=number(timing.get("train_seconds")),
        updates_per_s=number(timing.get("updates_per_s")),
        policy_ms=number(timing.get("policy_ms")),
        versions=mapping(record.get("versions")),
        machine=mapping(timing.get("hardware")),
        git=mapping(timing.get("git")) or None,
        started=str(timing.get("started") or ""),
        finished=str(timing.get("finished") or ""),
    )


def result(r: Mapping[str, Any]) -> Result:
    """A line of results as the benchmark's worker writes it."""
    values = {k: v for k in MEASURES if (v := value(r.get(k))) is not None}
    env = r.get("env") or {}
    kwargs = ", ".join(f"{k} {v}" for k, v in (env.get("kwargs") or {}).items())
    return Result(
        label=str(r["label"]),
        values=values,
        group=str(r.get("group") or ""),
        x=number(r.get("x")),
        target=number(r.get("target")),
        target_label=target_name(r.get("target_label")),
        n=whole(r.get("n")),
        checkpoint=str(r.get("checkpoint") or "last"),
        protocol={k: r.get(k) for k in ("rule", "decode", "temperature", "trial_episodes", "seed")},
        env=f"{env.get('id', '')}{f' ({kwargs})' if kwargs else ''}",
        trials=trials(r.get("trials")),
    )


def speed_result(r: Mapping[str, Any]) -> Result:
    """A point of a speed record; ``x`` is the age, the group names the batch."""
    values = {k: Value(v) for k, key in SPEED.items() if (v := number(r.get(key))) is not None}
    if (age := number(r["x"])) is None:
        raise ValueError("a point of speed without its steps")
    return Result(
        label=str(r["label"]),
        values=values,
        group=str(r.get("group") or f"batch {r.get('batch', 1)}"),
        x=age,
        protocol={"rule": r.get("rule"), "batch": r.get("batch")},
        reason=None if values else str(r.get("reason") or "not measured"),
    )


# --- parts of records --------------------------------------------------------------------------


def value(entry: Any) -> Value | None:
    """A summary entry (``mean`` or ``rate``, ``ci``, ``ci_kind``); None where it was not taken."""
    if entry is None:
        return None
    mean = number(entry["rate"] if "rate" in entry else entry["mean"])
    if mean is None:
        return None
    low, high = (number(v) for v in entry.get("ci") or (None, None))
    return Value(mean, low, high, str(entry.get("ci_kind") or ""))


def trials(entry: Any) -> dict[str, Any] | None:
    """What a report needs of trials: returns by episode, and the curve of the regret."""
    if entry is None:
        return None
    regret = entry.get("regret") or {}
    out: dict[str, Any] = {
        "trials": int(entry["trials"]),
        "episodes": int(entry["episodes"]),
        "returns": [v for r in entry["returns"] if (v := value(r)) is not None],
        "best": value(entry.get("best")),
        "last": value(entry.get("last")),
        "total": value(regret.get("total")),
        "steps": None,
    }
    if regret.get("steps"):
        for key in ("steps", "cumulative", "stderr"):
            out[key] = [float(v) for v in regret[key]]
        if not len(out["steps"]) == len(out["cumulative"]) == len(out["stderr"]):
            raise ValueError("a regret curve with columns of different lengths")
    return out


def curve(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, float], ...]:
    """The finite numbers of each point of a learning curve that has a step."""
    kept = ({str(k): n for k, v in row.items() if (n := number(v)) is not None} for row in rows)
    return tuple(point for point in kept if "step" in point)


def sources(entries: Any) -> tuple[str, ...]:
    """Where the data came from, as recorded with the run."""
    return tuple(str(d["source"]) for d in entries or ())


def target_name(label: Any) -> str:
    """A target's label; ``1800.0`` and ``1800`` are the same one."""
    text = "-" if label is None else str(label)
    try:
        return f"{float(text):g}" if abs(float(text)) < 1e6 else text
    except ValueError:
        return text


def mapping(v: Any) -> dict[str, Any]:
    """A JSON object; an empty one for null.

    Raises:
        TypeError: something else.
    """
    if v is not None and not isinstance(v, Mapping):
        raise TypeError(f"{v!r:.40} in the place of an object")
    return dict(v or {})


def name(v: Any) -> str | None:
    """A text, or None."""
    return None if v is None else str(v)


def number(v: Any) -> float | None:
    """A finite number, else None (JSON has null for NaN)."""
    if v is None or isinstance(v, (bool, str)):
        return None
    return float(v) if math.isfinite(float(v)) else None


def whole(v: Any) -> int | None:
    """A whole number, else None."""
    n = number(v)
    return None if n is None else int(n)
