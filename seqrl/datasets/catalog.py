"""Datasets by name: URIs, the options of loading them, and the catalogue of built-in ones.

A dataset is named by a URI ``scheme:name?key=value&...`` or by a bare name (a catalogue entry, or
the id of a dataset in the local Minari store). Importing this module imports no reader: each
scheme is a line in :data:`SCHEMES`, loaded on first use.

A reader module has ``read(uri, options, allocate) -> Trajectories``; to be cached it also has
``source_files(uri, options) -> list[Path]`` and ``READ_OPTIONS``, the names of the options that
change what it reads.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

from seqrl.errors import SeqrlError, did_you_mean, nearest

if TYPE_CHECKING:
    from seqrl.datasets.columns import Allocate
    from seqrl.datasets.trajectories import Trajectories

SCHEMES: dict[str, str] = {
    "minari": "seqrl.datasets.minari_store",
    "d4rl": "seqrl.datasets.d4rl",
    "npz": "seqrl.datasets.npz",
    "cache": "seqrl.datasets.cache",
    "oracle": "seqrl.datasets.generated",
    "random": "seqrl.datasets.generated",
    "behaviour": "seqrl.datasets.generated",
    "incontext": "seqrl.datasets.task_data",
    "histories": "seqrl.datasets.task_data",
}
"""Scheme of a URI to the module that reads it."""

_PLAIN = frozenset({"minari", "d4rl", "npz", "cache"})
"""Schemes whose name is an id or a path: a ``?`` in it is part of the name."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A built-in dataset."""

    uri: str
    description: str
    presets: Mapping[str, str] = field(default_factory=dict)
    """Agent name to the preset that ``seqrl train AGENT --data NAME`` starts from."""


_TMAZE_90 = ("dc", "decision_mamba", "decision_s4", "dt", "frozen", "lram", "lstm", "rate")
"""Agents with a preset for it."""

_MEMORY_TASKS = {
    "memory-length": ("MemoryLength", "memory length of bsuite"),
    "repeat-previous": ("RepeatPrevious", "cards of POPGym: the k-th newest"),
    "repeat-first": ("RepeatFirst", "cards of POPGym: the first"),
    "autoencode": ("Autoencode", "cards of POPGym: all, backwards"),
    "count-recall": ("CountRecall", "cards of POPGym: how often a value came"),
}
"""Name to environment and description of tasks in three levels."""

CATALOGUE: dict[str, CatalogueEntry] = {
    "tmaze-30": CatalogueEntry(
        "oracle:seqrl/TMaze-v0?limit=30&episodes=2000",
        "T-Maze of RATE, corridors up to limit 30, oracle",
        {"dt": "dt/tmaze-30", "lstm": "lstm/tmaze-30"},
    ),
    "tmaze-90": CatalogueEntry(
        "oracle:seqrl/TMaze-v0?limit=30&segments=3&episodes=2000",
        "T-Maze of RATE, the union of limits 30, 60 and 90, oracle",
        {a: f"{a}/tmaze-90" for a in _TMAZE_90},
    ),
    "bandit-50": CatalogueEntry(
        "incontext:seqrl/Bandit-v0?horizon=50&tasks=50000",
        "bandits of DPT, 50 pulls each, with their best arms",
        {"dpt": "dpt/bandit-50"},
    ),
    "bandit-200": CatalogueEntry(
        "incontext:seqrl/Bandit-v0?horizon=200&tasks=50000",
        "bandits of DPT, 200 pulls each, with their best arms",
        {"dpt": "dpt/bandit-200"},
    ),
    "linear-bandit": CatalogueEntry(
        "incontext:seqrl/LinearBandit-v0?horizon=200&tasks=50000",
        "linear bandits of DPT, played by blind Thompson sampling",
        {"dpt": "dpt/linear-bandit"},
    ),
    "darkroom-6": CatalogueEntry(
        "incontext:seqrl/DarkRoom-v0?size=6&horizon=36&split=train&histories=500",
        "small Dark Rooms: transitions of 28 goals, best moves",
        {"dpt": "dpt/darkroom-6"},
    ),
    "darkroom-10": CatalogueEntry(
        "incontext:seqrl/DarkRoom-v0?split=train&histories=500",
        "Dark Rooms of DPT: transitions of 80 goals, best moves",
        {"dpt": "dpt/darkroom-10"},
    ),
    "darkroom-5-histories": CatalogueEntry(
        "histories:seqrl/DarkRoom-v0?size=5&horizon=10&start=center&split=train"
        "&histories=40&episodes=60",
        "small Dark Rooms: learning histories, ever less random",
        {"ad": "ad/darkroom-5", "at": "at/darkroom-5"},
    ),
    "darkroom-9-histories": CatalogueEntry(
        "histories:seqrl/DarkRoom-v0?preset=ad&split=train&histories=20&episodes=100",
        "Dark Rooms of AD: learning histories, ever less random",
        {"ad": "ad/darkroom-9"},
    ),
    "key-to-door-1k": CatalogueEntry(
        "random:seqrl/KeyToDoorEmpty-v0?obs_mode=one_hot&episodes=1000",
        "Key-to-Door of Decision Transformer, 1 000 random episodes",
    ),
    "key-to-door-10k": CatalogueEntry(
        "random:seqrl/KeyToDoorEmpty-v0?obs_mode=one_hot&episodes=10000",
        "Key-to-Door of Decision Transformer, 10 000 random episodes",
    ),
    "action-retrieval-90": CatalogueEntry(
        "oracle:seqrl/ActionRetrieval-v0?limit=90&episodes=6000",
        "associative retrieval of RATE, limit 90, oracle",
    ),
    **{
        f"{name}-{level}": CatalogueEntry(
            f"oracle:seqrl/{env}-v0?level={level}&episodes=1000", f"{text}, {level}, oracle"
        )
        for name, (env, text) in _MEMORY_TASKS.items()
        for level in ("easy", "medium", "hard")
    },
    "tmaze-smoke": CatalogueEntry(
        "oracle:seqrl/TMaze-v0?limit=9&episodes=64",
        "T-Maze with limit 9, 64 episodes: for trying things out",
    ),
}
"""Short names of datasets that need no file and no network."""

