"""Metric files keep one row a step, whatever happens; the progress line suits where it goes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from seqrl.errors import SeqrlError
from seqrl.loggers import (
    CsvLogger,
    JsonlLogger,
    Means,
    TensorBoardLogger,
    WandbLogger,
    make_loggers,
)
from seqrl.progress import WIDTH, Clock, ProgressSink, fit_line
from seqrl.runfolder import RunFolder

ROWS: list[tuple[int, dict[str, float]]] = [
    (10, {"loss": 0.5, "lr": 1e-4}),
    (20, {"loss": 0.25, "lr": 1e-4, "val": 1 / 3}),
    (30, {"loss": 0.1, "lr": 1e-4}),
    (40, {"lr": 1e-4, "val": 0.2, "late": 7}),
]


def write(logger: Any, rows: list[tuple[int, dict[str, float]]]) -> None:
    for step, values in rows:
        logger.log(step, values)
    logger.flush()
    logger.close()


@pytest.mark.parametrize(("kind", "name"), [(JsonlLogger, "m.jsonl"), (CsvLogger, "m.csv")])
@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4])
def test_rewound_and_continued_files_equal_uninterrupted_ones(
    tmp_path: Path, kind: Any, name: str, kept: int
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for folder in (whole, torn):
        folder.mkdir()
        write(kind(folder / name), ROWS)
    with open(torn / name, "a") as f:
        f.write('{"step": 50, "lo' if kind is JsonlLogger else "50,0.")
    logger = kind(torn / name)
    logger.rewind(10 * kept)
    write(logger, ROWS[kept:])
    assert (torn / name).read_bytes() == (whole / name).read_bytes()


def test_csv_has_one_header_however_late_a_metric_comes(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "m.csv")
    for i, (step, values) in enumerate(ROWS):
        logger.log(step, values)
        with open(tmp_path / "m.csv", newline="") as f:
            table = list(csv.DictReader(f))
        assert [int(r["step"]) for r in table] == [10, 20, 30, 40][: i + 1]
    assert list(table[0]) == ["step", "loss", "lr", "val", "late"]
    assert (table[0]["val"], table[1]["val"], table[3]["late"]) == ("", str(1 / 3), "7")


def test_jsonl_is_strict_json(tmp_path: Path) -> None:
    write(JsonlLogger(tmp_path / "m.jsonl"), [(1, {"a": math.nan, "b": math.inf, "c": 1.0})])
    row = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert row == {"step": 1, "a": None, "b": None, "c": 1.0}


def test_tensorboard_purges_the_rows_that_are_written_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(TensorBoardLogger(tmp_path), ROWS)
    logger = TensorBoardLogger(tmp_path)
    logger.rewind(20)
    write(logger, ROWS[2:])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.step for e in events.Scalars("lr")] == [10, 20, 30, 40]
    assert [e.step for e in events.Scalars("loss")] == [10, 20, 30]


def test_loggers_are_chosen_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path / "run", config={})
    kinds = [type(x) for x in make_loggers(["jsonl", "csv", "tensorboard", "jsonl"], run)]
    assert kinds == [JsonlLogger, CsvLogger, TensorBoardLogger]
    assert make_loggers(["none"], run) == []
    with pytest.raises(SeqrlError, match="no logger 'tensorbord'") as error:
        make_loggers(["tensorbord"], run)
    assert "did you mean 'tensorboard'?" in (error.value.hint or "")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SeqrlError, match="needs the package wandb") as error:
        WandbLogger(run)
    assert "seqrl[wandb]" in (error.value.hint or "")


class FakeWandb:
    """Stands in for the package: remembers what it was told."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.id = "abc123"

    def init(self, **options: Any) -> FakeWandb:
        self.started.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        pass


