"""Pictures of a dataset (extra ``plot``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Episode, Trajectories

_COLOURS = ("#0072B2", "#D55E00", "#009E73")
"""Worst, median and best episode (told apart by colour-blind readers too)."""
_CURVES = 3
"""Dimensions of observations and actions drawn."""


def plot_dataset(data: Trajectories, path: str | Path) -> Path:
    """Draw return and length histograms and three trajectories (worst, median, best) to a file.

    Args:
        path: where to; the suffix decides the format (``.png``, ``.svg``, ``.pdf``).

    Raises:
        SeqrlError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SeqrlError(
            "plots need matplotlib, which is not installed", hint='pip install "seqrl[plot]"'
        ) from None
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{data.task.name}: {len(data):,} episodes, {data.num_steps:,} steps")
    axes = figure.subplots(3, 3)
    chosen = _examples(data)
    _histogram(axes[0, 0], data.returns, "episode return", chosen)
    _histogram(axes[0, 1], data.lengths, "episode length (steps)", chosen)
    _draw_returns(axes[0, 2], data, chosen)
    for j, (name, i) in enumerate(chosen):
        episode = data[i]
        title = f"{name}: episode {int(data.episode_ids[i])}, return {data.returns[i]:.4g}"
        axes[1, j].set_title(title, color=_COLOURS[j])
        _draw_observations(axes[1, j], episode)
        _draw_actions(axes[2, j], data, episode)
    for row in axes[1:]:
        if row[-1].get_legend_handles_labels()[0]:
            row[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise SeqrlError(f"plot {path} cannot be written: {error}") from None
    return path


def _examples(data: Trajectories) -> list[tuple[str, int]]:
    """Name and number of the worst, the median and the best episode by return."""
    order = np.argsort(data.returns, kind="stable")
    picks = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    return [(name, int(i)) for name, i in picks.items()]


def _histogram(axis: Any, values: np.ndarray, label: str, chosen: list[tuple[str, int]]) -> None:
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = np.linspace(low, high, 41)
    if values.dtype.kind in "iu" and high - low < 40:
        bins = np.arange(low - 0.5, high + 1.0)  # one bar a length
    axis.hist(values, bins=bins, color="#999999")
    for colour, (_, i) in zip(_COLOURS, chosen, strict=True):
        axis.axvline(float(values[i]), color=colour, linestyle="--", linewidth=1.2)
    axis.set_xlabel(label)
    axis.set_ylabel("episodes")


def _draw_returns(axis: Any, data: Trajectories, chosen: list[tuple[str, int]]) -> None:
    for colour, (name, i) in zip(_COLOURS, chosen, strict=True):
        curve = data[i].returns_to_go
        axis.plot(curve, color=colour, label=name, marker="." if len(curve) < 3 else None)
    axis.set_xlabel("step")
    axis.set_ylabel("return to go")
    axis.legend(fontsize="small")


def _draw_observations(axis: Any, episode: Episode) -> None:
    obs = episode.observations
    if obs.ndim == 4:
        frames = np.linspace(0, len(obs) - 1, min(4, len(obs))).astype(int)
        strip = np.concatenate([obs[i] for i in frames], axis=1)
        axis.imshow(strip if strip.shape[-1] in (3, 4) else strip[..., 0], aspect="equal")
        axis.set_xlabel(f"observations at steps {', '.join(map(str, frames))}")
        axis.set_xticks([])
        axis.set_yticks([])
        return
    for j in range(min(_CURVES, obs.shape[1])):
        axis.plot(obs[:, j], label=f"obs {j}", linewidth=0.9)
    axis.set_ylabel(f"observation (of {obs.shape[1]})")
    axis.set_xlabel("step")


def _draw_actions(axis: Any, data: Trajectories, episode: Episode) -> None:
    actions = episode.actions.reshape(len(episode), -1)
    discrete = data.task.action.kind != "continuous"
    for j in range(min(_CURVES, actions.shape[1])):
        style = {"linestyle": "none", "marker": "."} if discrete else {"linewidth": 0.9}
        axis.plot(actions[:, j], label=f"action {j}", **style)
    if discrete:
        axis.set_ylim(-0.5, max(data.task.action.nvec) - 0.5)
        axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel(f"action, {data.task.action.describe()}")
    axis.set_xlabel("step")
