"""What a dataset holds, as plain numbers and as a short text for the terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl.spec import to_plain

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories

_QUANTILES = {"min": 0.0, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "max": 1.0}
_BLOCK = 65_536
_WIDTH = 100
_HIDDEN_NOTES = ("fingerprint_of_columns", "published_targets")


def inspect(data: Trajectories) -> dict[str, Any]:
    """Facts about the episodes in use, JSON-able.

    >>> from seqrl.datasets import load_dataset
    >>> inspect(load_dataset("tmaze-smoke"))["episodes"]
    64
    """
    task, returns = data.task, data.returns
    last = data.starts + data.lengths - 1
    terminated = int(np.count_nonzero(data.terminations[last]))
    scores = task.reference_scores
    facts = {
        "name": task.name,
        "source": data.source,
        "episodes": len(data),
        "steps": data.num_steps,
        "bytes": data.nbytes,
        "fingerprint": data.fingerprint,
        "env": {
            "id": task.env_id,
            "kwargs": task.env_kwargs,
            "max_episode_steps": task.max_episode_steps,
        },
        "observation": _observations(data),
        "action": _actions(data),
        "length": _quantiles(data.lengths),
        "ended": {
            "terminated": terminated,
            "truncated": len(data) - terminated,
            "one_step": int(np.count_nonzero(data.lengths == 1)),
            "final_observation_unknown": _unknown_finals(data),
        },
        "return": {**_quantiles(returns), "mean": returns.mean(), "std": returns.std()},
        "reward": _reward_range(data),
        "reference": None
        if scores is None
        else {
            "random": scores[0],
            "expert": scores[1],
            "source": task.reference_source,
            "normalised_mean": 100 * (returns.mean() - scores[0]) / (scores[1] - scores[0]),
        },
        "targets": suggest_targets(data),
        "published_targets": data.notes.get("published_targets", []),
        "extras": {k: [str(v.dtype), *v.shape[1:]] for k, v in data.extras.items()},
        "seeds_known": data.episode_seeds is not None,
        "notes": {k: v for k, v in data.notes.items() if k not in _HIDDEN_NOTES},
    }
    plain: dict[str, Any] = to_plain(facts)
    return plain


def suggest_targets(data: Trajectories) -> list[float]:
    """Target returns worth asking for: median, 90 % quantile and best of the episodes' returns."""
    wanted = np.quantile(data.returns, [0.5, 0.9, 1.0])
    return [float(t) for t in dict.fromkeys(float(f"{t:.4g}") for t in wanted)]


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return dict(
        zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values())).tolist(), strict=True)
    )


def _unknown_finals(data: Trajectories) -> int:
    if data.final_known is None:
        return 0
    return int(np.count_nonzero(~data.final_known[data.episode_ids]))


def _spans(data: Trajectories) -> list[tuple[int, int]]:
    """Ranges of steps in use, none longer than a block, for passes of bounded memory."""
    if data.selection is None:
        n = data.columns_steps
        return [(a, min(a + _BLOCK, n)) for a in range(0, n, _BLOCK)]
    return [(int(a), int(a + n)) for a, n in zip(data.starts, data.lengths, strict=True)]


