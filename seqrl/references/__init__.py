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
    ReferenceRow(
        "emp",
        "seqrl.references.bandit:EmpiricalPolicy",
        "bandits: greedy on empirical means",
    ),
    ReferenceRow(
        "ucb",
        "seqrl.references.bandit:UcbPolicy",
        "bandits: upper confidence bound",
    ),
    ReferenceRow(
        "lcb",
        "seqrl.references.bandit:LcbPolicy",
        "bandits: lower confidence bound",
    ),
    ReferenceRow(
        "thompson",
        "seqrl.references.bandit:ThompsonPolicy",
        "bandits: Thompson sampling, normal or Beta",
    ),
    ReferenceRow(
        "linucb",
        "seqrl.references.bandit:LinUcbPolicy",
        "linear bandits with known arms: LinUCB",
    ),
    ReferenceRow(
        "lin_thompson",
        "seqrl.references.bandit:LinearThompsonPolicy",
        "linear bandits with known arms: Thompson sampling",
    ),
    ReferenceRow(
        "ucbvi",
        "seqrl.references.tabular:UcbViPolicy",
        "tables: optimistic value iteration over the episodes of a trial",
    ),
)


def names() -> list[str]:
    """Names of the reference policies.

    >>> names()[:4]
    ['random', 'oracle', 'emp', 'ucb']
    """
    return [r.name for r in ROWS]


def is_reference(text: str) -> bool:
    """Whether a text names a reference policy, with or without settings.

    >>> is_reference("ucb?c=2"), is_reference("runs/ucb")
    (True, False)
    """
    return text.partition("?")[0] in names()


def make_reference(name: str, task: TaskSpec) -> ReferencePolicy:
    """The reference policy ``name`` for a task, with settings as in ``ucb?c=2&pseudo=1``.

    Raises:
        SeqrlError: unknown name or setting, with the nearest ones; a task it is not for.
    """
    base, _, query = name.partition("?")
    row = next((row for row in ROWS if row.name == base), None)
    if row is None:
        raise SeqrlError(
            f"no reference policy '{base}'",
            hint=did_you_mean(base, names(), f"reference policies: {' '.join(names())}"),
        )
    module, _, cls = row.path.partition(":")
    policy = getattr(importlib.import_module(module), cls)
    settings = _settings(name, query)
    known = policy.settings()
    for setting in settings:
        if setting not in known:
            listed = f"settings of {base}: {', '.join(known) or 'none'}"
            hint = did_you_mean(setting, known, listed)
            raise SeqrlError(f"reference policy '{base}' has no setting '{setting}'", hint)
    made: ReferencePolicy = policy(task, **settings)
    return made


def _settings(name: str, query: str) -> dict[str, int | float]:
    """The numbers of ``key=value&key=value``."""
    settings: dict[str, int | float] = {}
    for part in filter(None, query.split("&")):
        key, _, text = part.partition("=")
        try:
            settings[key] = float(text) if not text.lstrip("-").isdigit() else int(text)
        except ValueError:
            raise SeqrlError(
                f"'{part}' in '{name}' is no setting", hint="write name?key=number&key=number"
            ) from None
    return settings
