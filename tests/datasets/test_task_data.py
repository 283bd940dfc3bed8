"""Data of many tasks: whose steps are whose, what is best, and what the file formats keep of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seqrl.datasets.catalog import LoadOptions, load_dataset
from seqrl.datasets.context_windows import history_offsets
from seqrl.datasets.trajectories import Trajectories
from seqrl.envs.darkroom import DarkRoomEnv, darkroom_tasks
from seqrl.errors import SeqrlError

FRESH = LoadOptions(cache=False)


def load(uri: str) -> Trajectories:
    return load_dataset(uri, options=FRESH)


def numbers(data: Trajectories) -> np.ndarray:
    """Task of every step."""
    assert data.episode_task is not None
    return np.repeat(data.episode_task, data.lengths)


def test_bandit_contexts_are_of_their_task_and_name_its_best_arm() -> None:
    data = load("incontext:seqrl/Bandit-v0?tasks=300&horizon=200&sigma=0.1&n_arms=4")
    assert len(data) == 300
    assert set(data.lengths) == {200}
    best = data.extras["optimal_action"].reshape(300, 200)
    assert (best == best[:, :1]).all()
    actions, rewards = data.actions.reshape(300, 200), data.rewards.reshape(300, 200)
    # The empirical best of well-tried arms is the label nearly always.
    means = np.stack([
        [r[a == k].mean() if (a == k).sum() > 10 else -1 for k in range(4)]
        for a, r in zip(actions, rewards, strict=True)
    ])  # fmt: skip
    tried = (means > -1).all(1)
    assert tried.sum() > 30
    assert (means.argmax(1) == best[:, 0])[tried].mean() > 0.9
    # sigma is the standard deviation of one arm's rewards, not their variance.
    spread = [r[a == a[0]].std() for a, r in zip(actions, rewards, strict=True)]
    assert abs(np.median(spread) - 0.1) < 0.01
    # Recorded behaviour: some tasks see one arm only, some all alike.
    shares = np.stack([np.bincount(a, minlength=4) / 200 for a in actions]).max(1)
    assert shares.min() < 0.4
    assert shares.max() == 1.0


def test_tasks_of_data_are_not_those_of_evaluation_and_depend_on_the_seed() -> None:
    from seqrl.envs.bandit import BanditEnv

    a, b, c = (load(f"incontext:seqrl/Bandit-v0?tasks=20&horizon=5&seed={s}") for s in (0, 0, 1))
    assert a.fingerprint == b.fingerprint != c.fingerprint
    env = BanditEnv()
    shown = [max(env.episode_options(i)["means"]) for i in range(20)]
    free = load("incontext:seqrl/Bandit-v0?tasks=20&horizon=400&sigma=0&behaviour=uniform")
    known = free.rewards.reshape(20, 400).max(1)
    assert not np.isclose(np.sort(known)[:, None], np.array(shown)[None]).any()


def test_the_order_of_adaptive_behaviour_is_marked() -> None:
    def matters(uri: str) -> bool:
        return bool(load(uri).notes["order_matters"])

    assert not matters("incontext:seqrl/Bandit-v0?tasks=3&horizon=5")
    assert matters("incontext:seqrl/Bandit-v0?tasks=3&horizon=5&behaviour=ucb")
    assert matters("incontext:seqrl/LinearBandit-v0?tasks=3&horizon=5")
    assert matters("histories:seqrl/LinearBandit-v0?tasks=3&horizon=5")
    assert not matters("incontext:seqrl/DarkRoom-v0?tasks=3&histories=2")
    assert matters("histories:seqrl/DarkRoom-v0?tasks=3&histories=2&episodes=2")


@pytest.mark.parametrize("behaviour", ["mixed", "uniform"])
def test_the_noise_does_not_choose_who_plays(behaviour: str) -> None:
    """One release takes its mixture of players from the value of the noise."""
    uri = f"incontext:seqrl/Bandit-v0?tasks=30&horizon=20&behaviour={behaviour}"
    one, *others = (load(f"{uri}&sigma={sigma}") for sigma in (0.3, 0.05, 0.01))
    for other in others:
        assert np.array_equal(one.actions, other.actions)
        assert one.notes == other.notes


@pytest.mark.parametrize("extra", ["", "&preset=permuted", "&size=7&start=random"])
def test_transitions_of_rooms_are_those_of_the_environment(extra: str) -> None:
    data = load(f"incontext:seqrl/DarkRoom-v0?split=train&histories=2&steps=30{extra}")
    assert data.task.env_kwargs["split"] == "test", "evaluated on goals that were not seen"
    tasks = darkroom_tasks(**{**data.task.env_kwargs, "split": "train"})
    assert len(data) == len(tasks) * 2 * 30
    assert set(data.lengths) == {1}
    assert len(history_offsets(data)) - 1 == 2 * len(tasks)
    rng = np.random.default_rng(0)
    env = DarkRoomEnv(**{**data.task.env_kwargs, "split": "all", "start": "random"})
    for i in rng.integers(len(data), size=40):
        assert data.episode_task is not None
        task = tasks[int(data.episode_task[i])]
        env.reset(options=task)
        env._x, env._y = data.observations[i].astype(int).tolist()
        assert env.oracle_action() == data.extras["optimal_action"][i]
        after, reward, *_ = env.step(data.actions[i])
        assert after.tolist() == data.final_observations[i].tolist()
        assert reward == data.rewards[i]


def test_expert_way_in_rooms_is_the_best_there_is() -> None:
    data = load("incontext:seqrl/DarkRoom-v0?split=test&histories=1&rollin=expert")
    assert data.returns.mean() == pytest.approx(90.9)
    once = load("incontext:seqrl/DarkRoom-v0?preset=hard&histories=1&rollin=expert&tasks=20")
    assert once.returns.max() <= 1


@pytest.mark.parametrize("scheme", ["made at once", "stepped"])
def test_histories_get_better_from_random_to_best(scheme: str) -> None:
    if scheme == "stepped":
        uri = "histories:seqrl/DarkKeyDoor-v0?size=4&horizon=20&start=center&tasks=10&histories=2"
        episodes, best = 20, 2.0
    else:
        uri = "histories:seqrl/DarkRoom-v0?size=5&horizon=10&start=center&histories=4"
        episodes, best = 30, None
    data = load(f"{uri}&episodes={episodes}")
    assert data.episode_order is not None
    assert data.episode_order.reshape(-1, episodes).tolist()[0] == list(range(episodes))
    returns = data.returns.reshape(-1, episodes)
    early, late = returns[:, :3].mean(), returns[:, -2:].mean()
    assert early < 0.5 * late
    if best is not None:
        assert late == best
    done = data.extras["optimal_action"] == data.actions
    place = np.repeat(data.episode_order, data.lengths)
    assert done[place >= np.ceil(0.9 * episodes)].all(), "the last tenth is all best moves"
    half = done[(place > 0.35 * episodes) & (place < 0.55 * episodes)].mean()
    assert 0.45 < half < 0.75
    never = load(f"{uri}&episodes=6&eps_final=1")
    agreed = (never.extras["optimal_action"] == never.actions).mean()
    assert agreed < 0.3, "eps_final is the last share of random moves, not of good ones"


def test_every_nth_episode_of_each_history() -> None:
    uri = "histories:seqrl/DarkRoom-v0?size=4&horizon=6&tasks=3&histories=2&episodes=10"
    data = load_dataset(uri, options=LoadOptions(cache=False, every=4))
    assert data.episode_order is not None
    assert data.episode_order[data.episode_ids].reshape(6, 3).tolist() == [[0, 4, 8]] * 6


def test_a_split_is_by_task() -> None:
    data = load("histories:seqrl/DarkRoom-v0?size=4&horizon=6&histories=3&episodes=5")
    train, held = data.split(0.2, seed=1)
    assert held is not None
    assert data.episode_task is not None
    a, b = (set(data.episode_task[d.episode_ids]) for d in (train, held))
    assert not a & b
    assert len(a | b) == 16
    assert len(b) == 3
    assert len(train) + len(held) == len(data)


def test_other_formats_keep_what_belongs_to_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    data = load("histories:seqrl/DarkRoom-v0?size=4&horizon=6&tasks=3&histories=2&episodes=4")
    data.to_npz(tmp_path / "a.npz")
    data.to_minari("tests/rooms-v0")
    for uri in (f"npz:{tmp_path / 'a.npz'}", "minari:tests/rooms-v0"):
        back = load(uri)
        assert back.episode_task is not None
        assert np.array_equal(back.episode_task, data.episode_task)  # type: ignore[arg-type]
        assert np.array_equal(back.episode_order, data.episode_order)  # type: ignore[arg-type]
        assert np.array_equal(back.extras["optimal_action"], data.extras["optimal_action"])
        assert back.notes.get("order_matters") is True, uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("incontext:seqrl/TMaze-v0", "makes no data of tasks"),
        ("incontext:CartPole-v1", "makes no data of tasks"),
        ("histories:CartPole-v1", "has no tasks with a scripted expert"),
        ("incontext:seqrl/Bandit-v0?tasks=0", "tasks"),
        ("incontext:seqrl/Bandit-v0?behaviour=clever", "behaviour 'clever' is not known"),
        ("incontext:seqrl/Bandit-v0?tasks=3&colour=red", "colour"),
        ("incontext:seqrl/DarkRoom-v0?tasks=101", "tasks"),
        ("incontext:seqrl/DarkRoom-v0?rollin=backwards", "rollin"),
        ("histories:seqrl/DarkRoom-v0?eps_final=2", "eps_final"),
        ("histories:seqrl/DarkRoom-v0?episodes=none", "episodes"),
        ("incontext:seqrl/Nowhere-v0", "Nowhere"),
    ],
)
def test_faults_name_what_is_wrong(uri: str, message: str) -> None:
    with pytest.raises(SeqrlError, match=message):
        load(uri)
