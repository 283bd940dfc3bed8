"""Tiny environments and agents for the evaluation tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from seqrl import spaces as sp
from seqrl.agents.agent import Agent, AgentConfig
from seqrl.envs.pool import LocalPool
from seqrl.rollout import EpisodePlan
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec


class Walk(gymnasium.Env):
    """A noisy linear system whose episodes last between 1 and 60 steps, decided by the seed.

    Even-seeded episodes terminate, odd ones are truncated; ``success`` shows up at one step only.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, actions: int = 0, reward: float | None = None, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float64)
        self.action_space = (
            spaces.Discrete(actions, start=2)
            if actions
            else spaces.Box(-0.5, 0.5, (3,), np.float32)
        )
        self.reward = reward
        self.max_episode_steps = 60
        self.taken: list[Any] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        draw = self.np_random.random()
        self.length = int(np.ceil(60 * draw**3)) or 1
        self.length = (options or {}).get("length", self.length)
        self.even = (seed or 0) % 2 == 0
        self.t, self.x = 0, self.np_random.normal(size=5)
        return self.x, {}

    def step(self, action):
        a = np.asarray(action, dtype=np.float64)
        self.taken.append(np.copy(action))
        push = np.resize(a, 5) if a.ndim else np.sin(a + np.arange(5))
        self.x = 0.9 * np.roll(self.x, 1) + push + 0.1 * self.np_random.normal(size=5)
        self.t += 1
        over = self.t == self.length
        reward = float(self.x.sum()) if self.reward is None else self.reward
        info = {"success": bool(self.x[0] > 1.0)} if self.t > 2 else {}
        return self.x, reward, over and self.even, over and not self.even, info

    def oracle_action(self):
        if isinstance(self.action_space, spaces.Discrete):
            return self.action_space.start + (0 if self.x[0] > 0 else 1)
        return -0.1 * np.sign(self.x[:3]).astype(np.float32)

    def render(self):
        frame = np.zeros((20, 31, 3), np.uint8)
        frame[:, : 1 + self.t % 31] = 255
        return frame

    @classmethod
    def reference_scores(cls, reward: float | None = None, **kwargs: Any) -> dict[str, float]:
        if reward is None:
            raise ValueError("not known")
        return {"random": 0.0, "oracle": 60.0 * reward}


class Counting(gymnasium.Env):
    """Rewards 1, 2, 3, ... whatever is done; the observation is the time."""

    def __init__(self, length: int = 5, sign: float = 1.0, alternate: bool = False):
        self.length, self.sign, self.alternate = length, sign, alternate
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.options = 0, options
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t >= self.length
        return np.full(1, self.t, np.float32), self.sign * self.t, over, False, {}


class Offering(Counting):
    """Asks for options of its own, one set an evaluation episode."""

    def episode_options(self, i: int) -> dict[str, Any]:
        return {"goal": i % 2}

    def step(self, action):
        out = super().step(action)
        return out[0], float(self.options["goal"]), *out[2:4], {"is_success": self.options["goal"]}


for name, cls in (("Walk", Walk), ("Counting", Counting), ("Offering", Offering)):
    if f"toy/{name}-v0" not in gymnasium.registry:
        gymnasium.register(f"toy/{name}-v0", f"eval_toys:{cls.__name__}", order_enforce=False)
if "toy/Limited-v0" not in gymnasium.registry:
    gymnasium.register("toy/Limited-v0", "eval_toys:Counting", max_episode_steps=7)


def stats_of(task: TaskSpec, **quantiles: float) -> DataStats:
    """Plausible statistics for a task."""
    size = task.observation.shape[0]
    names = ("min", "p10", "p25", "p50", "p75", "p90", "max", "mean")
    values = dict(zip(names, (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 3.0), strict=True)) | quantiles
    return DataStats(
        obs_mean=tuple(0.1 * i for i in range(size)),
        obs_std=(1.3,) * size,
        return_scale=10.0,
        return_quantiles=values,
        reward_min=0.0,
        reward_max=1.0,
        rtg_min=0.0,
        rtg_max=6.0,
        action_low=(),
        action_high=(),
        action_counts=(1,) * task.action.n if task.action.kind == "discrete" else (),
        episodes=10,
        steps=100,
        max_episode_length=60,
    )