def _range(data: Trajectories, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value per dimension over the steps in use."""
    lows, highs = [], []
    for a, b in _spans(data):
        block = column[a:b].reshape(b - a, -1)
        lows.append(block.min(axis=0))
        highs.append(block.max(axis=0))
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _observations(data: Trajectories) -> dict[str, Any]:
    spec = data.task.observation
    low, high = _range(data, data.observations)
    return {
        "space": spec.describe(),
        "dtype": str(data.observations.dtype),
        "keys": list(spec.keys),
        "low": low.min(),
        "high": high.max(),
    }


def _actions(data: Trajectories) -> dict[str, Any]:
    spec = data.task.action
    facts: dict[str, Any] = {"space": spec.describe(), "dtype": str(data.actions.dtype)}
    if spec.kind == "discrete":
        facts["counts"] = list(data.stats.action_counts)
        return facts
    low, high = _range(data, data.actions)
    return facts | {"low": low, "high": high, "bounds": [spec.low, spec.high]}


def _reward_range(data: Trajectories) -> dict[str, float]:
    low, high = _range(data, data.rewards)
    return {"min": float(low[0]), "max": float(high[0])}


# --- text -------------------------------------------------------------------------------------


def format_report(facts: dict[str, Any]) -> str:
    """The facts of :func:`inspect` as a few lines of at most 100 columns."""
    env = facts["env"]
    kwargs = ", ".join(f"{k}={v}" for k, v in env["kwargs"].items())
    where = f"env {env['id'] or 'unknown'}" + (f" ({kwargs})" if kwargs else "")
    ended, reward = facts["ended"], facts["reward"]
    obs, published = facts["observation"], facts["published_targets"]
    lines = [
        f"{facts['name']}   {_count(facts['episodes'])} episodes · {_count(facts['steps'])} steps"
        f" · {facts['bytes'] / 1e6:.1f} MB · {where}",
        f"obs     {obs['space']} {obs['dtype']}  [{obs['low']:.4g}, {obs['high']:.4g}]"
        + (f"  keys {', '.join(obs['keys'])}" if obs["keys"] else ""),
        f"action  {_action_text(facts['action'])}",
        f"length  {_stats_text(facts['length'], ('min', 'p50', 'max'), 0)}   "
        f"ended  terminated {_count(ended['terminated'])}  truncated {_count(ended['truncated'])}",
        f"return  {_stats_text(facts['return'], ('min', 'p50', 'p90', 'max', 'mean'), 2)}   "
        f"reward  [{reward['min']:.4g}, {reward['max']:.4g}]",
        f"targets suggested: {_numbers(facts['targets'])}"
        + (f"   published evaluations ask for {_numbers(published)}" if published else ""),
    ]
    if ref := facts["reference"]:
        lines.append(
            f"scores  random {ref['random']:.2f}, expert {ref['expert']:.2f} ({ref['source']})"
            f"   mean return {ref['normalised_mean']:.1f} of 100"
        )
    if facts["extras"]:
        lines.append(f"extras  {', '.join(facts['extras'])}")
    lines += [f"note    {k}: {_note(v)}" for k, v in facts["notes"].items()]
    lines.append(_checks_text(ended))
    return "\n".join(textwrap.fill(line, _WIDTH, subsequent_indent=" " * 8) for line in lines)


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def _count(n: float) -> str:
    return f"{n:,.0f}".replace(",", " ")


def _stats_text(values: dict[str, float], names: tuple[str, ...], digits: int) -> str:
    labels = {"p50": "median"} if digits == 0 else {}
    return "  ".join(f"{labels.get(k, k)} {values[k]:.{digits}f}" for k in names)


def _action_text(action: dict[str, Any]) -> str:
    if "counts" in action:
        total = max(1, sum(action["counts"]))
        shares = [f"{100 * c / total:.0f}%" for c in action["counts"][:12]]
        more = f" … ({len(action['counts'])} choices)" if len(action["counts"]) > 12 else ""
        return f"{action['space']}  counts {' '.join(shares)}{more}"
    ranges = [f"[{lo:.3g}, {hi:.3g}]" for lo, hi in zip(action["low"], action["high"], strict=True)]
    more = f" … ({len(ranges)} dimensions)" if len(ranges) > 4 else ""
    return f"{action['space']} {action['dtype']}  {' '.join(ranges[:4])}{more}"


def _note(value: Any) -> str:
    return f"{len(value)} sources" if isinstance(value, list) else str(value)


def _checks_text(ended: dict[str, int]) -> str:
    """What validation on load has already made sure of, and what deserves a look."""
    doubts = []
    if ended["one_step"]:
        doubts.append(f"{_count(ended['one_step'])} one-step episodes")
    if ended["final_observation_unknown"]:
        doubts.append(f"{_count(ended['final_observation_unknown'])} final observations unknown")
    sure = "no NaN, every episode ends, actions in range"
    return f"checks  ok: {sure}" + (f"   look at: {'; '.join(doubts)}" if doubts else "")
