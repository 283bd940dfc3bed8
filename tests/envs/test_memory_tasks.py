"""Promises of the tasks that ask for remembered actions, bits and cards; parity with popgym."""

from __future__ import annotations

import importlib.util
import re
import warnings
from itertools import pairwise, product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from seqrl import spaces as sp
from seqrl.datasets import LoadOptions, load_dataset
from seqrl.envs.action_retrieval import ActionRetrievalEnv
from seqrl.envs.card_tasks import AutoencodeEnv, CountRecallEnv, RepeatFirstEnv, RepeatPreviousEnv
from seqrl.envs.memory_length import MemoryLengthEnv
from seqrl.errors import SeqrlError

CARDS: dict[str, Any] = {
    "RepeatPrevious": RepeatPreviousEnv,
    "RepeatFirst": RepeatFirstEnv,
    "Autoencode": AutoencodeEnv,
    "CountRecall": CountRecallEnv,
}
CLASSES: dict[str, Any] = {
    **CARDS,
    "MemoryLength": MemoryLengthEnv,
    "ActionRetrieval": ActionRetrievalEnv,
}
LEVELS = ("easy", "medium", "hard")
TASKS: list[tuple[str, dict[str, Any]]] = [
    *(
        (name, {"level": level})
        for name in CLASSES
        if name != "ActionRetrieval"
        for level in LEVELS
    ),
    ("ActionRetrieval", {}),
    ("ActionRetrieval", {"limit": 2, "noise": False}),
    ("RepeatPrevious", {"k": 1}),
    ("RepeatPrevious", {"level": "medium", "k": 103, "obs": "discrete"}),
    ("RepeatFirst", {"decks": 2, "obs": "discrete"}),
    ("Autoencode", {"obs": "discrete"}),
    ("CountRecall", {"decks": 1, "value": "ranks", "obs": "discrete"}),
    ("MemoryLength", {"length": 2, "bits": 4}),
]
LENGTHS = {  # of the three levels
    "RepeatPrevious": (51, 103, 155),
    "RepeatFirst": (51, 415, 831),
    "Autoencode": (103, 207, 311),
    "CountRecall": (51, 103, 207),
    "MemoryLength": (10, 30, 100),
}
tasks = pytest.mark.parametrize(("name", "kwargs"), TASKS, ids=str)


def play(env: Any, actions: Any = None, **reset: Any) -> dict[str, Any]:
    """Step through actions, the oracle's by default."""
    observation, info = env.reset(**reset)
    assert info == {}
    out: dict[str, Any] = {"actions": [], "rewards": [], "terminations": [], "truncations": []}
    seen, infos, done = [observation], [], False
    while not done:
        action = env.oracle_action() if actions is None else actions[len(out["actions"])]
        observation, *ended, info = env.step(action)
        seen.append(observation)
        infos.append(info)
        for key, value in zip(out, (action, *ended), strict=True):
            out[key].append(value)
        done = ended[1] or ended[2]
    assert not any(infos[:-1])
    return {**out, "obs": np.stack(seen), "info": info}


# --- what all of them promise ---------------------------------------------------------------------


@tasks
def test_passes_gymnasiums_checker_without_warnings(name: str, kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(f"seqrl/{name}-v0", **kwargs).unwrapped)


@tasks
def test_the_oracle_returns_one_and_random_play_what_is_said(
    name: str, kwargs: dict[str, Any]
) -> None:
    env = CLASSES[name](**kwargs)
    for seed in range(3):
        played = play(env, seed=seed)
        assert sum(played["rewards"]) == pytest.approx(1)
        assert played["info"]["success"] is True
        assert played["terminations"] == [False] * (env.max_episode_steps - 1) + [True]
        assert not any(played["truncations"])
    reference = env.reference_scores(**kwargs)
    assert reference["oracle"] == 1
    env.action_space.seed(0)
    returns = [
        sum(play(env, [env.action_space.sample() for _ in range(env.max_episode_steps)])["rewards"])
        for _ in range(300 if env.max_episode_steps < 200 else 60)
    ]
    spread = max(float(np.std(returns)), 1e-9) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - reference["random"]) < 4 * spread
    assert all(-1 - 1e-9 <= value <= 1 + 1e-9 for value in returns)


