"""``seqrl data``: look at a dataset, convert it, record a new one, split one in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from seqrl.cli import output, reporting
from seqrl.cli.flags import Flag, FlagSet, Parsed, Positional
from seqrl.cli.settings import load_flags
from seqrl.errors import SeqrlError, did_you_mean
from seqrl.presets.settings import build, nested
from seqrl.units import grouped

if TYPE_CHECKING:
    from seqrl.datasets.catalog import LoadOptions
    from seqrl.datasets.trajectories import Trajectories

_JSON = Flag("json", bool, "One JSON object on standard output.", group="output")


class Action(NamedTuple):
    """One of the ``seqrl data`` commands."""

    flags: Callable[[], FlagSet]
    run: Callable[[Parsed], int]
    purpose: str
    examples: tuple[str, ...]


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl data --help`` and of each of its commands."""
    if argv and not argv[0].startswith("-"):
        action = _find(argv[0])
        return output.help_text(action.flags(), action.purpose, examples=action.examples)
    width = max(map(len, ACTIONS))
    lines = [f"  seqrl data {k.ljust(width)}  {a.purpose}" for k, a in ACTIONS.items()]
    examples = [f"  {a.examples[0]}" for a in ACTIONS.values()]
    return "\n".join(["commands (each has --help):", *lines, "", "examples:", *examples])


def main(argv: Sequence[str]) -> int:
    """Run one of the commands."""
    if not argv:
        output.out(help_for(argv))
        return 0
    action = _find(argv[0])
    return action.run(action.flags().parse(argv[1:]))


def _find(name: str) -> Action:
    if name not in ACTIONS:
        raise SeqrlError(
            f"no command 'data {name}'",
            hint=did_you_mean(name, ACTIONS, f"commands: {' '.join(ACTIONS)}"),
        )
    return ACTIONS[name]


def options_of(parsed: Parsed) -> LoadOptions:
    """The options of loading that a command line states."""
    from seqrl.datasets.catalog import LoadOptions

    given = nested({k: v for k, v in parsed.values.items() if k.startswith("load.")})
    return build(LoadOptions, given.get("load", {}), "load")


# --- inspect -----------------------------------------------------------------------------------


def _inspect_flags() -> FlagSet:
    plot = Flag("plot", str, "Draw histograms and three episodes to a file.", metavar="FILE.png")
    return FlagSet(
        "data inspect", [plot, *load_flags(), _JSON], [Positional("ID", "URI or name", many=True)]
    )


def _inspect(parsed: Parsed) -> int:
    from seqrl.datasets.catalog import load_sources
    from seqrl.datasets.inspection import format_report, inspect

    tasks = load_sources(parsed.get("id"), options_of(parsed))
    facts = [inspect(d) for d in tasks]
    plots = _plots(parsed.get("plot"), tasks)
    if parsed.get("json"):
        output.print_json({"datasets": facts, "plots": plots})
        return 0
    output.out("\n\n".join(format_report(f) for f in facts))
    for file in plots:
        output.out(f"plot    {reporting.shown(file)}")
    return 0


def _plots(file: str | None, tasks: Sequence[Trajectories]) -> list[str]:
    if file is None:
        return []
    from seqrl.datasets.plots import plot_dataset

    path = Path(file)
    files = [path, *(path.with_stem(f"{path.stem}_{i}") for i in range(1, len(tasks)))]
    return [str(plot_dataset(d, f)) for d, f in zip(tasks, files, strict=True)]


# --- convert -----------------------------------------------------------------------------------


def _convert_flags() -> FlagSet:
    words = Positional(
        "SRC … DEST", "sources, then cache:DIR, npz:FILE, d4rl:FILE or minari:ID", many=True
    )
    return FlagSet("data convert", [*load_flags(), _JSON], [words])


def _convert(parsed: Parsed) -> int:
    words: list[str] = parsed.get("src … dest")
    if len(words) < 2:
        raise SeqrlError(
            "'seqrl data convert' needs a source and a destination",
            hint=f"seqrl data convert {words[0]} cache:FOLDER",
        )
    *sources, destination = words
    from seqrl.datasets.cache import convert

    made = convert(sources[0] if len(sources) == 1 else sources, destination, options_of(parsed))
    return _written(parsed, [made])


def _written(parsed: Parsed, places: Sequence[str]) -> int:
    """Say what is where now, read back from the place itself."""
    from seqrl.datasets.catalog import load_dataset

    rows = []
    for place in places:
        data = load_dataset(place)
        rows.append({"uri": place, "episodes": len(data), "steps": data.num_steps})
        if not parsed.get("json"):
            size = f"{grouped(len(data))} episodes, {grouped(data.num_steps)} steps"
            output.out(f"written {place}   {size}")
    if parsed.get("json"):
        output.print_json({"written": rows})
    return 0


# --- collect -----------------------------------------------------------------------------------


