"""Settings of Key-to-Door, checked when they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from seqrl.envs import key_to_door_boards as boards
from seqrl.envs.checks import check_bool, check_choice, check_int, check_number
from seqrl.errors import SeqrlError

__all__ = ["EmptySettings", "KeyToDoorSettings"]

OBS_MODES = ("pixels", "flat", "symbolic", "one_hot", "full")
_LARGEST = 1e6


@dataclass(frozen=True)
class KeyToDoorSettings:
    """Checked settings of ``seqrl/KeyToDoor-v0``."""

    layout: str = "sr"
    """Third board: ``"sr"``, a closed room with one way out, or ``"cca"``, the first board."""
    phase_lengths: Any = (15, 60, 10)
    """Steps on each board; three numbers, or the text ``15,60,10``."""
    num_apples: int = 10
    """Apples on the second board, 0 to 22."""
    apple_reward: Any = 1.0
    """Reward of an apple, or a pair (a, b)."""
    fix_apple_reward_in_episode: bool = True
    """Of a pair: one of its ends for all apples of an episode; otherwise uniform at each apple."""
    final_reward: float = 5.0
    """Reward of the door."""
    respawn_every: int = 20
    """An apple is back once more than so many frames have passed; 0: it never is."""
    obs_mode: str = "pixels"
    """``pixels``, ``flat``, ``symbolic`` or ``full``."""
    crop: bool = True
    """Whether only the 5 x 5 cells around the agent are seen."""

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        check_choice("layout", self.layout, tuple(boards.LAYOUTS))
        lengths = _parts("phase_lengths", self.phase_lengths, (3,), "three numbers, as 15,60,10")
        keep("phase_lengths", tuple(check_int("phase_lengths", n, 1) for n in lengths))
        keep("num_apples", check_int("num_apples", self.num_apples, 0, len(boards.APPLE_SITES)))
        ends = _parts("apple_reward", self.apple_reward, (1, 2), "a number, or a pair as 1,10")
        ends = [check_number("apple_reward", v, -_LARGEST, _LARGEST) for v in ends]
        if ends[0] > ends[-1]:
            raise SeqrlError(
                f"apple_reward={self.apple_reward!r} is not allowed", "write the smaller end first"
            )
        keep("apple_reward", ends[0] if len(ends) == 1 else tuple(ends))
        for name in ("fix_apple_reward_in_episode", "crop"):
            keep(name, check_bool(name, getattr(self, name)))
        keep("final_reward", check_number("final_reward", self.final_reward, 0, _LARGEST))
        keep("respawn_every", check_int("respawn_every", self.respawn_every, 0))
        check_choice("obs_mode", self.obs_mode, OBS_MODES)

    @property
    def apple_range(self) -> tuple[float, float]:
        """Smallest and largest reward of an apple."""
        given = self.apple_reward
        return given if isinstance(given, tuple) else (given, given)

    def view(self) -> boards.View:
        """What is seen of the boards."""
        return boards.view_of(self.layout, self.crop and self.obs_mode != "full")

    def observation_space(self) -> spaces.Box:
        """Return the space of the observations."""
        view = self.view()
        shape = boards.encoded(view.backgrounds[0, 0], view, self.obs_mode).shape
        highest = {"pixels": 255, "flat": 255, "one_hot": 1}
        high = highest.get(self.obs_mode, len(boards.CODES) - 1)
        return spaces.Box(0, high, shape, np.uint8)


@dataclass(frozen=True)
class EmptySettings(KeyToDoorSettings):
    """Checked settings of ``seqrl/KeyToDoorEmpty-v0``."""

    phase_lengths: Any = (20, 15, 10)
    num_apples: int = 0
    final_reward: float = 1.0


def _parts(name: str, value: Any, counts: tuple[int, ...], wanted: str) -> list[Any]:
    """One or several numbers: a number, a sequence, or text as in a dataset's URI.

    Raises:
        SeqrlError: another count, or text that is no numbers.
    """
    try:
        if isinstance(value, str):
            parts: list[Any] = [float(v) for v in value.split(",")]
            parts = [int(v) if v == int(v) else v for v in parts]
        else:
            parts = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    except (ValueError, OverflowError):
        parts = []
    if len(parts) not in counts:
        raise SeqrlError(f"{name}={value!r} is not allowed", f"{name} must be {wanted}")
    return parts
