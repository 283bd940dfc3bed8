"""Batches per second (B=64, K=20) against a bare numpy gather and against peers.

    OMP_NUM_THREADS=1 python benchmarks/sampling_speed.py [--rounds 9]

Hopper-shaped data, 200,000 and 1,000,000 steps. Ours is the whole batch a loss gets: observations,
actions, rewards, returns-to-go, timesteps, both end flags, mask, as torch tensors. The bare gather
draws nothing and pads nothing: it indexes the same six columns with indices made beforehand. Peers
(``d3rlpy``, ``torchrl``) are measured where they are installed. Everything alternates in one
process; figures are process CPU time and medians of pair ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import alternate, machine, ratio, table
from benchmarks.training_speed import B, K, synthetic
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.spec import WindowSpec


def ours(data: Trajectories) -> Callable[[], object]:
    """Our sampler, a new batch a call."""
    sampler = Sampler([data], WindowSpec("any_start", K), B, seed=0)
    count = iter(range(10**9))
    return lambda: sampler.batch(next(count))


def bare_gather(data: Trajectories) -> Callable[[], object]:
    """Fancy indexing of six columns at 64 random places."""
    rng = np.random.default_rng(0)
    places = [rng.integers(0, data.num_steps - K, (B, 1)) + np.arange(K)[None] for _ in range(64)]
    columns = [data.observations, data.actions, data.rewards, data.rtg]
    columns += [data.terminations, data.truncations]
    count = iter(range(10**9))
    return lambda: [c[places[next(count) % 64]] for c in columns]


def d3rlpy_batches(data: Trajectories) -> Callable[[], object]:
    """d3rlpy's trajectory mini-batches (lists of partial trajectories, not yet tensors)."""
    import d3rlpy

    timeouts = np.zeros(data.num_steps, dtype=np.float32)
    timeouts[data.episode_starts[1:] - 1] = 1.0
    dataset = d3rlpy.dataset.MDPDataset(
        np.asarray(data.observations), np.asarray(data.actions), np.asarray(data.rewards),
        np.zeros(data.num_steps, dtype=np.float32), timeouts,
    )  # fmt: skip
    return lambda: dataset.sample_trajectory_batch(B, length=K)


def torchrl_batches(data: Trajectories) -> Callable[[], object]:
    """TorchRL's slice sampler over a tensor storage holding the same columns."""
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer

    n = data.num_steps
    episode = np.repeat(np.arange(len(data)), data.lengths)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(n),
        sampler=SliceSampler(slice_len=K, traj_key="episode", cache_values=True),
        batch_size=B * K,
    )
    columns = {
        "observation": data.observations,
        "action": data.actions,
        "reward": data.rewards[:, None],
        "rtg": data.rtg[:, None],
        "terminated": data.terminations[:, None],
        "episode": episode,
    }
    buffer.extend(TensorDict({k: torch.from_numpy(np.asarray(v)) for k, v in columns.items()}, [n]))
    return buffer.sample


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for steps in (200_000, 1_000_000):
        data = synthetic(steps)
        cases: dict[str, Callable[[], object]] = {
            "seqrl": ours(data),
            "bare numpy gather": bare_gather(data),
        }
        for name, module, make in (
            ("d3rlpy", "d3rlpy", d3rlpy_batches),
            ("TorchRL", "torchrl", torchrl_batches),
        ):
            if importlib.util.find_spec(module):
                cases[name] = make(data)
            else:
                print(f"{name}: not installed, left out", file=sys.stderr)
        times = alternate(cases, args.rounds, calls=50)
        rows += [
            [f"{steps:,}", name, f"{np.median(t) * 1e3:.3f}", ratio(times, name, "seqrl")]
            for name, t in times.items()
        ]
    print(f"Sampling B={B} K={K}, {machine()}, {args.rounds} rounds of 50 batches")
    print(table(["steps", "case", "CPU ms a batch", "x seqrl"], rows))


if __name__ == "__main__":
    main()