def task_of(env_id: str, **kwargs: Any) -> TaskSpec:
    """The task of a toy environment."""
    env = gymnasium.make(env_id, **kwargs).unwrapped
    return TaskSpec(
        name=env_id.rpartition("/")[2],
        observation=sp.observation_spec(env.observation_space),
        action=sp.action_spec(env.action_space),
        env_id=env_id,
        env_kwargs=kwargs,
    )


@dataclass(frozen=True)
class ToyConfig(AgentConfig):
    """Nothing to set."""

    def window(self) -> WindowSpec:
        return WindowSpec("any_start", 4)


class Toy(Agent):
    """What the toy agents share: they only act."""

    name = "toy"
    config_class = ToyConfig
    acting_rules = ("stream", "recompute")

    def __init__(self, task: TaskSpec, stats: DataStats | None = None, seed: int = 0):
        super().__init__(ToyConfig(), [task], [stats or stats_of(task)])
        torch.manual_seed(seed)
        self.size = task.observation.shape[0]
        self.out = task.action.n if task.action.kind == "discrete" else task.action.size
        self.build()

    def build(self) -> None:
        self.dummy = nn.Parameter(torch.zeros(1))

    def predict(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def loss(self, batch: Batch) -> LossOut:
        raise NotImplementedError

    def inputs(self, step: Step) -> Tensor:
        """Everything that could leak between rows, as one vector ``[n, F]``."""
        previous = step.prev_action.reshape(len(step.rtg), -1).float()
        rest = [step.prev_reward, self.scaled(step.rtg), step.timestep / 60, step.first]
        return torch.cat(
            [self.observe(step.observation), previous, torch.stack([r.float() for r in rest], 1)], 1
        )


class Gru(Toy):
    """A recurrent agent with layers of awkward widths."""

    def build(self) -> None:
        width = self.size + 4 + (1 if self.tasks[0].action.kind == "discrete" else self.out)
        self.cell, self.head = nn.GRUCell(width, 33), nn.Linear(33, self.out)

    def initial_state(self, n: int) -> dict[str, Tensor]:
        return {"h": torch.zeros(n, 33)}

    def step(self, state, step: Step):
        h = self.cell(self.inputs(step), state["h"])
        return nn.functional.silu(self.head(h)), {"h": h}


class Window(Toy):
    """Attention over the last eight inputs, which it keeps."""

    K = 8

    def build(self) -> None:
        width = self.size + 4 + (1 if self.tasks[0].action.kind == "discrete" else self.out)
        self.embed, self.head = nn.Linear(width, 128), nn.Linear(128, self.out)

    def initial_state(self, n: int) -> dict[str, Tensor]:
        return {"x": torch.zeros(n, self.K, 128)}

    def step(self, state, step: Step):
        x = torch.cat([state["x"][:, 1:], self.embed(self.inputs(step))[:, None]], 1)
        y = nn.functional.scaled_dot_product_attention(x[:, -1:], x, x)[:, 0]
        return self.head(y), {"x": x}


class Probe(Toy):
    """Notes every Step of its live rows; acts 0."""

    uses_returns = True

    def build(self) -> None:
        super().build()
        self.seen: list[Step] = []

    def initial_state(self, n: int) -> dict[str, Tensor]:
        return {"age": torch.zeros(n, dtype=torch.int64)}

    def step(self, state, step: Step):
        self.seen.append(step)
        self.ages = state["age"]
        return torch.zeros(len(step.rtg), self.out), {"age": state["age"] + 1}


class Trial(Probe):
    """A probe whose memory lasts for a trial."""

    memory = "trial"


def plans(n: int, targets: tuple[float, ...] = (1.0,), base: int = 100) -> list[EpisodePlan]:
    """Episodes 0 .. n-1 for each target."""
    return [EpisodePlan(i, base + i, t) for t in targets for i in range(n)]


def pool(env_id: str, n: int = 1, **kwargs: Any) -> LocalPool:
    """An in-process pool of a toy environment."""
    return LocalPool(lambda: gymnasium.make(env_id, disable_env_checker=True, **kwargs), n)
