"""Settings of the entrants: what they have different, their size and what they cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from seqrl.presets.settings import as_text, flat
from seqrl.report.format import NOTHING
from seqrl.report.records import Cell
from seqrl.report.scores import RowScores
from seqrl.units import grouped, short_count

_SECTIONS = ("agent_config", "train", "load", "eval")
_SKIPPED = ("train.seed", "train.steps", "train.device", "eval.video", "eval.video_episodes")


def differing(row: RowScores) -> dict[str, dict[str, Any]]:
    """By entrant, the settings in which it differs from another one that has them too.

    Settings that only one kind of agent has are its own affair; those that all share say nothing.
    """
    found = {e: _settings([c for c in row.cells if c.entrant == e]) for e in row.trained}
    values: dict[str, set[str]] = {}
    for mine in found.values():
        for k, v in mine.items():
            values.setdefault(k, set()).add(json.dumps(v, sort_keys=True, default=str))
    chosen = [k for k, v in values.items() if len(v) > 1]
    return {e: {k: mine[k] for k in chosen if k in mine} for e, mine in found.items()}


def _settings(cells: Sequence[Cell]) -> dict[str, Any]:
    """Flat settings of an entrant, of its first seed."""
    given = cells[0].settings if cells else {}
    kept = {k: v for k, v in given.items() if k in _SECTIONS and v}
    return {k: v for k, v in flat(kept) if k not in _SKIPPED}


def settings_text(values: dict[str, Any]) -> str:
    """Settings in short names: ``context=90, optim.lr=1e-3``."""
    parts = (f"{k.partition('.')[2] or k}={as_text(v)}" for k, v in values.items())
    return ", ".join(parts) or NOTHING


def cost_cells(cells: Sequence[Cell]) -> list[str]:
    """Parameters, updates, seconds of training, updates a second, milliseconds an action."""
    seconds = _mean([c.train_seconds for c in cells])
    updates = sorted({c.updates for c in cells if c.updates})
    rate = _mean([c.updates_per_s for c in cells])
    if rate is None and seconds and len(updates) == 1:
        rate = updates[0] / seconds
    size = sorted({c.parameters for c in cells if c.parameters})
    ms = _mean([c.policy_ms for c in cells])
    return [
        ", ".join(short_count(s) for s in size) or NOTHING,
        ", ".join(grouped(u) for u in updates) or NOTHING,
        NOTHING if seconds is None else f"{seconds:.0f}",
        NOTHING if not rate else f"{rate:.3g}",
        NOTHING if ms is None else f"{ms:.2g}",
    ]


COST_HEADS = ("parameters", "updates", "train s", "updates/s", "ms/action")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