_FAMILIES = ((re.compile(r"tmaze-(\d+)"), "oracle:seqrl/TMaze-v0?limit={0}"),)
"""Patterns of names that the catalogue could have had, and how to make such data."""


@dataclass(frozen=True)
class LoadOptions:
    """How a dataset is read, and which part of it is used."""

    best: float | None = None
    """Use only the highest-return episodes that together hold this percentage of the steps."""
    min_return: float | None = None
    """Use only episodes of at least this return, such as those that succeeded."""
    delayed: bool = False
    """Move all reward of an episode to its last step."""
    episodes: int | None = None
    """Use only the first so many episodes."""
    every: int = 1
    """Use every so-many-th episode of a learning history."""
    reward_scale: float = 1.0
    """Multiply every reward by this."""
    reward_shift: float = 0.0
    """Add this to every (scaled) reward."""
    cache: bool = True
    """Keep a converted copy under SEQRL_HOME, which later loads open at once."""
    download: bool = False
    """Allow a Minari dataset that is not there to be downloaded."""
    goal_terminals: Literal["keep", "merge"] = "keep"
    """AntMaze files: 'keep' ends an episode at every terminal (as published results do), 'merge' at
    time limits and jumps only, and drops what follows the first terminal."""
    kitchen_rewards: Literal["stored", "delta"] = "stored"
    """Kitchen files: 'stored' rewards repeat the number of finished subtasks at every step, 'delta'
    rewards each subtask once, as the environment does."""
    keep_tail: bool = False
    """D4RL files: keep the cut-off steps after the last episode end as a truncated episode."""
    clip_actions: bool = False
    """Clip actions to their space instead of refusing data that leave it."""
    env: str | None = None
    """Environment the data belong to, where the source names none or another."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of that environment."""
    obs_keys: tuple[str, ...] = ()
    """Use only these entries of Dict observations."""

    def __post_init__(self) -> None:
        if self.best is not None and not 0 < self.best <= 100:
            raise SeqrlError(f"best is {self.best}, must be a percentage above 0 and at most 100")
        if self.episodes is not None and self.episodes < 1:
            raise SeqrlError(f"episodes is {self.episodes}, must be at least 1")
        if self.every < 1:
            raise SeqrlError(f"every is {self.every}, must be at least 1")
        for name, allowed in (
            ("goal_terminals", ("keep", "merge")),
            ("kitchen_rewards", ("stored", "delta")),
        ):
            if getattr(self, name) not in allowed:
                raise SeqrlError(
                    f"{name} is {getattr(self, name)!r}, must be one of {', '.join(allowed)}"
                )


