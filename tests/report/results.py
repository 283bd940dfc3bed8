"""Result folders to make reports of: records as ``seqrl bench`` writes them, and run folders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrl.bench.cells import slug


def spread(mean: float, half: float = 1.0) -> dict[str, Any]:
    """A summary entry."""
    over = "bootstrap over 20 episodes"
    return {"mean": mean, "std": half, "ci": [mean - half, mean + half], "ci_kind": over}


def line(
    score: str,
    value: float,
    x: int | None = None,
    *,
    group: str = "",
    target: float | None = None,
    target_label: str | None = None,
    achieved: float | None = None,
    trials: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A line of results."""
    words = [group] if group else []
    words += [f"limit {x}"] if x is not None else []
    rate = {"rate": value, "n": 20, "ci": [max(0.0, value - 0.1), value], "ci_kind": "wilson"}
    label = target_label or ("-" if target is None else f"{target:g}")
    return {
        "label": ", ".join(words) or "all",
        "group": group,
        "x": x,
        "n": 20,
        "target": target,
        "target_label": label,
        "regret": None,
        "trials": trials,
        "success": rate if score == "success" else None,
        "normalized": spread(value) if score == "normalized" else None,
        "return": spread(value if achieved is None else achieved),
        "length": {"mean": 9.0},
        "checkpoint": "best" if group == "best" else "last",
        "rule": "stream",
        "decode": "greedy",
        "temperature": 1.0,
        "trial_episodes": 1,
        "seed": 10000,
        "env": {"id": "seqrl/TMaze-v0", "kwargs": {"limit": x}},
        "notes": [],
    }


def record(
    out: Path, row: str, entrant: str, seed: int, results: Sequence[Any], **more: Any
) -> Path:
    """Write the record of a cell; ``more`` replaces what is said by default."""
    content: dict[str, Any] = {
        "schema": 1,
        "suite": "mine",
        "row": row,
        "entrant": entrant,
        "seed": seed,
        "kind": "train",
        "key": "k",
        "agent": entrant,
        "status": "done",
        "error": None,
        "preset": None,
        "updates": 1000,
        "parameters": 12345,
        "results": list(results),
        "settings": {"agent_config": {"context": 9}, "train": {"steps": 1000, "seed": seed}},
        "data": [{"source": "tmaze-smoke", "fingerprint": "f"}],
        "curve": [{"step": s, "loss": 2.0 / (s + 1)} for s in (0, 100, 200)],
        "plan": {"settings": {"agent_config": {"context": 9}, "train": {"seed": seed}}},
        "versions": {"seqrl": "0.1.0", "python": "3.11.7"},
        "timing": {
            "train_seconds": 120.0,
            "updates_per_s": 8.3,
            "policy_ms": 0.5,
            "started": "2026-01-01T10:00:00+00:00",
            "finished": "2026-01-01T10:05:00+00:00",
            "git": {"revision": "0123456789abcdef", "dirty": False},
            "hardware": {"cpu": "a processor", "cores": 2, "threads": 1, "platform": "Linux"},
        },
        **more,
    }
    file = out / "cells" / slug(row) / f"{slug(entrant)}_s{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def memory_row(out: Path, values: Mapping[str, Sequence[Sequence[float]]], **more: Any) -> None:
    """A row with lengths 30, 90, 300 of the shipped suite ``tmaze``; values by entrant and seed."""
    for entrant, seeds in values.items():
        for seed, scores in enumerate(seeds):
            lines = [line("success", v, x, target=1.0)
                     for x, v in zip((30, 90, 300), scores, strict=False)]  # fmt: skip
            record(out, "tmaze-90", entrant, seed, lines, **{"suite": "tmaze", **more})


def walker_row(out: Path, row: str, values: Mapping[str, Sequence[float]], **more: Any) -> None:
    """A row of the shipped suite ``locomotion``: two targets, last and best checkpoint."""
    for entrant, seeds in values.items():
        for seed, v in enumerate(seeds):
            lines = [
                line("normalized", v + shift + extra, group=group, target=target,
                     achieved=30 * (v + shift))
                for group, extra in (("last", 0.0), ("best", 5.0))
                for target, shift in ((1800.0, 2.0), (3600.0, 0.0))
            ]  # fmt: skip
            record(out, row, entrant, seed, lines, **{"suite": "locomotion", **more})


def in_context_row(out: Path, values: Mapping[str, Sequence[float]]) -> None:
    """A row of trials with regret curves."""
    steps = list(range(1, 101, 10))
    for entrant, seeds in values.items():
        for seed, rate in enumerate(seeds):
            curve = [rate * math.log1p(s) for s in steps]
            trials = {
                "target_label": "-",
                "trials": 10,
                "episodes": 4,
                "returns": [spread(1 - rate / (k + 1), 0.1) for k in range(4)],
                "best": spread(1.2),
                "last": spread(1 - rate / 4),
                "regret": {
                    "total": spread(curve[-1]),
                    "steps": steps,
                    "cumulative": curve,
                    "stderr": [0.1] * len(steps),
                },
            }
            reference = entrant == "ucb"
            plan = {"reference": "ucb" if reference else None}
            record(out, "bandit", entrant, seed, [line("return", 4 - rate, trials=trials)],
                   plan=plan)  # fmt: skip