@tasks
def test_generated_episodes_are_those_of_the_environment(name: str, kwargs: dict[str, Any]) -> None:
    """Replaying generated actions with the same draws, which are read off the observations."""
    cls = CLASSES[name]
    columns = cls.oracle_columns(4, 3, **kwargs)
    env = cls(**kwargs)
    for i, (a, b) in enumerate(pairwise(columns["episode_starts"])):
        final = columns["final_observations"][i, None]
        shown = np.concatenate([columns["observations"][a:b], final])
        played = play(env, columns["actions"][a:b].tolist(), options=draws_of(env, shown))
        seen = sp.flatten_observations(env.observation_space, played["obs"])
        if name == "ActionRetrieval":  # whose noise differs
            seen, shown = seen[:, :2], shown[:, :2]
        np.testing.assert_array_equal(seen, shown)
        for key in ("rewards", "terminations", "truncations"):
            expected = np.array(played[key], columns[key].dtype)
            np.testing.assert_array_equal(columns[key][a:b], expected, err_msg=key)
        assert played["info"]["success"] is True


def draws_of(env: Any, shown: np.ndarray) -> dict[str, Any]:
    """The reset options that give an episode with these observations."""
    if isinstance(env, ActionRetrievalEnv):
        return {}
    if isinstance(env, MemoryLengthEnv):
        return {"bits": shown[0, 2:], "query": int(shown[-2, 1])}
    cards = env.settings.cards
    sizes = np.cumsum((0, *env.settings.sizes))
    groups = [shown[:cards, a:b].argmax(axis=1) for a, b in pairwise(sizes)]
    if isinstance(env, CountRecallEnv):
        value = env.settings.value
        return {"deck": deck_of(groups[0], value), "queries": deck_of(groups[1], value)}
    return {"deck": deck_of(groups[-1], "suits")}


def deck_of(values: np.ndarray, value: str) -> list[int]:
    """An order of all cards that shows these values."""
    numbers = np.arange(len(values))
    own = numbers // 4 % 13 if value == "ranks" else numbers % {"suits": 4, "colors": 2}[value]
    left = {v: numbers[own == v].tolist() for v in set(own.tolist())}
    return [left[v].pop() for v in values.tolist()]


@tasks
def test_equal_seeds_give_equal_episodes_and_data(name: str, kwargs: dict[str, Any]) -> None:
    one, two = (play(CLASSES[name](**kwargs), seed=5) for _ in range(2))
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])
    files = [CLASSES[name].oracle_columns(6, seed, **kwargs) for seed in (1, 1, 2)]
    for key in files[0]:
        np.testing.assert_array_equal(files[0][key], files[1][key])
    if kwargs.get("noise", True) and kwargs.get("bits", 3) > 1 and "Length" not in name:
        assert files[0]["observations"].tobytes() != files[2]["observations"].tobytes()


