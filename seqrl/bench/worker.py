"""One cell in a process of its own: ``python -m seqrl.bench.worker OUT/work/ROW/ENTRANT_s0``.

Trains (or goes on with training), takes the measures that are missing, writes the record. What a
killed worker had finished stays: training goes on from its last checkpoint, a measure taken is
read, not taken again.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl.bench.cells import slug, with_steps
from seqrl.errors import RunInterrupted, SeqrlError
from seqrl.runfolder import (
    RunFolder,
    describe_machine,
    now,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    from seqrl.eval_report import EvalReport
    from seqrl.experiment import ExperimentConfig
    from seqrl.spec import TaskSpec

DONE, FAILED, BUSY, STOPPED = 0, 1, 75, 130
"""How a worker ends; BUSY: another process is running this cell."""

_CURVE_POINTS = 50


def main(argv: list[str] | None = None) -> int:
    """Run the cell of a folder; its exit code."""
    folder = Path((sys.argv[1:] if argv is None else argv)[0]).absolute()
    plan = read_json(folder / "plan.json", "start it with: seqrl bench")
    file = record_file(folder)
    with locked(folder) as mine:
        if not mine:
            print(f"another process is running {folder}", file=sys.stderr)
            return BUSY
        started = now()
        try:
            record = run(plan, folder)
        except RunInterrupted as e:
            print(e.message, file=sys.stderr)
            return STOPPED
        except Exception as e:
            # One broken cell must not take the others with it: its error is its result.
            print(traceback.format_exc(), file=sys.stderr)
            hint = getattr(e, "hint", None)
            text = e.message if isinstance(e, SeqrlError) else f"{type(e).__name__}: {e}"
            failed: dict[str, Any] = {
                "status": "failed",
                "error": text,
                "hint": hint,
                "results": [],
            }
            write_record(file, plan, failed, started)
            return FAILED
        write_record(file, plan, {"status": "done", "error": None, **record}, started)
    return DONE


def record_file(folder: Path) -> Path:
    """The record of the cell that works in a folder."""
    row, out = folder.parent, folder.parents[2]
    return out / "cells" / row.name / f"{folder.name}.json"


def write_record(
    file: Path, plan: Mapping[str, Any], found: Mapping[str, Any], started: str
) -> None:
    """Write a record; everything in it but ``timing`` is the same when the cell is run again."""
    machine = describe_machine()
    record = {
        **{k: plan[k] for k in ("schema", "suite", "row", "entrant", "seed", "kind", "key")},
        "agent": plan.get("agent"),
        "measures": [m["label"] for m in plan["measures"]],
        **{k: v for k, v in found.items() if k != "timing"},
        "plan": dict(plan),
        "versions": machine["versions"],
        "timing": {
            **dict(found.get("timing", {})),
            "started": started,
            "finished": now(),
            **{k: machine[k] for k in ("git", "hardware", "host")},
        },
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, record)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Whether this process alone runs the cell; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks
        yield True
        return
    with open(folder / ".lock", "a+", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        yield True


def run(plan: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Everything the record says of a cell's result."""
    if plan["kind"] == "speed":
        from seqrl.bench.speed import measure_speed

        return measure_speed(plan, folder)
    if plan["reference"] is not None:
        return _reference(plan, folder)
    return _trained(plan, folder)


# --- trained entrants --------------------------------------------------------------------------


