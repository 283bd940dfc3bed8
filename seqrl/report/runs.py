"""Training runs (``seqrl train``) as cells: the final evaluation, the curve, the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seqrl.bench.runner import shown
from seqrl.errors import SeqrlError
from seqrl.report.records import (
    Cell,
    Result,
    curve,
    mapping,
    name,
    number,
    result,
    sources,
    target_name,
    whole,
)
from seqrl.runfolder import RunFolder, read_json

_POINTS = 50
"""Most points of a learning curve, as in benchmark records."""


def run_cells(path: Path) -> list[Cell]:
    """The cell of a run folder, with a line of results for each of its tasks.

    Raises:
        SeqrlError: its files are torn, or of another program.
    """
    folder = RunFolder(path)
    record = folder.read()
    try:
        return [_cell(folder, record)]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise SeqrlError(
            f"{shown(path.absolute())} is damaged: {type(e).__name__} {e}".strip()
        ) from e


def _cell(folder: RunFolder, record: Mapping[str, Any]) -> Cell:
    config = mapping(record["config"])
    train, summary = mapping(config.get("train")), mapping(record.get("summary"))
    status = str(record.get("status"))
    status = status if status in ("done", "failed") else "unfinished"
    seconds = number(summary.get("seconds"))
    updates = whole(record.get("step"))
    found, ms = _results(folder) if status == "done" else ((), None)
    return Cell(
        suite="",
        row=" + ".join(data_name(str(d)) for d in config.get("data") or ["no data"]),
        entrant=str(config["agent"]),
        seed=whole(train.get("seed")) or 0,
        path=folder.dir,
        status=status,
        error=str(record.get("reason") or ""),
        agent=str(config["agent"]),
        preset=name(config.get("preset")),
        parameters=None,
        updates=updates,
        data=sources(record.get("data")) or tuple(map(str, config.get("data") or ())),
        settings={k: v for k, v in config.items() if k not in ("loggers", "preset")},
        curve=_curve(folder.metrics_jsonl),
        results=tuple(found),
        train_seconds=seconds,
        updates_per_s=updates / seconds if updates and seconds else None,
        policy_ms=ms,
        versions=mapping(record.get("versions")),
        machine=mapping(record.get("hardware")),
        git=mapping(record.get("git")) or None,
        started=str(record.get("started") or ""),
        finished=str(record.get("ended") or ""),
        command=tuple(map(str, record.get("command") or ())),
    )


def data_name(uri: str) -> str:
    """A dataset's URI as the name of a row.

    >>> data_name("tmaze-30"), data_name("minari:a/b-v0"), data_name("npz:/home/me/logs.npz")
    ('tmaze-30', 'a/b-v0', 'logs')
    """
    scheme, colon, rest = uri.partition(":")
    if not colon:
        return uri
    return Path(rest).stem if scheme in ("npz", "d4rl", "cache") else rest


def _results(folder: RunFolder) -> tuple[list[Result], float | None]:
    """Results of the final evaluation, task by task, and milliseconds of an action."""
    config = read_json(folder.dir / "config.json", "").get("config") or {}
    several = len(config.get("data") or ()) > 1
    out, ms = [], None
    files = [folder.eval / "final.json", *sorted(folder.eval.glob("final_task*.json"))]
    for number_of_task, file in enumerate(f for f in files if f.exists()):
        report = read_json(file, "seqrl eval RUN")
        group = f"task {number_of_task}" if several else ""
        out += list(_lines(report, group))
        ms = ms or number(((report.get("timing") or {}).get("policy_ms") or {}).get("median"))
    return out, ms


def _lines(report: Mapping[str, Any], group: str) -> Iterator[Result]:
    """The lines of a report, in the form of the benchmark's records."""
    trials = {target_name(t["target_label"]): t for t in report.get("trials") or ()}
    for s in report["summary"]:
        mine = trials.get(target_name(s["target_label"]))
        yield result(
            {
                **{k: s.get(k) for k in ("target", "target_label", "n", "success", "normalized")},
                "label": group or "final",
                "group": group,
                "return": s.get("return"),
                "regret": ((mine or {}).get("regret") or {}).get("total"),
                "trials": mine,
                "checkpoint": (report.get("policy") or {}).get("checkpoint"),
                "env": report.get("env"),
                **(report.get("protocol") or {}),
            }
        )


def _curve(file: Path) -> tuple[dict[str, float], ...]:
    """Losses and periodic evaluations; a torn last line is no reason to lose the others."""
    if not file.exists():
        return ()
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            wanted = ("step", "loss", "val_loss")
            rows.append({k: v for k, v in found.items() if k in wanted or k.startswith("eval/")})
    points = [p for p in curve(rows) if len(p) > 1]
    every = -(-len(points) // _POINTS)
    return tuple(p for i, p in enumerate(points) if i % max(1, every) == 0 or i == len(points) - 1)
