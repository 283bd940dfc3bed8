"""What the speed scripts share: alternating measurement, ratios, tables."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np


def alternate(
    cases: Mapping[str, Callable[[], object]], rounds: int = 9, warm: int = 2, calls: int = 1
) -> dict[str, np.ndarray]:
    """Process CPU seconds per call of every case, measured in turn, round after round."""
    times: dict[str, list[float]] = {k: [] for k in cases}
    for r in range(rounds + warm):
        for name, fn in cases.items():
            start = time.process_time()
            for _ in range(calls):
                fn()
            if r >= warm:
                times[name].append((time.process_time() - start) / calls)
    return {k: np.array(v) for k, v in times.items()}


def ratio(times: Mapping[str, np.ndarray], a: str, b: str) -> str:
    """Median of the pair ratios a / b and their quartiles."""
    q1, mid, q3 = np.quantile(times[a] / times[b], [0.25, 0.5, 0.75])
    return f"{mid:.2f} ({q1:.2f}-{q3:.2f})"


def median_ratio(times: Mapping[str, np.ndarray], a: str, b: str) -> float:
    """Median of the pair ratios a / b."""
    return float(np.median(times[a] / times[b]))


def interval(values: np.ndarray, digits: int = 1) -> str:
    """Mean and 95 % bootstrap interval over seeds; one seed has none."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (1 seed)"
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(r) + " |" for r in rows])


def machine() -> str:
    """One line on where the figures come from."""
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = named[0].split(":", 1)[1].strip() if named else model
    return f"{model}, {torch.get_num_threads()} thread, torch {torch.__version__}"