@tasks
def test_columns_have_the_promised_shapes_and_types(name: str, kwargs: dict[str, Any]) -> None:
    env, columns = CLASSES[name](**kwargs), CLASSES[name].oracle_columns(3, 0, **kwargs)
    steps, width = 3 * env.max_episode_steps, columns["observations"].shape[1]
    assert sp.observation_spec(env.observation_space).shape == (width,)
    per_step = {"observations": "float32", "actions": "int64", "rewards": "float32"}
    per_step.update(terminations="bool", truncations="bool")
    for key, dtype in per_step.items():
        assert columns[key].dtype == dtype
        assert len(columns[key]) == steps
    assert set(columns) == {*per_step, "final_observations", "episode_starts"}
    assert columns["final_observations"].shape == (3, width)
    assert columns["episode_starts"].dtype == "int64"
    assert columns["episode_starts"].tolist() == [0, steps // 3, 2 * steps // 3, steps]


@tasks
def test_renderings_are_bounded_and_change(name: str, kwargs: dict[str, Any]) -> None:
    text, picture = (CLASSES[name](render_mode=m, **kwargs) for m in ("ansi", "rgb_array"))
    for env in (text, picture):
        with pytest.raises(SeqrlError, match="reset"):
            env.render()
        env.reset(seed=0)
    frames = [(text.render(), picture.render())]
    for step in range(text.max_episode_steps):
        for env in (text, picture):
            env.step(env.oracle_action())
        if step < 70 or step > text.max_episode_steps - 3:
            frames.append((text.render(), picture.render()))
    assert len({frame for frame, _ in frames}) == len(frames)
    assert max(len(line) for frame, _ in frames for line in frame.splitlines()) <= 64
    assert {(image.shape, image.dtype) for _, image in frames} == {((92, 436, 3), np.dtype("u1"))}
    assert (frames[0][1] != frames[-1][1]).any()
    assert CLASSES[name](**kwargs).render() is None


@pytest.mark.parametrize("name", CLASSES)
def test_steps_outside_an_episode_and_unknown_actions_are_refused(name: str) -> None:
    env = CLASSES[name]()
    with pytest.raises(SeqrlError, match="reset"):
        env.step(0)
    env.reset(seed=0)
    for action in (-1, env.action_space.n, 0.5, None, "left"):
        with pytest.raises(SeqrlError, match="actions are 0 to"):
            env.step(action)
    play(env, seed=0)
    with pytest.raises(SeqrlError, match="reset"):
        env.step(0)


@pytest.mark.parametrize("name", LENGTHS)
def test_levels_have_the_published_lengths_and_load_by_name(name: str) -> None:
    short = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
    for level, length in zip(LEVELS, LENGTHS[name], strict=True):
        assert CLASSES[name](level=level).max_episode_steps == length
        data = load_dataset(f"{short}-{level}", options=LoadOptions(cache=False))
        assert len(data) == 1000
        assert set(np.diff(data.episode_starts)) == {length}
        assert data.task.max_episode_steps == length
        scores = CLASSES[name].reference_scores(level=level)
        assert data.task.reference_scores == (scores["random"], 1.0)


# --- cards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kwargs"), [t for t in TASKS if t[0] in CARDS], ids=str)
def test_wrong_answers_cost_as_much_as_right_ones_earn(name: str, kwargs: dict[str, Any]) -> None:
    env = CARDS[name](**kwargs)
    right = play(env, seed=0)
    wrong = [(action + 1) % env.action_space.n for action in right["actions"]]
    played = play(env, wrong, seed=0)
    np.testing.assert_allclose(played["rewards"], -np.array(right["rewards"]))
    assert played["info"] == {"success": False, "accuracy": 0.0}
    counted = np.flatnonzero(right["rewards"])
    np.testing.assert_allclose(np.array(right["rewards"])[counted], 1 / len(counted))
    half = list(right["actions"])
    half[counted[-1]] = wrong[counted[-1]]
    last = play(env, half, seed=0)["info"]
    assert last == {"success": False, "accuracy": pytest.approx(1 - 1 / len(counted))}


def test_uncounted_actions_are_free() -> None:
    for env, free in ((RepeatPreviousEnv(), 3), (AutoencodeEnv(), 51)):
        right = play(env, seed=0)
        assert right["rewards"][:free] == [0.0] * free
        assert all(right["rewards"][free:])
        changed = [3 - action for action in right["actions"][:free]] + right["actions"][free:]
        assert play(env, changed, seed=0)["info"]["success"] is True


def test_answers_follow_from_the_cards_in_order() -> None:
    deck = np.random.default_rng(0).permutation(52)
    suits, ranks = deck % 4, deck // 4 % 13
    options = {"deck": deck.tolist()}
    for k in (1, 4, 51):
        played = play(RepeatPreviousEnv(k=k, obs="discrete"), options=options)
        np.testing.assert_array_equal(played["obs"], suits)
        np.testing.assert_array_equal(played["actions"][k - 1 :], suits[: 52 - k])
    played = play(RepeatFirstEnv(obs="discrete"), options=options)
    assert played["actions"] == [suits[0]] * 51
    played = play(AutoencodeEnv(obs="discrete"), options=options)
    assert played["actions"][51:] == suits[::-1].tolist()
    assert played["obs"][:, 0].tolist() == [1] * 51 + [0] * 53
    np.testing.assert_array_equal(played["obs"][:52, 1], suits)
    assert not played["obs"][52:].any()
    env = CountRecallEnv(decks=1, value="ranks", obs="discrete")
    played = play(env, options={**options, "queries": deck[::-1]})
    np.testing.assert_array_equal(played["obs"], np.column_stack([ranks, ranks[::-1]]))
    for t, action in enumerate(played["actions"]):
        assert action == (ranks[: t + 1] == ranks[51 - t]).sum()


def test_vectors_are_the_discrete_choices_as_one_hot_groups() -> None:
    for cls in CARDS.values():
        vector, discrete = (play(cls(obs=obs), seed=1)["obs"] for obs in ("vector", "discrete"))
        space = cls(obs="discrete").observation_space
        np.testing.assert_array_equal(vector, sp.flatten_observations(space, discrete))
        assert vector.dtype == np.float32
    data = load_dataset(
        "oracle:seqrl/CountRecall-v0?obs=discrete&episodes=2", options=LoadOptions(cache=False)
    )
    assert data.observations.shape == (102, 4)


def test_every_card_is_dealt_once_and_equally_often_first() -> None:
    columns = RepeatFirstEnv.oracle_columns(4000, 0)
    suits = columns["observations"].reshape(4000, 51, 4)
    dealt = suits.sum(axis=1) + columns["final_observations"]
    np.testing.assert_array_equal(dealt, 13)
    np.testing.assert_allclose(suits[:, 0].mean(axis=0), 1 / 4, atol=0.03)


@pytest.mark.skipif(
    importlib.util.find_spec("popgym") is None, reason="needs popgym: pip install seqrl[popgym]"
)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CARDS)
def test_equals_popgym_when_the_same_cards_are_dealt(name: str, level: str) -> None:
    original = getattr(importlib.import_module("popgym.envs"), f"{name}{level.title()}")
    ours, theirs = CARDS[name](level=level, obs="discrete"), original()
    assert ours.action_space == theirs.action_space
    space = theirs.observation_space
    if isinstance(space, spaces.Tuple):
        space = spaces.MultiDiscrete([part.n for part in space.spaces])
    assert ours.observation_space == space
    rng = np.random.default_rng(0)
    for seed in range(3):
        expected, _ = theirs.reset(seed=seed)
        if name == "CountRecall":
            # Dealt from the end.
            options = {"deck": theirs.value_deck.idx[::-1], "queries": theirs.query_deck.idx[::-1]}
        else:
            options = {"deck": theirs.deck.idx[::-1]}
        seen, _ = ours.reset(options=options)
        done = steps = 0
        while not done:
            np.testing.assert_array_equal(seen, expected)
            guess = rng.random() < (0.0, 0.2, 1.0)[seed]
            action = int(rng.integers(ours.action_space.n)) if guess else ours.oracle_action()
            seen, *ended, _ = ours.step(action)
            expected, *wanted, _ = theirs.step(action)
            assert ended == wanted  # reward, terminated, truncated
            done, steps = ended[1], steps + 1
        np.testing.assert_array_equal(seen, expected)
        assert steps == ours.max_episode_steps == theirs.max_episode_length