@dataclass(frozen=True)
class DatasetURI:
    """A parsed URI."""

    scheme: str
    name: str
    """Dataset id, path or environment id."""
    params: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        query = "&".join(f"{k}={quote(str(v), safe='/:,.+-')}" for k, v in self.params.items())
        return f"{self.scheme}:{self.name}" + (f"?{query}" if query else "")


def parse_uri(text: str) -> DatasetURI:
    """Take a URI apart; values become int, float, bool, None or stay text.

    Raises:
        SeqrlError: no scheme, an unknown one, no name, or a parameter without ``=``.

    >>> parse_uri("random:CartPole-v1?episodes=5&seed=3")
    DatasetURI(scheme='random', name='CartPole-v1', params={'episodes': 5, 'seed': 3})
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{s}:" for s in SCHEMES)
        raise SeqrlError(
            f"'{text}' is not a dataset URI: it must start with one of {known}",
            hint=did_you_mean(scheme, SCHEMES, "seqrl list datasets shows what exists"),
        )
    if scheme in _PLAIN:
        name, query = rest, ""
    else:
        name, _, query = rest.partition("?")
    if not name:
        raise SeqrlError(f"'{text}' names no dataset", hint=f"write {scheme}:NAME")
    params: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise SeqrlError(f"'{part}' in '{text}' is not key=value", hint="separate them by &")
        params[unquote(key)] = _value(unquote(value))
    return DatasetURI(scheme, name, params)


def _value(text: str) -> Any:
    """A parameter's value: None, bool, int, float or text."""
    words: dict[str, Any] = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def resolve(name: str, *, download: bool = False) -> DatasetURI:
    """The URI that a name given by a user stands for: URI, catalogue entry, local Minari id.

    Raises:
        SeqrlError: nothing of that name is here; says where it looked and what is close.
    """
    if name in CATALOGUE:
        return parse_uri(CATALOGUE[name].uri)
    if ":" in name:
        return parse_uri(name)
    from seqrl.datasets import minari_store

    if minari_store.is_local(name) or (download and minari_store.is_valid_id(name)):
        return DatasetURI("minari", name)
    for suffix, scheme in ((".hdf5", "d4rl"), (".h5", "d4rl"), (".npz", "npz")):
        if name.endswith(suffix):
            raise SeqrlError(
                f"'{name}' does not say what kind of file it is", hint=f"write {scheme}:{name}"
            )
    raise unknown_dataset(name)


def unknown_dataset(name: str) -> SeqrlError:
    """The error for a dataset that is nowhere, with close names and ways to get it."""
    from seqrl.datasets import minari_store

    known = [*CATALOGUE, *(d.id for d in minari_store.list_local() if d.problem is None)]
    hints = []
    if close := nearest(name, known):
        hints.append(f"close: {', '.join(close)}")
    for pattern, uri in _FAMILIES:
        if match := pattern.fullmatch(name):
            hints.append(f'make it: --data "{uri.format(*match.groups())}"')
    download = "download: add --download"
    hints.append(f"or {download}" if hints else f"{download}; seqrl list datasets shows the others")
    return SeqrlError(
        f"dataset '{name}' is not in {minari_store.store_folder()}", hint="; ".join(hints)
    )


def default_preset(name: str, agent: str) -> str | None:
    """The preset that the catalogue names for an agent on a dataset, or None."""
    entry = CATALOGUE.get(name)
    return None if entry is None else entry.presets.get(agent)


def load_dataset(
    uri: str | Trajectories | Sequence[str | Trajectories], *, options: LoadOptions | None = None
) -> Trajectories:
    """Load one task's data from a URI or name, or from several that belong together.

    Args:
        uri: a URI, a name, data already loaded, or a sequence of these.
        options: what part of the data to use and how to read it.

    Raises:
        SeqrlError: unknown or broken data, or sources of different tasks.

    >>> len(load_dataset("oracle:seqrl/TMaze-v0?limit=5&episodes=3"))
    3
    """
    sources = [uri] if isinstance(uri, str) or not isinstance(uri, Sequence) else list(uri)
    tasks = load_sources(sources, options)
    if len(tasks) > 1:
        from seqrl.datasets.trajectories import spec_difference

        difference = spec_difference(tasks[0].task, tasks[1].task)
        raise SeqrlError(
            f"{tasks[0].source} and {tasks[1].source} are different tasks: {difference}",
            hint="load them as several tasks with load_sources",
        )
    return tasks[0]


