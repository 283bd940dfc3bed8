"""Key-to-Door: a key in the first room decides whether a door opens two rooms later.

Sources: the game of Hung et al., "Optimizing agent behavior over long time scales by transporting
value", arXiv 1810.06721 (``tvt/pycolab`` of google-deepmind/deepmind-research), as kept by
twni2016/Memory-RL; the experiment of Chen et al., "Decision Transformer", arXiv 2106.01345, who
published neither their environment nor its sizes.

    board 1   a key; picking it up pays nothing        15 steps
    board 2   apples, each pays at once                60 steps
    board 3   a door; with the key it pays             10 steps

Not to be confused with Dark Key-to-Door (``key_door.py``), a task of learning in context.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import key_to_door_boards as boards
from seqrl.envs import key_to_door_episodes as whole
from seqrl.envs.checks import check_choice, check_int, known_options, settings_from
from seqrl.envs.key_to_door_settings import EmptySettings, KeyToDoorSettings
from seqrl.errors import SeqrlError

__all__ = ["KeyToDoorEmptyEnv", "KeyToDoorEnv"]


class KeyToDoorEnv(gymnasium.Env[NDArray[Any], np.int64]):
    """Key-to-Door with apples on the way, ``seqrl/KeyToDoor-v0`` (arXiv 1810.06721).

    Actions ``Discrete(4)``: 0 north, 1 south, 2 west, 3 east; a move into a wall or a locked door
    costs its step, and as in the original any other integer means staying. Observations are uint8:
    ``pixels [5, 5, 3]`` RGB centred on the agent, ``flat [75]`` the same with colours first,
    ``symbolic [5, 5]`` codes (:data:`~seqrl.envs.key_to_door_boards.CODES`), ``one_hot [175]`` the
    same by kind, ``full [7, 11]`` codes of the whole board; without ``crop`` all are of the whole
    board. Neither the key held nor the time is seen. An episode takes ``sum(phase_lengths)`` steps
    and then terminates: its length is
    part of the task. Every ``info`` holds ``phase`` (0, 1, 2: the board of its observation) and
    ``has_key``, the last one ``success``: the third board has paid.

    Args:
        layout: ``"sr"`` or ``"cca"``.
        phase_lengths: steps on each of the three boards, all 1 or more.
        num_apples: apples on the second board, 0 to 22.
        apple_reward: reward of an apple, or a pair.
        fix_apple_reward_in_episode: of a pair, draw one end for the whole episode.
        final_reward: reward of the door, 0 or more.
        respawn_every: frames after which an apple is back, 0 for never.
        obs_mode: ``"pixels"``, ``"flat"``, ``"symbolic"``, ``"one_hot"`` or ``"full"``.
        crop: see only what is around the agent.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; shows the whole board.

    Raises:
        SeqrlError: a setting out of its range.

    Example:
        >>> env = KeyToDoorEnv(phase_lengths=(1, 1, 2))
        >>> observation, info = env.reset(seed=0, options={"start": (4, 4), "key": (2, 4)})
        >>> observation.shape, info
        ((5, 5, 3), {'phase': 0, 'has_key': False})
        >>> [env.step(0)[4]["phase"] for _ in range(4)]
        [1, 2, 2, 2]
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}
    settings_class: ClassVar[type[KeyToDoorSettings]] = KeyToDoorSettings

    def __init__(
        self,
        layout: str = "sr",
        phase_lengths: Any = (15, 60, 10),
        num_apples: int = 10,
        apple_reward: Any = 1.0,
        fix_apple_reward_in_episode: bool = True,
        final_reward: float = 5.0,
        respawn_every: int = 20,
        obs_mode: str = "pixels",
        crop: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self.settings = KeyToDoorSettings(
            layout,
            phase_lengths,
            num_apples,
            apple_reward,
            fix_apple_reward_in_episode,
            final_reward,
            respawn_every,
            obs_mode,
            crop,
        )
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(4)
        self.observation_space = self.settings.observation_space()
        # Plain attributes: reading them in `step` is cheaper than going through the settings.
        self._lengths: tuple[int, int, int] = self.settings.phase_lengths
        self._view, self._mode = self.settings.view(), self.settings.obs_mode
        self._moves = [boards.following(layout, phase).tolist() for phase in range(3)]
        self._phase = self._frame = self._time = 0
        self._cell = self._key = self._door = self._door_start = 0
        self._has_key = self._unlocked = self._picked_now = False
        self._earned = self._apple = 0.0
        self._apples: set[int] = set()
        self._eaten: dict[int, int] = {}  # apple site to the frame of its pick-up, oldest first
        self._running = self._started = False

    @property
    def max_episode_steps(self) -> int:
        """Steps that an episode takes, whatever the policy does."""
        return sum(self._lengths)

    @property
    def position(self) -> tuple[int, int]:
        """The agent's cell (row, column)."""
        return divmod(self._cell, boards.COLUMNS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds whatever is drawn; ``None`` continues the present stream.
            options: cells (row, column) of ``start`` and ``key``, ``door_start`` and ``door``, and
                a list of them for ``apples``; what is not given is drawn, and the same as without.

        Raises:
            SeqrlError: unknown option, or a cell where such a thing never is.
        """
        super().reset(seed=seed)
        given = known_options(options, ("start", "key", "apples", "door_start", "door"))
        layout, sites = boards.LAYOUTS[self.settings.layout], boards.APPLE_SITES
        places = (boards.START_CELLS, boards.KEY_CELLS, layout.starts, layout.doors)
        names = ("start", "key", "door_start", "door")
        drawn = [int(cells[self.np_random.integers(len(cells))]) for cells in places]
        self._cell, self._key, self._door_start, self._door = (
            _cell_in(name, given[name], cells) if name in given else cell
            for name, cells, cell in zip(names, places, drawn, strict=True)
        )
        apples = self.np_random.permutation(sites)[: self.settings.num_apples].tolist()
        if "apples" in given:
            apples = [_cell_in("apples", cell, sites) for cell in given["apples"]]
        self._apples, self._eaten = set(apples), {}
        self._apple = self.settings.apple_range[int(self.np_random.integers(2))]
        self._phase = self._frame = self._time = 0
        self._has_key = self._unlocked = self._picked_now = False
        self._earned = 0.0
        self._running = self._started = True
        return self._observation(), self._info()

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Take one action (0 north, 1 south, 2 west, 3 east; other integers: stay).

        Raises:
            SeqrlError: no episode is running, or the action is no integer.
        """
        if not self._running:
            raise SeqrlError("step() without a running episode", "call reset() first")
        try:
            move = operator.index(action)
        except TypeError:
            raise SeqrlError(
                f"action={action!r} is not allowed", "actions are 0, 1, 2 and 3"
            ) from None
        if 0 <= move < 4:
            after = self._moves[self._phase][self._cell][move]
            if self._phase != 2 or self._unlocked or after != self._door:
                self._cell = after
        self._frame += 1
        self._time += 1
        reward = (self._look_for_key, self._look_for_apples, self._look_for_door)[self._phase]()
        if self._phase < 2 and self._frame == self._lengths[self._phase]:
            # The old board is never seen again: this step's observation is the new one's first.
            self._phase, self._frame, self._picked_now = self._phase + 1, 0, False
            self._cell = boards.DISTRACTOR_START if self._phase == 1 else self._door_start
            self._unlocked = self._phase == 2 and self._has_key
        terminated = self._phase == 2 and self._frame == self._lengths[2]
        self._running = not terminated
        info = self._info()
        if terminated:
            info["success"] = self._earned > 0
        return self._observation(), reward, terminated, False, info

    def _look_for_key(self) -> float:
        self._picked_now = not self._has_key and self._cell == self._key
        self._has_key |= self._picked_now
        return 0.0

    def _look_for_apples(self) -> float:
        reward = 0.0
        if self._cell in self._apples:
            self._apples.remove(self._cell)
            self._eaten[self._cell] = self._frame
            reward = self._apple
            if not self.settings.fix_apple_reward_in_episode:
                reward = float(self.np_random.uniform(*self.settings.apple_range))
        if self._eaten and self.settings.respawn_every:
            site = next(iter(self._eaten))
            if self._frame > self._eaten[site] + self.settings.respawn_every:
                del self._eaten[site]
                self._apples.add(site)
        return reward

    def _look_for_door(self) -> float:
        if not self._has_key or self._cell != self._door:
            return 0.0
        self._has_key = False  # so it pays once
        self._earned = self.settings.final_reward
        return self._earned

    def _info(self) -> dict[str, Any]:
        return {"phase": self._phase, "has_key": self._has_key}

    def _observation(self) -> NDArray[np.uint8]:
        return boards.encoded(self._codes(self._view), self._view, self._mode)

    def _codes(self, view: boards.View) -> NDArray[np.uint8]:
        """What is seen, as codes ``[S]``; newly allocated."""
        codes: NDArray[np.uint8] = view.backgrounds[self._phase, self._cell].copy()
        places = view.places[self._cell]
        for cell, code in self._things():
            # Things lie below the agent; only the door is drawn over it.
            if places[cell] >= 0 and (cell != self._cell or code == boards.DOOR):
                codes[places[cell]] = code
        return codes

    def _things(self) -> Iterable[tuple[int, int]]:
        """Cells of the present board that hold something, and its code."""
        if self._phase == 2:
            return [(self._door, boards.DOOR)]
        if self._phase == 1:
            return [(cell, boards.APPLE) for cell in self._apples]
        if self._picked_now:
            return [(boards.INDICATOR_CELL, boards.INDICATOR)]
        return [] if self._has_key else [(self._key, boards.KEY)]

    def oracle_action(self) -> int:
        """Return the expert's action: to the key, a round over all apple sites, to the door.

        It reads the true state, so it is right after mistakes, too. The round does not look where
        apples lie: its mean return is exact, and a greedy walker collects more of them.
        """
        if self._phase == 1:
            return int(boards.ROUND[self._cell])
        if self._phase == 0 and self._has_key:
            return boards.NORTH
        goal = self._door if self._phase == 2 else self._key
        return int(boards.ways(self.settings.layout, self._phase)[goal, self._cell])

    def render(self) -> Any:
        """Draw the board in the ``render_mode`` given at construction, ``None`` without one.

        Raises:
            SeqrlError: before the first ``reset``.
        """
        if self.render_mode is None:
            return None
        if not self._started:
            raise SeqrlError("render() before the first episode", "call reset() first")
        codes = self._codes(boards.view_of(self.settings.layout, crop=False))
        total = self.max_episode_steps
        held = "with the key" if self._has_key else "without a key"
        caption = f"board {self._phase + 1} of 3, step {self._time} of {total}, {held}"
        return boards.drawn(codes, self.render_mode, self._cell, caption, self._time / total)

    @classmethod
    def reference_scores(cls, **kwargs: Any) -> dict[str, float]:
        """Return the expected returns of uniformly random play and of the expert, both exact.

        Args:
            **kwargs: settings of the environment, as given to the constructor.

        Raises:
            SeqrlError: unknown setting or value out of range.

        Example:
            >>> round(KeyToDoorEmptyEnv.reference_scores()["random"], 6)
            0.029917
        """
        random, oracle = whole.expected_returns(settings_from(cls.settings_class, kwargs))
        return {"random": random, "oracle": oracle}

    @classmethod
    def random_columns(cls, episodes: int, seed: int, **kwargs: Any) -> dict[str, NDArray[Any]]:
        """Generate episodes of uniformly random play; arguments and columns as of the expert's."""
        settings = settings_from(cls.settings_class, kwargs)
        episodes, seed = check_int("episodes", episodes, 1), check_int("seed", seed, 0)
        shape = (episodes, sum(settings.phase_lengths))
        # Another stream than the tasks', so that both kinds of data have the same tasks.
        actions = np.random.default_rng((seed, 100)).integers(4, size=shape)
        return whole.play(settings, whole.draw(settings, episodes, seed), actions)

    @classmethod
    def oracle_columns(cls, episodes: int, seed: int, **kwargs: Any) -> dict[str, NDArray[Any]]:
        """Generate episodes of the expert as flat columns. A longer set begins with a shorter one.

        Args:
            episodes: number of episodes E.
            seed: of whatever is drawn, 0 or more.
            **kwargs: settings of the environment.

        Returns:
            ``observations [N, ...]`` (pixels uint8, everything else flattened to float32 vectors),
            ``actions [N]`` int64, ``rewards [N]`` float32, ``terminations [N]`` and
            ``truncations [N]`` bool, ``final_observations [E, ...]``, ``episode_starts [E + 1]``.

        Raises:
            SeqrlError: unknown setting or value out of range.

        Example:
            >>> columns = KeyToDoorEnv.oracle_columns(3, seed=0, num_apples=0)
            >>> columns["observations"].shape, float(columns["rewards"].sum())
            ((255, 5, 5, 3), 15.0)
        """
        settings = settings_from(cls.settings_class, kwargs)
        episodes, seed = check_int("episodes", episodes, 1), check_int("seed", seed, 0)
        return whole.play(settings, whole.draw(settings, episodes, seed), None)


class KeyToDoorEmptyEnv(KeyToDoorEnv):
    """Key-to-Door without apples, ``seqrl/KeyToDoorEmpty-v0``: Decision Transformer's experiment.

    The second board is empty and the door pays 1. The paper names no sizes; 20, 15 and 10 steps are
    our calibration: random play then succeeds in 2.99 % of episodes (paper: 3.1 %).

    Args: as of :class:`KeyToDoorEnv`, with other defaults.
    """

    settings_class: ClassVar[type[KeyToDoorSettings]] = EmptySettings

    def __init__(
        self,
        layout: str = "sr",
        phase_lengths: Any = (20, 15, 10),
        num_apples: int = 0,
        apple_reward: Any = 1.0,
        fix_apple_reward_in_episode: bool = True,
        final_reward: float = 1.0,
        respawn_every: int = 20,
        obs_mode: str = "pixels",
        crop: bool = True,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(
            layout,
            phase_lengths,
            num_apples,
            apple_reward,
            fix_apple_reward_in_episode,
            final_reward,
            respawn_every,
            obs_mode,
            crop,
            render_mode,
        )


def _cell_in(name: str, value: Any, cells: NDArray[np.int64]) -> int:
    """Number of a cell given as (row, column), which must be one of ``cells``.

    Raises:
        SeqrlError: it is not.
    """
    try:
        row, column = (operator.index(v) for v in value)
        inside = 0 <= row < boards.ROWS and 0 <= column < boards.COLUMNS
    except (TypeError, ValueError):
        inside = False
    if not inside or boards.cell_of(row, column) not in cells:
        allowed = ", ".join(str(divmod(c, boards.COLUMNS)) for c in cells.tolist())
        raise SeqrlError(f"{name}={value!r} is not allowed", f"{name} is a cell of {allowed}")
    return boards.cell_of(row, column)
