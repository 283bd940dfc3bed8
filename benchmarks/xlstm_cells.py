"""Speed of the mLSTM and sLSTM layers against the ``xlstm`` package and against themselves.

    OMP_NUM_THREADS=1 python benchmarks/xlstm_cells.py [--rounds 9] [--only c2 c3 c5 r5]

``c2``, ``c3``: forward and backward of one layer (width 128, 4 heads) at B=64, L=60 and at B=8,
L=1024; the package runs its defaults on a CPU (parallel mLSTM, plain sLSTM). ``c5``: 8,192 tokens
at L=1024 against L=256, at the same batch and at the same number of tokens a call. ``r5``: three
mLSTM blocks stepping token by token, at batch 1 and 32, and after 1,000 tokens against after 20.

All cases of a table alternate in one process on one core; figures are process CPU milliseconds
(medians) and medians of pair ratios with quartiles. The package is left out where it is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import alternate, machine, median_ratio, ratio, table
from seqrl.layers.mlstm import MLSTM
from seqrl.layers.slstm import SLSTM
from seqrl.layers.xlstm import xlstm_stack

WIDTH, HEADS = 128, 4
SHAPES = ((64, 60), (8, 1024))
Case = Callable[[], object]


def peers() -> bool:
    """Whether the xlstm package is here."""
    return importlib.util.find_spec("xlstm") is not None


def both_ways(layer: nn.Module, rows: int, length: int) -> Case:
    """Forward and backward of a layer on random input."""
    x = torch.randn(rows, length, WIDTH, requires_grad=True)
    g = torch.randn(rows, length, WIDTH)

    def run() -> None:
        y = layer(x)
        (y[0] if isinstance(y, tuple) else y).backward(g)

    return run


def their_mlstm(length: int) -> nn.Module:
    from xlstm.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig

    return mLSTMLayer(mLSTMLayerConfig(embedding_dim=WIDTH, num_heads=HEADS, context_length=length))


def their_slstm(length: int) -> nn.Module:
    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

    return sLSTMLayer(sLSTMLayerConfig(embedding_dim=WIDTH, num_heads=HEADS, backend="vanilla"))


class Library(nn.Module):
    """torch's own LSTM, as a yardstick."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0]


def repeated(case: Case, times: int) -> Case:
    """The same several times over."""

    def run() -> None:
        for _ in range(times):
            case()

    return run


def report(title: str, times: dict[str, np.ndarray], unit: str = "ms") -> None:
    """A table of medians and of ratios to the first case."""
    first = next(iter(times))
    rows = [[n, f"{np.median(t) * 1e3:.2f}", ratio(times, n, first)] for n, t in times.items()]
    print(f"\n{title}")
    print(table(["case", f"CPU {unit}", f"x {first}"], rows))


def layers(
    title: str, ours: Callable[[], nn.Module], theirs: Callable[[int], nn.Module], rounds: int
) -> None:
    """Goals C2 and C3."""
    for rows, length in SHAPES:
        torch.manual_seed(0)
        cases: dict[str, Case] = {"seqrl": both_ways(ours(), rows, length)}
        if peers():
            cases["xlstm"] = both_ways(theirs(length), rows, length)
        cases["nn.LSTM"] = both_ways(Library(), rows, length)
        report(f"{title}, B={rows}, L={length}, fwd + bwd", alternate(cases, rounds, warm=2))


def linear_in_length(rounds: int) -> None:
    """Goal C5."""
    for name, cls in (("mLSTM", MLSTM), ("sLSTM", SLSTM)):
        torch.manual_seed(0)
        layer = cls(WIDTH, HEADS)
        cases = {
            "B=8, L=1024": both_ways(layer, 8, 1024),
            "B=32, L=256": both_ways(layer, 32, 256),
            "4 times B=8, L=256": repeated(both_ways(layer, 8, 256), 4),
        }
        report(f"{name}, 8,192 tokens, fwd + bwd", alternate(cases, rounds, warm=2))


def stepping(rounds: int, calls: int = 40) -> None:
    """Goal R5."""
    torch.manual_seed(0)
    stack = xlstm_stack(WIDTH, 3, HEADS).eval()
    single = {}
    for rows in (1, 32):
        cases: dict[str, Case] = {"seqrl": _stepper(stack, rows)}
        if peers():
            cases["xlstm"] = _their_stepper(rows)
        with torch.inference_mode():
            times = alternate(cases, rounds, warm=2, calls=calls)
        report(f"3 mLSTM blocks, one token, batch {rows}", times)
        single[rows] = float(np.median(times["seqrl"])) / rows
    print(f"\nper environment, batch 32 / batch 1: {single[32] / single[1]:.3f}")
    with torch.inference_mode():
        cases = {f"after {n} tokens": _stepper(stack, 1, n) for n in (20, 1000)}
        times = alternate(cases, rounds, warm=2, calls=calls)
    print(f"after 1,000 tokens / after 20: {median_ratio(times, *reversed(cases)):.3f}")


def _stepper(stack: nn.Module, rows: int, before: int = 20) -> Case:
    x = torch.randn(rows, WIDTH)
    held = [stack.initial_state(rows)]

    def run() -> None:
        _, held[0] = stack.step(x, held[0])

    with torch.inference_mode():
        for _ in range(before):
            run()
    return run


def _their_stepper(rows: int) -> Case:
    from xlstm import (
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        xLSTMBlockStack,
        xLSTMBlockStackConfig,
    )

    layer = mLSTMLayerConfig(num_heads=HEADS)
    stack = xLSTMBlockStack(
        xLSTMBlockStackConfig(
            mlstm_block=mLSTMBlockConfig(mlstm=layer),
            context_length=60,
            num_blocks=3,
            embedding_dim=WIDTH,
        )
    ).eval()
    x = torch.randn(rows, 1, WIDTH)
    held: list[dict] = [{}]

    def run() -> None:
        _, held[0] = stack.step(x, held[0])

    return run


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", choices=("c2", "c3", "c5", "r5"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    wanted = args.only or ("c2", "c3", "c5", "r5")
    print(f"xLSTM layers, {machine()}, {args.rounds} rounds")
    if not peers():
        print("xlstm: not installed, left out", file=sys.stderr)
    if "c2" in wanted:
        layers("mLSTM layer", lambda: MLSTM(WIDTH, HEADS), their_mlstm, args.rounds)
    if "c3" in wanted:
        layers("sLSTM layer", lambda: SLSTM(WIDTH, HEADS), their_slstm, args.rounds)
    if "c5" in wanted:
        linear_in_length(args.rounds)
    if "r5" in wanted:
        stepping(args.rounds)


if __name__ == "__main__":
    main()
