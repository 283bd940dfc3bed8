"""The flags of training: every field of the config classes, under the name it has at the terminal.

Nothing here imports torch: fields are read from source (:mod:`seqrl.cli.fields`), so that help and
a first check of the command line come at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrl import presets
from seqrl.agents import registry
from seqrl.cli.fields import class_value, read_fields
from seqrl.cli.flags import Flag, FlagSet, Parsed, Positional, from_fields, nearest_flag
from seqrl.errors import SeqrlError
from seqrl.presets.settings import Layered, layer, nested, read_settings
from seqrl.units import parse_seeds

SECTION_CLASSES = {
    "load": "seqrl.datasets.catalog:LoadOptions",
    "train": "seqrl.trainer:TrainConfig",
    "train.optim": "seqrl.optim:OptimConfig",
    "eval": "seqrl.evaluation:EvalConfig",
}
"""Where the settings of each part of an experiment are declared."""

_RENAMED = {"episodes": "data-episodes", "every": "data-every"}
"""Flags of ``load`` that would be taken for something else under their own name."""
_FLAT_EVAL = ("targets", "acting", "decode", "temperature")
"""Evaluation settings that are flags of their own rather than ``--eval.X``."""
_NOT_IN_TRAINING = ("stream", "video", "video_episodes")


def load_flags(group: str = "data") -> list[Flag]:
    """The options of loading data, as flat flags."""
    flags = from_fields(read_fields(SECTION_CLASSES["load"]), dest="load.", group=group)
    return [
        dataclasses.replace(f, name=_RENAMED.get(f.name, f.name), metavar=_metavar(f.name))
        for f in flags
    ]


def _metavar(name: str) -> str:
    return {"env": "ID", "env-kwargs": "K=V …", "best": "PERCENT", "obs-keys": "KEY,…"}.get(
        name, ""
    )


def eval_flags(
    prefix: str = "", leave_out: Sequence[str] = (), group: str = "options"
) -> list[Flag]:
    """The settings of an evaluation as flags."""
    fields = [f for f in read_fields(SECTION_CLASSES["eval"]) if f.name not in leave_out]
    flags = from_fields(fields, prefix=prefix, dest="eval.", group=group)
    return [dataclasses.replace(f, metavar="R,…") if f.key == "eval.targets" else f for f in flags]


def data_flag() -> Flag:
    """``--data``, which adds up when repeated."""
    return Flag(
        "data",
        str,
        "Dataset URIs or names (seqrl list datasets); repeated flags add up. Sources of equal "
        "spaces and environment are joined.",
        many=True,
        metavar="URI …",
        group="data",
    )


def training_flags(agent: str | None) -> list[Flag]:
    """Every flag of ``seqrl train``; those of the agent only when it is known."""
    train = [f for f in read_fields(SECTION_CLASSES["train"]) if f.name != "optim"]
    optim = read_fields(SECTION_CLASSES["train.optim"])
    flat_eval = [f for f in eval_flags(group="evaluation") if _field(f) in _FLAT_EVAL]
    flags = [
        Flag("preset", str, "Published settings to begin with; none for no preset.", group="what"),
        Flag("config", str, "JSON file of settings over the preset.", metavar="FILE", group="what"),
        Flag("init-from", str, "Start from the weights of a run.", metavar="RUN", group="what"),
        data_flag(),
        *load_flags(),
        *from_fields(train, dest="train.", group="training"),
        *from_fields([f for f in optim if f.name == "lr"], dest="train.optim.", group="training"),
        *from_fields(optim, prefix="optim.", dest="train.optim.", group="optimiser"),
        *flat_eval,
        Flag(
            "eval-episodes",
            int,
            "Episodes per target of the evaluations during training.",
            10,
            group="evaluation",
        ),
        Flag(
            "eval-tasks",
            int,
            "Of several tasks, how many each of these evaluations asks (default: all).",
            group="evaluation",
        ),
        Flag(
            "evaluate",
            bool,
            "Train without evaluating in an environment.",
            True,
            group="evaluation",
        ),
        *eval_flags("eval.", (*_FLAT_EVAL, *_NOT_IN_TRAINING), "evaluation"),
        Flag(
            "loggers",
            tuple[str, ...],
            "Where metrics go: jsonl, csv, tensorboard, wandb, or none.",
            ("jsonl", "csv", "tensorboard"),
            many=True,
            commas=True,
            group="run",
        ),
        Flag(
            "out", str, "Exactly this folder (with --seeds: DIR/s0, …).", metavar="DIR", group="run"
        ),
        Flag("name", str, "Name of the run in place of the date.", group="run"),
        Flag("seeds", str, "Train several: 0-4 or 0,1,7.", parse=parse_seeds, group="run"),
    ]
    hide_twice = [f.name for f in flags if f.name == "optim.lr"]
    flags = [dataclasses.replace(f, hidden=f.name in hide_twice) for f in flags]
    return flags + agent_flags(agent)


def _field(flag: Flag) -> str:
    return flag.key.rpartition(".")[2]


def agent_flags(agent: str | None) -> list[Flag]:
    """``--agent.X`` for every field of an agent's config, and ``--context``."""
    context = Flag("context", int, "Time steps the agent looks back.", dest="agent_config.context")
    if agent is None:
        return [dataclasses.replace(context, group="agent (more: seqrl train AGENT --help)")]
    path = agent if ":" in agent else registry.row(agent).path
    config = class_value(path, "config_class")
    if config is None:
        raise SeqrlError(f"agent '{agent}' names no config_class")
    group = f"agent {agent}"
    flags = from_fields(read_fields(config), prefix="agent.", dest="agent_config.", group=group)
    own = next((f for f in flags if f.name == "agent.context"), None)
    if own is not None:
        flags.insert(0, dataclasses.replace(own, name="context"))
        flags = [dataclasses.replace(f, hidden=f.name == "agent.context") for f in flags]
    return flags


