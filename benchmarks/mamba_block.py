"""The Mamba block (S6) against mambapy's, its GEMM floor and its own length.

    OMP_NUM_THREADS=1 python benchmarks/mamba_block.py [--rounds 9]

Goals: forward and backward of the block at least 3 times as fast as mambapy's parallel scan at both
shapes, at a third of its peak memory, gradients within 1e-5 of the plain loop, and at most 8 times
the block's matrix products; time per token at L=1024 at most 1.3 times that at L=256; a step of
three layers at one row at least 1.3 times as fast as mambapy's, per row a fifth of that at 32 rows.

Cases alternate in one process pinned to one core; figures are process CPU milliseconds (medians)
and medians of pair ratios. Peak memory is what a process of its own grows by. Without ``mambapy``
(pip install mambapy) what compares with it is left out. Exit code 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import alternate, machine, median_ratio, ratio, table
from seqrl.layers.s6 import S6
from seqrl.layers.scan import selective_scan
from seqrl.layers.stack import MixerBlock, MixerStack, RMSNorm

D, N = 128, 16
SHAPES = ((64, 60), (8, 1024))
OWN, PEER, FLOOR = "seqrl S6", "mambapy pscan", "GEMM floor"
PEER_INSTALLED = importlib.util.find_spec("mambapy") is not None


def block(name: str) -> nn.Module:
    """One block, with the same weights whichever of the two."""
    torch.manual_seed(0)
    own = S6(D)
    if name == OWN:
        return own
    from mambapy.mamba import MambaBlock, MambaConfig

    peer = MambaBlock(MambaConfig(d_model=D, n_layers=1))
    peer.load_state_dict(own.state_dict())
    return peer


def update(name: str, batch: int, length: int) -> Callable[[], None]:
    """Forward and backward of one block, gradients of tokens and parameters."""
    module, weight = block(name), torch.randn(batch, length, D)
    x = torch.randn(batch, length, D, requires_grad=True)

    def run() -> None:
        y = module(x)
        (y[0] if isinstance(y, tuple) else y).backward(weight)
        module.zero_grad()
        x.grad = None

    return run


def gemm_floor(batch: int, length: int) -> Callable[[], None]:
    """The four matrix products of a block, forward and backward, into given memory."""
    n, inner, rank = batch * length, 2 * D, D // 16
    work = []
    for i, o in ((D, 2 * inner), (inner, rank + 2 * N), (rank, inner), (inner, D)):
        x, w, g = torch.randn(n, i), torch.randn(i, o), torch.randn(n, o)
        work.append((x, w, g, torch.empty(n, o), torch.empty(n, i), torch.empty(i, o)))

    def run() -> None:
        for x, w, g, y, dx, dw in work:
            torch.mm(x, w, out=y)
            torch.mm(g, w.t(), out=dx)
            torch.mm(x.t(), g, out=dw)

    return run


def peak_megabytes(name: str, batch: int, length: int) -> float:
    """Growth of a process of its own over two updates."""
    command = [sys.executable, __file__, "--memory", name, str(batch), str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(name: str, batch: int, length: int) -> None:
    """The child's part of :func:`peak_megabytes`."""
    update(name, 1, 2)()  # what the libraries load at first use
    run = update(name, batch, length)
    before = _high_water()
    for _ in range(2):
        run()
    print((_high_water() - before) / 1024)


