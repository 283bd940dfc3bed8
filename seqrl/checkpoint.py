"""Checkpoints: written so that a crash leaves the last one whole, read without running code.

A checkpoint is a folder ``step_0010000`` of four files::

    weights.safetensors   the policy's weights (the averaged ones where weights are averaged)
    policy.json           agent, config, tasks, data statistics, acting: all else a policy needs
    optimizer.pt          optimiser state, read with ``weights_only=True``; only for resuming
    trainer.json          step, best score, running means; only for resuming

It is written under a temporary name, synced and renamed; then the links ``last`` and ``best`` are
replaced, then old checkpoints removed. Loading a policy reads the first two files alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import seqrl
from seqrl.agents import registry
from seqrl.errors import SeqrlError
from seqrl.runfolder import (
    Upgrade,
    open_run,
    read_json,
    step_name,
    sync_folder,
    upgraded,
    write_json,
)
from seqrl.spec import DataStats, TaskSpec, to_plain

if TYPE_CHECKING:
    from seqrl.agents.agent import Agent

POLICY_SCHEMA = 1
POLICY_UPGRADES: list[Upgrade] = []
"""Entry i turns policy schema i+1 into i+2."""
TRAINER_SCHEMA = 1

_STEP = re.compile(r"step_(\d{7,})")
_REMEDY = "use another checkpoint (--checkpoint best, or a step_ folder), or train anew"


# --- what a policy needs -----------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyMeta:
    """Contents of ``policy.json``: all that a policy needs besides its weights."""

    agent: str
    """Registered name, or ``module:Class``."""
    config: dict[str, Any]
    tasks: tuple[TaskSpec, ...]
    stats: tuple[DataStats, ...]
    acting: dict[str, Any]
    """``rule``, ``decode`` and ``temperature``."""
    step: int
    """Updates behind these weights."""
    targets: tuple[Any, ...] = ()
    """Suggested target returns: numbers, or names of quantiles of the training returns."""
    data: tuple[dict[str, Any], ...] = ()
    """``source`` and ``fingerprint`` of the data of each task."""
    window_length: int | None = None
    """Time steps of a training window; None where windows are whole episodes."""
    extra_state: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Entries of the module's state that are no tensors."""
    seqrl_version: str = seqrl.__version__
    notes: tuple[str, ...] = ()
    """Lines to show the user, such as an upgrade of an old file. Not saved."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data that :meth:`from_json` turns back into equal contents."""
        record = to_plain(dataclasses.replace(self, notes=()))
        del record["notes"]
        return {"schema": POLICY_SCHEMA, **record}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], notes: tuple[str, ...] = ()) -> PolicyMeta:
        """Rebuild contents written by :meth:`to_json`."""
        return cls(
            agent=str(record["agent"]),
            config=dict(record["config"]),
            tasks=tuple(TaskSpec.from_json(t) for t in record["tasks"]),
            stats=tuple(DataStats.from_json(s) for s in record["stats"]),
            acting=dict(record["acting"]),
            step=int(record["step"]),
            targets=tuple(record.get("targets", ())),
            data=tuple(dict(d) for d in record.get("data", ())),
            window_length=record.get("window_length"),
            extra_state=dict(record.get("extra_state", {})),
            seqrl_version=str(record.get("seqrl_version", "unknown")),
            notes=notes,
        )

    @classmethod
    def of(
        cls,
        agent: Agent,
        step: int,
        *,
        targets: Sequence[Any] = (),
        data: Sequence[Mapping[str, Any]] = (),
    ) -> PolicyMeta:
        """What to save of an agent after ``step`` updates."""
        return cls(
            agent=agent_name(type(agent)),
            config=agent.config.to_json(),
            tasks=agent.tasks,
            stats=agent.stats,
            acting=dataclasses.asdict(agent.acting),
            step=step,
            targets=tuple(targets),
            data=tuple(dict(d) for d in data),
            window_length=agent.config.window().length,
        )


