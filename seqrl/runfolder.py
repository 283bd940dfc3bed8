"""Run folders: where everything about one training run lives, written so that no crash tears it.

::

    runs/tmaze/dt/2026-01-31_12-00-00_s0/
      run.json        command, data, versions, hardware, start and end, status
      config.json     resolved config and its schema version
      metrics.jsonl   metrics.csv   tb/   log.txt
      eval/step_0010000.json ... final.json
      checkpoints/step_0010000/   last ->   best ->

Every JSON file is written beside its place, synced and renamed over it. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import seqrl
from seqrl.errors import SeqrlError
from seqrl.spec import to_plain

Status = Literal["running", "done", "interrupted", "failed"]
Upgrade = Callable[[dict[str, Any]], tuple[dict[str, Any], str]]
"""Turns a record of one schema into the next; also says in a few words what changed."""

RUN_SCHEMA = 1
CONFIG_SCHEMA = 1
CONFIG_UPGRADES: list[Upgrade] = []
"""Entry i turns schema i+1 into i+2."""


# --- files -------------------------------------------------------------------------------------


def json_text(value: Any) -> str:
    """``value`` as strict JSON: NaN becomes null, infinities become strings."""
    return json.dumps(_without_nan(to_plain(value)), indent=2, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_text(path: Path, text: str) -> Path:
    """Write a whole file atomically: after a crash it is the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file atomically."""
    return write_text(path, json_text(value))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        remedy: what the user can do when it is missing or damaged, for the error's hint.

    Raises:
        SeqrlError: no such file, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SeqrlError(f"{path} is missing", hint=remedy) from None
    except (OSError, ValueError, RecursionError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise SeqrlError(f"{path} is damaged: {reason}", hint=remedy) from e
    if not isinstance(value, dict):
        raise SeqrlError(f"{path} is damaged: it holds no JSON object", hint=remedy)
    return value


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def upgraded(
    record: dict[str, Any], path: Path, current: int, upgrades: Sequence[Upgrade], what: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A record brought to the current schema, and a line for each upgrade applied.

    Args:
        record: as read from ``path``, with its ``schema``.
        upgrades: entry i turns schema i+1 into i+2.
        what: the kind of record, for messages ("config", "policy").

    Raises:
        SeqrlError: no schema, or one newer than this version knows.
    """
    schema = record.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise SeqrlError(
            f"{path} has no valid schema version ({schema!r})", hint="it was not written by seqrl"
        )
    if schema > current:
        written = record.get("seqrl_version", "a newer version")
        raise SeqrlError(
            f"{path} has {what} schema {schema}, this seqrl reads up to {current}",
            hint=f"it was written by seqrl {written}, here is {seqrl.__version__}: upgrade seqrl",
        )
    notes = []
    for version in range(schema, current):
        record, change = upgrades[version - 1](dict(record))
        record["schema"] = version + 1
        notes.append(f"upgraded {what} {version} → {version + 1} ({change})")
    return record, tuple(notes)


