"""Numbers as people type them: counts (``1e5``, ``100k``), durations (``10m``), seeds (``0-4``)."""

from __future__ import annotations

import math
import re

from seqrl.errors import SeqrlError

_COUNT_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_count(text: str) -> int:
    """A whole number, with an exponent, a suffix k, m, b or digit groups if wanted.

    Raises:
        SeqrlError: no number, or one that is not whole.

    >>> parse_count("1e5"), parse_count("100k"), parse_count("2.5M"), parse_count("31_000")
    (100000, 100000, 2500000, 31000)
    """
    body = text.strip().replace("_", "").replace(" ", "")
    match = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)([kKmMbBgG]?)", body)
    if match is None:
        raise SeqrlError(f"{text!r} is not a whole number", hint="write 5000, 5k or 5e3")
    digits, suffix = match.groups()
    if re.fullmatch(r"[-+]?\d+", digits):
        return int(digits) * _COUNT_SUFFIXES[suffix.lower()]
    value = float(digits) * _COUNT_SUFFIXES[suffix.lower()]
    # 2.3M is 2299999.9999999998 in floating point: whole to within rounding is whole.
    if not math.isfinite(value) or abs(value - round(value)) > 1e-9 * max(1.0, abs(value)):
        raise SeqrlError(f"{text!r} is not a whole number", hint="write 5000, 5k or 5e3")
    return round(value)


def parse_duration(text: str) -> float:
    """Seconds from ``90``, ``90s``, ``10m``, ``1h30m`` or ``2d``.

    >>> parse_duration("10m"), parse_duration("1h30m"), parse_duration("2.5")
    (600.0, 5400.0, 2.5)
    """
    body = text.strip().lower()
    if re.fullmatch(r"\d+\.?\d*|\.\d+", body):
        return float(body)
    if not re.fullmatch(r"(?:(?:\d+\.?\d*|\.\d+)[smhd])+", body):
        raise SeqrlError(f"{text!r} is not a duration", hint="write 90s, 10m or 1h30m")
    parts = re.findall(r"(\d+\.?\d*|\.\d+)([smhd])", body)
    return float(sum(float(n) * _SECONDS[unit] for n, unit in parts))


def parse_seeds(text: str) -> list[int]:
    """Seeds from a range, a list or both, in order and without repeats.

    >>> parse_seeds("0-2"), parse_seeds("7,1,3-4")
    ([0, 1, 2], [7, 1, 3, 4])
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise SeqrlError(f"{text!r} names no seeds", hint="write 0-4 or 0,1,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise SeqrlError(f"seed range {part.strip()!r} runs backwards", hint=f"{last}-{first}")
        seeds.extend(s for s in range(first, last + 1) if s not in seeds)
    return seeds


def grouped(number: int) -> str:
    """A count with its thousands set apart by spaces, as every table here prints it.

    >>> grouped(31000), grouped(-12), grouped(1234567)
    ('31 000', '-12', '1 234 567')
    """
    return f"{number:,}".replace(",", " ")


def short_count(number: float) -> str:
    """A count in two or three digits: ``0.73M``, ``12k``, ``345``.

    >>> short_count(726_019), short_count(61_699), short_count(345), short_count(12_300_000)
    ('0.73M', '62k', '345', '12.3M')
    """
    if number >= 10**7:
        return f"{number / 1e6:.1f}M"
    if number >= 10**5:
        return f"{number / 1e6:.2f}M"
    return f"{number / 1e3:.0f}k" if number >= 10**3 else f"{number:.0f}"


def duration(seconds: float) -> str:
    """A duration for a status line: ``8.2 s``, ``1:22``, ``2:03:10``.

    >>> duration(8.23), duration(82), duration(7390)
    ('8.2 s', '1:22', '2:03:10')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    total = round(seconds)
    hours, minutes, rest = total // 3600, total % 3600 // 60, total % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
