"""The static reading of config classes equals the classes."""

from __future__ import annotations

import dataclasses
import importlib
import typing

import pytest

from seqrl.agents import registry
from seqrl.cli.fields import REQUIRED, class_value, read_fields


def config_paths() -> list[str]:
    from seqrl.cli.settings import SECTION_CLASSES

    agents = [class_value(r.path, "config_class") for r in registry.ROWS]
    return [*SECTION_CLASSES.values(), *(a for a in agents if a)]


@pytest.mark.parametrize("path", config_paths())
def test_static_reading_equals_the_class(path: str) -> None:
    module, _, name = path.partition(":")
    cls = getattr(importlib.import_module(module), name)
    hints = typing.get_type_hints(cls)
    read = {f.name: f for f in read_fields(path)}
    assert list(read) == [f.name for f in dataclasses.fields(cls)]
    for f in dataclasses.fields(cls):
        mine = read[f.name]
        if dataclasses.is_dataclass(hints[f.name]):
            continue
        assert mine.type == hints[f.name], f.name
        assert mine.help, f"{path}.{f.name} has no docstring under it"
        if f.default is not dataclasses.MISSING:
            assert mine.default == f.default, f.name
        elif f.default_factory is not dataclasses.MISSING:
            assert mine.default == f.default_factory(), f.name
        else:
            assert mine.default is REQUIRED


@pytest.mark.parametrize("row", registry.ROWS, ids=lambda r: r.name)
def test_agent_config_class_is_found_without_import(row: registry.AgentRow) -> None:
    config = registry.agent_class(row.name).config_class
    assert class_value(row.path, "config_class") == f"{config.__module__}:{config.__qualname__}"