# --- the folder --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolder:
    """One run's folder and the paths in it. Make one with :meth:`create` or :func:`open_run`."""

    dir: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints with the links ``last`` and ``best``."""
        return self.dir / "checkpoints"

    @property
    def eval(self) -> Path:
        """Folder of evaluation records."""
        return self.dir / "eval"

    @property
    def log(self) -> Path:
        """The plain lines of the run, as shown where there is no terminal."""
        return self.dir / "log.txt"

    @property
    def metrics_jsonl(self) -> Path:
        """One JSON object a line."""
        return self.dir / "metrics.jsonl"

    @property
    def metrics_csv(self) -> Path:
        """The same rows as a table."""
        return self.dir / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.dir / "tb"

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        config: Mapping[str, Any],
        command: Sequence[str] | None = None,
        data: Sequence[Mapping[str, Any]] = (),
    ) -> RunFolder:
        """Make the folder with its ``run.json`` (status running) and ``config.json``.

        Args:
            path: the folder; it may exist only when it is empty.
            config: the resolved config, JSON-able.
            command: the command line; that of this process when not given.
            data: one mapping a task with its ``source`` and ``fingerprint``.

        Raises:
            SeqrlError: the folder exists, or cannot be made.
        """
        run = cls(Path(path))
        record = {
            "schema": RUN_SCHEMA,
            "seqrl_version": seqrl.__version__,
            "status": "running",
            "reason": None,
            "started": now(),
            "ended": None,
            "command": list(sys.argv if command is None else command),
            "data": list(data),
            "config": config,
            **describe_machine(),
        }
        saved = {"schema": CONFIG_SCHEMA, "seqrl_version": seqrl.__version__, "config": config}
        # Filled under another name and renamed: a run folder is whole or not there.
        making = cls(run.dir.with_name(f".{run.dir.name}.{os.getpid()}.tmp"))
        try:
            if run.dir.exists() and (not run.dir.is_dir() or any(run.dir.iterdir())):
                raise FileExistsError
            for folder in (making.checkpoints, making.eval):
                folder.mkdir(parents=True, exist_ok=True)
            write_json(making.dir / "config.json", saved)
            write_json(making.dir / "run.json", record)
            os.replace(making.dir, run.dir)
        except OSError as e:
            shutil.rmtree(making.dir, ignore_errors=True)
            if isinstance(e, FileExistsError) or e.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise SeqrlError(
                    f"run folder exists: {run.dir}",
                    hint=f"seqrl resume {run.dir}, or --name other",
                ) from None
            raise SeqrlError(
                f"run folder {run.dir} cannot be made: {e.strerror or e}",
                hint="choose another with --out DIR",
            ) from e
        return run

    def read(self) -> dict[str, Any]:
        """The contents of ``run.json``."""
        path = self.dir / "run.json"
        record = read_json(path, "point at a run folder: seqrl list runs")
        return upgraded(record, path, RUN_SCHEMA, [], "run")[0]

    def config(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The resolved config as saved, and a line for each schema upgrade applied to it."""
        path = self.dir / "config.json"
        record = read_json(path, "the run cannot be resumed without it; train anew")
        record, notes = upgraded(record, path, CONFIG_SCHEMA, CONFIG_UPGRADES, "config")
        if not isinstance(record.get("config"), dict):
            raise SeqrlError(f"{path} is damaged: it has no 'config'", hint="train anew")
        return record["config"], notes

    def mark(self, status: Status, reason: str | None = None, **fields: Any) -> None:
        """Set the status in ``run.json``, with a reason and any other facts to record there."""
        ended = None if status == "running" else now()
        record = {**self.read(), "status": status, "reason": reason, "ended": ended, **fields}
        if status == "running":
            record.update(pid=os.getpid(), host=socket.gethostname())
        write_json(self.dir / "run.json", record)

    def write_eval(self, name: int | str, record: Mapping[str, Any]) -> Path:
        """Write an evaluation record under ``eval/``: ``step_0010000.json`` or ``NAME.json``."""
        self.eval.mkdir(exist_ok=True)
        stem = step_name(name) if isinstance(name, int) else name
        return write_json(self.eval / f"{stem}.json", record)

    def rewind(self, step: int) -> None:
        """Remove periodic evaluations later than ``step``, and files a kill left half-written."""
        for leftover in (*self.dir.glob(".*.tmp"), *self.eval.glob(".step_*.tmp")):
            leftover.unlink(missing_ok=True)
        for path in self.eval.glob("step_*.json"):
            number = path.stem.removeprefix("step_")
            if number.isdigit() and int(number) > step:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; the lock ends with the process, however that dies.

        Raises:
            SeqrlError: another process is training in this folder.
        """
        try:
            import fcntl
        except ImportError:  # Windows: no advisory locks
            yield
            return
        with open(self.dir / ".lock", "a+", encoding="utf-8") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SeqrlError(
                    f"another process is training in {self.dir}",
                    hint="wait for it or stop it first",
                ) from None
            except OSError:  # a file system without locks
                pass
            yield


def step_name(step: int) -> str:
    """How folders and files are named after a step.

    >>> step_name(10_000)
    'step_0010000'
    """
    return f"step_{step:07d}"


def new_run_dir(
    root: str | Path, data: str, agent: str, seed: int, when: datetime.datetime | None = None
) -> Path:
    """A folder name not yet taken: ``ROOT/DATA/AGENT/2026-01-31_12-00-00_s0``."""
    stamp = (when or datetime.datetime.now()).strftime("%Y-%m-%d_%H-%M-%S")
    parent = Path(root) / _as_name(data) / _as_name(agent)
    path = parent / f"{stamp}_s{seed}"
    again = 2
    while path.exists():
        path = parent / f"{stamp}_s{seed}_{again}"
        again += 1
    return path


def _as_name(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
    return kept.strip(".-") or "run"


def open_run(path: str | Path) -> RunFolder:
    """The run that a path lies in: its folder, or any file or folder inside it.

    Raises:
        SeqrlError: no such path, or no run around it.
    """
    start = Path(path).absolute()
    if not start.exists() and not start.is_symlink():
        raise SeqrlError(f"{path} does not exist", hint="runs here: seqrl list runs")
    for folder in (start, *start.parents):
        if (folder / "run.json").is_file():
            return RunFolder(folder)
    hint = "runs here: seqrl list runs"
    # Three levels at most (data, agent, run), so that a wrong path such as / answers at once.
    patterns = ("*/run.json", "*/*/run.json", "*/*/*/run.json")
    below = sorted(p.parent for pattern in patterns for p in start.glob(pattern))
    if below:
        hint = "it holds runs: " + ", ".join(str(p) for p in below[-3:])
    raise SeqrlError(f"{path} is no run folder (no run.json in it or above it)", hint=hint)


# --- facts about the machine -------------------------------------------------------------------


def now() -> str:
    """The local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def describe_machine() -> dict[str, Any]:
    """Versions, git revision and hardware of this process, for ``run.json`` and bug reports."""
    return {
        "versions": versions(),
        "git": git_revision(),
        "hardware": hardware(),
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }


def versions() -> dict[str, str | None]:
    """Versions of seqrl, Python and the packages results depend on (None: not installed)."""
    found: dict[str, str | None] = {"seqrl": seqrl.__version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "gymnasium", "minari", "mujoco"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_revision() -> dict[str, Any] | None:
    """Revision, and whether tracked files differ from it, of the checkout seqrl runs from.

    The current folder's checkout when seqrl is installed elsewhere; None when there is neither.
    """
    for folder in (Path(__file__).parent, Path.cwd()):
        revision = _git(folder, "rev-parse", "HEAD")
        if revision:
            changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
            return {"revision": revision, "dirty": bool(changes)}
    return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def hardware() -> dict[str, Any]:
    """Processor, cores, threads torch computes with and CUDA devices (where torch is loaded)."""
    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        cuda = torch.cuda
        facts["threads"] = torch.get_num_threads()
        facts["cuda"] = [cuda.get_device_name(i) for i in range(cuda.device_count())]
    return facts


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
