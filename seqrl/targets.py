"""Target returns as people write them: ``1.0``, ``p50``, ``max``, ``max*1.5``, ``n100``.

For policies of several tasks ``2:3600`` speaks of task 2 alone; targets without a number serve all
tasks that have none of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from seqrl.errors import SeqrlError, did_you_mean
from seqrl.scores import denormalized, reference_scores
from seqrl.spec import DataStats, TaskSpec

DEFAULT_TARGETS = ("p50", "p90", "max")
"""Quantiles of the training episodes' returns, for policies that come with no targets."""

_QUANTILES = ("min", "p10", "p25", "p50", "p75", "p90", "max", "mean")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FORMS = (
    f"a number, one of {' '.join(_QUANTILES)}, a multiple such as max*1.5, or n100 (normalised)"
)


class Target(NamedTuple):
    """One target return."""

    label: str
    """As it was written; names the target in tables and metrics."""
    value: float
    """Raw units."""


def targets_of(specs: Sequence[str | float], task: int, tasks: int) -> tuple[str | float, ...]:
    """The targets among ``specs`` that are meant for one task of several.

    Raises:
        SeqrlError: a target of a task that does not exist.

    >>> targets_of(["p90", "1:0.5", "1:1.0"], 0, 2), targets_of(["p90", "1:0.5", "1:1.0"], 1, 2)
    (('p90',), ('0.5', '1.0'))
    """
    shared: list[str | float] = []
    own: list[str | float] = []
    for spec in specs:
        match = re.fullmatch(r"\s*(\d+):(.*)", str(spec))
        if match is None:
            shared.append(spec)
            continue
        if int(match[1]) >= tasks:
            raise SeqrlError(
                f"target '{spec}' is for task {match[1]}, the policy has {tasks}",
                hint="tasks are counted from 0, in the order of the data",
            )
        if int(match[1]) == task:
            own.append(match[2])
    return tuple(own or shared)


def resolve_targets(
    specs: Sequence[str | float],
    stats: DataStats | None,
    task: TaskSpec,
    notes: list[str] | None = None,
) -> list[Target]:
    """Target returns in raw units.

    ``q*f`` moves by ``(f - 1) * |q|``, so that a factor above 1 asks for more also where returns
    are negative: with a best return of -100, ``max*1.5`` is -50. Of equal targets the last one
    stays, for the last listed one has a meaning (it selects the best checkpoint).

    Args:
        specs: what was asked for; numbers may be given as numbers.
        stats: statistics of the training data, for quantiles.
        task: for normalised targets.
        notes: gets a sentence for every target dropped as a duplicate.

    Raises:
        SeqrlError: a form or quantile that does not exist, no statistics or no reference scores
            where they are needed, or no target at all.
    """
    if not specs:
        raise SeqrlError("no target returns given", hint=f"write {_FORMS}")
    found = [Target(str(spec).strip(), _value(str(spec).strip(), stats, task)) for spec in specs]
    kept = []
    for i, target in enumerate(found):
        same = next((t for t in found[i + 1 :] if t.value == target.value), None)
        if same is None:
            kept.append(target)
        elif same.label != target.label and notes is not None:
            notes.append(f"target {target.label} is {same.label} ({target.value:g}): run once")
    return kept


def _value(spec: str, stats: DataStats | None, task: TaskSpec) -> float:
    if re.fullmatch(_NUMBER, spec):
        return _finite(spec, float(spec))
    if match := re.fullmatch(f"n({_NUMBER})", spec):
        reference = reference_scores(task)
        if reference is None:
            raise SeqrlError(
                f"target {spec}: no reference scores are known for {task.env_id or task.name}",
                hint="give raw returns, or quantiles such as p90",
            )
        return denormalized(float(match[1]), reference.random, reference.expert)
    match = re.fullmatch(rf"([a-z]\w*)(?:\s*\*\s*({_NUMBER}))?", spec)
    if match is None or match[1] not in _QUANTILES:
        raise SeqrlError(
            f"target '{spec}' is not understood",
            hint=f"{did_you_mean(spec, _QUANTILES) or ''} write {_FORMS}".strip(),
        )
    if stats is None:
        raise SeqrlError(f"target {spec} needs statistics of training data", hint="give a number")
    q = stats.return_quantiles[match[1]]
    factor = float(match[2]) if match[2] else 1.0
    return _finite(spec, q + (factor - 1.0) * abs(q))


def _finite(spec: str, value: float) -> float:
    if not math.isfinite(value):
        raise SeqrlError(f"target '{spec}' is not finite", hint=f"write {_FORMS}")
    return value
