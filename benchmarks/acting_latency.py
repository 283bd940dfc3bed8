"""Milliseconds an environment step costs a policy, against the steps since its reset.

    OMP_NUM_THREADS=1 python benchmarks/acting_latency.py [--rounds 7] [--only dt lstm] [--json F]
    OMP_NUM_THREADS=1 python benchmarks/acting_latency.py --marks 20 50 100 --no-memory   # smoke

Width 128, 3 layers, 11 observations, 3 actions, random weights, at batch 1 and 32. Every registered
agent with a recurrent rule and every mixer in a Decision Transformer walks through a whole episode
at batch 1; its states at the marks are kept (and repeated for batch 32) and then timed. Beside them
stand a Decision Transformer that encodes the whole episode anew at every step, and one whose cache
is as long as the episode. A dt-like policy takes in three tokens a step, ``lstm`` and
``decision_s4`` one. Peers are stepped by one token and by three, where they are installed.

All cases of a table alternate in one process; figures are medians of process CPU time, flatness
is the median ratio of the last mark to the first. Memory is measured in a process for each case
(on Linux).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, table
from seqrl.agents import registry
from seqrl.agents.agent import Agent
from seqrl.layers.mixer import MIXERS
from seqrl.layers.state import map_states
from seqrl.spec import ActionSpec, DataStats, ObservationSpec, Step, TaskSpec

WIDTH, LAYERS, OBS, ACTIONS = 128, 3, 11, 3
MARKS = (20, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600)
ROWS = (1, 32)
REENCODED_TO = {1: 1600, 32: 200}
"""Longest episode that is encoded anew at every step, by batch: a matter of patience."""

RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("lstm", {}),
    "dc": ("dc", {}),
    "decision_mamba": ("decision_mamba", {}),
    "dmamba": ("decision_mamba", {"variant": "dmamba"}),
    "decision_s4": ("decision_s4", {"width": 64}),
    "lram": ("lram", {}),
    "lram, one sLSTM": ("lram", {"slstm_at": (1,)}),
    "rate": ("rate", {}),
    **{f"dt of {m}": ("dt", {"mixer": (m,), "positions": "none"}) for m in sorted(MIXERS)},
}
"""Case to agent and settings; width and layers are set where the agent has them."""

CACHED, REENCODED = "dt, cache of the episode", "dt, re-encoding the episode"


def spaces(longest: int) -> tuple[TaskSpec, DataStats]:
    """A task of Hopper's shape and statistics of episodes that long."""
    action = ActionSpec("continuous", (ACTIONS,), (-1.0,) * ACTIONS, (1.0,) * ACTIONS)
    stats = DataStats(
        obs_mean=(0.0,) * OBS, obs_std=(1.0,) * OBS, return_scale=1000.0,
        return_quantiles={"min": 0.0, "p50": 1.0, "max": 2.0}, reward_min=0.0, reward_max=1.0,
        rtg_min=0.0, rtg_max=1.0, action_low=(-1.0,) * ACTIONS, action_high=(1.0,) * ACTIONS,
        action_counts=(), episodes=1, steps=longest, max_episode_length=longest,
    )  # fmt: skip
    return TaskSpec("task", ObservationSpec("vector", (OBS,)), action), stats


@torch.inference_mode(False)  # a loaded policy's weights are ordinary tensors, too
def make(name: str, fields: dict[str, Any], longest: int) -> Agent:
    """A registered agent of the benchmark's size with random weights, ready to act."""
    cls = registry.agent_class(name)
    known = {f.name for f in dataclasses.fields(cls.config_class)}
    sizes = {"width": WIDTH, "n_layer": LAYERS, "max_timestep": longest}
    given = {k: v for k, v in sizes.items() if k in known}
    task, stats = spaces(longest)
    torch.manual_seed(0)
    agent = cls(cls.config_class(**{**given, **fields}), [task], [stats])
    if "stream" in cls.acting_rules:
        agent.set_acting(rule="stream")
    return agent.eval()


def step_of(rows: int, t: int) -> Step:
    """A step in the midst of an episode."""
    draws = torch.Generator().manual_seed(t)
    no = torch.zeros(rows, dtype=torch.bool)
    first = torch.full((rows,), t == 0)
    return Step(
        observation=torch.randn(rows, OBS, generator=draws),
        prev_action=torch.zeros(rows, ACTIONS),
        prev_reward=torch.zeros(rows),
        rtg=torch.full((rows,), 1000.0),
        timestep=torch.full((rows,), t),
        first=first,
        trial_first=first,
        prev_terminated=no,
        task=torch.zeros(rows, dtype=torch.int64),
    )


