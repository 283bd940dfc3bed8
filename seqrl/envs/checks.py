"""Checks of user-given environment settings: each error names the value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from seqrl.errors import SeqrlError, did_you_mean

__all__ = [
    "check_actions",
    "check_array",
    "check_bool",
    "check_choice",
    "check_int",
    "check_number",
    "known_options",
    "settings_from",
]

SettingsT = TypeVar("SettingsT")


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` as an ``int`` of the range ``low .. high`` (no upper end if ``None``).

    Raises:
        SeqrlError: ``value`` is not an integer of that range. A ``bool`` is not an integer here.
    """
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < low or (high is not None and value > high):
        raise SeqrlError(f"{name}={value!r} is not allowed", f"{name} must be {allowed}")
    return int(value)


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return ``value`` as a ``float`` with ``low <= value <= high``.

    Raises:
        SeqrlError: ``value`` is not a number of that range (NaN never is).
    """
    is_number = isinstance(value, (int, float, np.integer, np.floating))
    if not is_number or isinstance(value, bool) or not low <= value <= high:
        raise SeqrlError(
            f"{name}={value!r} is not allowed", f"{name} must be a number from {low:g} to {high:g}"
        )
    return float(value)


def check_bool(name: str, value: Any) -> bool:
    """Return ``value`` as a ``bool``; 0 and 1 count, because a dataset URI may write them.

    Raises:
        SeqrlError: ``value`` is anything else.
    """
    if not isinstance(value, (bool, np.bool_, int)) or value not in (0, 1):
        raise SeqrlError(f"{name}={value!r} is not allowed", f"{name} must be true or false")
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        SeqrlError: it is not; the hint lists the choices, a close one first.
    """
    if value not in choices:
        guess = did_you_mean(str(value), choices, otherwise="")
        listed = ", ".join(repr(choice) for choice in choices)
        raise SeqrlError(
            f"{name}={value!r} is not allowed", f"{guess} {name} must be one of {listed}".strip()
        )
    return str(value)


def check_array(name: str, value: Any, shape: tuple[int, ...] | None) -> NDArray[np.float64]:
    """Return finite numbers as a new float64 array of a shape; one row may stand for all rows.

    Args:
        name: for the error.
        value: array, or nested sequences.
        shape: what is wanted, rows first; None for any.

    Raises:
        SeqrlError: not numbers, not finite, or another shape.
    """
    wanted = "" if shape is None else f" of shape {list(shape)}"
    allowed = f"{name} must be finite numbers{wanted}"
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError):
        raise SeqrlError(f"{name}={value!r} is not allowed", allowed) from None
    fits = shape is None or array.shape in (shape, shape[1:])
    if not fits or not np.isfinite(array).all():
        raise SeqrlError(f"{name} of shape {list(array.shape)} is not allowed", allowed)
    return array if shape is None else np.broadcast_to(array, shape).copy()


def check_actions(actions: Any, rows: int, choices: int) -> NDArray[np.int64]:
    """Return the actions of a vector environment, ``[rows]`` integers below ``choices``.

    Raises:
        SeqrlError: another shape, no integers, or one out of the range.
    """
    array = np.asarray(actions)
    integers = array.shape == (rows,) and np.issubdtype(array.dtype, np.integer)
    if not integers or array.min() < 0 or array.max() >= choices:
        raise SeqrlError(
            f"actions of shape {list(array.shape)} are not allowed",
            f"actions must be [{rows}] integers from 0 to {choices - 1}",
        )
    return array.astype(np.int64, copy=False)


def known_options(options: Mapping[str, Any] | None, names: Sequence[str]) -> Mapping[str, Any]:
    """Return the options of a ``reset``, an empty mapping for None.

    Raises:
        SeqrlError: an option that is none of ``names``.
    """
    for name in options or {}:
        if name not in names:
            known = f"options: {', '.join(names)}" if names else "it takes no options"
            raise SeqrlError(
                f"reset() has no option {name!r}", did_you_mean(str(name), names, otherwise=known)
            )
    return options or {}


def settings_from(cls: type[SettingsT], kwargs: Mapping[str, Any]) -> SettingsT:
    """Build the settings dataclass ``cls`` from the keyword arguments of an environment.

    ``render_mode`` is dropped: it says nothing about the task, but the keyword arguments kept in an
    ``EnvSpec`` contain it.

    Raises:
        SeqrlError: a name that ``cls`` does not have, or a value it refuses.
    """
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # a dataclass
    given = {name: value for name, value in kwargs.items() if name != "render_mode"}
    for name in given:
        if name not in known:
            guess = did_you_mean(name, known, otherwise="")
            listed = f"known settings: {', '.join(known)}"
            raise SeqrlError(f"no environment setting {name!r}", f"{guess} {listed}".strip())
    return cls(**given)
