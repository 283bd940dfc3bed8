"""What the name of a D4RL file says: the task it belongs to, its limits and reference scores.

A D4RL file does not name its environment. The table below maps the file names under which the
data sets were published to today's environments: D4RL used the v2 MuJoCo tasks of the old Gym,
whose rewards equal those of Gymnasium's v4 (v5 changed some). Where no current environment has the
observations of the data (AntMaze, Maze2D, Kitchen), there is none to evaluate in.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Any

from seqrl.scores import reference_table


@dataclass(frozen=True)
class Family:
    """Tasks whose published files share an environment and a time limit."""

    pattern: str
    """Regular expression for the normalised file name (lower case, ``-`` for ``_``)."""
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    limit_ends: bool = True
    """Whether a file without timeouts is cut at the limit. Kitchen demonstrations are not: their
    terminals mark every end."""
    scores: str | None = None
    """Key of the reference table's ``env`` column; None when scores go by data set."""
    targets: tuple[float, ...] = ()
    """Target returns of published evaluations, the main one first."""


_ROBOTICS = "gymnasium_robotics:AdroitHand"

FAMILIES: tuple[Family, ...] = (
    Family(r"bullet-.*"),
    Family(
        r"(ant-maze|antmaze)-(eval-)?u-?maze.*", None, {}, 700, True, "antmaze-umaze", (1.0, 0.5)
    ),
    Family(r"(ant-maze|antmaze)-.*", None, {}, 1000, True, "antmaze-umaze", (1.0, 0.5)),
    Family(r"maze2d-open-.*", None, {}, 150),
    Family(r"maze2d-(eval-)?umaze-.*v0", None, {}, 150),
    Family(r"maze2d-(eval-)?medium-.*v0", None, {}, 250),
    Family(r"maze2d-(eval-)?large-.*v0", None, {}, 600),
    Family(r"maze2d-(eval-)?umaze-.*", None, {}, 300),
    Family(r"maze2d-(eval-)?medium-.*", None, {}, 600),
    Family(r"maze2d-(eval-)?large-.*", None, {}, 800),
    Family(r"(mini-)?kitchen-.*", None, {}, 280, False, "kitchen"),
    Family(r"hopper-.*", "Hopper-v4", {}, 1000, True, "hopper", (3600, 1800)),
    Family(r"halfcheetah-.*", "HalfCheetah-v4", {}, 1000, True, "halfcheetah", (12000, 6000)),
    Family(r"walker2d-.*", "Walker2d-v4", {}, 1000, True, "walker2d", (5000, 2500)),
    # The 111 observations of the data include the contact forces.
    Family(r"ant-.*", "Ant-v4", {"use_contact_forces": True}, 1000, True, "ant", (6000,)),
    Family(r"pen-.*", f"{_ROBOTICS}Pen-v1", {}, 100, True, "pen", (3100, 1550)),
    Family(r"door-.*", f"{_ROBOTICS}Door-v1", {}, 200, True, "door", (2900, 1450)),
    Family(r"hammer-.*", f"{_ROBOTICS}Hammer-v1", {}, 200, True, "hammer", (12800, 6400)),
    Family(r"relocate-.*", f"{_ROBOTICS}Relocate-v1", {}, 200, True, "relocate", (4300, 2150)),
)
"""First match wins. Targets: Decision Transformer's code (MuJoCo), CORL's configs (the others)."""


def normalise(stem: str) -> str:
    """A file name without suffix as the reference table writes data sets.

    >>> normalise("hopper_medium-v2"), normalise("maze2d-umaze-sparse-v1")
    ('hopper-medium-v2', 'maze2d-umaze-v1')
    """
    return re.sub(r"-sparse(?=-v\d+$)", "", stem.lower().replace("_", "-"))


def family_of(stem: str) -> Family | None:
    """The family a file name belongs to; None for names that D4RL never used."""
    name = normalise(stem)
    return next((f for f in FAMILIES if re.fullmatch(f.pattern, name)), None)


def reference_scores(stem: str) -> tuple[float, float] | None:
    """(random, expert) returns of the published table for a file name, or None.

    >>> reference_scores("hopper_medium-v2")
    (-20.272305, 3234.3)
    """
    by_dataset, by_env = _table()
    if (exact := by_dataset.get(normalise(stem))) is not None:
        return exact
    family = family_of(stem)
    return by_env.get(family.scores) if family is not None and family.scores else None


@functools.cache
def _table() -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """The rows of D4RL in the shipped table, by data set and by environment."""
    rows = [r for r in reference_table() if r["source"] == "d4rl"]
    return (
        {r["dataset"]: (float(r["min"]), float(r["max"])) for r in rows},
        {r["env"]: (float(r["min"]), float(r["max"])) for r in rows},
    )
