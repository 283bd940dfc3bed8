"""Every preset builds its configs and its agent, and its command can be typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from seqrl import presets
from seqrl.agents import registry
from seqrl.cli.settings import read_request
from seqrl.errors import SeqrlError
from seqrl.experiment import ExperimentConfig
from seqrl.presets.settings import layer

NAMES = presets.names()


@pytest.mark.parametrize("name", NAMES)
def test_preset_builds_configs_and_agent(name: str) -> None:
    import seqrl
    from seqrl.spec import ActionSpec, ObservationSpec, TaskSpec

    preset = presets.load(name)
    assert preset.agent in registry.names()
    assert preset.description
    assert len(preset.description) < 70
    assert preset.source
    config = ExperimentConfig.from_json({"data": (), **preset.to_config()})
    atari = "/atari-" in name
    observation = (
        ObservationSpec("image", (84, 84, 4)) if atari else ObservationSpec("vector", (11,))
    )
    action = (
        ActionSpec("discrete", (), nvec=(4,))
        if atari or preset.data
        else ActionSpec("continuous", (3,), (-1.0,) * 3, (1.0,) * 3)
    )
    task = TaskSpec("task", observation, action, max_episode_steps=900)
    own = preset.settings.get("agent_config", {})
    wide = own.get("width", 0) >= 512  # up to 200 million weights, of which none is needed here
    with torch.device("meta" if wide else "cpu"):
        agent = seqrl.make_agent(preset.agent, task, **own)
    assert agent.config == config.agent_config


@pytest.mark.parametrize("name", NAMES)
def test_preset_command_can_be_typed(name: str) -> None:
    preset = presets.load(name)
    program, command, *words = shlex.split(preset.command)
    assert (program, command) == ("seqrl", "train")
    request = read_request("train", words)
    assert request.layered.settings["preset"] == name
    ExperimentConfig.from_json(request.layered.settings)
    if preset.data is None:
        with pytest.raises(SeqrlError, match="names no data"):
            layer({}, preset=name)


@pytest.mark.parametrize("name", [n for n in NAMES if presets.load(n).data is None])
def test_published_presets_keep_all_data(name: str) -> None:
    """The published numbers come from training on everything, evaluated 10 or 100 times."""
    if name.endswith("-small"):
        return
    settings = presets.load(name).settings
    if name.startswith("lram/"):  # published with a hold-out, five episodes a task
        assert settings["train"]["holdout"] == 0.025
        assert settings["eval"]["episodes"] == 5
        return
    assert settings["train"]["holdout"] == 0
    assert settings["eval"]["episodes"] in (10, 100)


def test_published_gym_settings() -> None:
    s = presets.load("dt/hopper-medium").settings
    assert s["agent_config"] == {
        "context": 20, "width": 128, "n_layer": 3, "n_head": 1, "activation": "relu",
        "dropout": 0.1, "embed_dropout": 0.1, "attn_dropout": 0.1, "max_timestep": 1000,
        "positions": "timestep", "windows": "any_start", "return_scale": 1000.0,
    }  # fmt: skip
    assert s["train"]["steps"] == 100_000
    assert s["train"]["batch_size"] == 64
    optim = s["train"]["optim"]
    assert (optim["lr"], optim["weight_decay"], optim["grad_clip"]) == (1e-4, 1e-4, 0.25)
    assert (optim["warmup_steps"], optim["schedule"]) == (10_000, "constant")
    targets = {n: presets.load(f"dt/{n}-medium").settings["eval"]["targets"][-1] for n in
               ("hopper", "halfcheetah", "walker2d")}  # fmt: skip
    assert targets == {"hopper": 3600, "halfcheetah": 6000, "walker2d": 5000}


def test_default_presets_of_the_catalogue_exist() -> None:
    from seqrl.datasets.catalog import CATALOGUE

    for name, entry in CATALOGUE.items():
        for agent, preset in entry.presets.items():
            assert presets.load(preset).agent == agent
            assert name in (presets.load(preset).data or ())


def test_presets_do_not_share_state() -> None:
    first = presets.load("dt/hopper-medium").to_config()
    first["train"]["steps"] = 1
    assert presets.load("dt/hopper-medium").to_config()["train"]["steps"] == 100_000


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "x"}, "has no agent"),
        ({"name": "x", "base": "y"}, "has no base 'y'"),
        (
            {"name": "x", "agent": "dt", "description": "d", "source": "s", "command": "c", "k": 1},
            "unknown key 'k'",
        ),
    ],
)
def test_broken_files_are_named(tmp_path: Path, row: dict, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"presets": [row]}))
    with pytest.raises(SeqrlError, match=message):
        presets.read_file(file)
