"""Evaluation speed of the Decision Transformer: engine, batching, acting rules, peers.

    OMP_NUM_THREADS=1 python benchmarks/rollout_speed.py [--rounds 7] [--run RUN]

Setting: the published Gym configuration (K=20, width 128, 3 layers, 1 head) acting in Hopper-v5.
Episodes do not end when the hopper falls, so every case walks through full windows. One thread; the
cases alternate in one process; figures are process CPU milliseconds per environment step (medians)
and medians of pair ratios. The floor of a forward pass is its matrix products alone, into
preallocated outputs. With ``--run`` a trained checkpoint takes
the place of random weights, and its returns under both rules stand beside the speeds. Peers
(``transformers``, ``d3rlpy``) are measured where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, table
from seqrl.agents.dt import DecisionTransformer, DTConfig
from seqrl.collect import collect
from seqrl.envs.pool import LocalPool, env_factory, make_pool
from seqrl.rollout import EpisodePlan, Timing, rollout

K, D, LAYERS, S, A = 20, 128, 3, 11, 3
ENV, ENDLESS = "Hopper-v5", {"terminate_when_unhealthy": False}
STEPS = 240
"""Steps an episode, so that 220 of them see a full window."""


def agent_of(run: str | None) -> DecisionTransformer:
    """The agent of a run, or one of the same size with random weights."""
    if run is not None:
        from seqrl.checkpoint import load_agent

        return load_agent(run)[0]  # type: ignore[return-value]
    torch.manual_seed(0)
    data = collect(ENV, "random", 20)
    return DecisionTransformer(DTConfig(context=K), [data.task], [data.stats]).eval()


# --- cases: each returns (CPU seconds a step, of these in the policy, of these in the engine) ---

Cost = tuple[float, float, float]


def raw_environment() -> Callable[[], Cost]:
    """One environment as Gymnasium makes it, fed with actions drawn before."""
    env = env_factory(ENV, ENDLESS)()
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, A)).astype(np.float32)

    def run() -> Cost:
        env.reset(seed=0)
        start = time.process_time()
        for action in actions:
            env.step(action)
        return (time.process_time() - start) / STEPS, 0.0, 0.0

    return run


def engine(agent: DecisionTransformer, rule: str, num_envs: int, block: int) -> Callable[[], Cost]:
    """Our engine: as many episodes as environments."""
    pool = LocalPool(env_factory(ENV, ENDLESS), num_envs)
    plans = [EpisodePlan(i, i, 1000.0) for i in range(num_envs)]

    def run() -> Cost:
        agent.set_acting(rule=rule)
        timing = Timing(time.process_time)
        rollout(agent, pool, plans, row_block=block, max_steps=STEPS, timing=timing)
        rest = timing.wall_s - timing.policy_s - timing.env_s
        return tuple(t / timing.steps for t in (timing.wall_s, timing.policy_s, rest))  # type: ignore[return-value]

    return run


def hugging_face() -> Callable[[], Cost]:
    """transformers' DecisionTransformerModel in the loop of its documentation, one environment."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    model = DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=S, act_dim=A, hidden_size=D, max_ep_len=1000, n_layer=LAYERS, n_head=1,
            n_inner=4 * D, activation_function="relu", n_positions=1024,
        )
    ).eval()  # fmt: skip
    env = env_factory(ENV, ENDLESS)()

    def act(obs: Any, actions: Any, rtg: Any, t: int) -> np.ndarray:
        pad = K - min(K, t + 1)
        window = slice(max(0, t + 1 - K), t + 1)
        steps = torch.cat([torch.zeros(pad), torch.arange(t + 1)[window]]).long()[None]
        mask = torch.cat([torch.zeros(pad), torch.ones(K - pad)])[None]

        def padded(x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros(pad, x.shape[1]), x[window]])[None]

        _, out, _ = model(
            states=padded(obs), actions=padded(actions), rewards=None, returns_to_go=padded(rtg),
            timesteps=steps, attention_mask=mask, return_dict=False,
        )  # fmt: skip
        return out[0, -1].clamp(-1, 1).numpy()

    def run() -> Cost:
        first, _ = env.reset(seed=0)
        obs, actions = torch.zeros(STEPS + 1, S), torch.zeros(STEPS + 1, A)
        rtg = torch.zeros(STEPS + 1, 1)
        obs[0], rtg[0] = torch.from_numpy(first), 1.0
        policy = 0.0
        start = time.process_time()
        with torch.inference_mode():
            for t in range(STEPS):
                before = time.process_time()
                action = act(obs, actions, rtg, t)
                policy += time.process_time() - before
                actions[t] = torch.from_numpy(action)
                following, reward, *_ = env.step(action)
                obs[t + 1] = torch.from_numpy(following)
                rtg[t + 1] = rtg[t] - float(reward) / 1000
        return (time.process_time() - start) / STEPS, policy / STEPS, 0.0

    return run


