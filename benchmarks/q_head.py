"""The action decoder of the Q-Transformer against the ``q-transformer`` package's head.

    OMP_NUM_THREADS=1 python benchmarks/q_head.py [--rounds 9] [--widths 128 256]

Goals: forward and backward, 256 rows of 3 action dimensions with 256 bins, at least 1.5 times as
fast as the package's ``QHeadMultipleActions``; a greedy action in at most 4 ms a state. Both are
held against at width 256.

Both heads get the same: 4 state vectors a row and the logged bins, two blocks of 8 heads with an
MLP of four times the width, dropout 0, float32, train mode, a sigmoid on what comes out, gradients
of parameters and state vectors. They are two designs of one task, not one function: ours runs
states and bins through the same blocks, theirs lets bins attend to finished states and adds four
learned keys to every attention. The package multiplies its token stream by four (hyper-connections)
unless told not to: ``one stream`` is the like of ours, ``as released`` its default. ``three tokens
only`` spares it the look-up of the last bin, which its learner passes and its head throws away.

Acting is the agent's own ``act`` under inference mode, state embedding and decoding included;
theirs is ``get_optimal_actions`` on finished state vectors, without its random bins. 8 rows are one
block of an evaluation (``row_block``): what one environment alone costs there by default, too.

Cases alternate in one process pinned to one core; figures are process CPU milliseconds (medians)
and medians of pair ratios. Exit code 1 when a goal is missed. Without the package what compares
with it is left out. Its requirements reach as far as torchvision through a text conditioner that
the head never calls: the script stands in for it, so that this is enough (torch stays as it is)::

    pip install --no-deps q-transformer accelerate psutil adam-atan2-pytorch beartype einx \
        frozendict ema-pytorch hl-gauss-pytorch hyper-connections jaxtyping wadler-lindig loguru \
        torch-einops-utils x-transformers
    pip install einops huggingface-hub packaging pyyaml safetensors
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.acting_latency import OBS, spaces, step_of
from benchmarks.common import alternate, machine, median_ratio, ratio, table
from seqrl.agents.q_transformer import QTransformer, QTransformerConfig
from seqrl.layers.action_decoder import BinValues
from seqrl.spec import ObservationSpec

ROWS, DIMS, BINS, STATES, LAYERS, HEADS = 256, 3, 256, 4, 2, 8
JUDGED = 256
"""Width at which the goals are meant."""
OWN, FLOOR = "seqrl", "GEMM floor"
STREAMS = {"q-transformer, one stream": 1, "q-transformer, as released": 4}
LIKE, SPARED = "q-transformer, one stream", "q-transformer, one stream, three tokens only"
Case = Callable[[], object]


def peer_head() -> type[nn.Module] | None:
    """The package's head, or None where it is not installed."""
    conditioner = "classifier_free_guidance_pytorch"
    try:
        importlib.import_module(conditioner)
    except ImportError:
        stand_in = types.ModuleType(conditioner)
        for name in ("TextConditioner", "AttentionTextConditioner", "NullConditioner"):
            setattr(stand_in, name, object)
        stand_in.classifier_free_guidance = lambda f: f  # type: ignore[attr-defined]
        sys.modules[conditioner] = stand_in
    try:
        module = importlib.import_module("q_transformer.q_robotic_transformer")
    except ImportError as e:
        print(f"q-transformer: left out ({e})", file=sys.stderr)
        return None
    return module.QHeadMultipleActions


def theirs(head: type[nn.Module], width: int, streams: int) -> nn.Module:
    """A head of the package with random weights."""
    torch.manual_seed(0)
    return head(
        width, num_actions=DIMS, action_bins=BINS, attn_depth=LAYERS, attn_heads=HEADS,
        attn_dim_head=width // HEADS, num_residual_streams=streams,
    )  # fmt: skip


# --- forward and backward -----------------------------------------------------------------------


def own_update(width: int) -> Case:
    """Values of every bin along logged actions, and their gradients."""
    torch.manual_seed(0)
    net = BinValues(
        ObservationSpec("vector", (OBS,)), (BINS,) * DIMS, width=width, layers=LAYERS,
        heads=HEADS, context=STATES,
    )  # fmt: skip
    states = torch.randn(ROWS, STATES, 1, width, requires_grad=True)
    real = torch.ones(ROWS, STATES, dtype=torch.bool)
    bins, weight = torch.randint(0, BINS, (ROWS, DIMS)), torch.randn(ROWS, 1, DIMS, BINS)

    def run() -> None:
        values, _ = net.read((states, real), bins[:, :-1])
        values.backward(weight)
        net.zero_grad()
        states.grad = None

    return run


