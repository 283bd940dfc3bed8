"""The one error type for user mistakes, and the nearest-name suggestions it carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SeqrlError(Exception):
    """A mistake the user can fix: what was wrong and where, plus what to do about it.

    The command line prints ``error: message`` and ``hint: hint`` and exits with code 2.

    >>> str(SeqrlError("no agent 'dtt'", hint="did you mean 'dt'?"))
    "no agent 'dtt' (hint: did you mean 'dt'?)"
    """

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class CheckFailed(SeqrlError):
    """A check ran and did not hold (``seqrl doctor``): exit code 3 rather than 2."""


class RunFailed(SeqrlError):
    """A run broke down while it was training (NaN loss, diverged weights): exit code 1."""


class RunInterrupted(SeqrlError):
    """A run stopped on Ctrl-C or SIGTERM, its checkpoint saved: exit code 130."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The known names closest to a misspelt one, best first.

    >>> nearest("tmaze-3", ["tmaze-30", "hopper", "tmaze-90"])
    ['tmaze-30', 'tmaze-90']
    """
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.5)


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str | None:
    """``did you mean 'x'?`` for a misspelt name, or ``otherwise`` when nothing is close."""
    close = nearest(name, known)
    if not close:
        return otherwise
    return "did you mean " + " or ".join(repr(c) for c in close) + "?"