def d3rlpy_wrapper() -> Callable[[], Cost]:
    """d3rlpy's DecisionTransformer through its stateful wrapper, one environment."""
    import d3rlpy

    encoder = d3rlpy.models.VectorEncoderFactory([D], exclude_last_activation=True)
    algo = d3rlpy.algos.DecisionTransformerConfig(
        context_size=K, max_timestep=1000, num_heads=1, num_layers=LAYERS,
        encoder_factory=encoder, activation_type="relu",
    ).create(device=False)  # fmt: skip
    algo.create_impl((S,), A)
    env = env_factory(ENV, ENDLESS)()

    def run() -> Cost:
        actor = algo.as_stateful_wrapper(target_return=1000.0)
        obs, _ = env.reset(seed=0)
        reward, policy = 0.0, 0.0
        start = time.process_time()
        for _ in range(STEPS):
            before = time.process_time()
            action = actor.predict(obs.astype(np.float32), reward)
            policy += time.process_time() - before
            obs, reward, *_ = env.step(np.clip(action, -1, 1))
        return (time.process_time() - start) / STEPS, policy / STEPS, 0.0

    return run


def forward_floor(rows: int, trimmed: bool) -> Callable[[], Cost]:
    """The matrix products of re-encoding ``rows`` windows; per row.

    ``trimmed`` counts in the last block only keys and values of every token, and everything else at
    the one token that is read; the floor of the whole forward counts everything.
    """
    length = 3 * K - 1
    work = []
    for layer in range(LAYERS):
        all_tokens = rows * length
        read = rows if trimmed and layer == LAYERS - 1 else all_tokens
        shapes = [(all_tokens, D, 2 * D), (read, D, D), (read, D, D)]
        shapes += [(read, D, 4 * D), (read, 4 * D, D)]
        work += [(torch.randn(n, i), torch.randn(i, o), torch.empty(n, o)) for n, i, o in shapes]
    heads = []
    for layer in range(LAYERS):
        queries = 1 if trimmed and layer == LAYERS - 1 else length
        q, k = torch.randn(rows, queries, D), torch.randn(rows, length, D)
        heads.append((q, k, torch.empty(rows, queries, length), torch.empty_like(q)))

    def run() -> Cost:
        start = time.process_time()
        for _ in range(8):
            for x, w, y in work:
                torch.mm(x, w, out=y)
            for q, k, scores, out in heads:
                torch.bmm(q, k.transpose(1, 2), out=scores)
                torch.bmm(scores, k, out=out)
        cost = (time.process_time() - start) / 8 / rows
        return cost, cost, 0.0

    return run


# --- measuring --------------------------------------------------------------------------------


def measure(cases: dict[str, Callable[[], Cost]], rounds: int) -> dict[str, np.ndarray]:
    """Cost of every case in every round, ``[rounds, 3]``, after one round of warming up."""
    found: dict[str, list[Cost]] = {name: [] for name in cases}
    for r in range(rounds + 1):
        for name, run in cases.items():
            cost = run()
            if r:
                found[name].append(cost)
    return {name: np.array(costs) for name, costs in found.items()}


def ratio(a: np.ndarray, b: np.ndarray) -> str:
    """Median of the pair ratios and their quartiles."""
    q1, mid, q3 = np.quantile(a / b, [0.25, 0.5, 0.75])
    return f"{mid:.2f} ({q1:.2f}-{q3:.2f})"


def percent(a: np.ndarray, b: np.ndarray) -> str:
    """Median of the pair ratios as a percentage."""
    return f"{100 * np.median(a / b):.1f} %"


def goals(costs: dict[str, np.ndarray]) -> list[list[str]]:
    """The goals with what was found; a raw step as a share of a whole one is the speed kept."""
    whole, policy, engine_s = (lambda n, i=i: costs[n][:, i] for i in range(3))
    raw = whole("raw environment")
    single, lock, sixteen = "1 env, recompute", "16 envs, recompute", "16 envs, recompute, block 16"
    rows = [
        ["R1", "speed of the raw environment kept, 1 env (block 1)", ">= 4.9 %",
         percent(raw, whole(single))],
        ["R2", "speed of the raw environment kept, 16 envs (block 8)", ">= 10 %",
         percent(raw, whole(lock))],
        ["R2", "policy / floor of the forward, 16 envs (block 8)", "<= 1.3",
         ratio(policy(lock), whole("floor, 8 rows"))],
        ["", "the same over the trimmed floor", "",
         ratio(policy(lock), whole("trimmed floor, 8 rows"))],
        ["R2", "speed of the raw environment kept, 16 envs (block 16)", ">= 10 %",
         percent(raw, whole(sixteen))],
        ["R2", "policy / floor of the forward, 16 envs (block 16)", "<= 1.3",
         ratio(policy(sixteen), whole("floor, 16 rows"))],
        ["", "the same over the trimmed floor", "",
         ratio(policy(sixteen), whole("trimmed floor, 16 rows"))],
        *(["R3", f"engine overhead per env step, {n}", "<= 0.08 ms",
           f"{1e3 * np.median(engine_s(n)):.3f} ms"]
          for n in ("8 envs, recompute", lock, "32 envs, stream")),
    ]  # fmt: skip
    for name in ("32 envs, stream", "32 envs, stream, block 32"):
        rows.append(["issue", f"{name}: faster end to end than {single}", ">= 5",
                     ratio(whole(single), whole(name))])  # fmt: skip
        rows.append(["issue", f"{name}: faster in policy time than {single}", ">= 8",
                     ratio(policy(single), policy(name))])  # fmt: skip
    for peer in ("transformers, 1 env", "d3rlpy, 1 env"):
        if peer in costs:
            rows.append(["R1", f"1 env faster than {peer}", ">= 1.2",
                         ratio(whole(peer), whole(single))])  # fmt: skip
            rows.append(["R2", f"16 envs faster than {peer}", ">= 2.5",
                         ratio(whole(peer), whole(lock))])  # fmt: skip
    return rows


