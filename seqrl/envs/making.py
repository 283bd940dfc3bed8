"""Making one environment by id, with every way that can go wrong said in one line.

``module:EnvId`` imports ``module`` first, as in Gymnasium. The ids of some well-known packages work
without that: the package is imported when such an id is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
from gymnasium import error

from seqrl.errors import SeqrlError, did_you_mean, nearest
from seqrl.spaces import is_image

Env = gymnasium.Env[Any, Any]


class _Package(NamedTuple):
    """A package that registers environments when it is imported."""

    ids: str
    """Regular expression of the ids it registers."""
    module: str
    install: str


_PACKAGES = (
    _Package(r"(MiniGrid|BabyAI)-", "minigrid", "minigrid"),
    _Package(
        r"(Fetch|PointMaze|AntMaze_|FrankaKitchen|AdroitHand|HandReach|HandManipulate)",
        "gymnasium_robotics",
        "gymnasium-robotics",
    ),
    _Package(r"ALE/", "ale_py", "ale-py"),
    _Package(r"popgym-", "popgym", "popgym"),
    _Package(r"Meta-World/", "metaworld", "metaworld"),
    _Package(r"dm_control/", "shimmy", '"shimmy[dm-control]"'),
    _Package(r"Vizdoom", "vizdoom.gymnasium_wrapper", "vizdoom"),
)

# What pip installs for a module that an environment failed to import.
_EXTRAS = {"mujoco": '"seqrl[mujoco]"', "box2d": '"seqrl[box2d]"', "pygame": '"seqrl[box2d]"'}


def make_env(
    env_id: str,
    kwargs: Mapping[str, Any] | None = None,
    render_mode: str | None = None,
    keys: tuple[str, ...] = (),
) -> Env:
    """A Gymnasium environment by id, without Gymnasium's per-step checker.

    Args:
        env_id: ``Name-v0``, ``namespace/Name-v0`` or ``module:Name-v0``.
        kwargs: keyword arguments of the environment.
        render_mode: ``rgb_array`` for pictures; MuJoCo then renders without a display.
        keys: entries of a Dict observation to keep, as a policy trained on them reads; empty for
            all. Other observations stay as they are.

    Raises:
        SeqrlError: unknown or retired id, package not installed, argument it does not take.
    """
    import seqrl.envs  # noqa: F401  (registers the environments of seqrl)

    if render_mode is not None:
        use_offscreen_gl()
    given = dict(kwargs or {})
    if render_mode is not None:
        given["render_mode"] = render_mode
    try:
        try:
            return SelectEntries.of(_make(env_id, given), keys)
        except error.UnregisteredEnv:
            if import_package_of(env_id):
                return SelectEntries.of(_make(env_id, given), keys)
            raise
    except SeqrlError:
        raise
    except Exception as e:
        raise _explained(env_id, given, e) from e


def _make(env_id: str, given: dict[str, Any]) -> Env:
    # Gymnasium's passive checker costs more than many environments; `seqrl doctor` checks instead.
    return gymnasium.make(env_id, disable_env_checker=True, **given)


class SelectEntries(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Keeps some entries of a Dict observation; an image that is left alone comes bare."""

    def __init__(self, env: Env, keys: tuple[str, ...]):
        super().__init__(env)
        parts = {k: env.observation_space[k] for k in keys}  # type: ignore[index]
        self.keys = keys
        self.alone = len(keys) == 1 and is_image(parts[keys[0]])
        self.observation_space = parts[keys[0]] if self.alone else gymnasium.spaces.Dict(parts)

    @classmethod
    def of(cls, env: Env, keys: tuple[str, ...]) -> Env:
        """``env``, wrapped where ``keys`` are some of its observation's entries but not all."""
        space = env.observation_space
        if isinstance(space, gymnasium.spaces.Dict) and keys:
            own = set(space.spaces)
            # A single image entry is selected even where it is the only one: data hold it bare.
            if set(keys) <= own and (set(keys) != own or is_image(space[keys[0]])):
                return cls(env, keys)
        return env

    def observation(self, observation: Any) -> Any:
        """The entries kept."""
        if self.alone:
            return observation[self.keys[0]]
        return {k: observation[k] for k in self.keys}


