"""seqrl: offline reinforcement learning with sequence policies.

The public names load on first use, so that ``import seqrl`` stays light:

>>> import seqrl
>>> sorted(seqrl.__all__)
['SeqrlError', 'evaluate', 'load_dataset', 'load_policy', 'make_agent', 'train']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from seqrl.api import evaluate, load_dataset, make_agent, train
    from seqrl.errors import SeqrlError
    from seqrl.policy import load_policy

__all__ = ["SeqrlError", "evaluate", "load_dataset", "load_policy", "make_agent", "train"]

_HOMES = {
    "SeqrlError": "seqrl.errors",
    "evaluate": "seqrl.api",
    "load_dataset": "seqrl.api",
    "load_policy": "seqrl.policy",
    "make_agent": "seqrl.api",
    "train": "seqrl.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'seqrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
