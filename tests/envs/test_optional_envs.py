"""Environments of optional packages: MiniGrid-Memory, popgym by id; what is said without them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from seqrl.collect import collect
from seqrl.datasets import LoadOptions, load_dataset
from seqrl.envs.making import horizon, make_env
from seqrl.envs.minigrid_memory import FORWARD, KINDS, LEFT, RIGHT, MiniGridMemoryEnv
from seqrl.errors import SeqrlError

FRESH = LoadOptions(cache=False)


def needs(package: str) -> pytest.MarkDecorator:
    """Skips a test where an optional package is not installed."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs: pip install {package}")


# --- without the packages -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "package", "hint"),
    [
        ("popgym-NoSuchGame-v0", "popgym", "pip install popgym"),
        ("MiniGrid-NoSuchRoom-v0", "minigrid", "pip install minigrid"),
    ],
)
def test_a_missing_package_is_named_with_the_pip_command(
    env_id: str, package: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for use in (make_env, collect, lambda i: load_dataset(f"random:{i}", options=FRESH)):
        with pytest.raises(SeqrlError, match=f"needs {package}") as error:
            use(env_id)
        assert error.value.hint == hint


def test_minigrid_memory_without_minigrid_names_the_pip_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "minigrid.envs.memory", None)
    for use in (make_env, collect, lambda i: load_dataset(f"oracle:{i}", options=FRESH)):
        with pytest.raises(SeqrlError, match="needs the package minigrid") as error:
            use("seqrl/MiniGridMemory-v0")
        assert error.value.hint == 'pip install "seqrl[minigrid]"'


def test_listing_and_registering_import_no_optional_package() -> None:
    code = (
        "import sys; import seqrl.envs, seqrl.envs.minigrid_memory\n"
        "from seqrl.cli.listing import envs; envs()\n"
        "assert not {'minigrid', 'popgym', 'pygame'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- MiniGrid-Memory ------------------------------------------------------------------------------


def finish(env: Any, **reset: Any) -> tuple[list[np.ndarray], float, dict[str, Any]]:
    """The expert's episode: observations, return and last info."""
    observation, info = env.reset(**reset)
    seen, total = [observation], 0.0
    terminated = truncated = False
    while not (terminated or truncated):
        observation, reward, terminated, truncated, info = env.step(env.oracle_action())
        seen.append(observation)
        total += reward
    return seen, total, info


@needs("minigrid")
def test_minigrid_memory_passes_gymnasiums_checker_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("seqrl/MiniGridMemory-v0", size=7)
        check_env(env.unwrapped)
    assert env.get_wrapper_attr("max_episode_steps") == 245
    assert env.observation_space.shape == (45,)
    wide = make_env("seqrl/MiniGridMemory-v0", {"view_size": 5, "max_steps": 50})
    assert (wide.observation_space.shape, horizon(wide)) == ((125,), 50)


@needs("minigrid")
@pytest.mark.parametrize("random_length", [False, True])
@pytest.mark.parametrize(("size", "view_size"), [(7, 3), (13, 3), (13, 7), (41, 3)])
def test_the_expert_of_minigrid_memory_always_finds_the_right_end(
    size: int, view_size: int, random_length: bool
) -> None:
    env = MiniGridMemoryEnv(size, random_length, view_size)
    for seed in range(20):
        seen, total, info = finish(env, seed=seed)
        assert info == {"success": True}
        steps = len(seen) - 1
        assert total == pytest.approx(1 - 0.9 * steps / (5 * size**2))
        # Back to the room, out again and to one side, with at most seven turns.
        assert steps <= 2 * (size - 3) + 2 + 7


@needs("minigrid")
def test_the_expert_sees_the_object_before_it_chooses_and_is_right_after_mistakes() -> None:
    env = MiniGridMemoryEnv(13)
    key, ball = (KINDS.index(kind) for kind in ("key", "ball"))
    firsts = set()
    for seed in range(20):
        seen, _, _ = finish(env, seed=seed)
        kinds = np.stack(seen).reshape(len(seen), 9, 5)
        objects = kinds[:, :, [key, ball]].any(axis=1)  # (T, 2)
        first = objects[objects.any(axis=1).argmax()]
        assert first.sum() == 1  # the room's one object comes into view first, and alone
        firsts.add(int(first.argmax()))
    assert firsts == {0, 1}
    rng = np.random.default_rng(0)
    for seed in range(20):
        env.reset(seed=seed)
        over = any(env.step(int(rng.choice([LEFT, RIGHT, FORWARD])))[2] for _ in range(12))
        while not over:
            *_, over, _, info = env.step(env.oracle_action())
            assert not over or info["success"]


@needs("minigrid")
def test_minigrid_memory_is_the_packages_game_in_symbols() -> None:
    from minigrid.core.constants import OBJECT_TO_IDX

    theirs = make_env("MiniGrid-MemoryS13Random-v0", {"agent_view_size": 3})
    ours = MiniGridMemoryEnv(13, random_length=True)
    index = np.array([OBJECT_TO_IDX[kind] for kind in KINDS])
    rng = np.random.default_rng(0)
    ends = []
    for seed in range(15):
        observation, _ = ours.reset(seed=seed)
        shown, _ = theirs.reset(seed=seed)
        over = False
        while not over:
            symbols = index[observation.reshape(3, 3, 5).argmax(axis=2)]
            np.testing.assert_array_equal(symbols.T, shown["image"][:, :, 0])
            action = int(rng.integers(3))
            observation, reward, terminated, truncated, info = ours.step(action)
            shown, *rest, _ = theirs.step(action)
            assert [reward, terminated, truncated] == rest
            over = terminated or truncated
        assert info["success"] == (reward > 0)
        ends.append((terminated, info["success"]))
    assert {(True, True), (True, False)} <= set(ends)


@needs("minigrid")
def test_minigrid_memory_is_cut_seeded_and_drawn() -> None:
    env = MiniGridMemoryEnv(7, max_steps=4, render_mode="ansi")
    first = env.reset(seed=3)[0]
    text = env.render()
    out = [env.step(LEFT) for _ in range(4)]
    assert [o[3] for o in out] == [False] * 3 + [True]
    assert [o[4] for o in out] == [{}] * 3 + [{"success": False}]
    assert len(text.splitlines()) == 7
    assert text == env.render()  # four turns
    with pytest.raises(SeqrlError, match="reset"):
        env.step(LEFT)
    np.testing.assert_array_equal(MiniGridMemoryEnv(7).reset(seed=3)[0], first)
    picture = MiniGridMemoryEnv(7, render_mode="rgb_array")
    picture.reset(seed=0)
    assert picture.render().shape[2] == 3


@needs("minigrid")
def test_minigrid_memory_data_are_the_experts() -> None:
    uri = "oracle:seqrl/MiniGridMemory-v0?size=9&max_steps=100&episodes=6"
    data = load_dataset(uri, options=FRESH)
    assert data.task.env_kwargs == {"size": 9, "max_steps": 100}
    assert data.task.max_episode_steps == 100
    assert data.terminations.sum() == 6
    assert all(data[i].rewards.sum() > 0.8 for i in range(6))
    recorded = collect("seqrl/MiniGridMemory-v0", "oracle", 3, env_kwargs={"size": 7})
    assert all(recorded[i].rewards.sum() > 0.9 for i in range(3))


@needs("minigrid")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 8}, "size=8"),
        ({"size": 5}, "size=5"),
        ({"view_size": 4}, "view_size=4"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"random_length": 3}, "random_length=3"),
        ({"render_mode": "human"}, "render_mode"),
    ],
)
def test_bad_settings_of_minigrid_memory_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SeqrlError, match=message):
        MiniGridMemoryEnv(**settings)
    env = MiniGridMemoryEnv(7)
    env.reset(seed=0)
    with pytest.raises(SeqrlError, match="action=3"):
        env.step(3)
    with pytest.raises(SeqrlError, match="no option"):
        env.reset(options={"goal": 1})


