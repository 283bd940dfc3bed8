"""What policies make of recorded contexts, without acting to learn: DPT's offline evaluation.

Bandits: from the first n of recorded pulls a policy names an arm; its suboptimality is what the
best arm pays more on average, without noise. Rooms: recorded transitions of each trial's task are
shown, and one episode is played; apart are contexts that show a reward and those that do not, from
which nobody could know the goal.

Source: Lee et al. 2023 (arXiv 2306.14892), sections on offline evaluation; its code compares
suboptimality at sizes up to 500 for 200 bandits and plays one episode for each of 100 rooms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqrl import scores
from seqrl.envs.context_data import Pulls, recorded_pulls
from seqrl.errors import SeqrlError, did_you_mean
from seqrl.references import bandit as offline
from seqrl.spec import Batch, TaskSpec, WindowSpec

if TYPE_CHECKING:
    from seqrl.agents.dpt import DPT  # the agent that has ``prefix_predictions`` and ``given``
    from seqrl.datasets.trajectories import Trajectories
    from seqrl.eval_report import EvalReport
    from seqrl.evaluation import EvalConfig

Chooser = Callable[[Pulls, Sequence[int]], NDArray[np.int64]]
"""Arms ``[M, P]`` named from the first ``sizes [P]`` of each bandit's pulls."""

_STREAM = 1_000_003
"""Added to the evaluation seed: contexts are those of no data set of a plain seed."""


def reference_choosers(task: TaskSpec, seed: int = 0) -> dict[str, Chooser]:
    """The classical rules that can judge recorded pulls of a bandit, by name."""
    arms = task.action.n
    sigma = float(task.env_kwargs.get("sigma", 0.3))

    def by_statistics(rule: Callable[[Any, Any], Any]) -> Chooser:
        def choose(pulls: Pulls, sizes: Sequence[int]) -> NDArray[np.int64]:
            counts, sums = offline.prefix_statistics(pulls.actions, pulls.rewards, arms, sizes)
            return np.asarray(rule(counts, sums))

        return choose

    def ridge(pulls: Pulls, sizes: Sequence[int]) -> NDArray[np.int64]:
        if pulls.features is None:
            raise SeqrlError("linucb needs a linear bandit", hint="use emp, lcb or thompson")
        return offline.offline_ridge(pulls.actions, pulls.rewards, pulls.features, sizes)

    linear = "Linear" in str(task.env_id)
    prior: dict[str, Any] = {"prior_mean": 0.0, "prior_var": 1.0} if linear else {}
    rng = np.random.default_rng(seed)
    return {
        "emp": by_statistics(offline.offline_mean),
        "lcb": by_statistics(offline.offline_lcb),
        "thompson": by_statistics(
            lambda c, s: offline.offline_thompson(c, s, rng, sigma=sigma, **prior)
        ),
        "linucb": ridge,
    }


def agent_chooser(agent: DPT) -> Chooser:
    """The most likely arm from each prefix, all prefixes in one pass."""

    agent.eval()

    @torch.inference_mode()
    def choose(pulls: Pulls, sizes: Sequence[int]) -> NDArray[np.int64]:
        longest = max(sizes)
        if longest > agent.config.context:
            raise SeqrlError(
                f"contexts of {longest} pulls, the agent takes {agent.config.context}",
                hint=f"--context-sizes up to {agent.config.context}",
            )
        out = []
        for first in range(0, len(pulls.actions), 100):
            part = slice(first, first + 100)
            logits = agent.prefix_predictions(_window(pulls, part, longest + 1))
            out.append(logits[:, list(sizes)].argmax(-1).cpu().numpy())
        return np.concatenate(out)

    return choose


def _window(pulls: Pulls, part: slice, steps: int) -> Batch:
    """The pulls as a batch whose last step is the query; its action is not looked at."""

    def padded(values: NDArray[Any]) -> torch.Tensor:
        kept = values[part, : steps - 1]
        return torch.from_numpy(np.concatenate([kept, np.zeros_like(kept[:, :1])], 1))

    seen = torch.from_numpy(pulls.observations[part]).unsqueeze(1)
    seen = seen.expand(-1, steps, *seen.shape[2:]).contiguous()
    rewards = padded(pulls.rewards)
    no = torch.zeros(rewards.shape, dtype=torch.bool)
    return Batch(
        observations=seen,
        actions=padded(pulls.actions),
        rewards=rewards,
        returns_to_go=torch.zeros_like(rewards),
        timesteps=torch.arange(steps).expand(len(rewards), -1),
        terminations=no,
        truncations=no,
        mask=torch.ones_like(no),
        task=torch.zeros(len(rewards), dtype=torch.int64),
        rows=torch.zeros(len(rewards), dtype=torch.int64),
        next_observations=seen,
        next_known=torch.ones_like(no),
    )


