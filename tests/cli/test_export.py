"""``seqrl export``: the file acts as the policy does, where there is no seqrl, or says why not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seqrl
from seqrl.agents import registry
from seqrl.agents.agent import Agent
from seqrl.agents.lstm import RecurrentAgent
from seqrl.envs.making import make_env
from seqrl.errors import SeqrlError
from seqrl.export import OneStep, export_agent
from seqrl.testing.battery import build, serves, tiny_data
from tests.cli.conftest import Cli
from tests.cli.schema import check

ELSEWHERE = """
import json, sys
sys.modules["seqrl"] = None
import numpy as np, torch
for file in sys.argv[1:]:
    text = {"policy.json": ""}
    program = torch.export.load(file, extra_files=text).module()
    about, given = json.loads(text["policy.json"]), np.load(file + ".npz")
    state = {s["name"]: torch.zeros(s["shape"], dtype=getattr(torch, s["dtype"]))
             for s in about["state"]}
    actions = []
    for t in range(len(given["rtg"])):
        inputs = {}
        for i in about["inputs"]:
            inputs[i["name"]] = torch.from_numpy(given[i["name"]][t])
            assert list(inputs[i["name"]].shape) == i["shape"]
            assert str(inputs[i["name"]].dtype) == "torch." + i["dtype"]
        action, state = program(inputs, state)
        actions.append(action.numpy())
    np.save(file + ".npy", np.stack(actions))
assert not [m for m in sys.modules if m.startswith("seqrl.")]
"""


def elsewhere(files: list[Path]) -> None:
    """Step the files through their ``.npz`` inputs in an isolated process; actions as ``.npy``."""
    words = [sys.executable, "-I", "-c", ELSEWHERE, *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def episode_inputs(agent: Agent, rows: int, steps: int) -> dict[str, np.ndarray]:
    """Inputs of ``steps`` steps, the last row beginning anew on its way."""
    one, draws = OneStep(agent, rows), torch.Generator().manual_seed(7)
    each = [one.random_inputs(t, draws) for t in range(steps)]
    return {k: np.stack([x[k].numpy() for x in each]) for k in each[0]}


def own_actions(agent: Agent, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What the agent itself does, reset the way an evaluation resets it."""
    from seqrl.spec import Step

    rows = inputs["rtg"].shape[1]
    state, out = agent.initial_state(rows), []
    with torch.inference_mode():
        for t in range(len(inputs["rtg"])):
            now = {k: torch.from_numpy(v[t]) for k, v in inputs.items()}
            now.setdefault("trial_first", now["first"])
            now.setdefault("prev_terminated", torch.zeros(rows, dtype=torch.bool))
            if t and now["trial_first"].any():
                state = agent.reset(state, now["trial_first"])
            task = torch.zeros(rows, dtype=torch.int64)
            action, state = agent.act(state, Step(**now, task=task))
            out.append(action.numpy().copy())
    return np.stack(out)


def check_elsewhere(agents: dict[str, Agent], folder: Path) -> None:
    """Each agent's file acts without seqrl as the agent itself does, over 30 steps."""
    files, wanted = [], {}
    for name, agent in agents.items():
        file = folder / f"{name}.pt2"
        about = export_agent(agent, file, rows=2)
        assert json.loads(file.with_suffix(".json").read_text()) == about
        inputs = episode_inputs(agent, 2, 30)
        np.savez(f"{file}.npz", **inputs)
        files.append(file)
        wanted[file] = own_actions(agent, inputs)
    elsewhere(files)
    for file, want in wanted.items():
        found = np.load(f"{file}.npy")
        assert found.dtype == want.dtype
        if found.dtype == np.float32:
            assert np.abs(found - want).max() < 1e-5, file.stem
            assert np.abs(np.diff(found, axis=0)).max() > 1e-4, f"{file.stem} always does the same"
        else:
            assert (found == want).all(), file.stem


