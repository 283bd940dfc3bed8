"""Which agents exist: one literal row each, so that listing them imports no torch.

To add an agent, add a row. ``module:Class`` outside this table works everywhere a name does.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, NamedTuple

from seqrl.errors import SeqrlError, did_you_mean

if TYPE_CHECKING:
    from seqrl.agents.agent import Agent


class AgentRow(NamedTuple):
    """What ``seqrl list agents`` shows; a test compares it with the class."""

    name: str
    path: str
    """``module:Class``."""
    paper: str
    actions: tuple[str, ...]
    acting: tuple[str, ...]
    parameters: float
    """Millions, default config on Hopper (11 observations, 3 actions)."""


ROWS: tuple[AgentRow, ...] = (
    AgentRow(
        "ad",
        "seqrl.agents.ad:AlgorithmDistillation",
        "Algorithm Distillation, Laskin et al. 2022",
        ("continuous", "discrete"),
        ("recompute", "stream", "refill", "stream:window+first", "stream:tova"),
        0.21,
    ),
    AgentRow(
        "at",
        "seqrl.agents.at:AgenticTransformer",
        "Agentic Transformer, Liu and Abbeel 2023",
        ("continuous", "discrete"),
        ("recompute", "stream", "refill", "stream:window+first", "stream:tova"),
        0.73,
    ),
    AgentRow(
        "bc",
        "seqrl.agents.bc:BehaviourCloning",
        "Behaviour cloning (MLP), as in Chen et al. 2021",
        ("continuous", "discrete"),
        ("recompute",),
        0.14,
    ),
    AgentRow(
        "dc",
        "seqrl.agents.dc:DecisionConvFormer",
        "Decision ConvFormer, Kim et al. 2024",
        ("continuous", "discrete"),
        ("recompute", "stream"),
        0.54,
    ),
    AgentRow(
        "decision_mamba",
        "seqrl.agents.decision_mamba:DecisionMamba",
        "Decision Mamba, Lv et al. 2024; variant of Ota 2024",
        ("continuous", "discrete"),
        ("recompute", "stream"),
        0.98,
    ),
    AgentRow(
        "decision_s4",
        "seqrl.agents.decision_s4:DecisionS4",
        "Decision S4, David et al. 2023",
        ("continuous", "discrete"),
        ("stream",),
        0.06,
    ),
    AgentRow(
        "dpt",
        "seqrl.agents.dpt:DPT",
        "Decision-Pretrained Transformer, Lee et al. 2023",
        ("continuous", "discrete"),
        ("recompute", "stream"),
        0.05,
    ),
    AgentRow(
        "dt",
        "seqrl.agents.dt:DecisionTransformer",
        "Decision Transformer, Chen et al. 2021",
        ("continuous", "discrete"),
        ("recompute", "stream", "refill", "stream:window+first", "stream:tova"),
        0.73,
    ),
    AgentRow(
        "frozen",
        "seqrl.agents.frozen:Frozen",
        "Frozen random history, trained head; after HELM, Paischer et al. 2022",
        ("continuous", "discrete"),
        ("stream",),
        0.10,
    ),
    AgentRow(
        "lram",
        "seqrl.agents.lram:LRAM",
        "Large Recurrent Action Model (xLSTM), Schmied et al. 2025",
        ("continuous", "discrete"),
        ("stream", "recompute", "refill", "stream:window+first", "stream:tova"),
        0.72,
    ),
    AgentRow(
        "lstm",
        "seqrl.agents.lstm:RecurrentAgent",
        "Recurrent cloning (LSTM or GRU), return-conditioned",
        ("continuous", "discrete"),
        ("stream",),
        0.14,
    ),
    AgentRow(
        "q_transformer",
        "seqrl.agents.q_transformer:QTransformer",
        "Q-Transformer, Chebotar et al. 2023",
        ("continuous", "discrete", "multidiscrete"),
        ("recompute",),
        0.41,
    ),
    AgentRow(
        "rate",
        "seqrl.agents.rate:RATE",
        "RATE, segments with a memory, Cherepanov et al. 2023",
        ("continuous", "discrete"),
        ("stream",),
        0.32,
    ),
)


def names() -> list[str]:
    """Names of all registered agents."""
    return [r.name for r in ROWS]


def row(name: str) -> AgentRow:
    """The row of a registered agent.

    Raises:
        SeqrlError: unknown name, with the nearest ones.
    """
    for r in ROWS:
        if r.name == name:
            return r
    raise SeqrlError(
        f"no agent '{name}'",
        hint=did_you_mean(name, names(), f"agents: {' '.join(names())}, or your own module:Class"),
    )


def agent_class(name: str) -> type[Agent]:
    """The class of a registered agent, or of ``my_pkg.module:Class``.

    Raises:
        SeqrlError: unknown name, module that does not import, class that is no Agent.
    """
    custom = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None
    module, _, cls_name = (name if custom else row(name).path).partition(":")
    try:
        cls = getattr(importlib.import_module(module), cls_name)
    except (ImportError, AttributeError) as e:
        raise SeqrlError(
            f"agent '{name}' cannot be imported: {e}",
            hint="module:Class must be importable from here (installed, or on PYTHONPATH)",
        ) from e
    from seqrl.agents.agent import Agent

    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise SeqrlError(f"'{name}' is not a subclass of seqrl.agents.agent.Agent")
    return cls
