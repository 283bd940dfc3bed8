"""Tiny suites, run in this process where that is enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from seqrl.bench import cells, runner, suite, worker
from seqrl.presets import merge

TRAIN = {"steps": 8, "batch_size": 8, "eval_every": 0, "log_every": 4, "holdout": 0.0}

TINY: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "description": "Two rows that train in a second",
    "seeds": "0",
    "score": "success",
    "chance": 0.5,
    "settings": {"evaluate": False, "train": TRAIN},
    "measures": [{"targets": [1], "episodes": 4}],
    "entrants": {
        "bc": {"agent": "bc", "agent_config": {"width": 8}},
        "lstm": {"agent": "lstm", "agent_config": {"width": 8, "context": 9}},
        "random": {"reference": "random"},
    },
    "rows": [
        {
            "name": "maze",
            "data": ["tmaze-smoke"],
            "axis": {"kwarg": "limit", "title": "corridor limit"},
            "lengths": [9, 12],
            "long": [20],
        },
        {"name": "pole", "data": ["random:CartPole-v1?episodes=20&seed={seed}"], "score": "return"},
    ],
}


@pytest.fixture(autouse=True)
def _places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQRL_HOME", str(tmp_path_factory.getbasetemp() / "home"))


def tiny(**changes: Any) -> dict[str, Any]:
    """The tiny suite with changes, as data of its own."""
    copy: dict[str, Any] = json.loads(json.dumps(TINY))
    return merge(copy, changes)


def planned(out: Path, content: dict[str, Any] | None = None, **choice: Any) -> list[cells.Cell]:
    """Cells of a suite."""
    parsed = suite.parse(content or TINY)
    return cells.plan_cells(parsed, cells.Choice(**choice), out)


def work(chosen: Sequence[cells.Cell]) -> list[int]:
    """Run cells one after the other in this process; their exit codes."""
    codes = []
    for cell in chosen:
        runner._settle(cell)
        codes.append(worker.main([str(cell.folder)]))
    return codes


def lasting(file: Path) -> dict[str, Any]:
    """A record without what differs from run to run."""
    record: dict[str, Any] = json.loads(file.read_text())
    del record["timing"]
    return record


Planned = Callable[..., list[cells.Cell]]
