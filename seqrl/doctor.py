"""Health checks of a run, a dataset, an environment or the installation, as plain data.

Each check says what it looked at and how it went: ``ok``, ``warn`` (works, but look at it) or
``fail`` (will not work). ``seqrl doctor`` prints them and exits with 3 when one failed.
"""

from __future__ import annotations

import functools
import importlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seqrl.errors import SeqrlError
from seqrl.units import grouped

if TYPE_CHECKING:
    from seqrl.agents.agent import Agent
    from seqrl.datasets.catalog import LoadOptions
    from seqrl.runfolder import RunFolder
    from seqrl.spec import Batch, Step, TaskSpec

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding."""

    level: Level
    text: str
    hint: str | None = None


def _guarded(checks: list[Check], what: str, look: Callable[[], Any]) -> Any:
    """What ``look`` returns; what it raises becomes a failed check, and None is returned."""
    try:
        return look()
    except SeqrlError as e:
        checks.append(Check("fail", f"{what}: {e.message}", e.hint))
    except Exception as e:  # a damaged run may break code in any way; the doctor must go on
        checks.append(Check("fail", f"{what}: {type(e).__name__}: {e}"))
    return None


# --- a run -------------------------------------------------------------------------------------


def check_run(path: str | Path, checkpoint: str = "last", *, trust: bool = False) -> list[Check]:
    """Config, weights, acting, horizon, versions and data of a run or checkpoint."""
    from seqrl.checkpoint import find_checkpoint, load_agent
    from seqrl.runfolder import open_run

    checks: list[Check] = []
    folder = None
    try:
        folder = open_run(path)
    except SeqrlError:
        checks.append(Check("warn", "a checkpoint without its run folder: config not checked"))
    config = None if folder is None else _check_config(folder, checks, trust)
    place = _guarded(checks, "checkpoint", lambda: find_checkpoint(path, checkpoint))
    if place is None:
        return checks
    loaded = _guarded(checks, "weights", lambda: load_agent(place, trust=trust))
    if loaded is not None:
        agent, meta = loaded
        checks.append(Check("ok", f"weights fit the agent ({place.name}, step {meta.step})"))
        if config is not None and config.agent_config.to_json() != agent.config.to_json():
            checks.append(Check("fail", "the policy's settings are not those of config.json"))
        _check_acting(agent, checks)
        _check_horizon(agent, checks)
        for task in agent.tasks:
            _check_task_env(task, checks)
    if folder is not None and config is not None:
        _check_record(folder, checks)
        _check_sources(folder, config, checks)
    return checks


def _check_config(folder: RunFolder, checks: list[Check], trust: bool) -> Any:
    from seqrl.experiment import ExperimentConfig
    from seqrl.runfolder import CONFIG_SCHEMA

    def look() -> ExperimentConfig | None:
        settings, notes = folder.config()
        if ":" in str(settings.get("agent")) and not trust:
            text = f"config names agent code outside seqrl: {settings['agent']}"
            checks.append(Check("warn", text, "--trust imports it"))
            return None
        config = ExperimentConfig.from_json(settings)
        checks.append(Check("ok", f"config loads (schema {CONFIG_SCHEMA})"))
        checks.extend(Check("warn", note) for note in notes)
        return config

    return _guarded(checks, "config", look)


def _check_acting(agent: Agent, checks: list[Check]) -> None:
    def look() -> None:
        gap, steps, largest = acting_gap(agent)
        # Predictions of trained weights may be large: the allowed difference grows with them.
        allowed = 10 * agent.tolerance["streaming"] * max(1.0, largest)
        level: Level = "ok" if gap <= allowed else "fail"
        checks.append(Check(level, f"acting: step == sequence (max diff {gap:.0e}, t < {steps})"))

    _guarded(checks, "acting", look)


def acting_gap(agent: Agent, rows: int = 2) -> tuple[float, int, float]:
    """Largest difference between predicting a window at once and stepping through it.

    Returns:
        The difference, the steps of the window, and the largest prediction.
    """
    import torch

    steps = min(agent.config.window().length or 32, 64)
    batch = _random_batch(agent, rows, steps)
    with torch.no_grad():
        whole = agent.predict(batch)
        state = agent.initial_state(rows)
        gap = 0.0
        for t in range(steps):
            stepped, state = agent.step(state, _step_of(batch, t))
            gap = max(gap, float((stepped - whole[:, t]).abs().max()))
    return gap, steps, float(whole.abs().max())


def _random_batch(agent: Agent, rows: int, steps: int) -> Batch:
    """Windows from an episode's start, drawn from the statistics of the training data."""
    import torch

    from seqrl.spec import Batch

    task, stats = agent.tasks[0], agent.stats[0]
    random = torch.Generator().manual_seed(0)
    shape = (rows, steps, *task.observation.shape)
    if task.observation.kind == "image":
        observations = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
    else:
        spread, mean = torch.tensor(stats.obs_std), torch.tensor(stats.obs_mean)
        observations = torch.randn(shape, generator=random) * spread + mean
    if task.action.kind == "continuous":
        low, high = torch.tensor(stats.action_low), torch.tensor(stats.action_high)
        actions = torch.rand((rows, steps, *task.action.shape), generator=random)
        actions = low + (high - low) * actions
    else:
        choices = torch.tensor(task.action.nvec)
        actions = torch.rand((rows, steps, *task.action.shape), generator=random)
        actions = (actions * (choices if task.action.shape else choices[0])).long()
    none = torch.zeros(rows, steps)
    return Batch(
        observations=observations,
        actions=actions,
        rewards=none,
        returns_to_go=none + stats.return_quantiles["p90"],
        timesteps=torch.arange(steps).expand(rows, -1),
        terminations=none.bool(),
        truncations=none.bool(),
        mask=~none.bool(),
        task=torch.zeros(rows, dtype=torch.int64),
        rows=torch.zeros(rows, dtype=torch.int64),
    )


