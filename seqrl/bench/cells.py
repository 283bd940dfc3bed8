"""Cells: one entrant of one row under one seed, with everything resolved that decides its result.

The plan of a cell is plain JSON: a worker process, here or on another machine of a cluster, needs
nothing else. Where it lies::

    OUT/cells/ROW/ENTRANT_s0.json     the record, once finished (small: keep or commit these)
    OUT/work/ROW/ENTRANT_s0/          plan.json, log.txt and run/, the run folder

Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seqrl import presets, references
from seqrl.agents import registry
from seqrl.bench.suite import Entrant, Row, Suite
from seqrl.errors import SeqrlError, did_you_mean
from seqrl.presets import merge
from seqrl.presets.settings import layer, nested
from seqrl.runfolder import read_json

SCHEMA = 1
Status = Literal["done", "failed", "unfinished", "new"]


@dataclass(frozen=True)
class Choice:
    """What of a suite is to run, and how it differs from its file."""

    agents: tuple[str, ...] = ()
    """Entrants, or presets, agents and reference policies that are not in the suite."""
    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    steps: int | None = None
    episodes: int | None = None
    data: tuple[str, ...] = ()
    """Datasets in the place of the rows', for suites that allow it."""
    seconds: float | None = None
    """Training time of each cell instead of its number of updates."""


@dataclass(frozen=True)
class Cell:
    """A cell and where it lies."""

    plan: dict[str, Any]
    out: Path
    row: Row = field(compare=False)
    entrant: Entrant = field(compare=False)

    @property
    def id(self) -> str:
        """``ROW/ENTRANT_s0``, unique within a results folder and fit for file names."""
        p = self.plan
        return f"{slug(p['row'])}/{slug(p['entrant'])}_s{p['seed']}"

    @property
    def title(self) -> str:
        """How people call it."""
        return f"{self.plan['row']} · {self.plan['entrant']} · seed {self.plan['seed']}"

    @property
    def record_file(self) -> Path:
        """The finished record."""
        return self.out / "cells" / f"{self.id}.json"

    @property
    def folder(self) -> Path:
        """Where its worker works."""
        return self.out / "work" / self.id

    def status(self) -> Status:
        """How far the cell is.

        Raises:
            SeqrlError: there is a record of other settings.
        """
        if not self.record_file.exists():
            return "unfinished" if (self.folder / "run").exists() else "new"
        record = read_json(self.record_file, "delete it: the cell is then run again")
        if record.get("key") != self.plan["key"]:
            raise SeqrlError(
                f"{self.record_file} was run with other settings: "
                f"{_difference(record.get('plan', {}), self.plan)}",
                hint="another --out, or delete what is not wanted any more",
            )
        if record.get("status") != "done":
            return "failed"
        there = set(record["measures"])
        return "done" if all(m["label"] in there for m in self.plan["measures"]) else "unfinished"


def slug(text: str) -> str:
    """A name as a file name.

    >>> slug("dt, window+first")
    'dt.window+first'
    """
    return re.sub(r"[^0-9A-Za-z+%_-]+", ".", text).strip(".")


def plan_cells(suite: Suite, choice: Choice, out: Path) -> list[Cell]:
    """Every cell of a suite, the first seed of all before the second of any.

    Raises:
        SeqrlError: an unknown row or entrant, data for a suite that takes none, settings that do
            not resolve.
    """
    rows = _chosen_rows(suite, choice)
    known = list(dict.fromkeys(e.name for r in rows for e in r.entrants))
    added = [_newcomer(name, known) for name in choice.agents if name not in known]
    cells = []
    for row in rows:
        for entrant in (*row.entrants, *added):
            if choice.agents and entrant.name not in choice.agents:
                continue
            seeds = choice.seeds or entrant.seeds or row.seeds or suite.seeds
            # Evaluation does not depend on the training seed: a reference runs once.
            for seed in seeds[:1] if entrant.reference else seeds:
                plan = _plan(suite, row, entrant, seed, choice)
                cells.append(Cell(plan, out, row, entrant))
    if not cells:
        raise SeqrlError("nothing to run: no row has such entrants", hint=f"they are {known}")
    ids = [c.id for c in cells]
    if twice := next((i for i in ids if ids.count(i) > 1), None):
        raise SeqrlError(f"two cells would be called {twice}", hint="rename an entrant or row")
    return sorted(cells, key=lambda c: c.plan["seed"])