# --- memory length --------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_bits_are_shown_once_the_time_always_and_the_query_at_the_end(level: str) -> None:
    env = MemoryLengthEnv(level=level)
    length, bits = env.settings.length, env.settings.bits
    queries = set()
    for seed in range(30):
        obs = play(env, seed=seed)["obs"]
        assert obs.shape == (length + 1, 2 + bits)
        np.testing.assert_allclose(obs[:, 0], 1 - np.arange(length + 1) / length, atol=1e-6)
        assert (np.abs(obs[0, 2:]) == 1).all()
        assert not obs[1:, 2:].any()
        assert not np.delete(obs[:, 1], length - 1).any()
        queries.add(int(obs[-2, 1]))
    assert queries == set(range(bits))


def test_only_the_last_answer_counts_for_one_or_minus_one() -> None:
    env = MemoryLengthEnv(length=5, bits=3)
    options = {"bits": [-1, 1, -1], "query": 1}
    assert play(env, [0, 0, 1, 0, 1], options=options)["rewards"] == [0, 0, 0, 0, 1]
    wrong = play(env, [1, 1, 1, 1, 0], options=options)
    assert wrong["rewards"] == [0, 0, 0, 0, -1]
    assert wrong["info"] == {"success": False, "accuracy": 0.0}


def test_evaluation_and_data_ask_for_both_answers_equally_often() -> None:
    env = MemoryLengthEnv(level="hard")
    options = map(env.episode_options, range(20))
    returns = [sum(play(env, [1] * 100, options=o)["rewards"]) for o in options]
    assert returns == [1, -1] * 10
    actions = MemoryLengthEnv.oracle_columns(20, 0)["actions"].reshape(20, 10)
    assert actions[:, -1].tolist() == [1, 0] * 10