QUICK = ("dc", "lstm")
REST = [r.name for r in registry.ROWS if "stream" in r.acting and r.name not in QUICK]
REST += ["bc", "q_transformer"]
STREAMS = {"ad": {"positions": "relative"}}
"""Settings without which an agent has no streaming form."""


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (QUICK, "continuous"),
        pytest.param(QUICK, "discrete", marks=pytest.mark.slow),
        pytest.param(REST, "continuous", marks=pytest.mark.slow),
        pytest.param(REST, "discrete", marks=pytest.mark.slow),
    ],
)
def test_agents_act_the_same_without_seqrl(tmp_path: Path, names: list[str], kind: str) -> None:
    agents = {}
    for name in names:
        cls = registry.agent_class(name)
        if serves(cls, kind):
            agents[name] = build(cls, tiny_data(kind), **STREAMS.get(name, {})).eval()
            whole = name in ("bc", "q_transformer", "dpt")  # what they look at is no stream
            agents[name].set_acting(rule=None if whole else "stream")
    check_elsewhere(agents, tmp_path)


RATES: dict[str, dict[str, Any]] = {
    "ca2": {"memory_tokens": 4},
    "ca1": {"valve": "ca1"},
    "gru": {"valve": "gru", "mem_len": 0, "layer": "trxl-i"},
    "lstm": {"valve": "lstm", "layer": "gtrxl", "d_inner": 20},
    "gate": {"valve": "gate", "return_tokens": False},
    "none": {"valve": "none", "memory_reads_cache": True},
    "cache_alone": {"memory_tokens": 0, "reset_target": True},
    "neither": {"memory_tokens": 0, "mem_len": 0},
}
"""Shapes of rate: what stands between its segments, and what is in them."""

QUICK_RATES = ("ca2", "cache_alone")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (QUICK_RATES, "continuous"),
        pytest.param(
            [n for n in RATES if n not in QUICK_RATES], "continuous", marks=pytest.mark.slow
        ),
        pytest.param(RATES, "discrete", marks=pytest.mark.slow),
        pytest.param(QUICK_RATES, "image", marks=pytest.mark.slow),
    ],
)
def test_segments_end_without_seqrl_too(tmp_path: Path, names: Iterable[str], kind: str) -> None:
    """Six borders a row or more, at steps of its own: the last row begins anew at t = 3."""
    cls, data = registry.agent_class("rate"), tiny_data(kind)
    check_elsewhere({n: build(cls, data, segment=4, **RATES[n]).eval() for n in names}, tmp_path)


def test_command_exports_what_eval_runs(cli: Cli, run_dir: Path, tmp_path: Path) -> None:
    """An episode of the environment, stepped by the file elsewhere, is the policy's own."""
    done = cli("export", str(run_dir), "policy.pt2", "--checkpoint", "best", "--acting", "stream")
    assert (done.code, done.err) == (0, "")
    assert "written policy.pt2" in done.out
    about = json.loads(Path("policy.json").read_text())
    shape = {
        "batch": int, "acting": str, "checkpoint": str, "step": int, "uses_returns": bool,
        "inputs": [{"name": str, "shape": [int], "dtype": str, "meaning": str}],
        "state": [{"name": str, "shape": [int], "dtype": str}],
        "action": {"kind": str, "choices": [int]},
        "normalisation": {"inside": bool, "return_scale": float},
    }  # fmt: skip
    check(about, shape)
    assert about["acting"] == "stream"
    assert about["action"]["choices"] == [4]
    policy = seqrl.load_policy(run_dir, "best", row_block=1)
    policy.agent.set_acting(rule="stream")
    env = make_env(str(policy.task.env_id), policy.task.env_kwargs)
    names = ("observation", "prev_action", "prev_reward", "rtg", "timestep", "first")
    taken: dict[str, list[Any]] = {k: [] for k in names}
    actions: list[int] = []
    obs, _ = env.reset(seed=3)
    policy.reset(target=1.0)
    reward, wanted, over = 0.0, 1.0, False
    while not over:
        t = len(actions)
        now = (obs, actions[-1] if t else 0, reward, wanted, t, t == 0)
        for name, value in zip(names, now, strict=True):
            taken[name].append(value)
        actions.append(int(policy.act(obs, reward if t else None)))
        obs, reward, ended, cut, _ = env.step(actions[-1])
        wanted, over = wanted - float(reward), ended or cut
    types = dict(zip(names, (np.float32, np.int64, np.float32, np.float32, np.int64, bool),
                     strict=True))  # fmt: skip
    arrays = {k: np.asarray(v, types[k])[:, None] for k, v in taken.items()}
    np.savez("policy.pt2.npz", **arrays)
    elsewhere([tmp_path / "policy.pt2"])
    assert np.load("policy.pt2.npy")[:, 0].tolist() == actions