def _chosen_rows(suite: Suite, choice: Choice) -> list[Row]:
    rows = list(suite.rows)
    if unknown := [r for r in choice.rows if r not in [x.name for x in rows]]:
        listed = [r.name for r in rows]
        hint = did_you_mean(unknown[0], listed, f"rows: {', '.join(listed)}")
        raise SeqrlError(f"suite '{suite.name}' has no row '{unknown[0]}'", hint=hint)
    if choice.rows:
        rows = [r for r in rows if r.name in choice.rows]
    if choice.data:
        if not suite.data_template:
            raise SeqrlError(f"suite '{suite.name}' has data of its own: --data does not fit")
        rows = [_with_data(rows[0], uri) for uri in choice.data]
    if choice.lengths is not None:
        if not any(r.lengths for r in rows):
            raise SeqrlError(f"no row of suite '{suite.name}' has lengths")
        rows = [
            dataclasses.replace(r, lengths=choice.lengths, long=()) if r.lengths else r
            for r in rows
        ]
    return rows


def _with_data(template: Row, uri: str) -> Row:
    """The row for another dataset: its targets are what that dataset suggests."""
    measures = tuple({k: v for k, v in m.items() if k != "targets"} for m in template.measures)
    entrants = tuple(
        dataclasses.replace(e, settings=merge(e.settings, {"eval": {"targets": []}}))
        for e in template.entrants
    )
    name = uri.partition(":")[2] or uri
    return dataclasses.replace(
        template, name=name, title=uri, data=(uri,), measures=measures, entrants=entrants
    )


def _newcomer(name: str, known: Sequence[str]) -> Entrant:
    """An entrant that the suite does not know: a preset, an agent or a reference policy."""
    if name in presets.names():
        return Entrant(name, None, name, None)
    if references.is_reference(name):
        return Entrant(name, None, None, name)
    if name in registry.names() or ":" in name:
        return Entrant(name, name, None, None)
    raise SeqrlError(
        f"no entrant '{name}'",
        hint=did_you_mean(name, [*known, *registry.names()], f"entrants: {', '.join(known)}"),
    )