def test_wandb_continues_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = RunFolder.create(tmp_path / "run", config={})
    for _ in range(2):
        (logger,) = make_loggers(["wandb"], run, {"seed": 1})
        write(logger, ROWS[:1])
    assert [s["id"] for s in fake.started] == [None, "abc123"]
    assert fake.started[1]["resume"] == "allow"
    assert fake.rows == ROWS[:1] * 2


def test_means_survive_a_checkpoint_exactly() -> None:
    means, again = Means(), Means()
    for i in range(5):
        means.add({"a": 0.1 * i, **({"b": 1 / 3} if i % 2 else {})})
    again.load(json.loads(json.dumps(means.state())))
    for m in (means, again):
        m.add({"a": 0.7})
    assert means.take() == again.take()
    assert means.take() == {}


def test_off_a_terminal_there_are_plain_lines_without_control_characters(tmp_path: Path) -> None:
    stream, log = io.StringIO(), tmp_path / "log.txt"
    sink = ProgressSink(stream, log=log)
    for i in range(1000):
        sink.offer(lambda i=i: [f"step {i}"], i / 1000)  # type: ignore[misc]
    sink.line(["step  1000/1000", "loss 0.1"])
    sink.message("note: something")
    sink.close()
    assert stream.getvalue() == "step  1000/1000  loss 0.1\nnote: something\n"
    assert log.read_text() == stream.getvalue()


def test_off_a_terminal_a_line_comes_every_so_often() -> None:
    stream = io.StringIO()
    sink = ProgressSink(stream, every=0.0)
    for i in range(3):
        sink.offer(lambda i=i: [f"step {i}"], 0.0)  # type: ignore[misc]
    assert stream.getvalue() == "step 0\nstep 1\nstep 2\n"


def test_on_a_terminal_there_is_one_line_that_is_overwritten(tmp_path: Path) -> None:
    stream, log = io.StringIO(), tmp_path / "log.txt"
    sink = ProgressSink(stream, log=log, terminal=True)
    sink.offer(lambda: ["step 1", "loss 0.25", "x" * 40], 0.5)
    shown = stream.getvalue()
    assert shown.startswith("\r[======      ]  step 1  loss 0.25")
    assert "\n" not in shown
    assert "\x1b" not in shown, "no colours, no escape codes"
    assert len(shown) <= WIDTH + 1
    sink.line(["step 2"])
    assert stream.getvalue().endswith("\rstep 2\n")
    assert log.read_text() == "step 2\n"


def test_a_closed_stream_does_not_stop_a_run() -> None:
    stream = io.StringIO()
    sink = ProgressSink(stream, terminal=True)
    stream.close()
    sink.offer(lambda: ["step 1"], 0.1)
    sink.line(["step 2"])
    sink.close()


def test_lines_are_never_wider_than_the_screen() -> None:
    parts = ["step  1000/5000", "loss 0.412", "val 0.421", "lr 1.0e-4", "62 it/s", "data 3%"]
    parts += ["eval[1.0] success 0.50 [0.24, 0.76]", "eta 1:05"]
    for width in (200, 100, 80, 40, 10):
        line = fit_line(parts, width)
        assert len(line) <= width
    assert fit_line(parts, 200) == "  ".join(parts)
    assert "data 3%" not in fit_line(parts, 100)


def test_slow_data_are_reported_once() -> None:
    clock = Clock()
    assert clock.warning(0.2) is None
    assert "45% of the time" in (clock.warning(0.45) or "")
    assert clock.warning(0.9) is None


@pytest.mark.parametrize(("columns", "widest"), [(0, WIDTH), (60, 59), (300, WIDTH)])
def test_the_bar_fits_the_terminal_it_is_on(columns: int, widest: int) -> None:
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (24, columns))
    with os.fdopen(follower, "w") as stream:
        ProgressSink(stream).offer(lambda: ["step 1/5", "loss 0.250", "x" * 200], 0.5)
        shown = os.read(leader, 1000).decode()
    os.close(leader)
    assert len(shown.strip()) == widest
    assert "\n" not in shown