def test_continuous_actions_stay_in_their_bounds_and_units_are_told(tmp_path: Path) -> None:
    agent = build(registry.agent_class("lstm"), tiny_data("continuous")).eval()
    with torch.no_grad():
        agent.head.out.weight.mul_(1000)
    about = export_agent(agent, tmp_path / "a.pt2")
    spec = agent.tasks[0].action
    assert about["action"]["low"] == list(spec.low) or not spec.bounded
    assert about["action"]["clipped"] is spec.bounded
    assert about["normalisation"]["mean"] == list(agent.stats[0].obs_mean)
    assert about["normalisation"]["return_scale"] == agent.scale_of()
    assert about["inputs"][0]["name"] == "observation"
    assert all(i["meaning"] for i in about["inputs"])


def test_what_looks_at_values_is_refused_with_another_rule(cli: Cli, run_dir: Path) -> None:
    done = cli("export", str(run_dir), "policy.pt2", "--acting", "recompute")
    assert done.code == 2
    assert "agent 'dt' acting by 'recompute' is no fixed graph" in done.err
    assert "hint: --acting stream" in done.err
    assert len(done.err.splitlines()) == 2, done.err
    assert not Path("policy.pt2").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["policy.onnx"], "'policy.onnx' is no .pt2 file"),
        (["policy.pt2", "--batch", "0"], "the batch is 0"),
        (["policy.pt2", "--task", "3"], "no task 3"),
        (["policy.pt2", "--acting", "sream"], "cannot act by 'sream'"),
        (["policy.pt2", "--checkpoint", "99"], "has no checkpoint '99'"),
        (["no/folder/policy.pt2", "--acting", "stream"], "cannot be written"),
        ([], "FILE"),
    ],
)
def test_mistakes_are_named(cli: Cli, run_dir: Path, words: list[str], message: str) -> None:
    done = cli("export", str(run_dir), *words)
    assert done.code == 2
    assert message in done.err


class Counts(RecurrentAgent):
    """Keeps a Python number outside its state, which a trace takes for a constant."""

    def initial_state(self, n: int) -> dict[str, torch.Tensor]:
        self.calls = 0
        return super().initial_state(n)

    def step(self, state, step):
        self.calls += 1
        y, state = super().step(state, step)
        return y + 0.01 * self.calls, state


def test_a_graph_that_acts_otherwise_is_not_written(tmp_path: Path) -> None:
    agent = build(Counts, tiny_data("continuous")).eval()
    with pytest.raises(SeqrlError, match="acts differently") as e:
        export_agent(agent, tmp_path / "a.pt2")
    assert "outside the state" in (e.value.hint or "")
    assert not list(tmp_path.iterdir())


def test_exporting_leaves_the_agent_trainable(tmp_path: Path) -> None:
    data = tiny_data("continuous")
    agent = build(registry.agent_class("dt"), data, mixer=("trxl",), positions="none")
    agent.set_acting(rule="stream")
    export_agent(agent, tmp_path / "a.pt2")
    from seqrl.testing.battery import whole_episodes

    assert agent.training
    assert all(p.requires_grad for p in agent.parameters())
    agent.loss(whole_episodes(agent, data)).loss.backward()
