"""Training speed of every agent relative to the Decision Transformer of equal width and depth.

    OMP_NUM_THREADS=1 python benchmarks/relative_training_speed.py [--rounds 9] [--widths 64 128]
    OMP_NUM_THREADS=1 python benchmarks/relative_training_speed.py --rounds 2 --only dc   # smoke

One synthetic dataset of Hopper's shape, batches of 64 windows of 20 steps (agents that are trained
otherwise take their own windows, named in the table), 3 layers, float32, dropout 0.1 where an
agent has it. An update is sampling, loss, gradients, clipping and fused AdamW. Every agent
alternates with the Decision Transformer in pairs; figures are process CPU milliseconds (medians)
and the median ratio of updates a second, with quartiles.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import alternate, machine, ratio, table
from benchmarks.training_speed import synthetic
from seqrl.agents import registry
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.layers.mixer import MIXERS

B, K, LAYERS = 64, 20, 3

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dt": ("dt", {}),
    "bc": ("bc", {}),
    "lstm": ("lstm", {}),
    "dc": ("dc", {}),
    "dc, hybrid": ("dc", {"mixer": ("conv", "conv", "attention")}),
    "decision_mamba": ("decision_mamba", {}),
    "dmamba": (
        "decision_mamba",
        {"variant": "dmamba", "teacher": "none", "next_state_weight": 0, "next_return_weight": 0},
    ),
    "decision_s4": ("decision_s4", {"windows": "any_start"}),
    "lram": ("lram", {}),
    "lram, one sLSTM": ("lram", {"slstm_at": (1,)}),
    "rate": ("rate", {}),
    **{f"dt of {m}": ("dt", {"mixer": (m,)}) for m in sorted(set(MIXERS) - {"attention"})},
}
"""Case to agent and settings; width, layers, context and dropout are set where it has them."""


def update_of(data: Trajectories, name: str, fields: dict[str, Any], width: int) -> Any:
    """One update of an agent as a function without arguments; its parameters and its windows."""
    cls = registry.agent_class(name)
    known = {f.name for f in dataclasses.fields(cls.config_class)}
    sizes = {"width": width, "n_layer": LAYERS, "context": K, "dropout": 0.1, "embed_dropout": 0.1}
    config = cls.config_class(**{**{k: v for k, v in sizes.items() if k in known}, **fields})
    stats = dataclasses.replace(data.stats, custom=cls.statistics(config, data))
    torch.manual_seed(0)
    agent = cls(config, [data.task], [stats]).train()
    groups = [
        {k: v for k, v in g.items() if k in ("params", "weight_decay")}
        for g in agent.parameter_groups()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4, fused=True)
    params = [p for g in groups for p in g["params"]]
    window = config.window()
    sampler = Sampler([data], window, B, seed=0)
    count = iter(range(10**9))

    def run() -> None:
        number = next(count)
        batch = sampler.batch(number)
        several = agent.losses(batch)
        for out in [agent.loss(batch)] if several is None else several:
            out.loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 0.25, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        agent.after_update(number + 1)

    trained = sum(p.numel() for p in params)
    return run, trained, f"{window.kind}, {window.length or 'whole'}"


def compared(
    data: Trajectories, label: str, width: int, rounds: int
) -> tuple[list[str], dict[str, Any]]:
    """One case in pairs with dt: a line of the table and the figures."""
    base, _, _ = update_of(data, *CASES["dt"], width)
    run, trained, window = update_of(data, *CASES[label], width)
    pair: dict[str, Callable[[], object]] = {"dt": base, label: run}
    times = alternate(pair, rounds=rounds)
    ms = {k: 1e3 * float(np.median(v)) for k, v in times.items()}
    relative = "1" if label == "dt" else ratio(times, "dt", label)
    line = [label, f"{trained / 1e6:.2f}", window, f"{ms[label]:.1f}", f"{ms['dt']:.1f}", relative]
    return line, {"case": label, "width": width, "ms": ms[label], "dt_ms": ms["dt"]}


def main() -> None:
    """Measure and print a table a width."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--only", nargs="+", help="cases by name")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, record = synthetic(50_000), []
    print(f"Training speed relative to dt, {machine()}, {args.rounds} pairs\n")
    for width in args.widths:
        lines = []
        for label, (agent, _) in CASES.items():
            if args.only and label not in args.only:
                continue
            if agent not in registry.names():
                print(f"{label}: no such agent yet, left out", file=sys.stderr)
                continue
            line, figures = compared(data, label, width, args.rounds)
            lines.append(line)
            record.append(figures)
            print(f"width {width}: {label} {line[-1]}", file=sys.stderr, flush=True)
        head = [f"width {width}", "parameters, M", "windows", "ms an update", "dt, ms"]
        print(table([*head, "updates a second / dt's"], lines), end="\n\n")
    if args.json:
        text = json.dumps({"machine": machine(), "cases": record}, indent=1)
        Path(args.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
