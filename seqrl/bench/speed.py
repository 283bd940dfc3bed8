"""What acting costs: milliseconds and memory of a policy against the steps since its reset.

An untrained policy on a task of Hopper's shape (11 observations, 3 actions) is walked through an
episode, and timed at the ages asked for: the median of at least 20 steps, process CPU time, the
first one left out. That is the protocol of LRAM (Schmied et al. 2025, section on inference speed)
on one CPU core. A policy whose window is to be as long as the episode is built anew for each age
(``from_length`` of its settings).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrl.agents.agent import Agent
from seqrl.agents.registry import agent_class
from seqrl.api import make_agent
from seqrl.layers.state import map_states
from seqrl.presets import merge
from seqrl.presets.settings import nested
from seqrl.runfolder import read_json, write_json
from seqrl.spec import ActionSpec, ObservationSpec, Step, TaskSpec

OBSERVATIONS, ACTIONS = 11, 3
_STEPS, _WARM = 20, 3


@torch.no_grad()
def measure_speed(plan: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Latency, throughput and memory of one entrant at every batch and age of its plan."""
    limits = {"seconds": 60.0, "gigabytes": 8.0, **plan["limits"]}
    results: list[dict[str, Any]] = []
    parameters = 0
    for batch in plan["batches"]:
        walker, over = None, None
        for length in sorted(plan["lengths"]):
            file = folder / "measures" / f"b{batch}_t{length}.json"
            if file.exists():
                found = read_json(file, "delete it")
            elif over is not None:
                found = {"reason": over}
            else:
                if walker is None or walker.per_length:
                    walker = Walker(plan["settings"], batch, length, max(plan["lengths"]), limits)
                found = walker.at(length)
                file.parent.mkdir(exist_ok=True)
                write_json(file, found)
            over = found.get("reason")
            parameters = max(parameters, found.get("parameters", 0))
            point = {"label": f"batch {batch}, {length} steps", "group": f"batch {batch}"}
            results.append({**point, "x": length, "batch": batch, **found})
    return {
        "parameters": parameters,
        "settings": {k: plan["settings"].get(k) for k in ("agent_config", "eval")},
        "results": results,
    }


class Walker:
    """A policy on its way through an episode.

    Args:
        settings: of the entrant: ``agent``, ``agent_config``, ``eval.acting`` and ``from_length``.
        batch: rows that act at once.
        length: the age to be measured first.
        longest: the largest age of all.
        limits: ``seconds`` of a walk and ``gigabytes`` of a state.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        batch: int,
        length: int,
        longest: int,
        limits: Mapping[str, float],
    ):
        follow = (settings.get("eval") or {}).get("from_length") or {}
        self.per_length = bool(follow)
        self.batch, self.limits, self.age = batch, limits, 0
        own = {k: round(factor * length + more) for k, (factor, more) in follow.items()}
        config = merge(settings.get("agent_config") or {}, nested(own))
        known = {f.name for f in dataclasses.fields(agent_class(settings["agent"]).config_class)}
        if "max_timestep" in known:
            config["max_timestep"] = longest + 1000
        task = TaskSpec(
            "task",
            ObservationSpec("vector", (OBSERVATIONS,)),
            ActionSpec("continuous", (ACTIONS,), (-1.0,) * ACTIONS, (1.0,) * ACTIONS),
        )
        torch.manual_seed(0)
        self.before = _resident()
        self.agent: Agent = make_agent(settings["agent"], task, **config).eval()
        if rule := (settings.get("eval") or {}).get("acting"):
            self.agent.set_acting(rule=rule)
        self.state: Any = self.agent.initial_state(batch)
        self.parameters = sum(p.numel() for p in self.agent.parameters())

    def at(self, length: int) -> dict[str, Any]:
        """The figures at an age, or the ``reason`` why it is not reached."""
        facts = {"parameters": self.parameters, "rule": self.agent.acting.rule}
        size = state_bytes(self.state) / 2**30
        if size > self.limits["gigabytes"]:
            return {**facts, "reason": f"over {self.limits['gigabytes']:g} GB"}
        deadline = time.process_time() + self.limits["seconds"]
        while self.age < length:
            self._step()
            if time.process_time() > deadline:
                return {**facts, "reason": f"over {self.limits['seconds']:g} s to walk there"}
        for _ in range(_WARM):
            self._step()
        times: list[float] = []
        begin = time.process_time()
        while len(times) < _STEPS or time.process_time() - begin < 0.2:
            start = time.process_time()
            self._step()
            times.append(time.process_time() - start)
            if len(times) >= _STEPS and time.process_time() > deadline:
                break
        ms = 1e3 * float(np.median(times))
        return {
            **facts,
            "latency_ms": ms,
            "steps_per_s": 1e3 * self.batch / ms,
            "state_mb": state_bytes(self.state) / 2**20,
            "resident_mb": (_resident() - self.before) / 2**20,
        }

    def _step(self) -> None:
        _, self.state = self.agent.act(self.state, step_of(self.batch, self.age))
        self.age += 1


def step_of(rows: int, t: int) -> Step:
    """A step at age ``t`` of every row."""
    no = torch.zeros(rows, dtype=torch.bool)
    first = torch.full((rows,), t == 0)
    return Step(
        observation=torch.full((rows, OBSERVATIONS), 0.1 * (t % 7)),
        prev_action=torch.zeros(rows, ACTIONS),
        prev_reward=torch.zeros(rows),
        rtg=torch.full((rows,), 1000.0),
        timestep=torch.full((rows,), t),
        first=first,
        trial_first=first,
        prev_terminated=no,
        task=torch.zeros(rows, dtype=torch.int64),
    )


def state_bytes(state: Any) -> int:
    """Memory of a state's tensors."""
    total = 0

    def add(x: Tensor) -> Tensor:
        nonlocal total
        total += x.numel() * x.element_size()
        return x

    map_states(add, state)
    return total


def _resident() -> int:
    """Bytes of memory this process holds (0 where the system does not say)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
