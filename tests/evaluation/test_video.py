"""Videos: the episodes of the evaluation, in a file that opens; or one line on what is missing."""

from __future__ import annotations

import os
import sys
import types

import numpy as np
import pytest
from eval_toys import Gru, pool, task_of
from PIL import Image

from seqrl import video
from seqrl.envs import making
from seqrl.errors import SeqrlError
from seqrl.evaluation import EvalConfig, evaluate
from seqrl.policy import Policy


@pytest.fixture
def gru():
    return Gru(task_of("toy/Walk-v0"))


def test_a_gif_needs_no_extra_and_shows_the_episodes_of_the_evaluation(gru, tmp_path):
    report = evaluate(gru, config=EvalConfig(targets=("1",), episodes=2))
    path = tmp_path / "new" / "folder" / "a.gif"
    gru.train()
    records = video.record_video(gru, "toy/Walk-v0", path, episodes=2, target=1.0)
    assert gru.training
    assert [r.episode_return for r in records] == [e["return"] for e in report.episodes]
    with Image.open(path) as image:
        # A picture a step and one of each first state; odd sizes are made even.
        assert image.n_frames == sum(r.length + 1 for r in records)
        assert image.size == (32, 20)


def test_a_policy_films_with_its_suggested_target(gru, tmp_path):
    policy = Policy(gru, {"targets": [30.0]})
    [record] = video.record_video(policy, "toy/Walk-v0", tmp_path / "a.gif")
    assert record.plan.target == 30.0


def test_without_the_extra_the_error_says_what_to_install(gru, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(SeqrlError, match="needs imageio") as e:
        video.record_video(gru, "toy/Walk-v0", tmp_path / "a.mp4")
    assert 'pip install "seqrl[video]"' in e.value.hint
    # An evaluation says so before it runs.
    with pytest.raises(SeqrlError, match="needs imageio"):
        evaluate(gru, config=EvalConfig(targets=("1",), episodes=2, video=str(tmp_path)))


def test_an_evaluation_films_the_first_episodes_of_each_target(gru, tmp_path, monkeypatch):
    written: dict[str, list[np.ndarray]] = {}

    class Writer:
        def __init__(self, path, fps):
            self.frames = written.setdefault(path.name, [])
            assert fps == 10  # the environment's

        def append_data(self, frame):
            self.frames.append(frame)

        def close(self):
            pass

    monkeypatch.setattr(video, "check_writer", lambda kind: None)
    monkeypatch.setattr(video, "open_writer", Writer)
    config = EvalConfig(targets=("1", "max*1.5"), episodes=4, video=str(tmp_path), video_episodes=2)
    report = evaluate(gru, config=config)
    assert set(written) == {"target_1.mp4", "target_maxx1.5.mp4"}
    lengths = [e["length"] for e in report.episodes]
    assert len(written["target_1.mp4"]) == lengths[0] + lengths[1] + 2
    assert len(written["target_maxx1.5.mp4"]) == lengths[4] + lengths[5] + 2


def test_an_environment_without_pictures_is_named(gru):
    with pool("toy/Counting-v0") as envs:
        envs.reset([0], [0], [None])
        with pytest.raises(SeqrlError, match="cannot be rendered"):
            envs.render(0)


def test_mujoco_is_told_to_render_without_a_display(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    making.use_offscreen_gl()
    assert os.environ["MUJOCO_GL"] == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    making.use_offscreen_gl()
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("DISPLAY", ":0")
    making.use_offscreen_gl()
    assert "MUJOCO_GL" not in os.environ


def test_shadows_and_reflections_are_switched_off(monkeypatch):
    flags = {"SHADOW": True, "REFLECTION": True, "FOG": True}
    fake = types.ModuleType("mujoco")
    fake.mjtRndFlag = types.SimpleNamespace(mjRND_SHADOW="SHADOW", mjRND_REFLECTION="REFLECTION")
    monkeypatch.setitem(sys.modules, "mujoco", fake)
    quality = types.SimpleNamespace(offsamples=4, shadowsize=4096)
    viewer = types.SimpleNamespace(scn=types.SimpleNamespace(flags=flags))
    env = types.SimpleNamespace(
        model=types.SimpleNamespace(vis=types.SimpleNamespace(quality=quality)),
        mujoco_renderer=types.SimpleNamespace(_get_viewer=lambda mode: viewer),
        reset=lambda seed: None,
    )
    env.unwrapped = env
    video.lighten(env)
    assert flags == {"SHADOW": False, "REFLECTION": False, "FOG": True}
    assert (quality.offsamples, quality.shadowsize) == (0, 0)
    video.lighten(types.SimpleNamespace(unwrapped=object()))  # others are left alone
