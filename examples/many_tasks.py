"""One model for many tasks: an LRAM over up to nine of them, beside the same model on each alone.

    python examples/many_tasks.py --out runs/many                  all of it; a killed run goes on
    python examples/many_tasks.py --out runs/many --part together  the one model only
    python examples/many_tasks.py --out runs/many --part table     what is there so far

Vectors and images, discrete and continuous actions: two T-Mazes (as numbers and as pictures), five
classic control tasks whose data a scripted player with a varying share of random moves makes here,
and Hopper and Walker2d where their Minari datasets are in the local store. Every task alone gets as
many updates of its own as it has in the mix.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import seqrl
from seqrl.collect import collect, write
from seqrl.draws import RowDraws
from seqrl.errors import SeqrlError
from seqrl.references.policy import ReferencePolicy
from seqrl.spec import Step, TaskSpec

PRESET = "lram/many-small"
Rule = Callable[[Tensor], Tensor]


def _pendulum(o: Tensor) -> Tensor:
    """Pump energy until nearly upright, then hold."""
    angle, speed = torch.atan2(o[:, 1], o[:, 0]), o[:, 2]
    hold = -(12 * angle + 3 * speed)
    way = torch.where(speed < 0, -1.0, 1.0)
    pump = 2 * way * torch.sign(5 - (speed.square() / 6 + 5 * o[:, 0]))
    near = (o[:, 0] > 0.85) & (speed.abs() < 4)
    return torch.where(near, hold, pump).clamp(-2, 2).unsqueeze(-1)


RULES: dict[str, Rule] = {
    "CartPole-v1": lambda o: (o[:, 2] + 0.4 * o[:, 3] + 0.02 * o[:, 0] + 0.05 * o[:, 1] > 0).long(),
    "Acrobot-v1": lambda o: torch.where(o[:, 5] > 0, 2, 0),
    "MountainCar-v0": lambda o: torch.where(o[:, 1] >= 0, 2, 0),
    "MountainCarContinuous-v0": lambda o: torch.where(o[:, 1:2] >= 0, 1.0, -1.0),
    "Pendulum-v1": _pendulum,
}
"""What a competent player does in each environment."""

BUILT_IN = {
    "T-Maze, numbers": "oracle:seqrl/TMaze-v0?limit=30&episodes=1000",
    "T-Maze, pictures": "oracle:seqrl/TMaze-v0?limit=15&episodes=300&obs=pixels",
}
LOCAL = ("seqrl/hopper/medium-v0", "seqrl/walker2d/medium-v0")


class Scripted(ReferencePolicy):
    """A rule, but for a share of random moves that is drawn anew for every episode."""

    name = "scripted"

    def __init__(self, task: TaskSpec, rule: Rule, most: float):
        super().__init__(task)
        self.rule, self.most = rule, most

    def initial_state(self, n: int) -> Tensor:
        return torch.zeros(n)

    def act(self, state: Tensor, step: Step, generator: RowDraws | None = None) -> tuple[Any, Any]:
        if generator is None:
            raise SeqrlError("a scripted player needs a generator")
        action = self.tasks[0].action
        u = generator.uniform(3)  # share of the episode, whether this move is random, which
        share = torch.where(step.first, u[:, 0] * self.most, state)
        wild = u[:, 1] < share
        if action.kind == "discrete":
            other = (u[:, 2] * action.n).long()
            return torch.where(wild, other, self.rule(step.observation)), share
        low, high = torch.tensor(action.low), torch.tensor(action.high)
        other = low + u[:, 2:] * (high - low)
        return torch.where(wild.unsqueeze(1), other, self.rule(step.observation)), share


def sources(folder: Path, episodes: int, most: float = 0.6) -> dict[str, str]:
    """A name and the data of every task; what is missing is played and kept under ``folder``."""
    from seqrl.datasets import minari_store
    from seqrl.envs.pool import env_factory, make_pool, task_of

    found = dict(BUILT_IN)
    for env_id, rule in RULES.items():
        file = folder / f"{env_id}.npz"
        if not file.exists():
            with make_pool(env_factory(env_id, {}), 1, "sync") as pool:
                player = Scripted(task_of(pool, env_id, {}), rule, most)
            print(f"playing {env_id}", file=sys.stderr)
            folder.mkdir(parents=True, exist_ok=True)
            write(collect(env_id, player, episodes=episodes, num_envs=8), f"npz:{file}")
        found[env_id] = f"npz:{file}"
    for name in LOCAL:
        if minari_store.is_local(name):
            found[name.removeprefix("seqrl/")] = f"minari:{name}"
        else:
            print(f"{name} is not in the local Minari store: left out", file=sys.stderr)
    return found


def run(out: Path, data: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Train, go on with or just read the run in ``out``; its summary."""
    from seqrl.experiment import Watch, resume_experiment

    record = out / "run.json"
    if record.exists():
        known = json.loads(record.read_text())
        if known["status"] == "done":
            return known["summary"]
        return resume_experiment(out, watch=Watch(stream=sys.stderr)).summary()
    done = seqrl.train("lram", data, preset=PRESET, out=out, progress=True, **settings)
    return done.summary()


