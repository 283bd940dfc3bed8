"""Checks of user-given environment settings: each error names the value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from seqrl.errors import SeqrlError, did_you_mean

__all__ = ["check_bool", "check_choice", "check_int", "check_number", "settings_from"]

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
