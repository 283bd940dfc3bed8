"""Agents trained with Stable-Baselines3, to record data with or to compare against.

Their files hold pickled Python objects: loading one runs whatever code its author put in, so it is
done only when asked for by name.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrl.draws import RowDraws
from seqrl.errors import SeqrlError
from seqrl.references.policy import ReferencePolicy
from seqrl.spec import Step, TaskSpec

# Which class a file was saved by: the package of its policy, then a setting only one class has.
_CLASSES = (
    ("stable_baselines3.sac.", None, "stable_baselines3", "SAC"),
    ("stable_baselines3.td3.", None, "stable_baselines3", "TD3"),
    ("stable_baselines3.dqn.", None, "stable_baselines3", "DQN"),
    ("stable_baselines3.common.", "clip_range", "stable_baselines3", "PPO"),
    ("stable_baselines3.common.", "cg_max_steps", "sb3_contrib", "TRPO"),
    ("stable_baselines3.common.", None, "stable_baselines3", "A2C"),
    ("sb3_contrib.tqc.", None, "sb3_contrib", "TQC"),
    ("sb3_contrib.ars.", None, "sb3_contrib", "ARS"),
    ("sb3_contrib.qrdqn.", None, "sb3_contrib", "QRDQN"),
)


class Sb3Policy(ReferencePolicy):
    """A Stable-Baselines3 agent's most likely action. Observations are used as they come: an
    agent trained under VecNormalize needs its environment wrapped the same way."""

    name = "sb3"

    def __init__(self, task: TaskSpec, model: Any):
        super().__init__(task)
        shape = tuple(model.observation_space.shape or ())
        expected = task.observation.shape
        # Image agents are trained on channels first; predict() accepts either.
        if shape not in (expected, (expected[-1], *expected[:-1])):
            raise SeqrlError(
                f"the agent reads observations {shape}, env gives {task.observation.describe()}",
                hint="agents on Dict or Discrete observations cannot be used here",
            )
        self.model = model

    def act(self, state: Any, step: Step, generator: RowDraws | None = None) -> tuple[Tensor, Any]:
        actions, _ = self.model.predict(step.observation.cpu().numpy(), deterministic=True)
        kind = np.float32 if self.tasks[0].action.kind == "continuous" else np.int64
        return torch.from_numpy(np.asarray(actions).astype(kind)), state


def load_sb3(path: str | Path, task: TaskSpec, trust: bool = False) -> Sb3Policy:
    """The agent of a ``.zip`` written by ``model.save``.

    Args:
        path: the file.
        task: what it is to act in.
        trust: the file may run code; without it nothing is loaded.

    Raises:
        SeqrlError: not trusted, package missing, no such file, or an unknown kind of agent.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise SeqrlError(f"{path} does not exist", hint="sb3:FILE.zip names a file of model.save")
    if not trust:
        raise SeqrlError(
            f"{path} is a Stable-Baselines3 file: loading it runs the code pickled in it",
            hint="if you know where it comes from: --trust",
        )
    module, name = _class_of(path)
    try:
        package = __import__(module)
    except ImportError as e:
        extra = '"seqrl[collect]"' if module == "stable_baselines3" else "sb3-contrib"
        raise SeqrlError(f"{path} needs {module}", hint=f"pip install {extra}") from e
    try:
        model = getattr(package, name).load(path, device="cpu")
    except Exception as e:
        raise SeqrlError(
            f"{path} cannot be loaded as {name}: {type(e).__name__}: {e}",
            hint="it may come from another version of Stable-Baselines3",
        ) from e
    return Sb3Policy(task, model)


def _class_of(path: Path) -> tuple[str, str]:
    """Module and class of the algorithm that wrote a file, read from its plain JSON part."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        policy = str(data["policy_class"]["__module__"])
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as e:
        raise SeqrlError(
            f"{path} is no Stable-Baselines3 file: {type(e).__name__}: {e}",
            hint="sb3:FILE.zip names a file of model.save",
        ) from e
    for prefix, setting, module, name in _CLASSES:
        if policy.startswith(prefix) and (setting is None or setting in data):
            return module, name
    raise SeqrlError(f"{path} holds an agent of a kind not supported here ({policy})")
