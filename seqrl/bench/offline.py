"""Measures on recorded contexts, for entrants that learn in context and for classical rules.

``{"context_sizes": [1, 5, 25], "episodes": 200}``: suboptimality of the arm named from the first n
recorded pulls. ``{"contexts": URI, "episodes": 100}``: an episode with recorded transitions of its
task shown, apart by whether they show a reward. See ``seqrl/offline_contexts.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqrl import offline_contexts as offline
from seqrl.errors import SeqrlError
from seqrl.evaluation import EvalConfig
from seqrl.presets.settings import build
from seqrl.spec import TaskSpec

NAMES = ("context_sizes", "contexts")
"""Options that make a measure one of these."""


def is_offline(measure: Mapping[str, Any]) -> bool:
    """Whether a measure is one of these."""
    return any(name in measure["options"] for name in NAMES)


def take(measure: Mapping[str, Any], task: TaskSpec, agent: Any, rule: str | None) -> list[Any]:
    """The results of a measure.

    Args:
        measure: of a plan.
        task: of the data.
        agent: a DPT, or None.
        rule: name of a reference policy, where there is no agent.

    Raises:
        SeqrlError: a policy that makes nothing of recorded contexts.
    """
    options = dict(measure["options"])
    sizes, uri = (options.pop(name, None) for name in NAMES)
    config = build(EvalConfig, options, "measure")
    if rule is None and not hasattr(agent, "prefix_predictions"):
        raise SeqrlError(f"'{agent.name}' takes no recorded contexts")
    if uri is not None:
        if rule is not None:
            raise SeqrlError(f"'{rule}' acts in no room from recorded transitions")
        return _rooms(measure, uri, agent, config)
    if rule is None:
        choosers = {"it": offline.agent_chooser(agent)}
    else:
        known = offline.reference_choosers_named([rule], task, config.seed)
        choosers = {"it": known[rule]}
    found = offline.suboptimality(task, choosers, sizes, config.episodes, config.seed)["it"]
    return [
        {
            **_blank(measure),
            "label": f"{measure['label']} {row['size']}",
            "x": row["size"],
            "n": config.episodes,
            "regret": {k: v for k, v in row.items() if k != "size"},
        }
        for row in found
    ]


def _rooms(
    measure: Mapping[str, Any], uri: str, agent: Any, config: EvalConfig
) -> list[dict[str, Any]]:
    report, groups = offline.with_contexts(agent, uri, config)
    facts = {"decode": config.decode, "env": report.env, "seed": config.seed}
    return [
        {
            **_blank(measure),
            **facts,
            **dict.fromkeys(("label", "group"), f"{measure['label']}, reward {name}"),
            "n": g["episodes"],
            "return": g["return"],
            "oracle": g["oracle"],
        }
        for name, g in groups.items()
        if g["episodes"]
    ]


def _blank(measure: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says that holds no such number."""
    empty = ["target", "success", "normalized", "return", "regret", "trials", "length"]
    empty += ["decode", "env"]
    first = {"group": measure["group"] or "given", "x": None, "target_label": "-"}
    return {**dict.fromkeys(empty), **first, "checkpoint": None, "notes": []}
