"""Suites as data: rows, entrants and measures, read from JSON and checked before anything runs.

A suite file holds ``name``, ``title``, ``description``, ``seeds``, perhaps ``settings``,
``from_steps``, ``entrants`` and ``measures`` for all of its rows, and ``rows``. A row is what is
trained on and how it is asked::

    {"name": "tmaze-90", "title": "T-Maze, trained to limit 90", "data": ["tmaze-90"],
     "axis": {"kwarg": "limit", "title": "corridor limit"}, "lengths": [30, 90, 300],
     "long": [9600], "measures": [{"targets": [1], "episodes": 100}], "entrants": {...}}

An entrant is ``{"preset": NAME}`` or ``{"agent": NAME}`` with settings over it (``agent_config``,
``train``, ``load``, ``eval``), or ``{"reference": NAME}``, which is not trained. ``null`` takes an
entrant of the suite out of a row. Settings: preset < suite < row < entrant. ``from_steps`` are
settings that follow the number of updates: ``{"train.optim.warmup_steps": 0.1}`` is a tenth of it.
In the same way an entrant's ``from_context`` follows the ``context`` of a row, the steps that its
agents are to look back in training, rounded up.

``{"suite": "tmaze", "name": "tmaze-90"}`` is a row of another shipped suite, with what that suite
says of all its rows; a record of it counts in both.

A measure may be for some entrants ``only``; ``contexts`` and ``context_sizes`` make it one of
recorded contexts (``bench/offline.py``).

``lengths`` are values of an environment argument (``axis.kwarg``); each measure is taken at each.
Those of ``long`` are for entrants whose cost a step does not grow, that is, who act by a stream
rule. In ``data``, ``{seed}`` stands for the cell's seed: rows may have data of their own for every
seed. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqrl.errors import SeqrlError, did_you_mean
from seqrl.presets import merge
from seqrl.units import parse_seeds

FOLDER = Path(__file__).parent / "suites"
SECTIONS = ("agent_config", "load", "train", "eval", "eval_episodes", "evaluate")
"""Parts of an experiment that a suite may set."""

_SUITE = ("name", "title", "description", "source", "seeds", "rows", "data_template", "published")
_SHARED = ("score", "chance", "solved", "settings", "from_steps", "entrants", "measures", "cpus")
_ROW = (
    *("name", "title", "data", "kind", "axis", "lengths", "long", "batches", "limits"),
    *("seeds", "context", "suite"),
)
_ENTRANT = (
    *("agent", "preset", "reference", "seeds", "from_steps", "from_context", "cpus", "gpus"),
    *SECTIONS,
)
_MEASURE = (
    *("label", "targets", "episodes", "env_kwargs", "decode", "acting", "temperature"),
    *("trial_episodes", "checkpoint", "normaliser", "max_steps", "env"),
    *("contexts", "context_sizes", "only"),
)
SCORES = ("success", "normalized", "return", "regret", "latency")
KINDS = ("train", "speed")


@dataclass(frozen=True)
class Axis:
    """What a row is asked at several values of."""

    kwarg: str | None
    """Argument of the environment; None where the axis is no argument (steps since reset)."""
    title: str


@dataclass(frozen=True)
class Entrant:
    """Who takes part in a row."""

    name: str
    agent: str | None
    preset: str | None
    reference: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    from_steps: dict[str, float] = field(default_factory=dict)
    from_context: dict[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    """None: those of the row."""
    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True)
class Row:
    """One line of questions: data, entrants, measures."""

    name: str
    title: str
    kind: str
    data: tuple[str, ...]
    entrants: tuple[Entrant, ...]
    measures: tuple[dict[str, Any], ...]
    score: str
    axis: Axis | None = None
    context: int | None = None
    """Steps to look back in training."""
    lengths: tuple[int, ...] = ()
    long: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    """Of the kind ``speed``: rows that act at once."""
    limits: dict[str, float] = field(default_factory=dict)
    """Of the kind ``speed``: ``seconds`` and ``gigabytes`` that a point may take."""
    chance: float | None = None
    """The score of guessing."""
    solved: float | None = None
    """The score from which a run counts as having solved the task."""
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Suite:
    """What ``seqrl bench`` runs."""

    name: str
    title: str
    description: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    source: str = ""
    published: str | None = None
    """File of published numbers beside it, under ``bench/published``."""
    data_template: bool = False
    """Whether ``--data`` may put other datasets in the rows' place."""

    def entrants(self) -> list[str]:
        """Names of all entrants, in order."""
        return list(dict.fromkeys(e.name for r in self.rows for e in r.entrants))


def names() -> list[str]:
    """Names of the shipped suites."""
    return sorted(p.stem for p in FOLDER.glob("*.json"))