def _step_of(batch: Batch, t: int) -> Step:
    import torch

    from seqrl.spec import Step

    before = max(t - 1, 0)
    first = torch.full((batch.size,), t == 0)
    return Step(
        observation=batch.observations[:, t],
        prev_action=batch.actions[:, before] * (t > 0),
        prev_reward=batch.rewards[:, before],
        rtg=batch.returns_to_go[:, t],
        timestep=batch.timesteps[:, t],
        first=first,
        trial_first=first,
        prev_terminated=torch.zeros(batch.size, dtype=torch.bool),
        task=batch.task,
    )


def _check_horizon(agent: Agent, checks: list[Check]) -> None:
    window = agent.config.window().length
    task, stats = agent.tasks[0], agent.stats[0]
    horizon = task.max_episode_steps or stats.max_episode_length
    if window is None or horizon <= window:
        checks.append(Check("ok", f"episodes of {horizon} steps fit the trained context"))
        return
    rule = agent.acting.rule
    text = f'eval horizon {grouped(horizon)} > trained context {window}: rule "{rule}" in force'
    checks.append(Check("warn", text))


def _check_record(folder: RunFolder, checks: list[Check]) -> None:
    from seqrl.runfolder import versions

    record = _guarded(checks, "run.json", folder.read)
    if record is None:
        return
    status = record.get("status")
    level: Level = "ok" if status == "done" else "warn"
    hint = None if status == "done" else f"seqrl resume {folder.dir}"
    checks.append(Check(level, f"status {status}", hint))
    then, here = record.get("versions") or {}, versions()
    changed = [f"{k} {v} → {here.get(k)}" for k, v in then.items() if v != here.get(k)]
    if changed:
        checks.append(
            Check("warn", f"other versions than it was trained with: {', '.join(changed)}")
        )
    else:
        checks.append(Check("ok", "same versions as it was trained with"))


def _check_sources(folder: RunFolder, config: Any, checks: list[Check]) -> None:
    from seqrl.datasets.catalog import load_sources

    try:
        data = load_sources(list(config.data), config.load)
    except SeqrlError as e:
        checks.append(
            Check("warn", f"the data cannot be loaded, so it cannot be resumed: {e.message}")
        )
        return
    before = [d.get("fingerprint") for d in folder.read().get("data", ())]
    if before == [d.fingerprint for d in data]:
        checks.append(Check("ok", "data are those it was trained on"))
    else:
        checks.append(Check("warn", "the data changed since it was trained"))


# --- a dataset ---------------------------------------------------------------------------------


def check_dataset(uris: Sequence[str], options: LoadOptions | None = None) -> list[Check]:
    """Loading validates; then doubts about the episodes, and whether its environment is there."""
    from seqrl.datasets.catalog import load_sources
    from seqrl.datasets.inspection import inspect

    checks: list[Check] = []
    found = _guarded(checks, "loading", lambda: load_sources(list(uris), options))
    for data in found or ():
        facts = inspect(data)
        size = f"{grouped(facts['episodes'])} episodes, {grouped(facts['steps'])} steps"
        checks.append(Check("ok", f"{facts['name']}: {size}"))
        checks.append(Check("ok", "no NaN, every episode ends, actions in range"))
        ended, spread = facts["ended"], facts["return"]
        if ended["one_step"]:
            checks.append(Check("warn", f"{grouped(ended['one_step'])} one-step episodes"))
        if unknown := ended["final_observation_unknown"]:
            checks.append(Check("warn", f"{grouped(unknown)} final observations unknown, repeated"))
        if spread["min"] == spread["max"]:
            text = "all returns are equal: return-conditioning has nothing to tell apart"
            checks.append(Check("warn", text))
        if facts["env"]["id"] is None:
            checks.append(Check("warn", "names no environment", "--env ID to evaluate in"))
        else:
            _check_task_env(data.task, checks)
    return checks


