"""``seqrl config``: the resolved settings of a command, run or file, and how two of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl.cli import output
from seqrl.cli.flags import Flag, FlagSet, Positional
from seqrl.cli.settings import read_request
from seqrl.errors import SeqrlError, did_you_mean
from seqrl.presets.settings import as_text, differences, flat, layer

if TYPE_CHECKING:
    from seqrl.experiment import ExperimentConfig

ACTIONS = ("show", "validate", "diff")
_JSON = Flag("json", bool, "One JSON object on standard output.", group="output")
_WHAT = "a run folder, a JSON file of settings, a preset, or an agent"


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl config --help``."""
    return "\n".join(
        [
            "usage: seqrl config show [WHAT | AGENT] [options of seqrl train]",
            "       seqrl config validate WHAT …",
            "       seqrl config diff WHAT WHAT",
            "",
            "show      every setting a command would train with, and where it comes from",
            "validate  read settings, check names, types and ranges",
            "diff      the settings in which two differ",
            "",
            f"WHAT is {_WHAT}. All take --json.",
            "",
            "examples:",
            "  seqrl config show AGENT --preset NAME --lr 3e-4 --json > mine.json",
            "  seqrl config validate mine.json",
            "  seqrl config diff runs/DATA/AGENT/RUN mine.json",
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Run one of the commands."""
    if not argv:
        output.out(help_for(argv))
        return 0
    action, *rest = argv
    if action not in ACTIONS:
        raise SeqrlError(
            f"no command 'config {action}'",
            hint=did_you_mean(action, ACTIONS, f"commands: {' '.join(ACTIONS)}"),
        )
    return {"show": _show, "validate": _validate, "diff": _diff}[action](rest)


def _show(argv: Sequence[str]) -> int:
    first = argv[0] if argv else ""
    if first and not first.startswith("-") and (Path(first).exists() or _is_preset(first)):
        parsed = FlagSet("config show", [_JSON], [Positional("WHAT", _WHAT)]).parse(argv)
        config, origins = read(first), {}
    else:
        request = read_request("config show", argv)
        parsed, origins = request.parsed, request.layered.origins
        config = _built(request.layered.settings)
    if parsed.get("json"):
        output.print_json(config.to_json())
        return 0
    rows = [
        [key, as_text(value), origins.get(key, "") if origins else ""]
        for key, value in flat(config.to_json())
    ]
    output.out(
        output.table(["SETTING", "VALUE", "FROM"] if origins else ["SETTING", "VALUE", ""], rows)
    )
    return 0


def _validate(argv: Sequence[str]) -> int:
    flags = FlagSet("config validate", [_JSON], [Positional("WHAT", _WHAT, many=True)])
    parsed = flags.parse(argv)
    rows = []
    for what in parsed.get("what"):
        try:
            config = read(what)
        except SeqrlError as e:
            raise SeqrlError(f"{what}: {e.message}", hint=e.hint) from e
        rows.append({"what": what, "agent": config.agent, "data": list(config.data)})
        if not parsed.get("json"):
            data = " ".join(config.data) or "none named"
            output.out(f"ok   {what}: agent {config.agent}, data {data}")
    if parsed.get("json"):
        output.print_json({"valid": rows})
    return 0


def _diff(argv: Sequence[str]) -> int:
    words = [Positional("A", _WHAT), Positional("B", _WHAT)]
    parsed = FlagSet("config diff", [_JSON], words).parse(argv)
    both = [read(parsed.get(side)).to_json() for side in ("a", "b")]
    # Where settings once came from makes no difference to a run.
    found = differences(*({k: v for k, v in c.items() if k != "preset"} for c in both))
    if parsed.get("json"):
        output.print_json({"differences": found})
    else:
        output.out("\n".join(found) if found else "no difference")
    return 0


def read(what: str) -> ExperimentConfig:
    """The settings of a run folder, file, preset or agent.

    Raises:
        SeqrlError: none of these, or settings that are not valid.
    """
    from seqrl import presets
    from seqrl.agents import registry

    path = Path(what)
    if path.is_dir() or path.name == "config.json":
        from seqrl.runfolder import open_run

        settings, notes = open_run(path).config()
        for note in notes:
            output.log(note)
        return _built(settings)
    if path.is_file():
        return _built(layer({}, file=path).settings)
    if _is_preset(what):
        return _built({**presets.load(what).to_config(), "preset": what})
    if ":" in what or what in registry.names():
        return _built({"agent": what})
    known = [*presets.names(), *registry.names()]
    raise SeqrlError(
        f"'{what}' is no run, file, preset or agent",
        hint=did_you_mean(what, known, "seqrl list presets; seqrl list agents"),
    )


def _is_preset(name: str) -> bool:
    from seqrl import presets

    return name in presets.names()


def _built(settings: dict[str, Any]) -> ExperimentConfig:
    from seqrl.experiment import ExperimentConfig

    return ExperimentConfig.from_json({"data": (), **settings})