def _high_water() -> float:
    """Most kilobytes this process held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would begin at the parent's figure
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return float(line.split()[1])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def gradient_error() -> float:
    """Largest difference of the scan's gradients from those of a plain loop, relative."""
    torch.manual_seed(0)
    b, length, e = 4, 240, 2 * D
    values = [torch.randn(b, length, e), F.softplus(torch.randn(b, length, e) - 3)]
    values += [-torch.arange(1.0, N + 1).repeat(e, 1)]
    values += [torch.randn(b, length, N), torch.randn(b, length, N)]
    inputs = [v.requires_grad_() for v in values]

    def plain(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        h, outs = torch.zeros(b, e, N), []
        steps = zip(u.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True)
        for ut, dtt, bt, ct in steps:
            decay = torch.exp(dtt.unsqueeze(2) * A)
            h = decay * h + (dtt * ut).unsqueeze(2) * bt.unsqueeze(1)
            outs.append((h * ct.unsqueeze(1)).sum(2))
        return torch.stack(outs, 1)

    weight = torch.randn(b, length, e)
    want = torch.autograd.grad(plain(*inputs), inputs, weight)
    got = torch.autograd.grad(selective_scan(*inputs)[0], inputs, weight)
    return max(float((a - g).abs().max() / a.abs().max()) for a, g in zip(want, got, strict=True))


def steps(name: str, rows: int, calls: int = 50) -> Callable[[], None]:
    """Steps of three layers; the state goes on."""
    x = torch.randn(rows, D)
    if name == OWN:
        stack = MixerStack([MixerBlock(S6(D), RMSNorm, D) for _ in range(3)], nn.Identity()).eval()
        state = stack.initial_state(rows)
    else:
        from mambapy.mamba import Mamba, MambaConfig

        stack = Mamba(MambaConfig(d_model=D, n_layers=3)).eval()
        state = [(None, torch.zeros(rows, 2 * D, 3)) for _ in range(3)]
    held = [state]

    @torch.inference_mode()
    def run() -> None:
        for _ in range(calls):
            _, held[0] = stack.step(x, held[0])

    return run


def measure_updates(rounds: int, missed: list[str]) -> list[list[str]]:
    """Rows of the table of updates."""
    rows = []
    for batch, length in SHAPES:
        names = [OWN, PEER] if PEER_INSTALLED else [OWN]
        cases = {n: update(n, batch, length) for n in names}
        times = alternate({**cases, FLOOR: gemm_floor(batch, length)}, rounds)
        memory = {n: peak_megabytes(n, batch, length) for n in names}
        where = f"B={batch}, L={length}"
        for name, t in times.items():
            speedup = ratio(times, name, OWN) if name != OWN else "1"
            peak = f"{memory[name]:.0f}" if name in memory else ""
            figures = [f"{np.median(t) * 1e3:.0f}", ratio(times, name, FLOOR), speedup, peak]
            rows.append([where, name, *figures])
        if median_ratio(times, OWN, FLOOR) > 8:
            missed.append(f"{where}: over 8 times the GEMM floor")
        if PEER_INSTALLED and median_ratio(times, PEER, OWN) < 3:
            missed.append(f"{where}: less than 3 times as fast as mambapy")
        if PEER_INSTALLED and memory[OWN] > memory[PEER] / 3:
            missed.append(f"{where}: over a third of mambapy's memory")
    return rows


def measure_steps(rounds: int, missed: list[str]) -> list[list[str]]:
    """Rows of the table of steps."""
    names = [OWN, PEER] if PEER_INSTALLED else [OWN]
    calls = 50
    cases = {f"{n}, {b} rows": steps(n, b, calls) for b in (1, 32) for n in names}
    times = alternate(cases, rounds)
    rows = []
    for name, t in times.items():
        same = f"{OWN}, {name.rsplit(', ', 1)[1]}"
        rows.append([name, f"{np.median(t) / calls * 1e6:.0f}", ratio(times, name, same)])
    share = median_ratio(times, f"{OWN}, 32 rows", f"{OWN}, 1 rows") / 32
    rows.append([f"{OWN}, a row of 32 over one alone", "", f"{share:.3f}"])
    if share > 0.2:
        missed.append("a row of 32 costs over a fifth of one alone")
    if PEER_INSTALLED and median_ratio(times, f"{PEER}, 1 rows", f"{OWN}, 1 rows") < 1.3:
        missed.append("steps less than 1.3 times as fast as mambapy's")
    return rows


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        print_peak(args.memory[0], int(args.memory[1]), int(args.memory[2]))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if not PEER_INSTALLED:
        print("mambapy: not installed, left out", file=sys.stderr)
    missed: list[str] = []
    print(f"Mamba block, forward and backward, D={D}, {machine()}, {args.rounds} rounds")
    header = ["shape", "case", "CPU ms", "x GEMM floor", "x seqrl", "peak MB"]
    print(table(header, measure_updates(args.rounds, missed)))
    times = alternate({str(n): update(OWN, 8192 // n, n) for n in (256, 1024)}, args.rounds)
    growth = median_ratio(times, "1024", "256")
    print(f"\ntime per token, L=1024 over L=256: {ratio(times, '1024', '256')}")
    error = gradient_error()
    print(f"gradients of the scan against the plain loop: {error:.1e} relative\n")
    print(f"Steps of three layers, {args.rounds} rounds")
    print(table(["case", "CPU us a step", "x seqrl"], measure_steps(args.rounds, missed)))
    if growth > 1.3:
        missed.append("time per token grows by over 1.3 from L=256 to L=1024")
    if error > 1e-5:
        missed.append("gradients differ from the plain loop's")
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
