"""One acting step as a graph that runs without this package.

The file holds what ``torch.export`` traced of a policy's step: weights, normalisation, memory and
greedy decoding. It is read with torch alone::

    program = torch.export.load("policy.pt2").module()
    action, state = program(inputs, state)

``inputs`` and ``state`` are dicts of named tensors; names, shapes, types and units stand in the
JSON text beside the file, which is also inside it. Rows whose ``first`` is set begin anew: the
graph itself puts the initial state in place of what it is handed, so a first call may pass zeros.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import seqrl
from seqrl.checkpoint import agent_name, find_checkpoint, load_agent
from seqrl.errors import SeqrlError
from seqrl.layers.state import map_states, select_rows
from seqrl.spec import DataStats, Step, TaskSpec, to_plain

if TYPE_CHECKING:
    from seqrl.agents.agent import Agent

SCHEMA = 1
DESCRIPTION = "policy.json"
"""Name of the description inside the archive."""

_COMPARED = 200
"""Steps that a graph and its agent are compared over, at most."""

_MEANINGS = {
    "observation": "as the environment gives it; normalisation is inside",
    "prev_action": "the last action as executed; zeros where first is set",
    "prev_reward": "the reward for it, raw; 0 where first is set",
    "rtg": "return still wanted, raw: the target less the rewards so far",
    "timestep": "steps since the episode began, from 0",
    "first": "true at an episode's first step; the row's memory is then forgotten",
    "trial_first": "true at a trial's first step; the row's memory is then forgotten",
    "prev_terminated": "whether the last transition ended its episode",
    "final_observation": "last observation of the episode just ended; zeros elsewhere",
}


def export_policy(
    path: str | Path,
    out: str | Path,
    checkpoint: str | Path = "last",
    *,
    acting: str | None = None,
    rows: int = 1,
    task: int = 0,
    trust: bool = False,
) -> dict[str, Any]:
    """Export the policy of a run folder or checkpoint.

    Args:
        path: run folder, checkpoint, or anything inside a run.
        out: file to write, ``.pt2``; the description goes beside it as ``.json``.
        checkpoint: ``last``, ``best``, a step or a path.
        acting: rule beyond the training window; None means the policy's own.
        rows: environments the graph steps at once.
        task: which of the policy's tasks it does.
        trust: the checkpoint may name code outside seqrl to import.

    Returns:
        The description.

    Raises:
        SeqrlError: nothing there, a rule the agent does not have, a step that is no fixed graph, or
            a file that cannot be written.
    """
    folder = find_checkpoint(path, checkpoint)
    agent, meta = load_agent(folder, trust=trust)
    agent.set_acting(rule=acting, decode="greedy")
    about = {"checkpoint": folder.name, "step": meta.step, "targets": to_plain(meta.targets)}
    return export_agent(agent, out, rows=rows, task=task, about=about)


def export_agent(
    agent: Agent,
    out: str | Path,
    *,
    rows: int = 1,
    task: int = 0,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Export an agent as it acts now; see :func:`export_policy`.

    Args:
        about: more facts for the description.
    """
    file = Path(out)
    if file.suffix != ".pt2":
        raise SeqrlError(f"'{out}' is no .pt2 file", hint=f"name it {file.stem or 'policy'}.pt2")
    if rows < 1:
        raise SeqrlError(f"the batch is {rows}, must be at least 1")
    if not 0 <= task < len(agent.tasks):
        raise SeqrlError(f"the policy has no task {task}, it has {len(agent.tasks)}")
    one_step = OneStep(agent, rows, task)
    inputs, state = one_step.example_inputs(), one_step.example_state()
    program = _traced(one_step, inputs, state)
    _compare(one_step, program)
    described = one_step.describe() | dict(about or {})
    _write(program, file, described)
    return described


