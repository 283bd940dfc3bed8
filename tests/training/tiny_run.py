"""A whole tiny run as a program, for tests that kill it, signal it or start several of it.

Also importable: ``run(...)`` is what a child process of the tests executes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tiny_agent import tiny, tiny_data

from seqrl.distributed import Processes
from seqrl.errors import RunInterrupted, SeqrlError
from seqrl.loggers import make_loggers
from seqrl.optim import OptimConfig
from seqrl.progress import ProgressSink
from seqrl.runfolder import RunFolder
from seqrl.trainer import EvalOutcome, Trainer
from seqrl.training import TrainConfig

OPTIM: dict[str, Any] = {
    "lr": 3e-3,
    "warmup_steps": 10,
    "schedule": "cosine",
    "ema": 0.9,
    "accumulation": 2,
}


def config(optim: dict[str, Any] | None = None, **fields: Any) -> TrainConfig:
    """Small and with everything switched on that a resumed run could get wrong."""
    values = {"steps": 40, "batch_size": 8, "log_every": 3, "eval_every": 5, "save_every": 4}
    values.update(val_batches=2, device="cpu")
    return TrainConfig(optim=OptimConfig(**{**OPTIM, **(optim or {})}), **{**values, **fields})


def build(
    folder: Path | None,
    conf: TrainConfig,
    agent_fields: dict[str, Any] | None = None,
    *,
    resume: bool = False,
    eval_seconds: float = 0.0,
    loggers: tuple[str, ...] = ("jsonl", "csv"),
    **options: Any,
) -> Trainer:
    """A trainer with hold-out and evaluator, writing to ``folder``."""
    data, held = tiny_data(), tiny_data(6, seed=1)
    agent = tiny(data, **{"dropout": 0.2, **(agent_fields or {})})
    run = None
    if folder is not None and Processes.from_env().first:
        known = resume and (folder / "run.json").exists()
        run = RunFolder(folder) if known else RunFolder.create(folder, config=conf.to_json())

    def evaluator(agent: Any, step: int) -> EvalOutcome:
        assert not agent.training
        time.sleep(eval_seconds)
        # Draws numbers, as a sampling policy would: they must not depend on what came before.
        noise = float(torch.rand(()))
        score = -float(agent.head.weight.detach().square().sum()) + 1e-3 * noise
        return EvalOutcome(score, {"noise": noise}, {"step": step, "score": score}, "eval[1.0] ok")

    return Trainer(
        agent,
        [data],
        config=conf,
        run=run,
        holdout=[held],
        evaluator=evaluator,
        loggers=None if run is None else make_loggers(loggers, run),
        progress=ProgressSink(sys.stderr, terminal=False),
        **options,
    )


def run(folder: str, options: dict[str, Any]) -> None:
    """Train (or resume) in ``folder`` and exit as the command line would."""
    torch.set_num_threads(1)
    options = dict(options)
    resume = options.pop("resume", False)
    optim, agent = options.pop("optim", {}), options.pop("agent", {})
    made = {k: options.pop(k) for k in ("eval_seconds",) if k in options}
    try:
        trainer = build(
            Path(folder), config(optim, **options), agent, resume=resume, loggers=("jsonl",), **made
        )
        trainer.fit(resume=resume)
    except RunInterrupted as e:
        print(f"{e.message}\n{e.hint}", file=sys.stderr)
        sys.exit(130)
    except SeqrlError as e:
        print(f"error: {e.message}\nhint: {e.hint}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
