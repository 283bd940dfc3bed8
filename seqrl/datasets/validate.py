"""Checks on a dataset's columns: one clear error naming source, field and first bad index.

The checks run on every load, so the good case is made of a few passes over whole columns (a sum
finds a NaN, one minimum and one maximum find an action out of bounds); where something is wrong is
worked out only then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories

_RELATIVE_TOLERANCE = 1e-4
"""Of an action's range: float32 rounding and simulators' own clipping stay below it."""


def check_columns(data: Trajectories) -> None:
    """Raise SeqrlError for the first thing wrong with the columns of ``data``.

    Raises:
        SeqrlError: no steps; columns of different lengths; a dtype or shape other than the spec's;
            episodes that do not cover the steps or do not end in exactly one flag; NaN or inf; an
            action outside its space.
    """
    if len(data.rewards) == 0 or len(data.episode_starts) < 2:
        raise SeqrlError(f"{data.source} holds no steps", hint="check the file or the arrays given")
    _check_lengths(data)
    _check_types(data)
    _check_starts(data)
    _check_ends(data)
    for name, column in _float_columns(data):
        _check_finite(data, name, column)
    _check_actions(data)


def _step_columns(data: Trajectories) -> dict[str, np.ndarray]:
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    columns = {k: getattr(data, k) for k in names}
    columns |= {f"extras[{k!r}]": v for k, v in data.extras.items()}
    return columns if data.rtg is None else {**columns, "rtg": data.rtg}


def _check_lengths(data: Trajectories) -> None:
    n, episodes = len(data.rewards), len(data.episode_starts) - 1
    for name, column in _step_columns(data).items():
        if len(column) != n:
            raise SeqrlError(
                f"{data.source}: {name} has {len(column)} steps, rewards has {n} "
                f"(first step without a partner: {min(len(column), n)})",
                hint="all per-step arrays need one entry a step",
            )
    names = ("final_observations", "episode_task", "episode_order", "episode_seeds", "final_known")
    for name in names:
        value = getattr(data, name)
        if value is not None and len(value) != episodes:
            raise SeqrlError(
                f"{data.source}: {name} has {len(value)} entries, there are {episodes} episodes",
                hint="per-episode arrays need one entry an episode",
            )


def _check_types(data: Trajectories) -> None:
    obs, act = data.task.observation, data.task.action
    obs_type = np.dtype(np.uint8 if obs.kind == "image" else np.float32)
    act_type = np.dtype(np.float32 if act.kind == "continuous" else np.int64)
    flag = np.dtype(bool)
    expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "observations": (obs_type, obs.shape),
        "final_observations": (obs_type, obs.shape),
        "actions": (act_type, act.shape),
        "rewards": (np.dtype(np.float32), ()),
        "terminations": (flag, ()),
        "truncations": (flag, ()),
    }
    for name, (dtype, shape) in expected.items():
        column = getattr(data, name)
        if column.dtype != dtype:
            raise SeqrlError(
                f"{data.source}: {name} is {column.dtype}, must be {dtype}",
                hint=f"cast the column with .astype({str(dtype)!r})",
            )
        if column.shape[1:] != shape:
            spec = obs.describe() if "observations" in name else act.describe()
            raise SeqrlError(
                f"{data.source}: an entry of {name} has shape {column.shape[1:]}, "
                f"must be {shape}" + (f" for {spec}" if shape else ""),
                hint="check the array against the space",
            )


def _check_starts(data: Trajectories) -> None:
    starts, n = data.episode_starts, len(data.rewards)
    if starts[0] != 0 or starts[-1] != n:
        raise SeqrlError(
            f"{data.source}: episode_starts goes from {starts[0]} to {starts[-1]}, "
            f"must go from 0 to the number of steps, {n}",
            hint="give one offset an episode and the number of steps at the end",
        )
    if not (starts[1:] > starts[:-1]).all():
        i = int(np.argmax(starts[1:] <= starts[:-1])) + 1
        raise SeqrlError(
            f"{data.source}: episode_starts[{i}] is {starts[i]}, not above the one before "
            f"({starts[i - 1]})",
            hint="offsets increase; an episode has at least one step",
        )


def _check_ends(data: Trajectories) -> None:
    ended = np.logical_or(data.terminations, data.truncations)
    last = data.episode_starts[1:] - 1
    if not ended[last].all():
        e = int(np.argmin(ended[last]))
        raise SeqrlError(
            f"{data.source}: no episode end: terminations[{last[e]}] and truncations[{last[e]}] "
            f"are both False at the last step of episode {e}",
            hint="set truncations there if the episode was cut, terminations if it ended",
        )
    if np.count_nonzero(ended) != len(last):
        ended[last] = False
        i = int(np.argmax(ended))
        field = "terminations" if data.terminations[i] else "truncations"
        raise SeqrlError(
            f"{data.source}: {field}[{i}] is True inside an episode{_place(data, i)}",
            hint="split the episode there, or clear the flag",
        )


def _float_columns(data: Trajectories) -> list[tuple[str, np.ndarray]]:
    columns = {**_step_columns(data), "final_observations": data.final_observations}
    return [(k, v) for k, v in columns.items() if v.dtype.kind == "f"]


def _check_finite(data: Trajectories, name: str, column: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(column.sum()):  # finite values may overflow the sum: look closer then
            return
    i = _first_bad_row(column)
    if i is None:
        return
    value = column[i].reshape(-1)
    j = int(np.argmin(np.isfinite(value)))
    index = f"[{i}, {j}]" if column.ndim > 1 else f"[{i}]"
    per_step = name != "final_observations"
    raise SeqrlError(
        f"{data.source}: {name}{index} is {value[j]}"
        + (_place(data, i) if per_step else f" (episode {i})"),
        hint="drop that episode or repair the value, then load again",
    )


def _first_bad_row(column: np.ndarray, rows: int = 65_536) -> int | None:
    """Index of the first row with a NaN or inf, looked for in blocks to bound the memory."""
    for a in range(0, len(column), rows):
        block = np.isfinite(column[a : a + rows])
        if not block.all():
            return a + int(np.argmin(block.reshape(len(block), -1).all(axis=1)))
    return None


def _check_actions(data: Trajectories) -> None:
    spec, actions = data.task.action, data.actions
    if spec.kind == "continuous":
        low, high = np.array(spec.low), np.array(spec.high)
        with np.errstate(invalid="ignore"):
            slack = _RELATIVE_TOLERANCE * (high - low)
        one_sided = _RELATIVE_TOLERANCE * np.maximum(1, np.maximum(np.abs(low), np.abs(high)))
        slack = np.where(np.isfinite(slack), slack, np.where(np.isfinite(one_sided), one_sided, 0))
        low, high, hint = (
            low - slack,
            high + slack,
            "clip them (--clip-actions), or give the data a wider space",
        )
    else:
        low, high = np.zeros(len(spec.nvec)), np.array(spec.nvec) - 1.0
        hint = "actions count from 0: give the space of the data, with its start"
    if actions.min() >= low.max() and actions.max() <= high.min():
        return
    flat = actions.reshape(len(actions), -1)
    bad = ((flat < low) | (flat > high)).any(axis=1)
    if not bad.any():
        return
    i = int(np.argmax(bad))
    j = int(np.argmax((flat[i] < low) | (flat[i] > high)))
    index = f"[{i}, {j}]" if actions.ndim > 1 else f"[{i}]"
    raise SeqrlError(
        f"{data.source}: actions{index} is {flat[i, j]:.6g}, outside {spec.describe()} "
        f"{_range_text(data, j)}{_place(data, i)}; {int(bad.sum())} steps are like this",
        hint=hint,
    )


def _range_text(data: Trajectories, j: int) -> str:
    spec = data.task.action
    if spec.kind == "continuous":
        return f"[{spec.low[j]:.6g}, {spec.high[j]:.6g}]"
    return f"[0, {spec.nvec[j] - 1}]"


def _place(data: Trajectories, i: int) -> str:
    """``(episode e, step t)`` of flat index i."""
    e = int(np.searchsorted(data.episode_starts, i, side="right")) - 1
    return f" (episode {e}, step {i - int(data.episode_starts[e])})"