def agent_name(cls: type[Agent]) -> str:
    """The registered name of an agent class, or ``module:Class``."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((r.name for r in registry.ROWS if r.path == path), path)


# --- writing -----------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path,
    agent: Agent,
    meta: PolicyMeta,
    *,
    optimizer: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint ``folder/step_XXXXXXX`` and return its path.

    Args:
        folder: the run's ``checkpoints`` folder.
        agent: holds the weights to save.
        meta: see :meth:`PolicyMeta.of`; its ``step`` names the checkpoint.
        optimizer: what resuming needs in tensors (nested dicts and lists of plain values).
        trainer: what resuming needs in JSON.

    Raises:
        SeqrlError: the disk refuses, or the agent's extra state is not JSON-able.
    """
    final = folder / step_name(meta.step)
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    tensors, extra = _split_state(agent)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "weights.safetensors", {"format": "pt"})
        record = dataclasses.replace(meta, extra_state=extra).to_json()
        write_json(temporary / "policy.json", record)
        if optimizer is not None:
            torch.save(dict(optimizer), temporary / "optimizer.pt")
        if trainer is not None:
            write_trainer_state(temporary, trainer)
        for file in temporary.iterdir():
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        sync_folder(temporary)
        if final.exists():  # left by a run that was killed before it could link it
            _remove(final)
        os.replace(temporary, final)
    except OSError as e:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SeqrlError(
            f"checkpoint {final} cannot be written: {e.strerror or e}",
            hint="free some space, then: seqrl resume; the checkpoints before it are intact",
        ) from e
    sync_folder(folder)
    return final


