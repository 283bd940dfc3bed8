"""Spaces flatten by one stated rule, for columns and single values alike."""

import numpy as np
import pytest
from gymnasium import spaces

from seqrl import spaces as sp
from seqrl.errors import SeqrlError
from seqrl.spec import ActionSpec, ObservationSpec, TaskSpec

SPACES = {
    "box": spaces.Box(-1, 1, (2, 3), np.float64),
    "discrete": spaces.Discrete(4, start=2),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"b": spaces.Box(0, 1, (2,)), "a": spaces.Discrete(3)}),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (1,))]),
    "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
}


def column(space: spaces.Space, values: list) -> object:
    if isinstance(space, spaces.Dict):
        return {k: column(s, [v[k] for v in values]) for k, s in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return [column(s, [v[i] for v in values]) for i, s in enumerate(space.spaces)]
    return np.stack([np.asarray(v) for v in values])


@pytest.mark.parametrize("name", SPACES)
def test_a_column_flattens_like_its_values_one_by_one(name: str) -> None:
    space = SPACES[name]
    space.seed(0)
    values = [space.sample() for _ in range(7)]
    flat = sp.flatten_observations(space, column(space, values))
    spec = sp.observation_spec(space)
    assert flat.shape == (7, *spec.shape)
    assert flat.dtype == (np.uint8 if name == "image" else np.float32)
    for row, v in zip(flat, values, strict=True):
        assert np.array_equal(row, sp.flatten_observation(space, v))


def test_dict_entries_follow_sorted_by_name() -> None:
    flat = sp.flatten_observation(SPACES["dict"], {"a": 1, "b": np.array([0.25, 0.5])})
    assert flat.tolist() == [0, 1, 0, 0.25, 0.5]
    assert sp.observation_spec(SPACES["dict"]).keys == ("a", "b")


@pytest.mark.parametrize("name", ["box", "discrete", "multidiscrete", "multibinary"])
def test_actions_go_in_and_out_unchanged(name: str) -> None:
    space = SPACES[name]
    space.seed(1)
    values = [space.sample() for _ in range(9)]
    stored = sp.flatten_actions(space, np.stack([np.asarray(v) for v in values]))
    spec = sp.action_spec(space)
    assert stored.shape == (9, *spec.shape)
    for row, v in zip(stored, values, strict=True):
        back = sp.unflatten_action(space, row)
        assert space.contains(back)
        assert np.allclose(back, v)


def test_continuous_actions_are_executed_inside_their_box() -> None:
    space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 2], np.float32))
    assert sp.execute_actions(space, np.array([[-3.0, 3.0]])).tolist() == [[-1, 2]]


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Dict({"i": SPACES["image"]})])
def test_what_cannot_be_flattened_is_refused_by_name(space: spaces.Space) -> None:
    with pytest.raises(SeqrlError, match=r"Text|image"):
        sp.observation_spec(space)


@pytest.mark.parametrize("name", SPACES)
def test_spaces_survive_json(name: str) -> None:
    import json

    data = json.loads(json.dumps(sp.space_to_json(SPACES[name])))
    assert sp.space_from_json(data) == SPACES[name]


def test_task_specs_survive_json() -> None:
    import json

    spec = TaskSpec(
        "t", ObservationSpec("vector", (3,), ("a",)),
        ActionSpec("continuous", (1,), (float("-inf"),), (1.0,)), "E-v0", {"k": 1}, 9, (0.0, 2.5),
        "somewhere",
    )  # fmt: skip
    assert TaskSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_spaces_are_guessed_from_arrays() -> None:
    obs, act = sp.space_from_arrays(np.zeros((4, 3), np.float32), np.array([0, 2, 1, 0]))
    assert obs.shape == (3,)
    assert act == spaces.Discrete(3)
    _, box = sp.space_from_arrays(np.zeros((2, 3)), np.array([[0.5, -3.0], [2.0, 0.0]]))
    assert box.low.tolist() == [-1, -3]
    assert box.high.tolist() == [2, 1]
