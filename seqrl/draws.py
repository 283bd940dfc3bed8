"""Random numbers addressed by counters instead of by history.

Row ``i`` of batch ``u`` is a pure function of ``(seed, u, i)``, and draw ``k`` of an episode one of
``(episode seed, k)``: resuming, splitting over processes or running other environments beside an
episode cannot change them. numpy's Philox is the generator.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def uniform64(seed: int, stream: int, counter: int, n: int) -> np.ndarray:
    """``[n]`` float64 in [0, 1): entry i depends on (seed, stream, counter, i) alone.

    Args:
        seed: any non-negative integer below 2**64.
        stream: separates uses of the same seed (training, validation, acting).
        counter: number of the update or step.
    """
    raw = np.random.Philox(key=_key(seed, stream), counter=_counter(counter)).random_raw(n)
    return (raw >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=64)
def _key(seed: int, stream: int) -> np.ndarray:
    return np.random.SeedSequence([seed, stream]).generate_state(2, np.uint64)


def _counter(counter: int) -> np.ndarray:
    # The low words count the draws within one update, the high word the updates.
    return np.array([0, 0, 0, counter], dtype=np.uint64)


def derive_seed(seed: int, stream: int, index: int) -> int:
    """A 31-bit seed from (seed, stream, index), as used for the episodes of an evaluation.

    Stream 0 seeds periodic evaluation, stream 1 the final one and ``seqrl eval``.

    >>> derive_seed(10_000, 1, 0) == derive_seed(10_000, 1, 0) != derive_seed(10_000, 1, 1)
    True
    """
    state = np.random.SeedSequence((seed, stream, index)).generate_state(1, np.uint32)
    return int(state[0] >> 1)


def draw_seed(*parts: int) -> int:
    """A 63-bit seed for torch's generators from a tuple of integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


class RowDraws:
    """Random numbers for acting, a stream of its own for each environment row.

    Row i's k-th draw depends on (seeds[i], k) alone, so sampled actions do not depend on which
    episodes run side by side.
    """

    def __init__(self, n: int):
        self.seeds = np.zeros(n, dtype=np.int64)
        self.count = np.zeros(n, dtype=np.int64)

    def restart(self, row: int, seed: int) -> None:
        """Begin the stream of a new episode in ``row``."""
        self.seeds[row] = seed
        self.count[row] = 0

    def uniform(self, k: int) -> torch.Tensor:
        """``[n, k]`` float32 in [0, 1); advances every row's stream by one."""
        import torch

        rows = [
            uniform64(int(s), 7, int(c), k) for s, c in zip(self.seeds, self.count, strict=True)
        ]
        self.count += 1
        # Rounding to float32 could reach 1.0; the largest float32 below 1 is the cap.
        values = np.minimum(np.stack(rows).astype(np.float32), np.float32(1 - 2**-24))
        return torch.from_numpy(values)
