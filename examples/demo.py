"""How far does a Decision Transformer remember? Train one on short corridors, try longer ones.

    python examples/demo.py            about a minute on two CPU cores

T-Maze shows a cue at the first step; at the far end of a corridor the agent must turn the way the
cue said. The agent sees the last 30 steps. In corridors up to that length it can still see the cue
when it arrives; in longer ones it can only guess, and one guess in two is right. An LSTM, which
carries its memory along, is trained on the same data beside it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import seqrl

LIMITS = (9, 15, 30, 60, 90, 150)
"""Steps allowed; the corridor is two cells shorter."""
UPDATES = {"dt": 300, "lstm": 600}


def train(agent: str, out: Path) -> seqrl.experiment.Run:
    """Train with the built-in T-Maze data and its preset, at a demo's length."""
    shutil.rmtree(out, ignore_errors=True)
    return seqrl.train(
        agent, "tmaze-30", preset=f"{agent}/tmaze-30", steps=UPDATES[agent], out=out,
        eval_every=UPDATES[agent] // 2, progress=True,
    )  # fmt: skip


def success(run: seqrl.experiment.Run, limit: int, episodes: int) -> tuple[float, float, float]:
    """Success rate in corridors of one length, and its 95 % interval."""
    report = seqrl.evaluate(run, episodes=episodes, env_kwargs={"limit": limit})
    found = report.summary[-1]["success"]
    return found["rate"], *found["ci"]


def main() -> None:
    """Train both, evaluate both at every length, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--episodes", type=int, default=50)
    args = parser.parse_args()
    begin = time.perf_counter()
    runs = {agent: train(agent, args.out / agent) for agent in UPDATES}
    print(f"\nSuccess by corridor length ({args.episodes} episodes each, 95 % interval)")
    print("  limit   " + "".join(f"{agent:<22}" for agent in runs))
    for limit in LIMITS:
        cells = []
        for run in runs.values():
            rate, low, high = success(run, limit, args.episodes)
            cells.append(f"{rate:.2f} [{low:.2f}, {high:.2f}]".ljust(22))
        note = "  trained up to here" if limit == 30 else ""
        print(f"  {limit:>5}   " + "".join(cells) + note)
    print("  chance is 0.50; seed 0; the runs are in " + str(args.out))
    print(f"  {time.perf_counter() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