# --- popgym ---------------------------------------------------------------------------------------

POPGYM = [
    ("popgym-RepeatPreviousEasy-v0", 4, 51),  # Discrete
    ("popgym-CountRecallEasy-v0", 4, 51),  # MultiDiscrete
    ("popgym-AutoencodeEasy-v0", 6, 103),  # Tuple of Discrete
    ("popgym-PositionOnlyPendulumEasy-v0", 2, 200),  # Box, continuous actions
    ("popgym-BattleshipEasy-v0", 2, 64),  # MultiDiscrete actions
]


@needs("popgym")
@pytest.mark.parametrize(("env_id", "width", "length"), POPGYM)
def test_popgym_works_by_id_in_generated_data_and_in_the_rollout_engine(
    env_id: str, width: int, length: int
) -> None:
    generated = load_dataset(f"random:{env_id}?episodes=2", options=FRESH)
    one, three = (collect(env_id, "random", 3, num_envs=n, vector="sync") for n in (1, 3))
    assert one.fingerprint == three.fingerprint
    for data in (generated, one):
        assert data.observations.shape == (data.num_steps, width)
        assert data.task.max_episode_steps == length
        assert data.lengths.tolist() == [length] * len(data)
        assert data.task.env_id == env_id
        if "Pendulum" not in env_id:
            groups = {4: (4,), 6: (2, 4), 2: (2,)}[width]
            groups = (2, 2) if "CountRecall" in env_id else groups
            parts = np.split(data.observations, np.cumsum(groups)[:-1], axis=1)
            assert all((part.sum(axis=1) == 1).all() for part in parts)


@needs("popgym")
def test_popgym_without_a_length_of_its_own_asks_for_one() -> None:
    env_id = "popgym-HigherLowerEasy-v0"
    with pytest.raises(SeqrlError, match="no step limit") as error:
        collect(env_id, "random", 1)
    assert "--max-steps" in (error.value.hint or "")
    assert collect(env_id, "random", 1, max_steps=100).lengths.tolist() == [51]
    with pytest.raises(SeqrlError, match="no environment") as error:
        make_env("popgym-RepeatPrevious-v0")
    assert "popgym-RepeatPreviousEasy-v0" in (error.value.hint or "")


@needs("popgym")
def test_data_of_a_package_that_is_imported_on_demand_are_cached(tmp_path: Path) -> None:
    code = (
        "from seqrl.datasets import load_dataset\n"
        "data = load_dataset('random:popgym-RepeatFirstEasy-v0?episodes=2')\n"
        "print(data.fingerprint)\n"
    )
    seen = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "SEQRL_HOME": str(tmp_path)},
        )
        assert "no copy is kept" not in done.stderr
        (copy,) = (tmp_path / "cache").iterdir()
        seen.append((done.stdout, copy.name, (copy / "meta.json").stat().st_mtime_ns))
    assert seen[0] == seen[1]
