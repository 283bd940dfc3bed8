"""The lines that training and evaluation print: what begins, what came of it, what to do next."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl.cli import output
from seqrl.cli.settings import changed_from_defaults
from seqrl.presets.settings import as_text
from seqrl.units import duration, grouped, short_count

if TYPE_CHECKING:
    from seqrl.experiment import ExperimentConfig, Prepared, Run
    from seqrl.runfolder import RunFolder
    from seqrl.trainer import Trainer


def shown(path: str | Path) -> str:
    """A path as it can be pasted into a shell, relative to the current folder where that is
    shorter."""
    text = str(path)
    with contextlib.suppress(ValueError):
        relative = os.path.relpath(text)
        text = min((text, relative), key=len)
    return shlex.quote(text)


def describe(ready: Prepared, device: str, folder: Path | None = None) -> list[str]:
    """What is about to be trained, on which data, and how it is evaluated."""
    config, agent = ready.config, ready.agent
    size = sum(p.numel() for p in agent.parameters() if p.requires_grad)
    names = " and ".join(d.task.name for d in ready.data)
    if len(ready.data) > 2:
        names = f"{len(ready.data)} tasks"
    first = [f"{config.agent} on {names}", f"{short_count(size)} params", device]
    first += [f"seed {config.train.seed}", *([shown(folder)] if folder is not None else [])]
    lines = output.packed(first)
    for i, d in enumerate(ready.data):
        held = "no hold-out"
        if ready.holdout is not None:
            held = f"hold-out {grouped(len(ready.holdout[i]))} ep"
        which = f" {i} {d.task.name}:" if len(ready.data) > 2 else ""
        size_of_data = f"data{which} {grouped(len(d))} ep / {grouped(d.num_steps)} steps, {held}"
        last = i == len(ready.data) - 1
        lines += output.packed([size_of_data, *([_evaluation(ready)] if last else [])])
    if changes := settings_line(config):
        lines.append(changes)
    notes = (f"note: {note}" for note in ready.notes)
    return lines + [_filled(note) for note in notes]


def _filled(text: str) -> str:
    return textwrap.fill(
        text,
        output.MAX_WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _evaluation(ready: Prepared) -> str:
    config, tasks = ready.config, ready.agent.tasks
    if not ready.evaluated:
        return "not evaluated"
    task = tasks[0]
    kwargs = f" ({as_text(task.env_kwargs)})" if task.env_kwargs else ""
    targets = ", ".join(config.eval.targets) or "p50, p90, max"
    asked = f"targets [{targets}], " if getattr(ready.agent, "uses_returns", True) else ""
    every = config.train.eval_every
    every = max(1, config.train.steps // 20) if every is None else every
    often = f"{config.eval_episodes} ep every {grouped(every)} steps" if every else "at the end"
    if len(tasks) > 1:
        count = sum(t.env_id is not None for t in tasks)
        some = f" ({config.eval_tasks} tasks each)" if config.eval_tasks else ""
        return f"eval {count} environments, {asked}{often}{some}"
    return f"eval {task.env_id}{kwargs}, {asked}{often}"


def settings_line(config: ExperimentConfig) -> str:
    """The settings that differ from the classes' defaults, on as few lines as it takes."""
    from seqrl.experiment import ExperimentConfig

    usual = ExperimentConfig.from_json({"agent": config.agent, "data": config.data})
    changed = changed_from_defaults(config.to_json(), usual.to_json())
    changed.pop("preset", None)
    words = [f"{_short(k)}={as_text(v)}" for k, v in changed.items()]
    if config.preset is not None:
        words.insert(0, f"preset {config.preset}:")
    return _filled(" ".join(["config", *words])) if words else ""


def _short(key: str) -> str:
    return key.removeprefix("agent_config.").removeprefix("train.")


def starting(first: str | None = None) -> Callable[[Prepared, Trainer, RunFolder], None]:
    """Prints what begins, once everything is checked; for ``Watch.started``.

    Args:
        first: a line to print before.
    """

    def started(ready: Prepared, trainer: Trainer, folder: RunFolder) -> None:
        if not trainer.processes.first:
            return
        lines = describe(ready, device_text(trainer.learner.device.type), folder.dir)
        for line in lines if first is None else [first, *lines]:
            output.log(line)

    return started