def suboptimality(
    task: TaskSpec,
    choosers: Mapping[str, Chooser],
    sizes: Sequence[int],
    tasks: int = 200,
    seed: int = 10_000,
    behaviour: str = "mixed",
) -> dict[str, list[dict[str, Any]]]:
    """Suboptimality of each policy at each context size, on the same bandits and pulls.

    Args:
        task: names the bandit environment and its settings.
        choosers: policies by name.
        sizes: numbers of pulls n, from 0.
        tasks: bandits M.
        seed: of the evaluation.
        behaviour: who pulled, see :func:`seqrl.envs.context_data.bandit_histories`.

    Returns:
        Per policy an entry a size: ``size`` and a :func:`seqrl.scores.summary` over the bandits.

    Raises:
        SeqrlError: an environment that is no bandit, or sizes out of their range.
    """
    from seqrl.envs import bandit

    kinds: dict[str, Any] = {
        "seqrl/Bandit-v0": bandit.VectorBandit,
        "seqrl/LinearBandit-v0": bandit.VectorLinearBandit,
    }
    if task.env_id not in kinds:
        raise SeqrlError(
            f"context sizes are for bandits, '{task.env_id}' is none",
            hint="rooms: --contexts URI",
        )
    chosen = sorted(set(sizes))
    if not chosen or chosen[0] < 0:
        raise SeqrlError(f"context sizes {list(sizes)} are not numbers from 0")
    settings = {**task.env_kwargs, "horizon": max(chosen[-1], 1)}
    pulls = recorded_pulls(
        kinds[task.env_id], tasks, seed + _STREAM, behaviour=behaviour, **settings
    )
    best = pulls.means.max(1, keepdims=True)
    found = {}
    for name, choose in choosers.items():
        gaps = best - np.take_along_axis(pulls.means, choose(pulls, chosen), 1)  # (M, P)
        found[name] = [
            {"size": n, **scores.summary(gaps[:, i], seed)} for i, n in enumerate(chosen)
        ]
    return found


def reference_choosers_named(names: Sequence[str], task: TaskSpec, seed: int) -> dict[str, Chooser]:
    """Those of the classical rules that are asked for.

    Raises:
        SeqrlError: a rule that cannot judge recorded pulls.
    """
    known = reference_choosers(task, seed)
    if unknown := [n for n in names if n not in known]:
        hint = did_you_mean(unknown[0], known, f"these can: {', '.join(known)}")
        raise SeqrlError(f"'{unknown[0]}' names no arm from recorded pulls", hint=hint)
    return {n: known[n] for n in names}


# --- rooms ---------------------------------------------------------------------------------------


def with_contexts(
    agent: DPT, uri: str, config: EvalConfig, task: int = 0
) -> tuple[EvalReport, dict[str, Any]]:
    """Play one episode in each room with recorded transitions of its task shown.

    Args:
        agent: shares its weights; acts as its options or the config say.
        uri: ``incontext:`` data of the tasks that are evaluated, in their order (``split=test``).
        config: ``episodes`` rooms are played, task after task.
        task: which of the agent's tasks.

    Returns:
        The report, and by whether the context shows a reward (``shown``, ``hidden``): how many
        episodes, their mean return, and what the environment's oracle makes of the same episodes.

    Raises:
        SeqrlError: data of another environment, or too few histories.
    """
    import seqrl
    from seqrl.evaluation import evaluate
    from seqrl.references import make_reference

    data = seqrl.load_dataset(uri)
    spec = agent.tasks[task]
    if data.episode_task is None or data.task.env_id != spec.env_id:
        raise SeqrlError(f"{uri} holds no contexts of '{spec.env_id}'")
    spec = dataclasses.replace(spec, env_kwargs=dict(data.task.env_kwargs))
    contexts = _contexts_in_turn(agent, data, config.episodes)
    agent.eval().set_acting(decode=config.decode, temperature=config.temperature)
    plain = dataclasses.replace(config, trial_episodes=1, targets=(), acting=None)
    plain = dataclasses.replace(plain, decode=None, temperature=None)
    policy = agent.given(contexts)
    report = evaluate(policy, env_kwargs=spec.env_kwargs, config=plain)
    best = evaluate(make_reference("oracle", spec), env_kwargs=spec.env_kwargs, config=plain)
    shown = (contexts.rewards > 0).any(1).cpu().numpy()
    groups = {}
    for name, chosen in (("shown", shown), ("hidden", ~shown)):
        mine = [e["return"] for e, c in zip(report.episodes, chosen, strict=True) if c]
        ideal = [e["return"] for e, c in zip(best.episodes, chosen, strict=True) if c]
        groups[name] = {
            "episodes": len(mine),
            "return": scores.summary(mine, config.seed) if mine else None,
            "oracle": float(np.mean(ideal)) if ideal else None,
        }
    return report, groups


def _contexts_in_turn(agent: DPT, data: Trajectories, count: int) -> Batch:
    """A context a trial: the histories of the tasks in turn, the first of all before the second."""
    from seqrl.datasets.context_windows import HistoryWindows

    spec = WindowSpec("history", agent.config.context, next_observation=True)
    windows = HistoryWindows(data, spec, 0)
    tasks = np.unique(windows.tasks)
    own = [np.flatnonzero(windows.tasks == t) for t in tasks]
    need = -(-count // len(tasks))
    if min(map(len, own)) < need:
        raise SeqrlError(
            f"{count} episodes over {len(tasks)} tasks need {need} histories of each, "
            f"{data.source} has {min(map(len, own))}",
            hint=f"histories={need} in the URI, or fewer --episodes",
        )
    chosen = np.array([own[i % len(tasks)][i // len(tasks)] for i in range(count)])
    last = windows.begins[chosen + 1] - 1
    return windows((last + 0.5) / windows.offsets[-1], lambda k: np.zeros((count, k)))
