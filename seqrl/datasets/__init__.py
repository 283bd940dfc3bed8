"""Offline data: one form (:class:`Trajectories`), readers and writers, sampling.

Names load on first use, so that listing what exists imports neither HDF5 nor Minari:

>>> from seqrl.datasets import parse_uri
>>> parse_uri("oracle:seqrl/TMaze-v0?limit=9&episodes=4").params
{'limit': 9, 'episodes': 4}
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqrl.datasets.cache import convert
    from seqrl.datasets.catalog import (
        CATALOGUE,
        LoadOptions,
        load_dataset,
        load_sources,
        parse_uri,
    )
    from seqrl.datasets.inspection import format_report, inspect
    from seqrl.datasets.minari_store import list_local
    from seqrl.datasets.plots import plot_dataset
    from seqrl.datasets.trajectories import Episode, Trajectories

_HOMES = {
    "CATALOGUE": "catalog",
    "Episode": "trajectories",
    "LoadOptions": "catalog",
    "Trajectories": "trajectories",
    "convert": "cache",
    "format_report": "inspection",
    "inspect": "inspection",
    "list_local": "minari_store",
    "load_dataset": "catalog",
    "load_sources": "catalog",
    "parse_uri": "catalog",
    "plot_dataset": "plots",
}

__all__ = [
    "CATALOGUE",
    "Episode",
    "LoadOptions",
    "Trajectories",
    "convert",
    "format_report",
    "inspect",
    "list_local",
    "load_dataset",
    "load_sources",
    "parse_uri",
    "plot_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"seqrl.datasets.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'seqrl.datasets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
