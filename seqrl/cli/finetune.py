"""``seqrl finetune``: let a trained policy go on learning in its environment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seqrl.cli import output, reporting
from seqrl.cli.fields import read_fields
from seqrl.cli.flags import Flag, FlagSet, Parsed, Positional, from_fields
from seqrl.cli.settings import eval_flags, output_flags
from seqrl.presets.settings import nested
from seqrl.units import duration, grouped

if TYPE_CHECKING:
    from seqrl.finetune.run import FinetuneRun, Tuning

_RUN = Positional("RUN", "run folder, checkpoint, or anything inside a run")
_CONFIG = "seqrl.finetune.config"
_METHODS = {"bc": "WeightedBCConfig", "ac": "ActorCriticConfig"}
_GROUPS = {"bc": "weighted_bc", "ac": "actor_critic"}
_FLAT_EVAL = ("targets",)


def _flags() -> FlagSet:
    fields = [f for f in read_fields(f"{_CONFIG}:FinetuneConfig") if f.name not in _METHODS]
    flags = from_fields(fields, dest="finetune.", group="fine-tuning")
    for part, cls in _METHODS.items():
        own = read_fields(f"{_CONFIG}:{cls}")
        flags += from_fields(
            own, prefix=f"{part}.", dest=f"finetune.{part}.", group=f"{_GROUPS[part]} alone"
        )
    evaluation = [*eval_flags(group="evaluation")]
    flags += [f for f in evaluation if f.key.removeprefix("eval.") in _FLAT_EVAL]
    flags += [
        Flag("eval-episodes", int, "Episodes per target on the way.", 10, group="evaluation"),
        *eval_flags("eval.", (*_FLAT_EVAL, "stream", "video", "video_episodes"), "evaluation"),
        Flag("checkpoint", str, "last, best, a step or a path.", "last", group="run"),
        Flag("resume", bool, "Go on with RUN, itself an interrupted fine-tuning.", group="run"),
        Flag("trust", bool, "Import agent code that the checkpoint names.", group="run"),
        Flag(
            "loggers",
            tuple[str, ...],
            "Where metrics go; by default as in the run.",
            many=True,
            commas=True,
            group="run",
        ),
        Flag("out", str, "Exactly this folder.", metavar="DIR", group="run"),
        Flag("name", str, "Name of the run in place of the date.", group="run"),
    ]
    return FlagSet("finetune", [*flags, *output_flags()], [_RUN])


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl finetune --help``."""
    return output.help_text(
        _flags(),
        "Let a trained policy act in its environment and learn from what happens: weighted_bc "
        "clones its better episodes (any agent), actor_critic follows the gradient of a learned "
        "value (recurrent agents). A new run folder begins with the policy as it was, so the best "
        "checkpoint is never worse than that one in the periodic evaluation.",
        examples=[
            "seqrl finetune runs/DATA/AGENT/RUN",
            "seqrl finetune runs/DATA/AGENT/RUN --method actor_critic --steps 8k",
            "seqrl finetune runs/DATA/AGENT/RUN --bc.temperature 0.3 --out runs/better",
            "seqrl finetune runs/better --resume",
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Fine-tune as asked and say what came of it."""
    parsed = _flags().parse(argv)
    quiet = bool(parsed.get("quiet"))
    from seqrl.finetune.run import Watch, resume_finetune, run_finetune

    watch = Watch(
        stream=None if quiet else sys.stderr,
        say=None if quiet else output.log,
        episodes=reporting.episode_bar(quiet),
    )
    if parsed.get("resume"):
        run = resume_finetune(parsed.get("run"), trust=bool(parsed.get("trust")), watch=watch)
    else:
        tuning = _prepared(parsed)
        if not quiet:
            for line in _beginning(tuning, parsed):
                output.log(line)
        run = run_finetune(
            tuning,
            out=parsed.get("out"),
            name=parsed.get("name"),
            command=["seqrl", *sys.argv[1:]],
            watch=watch,
        )
    if parsed.get("json"):
        output.print_json(run.summary())
    else:
        for line in done_lines(run):
            output.out(line)
    return 0


def _prepared(parsed: Parsed) -> Tuning:
    from seqrl.finetune.config import FinetuneConfig
    from seqrl.finetune.run import prepare

    given = nested({k: v for k, v in parsed.values.items() if k.startswith(("finetune.", "eval."))})
    return prepare(
        parsed.get("run"),
        FinetuneConfig.from_json(given.get("finetune", {})),
        checkpoint=parsed.get("checkpoint", "last"),
        evaluation=given.get("eval", {}),
        eval_episodes=parsed.get("eval_episodes", 10),
        loggers=parsed.get("loggers"),
        trust=bool(parsed.get("trust")),
    )


def _beginning(t: Tuning, parsed: Parsed) -> list[str]:
    """What is about to be fine-tuned, and how."""
    c = t.config
    task = t.agent.tasks[0]
    rounds = -(-c.number("steps") // c.number("collect_every"))
    episodes = c.number("first") + (rounds - 1) * c.number("collect_episodes")
    return output.packed(
        [
            f"{c.method} of {reporting.shown(parsed.get('run'))}",
            f"{t.experiment.agent} at step {grouped(t.step)}",
            f"in {task.env_id}",
            f"{grouped(c.number('steps'))} updates",
            f"{grouped(rounds)} rounds, {grouped(episodes)} episodes",
            f"seed {c.seed}",
        ]
    )


def done_lines(run: FinetuneRun) -> list[str]:
    """What came of it: before and after at every target, and what to do next."""
    r = run.result
    steps = f"done  {grouped(r.step)} updates, {grouped(run.env_steps)} environment steps"
    parts = [f"{steps} in {duration(r.seconds)}"]
    if r.best is not None:
        parts.append(f"best step {grouped(r.best['step'])}")
    rows = [
        [_target(old), str(new["n"]), _result(old), _result(new)]
        for old, new in zip(run.before.summary, run.final.summary, strict=True)
    ]
    head = ["TARGET", "EPISODES", "OFFLINE [95% CI]", "FINE-TUNED [95% CI]"]
    where = reporting.shown(run.folder.dir)
    after = [f"next:  seqrl eval {where}", f"seqrl eval {where} --checkpoint best"]
    return [
        *output.packed(parts),
        *output.table(head, rows).splitlines(),
        *output.packed(after, "   |   "),
    ]


def _target(summary: dict[str, Any]) -> str:
    return str(summary["target_label"])


def _result(summary: dict[str, Any]) -> str:
    """Success where it is known, else the return and its normalised score."""
    if summary["success"] is not None:
        return f"success {_interval({**summary['success'], 'mean': summary['success']['rate']})}"
    words = _interval(summary["return"])
    if summary["normalized"] is not None:
        words += f", norm. {summary['normalized']['mean']:.1f}"
    return words


def _interval(value: dict[str, Any]) -> str:
    low, high = value["ci"]
    form = ".0f" if max(abs(low), abs(high)) >= 100 else ".2f"
    return f"{value['mean']:{form}} [{low:{form}}, {high:{form}}]"