# --- action retrieval -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
def test_the_trace_of_the_oracle(first: int) -> None:
    env = ActionRetrievalEnv(limit=6, noise=False)
    played = play(env, options={"first": first})
    assert played["actions"] == [first, 2, 2, 2, 2, first]
    assert played["rewards"] == [0, 0, 0, 0, 0, 1]
    states, flags = [0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 0]
    np.testing.assert_array_equal(played["obs"], np.column_stack([states, flags, [0] * 7]))
    assert played["info"] == {"success": True, "chosen": first}


@pytest.mark.parametrize(
    ("actions", "reward", "chosen"),
    [
        ([0, 2, 2, 0], 1, 0),
        ([0, 2, 2, 1], -1, 0),
        ([1, 2, 2, 2], -1, 1),  # to do nothing is not to repeat
        ([2, 2, 1, 1], 1, 1),  # a later choice
        ([0, 1, 1, 0], 1, 0),  # nothing between changes it
        ([2, 2, 2, 0], -1, None),  # nothing to repeat
        ([2, 2, 2, 2], -1, None),
    ],
)
def test_what_the_paper_leaves_open(actions: list[int], reward: float, chosen: Any) -> None:
    played = play(ActionRetrievalEnv(limit=4), actions, seed=0)
    assert played["rewards"] == [0, 0, 0, reward]
    assert played["info"] == {"success": reward == 1, "chosen": chosen}


def test_observations_never_tell_the_chosen_action() -> None:
    zero, one = (play(ActionRetrievalEnv(), seed=1, options={"first": f})["obs"] for f in (0, 1))
    np.testing.assert_array_equal(zero, one)


def test_noise_is_uniform_on_three_values_and_choices_are_balanced() -> None:
    columns = ActionRetrievalEnv.oracle_columns(200, 0)
    for noise in (columns["observations"][:, 2], play(ActionRetrievalEnv(9000))["obs"][:, 2]):
        for value in (-1, 0, 1):
            assert abs((noise == value).mean() - 1 / 3) < 0.02
        assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.04
    actions = columns["actions"].reshape(200, 90)
    assert actions[:, 0].tolist() == [0, 1] * 100
    np.testing.assert_array_equal(actions[:, 0], actions[:, -1])
    assert (actions[:, 1:-1] == 2).all()
    env = ActionRetrievalEnv()
    env.reset(seed=0)
    firsts = [play(env)["actions"][0] for _ in range(200)]
    assert 70 < sum(firsts) < 130


