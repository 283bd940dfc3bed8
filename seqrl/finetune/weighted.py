"""Weighted behaviour cloning: the agent's own loss on episodes drawn by their return.

Decision S4's code weights the loss of a trajectory of return G by ``clip(exp(G/G* - 1), 0.01, 10)``
and draws trajectories in proportion to a power of their length (David et al. 2023). A weight in the
loss and a weight in the probability of being drawn have the same mean gradient; the latter needs
nothing of the agent, so it is what is done here::

    w_e = clip(exp((G_e - G*) / (|G*| t)), lo, hi)      P(episode e) ~ w_e length_e^k

With ``t = 1`` and positive returns this is their formula; written as a difference it also prefers
the better of two negative returns. G* is the largest ``mean + 0.4 std`` of the rounds so far.
"""

from __future__ import annotations

import numpy as np

from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.draws import uniform64
from seqrl.errors import SeqrlError
from seqrl.finetune.collecting import Round
from seqrl.finetune.config import WeightedBCConfig
from seqrl.spec import Batch, WindowSpec


def episode_weights(returns: np.ndarray, reference: float, config: WeightedBCConfig) -> np.ndarray:
    """Weights ``[E]`` of episodes by their return.

    Args:
        returns: ``[E]``.
        reference: G*, the return that weighs 1.

    >>> episode_weights(np.array([0.0, 100, 200, 900]), 100.0, WeightedBCConfig()).round(4).tolist()
    [0.3679, 1.0, 2.7183, 10.0]
    >>> episode_weights(np.array([-400.0, -100]), -200.0, WeightedBCConfig()).round(4).tolist()
    [0.3679, 1.6487]
    """
    scale = (abs(reference) or 1.0) * config.temperature
    exponent = np.minimum((returns - reference) / scale, 700.0)
    return np.clip(np.exp(exponent), config.weight_min, config.weight_max)


class EpisodeSampler(Sampler):
    """Windows from episodes drawn with given probabilities; otherwise as any sampler's.

    Args:
        data: of one task.
        window: what the agent's loss wants; its kind decides where in an episode a window lies.
        chances: ``[E]``, any scale.
        batch_size: windows of a batch.
        seed: of the run.

    Raises:
        SeqrlError: a kind of window that is not one episode's.
    """

    KINDS = ("any_start", "any_end", "episode_start", "episode")

    def __init__(
        self,
        data: Trajectories,
        window: WindowSpec,
        chances: np.ndarray,
        batch_size: int,
        seed: int,
    ):
        if window.kind not in self.KINDS:
            raise SeqrlError(
                f"weighted_bc draws windows of single episodes, the agent wants '{window.kind}'"
            )
        super().__init__([data], window, batch_size, seed)
        self.data, self.kind = data, window.kind
        self.cumulative = np.cumsum(chances / chances.sum())

    def batch(self, update: int) -> Batch:
        """The batch of an update."""
        u = uniform64(self.seed, self.stream, update, 2 * self.batch_size)
        chosen = np.searchsorted(self.cumulative, u[: self.batch_size], side="right")
        chosen = np.minimum(chosen, len(self.cumulative) - 1)
        if self.kind in ("episode", "episode_start"):
            place = (chosen + 0.5) / len(self.data)
        else:
            # A window at each of an episode's steps, all equally likely.
            step = np.floor(u[self.batch_size :] * self.data.lengths[chosen])
            place = (self.data.step_offsets[chosen] + step + 0.5) / self.data.num_steps
        return self.gathers[0](place, lambda k: self.more(update, k))


class WeightedPool:
    """The episodes kept to learn from, and a sampler over them.

    Args:
        config: which are kept, and their weights.
        offline: what the run was trained on; None leaves it out.
    """

    def __init__(self, config: WeightedBCConfig, offline: Trajectories | None = None):
        self.config = config
        self.data = offline
        """All kept episodes, oldest first; None before the first ones."""
        self.reference = -np.inf
        """G*."""

    def add(self, found: Round) -> None:
        """Take in a round, and leave out what is too much."""
        returns = found.data.returns
        level = float(returns.mean() + self.config.spread * returns.std())
        self.reference = max(self.reference, level)
        data = found.data if self.data is None else Trajectories.join([self.data, found.data])
        if (surplus := len(data) - self.config.keep) > 0:
            oldest_or_worst = (
                np.argsort(data.returns, kind="stable")
                if self.config.keep_by == "best"
                else np.arange(len(data))
            )
            data = data.select(np.sort(oldest_or_worst[surplus:])).compact()
        self.data = data

    def sampler(self, window: WindowSpec, batch_size: int, seed: int) -> EpisodeSampler:
        """Draws from the kept episodes by weight and length."""
        if self.data is None:
            raise SeqrlError("there are no episodes to learn from yet")
        weights = episode_weights(self.data.returns, self.reference, self.config)
        chances = weights * self.data.lengths**self.config.length_power
        return EpisodeSampler(self.data, window, chances, batch_size, seed)
