"""Gymnasium environments of seqrl, registered by name without importing their code.

Importing this package registers every environment below, so ``gymnasium.make("seqrl/TMaze-v0")``
works after ``import seqrl.envs``; ``gymnasium.make("seqrl.envs:seqrl/TMaze-v0")`` needs no import.
Only the registry rows are loaded here: an environment's module is imported when it is made.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ENVIRONMENTS", "EnvironmentRow", "register_envs"]


class EnvironmentRow(NamedTuple):
    """One environment as data: enough to list it without importing it."""

    id: str
    entry_point: str
    summary: str


ENVIRONMENTS: tuple[EnvironmentRow, ...] = (
    EnvironmentRow(
        "seqrl/TMaze-v0",
        "seqrl.envs.tmaze:TMazeEnv",
        "T-Maze of RATE: remember the first observation for a whole corridor",
    ),
    EnvironmentRow(
        "seqrl/TMazePassive-v0",
        "seqrl.envs.tmaze_classic:TMazePassiveEnv",
        "T-Maze of Ni et al.: the cue is given at the start",
    ),
    EnvironmentRow(
        "seqrl/TMazeActive-v0",
        "seqrl.envs.tmaze_classic:TMazeActiveEnv",
        "T-Maze of Ni et al.: the cue must be fetched first",
    ),
    EnvironmentRow(
        "seqrl/ActionRetrieval-v0",
        "seqrl.envs.action_retrieval:ActionRetrievalEnv",
        "associative retrieval of RATE: repeat the action chosen at the start",
    ),
    EnvironmentRow(
        "seqrl/MemoryLength-v0",
        "seqrl.envs.memory_length:MemoryLengthEnv",
        "memory length of bsuite: bits shown once, asked for at the end",
    ),
    EnvironmentRow(
        "seqrl/RepeatPrevious-v0",
        "seqrl.envs.card_tasks:RepeatPreviousEnv",
        "cards of POPGym: name the suit of the k-th newest card",
    ),
    EnvironmentRow(
        "seqrl/RepeatFirst-v0",
        "seqrl.envs.card_tasks:RepeatFirstEnv",
        "cards of POPGym: name the suit of the first card, always",
    ),
    EnvironmentRow(
        "seqrl/Autoencode-v0",
        "seqrl.envs.card_tasks:AutoencodeEnv",
        "cards of POPGym: watch them all, name them backwards",
    ),
    EnvironmentRow(
        "seqrl/CountRecall-v0",
        "seqrl.envs.card_tasks:CountRecallEnv",
        "cards of POPGym: say how often a value has been dealt",
    ),
    EnvironmentRow(
        "seqrl/Bandit-v0",
        "seqrl.envs.bandit:BanditEnv",
        "bandits of DPT: find the best of independent arms",
    ),
    EnvironmentRow(
        "seqrl/LinearBandit-v0",
        "seqrl.envs.bandit:LinearBanditEnv",
        "bandits of DPT whose arms share a hidden structure",
    ),
    EnvironmentRow(
        "seqrl/DarkRoom-v0",
        "seqrl.envs.darkroom:DarkRoomEnv",
        "Dark Room of AD and DPT: find a goal that is never shown",
    ),
    EnvironmentRow(
        "seqrl/DarkKeyDoor-v0",
        "seqrl.envs.key_door:DarkKeyDoorEnv",
        "Dark Key-to-Door of AD: find a hidden key, then a hidden door",
    ),
    EnvironmentRow(
        "seqrl/PointReach2D-v0",
        "seqrl.envs.point_reach:PointReachEnv",
        "a point in a square: reach a goal by piecing aimless episodes together",
    ),
    EnvironmentRow(
        "seqrl/KeyToDoor-v0",
        "seqrl.envs.key_to_door:KeyToDoorEnv",
        "Key-to-Door: a key in the first room opens a door after a room of apples",
    ),
    EnvironmentRow(
        "seqrl/KeyToDoorEmpty-v0",
        "seqrl.envs.key_to_door:KeyToDoorEmptyEnv",
        "Key-to-Door of Decision Transformer: the room between is empty",
    ),
    EnvironmentRow(
        "seqrl/MiniGridMemory-v0",
        "seqrl.envs.minigrid_memory:MiniGridMemoryEnv",
        "MiniGrid-Memory in symbols: which object lay in the first room? (extra minigrid)",
    ),
)
"""Every environment of this package, in the order in which it is listed."""


def register_envs() -> None:
    """Register the environments with Gymnasium; calling it again changes nothing.

    Gymnasium's own names are imported here, from the sub-module that defines them, so that this
    function may also run while Gymnasium itself is still being imported (its older releases call
    plug-ins at that moment).

    Example:
        >>> import gymnasium
        >>> register_envs()
        >>> gymnasium.make("seqrl/TMaze-v0", limit=9).action_space
        Discrete(4)
    """
    from gymnasium.envs.registration import register, registry

    for row in ENVIRONMENTS:
        if row.id not in registry:
            # No `max_episode_steps`: these environments end their episodes themselves. No order
            # wrapper: they also refuse a step outside an episode themselves.
            register(id=row.id, entry_point=row.entry_point, order_enforce=False)


register_envs()