@pytest.mark.parametrize("limit", [2, 3, 5])
def test_random_return_is_the_mean_over_all_action_sequences(limit: int) -> None:
    env = ActionRetrievalEnv(limit=limit)
    returns = [play(env, plan)["rewards"][-1] for plan in product(range(3), repeat=limit)]
    assert env.reference_scores(limit=limit)["random"] == pytest.approx(np.mean(returns))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "value", "allowed"),
    [
        ("RepeatPrevious", {"level": "esy"}, "level='esy'", "did you mean 'easy'"),
        ("RepeatPrevious", {"k": 0}, "k=0", "from 1 to 51"),
        ("RepeatPrevious", {"k": 52}, "k=52", "from 1 to 51"),
        ("RepeatPrevious", {"level": "hard", "decks": 1}, "k=64", "from 1 to 51"),
        ("RepeatFirst", {"decks": 0}, "decks=0", ">= 1"),
        ("Autoencode", {"decks": 1.5}, "decks=1.5", ">= 1"),
        ("Autoencode", {"obs": "onehot"}, "obs='onehot'", "'vector', 'discrete'"),
        ("CountRecall", {"value": "faces"}, "value='faces'", "'ranks'"),
        ("MemoryLength", {"level": "Hard"}, "level='Hard'", "'hard'"),
        ("MemoryLength", {"length": 1}, "length=1", ">= 2"),
        ("MemoryLength", {"bits": 0}, "bits=0", ">= 1"),
        ("ActionRetrieval", {"limit": 1}, "limit=1", ">= 2"),
        ("ActionRetrieval", {"noise": 3}, "noise=3", "true or false"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_with_value_and_allowed_range(
    name: str, kwargs: dict[str, Any], value: str, allowed: str
) -> None:
    cls = CLASSES[name]
    for build in (cls, cls.reference_scores, lambda **k: cls.oracle_columns(2, 0, **k)):
        with pytest.raises(SeqrlError) as caught:
            build(**kwargs)
        assert value in caught.value.message
        assert allowed in str(caught.value.hint)


@pytest.mark.parametrize("name", CLASSES)
def test_bad_render_modes_options_and_data_settings_are_refused(name: str) -> None:
    cls = CLASSES[name]
    with pytest.raises(SeqrlError, match="render_mode='human'"):
        cls(render_mode="human")
    with pytest.raises(SeqrlError, match="no option 'goal'"):
        cls().reset(options={"goal": 1})
    for kwargs in ({"episodes": 0}, {"episodes": 2, "seed": -1}, {"episodes": 2, "levl": "easy"}):
        with pytest.raises(SeqrlError):
            cls.oracle_columns(**kwargs)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("RepeatFirst", {"deck": range(51)}, "each of the cards 0 to 51 once"),
        ("RepeatFirst", {"deck": [0] * 52}, "each of the cards 0 to 51 once"),
        ("RepeatFirst", {"deck": [list(range(52))]}, "each of the cards 0 to 51 once"),
        ("RepeatFirst", {"deck": None}, "each of the cards 0 to 51 once"),
        ("CountRecall", {"queries": "abc"}, "queries must hold"),
        ("MemoryLength", {"bits": [0]}, r"each \+1 or -1"),
        ("MemoryLength", {"bits": [1, 1]}, "bits must be 1 numbers"),
        ("MemoryLength", {"bits": 1}, "bits must be 1 numbers"),
        ("MemoryLength", {"query": 1}, "from 0 to 0"),
        ("MemoryLength", {"answer": 2}, "from 0 to 1"),
        ("MemoryLength", {"answer": 1, "bits": [1]}, "determine it"),
        ("ActionRetrieval", {"first": 2}, "from 0 to 1"),
    ],
    ids=str,
)
def test_bad_draws_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SeqrlError, match=message):
        CLASSES[name]().reset(options=options)
