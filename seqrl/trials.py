"""What a policy made of its trials: return by episode, regret by step.

Only for policies whose memory lasts for a trial of several episodes, and for environments whose
infos tell the regret of a step. Plain JSON data throughout; nothing here runs a policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl import scores
from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.rollout import EpisodeRecord

_POINTS = 50
"""Most points of a regret curve."""


def trial_summary(
    label: str, records: Sequence[EpisodeRecord], per_trial: int, seed: int
) -> dict[str, Any]:
    """How the trials of one target went.

    Args:
        label: of the target.
        records: its episodes in order, trial by trial.
        per_trial: episodes of a trial.
        seed: of the resampling.

    Returns:
        ``returns``: of the first, second, ... episode of a trial, over all trials;
        ``best``/``last``: the largest return of a trial, and its last one's;
        ``regret``: None where no info told it, else ``total`` of a trial and the curve ``steps``,
        ``cumulative`` and its standard error ``stderr``, over the trials (of equal length; None of
        others).
    """
    returns = np.array([r.episode_return for r in records]).reshape(-1, per_trial)
    out: dict[str, Any] = {
        "target_label": label,
        "trials": len(returns),
        "episodes": per_trial,
        "returns": [scores.summary(column.tolist(), seed) for column in returns.T],
        "best": scores.summary(returns.max(axis=1).tolist(), seed),
        "last": scores.summary(returns[:, -1].tolist(), seed),
        "regret": None,
    }
    lines = [r.regrets for r in records if r.regrets is not None]
    if len(lines) != len(records):
        return out
    trials = [np.concatenate(lines[i : i + per_trial]) for i in range(0, len(lines), per_trial)]
    out["regret"] = {"total": scores.summary([float(t.sum()) for t in trials], seed)}
    out["regret"] |= {"steps": None, "cumulative": None, "stderr": None}
    if len({len(t) for t in trials}) == 1:
        curves = np.cumsum(np.stack(trials), axis=1)  # (trials, steps)
        length = curves.shape[1]
        steps = np.unique(np.linspace(1, length, min(_POINTS, length)).round().astype(int))
        spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(length)
        out["regret"] |= {
            "steps": steps.tolist(),
            "cumulative": curves.mean(axis=0)[steps - 1].tolist(),
            "stderr": (spread[steps - 1] / np.sqrt(len(curves))).tolist(),
        }
    return out


def trial_lines(trials: Sequence[Mapping[str, Any]], columns: int = 6) -> list[str]:
    """The same for people, a few lines a target: returns by episode, regrets by step."""
    lines = []
    for t in trials:
        name = "" if t["target_label"] == "-" else f" at target {t['target_label']}"
        places = _places(t["episodes"], columns)
        if t["episodes"] > 1:
            cells = [f"{i + 1}: {t['returns'][i]['mean']:.3g}" for i in places]
            lines.append(f"{t['trials']} trials{name}, return by episode: {'  '.join(cells)}")
            best, last = t["best"]["mean"], t["last"]["mean"]
            lines.append(f"  largest of a trial {best:.3g}, its last {last:.3g}")
        if (regret := t["regret"]) is not None:
            total = regret["total"]
            ci = f"[{total['ci'][0]:.3g}, {total['ci'][1]:.3g}]"
            text = f"regret of a trial{name} {total['mean']:.3g} {ci}"
            if regret["steps"]:
                chosen = _places(len(regret["steps"]), 5)
                cells = [f"{regret['steps'][k]}: {regret['cumulative'][k]:.3g}" for k in chosen]
                text += f"; by step {'  '.join(cells)}"
            lines.append(text)
    return lines


def _places(count: int, most: int) -> list[int]:
    """At most so many numbers from 0 to ``count - 1``, both ends included."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by colour-blind readers, too; the policy itself is the first."""


def figure_class() -> Any:
    """Matplotlib's figure.

    Raises:
        SeqrlError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SeqrlError(
            "plots need matplotlib, which is not installed", hint='pip install "seqrl[plot]"'
        ) from None
    return Figure


def plot_trials(found: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> Path:
    """Draw regret by step and return by episode of several policies to a file.

    Args:
        found: name of a policy to its trials (of each target), the first in front.
        path: where to; the suffix decides the format.

    Raises:
        SeqrlError: matplotlib is missing, nothing to draw, or the file cannot be written.
    """
    lines = [
        (name if t["target_label"] == "-" else f"{name}, target {t['target_label']}", t)
        for name, trials in found.items()
        for t in trials
    ]
    panels = {
        "cumulative regret": [(n, t) for n, t in lines if t["regret"] and t["regret"]["steps"]],
        "return": [(n, t) for n, t in lines if t["episodes"] > 1],
    }
    panels = {label: rows for label, rows in panels.items() if rows}
    if not panels:
        raise SeqrlError("no trial of several episodes and no regret to draw")
    figure = figure_class()(figsize=(6.5 * len(panels), 4.5), layout="constrained")
    for axis, (label, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for i, (name, t) in enumerate(rows):
            colour = _COLOURS[i % len(_COLOURS)]
            if label == "return":
                x = np.arange(1, t["episodes"] + 1)
                y = np.array([r["mean"] for r in t["returns"]])
                low, high = np.array([r["ci"] for r in t["returns"]]).T
            else:
                x, y = np.array(t["regret"]["steps"]), np.array(t["regret"]["cumulative"])
                spread = scores.Z95 * np.array(t["regret"]["stderr"])
                low, high = y - spread, y + spread
            axis.plot(x, y, color=colour, label=name, lw=2.2 if i == 0 else 1.4)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        axis.set_xlabel("episode of the trial" if label == "return" else "step of the trial")
        axis.set_ylabel(f"{label}, mean and 95 % interval")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise SeqrlError(f"{path} cannot be written: {error}") from error
    return path
