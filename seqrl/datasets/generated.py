"""Data made on the spot: ``oracle:ENV_ID?...``, ``random:...`` and ``behaviour:...``.

Parameters of the URI: ``episodes`` (default 100), ``seed`` (default 0); every other one goes to the
environment. An environment whose class has ``oracle_columns(episodes, seed, **kwargs)`` makes its
expert's episodes itself, all at once, and may take further arguments that describe the data; of
others the expert is ``env.unwrapped.oracle_action()``, asked at every step. In the same way
``random:`` uses the class's ``random_columns`` where it has them, and ``behaviour:`` asks it for
``behaviour_columns``: data of a kind that it says itself.

Where episodes are stepped, episode i is reset with a seed derived from (seed, i), so a longer set
begins with the shorter one. Its reset options are the environment's ``generation_options(i)`` where
it has these (its evaluation tasks are then not to be seen in data), else ``episode_options(i)``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl import envs
from seqrl import spaces as sp
from seqrl.datasets import columns as cols
from seqrl.envs.making import horizon, import_package_of, make_env
from seqrl.errors import SeqrlError
from seqrl.spec import TaskSpec

if TYPE_CHECKING:
    from seqrl.datasets.catalog import DatasetURI, LoadOptions
    from seqrl.datasets.trajectories import Trajectories

READ_OPTIONS = ("obs_keys", "clip_actions")
"""Options that change what is generated."""

_MAKERS = {
    "oracle": "oracle_columns",
    "random": "random_columns",
    "behaviour": "behaviour_columns",
}
"""Scheme of a URI to the method by which an environment's class makes such episodes itself."""

_EPISODES = 100
_STREAM = 2
"""Stream of derived episode seeds; evaluation uses 0 and 1, so no episode is shared with it."""
_LONGEST = 10_000
"""Steps after which an episode of an environment without a time limit is cut."""


def source_files(uri: DatasetURI, options: LoadOptions) -> list[Path]:
    """The environment's code: changing it makes a cached copy stale.

    Of an environment of seqrl that is the whole package: their modules share what they generate by.
    """
    cls = environment_class(uri.name)
    file = inspect.getsourcefile(cls) if cls is not None else None
    if file is None:
        return []
    own = Path(envs.__file__).parent
    return sorted(own.glob("*.py")) if Path(file).parent == own else [Path(file)]


def read(
    uri: DatasetURI, options: LoadOptions, allocate: cols.Allocate = cols.in_memory
) -> Trajectories:
    """Generate the episodes of a URI.

    Raises:
        SeqrlError: unknown environment, a parameter it does not take, or no scripted expert.
    """
    kwargs = dict(uri.params)
    episodes = count_in("episodes", kwargs.pop("episodes", _EPISODES), 1)
    seed = count_in("seed", kwargs.pop("seed", 0), 0)
    cls = environment_class(uri.name)
    columns = None
    maker = _MAKERS.get(uri.scheme, "")
    if hasattr(cls, maker):
        columns = made_columns(cls, maker, uri, {"episodes": episodes, "seed": seed, **kwargs})
        kwargs = environment_kwargs(cls, kwargs)
    env = make_env(uri.name, kwargs)
    try:
        if columns is None:
            columns = _play(env, uri, episodes, seed)
        return trajectories_of(env, columns, uri, kwargs, options)
    finally:
        env.close()


def count_in(name: str, value: Any, low: int) -> int:
    """A whole number of at least ``low`` from a URI's parameter."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise SeqrlError(f"{name}={value} is not a whole number")
    if value < low:
        raise SeqrlError(f"{name}={value}, must be at least {low}")
    return int(value)


# --- the environment --------------------------------------------------------------------------


def environment_class(env_id: str) -> Any:
    """The class behind an environment id; None where only making it can tell.

    ``module:Id`` imports the module first, and the ids of well-known packages import theirs.
    Whatever is wrong with an id is reported when the environment is made.
    """
    from gymnasium.envs.registration import load_env_creator, registry

    import seqrl.envs  # noqa: F401  (registers ours)

    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        elif name not in registry:
            import_package_of(name)
        entry = registry[name].entry_point
        return load_env_creator(entry) if isinstance(entry, str) else entry
    except (ImportError, KeyError, AttributeError, SeqrlError):
        return None


def made_columns(
    cls: Any, maker: str, uri: DatasetURI, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The columns an environment's class makes itself, its complaints naming the URI.

    Args:
        maker: name of its method.
        arguments: of the method.
    """
    try:
        columns: dict[str, Any] = getattr(cls, maker)(**arguments)
    except SeqrlError as error:
        raise SeqrlError(f"{uri}: {error.message}", hint=error.hint) from None
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise SeqrlError(f"{uri}: {error}", hint=f"see help({cls.__name__})") from None
    return columns


