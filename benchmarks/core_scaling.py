"""Does the cost of a token grow with the length of its sequence? Every mixer, forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/core_scaling.py [--rounds 9] [--only s6 gru]

8,192 tokens of width 128: as 8 rows of 1,024, as 32 rows of 256, and as four times 8 rows of 256.
Figures are process CPU milliseconds (medians) and median pair ratios with quartiles. The first
ratio compares equal numbers of tokens in a call; the second equal numbers of rows, and so shows
the length alone: a recurrence that goes token by token pays for each step of time, whatever the
number of rows. Attention is quadratic by nature and stands here for comparison.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import alternate, machine, ratio, table
from seqrl.layers.mixer import MIXERS, Place, build_mixer

WIDTH = 128


def both_ways(name: str, rows: int, length: int, times: int = 1) -> Callable[[], object]:
    """Forward and backward of a fresh mixer on random input, so many times."""
    torch.manual_seed(0)
    mixer = build_mixer(name, Place(WIDTH, heads=4, window=length, period=3))
    x = torch.randn(rows, length, WIDTH, requires_grad=True)
    g = torch.randn(rows, length, WIDTH)

    def run() -> None:
        for _ in range(times):
            mixer(x)[0].backward(g)

    return run


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=sorted(MIXERS), default=sorted(MIXERS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in args.only:
        cases = {
            "long": both_ways(name, 8, 1024),
            "wide": both_ways(name, 32, 256),
            "short": both_ways(name, 8, 256, times=4),
        }
        times = alternate(cases, rounds=args.rounds)
        long_ms = 1e3 * float(sorted(times["long"])[len(times["long"]) // 2])
        rows.append(
            [name, f"{long_ms:.0f}", ratio(times, "long", "wide"), ratio(times, "long", "short")]
        )
        print(rows[-1], file=sys.stderr, flush=True)
    print(f"Cost by length, {machine()}, {args.rounds} rounds\n")
    head = ["mixer", "8 x 1,024, ms", "over 32 x 256", "over 4 times 8 x 256"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
