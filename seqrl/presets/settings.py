"""Settings as nested plain data: layered one over the other, and made into config classes.

Precedence: the classes' defaults < a preset < a config file < what the caller says.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from seqrl import presets
from seqrl.errors import SeqrlError, did_you_mean
from seqrl.presets import merge
from seqrl.units import parse_count

ConfigT = TypeVar("ConfigT")
NO_PRESET = "none"
"""Asks for no preset, where the data would bring one."""


@dataclass(frozen=True)
class Layered:
    """Settings put together, and where each of them came from."""

    settings: dict[str, Any]
    origins: dict[str, str]
    """Dotted key (``train.optim.lr``) to its origin (``preset dt/tmaze-30``, a file, ``given``)."""
    preset: str | None


def layer(
    given: Mapping[str, Any],
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    default_data: Sequence[str] = (),
    default_preset: Callable[[str, str], str | None] = lambda data, agent: None,
) -> Layered:
    """Put a preset, a config file and given settings together.

    Args:
        given: nested settings; ``agent`` and ``data`` among them where they were said.
        preset: name of a preset; NO_PRESET for none at all; None for the one that the data bring.
        file: JSON file of settings, such as a run's ``config.json``.
        default_data: used when nothing names data.
        default_preset: the preset that a dataset brings for an agent.

    Raises:
        SeqrlError: no agent, unknown preset, a preset of another agent, or one that needs data.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = [("given", given)]
    if file is not None:
        layers.insert(0, (str(file), read_settings(file)))
    said = merge({}, layers[0][1]) if file is None else merge(layers[0][1], given)
    named = None if preset in (None, NO_PRESET) else presets.load(str(preset))
    agent = said.get("agent") or (named.agent if named else None)
    if agent is None:
        raise SeqrlError("no agent named", hint="seqrl list agents; seqrl list presets")
    if named is not None and named.agent != agent:
        raise SeqrlError(
            f"preset '{named.name}' is for agent '{named.agent}', not '{agent}'",
            hint=f"drop '{agent}', or see: seqrl list presets",
        )
    data = said.get("data") or (named.data if named else None)
    if named is not None and not data:
        raise SeqrlError(f"preset '{named.name}' names no data", hint=named.command)
    data = [str(d) for d in data or default_data]
    if preset is None and file is None and len(data) == 1:
        found = default_preset(data[0], agent)
        named = presets.load(found) if found else None
    if named is not None:
        layers.insert(0, (f"preset {named.name}", named.to_config()))
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in layers:
        settings = merge(settings, values)
        origins |= dict.fromkeys((key for key, _ in flat(values)), origin)
    settings |= {"agent": agent, "data": data, "preset": named.name if named else None}
    return Layered(settings, origins, settings["preset"])


def read_settings(path: str | Path) -> dict[str, Any]:
    """Settings from a JSON file: bare, or a run's ``config.json`` with its schema version.

    Raises:
        SeqrlError: no such file, or no JSON object.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as e:
        raise SeqrlError(f"config file {path} cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise SeqrlError(
            f"config file {path} is not JSON: {e}", hint="see config.json of a run"
        ) from None
    if not isinstance(content, dict):
        raise SeqrlError(
            f"config file {path} holds no JSON object", hint="see config.json of a run"
        )
    if isinstance(content.get("config"), dict):
        content = content["config"]
    return {k: v for k, v in content.items() if k != "preset"}


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested settings, in order.

    >>> dict(flat({"agent": "x", "train": {"steps": 5, "optim": {"lr": 0.1}}}))
    {'agent': 'x', 'train.steps': 5, 'train.optim.lr': 0.1}
    """
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and key != "env_kwargs":
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flat`.

    >>> nested({"train.steps": 5, "train.optim.lr": 0.1})
    {'train': {'steps': 5, 'optim': {'lr': 0.1}}}
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        place = out
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return out


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """``train.optim.lr 1e-4 → 3e-4`` for every setting in which two nested settings differ.

    >>> differences({"a": {"lr": 1e-4, "n": 1}}, {"a": {"lr": 3e-4, "n": 1, "clip": None}})
    ['a.lr 1e-4 → 3e-4']
    """
    old, new = dict(flat(before)), dict(flat(after))
    return [
        f"{key} {as_text(old.get(key))} → {as_text(new.get(key))}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def as_text(value: Any) -> str:
    """A setting as one would type it.

    >>> as_text(1e-4), as_text(None), as_text(True), as_text(["a", 1])
    ('1e-4', 'none', 'true', 'a,1')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:.6e}".partition("e")
        if 0 < abs(value) < 1e-3:
            return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ",".join(map(as_text, value)) or "none"
    if isinstance(value, Mapping):
        return " ".join(f"{k}={as_text(v)}" for k, v in value.items()) or "none"
    return "none" if value is None else str(value)


# --- from plain data to config classes ---------------------------------------------------------


def build(
    cls: type[ConfigT], data: Mapping[str, Any], where: str, what: str = "setting"
) -> ConfigT:
    """A config dataclass from plain data; defaults where nothing is said.

    Args:
        where: begins every message (``train``, ``agent 'dt'``).
        what: the word for a field (``setting``, ``option``).

    Raises:
        SeqrlError: an unknown field, a value of the wrong type, or one the class refuses.
    """
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            listed = f"its {what}s: {', '.join(known)}"
            raise SeqrlError(
                f"{where} has no {what} '{name}'", hint=did_you_mean(str(name), known, listed)
            )
    return cls(**{k: _typed(hints[k], v, f"{where}.{k}") for k, v in data.items()})


def _typed(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type, where plain JSON data may stand for it."""
    try:
        return _as(kind, value, where)
    except (ValueError, TypeError):
        raise SeqrlError(
            f"{where} is {value!r}, must be {_words(kind)}", hint="see the options of --help"
        ) from None


def _as(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else build(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        return _as_one_of(args, value, where)
    if origin is Literal:
        if value not in args:
            raise ValueError
        return value
    if origin is tuple or kind is tuple:
        return _as_tuple(args, value, where)
    if kind is bool or kind is type(None):
        if not isinstance(value, kind):
            raise TypeError
        return value
    if kind is int:
        if isinstance(value, bool):
            raise TypeError
        return _whole(value)
    if kind is float:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    if kind is str:
        return str(value)
    if origin is dict or kind is dict:
        return dict(value)
    return value


def _as_one_of(kinds: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        try:
            return _as(kind, value, where)
        except (ValueError, TypeError):
            continue
    raise ValueError


def _as_tuple(args: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError
    if not args:
        return tuple(value)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_as(args[0], v, where) for v in value)
    return tuple(_as(a, v, where) for a, v in zip(args, value, strict=True))


def _whole(value: Any) -> int:
    if isinstance(value, str):
        try:
            return parse_count(value)
        except SeqrlError:
            raise ValueError(value) from None
    if int(value) != value:
        raise ValueError
    return int(value)


def _words(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(a) for a in args)
    if origin is tuple:
        return f"a list of {_words(args[0])}" if args else "a list"
    names = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))
