"""Goals D1, D2 and D4: how fast and how lean datasets load, as ratios within one run.

    OMP_NUM_THREADS=1 python benchmarks/data_loading.py [--data DIR]   # DIR: minari/ and d4rl/

A and B alternate in one process; times are process CPU time; the figure is the median of the pair
ratios. Synthetic files are gzip-compressed like the published ones. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import alternate, machine, median_ratio, table

D4RL_KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
Row = tuple[str, str, str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with minari/ and d4rl/")
    parser.add_argument("--pairs", type=int, default=7, help="alternating A/B pairs (7 or more)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps of the synthetic file")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.memory_of:
        print(json.dumps(measure_memory(args.memory_of)))
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(environment("SEQRL_HOME", f"{folder}/home"))
        rows = list(measure(args, Path(folder)))
    print(f"{machine()}, {args.pairs} pairs\n")
    print(table(["goal", "measured", "bound", "detail"], [list(row) for row in rows]))


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """An environment variable set for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """All rows of the table."""
    synthetic = write_synthetic(folder / "hopper_medium-v2.hdf5", args.steps, following=True)
    short = write_synthetic(folder / "short-v0.hdf5", args.steps, following=False)
    label = f"{args.steps:,} steps"
    files = [(f"synthetic, {label}", synthetic), (f"no next_observations, {label}", short)]
    if args.data:
        real = next(iter(sorted((args.data / "d4rl").glob("*.hdf5"))), None)
        files += [(real.name, real)] if real else []
    for name, path in files:
        yield d1(name, path, args.pairs)
    yield d2(synthetic)
    yield from d4(args, folder)
    yield from cached(synthetic, folder, args.steps)
    yield peers(synthetic)


def compare(a: Callable[[], Any], b: Callable[[], Any], pairs: int) -> tuple[float, float, float]:
    """Median ratio a/b of CPU time over alternating pairs, and the median seconds of each."""
    times = alternate({"a": a, "b": b}, rounds=pairs, warm=1)
    return median_ratio(times, "a", "b"), *(float(np.median(times[k])) for k in "ab")


def write_synthetic(path: Path, steps: int, following: bool) -> Path:
    """A D4RL-style file of a hopper's shape: smooth observations, about 450 steps an episode."""
    import h5py

    rng = np.random.default_rng(0)
    walk = rng.standard_normal((steps + 1, 11), dtype=np.float32).cumsum(axis=0) / 100
    terminals = rng.random(steps) < 1 / 450
    terminals[-1] = True
    columns = {
        "observations": walk[:-1],
        "actions": np.tanh(rng.standard_normal((steps, 3), dtype=np.float32)),
        "rewards": rng.random(steps, dtype=np.float32),
        "terminals": terminals,
        "timeouts": np.zeros(steps, bool),
    }
    if following:
        columns["next_observations"] = walk[1:]
    with h5py.File(path, "w") as file:
        for key, column in columns.items():
            file.create_dataset(key, data=column, compression="gzip")
    return path


def load(uri: str) -> Any:
    """Ready trajectories, returns-to-go included, without the converted copies."""
    from seqrl.datasets.catalog import LoadOptions, load_dataset

    return load_dataset(uri, options=LoadOptions(cache=False))


def raw_read(path: Path) -> list[np.ndarray]:
    """What h5py alone takes for the same arrays."""
    import h5py

    with h5py.File(path) as file:
        return [file[key][:] for key in D4RL_KEYS if key in file]


def d1(name: str, path: Path, pairs: int) -> Row:
    ratio, ours, raw = compare(lambda: load(f"d4rl:{path}"), lambda: raw_read(path), pairs)
    return (
        f"D1 {name}",
        f"{ratio:.2f}x raw h5py read of the same arrays",
        "<= 1.3x",
        f"{ours:.3f} s against {raw:.3f} s",
    )


