"""Reference policies: scripted or classical, evaluated by the same engine, listed apart.

They have no parameters, ignore the target return and are made from the task alone. Importing this
package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from seqrl.errors import SeqrlError, did_you_mean

if TYPE_CHECKING:
    from seqrl.references.policy import ReferencePolicy
    from seqrl.spec import TaskSpec


class ReferenceRow(NamedTuple):
    """One reference policy as data."""

    name: str
    path: str
    """``module:Class``; the class is called with the task."""
    summary: str


ROWS: tuple[ReferenceRow, ...] = (
    ReferenceRow(
        "random",
        "seqrl.references.policy:RandomPolicy",
        "uniform over the action space",
    ),
    ReferenceRow(
        "oracle",
        "seqrl.references.policy:OraclePolicy",
        "the environment's own scripted policy",
    ),
)


def names() -> list[str]:
    """Names of the reference policies.

    >>> names()
    ['random', 'oracle']
    """
    return [r.name for r in ROWS]


def make_reference(name: str, task: TaskSpec) -> ReferencePolicy:
    """The reference policy ``name`` for a task.

    Raises:
        SeqrlError: unknown name, with the nearest ones.
    """
    for row in ROWS:
        if row.name == name:
            module, _, cls = row.path.partition(":")
            return getattr(importlib.import_module(module), cls)(task)
    raise SeqrlError(
        f"no reference policy '{name}'",
        hint=did_you_mean(name, names(), f"reference policies: {' '.join(names())}"),
    )