def _trained(plan: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    import seqrl

    run = folder / "run"
    seconds = _train(plan, run)
    policy = seqrl.load_policy(run, trust=True)
    config, _ = RunFolder(run).config()

    def evaluate(options: Mapping[str, Any]) -> EvalReport:
        own = {"normaliser": "auto", "vector": "sync", **options}
        return seqrl.evaluate(run, trust=True, **own)

    agent = policy.agent
    results, spent = _measures(plan, folder, evaluate, agent.tasks[0], agent)
    record = RunFolder(run).read()
    steps = config["train"]["steps"]
    return {
        "preset": config.get("preset"),
        "settings": {k: config[k] for k in ("agent_config", "load", "train", "data", "eval")},
        "updates": steps,
        "parameters": sum(p.numel() for p in agent.parameters() if p.requires_grad),
        "data": [{k: d[k] for k in ("source", "fingerprint")} for d in record["data"]],
        "curve": _curve(run),
        "results": results,
        "timing": {
            "train_seconds": seconds,
            "updates_per_s": steps / seconds if seconds else None,
            **spent,
        },
    }


def _train(plan: Mapping[str, Any], run: Path) -> float | None:
    """Train the cell, or go on with it; seconds of training, over all attempts."""
    from seqrl.experiment import ExperimentConfig, resume_experiment, run_experiment

    folder = RunFolder(run)
    if (run / "run.json").exists():
        if folder.read().get("status") != "done":
            resume_experiment(run)
    else:
        config = ExperimentConfig.from_json(plan["settings"])
        if plan.get("seconds"):
            config = _timed_config(plan, config)
        command = ["seqrl", "bench", plan["suite"]]
        run_experiment(config, out=run, command=command)
    return (folder.read().get("summary") or {}).get("seconds")


def _timed_config(plan: Mapping[str, Any], config: ExperimentConfig) -> ExperimentConfig:
    """The config with as many updates as fit into the seconds each cell is given.

    They are counted once, by a timed probe, and then fixed: a schedule needs to know its end, and
    a resumed cell must be the same run.
    """
    from seqrl.bench.probe import seconds_per_update
    from seqrl.experiment import ExperimentConfig as Config

    each = seconds_per_update(config)
    steps = max(1, round(plan["seconds"] / each))
    print(f"{each * 1e3:.1f} ms an update: {steps} updates in {plan['seconds']:g} s", flush=True)
    return Config.from_json(with_steps(plan["settings"], steps, plan["from_steps"]))


def _curve(run: Path) -> list[dict[str, Any]]:
    """Losses and periodic evaluations of training, at most 50 points."""
    import json

    rows = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        kept = {
            k: v
            for k, v in found.items()
            if k in ("step", "loss", "val_loss") or k.startswith("eval/")
        }
        if len(kept) > 1:
            rows.append(kept)
    every = -(-len(rows) // _CURVE_POINTS)
    chosen = rows[:: max(1, every)]
    return chosen if not rows or chosen[-1] is rows[-1] else [*chosen, rows[-1]]


# --- reference policies ------------------------------------------------------------------------


def _reference(plan: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    import seqrl
    from seqrl import references
    from seqrl.api import evaluate as api_evaluate

    task = seqrl.load_dataset(plan["data"]).task

    def evaluate(options: Mapping[str, Any]) -> EvalReport:
        own = {k: v for k, v in options.items() if k not in _OF_AGENTS}
        env, kwargs = own.pop("env", None), own.pop("env_kwargs", None)
        asked = _elsewhere(task, env, kwargs)
        policy = references.make_reference(plan["reference"], asked)
        return api_evaluate(policy, normaliser=own.pop("normaliser", "auto"), **own)

    results, spent = _measures(plan, folder, evaluate, task, None)
    return {"parameters": 0, "updates": 0, "curve": [], "results": results, "timing": spent}


_OF_AGENTS = ("decode", "acting", "temperature", "targets", "checkpoint")
"""Options that mean nothing to a policy without parameters."""


def _elsewhere(task: Any, env: str | None, kwargs: Mapping[str, Any] | None) -> Any:
    """The data's task, in the environment of a measure."""
    import dataclasses

    if env is None and not kwargs:
        return task
    own = dict(task.env_kwargs) if env in (None, task.env_id) else {}
    return dataclasses.replace(
        task,
        env_id=env or task.env_id,
        env_kwargs={**own, **(kwargs or {})},
        max_episode_steps=None,
        reference_scores=None,
        reference_source=None,
    )


# --- measures ----------------------------------------------------------------------------------


def _measures(
    plan: Mapping[str, Any],
    folder: Path,
    evaluate: Callable[[Mapping[str, Any]], EvalReport],
    task: TaskSpec,
    agent: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Take every measure that is not there yet; results, and what they cost."""
    from seqrl.bench import offline
    from seqrl.eval_report import EvalReport

    results: list[dict[str, Any]] = []
    wall, policy_ms = 0.0, []
    for m in plan["measures"]:
        file = folder / "measures" / f"{slug(m['label'])}.json"
        if file.exists():
            kept: dict[str, Any] = read_json(file, "delete it: it is then measured again")
        else:
            begin = time.perf_counter()
            if offline.is_offline(m):
                kept = {"results": offline.take(m, task, agent, plan["reference"])}
            else:
                kept = {"report": evaluate(m["options"]).to_json()}
            kept["seconds"] = time.perf_counter() - begin
            file.parent.mkdir(exist_ok=True)
            write_json(file, kept)
        wall += kept["seconds"]
        if "results" in kept:
            results += kept["results"]
            continue
        report = EvalReport.from_json(kept["report"])
        policy_ms.append(report.timing["policy_ms"]["median"])
        results += [_result(m, report, i) for i in range(len(report.summary))]
    ms = sorted(policy_ms)[len(policy_ms) // 2] if policy_ms else None
    return results, {"eval_seconds": wall, "policy_ms": ms}


def _result(measure: Mapping[str, Any], report: EvalReport, index: int) -> dict[str, Any]:
    """One line of results: a measure at one target."""
    s, p = report.summary[index], report.protocol
    trials = None if report.trials is None else report.trials[index]
    regret = None if trials is None else trials["regret"]
    return {
        "label": measure["label"],
        "group": measure["group"],
        "x": measure["x"],
        **{k: s[k] for k in ("target", "target_label", "n")},
        "success": s["success"],
        "normalized": s["normalized"],
        "return": s["return"],
        "regret": None if regret is None else regret["total"],
        "length": {"mean": s["length"]["mean"]},
        "trials": trials,
        "checkpoint": report.policy["checkpoint"],
        **{k: p[k] for k in ("rule", "decode", "temperature", "trial_episodes", "seed")},
        "env": report.env,
        "normaliser": report.normaliser,
        "notes": report.notes,
    }


if __name__ == "__main__":
    sys.exit(main())