def load(name: str) -> Suite:
    """A shipped suite by name, or one from a file of your own (``my_suite.json``).

    Raises:
        SeqrlError: no such suite or file, or something wrong in it.
    """
    path = Path(name)
    if path.suffix != ".json":
        if name not in names():
            hint = did_you_mean(name, names(), f"suites: {' '.join(names())}, or a FILE.json")
            raise SeqrlError(f"no suite '{name}'", hint=hint)
        path = FOLDER / f"{name}.json"
    return parse(_read(path), path.name)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as e:
        raise SeqrlError(f"suite file {path} cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise SeqrlError(f"suite file {path} is not JSON: {e}") from None
    if not isinstance(content, dict):
        raise SeqrlError(f"suite file {path} holds no JSON object")
    return content


def parse(content: Mapping[str, Any], where: str = "suite") -> Suite:
    """A suite from the content of its file.

    Raises:
        SeqrlError: a key that is missing, unknown or of the wrong kind.
    """
    _check(content, (*_SUITE, *_SHARED), where)
    _require(content, ("name", "title", "description", "rows"), where)
    rows = []
    for r in content["rows"]:
        place = f"{where}, row '{r.get('name')}'"
        rows.append(_row(*_origin(content, r, place), place))
    if not rows:
        raise SeqrlError(f"{where} has no rows")
    if len({r.name for r in rows}) < len(rows):
        raise SeqrlError(f"{where}: two rows have the same name")
    return Suite(
        name=content["name"],
        title=content["title"],
        description=content["description"],
        seeds=tuple(parse_seeds(str(content.get("seeds", "0-2")))),
        rows=tuple(rows),
        source=content.get("source", ""),
        published=content.get("published"),
        data_template=bool(content.get("data_template", False)),
    )


def _origin(
    suite: Mapping[str, Any], row: Mapping[str, Any], where: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A row and the suite that it is of: this one, or the shipped one that it names."""
    if "suite" not in row:
        return suite, row
    _check(row, ("suite", "name"), where)
    if row["suite"] not in names():
        hint = did_you_mean(row["suite"], names(), f"suites: {' '.join(names())}")
        raise SeqrlError(f"{where}: no suite '{row['suite']}'", hint=hint)
    other = _read(FOLDER / f"{row['suite']}.json")
    there = {r["name"]: r for r in other["rows"] if "suite" not in r}
    if row.get("name") not in there:
        raise SeqrlError(
            f"{where}: suite '{row['suite']}' has none", hint=f"rows: {' '.join(there)}"
        )
    return other, {"seeds": other.get("seeds", "0-2"), **there[row["name"]]}


def _row(suite: Mapping[str, Any], row: Mapping[str, Any], where: str) -> Row:
    _check(row, (*_ROW, *_SHARED), where)
    _require(row, ("name",), where)
    kind = row.get("kind", "train")
    if kind not in KINDS:
        raise SeqrlError(f"{where}: kind is '{kind}', must be one of {', '.join(KINDS)}")
    usual = "latency" if kind == "speed" else suite.get("score", "return")
    score = row.get("score", usual)
    if score not in SCORES:
        raise SeqrlError(f"{where}: score is '{score}'", hint=f"one of {', '.join(SCORES)}")
    shared = merge(suite.get("settings", {}), row.get("settings", {}))
    steps = {**suite.get("from_steps", {}), **row.get("from_steps", {})}
    cpus = row.get("cpus", suite.get("cpus", 1))
    given = {**suite.get("entrants", {}), **row.get("entrants", {})}
    entrants = [
        _entrant(name, e, shared, steps, cpus, f"{where}, entrant '{name}'")
        for name, e in given.items()
        if e is not None
    ]
    if not entrants:
        raise SeqrlError(f"{where} has no entrants")
    measures = tuple(dict(m) for m in row.get("measures", suite.get("measures", [{}])))
    for m in measures:
        _check(m, _MEASURE, f"{where}, a measure")
    labels = [m.get("label", "") for m in measures]
    if len(set(labels)) < len(labels):
        raise SeqrlError(f"{where}: two measures have the same label", hint="name them: label")
    axis = row.get("axis")
    if axis is not None:
        _check(axis, ("kwarg", "title"), f"{where}, axis")
    elif row.get("lengths") and kind == "train":
        raise SeqrlError(f"{where} has lengths but no axis", hint='{"kwarg": ..., "title": ...}')
    if kind == "train" and not row.get("data"):
        raise SeqrlError(f"{where} names no data")
    return Row(
        name=row["name"],
        title=row.get("title", row["name"]),
        kind=kind,
        data=tuple(row.get("data", ())),
        entrants=tuple(entrants),
        measures=measures,
        score=score,
        axis=None if axis is None else Axis(axis.get("kwarg"), axis["title"]),
        context=row.get("context"),
        lengths=tuple(row.get("lengths", ())),
        long=tuple(row.get("long", ())),
        batches=tuple(row.get("batches", (1,))),
        limits=dict(row.get("limits", {})),
        chance=row.get("chance", suite.get("chance")),
        solved=row.get("solved", suite.get("solved")),
        seeds=tuple(parse_seeds(str(row["seeds"]))) if "seeds" in row else None,
    )


def _entrant(
    name: str,
    given: Mapping[str, Any],
    shared: Mapping[str, Any],
    from_steps: Mapping[str, float],
    cpus: float,
    where: str,
) -> Entrant:
    _check(given, _ENTRANT, where)
    kinds = [k for k in ("preset", "agent", "reference") if given.get(k)]
    if ("reference" in kinds and len(kinds) > 1) or not kinds:
        raise SeqrlError(f"{where} names {' and '.join(kinds) or 'no'} preset, agent or reference")
    own = {k: given[k] for k in SECTIONS if k in given}
    return Entrant(
        name=name,
        agent=given.get("agent"),
        preset=given.get("preset"),
        reference=given.get("reference"),
        settings={} if "reference" in kinds else merge(shared, own),
        from_steps={**from_steps, **given.get("from_steps", {})},
        from_context=dict(given.get("from_context", {})),
        seeds=tuple(parse_seeds(str(given["seeds"]))) if "seeds" in given else None,
        cpus=given.get("cpus", cpus),
        gpus=given.get("gpus", 0),
    )


def _check(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if not isinstance(given, Mapping):
        raise SeqrlError(f"{where} is no JSON object")
    if unknown := [k for k in given if k not in known]:
        hint = did_you_mean(unknown[0], known, f"keys: {', '.join(known)}")
        raise SeqrlError(f"{where} has an unknown key '{unknown[0]}'", hint=hint)


def _require(given: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    if missing := [k for k in keys if not given.get(k)]:
        raise SeqrlError(f"{where} has no {missing[0]}")