def settings_of(steps: int, args: argparse.Namespace) -> dict[str, Any]:
    """What is set beside the preset: length, seed, how often and how long to evaluate."""
    return {
        "steps": steps, "seed": args.seed, "eval_every": max(1, steps // 4), "eval_episodes": 3,
        "loggers": ["jsonl"], "eval": {"episodes": args.eval_episodes},
    }  # fmt: skip


def table(out: Path, names: list[str]) -> str:
    """Normalised scores of the one model and of each alone."""
    together = _summary(out / "together")
    lines = [f"{'task':<26}{'together':>10}{'alone':>10}"]
    pairs = []
    for i, name in enumerate(names):
        mixed = together and _score(together["tasks"][i]["summary"])
        alone = _summary(out / f"alone_{i}")
        single = alone and _score(alone["final"])
        pairs.append((mixed, single))
        lines.append(f"{name:<26}{_cell(mixed)}{_cell(single)}")
    columns = zip(*pairs, strict=True)
    means = [sum(c) / len(c) if all(v is not None for v in c) else None for c in map(list, columns)]
    return "\n".join([*lines, f"{'mean':<26}{''.join(map(_cell, means))}"])


def _summary(folder: Path) -> dict[str, Any] | None:
    file = folder / "run.json"
    return json.loads(file.read_text()).get("summary") if file.exists() else None


def _score(summary: list[dict[str, Any]]) -> float | None:
    found = summary[-1]["normalized"]
    return None if found is None else found["mean"]


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else round(value, 1) + 0.0:>10}"


def main() -> None:
    """Make the data, train what is asked for, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/many"))
    parser.add_argument("--part", choices=("all", "together", "alone", "table"), default="all")
    parser.add_argument("--steps", type=int, default=13_500, help="updates of the one model")
    parser.add_argument("--episodes", type=int, default=200, help="played for each classic task")
    parser.add_argument("--eval-episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    named = sources(args.out / "data", args.episodes)
    names, data = list(named), list(named.values())
    if args.part in ("all", "together"):
        run(args.out / "together", data, settings_of(args.steps, args))
    if args.part in ("all", "alone"):
        alone = settings_of(max(1, args.steps // len(data)), args)
        # The same scale for scores as in the mix: random play and the data's 90 % quantile where no
        # reference is known.
        for i, uri in enumerate(data):
            run(args.out / f"alone_{i}", [uri], alone | {"eval": _scaled(uri, alone["eval"])})
    print(table(args.out, names))


def _scaled(uri: str, settings: dict[str, Any]) -> dict[str, Any]:
    from seqrl.evaluating import task_config
    from seqrl.evaluation import EvalConfig

    task = seqrl.load_dataset(uri).task
    config = task_config(EvalConfig(**settings), task, task.name, several=True)
    return {k: v for k, v in dataclasses.asdict(config).items() if k in ("episodes", "normaliser")}


if __name__ == "__main__":
    main()