def _check_task_env(task: TaskSpec, checks: list[Check]) -> None:
    """Whether a task's environment can be made and has the task's spaces."""
    from seqrl.envs.pool import env_factory, make_pool, task_of
    from seqrl.spec import ActionSpec

    if task.env_id is None:
        return
    name = task.env_id

    def look() -> None:
        factory = env_factory(name, task.env_kwargs, keys=task.observation.keys)
        with make_pool(factory, 1, "sync") as pool:
            own = task_of(pool, name, task.env_kwargs)

        def shape(a: ActionSpec) -> tuple[Any, ...]:
            return (a.kind, a.shape, a.nvec)

        if own.observation.shape != task.observation.shape:
            ours, theirs = task.observation.describe(), own.observation.describe()
            checks.append(Check("fail", f"data have {ours} observations, {name} gives {theirs}"))
        elif shape(own.action) != shape(task.action):
            ours, theirs = task.action.describe(), own.action.describe()
            checks.append(Check("fail", f"data have {ours} actions, {name} wants {theirs}"))
        else:
            checks.append(Check("ok", f"environment {name} is here and has the data's spaces"))

    try:
        look()
    except SeqrlError as e:  # one can still train, on this machine or without it
        checks.append(Check("warn", f"cannot be evaluated here: {e.message}", e.hint))


# --- an environment ----------------------------------------------------------------------------


def check_environment(env_id: str, kwargs: Mapping[str, Any] | None = None) -> list[Check]:
    """Gymnasium's own checker, determinism under a seed, limits and speed of an environment."""
    from seqrl.envs.making import horizon, make_env

    checks: list[Check] = []
    env = _guarded(checks, "making", lambda: make_env(env_id, kwargs))
    if env is None:
        return checks
    with env:
        checks.append(Check("ok", f"{env_id} can be made"))
        _guarded(checks, "gymnasium check_env", lambda: _run_checker(env, checks))
        _guarded(checks, "repeating", lambda: _check_repeatable(env, checks))
        limit = horizon(env)
        if limit is None:
            checks.append(Check("warn", "no step limit", "evaluate with --max-steps N"))
        else:
            checks.append(Check("ok", f"step limit {grouped(limit)}"))
        if hasattr(env.unwrapped, "oracle_action"):
            checks.append(Check("ok", "has a scripted expert (oracle:)"))
    return checks


def _run_checker(env: Any, checks: list[Check]) -> None:
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    # Gymnasium colours its warnings; keep the words.
    texts = [str(w.message).replace("\x1b[33m", "").replace("\x1b[0m", "") for w in caught]
    texts = [" ".join(t.removeprefix("WARN: ").split()) for t in texts]
    checks.extend(Check("warn", t) for t in dict.fromkeys(texts))
    checks.append(Check("ok", "passes gymnasium's check_env"))


def _check_repeatable(env: Any, checks: list[Check]) -> None:
    """Two episodes of one seed and the same actions must agree; also measures the speed."""
    import numpy as np

    from seqrl.spaces import flatten_observation

    def episode() -> list[Any]:
        env.action_space.seed(0)
        seen: list[Any] = [flatten_observation(env.observation_space, env.reset(seed=0)[0])]
        for _ in range(100):
            obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            seen += [flatten_observation(env.observation_space, obs), float(reward)]
            if terminated or truncated:
                break
        return seen

    first = episode()
    begin = time.perf_counter()
    second = episode()
    seconds = time.perf_counter() - begin
    same = len(first) == len(second) and all(map(np.array_equal, first, second))
    if same:
        checks.append(Check("ok", "same seed and actions give the same episode"))
    else:
        checks.append(Check("warn", "same seed and actions give different episodes"))
    rate = (len(second) // 2) / max(seconds, 1e-9)
    checks.append(Check("ok", f"{grouped(round(rate))} steps/s on one core"))


# --- the installation --------------------------------------------------------------------------


def check_installation() -> list[Check]:
    """Packages import, folders can be written, the local Minari store is sound."""
    from seqrl.datasets.cache import seqrl_home
    from seqrl.datasets.minari_store import list_local, store_folder

    checks: list[Check] = []
    for name in ("torch", "gymnasium", "minari", "h5py", "safetensors", "tensorboard"):
        module = _guarded(
            checks, f"import {name}", functools.partial(importlib.import_module, name)
        )
        if module is not None:
            checks.append(Check("ok", f"{name} {getattr(module, '__version__', '')}".rstrip()))
    home = seqrl_home()

    def look() -> None:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / ".doctor"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
        checks.append(Check("ok", f"{home} can be written"))

    _guarded(checks, f"SEQRL_HOME {home}", look)
    local = list_local()
    checks.append(Check("ok", f"{len(local)} datasets in {store_folder()}"))
    checks.extend(Check("warn", f"{d.id}: {d.problem}") for d in local if d.problem)
    return checks