def walk(agent: Agent, marks: tuple[int, ...]) -> dict[int, Any]:
    """States of one row after each number of steps."""
    state, kept = agent.initial_state(1), {}
    for t in range(max(marks) + 1):
        if t in marks:
            kept[t] = map_states(Tensor.clone, state)
        _, state = agent.act(state, step_of(1, t))
    return kept


def repeated(state: Any, rows: int) -> Any:
    """The state of one row for each of ``rows``, in memory of its own."""
    return map_states(lambda x: x.repeat_interleave(rows, 0), state)


def bytes_of(state: Any) -> int:
    """Memory of a state's tensors."""
    total = [0]

    def add(x: Tensor) -> Tensor:
        total[0] += x.numel() * x.element_size()
        return x

    map_states(add, state)
    return total[0]


# --- cases -------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One policy at one age."""

    steps: Callable[[int], None]
    """Takes that many steps from where it stands."""
    state_bytes: int


def stepping(agent: Agent, state: Any, rows: int, t: int) -> Case:
    """A case of one of our agents."""
    step, held = step_of(rows, t), [state]

    def steps(n: int) -> None:
        for _ in range(n):
            _, held[0] = agent.act(held[0], step)

    return Case(steps, bytes_of(state))


def recurrent(name: str, marks: tuple[int, ...], rows: tuple[int, ...]) -> dict[Any, Case]:
    """Cases by batch and mark of an agent that carries its state."""
    agent = make(*RECURRENT[name], max(marks) + 1000)
    states = walk(agent, marks)
    return {(n, t): stepping(agent, repeated(s, n), n, t) for n in rows for t, s in states.items()}


def cached(marks: tuple[int, ...], rows: tuple[int, ...], memory: float) -> dict[Any, Case]:
    """A Decision Transformer with room for the whole episode, as far as ``memory`` bytes go."""
    found: dict[Any, Case] = {}
    for n in rows:
        fitting = [t for t in marks if cache_bytes(t + 200, n) <= memory]
        if not fitting:
            continue
        length = max(fitting) + 200
        agent = make("dt", {"context": length, "positions": "none"}, length)
        fresh = agent.initial_state(n)
        for t in fitting:  # all ages in the same memory: what it holds does not matter
            counts = {k: torch.full_like(fresh[k], t) for k in ("count", "filled")}
            case = stepping(agent, {**fresh, **counts}, n, t)
            found[n, t] = case._replace(state_bytes=cache_bytes(t, n))
    return found


def cache_bytes(steps: int, rows: int) -> int:
    """Keys and values of three tokens a step in every layer, float32."""
    return LAYERS * 3 * steps * 2 * WIDTH * 4 * rows


def reencoded(marks: tuple[int, ...], rows: tuple[int, ...]) -> dict[Any, Case]:
    """A Decision Transformer that encodes all steps of the episode anew."""
    found: dict[Any, Case] = {}
    for n in rows:
        for t in (m for m in marks if m <= REENCODED_TO[n]):
            agent = make("dt", {"context": t, "positions": "none"}, t)
            agent.set_acting(rule="recompute")
            state = agent.initial_state(n)
            state["count"] += t
            found[n, t] = stepping(agent, state, n, t)
    return found


# --- peers -------------------------------------------------------------------------------------


def gpt2(marks: tuple[int, ...], rows: tuple[int, ...], tokens: int) -> dict[Any, Case]:
    """transformers' GPT-2 with its cache."""
    from transformers import DynamicCache, GPT2Config, GPT2Model

    longest = tokens * (max(marks) + 1000)
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 1, "n_positions": longest}
    model = GPT2Model(GPT2Config(vocab_size=1, **sizes)).eval()
    found: dict[Any, Case] = {}
    for n in rows:
        for t in (m for m in marks if m <= 3200 // n or m == marks[0]):
            cache = DynamicCache()
            kv = torch.randn(n, 1, tokens * t, WIDTH)
            for layer in range(LAYERS):
                cache.update(kv, kv, layer)
            x = torch.randn(n, tokens, WIDTH)

            def steps(k: int, x: Tensor = x, cache: Any = cache) -> None:
                for _ in range(k):
                    model(inputs_embeds=x, past_key_values=cache, use_cache=True)

            found[n, t] = Case(steps, 2 * LAYERS * kv.numel() * 4)
    return found


def gpt2_anew(marks: tuple[int, ...], rows: tuple[int, ...], tokens: int) -> dict[Any, Case]:
    """transformers' GPT-2 over the whole episode at every step, as the papers' code does."""
    from transformers import GPT2Config, GPT2Model

    found: dict[Any, Case] = {}
    for n in rows:
        for t in (m for m in marks if m <= REENCODED_TO[n]):
            sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 1, "n_positions": tokens * t}
            model = GPT2Model(GPT2Config(vocab_size=1, **sizes)).eval()
            x = torch.randn(n, tokens * t, WIDTH)

            def steps(k: int, x: Tensor = x, model: Any = model) -> None:
                for _ in range(k):
                    model(inputs_embeds=x, use_cache=False)

            found[n, t] = Case(steps, x.numel() * 4)
    return found


