"""``seqrl resume``: continue a run exactly, extend it, or go on with changed settings."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from seqrl.cli import output, reporting
from seqrl.cli.flags import Flag, FlagSet, Positional
from seqrl.cli.settings import absolute, output_flags, settings_of, training_flags
from seqrl.runfolder import RunFolder, open_run
from seqrl.units import grouped

_RUN = Positional("RUN", "run folder, or anything inside it")
_NEW_RUNS_ONLY = ("preset", "config", "out", "name", "seeds", "init-from")


def _flags(agent: str | None) -> FlagSet:
    allow = Flag("allow-change", bool, "Go on with changed settings or data.", group="resuming")
    mine = [f for f in training_flags(agent) if f.name not in _NEW_RUNS_ONLY]
    # The longer run is what people resume for; the rest is there, but not in the way.
    shown = [dataclasses.replace(f, group="resuming") for f in mine if f.name == "steps"]
    hidden = [dataclasses.replace(f, hidden=True) for f in mine if f.name != "steps"]
    return FlagSet("resume", [*shown, allow, *hidden, *output_flags()], [_RUN])


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl resume --help``."""
    return output.help_text(
        _flags(None),
        "Continue a run from its last checkpoint, bit for bit as if it had never stopped: "
        "weights, optimiser, schedule, random numbers and the order of the data. Any setting of "
        "seqrl train may be given; all but --steps need --allow-change.",
        examples=[
            "seqrl resume runs/DATA/AGENT/RUN",
            "seqrl resume runs/DATA/AGENT/RUN --steps 200k",
            "seqrl resume runs/DATA/AGENT/RUN --lr 3e-5 --allow-change",
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Resume a run."""
    first = _flags(None).parse(argv, lenient=True)
    folder = None if "run" not in first else open_run(first.get("run"))
    agent = None if folder is None else folder.config()[0].get("agent")
    parsed = _flags(agent).parse(argv)
    folder = folder or open_run(parsed.get("run"))
    overrides = settings_of(parsed)
    if "data" in overrides:
        overrides["data"] = [absolute(uri) for uri in overrides["data"]]
    record = folder.read()
    if _complete(folder, record, overrides):
        if parsed.get("json"):
            output.print_json({"runs": [record.get("summary")]})
            return 0
        output.out(f"the run is complete at step {grouped(record.get('step') or 0)}")
        output.out(f"extend it:  seqrl resume {reporting.shown(folder.dir)} --steps N")
        return 0
    quiet = bool(parsed.get("quiet"))
    from seqrl.experiment import Watch, resume_experiment

    watch = Watch(
        stream=None if quiet else sys.stderr,
        started=None if quiet else reporting.starting(_intention(folder, record)),
        episodes=reporting.episode_bar(quiet),
    )
    run = resume_experiment(
        folder.dir,
        overrides=overrides,
        allow_change=bool(parsed.get("allow_change")),
        watch=watch,
    )
    if parsed.get("json"):
        output.print_json({"runs": [run.summary()]})
    else:
        for line in reporting.done_lines(run):
            output.out(line)
    return 0


def _complete(folder: RunFolder, record: dict[str, Any], overrides: dict[str, Any]) -> bool:
    """Whether there is nothing left to do: finished, and nothing else is asked for."""
    steps = overrides.get("train", {}).get("steps")
    same = not overrides or (
        overrides == {"train": {"steps": steps}} and steps == record.get("step")
    )
    return record.get("status") == "done" and same


def _intention(folder: RunFolder, record: dict[str, Any]) -> str:
    """``resuming at step 3000 (interrupted 2026-01-31T12:31)``."""
    names = (
        [p.name for p in folder.checkpoints.glob("step_*")] if folder.checkpoints.is_dir() else []
    )
    steps = [int(n.removeprefix("step_")) for n in names if n.removeprefix("step_").isdigit()]
    where = f"at step {grouped(max(steps))}" if steps else "from the beginning (no checkpoint yet)"
    status = record.get("status")
    # A run that says it is running was killed, or the lock that training takes will say so.
    how = "killed" if status == "running" else status
    when = f" {record['ended'][:16]}" if record.get("ended") else ""
    return (
        f"resuming {where} ({how}{when}): optimiser, schedule, random numbers, data order restored"
    )