class OneStep(nn.Module):
    """A policy's step with everything it needs as named tensors, and nothing else.

    Args:
        agent: copied, without gradients.
        rows: n.
        task: index into the agent's tasks.
    """

    def __init__(self, agent: Agent, rows: int, task: int = 0):
        super().__init__()
        self.agent = copy.deepcopy(agent).cpu().eval().requires_grad_(False)
        self.rows, self.task = rows, task
        with torch.no_grad():
            self._like = self.agent.initial_state(rows)
        self.names = _names(self._like)

    def forward(
        self, inputs: dict[str, Tensor], state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of every row.

        Args:
            inputs: as :meth:`example_inputs`.
            state: as :meth:`example_state`.

        Returns:
            Actions ``[n, A]`` float32 within their bounds or ``[n]`` int64, and the new state.
        """
        step = self.as_step(inputs)
        # Also a copy: stepping may write into the memory of the state it is given.
        before = select_rows(
            step.trial_first, self.agent.initial_state(self.rows), self._nested(state)
        )
        action, after = self.agent.act(before, step)
        return self.bounded(action), self._flat(after)

    def as_step(self, inputs: Mapping[str, Tensor]) -> Step:
        """The named inputs as the agent takes them."""
        return Step(
            observation=inputs["observation"],
            prev_action=inputs["prev_action"],
            prev_reward=inputs["prev_reward"],
            rtg=inputs["rtg"],
            timestep=inputs["timestep"],
            first=inputs["first"],
            trial_first=inputs.get("trial_first", inputs["first"]),
            prev_terminated=inputs.get("prev_terminated", torch.zeros_like(inputs["first"])),
            final_observation=inputs.get("final_observation"),
            task=torch.full((self.rows,), self.task, dtype=torch.int64),
        )

    def bounded(self, action: Tensor) -> Tensor:
        """The action within its bounds, if it has any."""
        spec = self._spec.action
        if not spec.bounded:
            return action.clone()
        return torch.minimum(torch.maximum(action, torch.tensor(spec.low)), torch.tensor(spec.high))

    def _nested(self, flat: Mapping[str, Tensor]) -> Any:
        values = iter([flat[name] for name in self.names])
        return map_states(lambda _: next(values), self._like)

    def _flat(self, state: Any) -> dict[str, Tensor]:
        return dict(zip(self.names, _leaves(map_states(Tensor.clone, state)), strict=True))

    @property
    def _spec(self) -> TaskSpec:
        return self.agent.tasks[self.task]

    @property
    def _stats(self) -> DataStats:
        return self.agent.stats[self.task]

    def example_state(self) -> dict[str, Tensor]:
        """A fresh state, flat."""
        return self._flat(self._like)

    def example_inputs(self) -> dict[str, Tensor]:
        """The inputs of a first step with observations of zeros."""
        n, spec = self.rows, self._spec
        image = spec.observation.kind == "image"
        kind = torch.uint8 if image else torch.float32
        continuous = spec.action.kind == "continuous"
        observation = torch.zeros(n, *spec.observation.shape, dtype=kind)
        inputs = {
            "observation": observation,
            "prev_action": torch.zeros(
                n, *spec.action.shape, dtype=torch.float32 if continuous else torch.int64
            ),
            "prev_reward": torch.zeros(n),
            "rtg": torch.zeros(n),
            "timestep": torch.zeros(n, dtype=torch.int64),
            "first": torch.ones(n, dtype=torch.bool),
        }
        if self.agent.memory == "trial":
            inputs["trial_first"] = inputs["first"].clone()
            inputs["prev_terminated"] = torch.zeros(n, dtype=torch.bool)
            inputs["final_observation"] = observation.clone()
        return inputs

    def random_inputs(self, t: int, draws: torch.Generator) -> dict[str, Tensor]:
        """Inputs of step ``t`` such as the data hold; the last row begins anew at t = 3."""
        inputs, spec, stats = self.example_inputs(), self._spec, self._stats
        shape = inputs["observation"].shape
        if spec.observation.kind == "image":
            new = torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8)
        else:
            scale, mean = torch.tensor(stats.obs_std), torch.tensor(stats.obs_mean)
            new = mean + scale * torch.randn(shape, generator=draws)
        inputs["observation"] = new
        age = torch.full((self.rows,), t)
        if t >= 3 and self.rows > 1:
            age[-1] = t - 3
        again = age > 0
        inputs["timestep"], inputs["first"] = age, ~again
        if "trial_first" in inputs:
            inputs["trial_first"] = ~again
        inputs["rtg"] = torch.full((self.rows,), float(stats.rtg_max)) - age
        inputs["prev_reward"] = again.float()
        like = inputs["prev_action"]
        if spec.action.kind == "continuous":
            drawn = torch.rand(like.shape, generator=draws) - 0.5
        else:
            drawn = torch.randint(0, 1 << 30, like.shape, generator=draws)
            drawn %= torch.tensor(spec.action.nvec)
        inputs["prev_action"] = drawn * again.view(-1, *[1] * (like.dim() - 1))
        return inputs

    def describe(self) -> dict[str, Any]:
        """What a user of the file must know, as plain JSON data."""
        agent, spec = self.agent, self._spec
        inputs = [
            {"name": k, **_shape(v), "meaning": _MEANINGS[k]}
            for k, v in self.example_inputs().items()
        ]
        state = [{"name": k, **_shape(v)} for k, v in self.example_state().items()]
        shape = [self.rows, *spec.action.shape]
        action: dict[str, Any] = {"kind": spec.action.kind, "shape": shape}
        if spec.action.kind == "continuous":
            action |= {"dtype": "float32", "low": list(spec.action.low)}
            action |= {"high": list(spec.action.high), "clipped": spec.action.bounded}
        else:
            action |= {"dtype": "int64", "choices": list(spec.action.nvec)}
        vector = spec.observation.kind == "vector"
        normalised = vector and agent.config.normalize_observations
        described = {
            "schema": SCHEMA,
            "made_by": {"seqrl": seqrl.__version__, "torch": torch.__version__},
            "agent": agent_name(type(agent)),
            "task": spec.name,
            "acting": agent.acting.rule,
            "decode": "greedy",
            "batch": self.rows,
            "call": "action, state = torch.export.load(FILE).module()(inputs, state)",
            "inputs": inputs,
            "state": state,
            "state_starts": "as zeros: the graph begins anew by itself where first is set",
            "action": action,
            "observation": to_plain(spec.observation),
            "normalisation": {
                "inside": True,
                "mean": list(self._stats.obs_mean) if normalised else None,
                "std": list(self._stats.obs_std) if normalised else None,
                "return_scale": agent.scale_of(self.task),
            },
            "uses_returns": bool(agent.uses_returns),
        }
        return to_plain(described)


def _parts(state: Any) -> list[tuple[str, Any]]:
    """What a state is made of, in the order in which ``map_states`` meets it."""
    if isinstance(state, Mapping):
        return [(str(k), v) for k, v in state.items()]
    if isinstance(state, (tuple, list)):
        return [(str(i), v) for i, v in enumerate(state)]
    return [(k, getattr(state, k)) for k in state.__dataclass_fields__]


def _names(state: Any, path: str = "") -> list[str]:
    """Names of a state's tensors: the way to each, with dots."""
    if state is None or isinstance(state, Tensor):
        return [] if state is None else [path or "state"]
    return [n for k, v in _parts(state) for n in _names(v, f"{path}.{k}" if path else k)]


def _leaves(state: Any) -> list[Tensor]:
    if state is None or isinstance(state, Tensor):
        return [] if state is None else [state]
    return [t for _, v in _parts(state) for t in _leaves(v)]


def _shape(x: Tensor) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}


