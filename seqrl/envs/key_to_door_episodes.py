"""Key-to-Door many episodes at a time, and what play of a kind achieves on average, exactly.

An episode always takes the same number of steps, and its boards tell apart what could matter in a
step, so all episodes of a set are walked side by side, board by board. Stepping the environment
gives the same episodes (a test asks for it).

Shapes: ``E`` episodes, ``T`` steps of an episode, ``t`` of one board, ``S`` places of a view.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrl.envs import generation
from seqrl.envs import key_to_door_boards as boards
from seqrl.envs.key_to_door_settings import KeyToDoorSettings

__all__ = ["Draws", "draw", "expected_returns", "play"]

Cells = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Draws(NamedTuple):
    """Everything that is left to chance in some episodes."""

    start: Cells
    """First cell, ``[E]``."""
    key: Cells
    """Cell of the key, ``[E]``."""
    apples: Flags
    """Which sites hold an apple at first, ``[E, 22]``."""
    values: NDArray[np.float64]
    """Reward of an apple picked up in each frame of the second board, ``[E, t]``."""
    door_start: Cells
    """First cell of the third board, ``[E]``."""
    door: Cells
    """Cell of the door, ``[E]``."""


def draw(settings: KeyToDoorSettings, episodes: int, seed: int) -> Draws:
    """Draw episodes; a longer set begins with a shorter one."""
    # Generators of their own, each drawn episode by episode.
    first, orders, ends, picks, last = (np.random.default_rng((seed, kind)) for kind in range(5))
    layout = boards.LAYOUTS[settings.layout]
    cells = first.integers([len(boards.START_CELLS), len(boards.KEY_CELLS)], size=(episodes, 2))
    doors = last.integers([len(layout.starts), len(layout.doors)], size=(episodes, 2))
    rank = orders.random((episodes, len(boards.APPLE_SITES))).argsort(axis=1).argsort(axis=1)
    low, high = settings.apple_range
    if settings.fix_apple_reward_in_episode:
        values = np.array([low, high])[ends.integers(2, size=(episodes, 1))]
        values = np.broadcast_to(values, (episodes, settings.phase_lengths[1]))
    else:
        values = picks.uniform(low, high, (episodes, settings.phase_lengths[1]))
    return Draws(
        boards.START_CELLS[cells[:, 0]],
        boards.KEY_CELLS[cells[:, 1]],
        rank < settings.num_apples,
        values,
        layout.starts[doors[:, 0]],
        layout.doors[doors[:, 1]],
    )


def play(
    settings: KeyToDoorSettings, draws: Draws, actions: NDArray[np.int64] | None
) -> generation.Columns:
    """Play episodes and lay them end to end.

    Args:
        settings: of the environment.
        draws: of the episodes.
        actions: ``[E, T]``; None for the expert's.

    Returns:
        The columns of ``KeyToDoorEnv.oracle_columns``.
    """
    episodes, (first, second, third) = len(draws.start), settings.phase_lengths
    total = first + second + third
    chosen = np.zeros((episodes, total), np.int64) if actions is None else actions
    rewards = np.zeros((episodes, total))
    view = boards.view_of(settings.layout, settings.crop and settings.obs_mode != "full")
    codes = np.empty((episodes, total + 1, view.height * view.width), np.uint8)
    scene = _Scene(view, codes)
    expert = actions is None

    cut = slice(0, first)
    cells, held_from = _walk_to_key(settings.layout, draws, chosen[:, cut], expert)
    time = np.arange(first)
    scene.board(0, cut, cells[:, :first])
    scene.mark(draws.key, boards.KEY, time < held_from[:, None])
    scene.mark(np.array([boards.INDICATOR_CELL]), boards.INDICATOR, time == held_from[:, None])

    cut = slice(first, first + second)
    table = boards.following(settings.layout, 1)
    begin = np.full(episodes, boards.DISTRACTOR_START)
    cells = _walk(table, begin, chosen[:, cut], (lambda c: boards.ROUND[c]) if expert else None)
    scene.board(1, cut, cells[:, :second])
    if draws.apples.any():
        lying, picked = _apples(cells, draws.apples, settings.respawn_every)
        rewards[:, cut] = np.where(picked, draws.values, 0.0)
        for site, cell in enumerate(boards.APPLE_SITES):
            scene.mark(cell[None], boards.APPLE, lying[:, :, site])

    cut = slice(first + second, total + 1)
    held = held_from <= first
    cells = _walk_to_door(settings.layout, draws, held, chosen[:, first + second :], expert)
    at_door = cells[:, 1:] == draws.door[:, None]
    opened = held & at_door.any(axis=1)
    rewards[opened, first + second + at_door.argmax(axis=1)[opened]] = settings.final_reward
    scene.board(2, cut, cells)
    scene.mark(draws.door, boards.DOOR, np.ones((episodes, third + 1), bool), over_agent=True)

    seen = boards.encoded(codes, view, settings.obs_mode)
    if settings.obs_mode != "pixels":  # in the form in which data hold vectors
        seen = seen.reshape(episodes, total + 1, -1).astype(np.float32)
    starts = np.arange(episodes + 1, dtype=np.int64) * total
    return {
        "observations": seen[:, :total].reshape(-1, *seen.shape[2:]),
        **generation.last_step_columns(chosen.reshape(-1), starts, np.zeros(episodes)),
        "rewards": rewards.reshape(-1).astype(np.float32),
        "final_observations": seen[:, total].copy(),
    }


# --- walks --------------------------------------------------------------------------------------


def _walk(
    table: Cells,
    start: Cells,
    actions: Cells,
    expert: Callable[[Cells], Cells] | None = None,
    blocked: Cells | None = None,
) -> Cells:
    """Cells ``[E, t + 1]`` of a walk on one board.

    Args:
        table: ``boards.following``.
        start: ``[E]``.
        actions: ``[E, t]``, written where there is an expert.
        expert: actions in cells ``[E]``.
        blocked: a cell ``[E]`` that cannot be entered; -1 for none.
    """
    cells = np.empty((len(start), actions.shape[1] + 1), np.int64)
    cells[:, 0] = start
    for t in range(actions.shape[1]):
        if expert is not None:
            actions[:, t] = expert(cells[:, t])
        after = table[cells[:, t], actions[:, t]]
        if blocked is not None:
            after = np.where(after == blocked, cells[:, t], after)
        cells[:, t + 1] = after
    return cells


def _walk_to_key(layout: str, draws: Draws, actions: Cells, expert: bool) -> tuple[Cells, Cells]:
    """Cells ``[E, t + 1]`` on the first board; the frame of the pick-up ``[E]``, t + 1 if never."""
    steps = actions.shape[1]
    way, held = boards.ways(layout, 0), np.zeros(len(draws.start), bool)

    def choose(cells: Cells) -> Cells:
        np.logical_or(held, cells == draws.key, out=held)
        return np.where(held, boards.NORTH, way[draws.key, cells])

    cells = _walk(boards.following(layout, 0), draws.start, actions, choose if expert else None)
    there = cells == draws.key[:, None]
    return cells, np.where(there.any(axis=1), there.argmax(axis=1), steps + 1)


def _walk_to_door(layout: str, draws: Draws, held: Flags, actions: Cells, expert: bool) -> Cells:
    """Cells ``[E, t + 1]`` on the third board, whose door only holders of the key pass."""
    way = boards.ways(layout, 2)
    return _walk(
        boards.following(layout, 2),
        draws.door_start,
        actions,
        (lambda cells: way[draws.door, cells]) if expert else None,
        np.where(held, -1, draws.door),
    )


def _apples(cells: Cells, lying: Flags, respawn_every: int) -> tuple[Flags, Flags]:
    """Which sites hold an apple in each observation, and which steps pick one up.

    Args:
        cells: ``[E, t + 1]`` on the second board.
        lying: at first, ``[E, 22]``.
        respawn_every: frames before an apple is back; 0: it never is.

    Returns:
        ``[E, t, 22]`` and ``[E, t]``.
    """
    sites = np.full(boards.CELLS, -1)
    sites[boards.APPLE_SITES] = np.arange(len(boards.APPLE_SITES))
    steps, rows = cells.shape[1] - 1, np.arange(len(cells))
    lying = lying.copy()
    frames = np.full(lying.shape, -1)  # of the last pick-up, while the apple is away
    history = np.empty((len(cells), steps, lying.shape[1]), bool)
    picked = np.zeros((len(cells), steps), bool)
    for t in range(steps):
        history[:, t] = lying
        site = sites[cells[:, t + 1]]
        picked[:, t] = (site >= 0) & lying[rows, site]
        hit = np.flatnonzero(picked[:, t])
        lying[hit, site[hit]] = False
        frames[hit, site[hit]] = t + 1
        if respawn_every:
            back = (frames >= 0) & (t + 1 > frames + respawn_every)
            lying |= back
            frames[back] = -1
    return history, picked


class _Scene:
    """Observations of all episodes, drawn board by board."""

    def __init__(self, view: boards.View, codes: NDArray[np.uint8]):
        self.view, self.codes = view, codes  # (E, T + 1, S)
        self._part, self._cells = codes, np.zeros((0, 0), np.int64)

    def board(self, phase: int, steps: slice, cells: Cells) -> None:
        """Begin a board: what is seen of it and of the agent, whose cells are ``[E, t]``."""
        self._part, self._cells = self.codes[:, steps], cells
        self._part[:] = self.view.backgrounds[phase][cells]

    def mark(self, cell: Cells, code: int, shown: Flags, over_agent: bool = False) -> None:
        """Draw a thing that is in ``cell [E]`` or ``[1]`` while ``shown [E, t]``."""
        episode, time = np.nonzero(shown)
        where, agent = np.broadcast_to(cell, len(shown))[episode], self._cells[episode, time]
        place = self.view.places[agent, where]
        seen = (place >= 0) if over_agent else (place >= 0) & (agent != where)
        self._part[episode[seen], time[seen], place[seen]] = code


# --- exact averages -----------------------------------------------------------------------------


@lru_cache(maxsize=64)
def expected_returns(settings: KeyToDoorSettings) -> tuple[float, float]:
    """Mean returns of uniformly random play and of the expert, both exact.

    The three boards are independent but for the key, so the door's reward is a product, and
    apples are a sum over their sites, each of which holds one with the same probability.
    """
    layout, (first, second, third) = settings.layout, settings.phase_lengths
    door = boards.LAYOUTS[layout]
    trips = ((0, boards.START_CELLS, boards.KEY_CELLS, first), (2, door.starts, door.doors, third))
    random = expert = settings.final_reward
    for phase, starts, targets, steps in trips:
        random *= _random_arrival(boards.following(layout, phase), starts, targets, steps)
        away = boards.steps_between(layout, phase)[targets][:, starts]
        expert *= float((away <= steps).mean())
    worth = settings.num_apples / len(boards.APPLE_SITES) * sum(settings.apple_range) / 2
    if worth:
        random += worth * _random_apples(second, settings.respawn_every)
        expert += worth * _round_apples(second, settings.respawn_every)
    return random, expert


def _spread(table: Cells) -> NDArray[np.float64]:
    """Probability of each cell after one random step from each cell, ``[77, 77]``."""
    matrix = np.zeros((len(table), len(table)))
    for action in range(table.shape[1]):
        matrix[np.arange(len(table)), table[:, action]] += 1 / table.shape[1]
    return matrix


def _random_arrival(table: Cells, starts: Cells, targets: Cells, steps: int) -> float:
    """Probability that random play enters the target, averaged over starts and targets."""
    matrix, rows = _spread(table), np.arange(len(targets))
    mass = np.zeros((len(targets), boards.CELLS))
    mass[:, starts] = 1 / len(starts)
    arrived = 0.0
    for _ in range(steps):
        mass = mass @ matrix
        arrived += float(mass[rows, targets].mean())
        mass[rows, targets] = 0.0
    return arrived


def _random_apples(steps: int, respawn_every: int) -> float:
    """Pick-ups that random play makes at sites that all hold an apple at first."""
    table, sites = boards.following("sr", 1), np.arange(len(boards.APPLE_SITES))
    wait = respawn_every + 1  # frames until an apple is back, 0 while it lies there
    if not respawn_every or wait >= steps:
        start = np.array([boards.DISTRACTOR_START])
        return len(sites) * _random_arrival(table, start, boards.APPLE_SITES, steps)
    matrix = _spread(table)
    mass = np.zeros((len(sites), wait + 1, boards.CELLS))
    mass[:, 0, boards.DISTRACTOR_START] = 1.0
    total = 0.0
    for _ in range(steps):
        mass = mass @ matrix
        picked = mass[sites, 0, boards.APPLE_SITES]
        mass[sites, 0, boards.APPLE_SITES] = 0.0
        total += float(picked.sum())
        mass[:, 0] += mass[:, 1]
        mass[:, 1:-1] = mass[:, 2:]
        mass[:, -1] = 0.0
        mass[sites, -1, boards.APPLE_SITES] = picked
    return total


def _round_apples(steps: int, respawn_every: int) -> float:
    """Pick-ups of the expert's round at sites that all hold an apple at first."""
    actions = np.zeros((1, steps), np.int64)
    start = np.array([boards.DISTRACTOR_START])
    cells = _walk(boards.following("sr", 1), start, actions, lambda c: boards.ROUND[c])
    full = np.ones((1, len(boards.APPLE_SITES)), bool)
    return float(_apples(cells, full, respawn_every)[1].sum())