def their_update(head: type[nn.Module], width: int, streams: int, spared: bool = False) -> Case:
    """The same by the package."""
    net = theirs(head, width, streams)
    states = torch.randn(ROWS, STATES, width, requires_grad=True)
    bins, weight = torch.randint(0, BINS, (ROWS, DIMS)), torch.randn(ROWS, DIMS, BINS)
    given = bins[:, :-1] if spared else bins

    def run() -> None:
        net(states, given).sigmoid().backward(weight)
        net.zero_grad()
        states.grad = None

    return run


def gemm_floor(width: int) -> Case:
    """The matrix products that our linear layers cannot do without, forward and backward, into
    given memory: in the last block queries, output and MLP of what is read alone."""
    every, read, d = ROWS * (STATES + DIMS - 1), ROWS * DIMS, width
    mlp = ((d, 4 * d), (4 * d, d))
    products = [(every, i, o) for i, o in ((d, 3 * d), (d, d), *mlp)] * (LAYERS - 1)
    products += [(every, d, 2 * d)]
    products += [(read, i, o) for i, o in ((d, d), (d, d), *mlp, (d, BINS))]
    work = []
    for n, i, o in products:
        x, w, g = torch.randn(n, i), torch.randn(o, i), torch.randn(n, o)
        work.append((x, w, g, torch.empty(n, o), torch.empty(n, i), torch.empty(o, i)))

    def run() -> None:
        for x, w, g, y, dx, dw in work:
            torch.mm(x, w.t(), out=y)
            torch.mm(g, w, out=dx)
            torch.mm(g.t(), x, out=dw)

    return run


def measure_updates(
    width: int, head: type[nn.Module] | None, rounds: int, missed: list[str]
) -> list[list[str]]:
    """Rows of the table of updates."""
    cases = {OWN: own_update(width), FLOOR: gemm_floor(width)}
    if head is not None:
        cases |= {name: their_update(head, width, n) for name, n in STREAMS.items()}
        cases[SPARED] = their_update(head, width, 1, spared=True)
    times = alternate(cases, rounds)
    if head is not None and width == JUDGED and median_ratio(times, LIKE, OWN) < 1.5:
        missed.append(f"less than 1.5 times as fast as {LIKE}")
    return [
        [str(width), name, f"{np.median(t) * 1e3:.0f}", ratio(times, name, FLOOR),
         ratio(times, name, OWN) if name != OWN else "1"]
        for name, t in times.items()
    ]  # fmt: skip


# --- acting -------------------------------------------------------------------------------------


def own_steps(width: int, rows: int) -> Case:
    """One step of the agent in the midst of an episode; its state goes on."""
    torch.manual_seed(0)
    task, stats = spaces(1000)
    config = QTransformerConfig(
        context=STATES, width=width, n_layer=LAYERS, n_head=HEADS, bins=BINS
    )
    agent = QTransformer(config, [task], [stats]).eval()
    step, held = step_of(rows, 5), [agent.initial_state(rows)]

    def run() -> None:
        _, held[0] = agent.act(held[0], step)

    return run


def their_steps(head: type[nn.Module], width: int, rows: int, streams: int) -> Case:
    """The same by the package, from finished state vectors."""
    net, states = theirs(head, width, streams).eval(), torch.randn(rows, STATES, width)
    return lambda: net.get_optimal_actions(states, prob_random_action=0.0)


def measure_acting(
    width: int, head: type[nn.Module] | None, rounds: int, missed: list[str]
) -> list[list[str]]:
    """Rows of the table of acting."""
    found = []
    for rows in (1, 8, 16):
        cases: dict[str, Case] = {OWN: own_steps(width, rows)}
        if head is not None:
            cases |= {k: their_steps(head, width, rows, n) for k, n in STREAMS.items()}
        with torch.inference_mode():
            times = alternate(cases, rounds, calls=20)
        for name, t in times.items():
            ms = float(np.median(t)) * 1e3
            compared = ratio(times, name, OWN) if name != OWN else "1"
            found.append([str(width), str(rows), name, f"{ms:.2f}", f"{ms / rows:.2f}", compared])
            if name == OWN and width == JUDGED and ms / rows > 4:
                missed.append(f"{rows} rows: over 4 ms a state")
    return found


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--widths", type=int, nargs="*", default=(128, 256))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    head, missed = peer_head(), []
    sizes = f"{DIMS} dimensions of {BINS} bins, {STATES} states, {LAYERS} blocks of {HEADS} heads"
    print(f"Action decoder, {sizes}, {machine()}, {args.rounds} rounds")
    print(f"\nForward and backward, {ROWS} rows")
    rows = [r for w in args.widths for r in measure_updates(w, head, args.rounds, missed)]
    print(table(["width", "case", "CPU ms", "x GEMM floor", "x seqrl"], rows))
    print("\nA greedy action")
    rows = [r for w in args.widths for r in measure_acting(w, head, args.rounds, missed)]
    print(table(["width", "rows", "case", "CPU ms", "ms a state", "x seqrl"], rows))
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