def speed_row(out: Path, slopes: Mapping[str, float]) -> None:
    """A row of the kind ``speed``; the slowest does not reach the end."""
    for entrant, slope in slopes.items():
        points = []
        for t in (50, 100, 200):
            place = {"label": f"batch 1, {t} steps", "group": "batch 1", "x": t, "batch": 1}
            ms = 0.5 + slope * t
            found: dict[str, Any] = {
                "latency_ms": ms,
                "steps_per_s": 1e3 / ms,
                "state_mb": 0.01,
                "resident_mb": 20.0,
                "rule": "stream",
                "parameters": 10,
            }
            points.append(
                {**place, **(found if ms < 15 else {"reason": "over 240 s to walk there"})}
            )
        record(out, "acting", entrant, 0, points, suite="speed", kind="speed", curve=[],
               settings={"agent_config": {}}, plan={})  # fmt: skip


def everything(out: Path) -> Path:
    """A folder with a row of every kind, a failed and an unfinished cell, and files not to read."""
    memory_row(
        out,
        {
            "lstm": [[1.0, 1.0, 0.5]] * 3,
            "dt": [[1.0, 0.5, 0.5], [1.0, 0.6, 0.5], [1.0, 0.7, 0.4]],
            "rate": [[1.0, 1.0, 1.0], [1.0, 1.0, 0.5], [1.0, 0.5, 0.5]],
            "dc": [[1.0, 0.5]],
        },
    )
    walker_row(out, "hopper-medium", {"bc": [30.0, 32.0, 31.0], "dt": [50.0, 60.0, 55.0]})
    walker_row(out, "hopper-medium-replay", {"bc": [2.0, 2.5, 2.0], "dt": [40.0, 20.0, 30.0]})
    in_context_row(out, {"dpt": [0.2, 0.3, 0.25], "ad": [0.5], "ucb": [0.4]})
    speed_row(out, {"lstm": 0.0, "dt": 0.1})
    record(out, "tmaze-90", "lram", 0, [], suite="tmaze", status="failed",
           error="loss is NaN at step 12 <b>&", hint="--lr 1e-5")  # fmt: skip
    work = out / "work" / "tmaze-90" / "dc_s7"
    (work / "run").mkdir(parents=True)
    (work / "plan.json").write_text("{}")
    (work / "run" / "run.json").write_text("{}")
    (out / "cells" / "tmaze-90" / "torn_s0.json").write_text('{"schema": 1, "sui')
    (out / "cells" / "tmaze-90" / "foreign_s0.json").write_text('{"a": 1}')
    return out


def run_folder(
    path: Path,
    seed: int = 0,
    *,
    values: Iterable[tuple[str, float | None, float]] = (("1", 1.0, 0.8),),
    data: str = "tmaze-30",
    status: str = "done",
    context: int = 9,
    agent: str = "dt",
) -> Path:
    """A training run; ``values`` are label, target and success rate of the final evaluation."""
    config = {
        "agent": agent,
        "agent_config": {"context": context},
        "data": [data],
        "preset": None,
        "train": {"steps": 100, "seed": seed},
        "loggers": ["jsonl"],
        "eval": {},
    }
    done = status == "done"
    run = {
        "schema": 1,
        "seqrl_version": "0.1.0",
        "status": status,
        "reason": "killed",
        "config": config,
        "command": ["seqrl", "train", agent],
        "step": 100 if done else 40,
        "started": "2026-01-01T10:00:00+00:00",
        "ended": "2026-01-01T10:01:00+00:00",
        "data": [{"source": data, "fingerprint": "f"}],
        "versions": {"seqrl": "0.1.0"},
        "git": None,
        "hardware": {"cpu": "a processor"},
        "summary": {"seconds": 60.0} if done else None,
    }
    (path / "eval").mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(run))
    (path / "config.json").write_text(json.dumps({"schema": 1, "config": config}))
    points = [{"step": s, "loss": 1 / s, "eval/success[1]": s / 200} for s in (20, 60, 100)]
    text = "\n".join(json.dumps(p) for p in points)
    (path / "metrics.jsonl").write_text(f'{text}\n{{"step": 120, "lo')
    if done:
        summary = [line("success", v, target=t, target_label=label) for label, t, v in values]
        report = {
            "schema": 1,
            "episodes": [],
            "summary": summary,
            "trials": None,
            "policy": {"checkpoint": "last"},
            "protocol": {"rule": "stream", "seed": 10000},
            "env": {"id": "seqrl/TMaze-v0", "kwargs": {}},
            "timing": {"policy_ms": {"median": 0.4, "p95": 1.0}},
        }
        (path / "eval" / "final.json").write_text(json.dumps(report))
    return path
