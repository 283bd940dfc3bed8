"""Helpers behind the constructors of :class:`Trajectories`: flags, flattening, joining, hashing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl import spaces as sp
from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories

_HASHED_BYTES = 256 * 2**20


def end_flags(
    n: int, terminations: Any, truncations: Any | None, source: str
) -> tuple[np.ndarray, np.ndarray]:
    """Terminations and truncations ``[n]`` bool, never both, one of them set on the last step.

    Raises:
        SeqrlError: no steps, or flags of another length.
    """
    if n == 0:
        raise SeqrlError(f"{source} holds no steps", hint="check the file or the arrays given")
    term = np.asarray(terminations).reshape(-1).astype(bool)
    trunc = np.zeros(n, dtype=bool)
    if truncations is not None:
        trunc = np.asarray(truncations).reshape(-1).astype(bool)
    if len(term) != n or len(trunc) != n:
        raise SeqrlError(
            f"{source}: {n} rewards but {len(term)} terminations, {len(trunc)} truncations",
            hint="all per-step arrays need one entry a step",
        )
    trunc = trunc & ~term
    trunc[-1] = not term[-1]
    return term, trunc


def final_rows(
    obs: np.ndarray, starts: np.ndarray, space: Any, given: Any | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Final observations ``[E, ...]``, and which are known where the last had to be repeated."""
    if given is not None:
        return sp.flatten_observations(space, given), None
    if len(obs) != starts[-1]:  # a wrong length is reported by the validation
        return obs[:0], None
    return np.array(obs[starts[1:] - 1]), np.zeros(len(starts) - 1, dtype=bool)


def flat_arrays(episodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A list of episodes as the arguments of ``Trajectories.from_arrays``.

    Raises:
        SeqrlError: no episodes, or one whose arrays do not fit together.
    """
    rows: dict[str, list[Any]] = {}
    for i, ep in enumerate(episodes):
        o, r = np.asarray(ep["observations"]), np.asarray(ep["rewards"]).reshape(-1)
        t = len(r)
        if t == 0 or len(o) not in (t, t + 1) or len(ep["actions"]) != t:
            raise SeqrlError(
                f"episode {i}: {len(o)} observations, {len(ep['actions'])} actions, {t} rewards",
                hint="an episode of T steps has T actions, T rewards, T or T+1 observations",
            )
        ended = bool(ep.get("terminated", False))
        last = np.arange(1, t + 1) == t
        for name, value in (
            ("observations", o[:t]),
            ("actions", np.asarray(ep["actions"])),
            ("rewards", r),
            ("terminations", last & ended),
            ("truncations", last & (not ended)),
            ("final_observations", o[-1:]),
        ):
            rows.setdefault(name, []).append(value)
    if not rows:
        raise SeqrlError("no episodes given", hint="pass at least one episode")
    return {name: np.concatenate(values) for name, values in rows.items()}


def joined_fields(parts: Sequence[Trajectories]) -> dict[str, Any]:
    """The fields of several sets with equal spaces as one; selections are applied where they can.

    A filtered set whose state statistics span more than its selection keeps all its episodes.
    """
    parts = [p if p.stats_selection is not None else p.compact() for p in parts]
    offsets = np.cumsum([0] + [p.columns_steps for p in parts])
    before = np.cumsum([0] + [len(p.episode_starts) - 1 for p in parts])
    starts = [p.episode_starts[:-1] + o for p, o in zip(parts, offsets, strict=False)]
    extras = set.intersection(*(set(p.extras) for p in parts))

    def cat(name: str) -> np.ndarray | None:
        values = [getattr(p, name) for p in parts]
        return None if any(v is None for v in values) else np.concatenate(values)

    def numbers(name: str) -> np.ndarray | None:
        if all(getattr(p, name) is None for p in parts):
            return None
        ids = [p.episode_ids if getattr(p, name) is None else getattr(p, name) for p in parts]
        return np.concatenate([i + b for i, b in zip(ids, before, strict=False)])

    columns = ("observations", "actions", "rewards", "terminations", "truncations", "rtg")
    per_episode = ("final_observations", "episode_task", "episode_order", "episode_seeds")
    known = [
        np.ones(len(p.episode_starts) - 1, dtype=bool) if p.final_known is None else p.final_known
        for p in parts
    ]
    return {
        **{name: cat(name) for name in (*columns, *per_episode)},
        "episode_starts": np.concatenate([*starts, offsets[-1:]]),
        "extras": {k: np.concatenate([p.extras[k] for p in parts]) for k in sorted(extras)},
        "final_known": np.concatenate(known),
        "selection": numbers("selection"),
        "stats_selection": numbers("stats_selection"),
        "source": " + ".join(p.source for p in parts),
        "notes": parts[0]._notes_of_new_columns(),
    }


def hash_arrays(arrays: Mapping[str, np.ndarray], prefix: str = "") -> str:
    """Hash of names, types, shapes and bytes; very large arrays by an even sample of their rows."""
    digest = hashlib.blake2b(prefix.encode(), digest_size=16)
    for name, array in arrays.items():
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        if array.nbytes > _HASHED_BYTES:
            array = array[:: -(-array.nbytes // _HASHED_BYTES)]
        digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()
