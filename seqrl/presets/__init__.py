"""Published and tested settings as data: JSON files of this folder, one an agent.

A preset is a partial experiment config (``agent``, ``agent_config``, ``load``, ``train``, ``eval``,
``data``) with a name, where its numbers come from, and the command that uses it. A file holds
``{"defaults": {...}, "presets": [...]}``; every preset of a file starts from its defaults or, with
``"base": NAME``, from an earlier preset of the same file.

Of several evaluation targets the last one decides which checkpoint is ``best``; where a paper
reports one of them, that one stands last.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqrl.errors import SeqrlError, nearest

SECTIONS = ("agent_config", "load", "train", "eval")
"""Parts of a preset that are settings, as in an experiment config."""

_TEXTS = ("name", "agent", "description", "source", "command")


@dataclass(frozen=True)
class Preset:
    """One named set of settings."""

    name: str
    agent: str
    description: str
    source: str
    """Paper, code or measurement that the numbers come from."""
    command: str
    """A command line that uses the preset."""
    data: tuple[str, ...] | None = None
    """Dataset URIs; None means the user names the data."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Section to settings."""

    def to_config(self) -> dict[str, Any]:
        """The preset as a partial experiment config."""
        config: dict[str, Any] = {"agent": self.agent, **json.loads(json.dumps(self.settings))}
        if self.data is not None:
            config["data"] = list(self.data)
        return config


def names() -> list[str]:
    """Names of all presets, in the order of the files."""
    return list(_all())


def load(name: str) -> Preset:
    """The preset of that name.

    Raises:
        SeqrlError: there is none; the hint names the nearest.
    """
    if name not in _all():
        close = nearest(name, _all())
        hint = f"close: {', '.join(close)}" if close else "seqrl list presets shows them"
        raise SeqrlError(f"no preset '{name}'", hint=hint)
    return _all()[name]


@functools.cache
def _all() -> dict[str, Preset]:
    found: dict[str, Preset] = {}
    for path in sorted(Path(__file__).parent.glob("*.json")):
        for preset in read_file(path):
            found[preset.name] = preset
    return found


def read_file(path: Path) -> list[Preset]:
    """The presets of one file, their defaults filled in.

    Raises:
        SeqrlError: a missing text, an unknown key or an unknown base.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {"": content.get("defaults", {})}
    presets = []
    for row in content["presets"]:
        base = row.get("base", "")
        if base not in rows:
            raise SeqrlError(f"{path.name}: preset '{row.get('name')}' has no base '{base}'")
        # The texts and data of a base preset are its own; only settings are inherited.
        inherited = rows[base] if not base else _settings(rows[base])
        merged = merge(inherited, {k: v for k, v in row.items() if k != "base"})
        presets.append(_preset(path, merged))
        rows[merged["name"]] = {**merged, "agent": merged["agent"]}
    return presets


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("agent", "source", *SECTIONS) if k in row}


def _preset(path: Path, row: Mapping[str, Any]) -> Preset:
    if missing := [k for k in _TEXTS if not row.get(k)]:
        raise SeqrlError(f"{path.name}: preset '{row.get('name')}' has no {missing[0]}")
    if unknown := sorted(set(row) - {*_TEXTS, *SECTIONS, "data"}):
        raise SeqrlError(f"{path.name}: preset '{row['name']}' has an unknown key '{unknown[0]}'")
    data = row.get("data")
    return Preset(
        **{k: row[k] for k in _TEXTS},
        data=None if data is None else tuple(data),
        settings={k: dict(row[k]) for k in SECTIONS if row.get(k)},
    )


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` put on top; mappings are merged key by key, all else is replaced.

    >>> merge({"train": {"steps": 1, "seed": 0}}, {"train": {"steps": 2}})
    {'train': {'steps': 2, 'seed': 0}}
    """
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        # Arguments of environments are one value: half of another preset's make no sense.
        merged[key] = merge(merged[key], value) if both and key != "env_kwargs" else value
    return merged
