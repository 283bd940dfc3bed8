"""Trajectories taken apart into named arrays plus JSON, and put together again.

Every format of our own (cache folders, ``.npz``, the seqrl part of a D4RL file) stores the same two
things: the arrays of :func:`columns_of` and the facts of :func:`meta_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl import spaces as sp
from seqrl.errors import SeqrlError
from seqrl.spec import ActionSpec, TaskSpec, to_plain

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories

SCHEMA = 1
"""Version of the arrays and facts written; readers refuse a newer one."""

STEP = ("observations", "actions", "rewards", "terminations", "truncations")
EPISODE = ("episode_task", "episode_order", "episode_seeds", "final_known")
"""Optional arrays with one entry an episode."""

Allocate = Callable[[str, tuple[int, ...], Any], np.ndarray]
"""``allocate(column, shape, dtype)``: where a reader puts a large column (memory or a file)."""


def in_memory(column: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The default place of a column: fresh memory."""
    return np.empty(shape, dtype)


def columns_of(data: Trajectories) -> dict[str, np.ndarray]:
    """The arrays of a set without selection, by field name; extras as ``extra/NAME``."""
    names = (*STEP, "final_observations", "episode_starts", *EPISODE)
    columns = {k: getattr(data, k) for k in names if getattr(data, k) is not None}
    return columns | {f"extra/{k}": v for k, v in data.extras.items()}


def meta_of(data: Trajectories) -> dict[str, Any]:
    """What the arrays do not say, as plain JSON data."""
    return {
        "schema": SCHEMA,
        "task": data.task.to_json(),
        "observation_space": sp.space_to_json(data.observation_space),
        "action_space": sp.space_to_json(data.action_space),
        "source": data.source,
        "notes": to_plain(data.notes),
    }


def from_columns(
    columns: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, source: str, **fields: Any
) -> Trajectories:
    """Trajectories from arrays named as by :func:`columns_of` and facts of :func:`meta_of`.

    Args:
        columns: the arrays, already in stored form (flattened observations and actions).
        meta: the facts.
        source: named in error messages; the original source stays in ``notes["made_from"]``.
        fields: further fields of :class:`Trajectories` (``rtg``, ``validated``).

    Raises:
        SeqrlError: written by a newer seqrl, an array missing, or contents that do not validate.
    """
    from seqrl.datasets.trajectories import Trajectories

    check_schema(meta, source)
    missing = [k for k in (*STEP, "final_observations", "episode_starts") if k not in columns]
    if missing:
        raise SeqrlError(
            f"{source} lacks {', '.join(missing)}", hint="write or convert the data again"
        )
    arrays = {k: v for k, v in columns.items() if not k.startswith("extra/")}
    extras = {k.removeprefix("extra/"): v for k, v in columns.items() if k.startswith("extra/")}
    return Trajectories(
        **arrays,  # type: ignore[arg-type]
        task=TaskSpec.from_json(meta["task"]),
        observation_space=sp.space_from_json(meta["observation_space"]),
        action_space=sp.space_from_json(meta["action_space"]),
        extras=extras,
        source=source,
        notes=dict(meta.get("notes") or {}),
        **fields,
    )


def check_schema(meta: Mapping[str, Any], source: str) -> None:
    """Refuse facts that are not ours or come from a newer version.

    Raises:
        SeqrlError: naming the version found.
    """
    schema = meta.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise SeqrlError(
            f"{source} was written with data schema {schema}, this seqrl reads up to {SCHEMA}",
            hint="upgrade seqrl, or write the data again",
        )


def clip_actions(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Continuous actions clipped to their bounds (in place where the array can be written)."""
    if spec.kind != "continuous":
        return actions
    out = actions if actions.flags.writeable else None
    low, high = (np.array(bound, np.float32) for bound in (spec.low, spec.high))
    clipped: np.ndarray = np.clip(actions, low, high, out=out)
    return clipped


def existing_file(name: str, scheme: str) -> Path:
    """The path a URI names.

    Raises:
        SeqrlError: it is missing or a folder; names files of the same kind beside it.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise SeqrlError(f"{scheme}:{name} is a folder", hint="name the file inside it")
    from seqrl.errors import nearest

    beside = [p.name for p in path.parent.glob("*") if p.is_file()] if path.parent.is_dir() else []
    close = nearest(path.name, beside)
    raise SeqrlError(
        f"file '{name}' does not exist",
        hint=f"close in {path.parent}: {', '.join(close)}" if close else "check the path",
    )
