"""``seqrl info``: what a bug report needs, found without importing torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import seqrl
from seqrl.cli import output
from seqrl.cli.flags import Flag, FlagSet

CORE = ("torch", "gymnasium", "minari", "numpy", "h5py", "safetensors", "tensorboard", "tyro")
FLAGS = FlagSet("info", [Flag("json", bool, "One JSON object on standard output.")])


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl info --help``."""
    return output.help_text(
        FLAGS,
        "Versions, device, threads and paths, to paste into a bug report.",
        examples=["seqrl info", "seqrl info --json"],
    )


def main(argv: Sequence[str]) -> int:
    """Print the report."""
    parsed = FLAGS.parse(argv)
    report = collect()
    if parsed.get("json"):
        output.print_json(report)
        return 0
    for title, rows in report.items():
        lines = rows.items() if isinstance(rows, dict) else [("", rows)]
        for i, (key, value) in enumerate(lines):
            output.out(f"{title if i == 0 else '':<10}{key:<24}{_text(value)}".rstrip())
    return 0


def collect() -> dict[str, Any]:
    """The facts as plain data."""
    return {
        "seqrl": {"version": seqrl.__version__, "location": str(Path(seqrl.__file__).parent)},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": {
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "cores": _cores(),
            "memory": _memory(),
            "threads": os.environ.get("OMP_NUM_THREADS") or f"{_cores()} (torch's default)",
            "cuda": _cuda(),
        },
        "packages": {name: _version(name) for name in CORE},
        "extras": _extras(),
        "paths": {"SEQRL_HOME": _home(), "MINARI_DATASETS_PATH": _minari()},
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "present" if value["present"] else f'missing   pip install "{value["install"]}"'
    return "not installed" if value is None else str(value)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, dict[str, Any]]:
    """The optional extras and whether what they install is here."""
    modules = {
        "mujoco": "mujoco",
        "box2d": "Box2D",
        "plot": "matplotlib",
        "video": "imageio",
        "arrow": "pyarrow",
        "collect": "stable_baselines3",
        "wandb": "wandb",
    }
    return {
        extra: {
            "present": importlib.util.find_spec(module) is not None,
            "install": f"seqrl[{extra}]",
        }
        for extra, module in modules.items()
    }


def _cuda() -> str:
    """What can be told of CUDA without loading torch: its build and the driver's files."""
    build = _version("torch")
    if build is None:
        return "unknown (torch is not installed)"
    if "+cpu" in build:
        return "no (torch is a CPU build)"
    driver = any(Path(p).exists() for p in ("/dev/nvidia0", "/proc/driver/nvidia/version"))
    return "driver found" if driver else "no driver found"


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def _home() -> str:
    return os.environ.get("SEQRL_HOME") or f"{Path.home() / '.seqrl'} (default)"


def _minari() -> str:
    default = Path.home() / ".minari" / "datasets"
    return os.environ.get("MINARI_DATASETS_PATH") or f"{default} (default)"
