"""Training speed of the Decision Transformer against its GEMM floor and against peers.

    OMP_NUM_THREADS=1 python benchmarks/training_speed.py [--rounds 9]

Setting: the published Gym configuration (B=64, K=20, width 128, 3 layers, 1 head, dropout 0.1
everywhere), 200,000 steps of Hopper-shaped data. Everything alternates in one process; figures are
process CPU milliseconds (medians) and medians of pair ratios. The floor is the matrix products of
the untrimmed model, forward and backward, into preallocated outputs. Peers (``transformers``,
``d3rlpy``) are measured where they are installed.
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
from seqrl.agents.dt import DecisionTransformer, DTConfig
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories

B, K, D, LAYERS, S, A = 64, 20, 128, 3, 11, 3
PUBLISHED = DTConfig(attn_dropout=0.1, return_scale=1000.0)


def synthetic(steps: int = 200_000, length: int = 400) -> Trajectories:
    """Random data of Hopper's shape, episodes of ``length`` steps."""
    rng = np.random.default_rng(0)
    return Trajectories.from_arrays(
        rng.normal(size=(steps, S)).astype(np.float32),
        rng.uniform(-1, 1, (steps, A)).astype(np.float32),
        rng.uniform(0, 4, steps).astype(np.float32),
        np.arange(steps) % length == length - 1,
        name="synthetic",
    )


def gemm_floor() -> Callable[[], None]:
    """The matrix products of one update of the untrimmed model: 14.7 GFLOP."""
    n = 3 * B * K
    linear = [(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)] * LAYERS
    work = []
    for i, o in linear:
        x, w, g = torch.randn(n, i), torch.randn(i, o), torch.randn(n, o)
        work.append((x, w, g, torch.empty(n, o), torch.empty(n, i), torch.empty(i, o)))
    q, a = torch.randn(B, 3 * K, D), torch.randn(B, 3 * K, 3 * K)
    qo, ao = torch.empty_like(q), torch.empty_like(a)

    def run() -> None:
        for x, w, g, y, dx, dw in work:
            torch.mm(x, w, out=y)
            torch.mm(g, w.t(), out=dx)
            torch.mm(x.t(), g, out=dw)
        for _ in range(LAYERS):
            for _ in range(2):
                torch.bmm(q, q.transpose(1, 2), out=ao)
            for _ in range(4):
                torch.bmm(a, q, out=qo)

    return run


def ours(data: Trajectories, config: DTConfig, bf16: bool = False) -> Callable[[], None]:
    """One update of our agent with sampling, clipping and fused AdamW."""
    torch.manual_seed(0)
    agent = DecisionTransformer(config, [data.task], [data.stats]).train()
    optimizer = torch.optim.AdamW(agent.parameter_groups(), lr=1e-4, weight_decay=1e-4, fused=True)
    sampler = Sampler([data], agent.config.window(), B, seed=0)
    count = iter(range(10**9))

    def run() -> None:
        batch = sampler.batch(next(count))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = agent.loss(batch)
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.25)
        optimizer.step()

    return run


def hugging_face(data: Trajectories) -> Callable[[], None]:
    """transformers' DecisionTransformerModel under a plain loop, fed by our sampler."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    torch.manual_seed(0)
    model = DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=S,
            act_dim=A,
            hidden_size=D,
            max_ep_len=1000,
            n_layer=LAYERS,
            n_head=1,
            n_inner=4 * D,
            activation_function="relu",
            n_positions=1024,
            resid_pdrop=0.1,
            attn_pdrop=0.1,
            embd_pdrop=0.1,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    sampler = Sampler([data], PUBLISHED.window(), B, seed=0)
    count = iter(range(10**9))

    def run() -> None:
        b = sampler.batch(next(count))
        _, actions, _ = model(
            states=b.observations, actions=b.actions, rewards=b.rewards.unsqueeze(-1),
            returns_to_go=b.returns_to_go.unsqueeze(-1) / 1000, timesteps=b.timesteps,
            attention_mask=b.mask.long(), return_dict=False,
        )  # fmt: skip
        loss = (actions[b.mask] - b.actions[b.mask]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()

    return run


def d3rlpy_update(data: Trajectories) -> Callable[[], None]:
    """d3rlpy's DecisionTransformer: its own sampler and update."""
    import d3rlpy

    ends = data.episode_starts[1:] - 1
    timeouts = np.zeros(data.num_steps, dtype=np.float32)
    timeouts[ends] = 1.0
    dataset = d3rlpy.dataset.MDPDataset(
        np.asarray(data.observations), np.asarray(data.actions), np.asarray(data.rewards),
        np.zeros(data.num_steps, dtype=np.float32), timeouts,
    )  # fmt: skip
    encoder = d3rlpy.models.VectorEncoderFactory([D], exclude_last_activation=True)
    algo = d3rlpy.algos.DecisionTransformerConfig(
        batch_size=B, context_size=K, max_timestep=1000, num_heads=1, num_layers=LAYERS,
        encoder_factory=encoder, activation_type="relu", attn_dropout=0.1, resid_dropout=0.1,
        embed_dropout=0.1,
    ).create(device=False)  # fmt: skip
    algo.build_with_dataset(dataset)

    def run() -> None:
        algo.update(dataset.sample_trajectory_batch(B, length=K))

    return run


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = synthetic()
    cases: dict[str, Callable[[], None]] = {
        "GEMM floor": gemm_floor(),
        "seqrl dt, float32": ours(data, PUBLISHED),
        "seqrl dt, bf16 autocast": ours(data, PUBLISHED, bf16=True),
    }
    for name, module, make in (
        ("Hugging Face", "transformers", hugging_face),
        ("d3rlpy", "d3rlpy", d3rlpy_update),
    ):
        if importlib.util.find_spec(module):
            cases[name] = make(data)
        else:
            print(f"{name}: not installed, left out", file=sys.stderr)
    times = alternate(cases, args.rounds)
    rows = [
        [
            name,
            f"{np.median(t) * 1e3:.0f}",
            ratio(times, name, "GEMM floor"),
            ratio(times, name, "seqrl dt, float32"),
        ]
        for name, t in times.items()
    ]
    print(f"Training step, {machine()}, {args.rounds} rounds")
    print(table(["case", "CPU ms", "x GEMM floor", "x seqrl float32"], rows))


if __name__ == "__main__":
    main()