def output_flags() -> list[Flag]:
    """Flags about what is printed."""
    return [
        Flag("quiet", bool, "Show results only.", short="q", group="output"),
        Flag("json", bool, "One JSON object on standard output.", group="output"),
    ]


# --- reading a command line --------------------------------------------------------------------


@dataclasses.dataclass
class Request:
    """A command line that asks for training: its words, and the settings they come to."""

    parsed: Parsed
    layered: Layered

    @property
    def given(self) -> dict[str, Any]:
        """Nested settings that the command line itself states."""
        return settings_of(self.parsed)


def train_flag_set(command: str, agent: str | None, extra: Sequence[Flag] = ()) -> FlagSet:
    """The flags of a command that takes training settings."""

    def unknown(name: str) -> None:
        if agent is not None and name.startswith("agent."):
            mine = agent_flags(agent)
            listed = "its options: " + " ".join(f"--{f.name}" for f in mine)
            raise SeqrlError(
                f"agent '{agent}' has no option '{name.partition('.')[2]}'",
                hint=nearest_flag(name, mine) or listed,
            )

    return FlagSet(
        command,
        [*training_flags(agent), *output_flags(), *extra],
        [Positional("AGENT", "name (seqrl list agents) or my_pkg.module:Class", required=False)],
        unknown,
    )


def read_request(command: str, argv: Sequence[str], extra: Sequence[Flag] = ()) -> Request:
    """Parse a command line and put preset, config file and flags together.

    Raises:
        SeqrlError: anything wrong with it.
    """
    agent = find_agent(command, argv, extra)
    parsed = train_flag_set(command, agent, extra).parse(argv)
    if "seeds" in parsed and "train.seed" in parsed:
        raise SeqrlError("--seed and --seeds are both given", hint="keep one of them")
    if "out" in parsed and "name" in parsed:
        raise SeqrlError("--out and --name are both given", hint="--out is the whole folder")
    from seqrl.datasets.catalog import CATALOGUE, default_preset

    layered = layer(
        settings_of(parsed),
        preset=parsed.get("preset"),
        file=parsed.get("config"),
        default_data=[next(iter(CATALOGUE))],
        default_preset=default_preset,
    )
    layered.settings["data"] = [absolute(uri) for uri in layered.settings["data"]]
    return Request(parsed, layered)


def find_agent(command: str, argv: Sequence[str], extra: Sequence[Flag] = ()) -> str | None:
    """The agent a command line is about: named, or that of its config file or preset."""
    first = train_flag_set(command, None, extra).parse(argv, lenient=True)
    name: str | None = first.get("agent")
    if name is None and first.get("config"):
        name = read_settings(first.get("config")).get("agent")
    if name is None and first.get("preset") not in (None, "none"):
        name = presets.load(first.get("preset")).agent
    last = (first.get("data") or [""])[-1]
    if name is None and last in registry.names():
        raise SeqrlError(
            f"no agent named: '{last}' was taken for data",
            hint=f"the agent comes first: seqrl {command} {last} --data …",
        )
    if name is not None and ":" not in name:
        if name in presets.names():
            raise SeqrlError(f"'{name}' is a preset, not an agent", hint=f"--preset {name}")
        registry.row(name)
    return name


def settings_of(parsed: Parsed) -> dict[str, Any]:
    """The nested settings among the values of a command line."""
    about = ("preset", "config", "out", "name", "seeds", "quiet", "json")
    parts = ("load.", "train.", "eval.", "agent_config.")
    whole = ("agent", "data", "eval_episodes", "eval_tasks", "evaluate", "loggers", "init_from")
    return nested(
        {
            k: v
            for k, v in parsed.values.items()
            if k not in about and (k.startswith(parts) or k in whole)
        }
    )


def absolute(uri: str) -> str:
    """A file's URI with its whole path, so that a run can be resumed from any folder."""
    from seqrl.datasets.catalog import parse_uri

    scheme, colon, _ = uri.partition(":")
    if not colon or scheme not in ("d4rl", "npz", "cache"):
        return uri
    return f"{scheme}:{Path(parse_uri(uri).name).expanduser().absolute()}"


def changed_from_defaults(
    settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Flat settings that differ from the defaults, for the short form of a config."""
    from seqrl.presets.settings import flat

    usual = dict(flat(defaults))
    return {k: v for k, v in flat(settings) if k not in usual or usual[k] != v}
