"""A point that should go to the origin: an environment small enough to learn in by doing.

Registered on import as ``ft/Reach-v0`` (continuous) and ``ft/Pick-v0`` (discrete).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from seqrl.collect import collect

LENGTH = 8


class Reach(gymnasium.Env):
    """A position in [-1, 1], moved by at most 0.5; reward ``1 - |x|``; ends early within 0.1.

    Seen are the position, its sign and where the episode began.
    """

    def __init__(self, discrete: bool = False, early: bool = True):
        self.observation_space = spaces.Box(-2, 2, (3,), np.float32)
        self.discrete, self.early = discrete, early
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (1,), np.float32)

    def _see(self) -> np.ndarray:
        return np.array([self.x, np.sign(self.x), self.begin], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = self.begin = float(self.np_random.uniform(-1, 1))
        return self._see(), {}

    def step(self, action: Any) -> Any:
        push = (int(action) - 1) if self.discrete else float(np.asarray(action).reshape(()))
        self.x = float(np.clip(self.x + 0.5 * push, -1, 1))
        over = self.early and abs(self.x) < 0.1
        return self._see(), 1 - abs(self.x), over, False, {}


for name, kwargs in (("Reach", {"discrete": False}), ("Pick", {"discrete": True})):
    if f"ft/{name}-v0" not in gymnasium.registry:
        gymnasium.register(f"ft/{name}-v0", Reach, max_episode_steps=LENGTH, kwargs=kwargs)


def offline_run(folder: Path, agent: str, env: str = "ft/Reach-v0", **settings: Any) -> Path:
    """A run trained for a moment on random play."""
    import seqrl

    file = folder / f"{env.replace('/', '-')}.npz"
    if not file.exists():
        collect(env, "random", episodes=30).to_npz(file)
    given: dict[str, Any] = {
        "steps": 20, "batch_size": 8, "lr": 1e-3, "eval": {"episodes": 4}, "eval_episodes": 3,
        "loggers": ("jsonl",), "targets": [6.0], "device": "cpu",
    }  # fmt: skip
    run = seqrl.train(agent, f"npz:{file}", out=folder / "run", **{**given, **settings})
    return run.dir
