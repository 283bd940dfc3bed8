"""Settings of the T-Maze of RATE, and which channel of its observation holds what."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import drawing
from seqrl.envs.checks import check_bool, check_choice, check_int
from seqrl.errors import SeqrlError

__all__ = ["DOWN", "LEFT", "MAX_JUNCTIONS", "RIGHT", "UP", "TMazeSettings"]

RIGHT, UP, LEFT, DOWN = 0, 1, 2, 3

MAX_JUNCTIONS = 63
"""Turns are bits of a 64-bit number, see :func:`seqrl.envs.goals.turn_signs`."""


@dataclass(frozen=True)
class TMazeSettings:
    """Checked settings of a :class:`~seqrl.envs.tmaze.TMazeEnv`."""

    limit: int = 30
    """Actions an episode may take (T of the paper)."""
    corridor: int | None = None
    """Steps L from the start of each corridor to its junction. Default: the longest that leaves a
    step to waste, ``(limit - 1) // junctions - 1`` (``limit - 2`` for one junction)."""
    noise: bool = True
    """Whether the fourth channel is redrawn from {-1, 0, 1} at every step; otherwise it is 0."""
    cue_steps: int = 1
    """The cue is shown in the first ``cue_steps`` observations; 0 makes a control without cue."""
    flag: bool = True
    """Whether the third channel marks the junction; otherwise it is 0."""
    noise_channels: int = 0
    """Further channels of the same kind as the noise channel."""
    obs: str = "vector"
    """``"vector"``: float32 ``[width]``; ``"pixels"``: the same as a 64 x 64 picture."""
    cue_bits: int = 1
    """Independent bits of the cue of a junction, which itself asks for one of them."""
    junctions: int = 1
    """Corridors, each with its junction and its cue, to be passed in turn."""
    distractors: int = 0
    """False cues, marked as such, shown in the course of the corridors."""
    reissue: int = 0
    """How often the cue is drawn and shown again in the first corridor; the latest counts."""

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        keep("junctions", check_int("junctions", self.junctions, 1, MAX_JUNCTIONS))
        # The shortest corridor has one step, and one step may be wasted.
        keep("limit", check_int("limit", self.limit, 2 * self.junctions + 1))
        if self.corridor is not None:
            # L + 1 moves pass a junction, so longer corridors could not be solved in time.
            longest = self.limit // self.junctions - 1
            keep("corridor", check_int("corridor", self.corridor, 1, longest))
        keep("noise", check_bool("noise", self.noise))
        keep("cue_steps", check_int("cue_steps", self.cue_steps, 0))
        keep("flag", check_bool("flag", self.flag))
        keep("obs", check_choice("obs", self.obs, ("vector", "pixels")))
        keep("cue_bits", check_int("cue_bits", self.cue_bits, 1))
        keep("distractors", check_int("distractors", self.distractors, 0))
        again = int(self.reissue) if isinstance(self.reissue, bool) else self.reissue
        keep("reissue", check_int("reissue", again, 0))
        keep("noise_channels", check_int("noise_channels", self.noise_channels, 0, self._patches()))
        self._check_together()

    def _patches(self) -> int | None:
        """How many noise channels fit into the picture beside the others, None for any number."""
        if self.obs == "vector":
            return None
        patches = 1 + self._more_channels  # y, cue and flag have places of their own
        if patches > drawing.MAX_PATCHES:
            raise SeqrlError(
                f"obs='pixels' cannot show {patches} channels beside y, cue and flag",
                f"at most {drawing.MAX_PATCHES}: fewer cue_bits or junctions, or obs='vector'",
            )
        return drawing.MAX_PATCHES - patches

    def _check_together(self) -> None:
        """Refuse settings that contradict each other."""
        if self.cue_bits > 1 and not self.flag:
            raise SeqrlError(
                f"flag=False is not allowed with cue_bits={self.cue_bits}",
                "the queried bit would mark the junction all the same: leave the flag on",
            )
        if self.reissue and not self.cue_steps:
            raise SeqrlError(
                f"reissue={self.reissue} is not allowed with cue_steps=0",
                "a cue that is never shown cannot be shown again: use cue_steps=1",
            )
        for name, room in zip(("reissue", "distractors"), self.room(self.length), strict=True):
            if getattr(self, name) > room:
                raise SeqrlError(
                    f"{name}={getattr(self, name)} does not fit",
                    f"corridors of length {self.length} have room for {room} beside the other "
                    "cues: raise the limit or the corridor",
                )

    @property
    def length(self) -> int:
        """Corridor length L in cells between start and junction."""
        if self.corridor is not None:
            return self.corridor
        return (self.limit - 1) // self.junctions - 1

    @property
    def shortest(self) -> int:
        """The shortest corridor with room for all cues that appear on the way."""
        wanted = (self.reissue, self.distractors)
        if wanted == (0, 0):
            return 1
        fits = (
            length
            for length in range(1, self.length)
            if all(w <= room for w, room in zip(wanted, self.room(length), strict=True))
        )
        return next(fits, self.length)

    def room(self, length: int) -> tuple[int, int]:
        """How many reissues, and beside them false cues, there are observations for.

        Counted are the observations in which the shortest way is in a corridor of that length and
        the first cue is over: those of the first corridor for reissues, those of all for the rest.
        """
        first = max(length - self.cue_steps, 0)
        return first, max(self.junctions * length - self.cued(length) - self.reissue, 0)

    def cued(self, length: int) -> int:
        """How many of the corridor observations of the shortest way show the first cue."""
        whole, rest = divmod(self.cue_steps, length + 1)
        return min(whole * length + min(rest, length), self.junctions * length)

    # --- channels -----------------------------------------------------------------------------

    @property
    def _more_channels(self) -> int:
        """Channels after y, cue, flag and noise: further bits, queries, mark of false cues."""
        queries = self.cue_bits if self.cue_bits > 1 else 0
        return self.junctions * self.cue_bits - 1 + queries + (self.distractors > 0)

    @property
    def width(self) -> int:
        """Number of channels of the observation vector."""
        return 4 + self.noise_channels + self._more_channels

    @cached_property
    def noise_columns(self) -> slice:
        """The channels that are noise."""
        return slice(3 if self.noise else 4, 4 + self.noise_channels)

    @cached_property
    def cue_columns(self) -> NDArray[np.int64]:
        """The channel of each bit: of the first junction, then of the second, ..."""
        after = 4 + self.noise_channels
        return np.array([1, *range(after, after + self.junctions * self.cue_bits - 1)])

    @property
    def query_column(self) -> int:
        """The channel of the query for bit 0 (with ``cue_bits`` of 2 or more)."""
        return 3 + self.noise_channels + self.junctions * self.cue_bits

    def observation_space(self) -> spaces.Box:
        """Return the space of the observations."""
        if self.obs == "pixels":
            return spaces.Box(0, 255, drawing.OBSERVATION_SHAPE, np.uint8)
        low = np.full(self.width, -1, np.float32)
        low[2] = 0  # the flag
        low[self.query_column :] = 0  # queries and the mark of false cues
        return spaces.Box(low, np.ones(self.width, np.float32), dtype=np.float32)