def use_offscreen_gl() -> None:
    """Let MuJoCo render without a display; must run before MuJoCo is first imported."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not display:
        os.environ.setdefault("MUJOCO_GL", "egl")


def horizon(env: Env) -> int | None:
    """The step limit of an environment: its registration's, a wrapper's, or its own attribute."""
    limits = [
        None if env.spec is None else env.spec.max_episode_steps,
        _wrapper_limit(env),
        getattr(env.unwrapped, "max_episode_steps", None),
        getattr(env.unwrapped, "max_episode_length", None),  # as popgym calls it
    ]
    return next((int(limit) for limit in limits if limit is not None), None)


def _wrapper_limit(env: Env) -> int | None:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return env._max_episode_steps
        env = env.env
    return None


def import_package_of(env_id: str) -> bool:
    """Import the package known to register ``env_id``; False when there is none.

    Raises:
        SeqrlError: it is not installed; the hint is the pip command.
    """
    package = next((p for p in _PACKAGES if re.match(p.ids, env_id)), None)
    if package is None or ":" in env_id:
        return False
    if importlib.util.find_spec(package.module.partition(".")[0]) is None:
        raise SeqrlError(
            f"environment '{env_id}' needs {package.install.split('[')[0].strip(chr(34))}",
            hint=f"pip install {package.install}",
        )
    importlib.import_module(package.module)
    return True


def _explained(env_id: str, given: dict[str, Any], e: Exception) -> SeqrlError:
    """The one-line form of an error of ``gymnasium.make``."""
    name = f"environment '{env_id}'"
    first_line = (str(e).splitlines() or [type(e).__name__])[0]
    if isinstance(e, error.DeprecatedEnv):
        newer = re.search(r"use `([^`]+)`", str(e))
        hint = f"use {newer[1]}" if newer else "see: seqrl list envs"
        return SeqrlError(f"{name} is retired", hint=hint)
    if isinstance(e, error.UnregisteredEnv):
        return SeqrlError(f"no {name}", hint=_close_ids(env_id))
    if isinstance(e, error.DependencyNotInstalled | ModuleNotFoundError | ImportError):
        return _missing(env_id, name, first_line, e)
    if isinstance(e, error.Error) and "Malformed" in str(e):
        return SeqrlError(
            f"'{env_id}' is no environment id", hint="write Name-v0, or module:Name-v0"
        )
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(e))
    if isinstance(e, TypeError) and unexpected:
        return SeqrlError(
            f"{name} takes no argument '{unexpected[1]}'",
            hint=_arguments_hint(env_id, unexpected[1]),
        )
    return SeqrlError(
        f"{name} cannot be made: {type(e).__name__}: {first_line}",
        hint=f"arguments given: {given or 'none'}",
    )


def _arguments_hint(env_id: str, given: str) -> str:
    """Hint naming the arguments an environment takes, as far as they can be read off its class."""
    from gymnasium.envs.registration import load_env_creator

    try:
        entry = gymnasium.spec(env_id).entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
        names = list(inspect.signature(creator).parameters)  # type: ignore[arg-type]
    except Exception:
        return "drop it"
    known = [n for n in names if n not in ("self", "args", "kwargs", "render_mode")]
    guess = did_you_mean(given, known, otherwise="")
    return f"{guess} its arguments: {', '.join(known) or 'none'}".strip()


def _missing(env_id: str, name: str, first_line: str, e: Exception) -> SeqrlError:
    module, colon, _ = env_id.partition(":")
    if colon and isinstance(e, ModuleNotFoundError) and e.name in (None, module.split(".")[0]):
        return SeqrlError(
            f"{name}: module '{module}' is not installed",
            hint="install it, or put its folder on PYTHONPATH",
        )
    if "v2 and v3 based environments" in str(e):
        base = env_id.rpartition("-v")[0]
        return SeqrlError(f"{name} is retired", hint=f"use {base}-v4 (as D4RL's) or {base}-v5")
    text = f"{getattr(e, 'name', None) or ''} {e}".lower()
    for module, extra in _EXTRAS.items():
        if module in text:
            return SeqrlError(f"{name} needs {module}", hint=f"pip install {extra}")
    asked = re.search(r"pip install [^`.,]+", str(e))
    missing = getattr(e, "name", None)
    default = f"pip install {missing}" if missing else "install what the message names"
    hint = asked[0].strip() if asked else default
    return SeqrlError(f"{name} cannot be imported: {first_line}", hint=hint)


def _close_ids(env_id: str) -> str:
    """Hint naming registered ids close to a misspelt one."""
    known = list(gymnasium.registry)
    bare = env_id.rpartition(":")[2]
    base = re.sub(r"-v\d+$", "", bare)
    versions = [i for i in known if re.sub(r"-v\d+$", "", i) == base]
    # Suggest the newest version of each name only.
    newest = {re.sub(r"-v\d+$", "", i): i for i in sorted(known, key=_version)}
    close = sorted(versions, key=_version)[-3:] or [newest[n] for n in nearest(base, newest)]
    if not close:
        close = [newest[n] for n in newest if n.rpartition("/")[2].lower() == base.lower()]
    if close:
        return "did you mean " + " or ".join(repr(i) for i in close) + "?"
    return "see: seqrl list envs; for another package write module:EnvId"


def _version(env_id: str) -> int:
    match = re.search(r"-v(\d+)$", env_id)
    return int(match[1]) if match else -1