def _plan(suite: Suite, row: Row, entrant: Entrant, seed: int, choice: Choice) -> dict[str, Any]:
    data = [uri.replace("{seed}", str(seed)) for uri in row.data]
    plan: dict[str, Any] = {
        "schema": SCHEMA,
        "suite": suite.name,
        "row": row.name,
        "kind": row.kind,
        "entrant": entrant.name,
        "reference": entrant.reference,
        "seed": seed,
        "data": data,
        "cpus": entrant.cpus,
        "gpus": entrant.gpus,
        "shown": {
            "title": row.title,
            "score": row.score,
            "chance": row.chance,
            "solved": row.solved,
            "axis": None if row.axis is None else row.axis.title,
        },
    }
    settings: dict[str, Any] | None = None
    if entrant.reference is None:
        where = f"row '{row.name}', entrant '{entrant.name}'"
        settings = _settings(row, entrant, seed, data, choice, where)
        plan |= {"agent": settings["agent"], "preset": settings.get("preset")}
        plan["seconds"] = choice.seconds if row.kind == "train" else None
        plan["from_steps"] = entrant.from_steps if plan["seconds"] else {}
    plan["settings"] = settings
    if row.kind == "speed":
        plan |= {"batches": list(row.batches), "lengths": list(row.lengths), "limits": row.limits}
        plan["measures"] = [
            {"label": f"batch {n}, {t} steps", "x": t, "batch": n}
            for n in row.batches
            for t in row.lengths
        ]
    else:
        plan["measures"] = _measures(row, entrant, settings, choice)
    decides = ("settings", "seconds", "reference", "data", "batches", "limits")
    text = json.dumps({k: plan.get(k) for k in decides}, sort_keys=True)
    plan["key"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return plan


def _settings(
    row: Row, entrant: Entrant, seed: int, data: list[str], choice: Choice, where: str
) -> dict[str, Any]:
    given = merge(entrant.settings, {"data": data or ["none"], "train": {"seed": seed}})
    if row.context is not None:
        own = {k: math.ceil(share * row.context) for k, share in entrant.from_context.items()}
        given = merge(given, nested(own))
    if entrant.agent is not None:
        given["agent"] = entrant.agent
    try:
        settings = layer(given, preset=entrant.preset, default_data=data).settings
    except SeqrlError as e:
        raise SeqrlError(f"{where}: {e.message}", hint=e.hint) from e
    if row.kind == "speed":
        return settings
    train = dict(settings.get("train", {}))
    if choice.steps is not None:
        train["steps"] = choice.steps
    if not train.get("steps"):
        raise SeqrlError(f"{where} does not say for how many updates to train", hint="--steps N")
    settings = {**settings, "train": train, "loggers": ["jsonl"]}
    return with_steps(settings, train["steps"], entrant.from_steps)


def with_steps(
    settings: Mapping[str, Any], steps: int, from_steps: Mapping[str, float]
) -> dict[str, Any]:
    """Settings for a number of updates, with those that follow it.

    >>> with_steps({"train": {"steps": 5}}, 200, {"train.optim.warmup_steps": 0.1})
    {'train': {'steps': 200, 'optim': {'warmup_steps': 20}}}
    """
    follow = {k: max(1, round(share * steps)) for k, share in from_steps.items()}
    return merge(settings, nested({"train.steps": steps, **follow}))


def _measures(
    row: Row, entrant: Entrant, settings: Mapping[str, Any] | None, choice: Choice
) -> list[dict[str, Any]]:
    found = []
    for m in row.measures:
        if entrant.name not in m.get("only", (entrant.name,)):
            continue
        options = {k: v for k, v in m.items() if k not in ("label", "only")}
        if choice.episodes is not None:
            options["episodes"] = choice.episodes
        offline = any(k in options for k in ("contexts", "context_sizes"))
        lengths: Sequence[int | None] = (None,) if offline else row.lengths or (None,)
        if row.long and not offline and settings is not None and _streams(settings, options):
            lengths = [*row.lengths, *row.long]
        for x in lengths:
            own, words = dict(options), [m["label"]] if m.get("label") else []
            if x is not None and row.axis is not None and row.axis.kwarg:
                own["env_kwargs"] = {**options.get("env_kwargs", {}), row.axis.kwarg: x}
                words.append(f"{row.axis.kwarg} {x}")
            label = ", ".join(words) or "all"
            found.append({"label": label, "group": m.get("label", ""), "x": x, "options": own})
    return found


def _streams(settings: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether an entrant acts by a rule whose cost does not grow with the episode."""
    rule = options.get("acting") or (settings.get("eval") or {}).get("acting")
    agent = str(settings["agent"])
    if rule is None and ":" not in agent:
        rule = registry.row(agent).acting[0]
    return str(rule).startswith("stream")


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs between two plans, in a few words."""
    from seqrl.presets.settings import differences

    a, b = (({k: p.get(k) for k in ("seconds", "data")}) for p in (before, after))
    found = differences(before.get("settings") or {}, after.get("settings") or {})
    found += differences(a, b)
    return "; ".join(found[:3]) or "its plan differs"
