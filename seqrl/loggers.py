"""Where numbers go while a run trains: metric files, TensorBoard, W&B.

Rows of metrics are keyed by step, each step once. A resumed run first rewinds them to its
checkpoint, so that the files look as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from seqrl.errors import SeqrlError, did_you_mean
from seqrl.runfolder import RunFolder, write_text

Number = float | int


class Logger(Protocol):
    """A place that rows of metrics go to."""

    def log(self, step: int, values: Mapping[str, Number]) -> None:
        """Record a row; steps only ever rise."""

    def flush(self) -> None:
        """Hand everything to the system; called before every checkpoint."""

    def rewind(self, step: int) -> None:
        """Forget the rows after ``step``; called before a resumed run logs."""

    def close(self) -> None:
        """Nothing more will come."""


class _FileLogger:
    """A file that rows are added to, open while it is written."""

    def __init__(self, path: Path):
        self.path = path
        self._file: TextIO | None = None

    def _append(self, text: str) -> None:
        if self._file is None:
            self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115
        self._file.write(text)
        self._file.flush()

    def flush(self) -> None:
        """See :class:`Logger`."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """See :class:`Logger`."""
        if self._file is not None:
            self._file.close()
            self._file = None


class JsonlLogger(_FileLogger):
    """``metrics.jsonl``: one object a row, ``{"step": 100, "loss": 0.41, ...}``; NaN is null."""

    def log(self, step: int, values: Mapping[str, Number]) -> None:
        row = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._append(json.dumps({"step": step, **row}) + "\n")

    def rewind(self, step: int) -> None:
        self.close()
        if self.path.is_file():
            rows = (_json_row(line) for line in self.path.read_text("utf-8").splitlines())
            kept = [json.dumps(r) + "\n" for r in rows if r is not None and r["step"] <= step]
            write_text(self.path, "".join(kept))


def _json_row(line: str) -> dict[str, Any] | None:
    """A row of ``metrics.jsonl``; None for the torn last line of a killed run."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


class CsvLogger(_FileLogger):
    """``metrics.csv``: a column a metric, ``step`` first.

    When a metric appears for the first time, the file is rewritten with its column added at the
    right, empty in the rows before: one header, readable by any table program at any moment.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self._columns: list[str] = []

    def log(self, step: int, values: Mapping[str, Number]) -> None:
        row: dict[str, Any] = {"step": step, **values}
        if self._file is None or not set(row) <= set(self._columns):
            rows = self._read()
            new = [c for c in row if c not in self._columns]
            if new:
                self._columns += new
                self._write(rows)
        self._append(self._lines([row]))

    def rewind(self, step: int) -> None:
        if self.path.is_file():
            rows = [r for r in self._read() if _is_step(r) and int(r["step"]) <= step]
            # A column whose first value was in a dropped row goes with it.
            self._columns = [c for c in self._columns if any(r[c] not in ("", None) for r in rows)]
            self._write(rows)

    def _read(self) -> list[dict[str, Any]]:
        """All rows; also learns the columns."""
        self.close()
        if not self.path.is_file():
            return []
        with open(self.path, encoding="utf-8", newline="") as f:
            reader = csv.DictReader(f)
            rows = list(reader)
            self._columns = list(reader.fieldnames or [])
        return rows

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        header = [dict(zip(self._columns, self._columns, strict=True))] if self._columns else []
        write_text(self.path, self._lines([*header, *rows]))

    def _lines(self, rows: Sequence[Mapping[str, Any]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n", extrasaction="ignore")
        writer.writerows(rows)
        return text.getvalue()


def _is_step(row: Mapping[str, Any]) -> bool:
    """False for the torn last line of a killed run."""
    return (row.get("step") or "").isdigit() and None not in row.values()


class TensorBoardLogger:
    """Event files under ``tb/``; rows that a resumed run repeats are purged by TensorBoard."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._purge: int | None = None
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, Number]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._purge)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def rewind(self, step: int) -> None:
        self.close()
        self._purge = step + 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbLogger:
    """Weights & Biases, where the extra is installed; a resumed run continues the same one.

    Raises:
        SeqrlError: the package is missing.
    """

    def __init__(
        self, run: RunFolder, config: Mapping[str, Any] | None = None, project: str = "seqrl"
    ):
        try:
            import wandb
        except ImportError:
            raise SeqrlError(
                "logging to W&B needs the package wandb", hint="pip install 'seqrl[wandb]'"
            ) from None
        mark = run.dir / "wandb_id.txt"
        known = mark.read_text("utf-8").strip() if mark.is_file() else None
        self._run: Any = wandb.init(
            project=project,
            name=run.dir.name,
            dir=str(run.dir),
            config=dict(config or {}),
            id=known,
            resume="allow" if known else None,
        )
        write_text(mark, self._run.id)

    def log(self, step: int, values: Mapping[str, Number]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """W&B sends in the background."""

    def rewind(self, step: int) -> None:
        """W&B itself ignores steps it already has."""

    def close(self) -> None:
        self._run.finish()


DEFAULT_LOGGERS = ("jsonl", "csv", "tensorboard")
LOGGERS = (*DEFAULT_LOGGERS, "wandb", "none")


def make_loggers(
    names: Sequence[str], run: RunFolder, config: Mapping[str, Any] | None = None
) -> list[Logger]:
    """The loggers of a run by name: jsonl, csv, tensorboard, wandb; ``none`` for no files.

    Raises:
        SeqrlError: an unknown name, or a package that is missing.
    """
    makers: dict[str, Callable[[], Logger]] = {
        "jsonl": lambda: JsonlLogger(run.metrics_jsonl),
        "csv": lambda: CsvLogger(run.metrics_csv),
        "tensorboard": lambda: TensorBoardLogger(run.tensorboard),
        "wandb": lambda: WandbLogger(run, config),
    }
    for name in names:
        if name not in LOGGERS:
            hint = did_you_mean(name, LOGGERS, f"loggers: {' '.join(LOGGERS)}")
            raise SeqrlError(f"no logger '{name}'", hint=hint)
    return [makers[n]() for n in dict.fromkeys(names) if n != "none"]


# --- running means -----------------------------------------------------------------------------


class Means:
    """Means of scalars over the updates since the last row.

    Values may be tensors: they are summed on their device and read when the row is made.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        """Take in one update's values."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means so far; begins anew."""
        means = {k: float(v) / self.counts[k] for k, v in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def now(self, name: str) -> float | None:
        """The mean of one scalar so far; None when there is none yet."""
        return float(self.sums[name]) / self.counts[name] if name in self.sums else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run writes the same rows."""
        return {"sums": {k: float(v) for k, v in self.sums.items()}, "counts": dict(self.counts)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore from :meth:`state`."""
        self.sums = {str(k): float(v) for k, v in state["sums"].items()}
        self.counts = {str(k): int(v) for k, v in state["counts"].items()}