def load_sources(
    uris: str | Sequence[str | Trajectories], options: LoadOptions | None = None
) -> list[Trajectories]:
    """Load several sources; those with equal spaces and environment become one task, in order.

    Options apply to each source by itself (``best=10`` of two files: the best of each).

    Returns:
        One set of trajectories a task, in the order in which the tasks first appear.
    """
    from seqrl.datasets.trajectories import Trajectories, spec_difference

    options = options or LoadOptions()
    groups: list[list[Trajectories]] = []
    for uri in [uris] if isinstance(uris, str) else uris:
        data = apply_options(uri if isinstance(uri, Trajectories) else _load(uri, options), options)
        for group in groups:
            if spec_difference(group[0].task, data.task) is None:
                group.append(data)
                break
        else:
            groups.append([data])
    if not groups:
        raise SeqrlError("no dataset given", hint="--data URI; seqrl list datasets")
    return [_join(group) for group in groups]


def _join(group: list[Trajectories]) -> Trajectories:
    from seqrl.datasets.trajectories import Trajectories

    data = Trajectories.join(group)
    if len(group) > 1:
        names = dict.fromkeys(d.task.name for d in group)
        data.task = dataclasses.replace(data.task, name=" + ".join(names))
        data.notes = {"joined": [{"source": d.source, **d.notes} for d in group]}
    return data


def _load(name: str, options: LoadOptions) -> Trajectories:
    """One source as stored: from the cache when it is there, else read and (if allowed) cached."""
    data = read_source(name, options)
    if name in CATALOGUE:
        data.task = dataclasses.replace(data.task, name=name)
    return data


def read_source(name: str, options: LoadOptions, allocate: Allocate | None = None) -> Trajectories:
    """Read one source before any option that selects or changes its contents.

    Args:
        allocate: where large columns go; None means memory, or the cache when it is allowed.
    """
    from seqrl.datasets import cache
    from seqrl.datasets.columns import in_memory

    uri = resolve(name, download=options.download)
    reader = importlib.import_module(SCHEMES[uri.scheme])
    if allocate is None and options.cache and hasattr(reader, "source_files"):
        return cache.load_cached(reader, uri, options)
    data: Trajectories = reader.read(uri, options, allocate or in_memory)
    return data


def apply_options(data: Trajectories, options: LoadOptions) -> Trajectories:
    """The options that work on any data: environment, rewards, subsets."""
    data = _with_env(data, options)
    if (options.reward_scale, options.reward_shift) != (1.0, 0.0):
        data = data.scale_rewards(options.reward_scale, options.reward_shift)
    if options.delayed:
        data = data.delayed()
    if options.episodes is not None:
        data = data.first(options.episodes)
    if options.every > 1:
        data = data.every(options.every)
        data.notes["every"] = options.every
    if options.best is not None:
        data = data.best(options.best)
        data.notes["best"] = options.best
    if options.min_return is not None:
        data = _at_least(data, options.min_return)
        data.notes["min_return"] = options.min_return
    return data


def _at_least(data: Trajectories, value: float) -> Trajectories:
    """The episodes whose return is ``value`` or more."""
    kept = (data.returns >= value).nonzero()[0]
    if not len(kept):
        raise SeqrlError(
            f"{data.source} has no episode of return {value:g} or more",
            hint=f"its largest is {data.returns.max():g}",
        )
    # As for the best x %, state statistics stay those of all steps.
    return data.select(kept, keep_stats=True)


def _with_env(data: Trajectories, options: LoadOptions) -> Trajectories:
    task = data.task
    if options.env is not None:
        task = dataclasses.replace(
            task,
            env_id=options.env,
            env_kwargs=dict(options.env_kwargs),
            max_episode_steps=episode_limit(options.env) or task.max_episode_steps,
        )
    elif options.env_kwargs:
        task = dataclasses.replace(task, env_kwargs={**task.env_kwargs, **options.env_kwargs})
    else:
        return data
    notes = {k: v for k, v in data.notes.items() if k != "env_guess"}
    return dataclasses.replace(data, task=task, notes=notes)


def episode_limit(env_id: str) -> int | None:
    """Time limit of a registered environment; None when it has none or is not registered."""
    from gymnasium.envs.registration import registry

    import seqrl.envs  # noqa: F401  (registers ours)

    spec = registry.get(env_id.rpartition(":")[2])
    return None if spec is None else spec.max_episode_steps
