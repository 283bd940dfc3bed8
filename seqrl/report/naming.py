"""Which cells are one entrant: by name, by settings where a name was used twice, or as asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from seqrl.errors import SeqrlError, did_you_mean
from seqrl.presets.settings import as_text, flat
from seqrl.report.records import Cell

ROW_KEYS = ("row", "suite", "data", "env")
ENTRANT_KEYS = ("entrant", "agent", "preset")
_OF_ONE_SEED = (
    *("train.seed", "finetune.seed", "init_from", "data", "preset"),
    *("loggers", "eval.video", "eval.video_episodes"),
)
"""Settings that differ between the seeds of one experiment, or that decide nothing."""


def separate(cells: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """Give cells of one name and different settings different names; drop repeats.

    Returns:
        The cells, and a note for whatever was renamed or dropped.
    """
    groups: dict[tuple[str, str, str], dict[str, list[Cell]]] = {}
    for c in cells:
        by_settings = groups.setdefault((c.suite, c.row, c.entrant), {})
        by_settings.setdefault(_signature(c), []).append(c)
    out: list[Cell] = []
    notes: list[str] = []
    for (_, row, entrant), by_settings in groups.items():
        names = _names(entrant, list(by_settings.values()))
        if len(names) > 1:
            notes.append(f"'{entrant}' of {row} was run with {len(names)} settings: shown apart")
        for name, members in zip(names, by_settings.values(), strict=True):
            out += _newest([replace(c, entrant=name) for c in members], notes)
    places = {c.path: i for i, c in enumerate(cells)}
    return sorted(out, key=lambda c: places[c.path]), notes


def _signature(cell: Cell) -> str:
    """The settings that make a cell another experiment rather than another seed."""
    given = cell.plan.get("settings") or ({} if cell.suite else cell.settings)
    skipped = {*_OF_ONE_SEED, *(["train.steps"] if cell.plan.get("seconds") else [])}
    kept = {k: v for k, v in flat(given) if k not in skipped}
    # Equal training time: how many updates fit, and what follows them, differs by seed.
    return json.dumps([kept, cell.plan.get("seconds")], sort_keys=True, default=str)


def _names(entrant: str, groups: Sequence[Sequence[Cell]]) -> list[str]:
    """A name for each group: what it has different, or the folder it is from."""
    if len(groups) == 1:
        return [entrant]
    signatures = [json.loads(_signature(g[0])) for g in groups]
    settings = [{**s[0], "seconds": s[1]} for s in signatures]
    keys = list(dict.fromkeys(k for s in settings for k in s))
    chosen: list[str] = []

    def apart(by: Sequence[str]) -> int:
        return len({json.dumps([s.get(k) for k in by]) for s in settings})

    while apart(chosen) < len(settings) and len(chosen) < 3:
        best = max(keys, key=lambda k: apart([*chosen, k]))
        if apart([*chosen, best]) == apart(chosen):
            break
        chosen.append(best)
    names = [
        f"{entrant} ({', '.join(f'{_short(k)} {as_text(s.get(k))}' for k in chosen)})"
        for s in settings
    ]
    if len(set(names)) < len(names):
        names = [f"{name} #{i + 1}" for i, name in enumerate(names)]
    return names


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _newest(cells: list[Cell], notes: list[str]) -> list[Cell]:
    """Of cells with the same seed, the one finished last."""
    kept: dict[int, Cell] = {}
    for c in cells:
        before = kept.get(c.seed)
        if before is not None:
            where = f"{c.row} · {c.entrant} · seed {c.seed}"
            notes.append(f"{where} is there twice with equal settings: the later one is shown")
        if before is None or c.finished >= before.finished:
            kept[c.seed] = c
    return list(kept.values())


def regroup(cells: Sequence[Cell], by: Sequence[str]) -> tuple[list[Cell], list[str]]:
    """Name rows and entrants after facts of the cells.

    Args:
        by: ``row``, ``suite``, ``data``, ``env`` name the row; ``entrant``, ``agent``, ``preset``
            and settings (``agent_config.context``, ``train.optim.lr``) the entrant. A side that
            nothing is said of keeps its names.

    Raises:
        SeqrlError: no cell has such a fact.
    """
    known = {k for c in cells for k, _ in flat(c.settings)}
    for key in by:
        if key not in (*ROW_KEYS, *ENTRANT_KEYS, *known):
            hint = did_you_mean(
                key, [*ROW_KEYS, *ENTRANT_KEYS, *known],
                f"{', '.join((*ROW_KEYS, *ENTRANT_KEYS))}, or a setting such as "
                "agent_config.context",
            )  # fmt: skip
            raise SeqrlError(f"--by: no result has '{key}'", hint=hint)
    rows = [k for k in by if k in ROW_KEYS] or ["row"]
    entrants = [k for k in by if k not in ROW_KEYS] or ["entrant"]
    out = [
        replace(c, row=" · ".join(_fact(c, k) for k in rows),
                entrant=" · ".join(_fact(c, k) for k in entrants))
        for c in cells
    ]  # fmt: skip
    runs: dict[tuple[str, str], Counter[int]] = {}
    for c in out:
        runs.setdefault((c.row, c.entrant), Counter())[c.seed] += 1
    notes = [
        f"{row} · {entrant}: {seeds.total()} results of {len(seeds)} seeds; each counts as a seed"
        for (row, entrant), seeds in runs.items()
        if seeds.total() > len(seeds)
    ]
    return out, notes


def _fact(cell: Cell, key: str) -> str:
    if key == "env":
        return next((r.env for r in cell.results if r.env), "no environment")
    if key == "data":
        return " + ".join(cell.data) or "no data"
    if key in (*ROW_KEYS, *ENTRANT_KEYS):
        return str(getattr(cell, key) or "-")
    values = dict(flat(cell.settings))
    return f"{_short(key)} {as_text(values.get(key))}"