def mambapy(marks: tuple[int, ...], rows: tuple[int, ...], tokens: int) -> dict[Any, Case]:
    """mambapy's stack of Mamba blocks, stepped token by token (flat, so measured at one mark)."""
    from mambapy.mamba import Mamba, MambaConfig

    config = MambaConfig(d_model=WIDTH, n_layers=LAYERS)
    model = Mamba(config).eval()
    found: dict[Any, Case] = {}
    for n in rows:
        inner = config.d_inner
        caches = [(torch.zeros(n, inner, config.d_state), torch.zeros(n, inner, config.d_conv - 1))
                  for _ in range(LAYERS)]  # fmt: skip
        x, held = torch.randn(n, WIDTH), [caches]

        def steps(k: int, x: Tensor = x, held: list[Any] = held) -> None:
            for _ in range(k * tokens):
                _, held[0] = model.step(x, held[0])

        size = sum(a.numel() * 4 for pair in caches for a in pair)
        found[n, marks[0]] = Case(steps, size)
    return found


def xlstm(marks: tuple[int, ...], rows: tuple[int, ...], tokens: int) -> dict[Any, Case]:
    """The xlstm package's stack of three mLSTM blocks (flat, so measured at one mark)."""
    import contextlib
    import os

    from xlstm import mLSTMBlockConfig, mLSTMLayerConfig, xLSTMBlockStack, xLSTMBlockStackConfig

    with contextlib.redirect_stdout(open(os.devnull, "w")):
        block = mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=4))
        model = xLSTMBlockStack(
            xLSTMBlockStackConfig(
                mlstm_block=block, num_blocks=LAYERS, embedding_dim=WIDTH, context_length=256
            )
        ).eval()
    found: dict[Any, Case] = {}
    for n in rows:
        x = torch.randn(n, 1, WIDTH)
        _, state = model.step(x)
        held = [state]

        def steps(k: int, x: Tensor = x, held: list[Any] = held) -> None:
            for _ in range(k * tokens):
                _, held[0] = model.step(x, held[0])

        parts = [t for block in state.values() for kind in block.values() for t in kind]
        found[n, marks[0]] = Case(steps, sum(t.numel() * 4 for t in parts))
    return found


PEERS = {
    "transformers": gpt2, "transformers anew": gpt2_anew, "mambapy": mambapy, "xlstm": xlstm
}  # fmt: skip


# --- measuring --------------------------------------------------------------------------------

Key = tuple[str, int, int]
"""Case, batch, mark."""


def measure(cases: dict[Key, Case], rounds: int) -> dict[Key, np.ndarray]:
    """CPU milliseconds an environment step, ``[rounds]``, all cases in turn."""
    found: dict[Key, list[float]] = {k: [] for k in cases}
    calls: dict[Key, int] = {}
    for r in range(rounds + 1):
        for key, case in cases.items():
            start = time.process_time()
            case.steps(calls.get(key, 1))
            spent = time.process_time() - start
            if r:
                found[key].append(1e3 * spent / calls[key])
            else:  # enough steps for the clock, few enough for patience
                calls[key] = max(2, min(32, int(0.05 / max(spent, 1e-6))))
    return {k: np.array(v) for k, v in found.items()}


def gather(args: argparse.Namespace) -> dict[Key, Case]:
    """Every case that is wanted and possible here."""
    marks, rows = tuple(args.marks), tuple(args.rows)
    wanted = [n for n in RECURRENT if not args.only or n in args.only]
    makers: dict[str, Callable[[], dict[Any, Case]]] = {
        n: lambda n=n: recurrent(n, marks, rows)
        for n in wanted  # type: ignore[misc]
    }
    if not args.only or "dt" in args.only:
        makers[CACHED] = lambda: cached(marks, rows, args.cache_gb * 1e9)
        makers[REENCODED] = lambda: reencoded(marks, rows)
    if not args.only or "peers" in args.only:
        for package, peer in PEERS.items():
            for tokens in (1, 3):
                label = f"{package}, {tokens} token{'s' if tokens > 1 else ''} a step"
                makers[label] = lambda peer=peer, k=tokens: peer(marks, rows, k)  # type: ignore[misc]
                if importlib.util.find_spec(package.split()[0]) is None:
                    print(f"{label}: not installed, left out", file=sys.stderr)
                    del makers[label]
    cases: dict[Key, Case] = {}
    for label, maker in makers.items():
        if label in RECURRENT and RECURRENT[label][0] not in registry.names():
            print(f"{label}: no such agent yet, left out", file=sys.stderr)
            continue
        print(f"preparing {label}", file=sys.stderr, flush=True)
        cases |= {(label, n, t): case for (n, t), case in maker().items()}
    return cases


