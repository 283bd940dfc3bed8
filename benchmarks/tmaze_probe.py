"""Why does a policy's memory of the T-Maze cue end where it ends?

    OMP_NUM_THREADS=1 python benchmarks/tmaze_probe.py RUN... [--steps 9600] [--acting stream]

Two rows walk down one endless corridor with the same noise; all that differs is the cue in their
first observation. At every mark the policy is asked, on a copy of its state, what it would do if
the junction were here. Printed are, by steps since the cue,

* ``apart``: the distance of the two rows' states over their size. Near zero, the cue is gone.
* ``margin``: by how much the logit of the right turn exceeds that of the wrong one, the lesser of
  the two rows. Below zero, a turn is wrong; states that are apart with a negative margin mean that
  the cue is there and the policy no longer reads it.
* ``turns``: whether the right turn has the largest logit in both rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import seqrl
from benchmarks.common import table
from seqrl.agents.agent import Agent
from seqrl.api import stored_eval_settings
from seqrl.envs.tmaze import DOWN, RIGHT, UP
from seqrl.layers.state import map_states
from seqrl.spec import Step

MARKS = (10, 28, 58, 88, 148, 298, 300, 598, 898, 1798, 4798, 9598)
"""Where the junction of corridors of limits 30, 60, ... lies, and two places beside."""
CUES = (1.0, -1.0)


def corridor_step(t: int, noise: float, junction: bool) -> Step:
    """What the two rows see ``t`` steps after the cue."""
    observation = torch.zeros(2, 4)
    observation[:, 3] = noise
    if t == 0:
        observation[:, 1] = torch.tensor(CUES)
    observation[:, 2] = float(junction)
    first = torch.full((2,), t == 0)
    return Step(
        observation=observation,
        prev_action=torch.full((2,), RIGHT),
        prev_reward=torch.zeros(2),
        rtg=torch.ones(2),
        timestep=torch.full((2,), t),
        first=first,
        trial_first=first,
        prev_terminated=torch.zeros(2, dtype=torch.bool),
        task=torch.zeros(2, dtype=torch.int64),
    )


def apart(state: Any) -> float:
    """Distance of the two rows' floating point states over their mean size."""
    gaps, sizes = [0.0], [0.0]

    def add(x: Tensor) -> Tensor:
        if x.is_floating_point() and torch.isfinite(x).all():
            gaps[0] += float((x[0] - x[1]).square().sum())
            sizes[0] += float(x.square().sum() / 2)
        return x

    map_states(add, state)
    return (gaps[0] / max(sizes[0], 1e-30)) ** 0.5


@torch.inference_mode()
def probe(agent: Agent, steps: int) -> Iterator[tuple[int, float, float, bool]]:
    """Mark, distance of the states, least margin, whether both turns are right."""
    draws = torch.Generator().manual_seed(0)
    noise = torch.randint(-1, 2, (steps + 1,), generator=draws).float()
    state = agent.initial_state(2)
    for t in range(steps + 1):
        if t in MARKS:
            asked = map_states(Tensor.clone, state)
            logits, _ = agent.step(asked, corridor_step(t, float(noise[t]), True))
            ahead = logits[:, UP] - logits[:, DOWN]
            turns = logits.argmax(-1).tolist() == [UP, DOWN]
            yield t, apart(state), float(torch.minimum(ahead[0], -ahead[1])), turns
        _, state = agent.step(state, corridor_step(t, float(noise[t]), False))


def main() -> None:
    """Print a table a run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--steps", type=int, default=max(MARKS))
    parser.add_argument("--acting", help="rule beyond the window; the run's own by default")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for run in args.runs:
        agent = seqrl.load_policy(run).agent.eval()
        agent.set_acting(rule=args.acting or stored_eval_settings(run).get("acting"))
        rows = list(probe(agent, args.steps))
        print(f"{Path(run).name}, {agent.acting.rule}\n")
        lines = [
            ["apart", *(f"{r[1]:.1e}" for r in rows)],
            ["margin", *(f"{r[2]:.1f}" for r in rows)],
            ["turns", *("right" if r[3] else "wrong" for r in rows)],
        ]
        print(table(["steps since the cue", *(str(r[0]) for r in rows)], lines), end="\n\n")


if __name__ == "__main__":
    main()