def _traced(
    one_step: OneStep, inputs: dict[str, Tensor], state: dict[str, Tensor]
) -> torch.export.ExportedProgram:
    """The step as a graph.

    Raises:
        SeqrlError: it branches on values, or does what no graph can hold.
    """
    try:
        with _silence(), torch.no_grad():
            # Once for real: what a layer keeps for later must not be a tensor of the tracer's.
            one_step(inputs, state)
            return torch.export.export(one_step, (inputs, state), strict=False)
    except Exception as e:  # the tracer raises many kinds, most of them private
        agent, rule = one_step.agent, one_step.agent.acting.rule
        streams = [r for r in agent.acting_rules if r.startswith("stream") and r != rule]
        hint = f"--acting {streams[0]}" if streams else "its step must not look at tensors' values"
        raise SeqrlError(
            f"agent '{agent.name}' acting by '{rule}' is no fixed graph ({type(e).__name__})",
            hint=hint,
        ) from e


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The tracer warns of its own affairs, and when it gives up prints the whole graph."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@torch.no_grad()
def _compare(one_step: OneStep, program: torch.export.ExportedProgram) -> None:
    """Step the graph and the agent side by side, the agent as an evaluation does.

    For a training window and a little more, where caches slide and segments have ended.

    Raises:
        SeqrlError: they act differently: the trace took something for a constant that is none.
    """
    draws, graph = torch.Generator().manual_seed(0), program.module()
    its, agent = one_step.example_state(), one_step.agent
    mine = agent.initial_state(one_step.rows)
    for t in range(min((agent.config.window().length or 0) + 12, _COMPARED)):
        inputs = one_step.random_inputs(t, draws)
        found, its = graph(inputs, its)
        step = one_step.as_step(inputs)
        if t and bool(step.trial_first.any()):
            mine = agent.reset(mine, step.trial_first)
        action, mine = agent.act(mine, step)
        wanted = one_step.bounded(action)
        if not torch.allclose(wanted.double(), found.double(), rtol=1e-5, atol=1e-5):
            gap = float((wanted.double() - found.double()).abs().max())
            raise SeqrlError(
                f"the exported step of agent '{one_step.agent.name}' acts differently by {gap:.2g} "
                f"at step {t}",
                hint="its step must not keep Python numbers or tensors outside the state",
            )


def _write(program: torch.export.ExportedProgram, file: Path, described: dict[str, Any]) -> None:
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    beside = file.with_suffix(".json")
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.pt2")
    try:
        torch.export.save(program, temporary, extra_files={DESCRIPTION: text})
        os.replace(temporary, file)
        beside.write_text(text, encoding="utf-8")
    except (OSError, RuntimeError) as e:
        temporary.unlink(missing_ok=True)
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e).splitlines()[0]
        raise SeqrlError(f"{file} cannot be written: {reason}") from e