def latency_table(times: dict[Key, np.ndarray], rows: int, marks: list[int]) -> str:
    """Median milliseconds by age, and the ratio of the oldest to the youngest."""
    lines = []
    for name in dict.fromkeys(k[0] for k in times):
        found = {t: times[name, rows, t] for t in marks if (name, rows, t) in times}
        if not found:
            continue
        first, last = min(found), max(found)
        flat = "" if first == last else f"{np.median(found[last] / found[first]):.2f}"
        cells = [f"{np.median(found[t]):.2f}" if t in found else "" for t in marks]
        lines.append([name, *cells, flat])
    return table([f"batch {rows}, ms a step", *map(str, marks), "last / first"], lines)


def batch_table(times: dict[Key, np.ndarray], rows: list[int]) -> str:
    """Cost of one row at the largest batch, relative to batch 1, at the youngest common age."""
    lines = []
    for name in dict.fromkeys(k[0] for k in times):
        ages = [t for (n, b, t) in times if n == name and b == rows[-1]]
        common = [t for t in ages if (name, rows[0], t) in times]
        if common:
            t = min(common)
            share = times[name, rows[-1], t] / rows[-1] / times[name, rows[0], t]
            lines.append([name, str(t), f"1/{1 / np.median(share):.1f}"])
    return table(["case", "age", f"a row at batch {rows[-1]} / batch {rows[0]}"], lines)


def memory_table(args: argparse.Namespace, cases: dict[Key, Case]) -> tuple[str, dict[str, Any]]:
    """Bytes of state of one row, and how far the process grew beyond its imports and weights."""
    lines, found = [], {}
    for name in dict.fromkeys(k[0] for k in cases):
        ages = sorted(t for (n, b, t) in cases if n == name and b == args.rows[0])
        sizes = [cases[name, args.rows[0], t].state_bytes for t in (ages[0], ages[-1])]
        words = [sys.executable, __file__, "--one", name, "--marks", *map(str, {ages[0], ages[-1]})]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-1000:]}")
        grown = json.loads(done.stdout)["grown_mb"]
        found[name] = {"ages": [ages[0], ages[-1]], "state_bytes": sizes, "grown_mb": grown}
        shown = [f"{s / 1024:,.0f}" for s in sizes]
        lines.append([name, f"{ages[0]}", shown[0], f"{ages[-1]}", shown[1], f"{grown:.0f}"])
    head = ["case", "age", "state, KiB a row", "age", "state, KiB a row", "process grew, MB"]
    return table(head, lines), found


@torch.inference_mode()
def one(name: str, marks: tuple[int, ...]) -> None:
    """In a process of its own: take steps at the oldest mark, print how far memory grew."""

    # Size of imports, weights and the first arithmetic.
    agent = make("dt", {"context": 8, "positions": "none"}, 8)
    stepping(agent, agent.initial_state(1), 1, 0).steps(4)
    last = (max(marks),)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    if name in RECURRENT:
        agent = make(*RECURRENT[name], max(marks) + 1000)
        stepping(agent, agent.initial_state(1), 1, 0).steps(200)
    else:
        package, _, rest = name.partition(", ")
        cases = (
            cached(last, (1,), 1e12)
            if name == CACHED
            else reencoded(last, (1,))
            if name == REENCODED
            else PEERS[package](last, (1,), int(rest[0]))
        )
        next(iter(cases.values())).steps(4)
    print(json.dumps({"grown_mb": memory_mb("VmHWM") - before}))


def memory_mb(kind: str) -> float:
    """A line of ``/proc/self/status``: VmRSS for what is held now, VmHWM for the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--marks", type=int, nargs="+", default=MARKS, help="steps since reset")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="batches")
    parser.add_argument("--only", nargs="+", help="cases by name; dt and peers for those groups")
    parser.add_argument("--cache-gb", type=float, default=8.0, help="most a cache may take")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory table out")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        one(args.one, tuple(args.marks))
        return
    args.marks, args.rows = sorted(args.marks), sorted(args.rows)
    with torch.inference_mode():
        cases = gather(args)
        times = measure(cases, args.rounds)
    print(f"Acting latency, {machine()}, {args.rounds} rounds\n")
    for rows in args.rows:
        print(latency_table(times, rows, args.marks), end="\n\n")
    if len(args.rows) > 1:
        print(batch_table(times, args.rows), end="\n\n")
    record: dict[str, Any] = {
        "machine": machine(),
        "ms": [[*k, float(np.median(v))] for k, v in times.items()],
    }
    if not args.no_memory:
        text, record["memory"] = memory_table(args, cases)
        print(text)
    if args.json:
        Path(args.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
