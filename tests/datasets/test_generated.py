"""Data made on the spot: seeded, from the environment's own generator or step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from seqrl.datasets import LoadOptions, load_dataset
from seqrl.errors import SeqrlError

FRESH = LoadOptions(cache=False)


class Counter(gymnasium.Env[np.ndarray, int]):
    """Counts up; the expert always says 1. Ends itself after ``n`` steps."""

    def __init__(self, n: int = 3, endless: bool = False):
        self.n, self.endless = n, endless
        self.observation_space = gymnasium.spaces.Box(0, 99999, (1,), np.float64)
        self.action_space = gymnasium.spaces.Discrete(2, start=1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.array([0.0]), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        over = self.t == self.n and not self.endless
        return np.array([float(self.t)]), float(action), over, False, {}

    def oracle_action(self) -> int:
        return 1


@pytest.fixture
def counter() -> Any:
    gymnasium.register("test/Counter-v0", Counter)
    yield "test/Counter-v0"
    del gymnasium.registry["test/Counter-v0"]


def test_a_scripted_expert_is_asked_at_every_step(counter: str) -> None:
    data = load_dataset(f"oracle:{counter}?n=4&episodes=3")
    assert data.lengths.tolist() == [4, 4, 4]
    assert not data.actions.any()  # choice 1 of a space that starts at 1
    assert data.observations[:4, 0].tolist() == [0, 1, 2, 3]
    assert data.final_observations[:, 0].tolist() == [4, 4, 4]
    assert data.rewards.tolist() == [1.0] * 12
    assert data.task.env_kwargs == {"n": 4}


def test_an_endless_environment_is_cut(counter: str) -> None:
    data = load_dataset(f"random:{counter}?endless=true&episodes=1")
    assert data.lengths.tolist() == [10_000]
    assert bool(data.truncations[-1])


def test_random_play_is_seeded_and_longer_sets_begin_with_shorter_ones() -> None:
    uri = "random:CartPole-v1?episodes={}&seed={}"
    short, again, long, other = (
        load_dataset(uri.format(*a), options=FRESH) for a in ((3, 0), (3, 0), (5, 0), (3, 1))
    )
    assert short.fingerprint == again.fingerprint
    assert short.fingerprint != other.fingerprint
    assert long.first(3).compact().fingerprint == short.fingerprint
    assert short.episode_seeds is not None
    assert len(set(short.episode_seeds.tolist())) == 3
    assert short.task.max_episode_steps == 500


def test_replaying_seed_and_actions_gives_the_stored_observations() -> None:
    data = load_dataset("random:CartPole-v1?episodes=2")
    env = gymnasium.make("CartPole-v1")
    for i in range(2):
        episode = data[i]
        obs, _ = env.reset(seed=episode.seed)
        seen = [obs] + [env.step(int(a))[0] for a in episode.actions]
        np.testing.assert_array_equal(np.stack(seen), episode.observations)


def test_continuous_random_actions_fill_their_box() -> None:
    data = load_dataset("random:Pendulum-v1?episodes=1&g=9.0")
    assert data.actions.min() < -1.8
    assert data.actions.max() > 1.8
    assert data.task.env_kwargs == {"g": 9.0}


def test_an_environments_own_generator_and_data_only_arguments() -> None:
    data = load_dataset("oracle:seqrl/TMaze-v0?limit=6&corridors=longest&segments=2&episodes=10")
    assert data.lengths.tolist() == [5] * 10 + [11] * 10
    assert data.task.env_kwargs == {"limit": 12}
    assert data.task.max_episode_steps == 12
    assert data.task.reference_scores is not None
    assert data.task.reference_scores[1] == 1.0
    assert data.task.reference_source == "environment"


def test_random_play_honours_balanced_episodes() -> None:
    data = load_dataset("random:seqrl/TMaze-v0?limit=5&episodes=6")
    cues = data.observations[data.starts, 1]
    assert cues.tolist() == [1, -1, 1, -1, 1, -1]


@pytest.mark.parametrize(
    ("uri", "message", "hint"),
    [
        ("oracle:CartPole-v1", "has no scripted expert", "random:CartPole-v1"),
        ("oracle:seqrl/TMazee-v0", "no environment 'seqrl/TMazee-v0'", "seqrl/TMaze-v0"),
        ("random:CartPole-v1?gravity=2", "takes no argument 'gravity'", "sutton_barto_reward"),
        ("oracle:seqrl/TMaze-v0?limitt=4", "'limitt'", "limit"),
        ("oracle:seqrl/TMaze-v0?limit=2", "limit", "3"),
        ("random:no_such_module:Foo-v0", "module 'no_such_module' is not installed", "install"),
    ],
)
def test_mistakes_are_one_line(uri: str, message: str, hint: str) -> None:
    with pytest.raises(SeqrlError) as error:
        load_dataset(uri)
    assert message in error.value.message
    assert hint in f"{error.value.message} {error.value.hint}"


@pytest.mark.parametrize("query", ["episodes=0", "episodes=1.5", "episodes=x", "seed=-1"])
def test_counts_are_checked(query: str) -> None:
    with pytest.raises(SeqrlError, match=query.split("=")[0]):
        load_dataset(f"random:CartPole-v1?{query}")


def test_keys_cannot_be_selected_from_generated_data(home: Path) -> None:
    with pytest.raises(SeqrlError, match="--obs-keys"):
        load_dataset("tmaze-smoke", options=LoadOptions(obs_keys=("x",)))
