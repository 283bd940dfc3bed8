"""What T-Maze episodes hide and show, for many of them at once; the oracle's data.

Shapes: E episodes, n junctions, b bits a cue, r reissues, d false cues, C channels. The environment
plays one episode (E = 1) of the same draws, so data and environment cannot drift apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrl.envs import drawing, generation
from seqrl.envs.goals import turn_signs
from seqrl.envs.tmaze_settings import DOWN, RIGHT, UP, TMazeSettings

__all__ = ["Cues", "draw_cues", "noise_rows", "oracle_file", "pictures"]

Ints = NDArray[np.int64]


class Cues(NamedTuple):
    """The draws of E episodes. Cues hold n * b signs, those of the first junction first."""

    queries: Ints
    """The bit that each junction asks for, ``[E, n]``."""
    issues: Ints
    """The cue at the start, then as issued again, in order of time: ``[E, 1 + r, n * b]``."""
    reissued: Ints
    """When it is issued again, ``[E, r]``, ascending."""
    false: Ints
    """False cues, ``[E, d, n * b]``."""
    disturbed: Ints
    """When these are shown, ``[E, d]``, ascending."""


def draw_cues(
    rng: np.random.Generator, settings: TMazeSettings, goals: Ints, lengths: Ints
) -> Cues:
    """Draw what is shown to episodes whose goal sides are known.

    Every bit of every issue is +1 or -1 with equal probability, but those that the junctions ask
    for in the latest issue, which are the goal sides. Times are drawn without repetition from the
    observations in which the shortest way is in a corridor (the first one, for reissues). Nothing
    is drawn with the default settings.

    Args:
        rng: to draw from.
        settings: of the environment.
        goals: ``[E, n]``, +1 or -1.
        lengths: corridor length of each episode ``[E]``, from ``settings.shortest`` on.
    """
    s, (count, n) = settings, goals.shape
    width = n * s.cue_bits
    queries = np.zeros((count, n), np.int64)
    if s.cue_bits > 1:
        queries = rng.integers(s.cue_bits, size=(count, n))
    issues = goals[:, None]
    if s.cue_bits > 1 or s.reissue:
        issues = 1 - 2 * rng.integers(2, size=(count, 1 + s.reissue, width))
        asked = np.arange(n) * s.cue_bits + queries  # (E, n)
        np.put_along_axis(issues[:, -1], asked, goals, axis=1)
    reissued = s.cue_steps + _distinct(rng, lengths - s.cue_steps, s.reissue)
    false = disturbed = np.zeros((count, s.distractors), np.int64)
    if s.distractors:
        false = 1 - 2 * rng.integers(2, size=(count, s.distractors, width))
        disturbed = _free_times(rng, s, lengths, reissued)
    return Cues(queries, issues, reissued, false.reshape(count, -1, width), disturbed)


def _distinct(rng: np.random.Generator, counts: Ints, k: int) -> Ints:
    """Draw k different numbers of ``0 .. counts - 1`` for each row, ``[E, k]``, ascending."""
    chosen = np.zeros((len(counts), 0), np.int64)
    for drawn in range(k):
        value = rng.integers(counts - drawn)  # a number among those left; then which one it is
        for taken in chosen.T:
            value = value + (value >= taken)
        chosen = np.sort(np.column_stack([chosen, value]), axis=1)
    return chosen


def _free_times(rng: np.random.Generator, s: TMazeSettings, lengths: Ints, reissued: Ints) -> Ints:
    """Draw the times of false cues, ``[E, d]``, ascending.

    The corridor observations of the shortest way are numbered through, junctions left out.
    """
    cued = np.array([s.cued(length) for length in range(int(lengths.max()) + 1)])[lengths]
    place = _distinct(rng, s.junctions * lengths - cued - s.reissue, s.distractors)
    place += cued[:, None]
    for taken in reissued.T:  # times of the first corridor are places
        place += place >= taken[:, None]
    return place + place // lengths[:, None]  # a step at each junction passed


def show_cues(
    rows: NDArray[np.float32], settings: TMazeSettings, cues: Cues, episode: Ints, time: Ints
) -> None:
    """Write into observations ``[N, C]`` what their episodes show at their times (both ``[N]``)."""
    columns = settings.cue_columns
    now = np.flatnonzero(time < settings.cue_steps)
    rows[np.ix_(now, columns)] = cues.issues[episode[now], 0]
    for k in range(settings.reissue):
        now = np.flatnonzero(time == cues.reissued[episode, k])
        rows[np.ix_(now, columns)] = cues.issues[episode[now], 1 + k]
    for k in range(settings.distractors):
        now = np.flatnonzero(time == cues.disturbed[episode, k])
        rows[np.ix_(now, columns)] = cues.false[episode[now], k]
        rows[now, -1] = 1


def noise_rows(rng: np.random.Generator, rows: int, settings: TMazeSettings) -> NDArray[np.float32]:
    """Return observation rows ``[rows, C]`` with the noise channels drawn and all others 0."""
    block = np.zeros((rows, settings.width), np.float32)
    noise = settings.noise_columns
    if noise.start < noise.stop:
        shape = (rows, noise.stop - noise.start)
        block[:, noise] = rng.integers(-1, 2, size=shape, dtype=np.int8)
    return block


def pictures(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw observation vectors ``[N, C]`` as pictures ``[N, 64, 64, 3]``."""
    v = vectors.astype(np.int8)
    return drawing.observation_images(v[:, 0], v[:, 1], v[:, 2], v[:, 3:])


def oracle_file(
    settings: TMazeSettings, lengths: Ints, rng: np.random.Generator, wrong_turns: bool
) -> generation.Columns:
    """Return the columns of one episode per corridor length in ``lengths [E]``.

    Args:
        settings: of the environment, whose corridor may be longer.
        lengths: from ``settings.shortest`` on.
        rng: of cues and noise.
        wrong_turns: one wrong turn in half of the episodes of every combination of goals.
    """
    s, n, count = settings, settings.junctions, len(lengths)
    signs = turn_signs(np.arange(count), n + 1)
    goals, wrong = signs[:, :n], (signs[:, n] < 0) & wrong_turns
    cues = draw_cues(rng, s, goals, lengths)
    last = np.full(count, n - 1)  # the last junction of an episode
    if wrong_turns and n > 1:
        last = np.where(wrong, rng.integers(n, size=count), last)
    turns = goals.copy()
    turns[wrong, last[wrong]] *= -1

    starts, episode, time = generation.episode_steps((last + 1) * (lengths + 1))
    junction, x = np.divmod(time, lengths[episode] + 1)
    turning = x == lengths[episode]
    actions = np.full(len(time), RIGHT, np.int64)
    actions[turning] = np.where(turns[episode[turning], junction[turning]] > 0, UP, DOWN)

    observations = noise_rows(rng, len(time), s)
    show_cues(observations, s, cues, episode, time)
    observations[:, 2] = turning & s.flag
    final = noise_rows(rng, count, s)
    everyone = np.arange(count)
    show_cues(final, s, cues, everyone, starts[1:] - starts[:-1])
    final[:, 0] = turns[everyone, last]
    final[:, 2] = s.flag
    if s.cue_bits > 1:
        asked = cues.queries[episode[turning], junction[turning]]
        observations[np.flatnonzero(turning), s.query_column + asked] = 1
        final[everyone, s.query_column + cues.queries[everyone, last]] = 1
    draw: Any = pictures if s.obs == "pixels" else np.asarray
    return {
        "observations": draw(observations),
        **generation.last_step_columns(actions, starts, ~wrong),
        "final_observations": draw(final),
    }
