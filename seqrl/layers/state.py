"""Acting states: nested dicts, tuples, lists and dataclasses of tensors with a leading row axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def map_states(fn: Callable[..., Tensor], *states: Any) -> Any:
    """Apply ``fn`` to corresponding tensors of states of equal structure."""
    head = states[0]
    if isinstance(head, Tensor):
        return fn(*states)
    if head is None:
        return None
    if isinstance(head, dict):
        return {k: map_states(fn, *(s[k] for s in states)) for k in head}
    if dataclasses.is_dataclass(head) and not isinstance(head, type):
        names = [f.name for f in dataclasses.fields(head)]
        return type(head)(**{k: map_states(fn, *(getattr(s, k) for s in states)) for k in names})
    if isinstance(head, (tuple, list)):
        parts = [map_states(fn, *items) for items in zip(*states, strict=True)]
        return type(head)(*parts) if hasattr(head, "_fields") else type(head)(parts)
    raise TypeError(f"an acting state may not hold {type(head).__name__}")


def select_rows(rows: Tensor, where_true: Any, where_false: Any) -> Any:
    """Row by row, the state ``where_true`` where ``rows [n] bool`` is set, else the other."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b)

    return map_states(pick, where_true, where_false)


def take_rows(state: Any, rows: Tensor | slice) -> Any:
    """The given rows of a state."""
    return map_states(lambda t: t[rows], state)


def exporting() -> bool:
    """Whether a graph is being traced, where no branch may look at a tensor's values."""
    # is_exporting is younger than the oldest torch this package takes.
    return bool(getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)())
