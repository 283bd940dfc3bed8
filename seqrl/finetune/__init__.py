"""Fine-tuning: an offline policy goes on learning in its environment.

>>> from seqrl.finetune import FinetuneConfig, finetune
>>> run = finetune("runs/x", FinetuneConfig(method="weighted_bc"))          # doctest: +SKIP
>>> run.summary()["final"][-1]["return"]["mean"]                            # doctest: +SKIP

Importing this loads no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl.finetune.config import ActorCriticConfig, FinetuneConfig, WeightedBCConfig

if TYPE_CHECKING:
    from seqrl.finetune.run import FinetuneRun

__all__ = ["ActorCriticConfig", "FinetuneConfig", "WeightedBCConfig", "finetune"]


def finetune(
    source: str | Path,
    config: FinetuneConfig | None = None,
    *,
    out: str | Path | None = None,
    **options: Any,
) -> FinetuneRun:
    """Fine-tune a run, as ``seqrl finetune`` does.

    Args:
        source: run folder, or anything inside it.
        config: settings; see :class:`FinetuneConfig`.
        out: the new run folder; by default ``runs/ENVIRONMENT/AGENT-METHOD/DATE_sSEED``.
        options: as for :func:`seqrl.finetune.run.prepare`: ``checkpoint``,
            ``evaluation={"targets": [3600]}``, ``eval_episodes``, ...

    Raises:
        SeqrlError: whatever the command line would refuse.
    """
    from seqrl.finetune.run import prepare, run_finetune

    return run_finetune(prepare(source, config or FinetuneConfig(), **options), out=out)