def vectorisation(rounds: int) -> list[list[str]]:
    """R6: wall time of in-process and worker stepping, and what ``auto`` chooses."""
    factory = env_factory(ENV, ENDLESS)
    actions = np.zeros((8, A), np.float32)
    walls: dict[str, list[float]] = {"sync": [], "async": []}
    for _ in range(rounds):
        for kind in walls:
            with make_pool(factory, 8, kind) as pool:  # type: ignore[arg-type]
                pool.reset(range(8), range(8), [None] * 8)
                start = time.perf_counter()
                for _ in range(100):
                    pool.step(range(8), actions)
                walls[kind].append((time.perf_counter() - start) / 800)
    with make_pool(factory, 8, "auto") as pool:
        chosen = "in-process" if isinstance(pool, LocalPool) else "workers"
    slower = ratio(np.array(walls["async"]), np.array(walls["sync"]))
    return [["R6", f"'auto' for {ENV}", "in-process", chosen],
            ["R6", "workers / in-process, wall time a step, 8 envs", "(why)", slower]]  # fmt: skip


def returns(agent: DecisionTransformer, episodes: int) -> list[list[str]]:
    """Mean return of both rules over the same episodes of the real task."""
    from seqrl.evaluation import EvalConfig, evaluate

    out = []
    for rule in ("recompute", "stream"):
        config = EvalConfig(targets=("max",), episodes=episodes, num_envs=32, acting=rule)
        s = evaluate(agent, config=config).summary[0]["return"]
        out.append([rule, f"{s['mean']:.1f} [{s['ci'][0]:.1f}, {s['ci'][1]:.1f}]"])
    return out


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run", help="run folder of a dt trained on Hopper")
    parser.add_argument("--episodes", type=int, default=50, help="for the returns of both rules")
    args = parser.parse_args()
    torch.set_num_threads(1)
    agent = agent_of(args.run)
    case = partial(engine, agent)
    cases: dict[str, Callable[[], Cost]] = {
        "raw environment": raw_environment(),
        "floor, 8 rows": forward_floor(8, trimmed=False),
        "floor, 16 rows": forward_floor(16, trimmed=False),
        "trimmed floor, 8 rows": forward_floor(8, trimmed=True),
        "trimmed floor, 16 rows": forward_floor(16, trimmed=True),
        "1 env, recompute": case("recompute", 1, 1),
        "8 envs, recompute": case("recompute", 8, 8),
        "16 envs, recompute": case("recompute", 16, 8),
        "16 envs, recompute, block 16": case("recompute", 16, 16),
        "32 envs, stream": case("stream", 32, 8),
        "32 envs, stream, block 32": case("stream", 32, 32),
    }
    for name, module, make in (
        ("transformers, 1 env", "transformers", hugging_face),
        ("d3rlpy, 1 env", "d3rlpy", d3rlpy_wrapper),
    ):
        if importlib.util.find_spec(module):
            cases[name] = make()
        else:
            print(f"{name}: not installed, left out", file=sys.stderr)
    costs = measure(cases, args.rounds)
    print(f"Evaluation in {ENV}, {machine()}, {args.rounds} rounds, CPU ms per env step\n")
    rows = [[n, *(f"{1e3 * np.median(c[:, i]):.3f}" for i in range(3))] for n, c in costs.items()]
    print(table(["case", "whole", "policy", "engine"], rows), end="\n\n")
    found = goals(costs) + vectorisation(args.rounds)
    print(table(["goal", "what", "wanted", "found"], found), end="\n\n")
    print(table(["rule", "return at target max"], returns(agent, args.episodes)))


if __name__ == "__main__":
    main()