def device_text(device: str) -> str:
    """``cpu (2 threads)`` or the name of the GPU."""
    import torch

    if device == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' if threads > 1 else ''})"
    return torch.cuda.get_device_name(device)


def done_lines(run: Run) -> list[str]:
    """What came of a run, and two commands that go on from it."""
    r = run.result
    parts = [f"done  {grouped(r.step)} steps in {duration(r.seconds)}"]
    table = []
    if run.tasks is not None:
        table = output.table(list(run.tasks.HEAD), run.tasks.rows()).splitlines()
        parts.append(f"final eval: {run.tasks.line()}")
    elif run.final is not None:
        parts += final_parts(run.final.summary)
    elif "val_loss" in r.metrics:
        parts.append(f"validation loss {r.metrics['val_loss']:.4g}")
    if r.best is not None:
        parts.append(f"best step {grouped(r.best['step'])}")
    where = shown(run.dir)
    after = [f"seqrl eval {where}", f"seqrl play {where} --video play.mp4"]
    if run.final is None:
        after = [f"seqrl eval {where} --env ID"]
    if ":" in run.config.agent:  # code of the user's own, which loading asks leave to import
        after = [f"{command} --trust" for command in after]
    after[0] = f"next:  {after[0]}"
    return [*output.packed(parts), *table, *output.packed(after, "   |   ")]


def final_parts(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """The result at the last-listed target, in a few words each."""
    last = summary[-1]
    at = "" if last["target_label"] == "-" else f" at target {last['target_label']}"
    words = []
    if last["success"] is not None:
        low, high = last["success"]["ci"]
        words.append(f"success {last['success']['rate']:.2f} [{low:.2f}, {high:.2f}]")
    low, high = last["return"]["ci"]
    form = ".0f" if abs(last["return"]["mean"]) >= 100 else ".2f"
    words.append(f"return {last['return']['mean']:{form}} [{low:{form}}, {high:{form}}]")
    if last["normalized"] is not None:
        words.append(f"normalised {round(last['normalized']['mean'], 1) + 0.0:.1f}")
    return [f"final eval {last['n']} ep{at}: {words[0]}", *words[1:]]


def seeds_table(runs: Sequence[Run]) -> str:
    """One line a run of several seeds."""
    from seqrl.eval_report import across_seeds

    rows = []
    for run in runs:
        found = [] if run.final is None else final_parts(run.final.summary)
        result = ", ".join(found).partition(": ")[2] or "-"
        if run.tasks is not None:
            result = run.tasks.line()
        best = run.result.best["step"] if run.result.best else None
        rows.append([run.config.train.seed, "-" if best is None else grouped(best), result])
    finals = [run.final.to_json() for run in runs if run.final is not None and run.tasks is None]
    if len(finals) == len(runs) > 1 and (over := across_seeds(finals)):
        last, words = over[-1], []
        for name, form in (("success", ".2f"), ("return", ".4g"), ("normalized", ".1f")):
            if (found := last[name]) is not None:
                low, high = (round(v, 4) + 0.0 for v in found["ci"])
                shown_as = name.replace("normalized", "normalised")
                words.append(f"{shown_as} {found['mean']:{form}} [{low:{form}}, {high:{form}}]")
        kind = (last["return"] or {}).get("ci_kind", "")
        rows.append(["all", "-", f"{', '.join(words)} ({kind})"])
    return output.table(["SEED", "BEST STEP", "FINAL"], rows)


def episode_bar(quiet: bool = False) -> Callable[[int, int, int], None] | None:
    """A line on the terminal that counts episodes; None where there is no terminal."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return None
    begun = time.monotonic()
    due = [begun + 0.5]

    def show(done: int, planned: int, steps: int) -> None:
        now = time.monotonic()
        if done >= planned:
            sys.stderr.write("\r" + " " * 60 + "\r")
        elif now >= due[0]:
            due[0] = now + 0.2
            text = f"evaluating: {done}/{planned} episodes, {grouped(steps)} steps"
            sys.stderr.write("\r" + text.ljust(60))
        sys.stderr.flush()

    return show
