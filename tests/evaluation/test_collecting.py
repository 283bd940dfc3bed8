"""Recording data: complete, replayable from its seeds, and written without loss."""

from __future__ import annotations

import sys
import types
import zipfile

import gymnasium
import numpy as np
import pytest
from eval_toys import Gru, Probe, task_of

from seqrl.collect import collect, write
from seqrl.draws import derive_seed
from seqrl.errors import SeqrlError


def columns(data):
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    names += ("final_observations", "episode_starts", "episode_seeds")
    return {n: np.asarray(getattr(data, n)) for n in names}


def equal(a, b):
    return all((columns(a)[k] == columns(b)[k]).all() for k in columns(a))


def test_recorded_data_do_not_depend_on_the_number_of_environments():
    agent = Gru(task_of("toy/Walk-v0"))
    agent.train()
    one, many = (collect("toy/Walk-v0", agent, 12, num_envs=n, target=2.0) for n in (1, 5))
    assert equal(one, many)
    assert agent.training
    assert one.observations.dtype == np.float32
    assert len(one) == 12
    assert (one.terminations | one.truncations).sum() == 12


def test_an_episode_can_be_replayed_from_its_seed_and_actions():
    data = collect("toy/Walk-v0", "random", 6, seed=4, env_kwargs={"actions": 3})
    env = gymnasium.make("toy/Walk-v0", actions=3)
    for i in range(6):
        episode = data[i]
        assert episode.seed == derive_seed(4, 3, i)
        obs, _ = env.reset(seed=episode.seed)
        for t, action in enumerate(episode.actions):
            assert (episode.observations[t] == obs.astype(np.float32)).all()
            obs, reward, terminated, truncated, _ = env.step(int(action) + 2)
            assert np.float32(reward) == episode.rewards[t]
        assert (episode.observations[-1] == obs.astype(np.float32)).all()
        assert (episode.terminated, episode.truncated) == (terminated, truncated)


def test_the_data_know_what_they_are():
    data = collect("seqrl/TMaze-v0", "oracle", 4, env_kwargs={"limit": 9}, name="mine")
    assert data.task.name == "mine"
    assert data.task.env_id == "seqrl/TMaze-v0"
    assert data.task.env_kwargs == {"limit": 9}
    assert data.task.max_episode_steps == 9
    assert data.task.reference_scores[1] == 1.0
    assert data.notes["recorded_with"] == "oracle"
    assert (data.returns == 1).all()


def test_random_actions_cover_the_space():
    data = collect("toy/Walk-v0", "random", 10)
    assert data.actions.min() >= -0.5
    assert data.actions.max() <= 0.5
    assert data.actions.std(axis=0) == pytest.approx([0.29] * 3, abs=0.05)


def test_what_was_recorded_is_written_and_read_back(tmp_path):
    from seqrl.datasets.catalog import load_dataset

    data = collect("toy/Walk-v0", "random", 5)
    for destination in (f"npz:{tmp_path / 'a.npz'}", f"cache:{tmp_path / 'b'}"):
        write(data, destination)
        back = load_dataset(destination)
        assert equal(data, back)
        assert back.task.env_id == "toy/Walk-v0"


def test_impossible_recordings_are_refused(tmp_path):
    with pytest.raises(SeqrlError, match="no policy 'expert'") as e:
        collect("toy/Walk-v0", "expert", 1)
    assert "random, oracle, emp" in e.value.hint
    with pytest.raises(SeqrlError, match="asked for 0 episodes"):
        collect("toy/Walk-v0", "random", 0)
    with pytest.raises(SeqrlError, match="has no oracle"):
        collect("toy/Counting-v0", "oracle", 1, max_steps=9)
    with pytest.raises(SeqrlError, match="no step limit"):
        collect("toy/Counting-v0", "random", 1)
    with pytest.raises(SeqrlError, match="policy acts on"):
        collect("toy/Walk-v0", Probe(task_of("toy/Counting-v0")), 1)


def sb3_file(path, policy_module="stable_baselines3.sac.policies"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", f'{{"policy_class": {{"__module__": "{policy_module}"}}}}')
    return path


def test_files_that_run_code_are_loaded_only_when_trusted(tmp_path, monkeypatch):
    file = sb3_file(tmp_path / "a.zip")
    with pytest.raises(SeqrlError, match="loading it runs the code pickled in it") as e:
        collect("toy/Walk-v0", f"sb3:{file}", 1)
    assert "--trust" in e.value.hint
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)  # as if not installed
    with pytest.raises(SeqrlError, match="needs stable_baselines3") as e:
        collect("toy/Walk-v0", f"sb3:{file}", 1, trust=True)
    assert e.value.hint == 'pip install "seqrl[collect]"'
    with pytest.raises(SeqrlError, match="does not exist"):
        collect("toy/Walk-v0", "sb3:nowhere.zip", 1)
    broken = tmp_path / "b.zip"
    broken.write_bytes(b"no archive")
    with pytest.raises(SeqrlError, match="is no Stable-Baselines3 file"):
        collect("toy/Walk-v0", f"sb3:{broken}", 1, trust=True)


def test_a_trusted_agent_records_with_its_most_likely_actions(tmp_path, monkeypatch):
    class Model:
        observation_space = gymnasium.spaces.Box(-1, 1, (5,))

        @classmethod
        def load(cls, path, device):
            return cls()

        def predict(self, observation, deterministic):
            assert deterministic
            return np.clip(observation[:, :3], -0.25, 0.25), None

    fake = types.ModuleType("stable_baselines3")
    fake.SAC = Model
    monkeypatch.setitem(sys.modules, "stable_baselines3", fake)
    file = sb3_file(tmp_path / "a.zip")
    data = collect("toy/Walk-v0", f"sb3:{file}", 3, trust=True)
    assert (data.actions == np.clip(data.observations[:, :3], -0.25, 0.25)).all()
    assert data.notes["recorded_with"] == "sb3:a.zip"
    with pytest.raises(SeqrlError, match=r"reads observations \(5,\), env gives Box\(1,\)"):
        collect("toy/Counting-v0", f"sb3:{file}", 1, trust=True, max_steps=5)
    odd = sb3_file(tmp_path / "c.zip", "elsewhere.policies")
    with pytest.raises(SeqrlError, match="not supported here"):
        collect("toy/Walk-v0", f"sb3:{odd}", 1, trust=True)