def environment_kwargs(cls: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the environment among those of its data generator."""
    if hasattr(cls, "data_env_kwargs"):
        return dict(cls.data_env_kwargs(**kwargs))
    parameters = inspect.signature(cls.__init__).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(kwargs)
    return {k: v for k, v in kwargs.items() if k in parameters}


# --- episodes ---------------------------------------------------------------------------------


def _play(env: Any, uri: DatasetURI, episodes: int, seed: int) -> dict[str, Any]:
    """Step through the episodes; observations and actions stay in the form of their spaces."""
    from seqrl.draws import derive_seed

    base = env.unwrapped
    if uri.scheme == "behaviour":
        raise SeqrlError(
            f"environment '{uri.name}' describes no behaviour (behaviour_columns)",
            hint=f'random play: "random:{uri.name}"; recorded data: seqrl data collect',
        )
    if uri.scheme == "oracle" and not hasattr(base, "oracle_action"):
        raise SeqrlError(
            f"environment '{uri.name}' has no scripted expert (oracle_action)",
            hint=f'random play: "random:{uri.name}"; recorded data: seqrl data collect',
        )
    limit = None if horizon(env) else _LONGEST
    rows: dict[str, list[Any]] = {k: [] for k in (*cols.STEP, "final_observations")}
    starts, seeds = [0], [derive_seed(seed, _STREAM, i) for i in range(episodes)]
    offer = getattr(base, "generation_options", getattr(base, "episode_options", None))
    for i, episode_seed in enumerate(seeds):
        options = None if offer is None else offer(i)
        env.action_space.seed(episode_seed)
        obs, _ = env.reset(seed=episode_seed, options=options)
        obs, done, t = sp.flatten_observation(env.observation_space, obs), False, 0
        while not done:
            action = base.oracle_action() if uri.scheme == "oracle" else env.action_space.sample()
            following, reward, terminated, truncated, _ = env.step(action)
            t += 1
            truncated = not terminated and (truncated or t == limit)
            done = terminated or truncated
            for key, value in zip(
                cols.STEP, (obs, action, reward, terminated, truncated), strict=True
            ):
                rows[key].append(value)
            obs = sp.flatten_observation(env.observation_space, following)
        rows["final_observations"].append(obs)
        starts.append(starts[-1] + t)
    return {
        "observations": np.stack(rows["observations"]),
        "actions": np.asarray(rows["actions"]),
        "rewards": np.array(rows["rewards"], dtype=np.float32),
        "terminations": np.array(rows["terminations"], dtype=bool),
        "truncations": np.array(rows["truncations"], dtype=bool),
        "final_observations": np.stack(rows["final_observations"]),
        "episode_starts": np.array(starts),
        "episode_seeds": np.array(seeds),
    }


def trajectories_of(
    env: Any,
    columns: Mapping[str, Any],
    uri: DatasetURI,
    kwargs: Mapping[str, Any],
    options: LoadOptions,
) -> Trajectories:
    from seqrl.datasets.trajectories import Trajectories

    if options.obs_keys:
        raise SeqrlError(
            f"{uri}: --obs-keys selects from recorded data",
            hint="generate all entries, or wrap the environment",
        )
    space, action_space = env.observation_space, env.action_space
    arrays = {k: np.asarray(v) for k, v in columns.items()}
    known = (*cols.STEP, *cols.EPISODE, "final_observations", "episode_starts")
    actions = sp.flatten_actions(action_space, arrays.pop("actions"))
    if options.clip_actions:
        actions = cols.clip_actions(actions, sp.action_spec(action_space))
    scores = _reference_scores(type(env.unwrapped), kwargs)
    task = TaskSpec(
        name=uri.name,
        observation=sp.observation_spec(space),
        action=sp.action_spec(action_space),
        env_id=uri.name,
        env_kwargs=dict(kwargs),
        max_episode_steps=horizon(env),
        reference_scores=scores,
        reference_source="environment" if scores else None,
    )
    return Trajectories(
        actions=actions,
        task=task,
        observation_space=space,
        action_space=action_space,
        extras={k: v for k, v in arrays.items() if k not in known},
        source=str(uri),
        **{k: v for k, v in arrays.items() if k in known},  # type: ignore[arg-type]
    )


def _reference_scores(cls: Any, kwargs: Mapping[str, Any]) -> tuple[float, float] | None:
    """(random, oracle) returns that the environment's class states, or None."""
    if not hasattr(cls, "reference_scores"):
        return None
    scores = cls.reference_scores(**kwargs)
    return float(scores["random"]), float(scores["oracle"])