def d2(path: Path) -> Row:
    command = [sys.executable, __file__, "--memory-of", str(path)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(out)
    return (
        "D2 peak memory of that load",
        f"{result['growth'] / result['kept']:.2f}x the bytes kept",
        "<= 2x",
        f"{result['growth'] / 1e6:.0f} MB against {result['kept'] / 1e6:.0f} MB",
    )


def measure_memory(path: str) -> dict[str, float]:
    """In a fresh process: growth of the resident peak over a load, and the bytes kept."""
    from seqrl.datasets.catalog import load_dataset

    load_dataset("tmaze-smoke")  # imports what loading needs
    import h5py  # noqa: F401

    before = status("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak where that is allowed
    data = load(f"d4rl:{path}")
    kept = data.nbytes + data.final_observations.nbytes
    return {"growth": status("VmHWM") - before, "kept": kept}


def status(field: str) -> float:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * float(line.split()[1])
    return 0.0


def d4(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """First and repeat loads of Minari data against Minari's own iterator.

    Minari's writer stores arrays uncompressed; recordings that were compressed afterwards have both
    sides unpack the same bytes, which bounds the ratio from below.
    """
    stores = {"synthetic, as Minari writes it": (folder / "minari", ["bench/synthetic-v0"])}
    (folder / "minari").mkdir()
    source = folder / "small-v0.hdf5"
    write_synthetic(source, 200_000, following=True)
    with environment("MINARI_DATASETS_PATH", str(folder / "minari")):
        load(f"d4rl:{source}").to_minari("bench/synthetic-v0")
    if args.data:
        ids = [
            f"seqrl/{n}-v0" for n in ("hopper/medium", "hopper/medium-replay", "walker2d/medium")
        ]
        stores["gzip"] = (args.data / "minari", ids)
    for layout, (root, ids) in stores.items():
        with environment("MINARI_DATASETS_PATH", str(root)):
            for name in ids:
                yield from d4_of(name, layout, args.pairs)


def d4_of(name: str, layout: str, pairs: int) -> Iterator[Row]:
    """First and repeat load of one dataset."""
    import minari

    from seqrl.datasets.catalog import load_dataset

    dataset = minari.load_dataset(name)

    def iterate() -> list[Any]:
        return list(dataset.iterate_episodes())

    ratio, ours, theirs = compare(lambda: load(f"minari:{name}"), iterate, pairs)
    yield (
        f"D4 first load, {name} ({layout})",
        f"{ratio:.2f}x minari iterate_episodes",
        "<= 0.4x",
        f"{ours:.3f} s against {theirs:.3f} s, {len(dataset)} episodes",
    )
    load_dataset(f"minari:{name}")
    ratio, ours, theirs = compare(lambda: load_dataset(f"minari:{name}"), iterate, pairs)
    yield (
        f"D4 repeat load, {name}",
        f"{1 / ratio:.0f}x faster than iterate_episodes",
        ">= 50x",
        f"{1e3 * ours:.1f} ms against {theirs:.3f} s",
    )


def cached(path: Path, folder: Path, steps: int) -> Iterator[Row]:
    """Opening a converted folder, and how much of it sampling reads."""
    from seqrl.datasets.cache import convert
    from seqrl.datasets.catalog import load_dataset

    convert(f"d4rl:{path}", f"cache:{folder}/columns")
    walls = []
    for _ in range(7):
        start = time.perf_counter()
        load_dataset(f"cache:{folder}/columns")
        walls.append(time.perf_counter() - start)
    yield (
        f"opening converted data, {steps:,} steps",
        f"{1e3 * statistics.median(walls):.1f} ms wall",
        "< 200 ms",
        f"slowest of 7: {1e3 * max(walls):.1f} ms",
    )
    data = load_dataset(f"cache:{folder}/columns")
    before = status("RssFile")
    rng = np.random.default_rng(0)
    for start in rng.integers(0, steps - 20, size=64):
        data.observations[start : start + 20].sum()
    grown = status("RssFile") - before
    yield (
        "sampling one batch of it (64 windows of 20)",
        f"{grown / 1e6:.1f} MB of the file resident",
        f"of {data.nbytes / 1e6:.0f} MB",
        "RssFile before and after",
    )


def peers(path: Path) -> Row:
    """d3rlpy reading the same file, where it is installed."""
    try:
        import d3rlpy  # noqa: F401
        from d3rlpy.dataset import MDPDataset
    except ImportError:
        return ("d3rlpy", "not installed", ">= 4x", "pip install d3rlpy to compare")

    def theirs() -> Any:
        arrays = dict(zip(D4RL_KEYS, raw_read(path), strict=True))
        return MDPDataset(
            arrays["observations"],
            arrays["actions"],
            arrays["rewards"],
            arrays["terminals"],
            arrays["timeouts"],
        )

    ratio, ours, other = compare(theirs, lambda: load(f"d4rl:{path}"), 3)
    return (
        "d3rlpy, same file",
        f"{ratio:.1f}x its time saved",
        ">= 4x",
        f"{ours:.2f}, {other:.2f} s",
    )


if __name__ == "__main__":
    main()