def write_trainer_state(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Write or replace ``trainer.json`` of a checkpoint."""
    write_json(checkpoint / "trainer.json", {"schema": TRAINER_SCHEMA, **state})


def _split_state(agent: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The module's tensors, ready for safetensors, and its other state as plain JSON data."""
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    seen: set[int] = set()
    for name, value in agent.state_dict().items():
        if not isinstance(value, Tensor):
            extra[name] = to_plain(value)
            continue
        value = value.detach().cpu().contiguous()
        # safetensors takes no two tensors on the same memory (tied weights).
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        tensors[name] = value
    return tensors, extra


def point(folder: Path, link: str, checkpoint: str) -> None:
    """Make ``folder/link`` ("last", "best") lead to a checkpoint of the folder, atomically.

    Where the file system has no links, a text file with the checkpoint's name takes the place.
    """
    temporary = folder / f".{link}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        os.symlink(checkpoint, temporary, target_is_directory=True)
    except (OSError, NotImplementedError):
        temporary.write_text(checkpoint, encoding="utf-8")
    os.replace(temporary, folder / link)
    sync_folder(folder)


def pointed(folder: Path, link: str) -> Path | None:
    """The checkpoint that ``folder/link`` leads to; None where there is none."""
    path = folder / link
    name = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        name = os.readlink(path) if path.is_symlink() else path.read_text("utf-8").strip()
    found = folder / name
    return found if _STEP.fullmatch(name) and found.is_dir() else None


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, in order."""
    if not folder.is_dir():
        return []
    matches = (_STEP.fullmatch(p.name) for p in folder.iterdir() if p.is_dir())
    return sorted(int(m[1]) for m in matches if m)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints and those ``last`` and ``best`` lead to."""
    linked = {pointed(folder, link) for link in ("last", "best")}
    for step in saved_steps(folder)[:-keep]:
        path = folder / step_name(step)
        if path not in linked:
            _remove(path)


def rewind(folder: Path, step: int, best: int | None) -> None:
    """Make the folder what it was when ``step`` was saved: no later checkpoints, ``best`` as then.

    A run killed after a save and before its links were replaced leaves such traces.
    """
    if best is not None and (folder / step_name(best)).is_dir():
        point(folder, "best", step_name(best))
    elif best is None:
        (folder / "best").unlink(missing_ok=True)
    for later in (s for s in saved_steps(folder) if s > step):
        _remove(folder / step_name(later))
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
        leftover.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint; renamed first, so that a half-removed one is never taken for whole."""
    grave = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    os.replace(path, grave)
    shutil.rmtree(grave, ignore_errors=True)


# --- finding -----------------------------------------------------------------------------------


def find_checkpoint(path: str | Path, which: str | Path = "last") -> Path:
    """The checkpoint folder meant by a path.

    Args:
        path: a run folder, a checkpoint folder, a checkpoint's link, or anything inside a run.
        which: ``last``, ``best``, a step (``10000``, ``step_0010000``) or a path; only asked when
            ``path`` is no checkpoint itself.

    Raises:
        SeqrlError: nothing there, or the run has no such checkpoint.
    """
    start = Path(path).absolute()
    if start.name in ("last", "best"):
        which = start.name
        start = pointed(start.parent, which) or start
    for candidate in (start, start.parent):
        if _is_checkpoint(candidate):
            return candidate.resolve()
    folder = start / "checkpoints"
    if not folder.is_dir():
        folder = open_run(path).checkpoints
    if found := _named(folder, str(which)):
        return found
    steps = saved_steps(folder)
    if not steps:
        raise SeqrlError(f"{folder} holds no checkpoint yet", hint="train first: seqrl resume RUN")
    known = ", ".join(step_name(s) for s in steps)
    hint = f"there are: last, {known}"
    raise SeqrlError(f"{folder} has no checkpoint '{which}'", hint=hint)


def _named(folder: Path, which: str) -> Path | None:
    if which in ("last", "best"):
        found = pointed(folder, which)
        steps = saved_steps(folder)
        if found is None and which == "last" and steps:
            # The very first checkpoint was saved, but the run was killed before it was linked.
            found = folder / step_name(steps[-1])
        return found
    name = step_name(int(which)) if which.isdigit() else which
    for candidate in (folder / name, Path(which).absolute()):
        if _is_checkpoint(candidate):
            return candidate.resolve()
    return None


def _is_checkpoint(path: Path) -> bool:
    """Also true for a damaged one: reading it says what is wrong."""
    if _STEP.fullmatch(path.name) and path.is_dir():
        return True
    return any((path / name).is_file() for name in ("policy.json", "weights.safetensors"))


# --- reading -----------------------------------------------------------------------------------


def load_agent(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    which: str | Path = "last",
    trust: bool = False,
) -> tuple[Agent, PolicyMeta]:
    """The agent of a checkpoint, in evaluation mode, and the rest of what was saved with it.

    Only safetensors and JSON are read, so a stranger's checkpoint runs none of their code. An
    agent of the user's own (``module:Class``) is imported only when ``trust`` is set, unless its
    module already is: importing is running code, and the name comes from the file.

    Args:
        path: see :func:`find_checkpoint`.
        trust: the checkpoint may name code to import.

    Raises:
        SeqrlError: anything missing, damaged, mismatched, unknown or newer than this version.
    """
    folder = find_checkpoint(path, which)
    meta = read_policy(folder)
    cls = _agent_class(meta.agent, folder, trust)
    agent = _build(cls, meta, folder)
    load_weights(agent, folder, meta.extra_state)
    return agent.to(device).eval(), meta


def read_policy(folder: Path) -> PolicyMeta:
    """``policy.json`` of a checkpoint, upgraded from older schemas."""
    path = folder / "policy.json"
    record = read_json(path, _REMEDY)
    record, notes = upgraded(record, path, POLICY_SCHEMA, POLICY_UPGRADES, "policy")
    try:
        meta = PolicyMeta.from_json(record, notes)
        if not meta.tasks or len(meta.tasks) != len(meta.stats):
            raise ValueError(f"{len(meta.tasks)} tasks and {len(meta.stats)} sets of statistics")
        return meta
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        what = f"no {e}" if isinstance(e, KeyError) else str(e)
        raise SeqrlError(f"{path} is damaged: {what}", hint=_REMEDY) from e


def _agent_class(name: str, folder: Path, trust: bool) -> type[Agent]:
    from seqrl.agents.agent import Agent

    path = folder / "policy.json"
    module, colon, cls_name = name.partition(":")
    # A class that is there already runs nothing new. vars() and not getattr: a module's own
    # __getattr__ could import more.
    found: Any = sys.modules.get(module) if colon else None
    for part in cls_name.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    if isinstance(found, type) and issubclass(found, Agent):
        return found
    if colon and not trust:
        raise SeqrlError(
            f"{path} needs the agent '{name}', code outside seqrl",
            hint="if you know where the checkpoint comes from: --trust (it imports that module)",
        )
    try:
        return registry.agent_class(name)
    except SeqrlError as e:
        raise SeqrlError(f"{path}: {e.message}", hint=e.hint) from e


def _build(cls: type[Agent], meta: PolicyMeta, folder: Path) -> Agent:
    from seqrl.agents.agent import config_from_json

    path = folder / "policy.json"
    try:
        # Initial weights are drawn and then replaced: leave the caller's generator alone.
        with torch.random.fork_rng(devices=[]):
            agent = cls(config_from_json(cls.config_class, meta.config), meta.tasks, meta.stats)
        agent.set_acting(**meta.acting)
    except SeqrlError as e:
        raise SeqrlError(f"{path} does not make a policy: {e.message}", hint=e.hint) from e
    except Exception as e:  # values from a damaged file may break a constructor in any way
        reason = f"{type(e).__name__}: {e}".splitlines()[0]
        raise SeqrlError(f"{path} does not make a policy: {reason}", hint=_REMEDY) from e
    return agent


def load_weights(agent: nn.Module, folder: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Fill a module with the weights of a checkpoint.

    Raises:
        SeqrlError: a missing or damaged file, or tensors other than the module's.
    """
    path = folder / "weights.safetensors"
    if not path.is_file():
        raise SeqrlError(f"{path} is missing", hint=_REMEDY)
    try:
        tensors = load_file(path)
    except Exception as e:  # the reader's own error type, OSError, MemoryError, ...
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise SeqrlError(f"{path} is damaged: {reason}", hint=_REMEDY) from e
    own = {k: v for k, v in agent.state_dict().items() if isinstance(v, Tensor)}
    if problem := _mismatch(own, tensors):
        raise SeqrlError(
            f"{path} does not fit the agent: {problem}",
            hint="weights.safetensors and policy.json must come from the same checkpoint",
        )
    try:
        agent.load_state_dict({**tensors, **(extra or {})})
    except Exception as e:  # an agent's own set_extra_state on values from a damaged file
        reason = f"{type(e).__name__}: {e}".splitlines()[0]
        raise SeqrlError(f"{folder} does not fit the agent: {reason}", hint=_REMEDY) from e


def _mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """One phrase on how given tensors differ from a module's own; None when they fit."""
    if missing := sorted(set(own) - set(given)):
        return f"no tensor '{missing[0]}' ({len(missing)} missing)"
    if unknown := sorted(set(given) - set(own)):
        return f"unexpected tensor '{unknown[0]}' ({len(unknown)} in all)"
    for name, value in own.items():
        if given[name].shape != value.shape:
            return f"'{name}' is {tuple(given[name].shape)}, must be {tuple(value.shape)}"
        if given[name].is_floating_point() != value.is_floating_point():
            return f"'{name}' is {given[name].dtype}, must be {value.dtype}"
    return None


def read_trainer_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What resuming needs of a checkpoint: ``trainer.json`` and ``optimizer.pt``.

    Raises:
        SeqrlError: a missing or damaged file; pickled code is refused, never run.
    """
    path = folder / "trainer.json"
    record = read_json(path, "a checkpoint without it can be evaluated, but not resumed")
    record, _ = upgraded(record, path, TRAINER_SCHEMA, [], "trainer")
    path = folder / "optimizer.pt"
    remedy = "resume needs it; to start anew from the weights: seqrl train --init-from"
    if not path.is_file():
        raise SeqrlError(f"{path} is missing", hint=remedy)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # zip, pickle, end-of-file and refused-code errors alike
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise SeqrlError(f"{path} is damaged or not ours: {reason}", hint=remedy) from e
    if not isinstance(tensors, dict):
        raise SeqrlError(f"{path} is damaged: it holds no mapping", hint=remedy)
    return record, tensors
