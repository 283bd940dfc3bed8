"""What the trainer costs beside forward and backward (goal: 2 % of a step, 3 ms for tiny models).

    OMP_NUM_THREADS=1 python benchmarks/trainer_overhead.py [--rounds 9]

Both sides alternate in one process and are measured in process CPU time: a whole trainer step
(sampling, seeding, loss, backward, finiteness, clipping, AdamW, running means, rows of metrics
every 100 steps in all default files), and the bare loss and backward on batches drawn beforehand.
Checkpoints and evaluations are left out. Exit code 1 when the goal is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import alternate, machine, table
from benchmarks.training_speed import B, synthetic
from seqrl.agents.agent import Agent
from seqrl.agents.registry import agent_class
from seqrl.datasets.trajectories import Trajectories
from seqrl.optim import clip_gradients
from seqrl.runfolder import RunFolder
from seqrl.trainer import TrainConfig, Trainer

AGENTS: dict[str, tuple[str, dict[str, object], int]] = {
    # label: registered agent, config fields, calls a measurement
    "bc, width 32 (tiny)": ("bc", {"width": 32, "n_layer": 1}, 400),
    "dt, width 32, 1 layer": ("dt", {"width": 32, "n_layer": 1, "context": 10}, 60),
    "dt, published (0.73M)": ("dt", {"attn_dropout": 0.1}, 4),
}


def make(name: str, fields: dict[str, object], data: Trajectories) -> Agent:
    """An agent of the registry with the same first weights every time."""
    cls = agent_class(name)
    torch.manual_seed(0)
    return cls(cls.config_class(**fields), [data.task], [data.stats]).train()


def whole_step(agent: Agent, data: Trajectories, folder: Path) -> Callable[[], None]:
    """One step of the trainer as ``fit`` takes it."""
    config = TrainConfig(steps=10**9, batch_size=B, device="cpu")
    run = RunFolder.create(folder, config={})
    trainer = Trainer(agent, [data], config=config, run=run)
    trainer._start(resume=False, allow_change=False)

    def step() -> None:
        trainer._update()
        trainer._tail()

    return step


def bare_step(agent: Agent, data: Trajectories) -> Callable[[], None]:
    """Loss and backward alone."""
    from seqrl.datasets.sampling import Sampler

    sampler = Sampler([data], agent.config.window(), B)
    batches = [sampler.batch(u) for u in range(32)]
    params = list(agent.parameters())
    count = iter(range(10**9))

    def step() -> None:
        agent.loss(batches[next(count) % 32]).loss.backward()
        for p in params:
            p.grad = None

    return step


def optimiser_step(agent: Agent) -> Callable[[], None]:
    """Clipping and fused AdamW on fixed gradients."""
    params = list(agent.parameters())
    optimizer = torch.optim.AdamW(params, lr=1e-9, fused=True)
    for p in params:
        p.grad = torch.randn_like(p)

    def step() -> None:
        clip_gradients(params, 0.25)
        optimizer.step()

    return step


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    data, rows, missed = synthetic(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for label, (name, fields, calls) in AGENTS.items():
            cases = {
                "whole": whole_step(make(name, fields, data), data, Path(folder) / label[:12]),
                "bare": bare_step(make(name, fields, data), data),
                "optimiser": optimiser_step(make(name, fields, data)),
            }
            times = alternate(cases, rounds, calls=calls)
            whole, bare, optimiser = (float(np.median(times[k])) * 1e3 for k in cases)
            extra = float(np.median(times["whole"] - times["bare"])) * 1e3
            share = extra / whole
            if extra > 3 and share > 0.02:
                missed.append(label)
            figures = [f"{v:.2f}" for v in (whole, bare, extra, optimiser)]
            rows.append([label, *figures, f"{share:.1%}"])
    print(f"Trainer overhead, {machine()}, {rounds} rounds, CPU ms a step (batch {B})")
    header = ["agent", "whole step", "loss + backward", "overhead", "of it clip + AdamW", "share"]
    print(table(header, rows))
    if missed:
        sys.exit(f"over 2 % of the step and over 3 ms: {', '.join(missed)}")


if __name__ == "__main__":
    main()