def _collect_flags() -> FlagSet:
    from seqrl.references import names

    known = ", ".join(names())
    return FlagSet(
        "data collect",
        [
            Flag(
                "policy", str, f"{known}, a run folder, or sb3:FILE.zip.", names()[0], metavar="P"
            ),
            Flag("episodes", int, "How many.", 100),
            Flag("to", str, "Where: npz:FILE, d4rl:FILE, minari:ID or cache:DIR.", metavar="URI"),
            Flag("seed", int, "Of the recording.", 0),
            Flag("num-envs", int, "Environments side by side; changes nothing in the data.", 8),
            Flag("env-kwargs", dict, "Arguments of the environment.", metavar="K=V …"),
            Flag("target", str, "Target return of a policy that uses one.", metavar="R"),
            Flag("max-steps", int, "Cut episodes at this many steps."),
            Flag("name", str, "Name of the dataset.", metavar="NAME"),
            Flag("trust", bool, "The policy's file may run code (sb3: files are pickles)."),
            Flag("quiet", bool, "Show results only.", short="q", group="output"),
            _JSON,
        ],
        [Positional("ENV", "environment id")],
    )


def _collect(parsed: Parsed) -> int:
    to = parsed.get("to")
    if to is None:
        raise SeqrlError("no place to write to", hint="--to npz:FILE.npz, or minari:my/data-v0")
    _check_free(to)
    from seqrl.collect import collect
    from seqrl.datasets.cache import convert

    options = {k: parsed.get(k) for k in ("env_kwargs", "target", "max_steps", "name")}
    data = collect(
        parsed.get("env"),
        parsed.get("policy", "random"),
        parsed.get("episodes", 100),
        parsed.get("seed", 0),
        parsed.get("num_envs", 8),
        trust=bool(parsed.get("trust")),
        progress=reporting.episode_bar(bool(parsed.get("quiet"))),
        **options,
    )
    return _written(parsed, [convert(data, to)])


def _check_free(destination: str) -> None:
    """Refuse a place that is taken before the work is done, not after."""
    from seqrl.datasets.catalog import parse_uri

    uri = parse_uri(destination)
    if uri.scheme == "minari":
        from seqrl.datasets.minari_store import is_local

        taken = is_local(uri.name)
    elif uri.scheme in ("npz", "d4rl", "cache"):
        taken = Path(uri.name).expanduser().exists()
    else:
        raise SeqrlError(
            f"cannot write '{uri.scheme}:' data", hint="write cache:, npz:, d4rl: or minari:"
        )
    if taken:
        raise SeqrlError(f"'{destination}' exists already", hint="name another place")


# --- split -------------------------------------------------------------------------------------


def _split_flags() -> FlagSet:
    return FlagSet(
        "data split",
        [
            Flag("holdout", float, "Share of the episodes that goes into the second part.", 0.1),
            Flag("seed", int, "Decides which episodes.", 0),
            Flag(
                "to",
                str,
                "Two places: the larger part, the held-out part.",
                many=True,
                metavar="URI URI",
            ),
            *load_flags(),
            _JSON,
        ],
        [Positional("ID", "URI or name")],
    )


def _split(parsed: Parsed) -> int:
    places = parsed.get("to") or []
    if len(places) != 2:
        raise SeqrlError(
            f"--to names {len(places)} places, must be two", hint="--to npz:train.npz npz:held.npz"
        )
    for place in places:
        _check_free(place)
    from seqrl.datasets.cache import convert
    from seqrl.datasets.catalog import load_dataset

    data = load_dataset(parsed.get("id"), options=options_of(parsed))
    rest, held = data.split(parsed.get("holdout", 0.1), parsed.get("seed", 0))
    if held is None:
        raise SeqrlError(
            f"nothing to hold out of {len(data)} episodes",
            hint="--holdout above 0, episodes above 1",
        )
    return _written(parsed, [convert(rest, places[0]), convert(held, places[1])])


ACTIONS: dict[str, Action] = {
    "inspect": Action(
        _inspect_flags,
        _inspect,
        "Sizes, ranges, returns, suggested targets and doubts of a dataset.",
        ("seqrl data inspect npz:my_data.npz --plot my_data.png",),
    ),
    "convert": Action(
        _convert_flags,
        _convert,
        "Write data in another form; cache: opens in milliseconds whatever its size.",
        ("seqrl data convert d4rl:FILE.hdf5 cache:big", "seqrl data convert A B minari:my/ab-v0"),
    ),
    "collect": Action(
        _collect_flags,
        _collect,
        "Record new episodes of an environment with any policy.",
        ("seqrl data collect CartPole-v1 --policy random --episodes 100 --to npz:cartpole.npz",),
    ),
    "split": Action(
        _split_flags,
        _split,
        "Divide a dataset by episode into two.",
        ("seqrl data split npz:all.npz --holdout 0.1 --to npz:train.npz npz:held.npz",),
    ),
}
