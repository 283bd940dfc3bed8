"""``seqrl eval``: measure a trained policy and keep the record in its run folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqrl import api
from seqrl.cli import output, reporting
from seqrl.cli.flags import Flag, FlagSet, Parsed, Positional
from seqrl.cli.settings import eval_flags, output_flags
from seqrl.errors import SeqrlError
from seqrl.units import parse_count

_RUN = Positional("RUN", "run folder, checkpoint, or anything inside a run")


def policy_flags() -> list[Flag]:
    """Which policy, in which environment, on which device."""
    return [
        Flag("checkpoint", str, "last, best, a step or a path.", "last", group="policy"),
        Flag("device", str, "Where to compute: auto, cpu or cuda.", "auto", group="policy"),
        Flag("task", int, "Which of the policy's tasks, from 0.", group="policy"),
        Flag("trust", bool, "Import agent code that the checkpoint names.", group="policy"),
        Flag("env", str, "Another environment.", metavar="ID", group="policy"),
        Flag("env-kwargs", dict, "Its arguments.", metavar="K=V …", group="policy"),
    ]


def _flags() -> FlagSet:
    against = Flag(
        "against",
        str,
        "Reference policies too, on the same tasks and seeds: random oracle thompson ...",
        metavar="NAME …",
        many=True,
        group="evaluation",
    )
    plot = Flag(
        "plot", str, "Draw return by episode and regret by step.", metavar="FILE.png",
        group="output",
    )  # fmt: skip
    sizes = Flag(
        "context-sizes", str, "Bandits, offline: the arm it names from so many recorded pulls.",
        metavar="N,…", parse=_sizes, group="evaluation",
    )  # fmt: skip
    contexts = Flag(
        "contexts", str, "Offline: show it recorded transitions of each episode's task.",
        metavar="URI", group="evaluation",
    )  # fmt: skip
    out = Flag("out", str, "Also write the record to this file.", metavar="FILE", group="output")
    return FlagSet(
        "eval",
        [
            *eval_flags(group="evaluation"),
            against,
            sizes,
            contexts,
            *policy_flags(),
            plot,
            out,
            *output_flags(),
        ],
        [_RUN],
    )


def _sizes(text: str) -> list[int]:
    return [parse_count(t) for t in text.split(",") if t.strip()]


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl eval --help``."""
    return output.help_text(
        _flags(),
        "Evaluate a trained policy: each target return over the same seeded episodes. What is not "
        "given is as in the run's own final evaluation, and then so are the numbers. A policy of "
        "several tasks does all of them unless --task names one. The record, every episode in it, "
        "goes to eval/cli_0001.json of the run.",
        examples=[
            "seqrl eval runs/DATA/AGENT/RUN",
            "seqrl eval runs/DATA/AGENT/RUN --targets p50,max,n100 --episodes 100 --num-envs 8",
            "seqrl eval runs/DATA/AGENT/RUN --checkpoint best --json",
            "seqrl eval runs/DATA/AGENT/RUN --env-kwargs limit=90 --video videos",
            "seqrl eval runs/bandit-50/dpt/RUN --against thompson ucb emp --plot regret.png",
            "seqrl eval runs/bandit-50/dpt/RUN --context-sizes 1,5,10,25,50 --against lcb emp",
            "seqrl eval runs/DATA/ad/RUN --trial-episodes 40 --episodes 200 --plot trial.png",
            "seqrl eval runs/DATA/AGENT/RUN --targets p90,2:3600 (task 2 alone: 3600)",
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Evaluate and print."""
    parsed = _flags().parse(argv)
    path = parsed.get("run")
    stored = api.stored_eval_settings(path)
    options = {**stored, **evaluation_of(parsed)}
    policy = load(parsed)
    if len(policy.agent.tasks) > 1 and "task" not in parsed:
        return _all_tasks(policy, parsed, options)
    if "context_sizes" in parsed or "contexts" in parsed:
        return _offline(policy, parsed, options)
    from seqrl.evaluation import format_report

    # What can be wrong with these is said before anything is run.
    references = _references(policy, parsed)
    if parsed.get("plot"):
        from seqrl.trials import figure_class

        figure_class()
    report = api.evaluate(
        policy,
        env=parsed.get("env"),
        env_kwargs=parsed.get("env_kwargs"),
        task=parsed.get("task", 0),
        progress=reporting.episode_bar(bool(parsed.get("quiet"))),
        **options,
    )
    record, lines = report.to_json(), [format_report(report)]
    others = _against(policy, references, parsed, options)
    if others:
        record["against"] = {name: r.to_json() for name, r in others.items()}
        lines += _comparison({report.policy["agent"]: report, **others})
    _finish(parsed, options, record, lines)
    if parsed.get("plot"):
        from seqrl.trials import plot_trials

        shown = {report.policy["agent"]: report, **others}
        file = plot_trials({n: r.trials or [] for n, r in shown.items()}, parsed.get("plot"))
        output.log(f"plot {reporting.shown(file)}")
    return 0


def _offline(policy: Any, parsed: Parsed, options: dict[str, Any]) -> int:
    """What the policy makes of recorded contexts, without learning from what it does."""
    from seqrl import offline_contexts as offline
    from seqrl.evaluation import EvalConfig, format_report
    from seqrl.presets.settings import build

    agent, task = policy.agent, policy.agent.tasks[parsed.get("task", 0)]
    if not hasattr(agent, "prefix_predictions"):
        raise SeqrlError(f"'{agent.name}' takes no recorded contexts", hint="agent dpt does")
    if "context_sizes" in parsed and "contexts" in parsed:
        raise SeqrlError("--context-sizes and --contexts are both given", hint="keep one of them")
    config = build(EvalConfig, options, "evaluate")
    if "contexts" in parsed:
        if parsed.get("against"):
            raise SeqrlError("--against does not go with --contexts", hint="the oracle is shown")
        report, groups = offline.with_contexts(agent, parsed.get("contexts"), config)
        record, lines = {**report.to_json(), "contexts": groups}, [format_report(report)]
        for name, g in groups.items():
            if g["episodes"]:
                r = g["return"]
                ci = f"[{r['ci'][0]:.4g}, {r['ci'][1]:.4g}]"
                lines.append(
                    f"reward {name} in the context: {g['episodes']} episodes, "
                    f"return {r['mean']:.4g} {ci}, oracle {g['oracle']:.4g}"
                )
        _finish(parsed, options, record, lines)
        return 0
    spec = dataclasses.replace(
        task, env_kwargs={**task.env_kwargs, **(parsed.get("env_kwargs") or {})}
    )
    names = parsed.get("against") or ()
    choosers = offline.reference_choosers_named(names, spec, config.seed)
    choosers = {agent.name: offline.agent_chooser(agent), **choosers}
    sizes = parsed.get("context_sizes")
    found = offline.suboptimality(spec, choosers, sizes, config.episodes, config.seed)
    record = {"suboptimality": found, "tasks": config.episodes, "seed": config.seed}
    shown = [n["size"] for n in found[agent.name]]
    rows = [[name, *(f"{r['mean']:.3f}" for r in rows)] for name, rows in found.items()]
    title = f"suboptimality over {config.episodes} bandits from n recorded pulls"
    _finish(parsed, options, record, [title, output.table(["policy", *map(str, shown)], rows)])
    return 0


def _references(policy: Any, parsed: Parsed) -> dict[str, Any]:
    """The reference policies named, made for the environment that is evaluated."""
    from seqrl.references import make_reference

    task = policy.agent.tasks[parsed.get("task", 0)]
    env, kwargs = parsed.get("env") or task.env_id, dict(parsed.get("env_kwargs") or {})
    kept = task.env_kwargs if env == task.env_id else {}
    task = dataclasses.replace(task, env_id=env, env_kwargs={**kept, **kwargs})
    return {name: make_reference(name, task) for name in parsed.get("against") or ()}


def _against(
    policy: Any, references: dict[str, Any], parsed: Parsed, options: dict[str, Any]
) -> dict[str, Any]:
    """Reports of the reference policies, on the policy's episodes and trials."""
    if not references:
        return {}
    from seqrl.evaluation import EvalConfig, trial_episodes

    own = ("targets", "acting", "decode", "temperature", "video")
    same = {k: v for k, v in options.items() if k not in own}
    asked = EvalConfig(trial_episodes=same.get("trial_episodes"))
    same["trial_episodes"] = trial_episodes(policy.agent, asked)
    return {
        name: api.evaluate(
            reference,
            env=parsed.get("env"),
            env_kwargs=parsed.get("env_kwargs"),
            progress=reporting.episode_bar(bool(parsed.get("quiet"))),
            **same,
        )
        for name, reference in references.items()
    }


def _comparison(reports: dict[str, Any]) -> list[str]:
    """A table of returns and regrets, a policy (and target) each."""
    rows = []
    for name, report in reports.items():
        for i, s in enumerate(report.summary):
            at = "" if s["target_label"] == "-" else f" at {s['target_label']}"
            regret = report.trials[i]["regret"] if report.trials else None
            values = [s["return"], regret["total"] if regret else None]
            cells = [
                "-" if v is None else f"{v['mean']:.4g} [{v['ci'][0]:.4g}, {v['ci'][1]:.4g}]"
                for v in values
            ]
            rows.append([name + at, *cells])
    return [output.table(["policy", "return [95% CI]", "regret of a trial [95% CI]"], rows)]


def _all_tasks(policy: Any, parsed: Parsed, options: dict[str, Any]) -> int:
    """Every task of a policy of several, and their mean."""
    from seqrl.evaluating import TaskReports

    n = len(policy.agent.tasks)
    for flag in ("against", "plot"):
        if parsed.get(flag):
            raise SeqrlError(f"--{flag} is for one task, the policy has {n}", hint="--task 0")
    if parsed.get("env") or parsed.get("env_kwargs"):
        raise SeqrlError(
            f"the policy has {n} tasks: another environment of which?", hint="--task 0"
        )
    found = api.evaluate_tasks(
        policy, progress=reporting.episode_bar(bool(parsed.get("quiet"))), **options
    )
    lines = [output.table(list(TaskReports.HEAD), found.rows()), found.line()]
    _finish(parsed, options, found.to_json(), lines)
    return 0


def _finish(
    parsed: Parsed, options: dict[str, Any], record: dict[str, Any], lines: Sequence[str]
) -> None:
    """Keep the record, and print it or what people want to see of it."""
    written = write(parsed.get("run"), record)
    if parsed.get("out"):
        from seqrl.runfolder import json_text

        Path(parsed.get("out")).write_text(json_text(record), encoding="utf-8")
    if parsed.get("json"):
        output.print_json(record)
        return
    for line in lines:
        output.out(line)
    if options.get("video") is not None:
        output.out(f"videos in {reporting.shown(options['video'])}")
    if written is not None:
        output.out(f"written {written}")


def evaluation_of(parsed: Parsed) -> dict[str, Any]:
    """The evaluation settings that a command line states."""
    return {k.removeprefix("eval."): v for k, v in parsed.values.items() if k.startswith("eval.")}


def load(parsed: Parsed) -> Any:
    """The policy that a command line names."""
    from seqrl.devices import resolve_device
    from seqrl.policy import load_policy

    return load_policy(
        parsed.get("run"),
        parsed.get("checkpoint", "last"),
        resolve_device(parsed.get("device", "auto")),
        bool(parsed.get("trust")),
        task=parsed.get("task", 0),
    )


def write(path: str, record: dict[str, Any]) -> str | None:
    """Keep the record as the next ``eval/cli_0001.json`` of the run; None outside a run."""
    from seqrl.runfolder import open_run

    try:
        folder = open_run(path)
    except SeqrlError:
        return None
    taken = [
        int(m[1]) for p in folder.eval.glob("cli_*.json") if (m := re.match(r"cli_(\d+)", p.stem))
    ]
    try:
        file = folder.write_eval(f"cli_{max(taken, default=0) + 1:04d}", record)
    except OSError as e:
        output.log(f"warning: the record is not kept in {folder.eval}: {e.strerror or e}")
        return None
    return str(file.relative_to(folder.dir))
