"""A run folder explains itself, is never half-written, and is found from anywhere inside it."""

from __future__ import annotations

import datetime
import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from seqrl import runfolder
from seqrl.errors import SeqrlError
from seqrl.runfolder import RunFolder, new_run_dir, open_run, upgraded, write_json


def test_run_json_records_what_produced_the_run(tmp_path: Path) -> None:
    data = [{"source": "npz:x.npz", "fingerprint": "abc"}]
    config = {"agent": {"width": 3}, "seed": np.int64(4)}
    run = RunFolder.create(tmp_path / "run", config=config, command=["train"], data=data)
    record = run.read()
    assert record["status"] == "running"
    assert (record["command"], record["data"]) == (["train"], data)
    assert record["config"] == {"agent": {"width": 3}, "seed": 4}
    assert {"seqrl", "torch", "numpy", "gymnasium", "minari", "python"} <= set(record["versions"])
    assert {"cpu", "cores", "threads", "cuda"} <= set(record["hardware"])
    assert datetime.datetime.fromisoformat(record["started"]).tzinfo is not None
    assert run.config() == ({"agent": {"width": 3}, "seed": 4}, ())
    run.mark("failed", "disk full", step=7)
    record = run.read()
    assert (record["status"], record["reason"], record["step"]) == ("failed", "disk full", 7)
    assert record["ended"] >= record["started"]
    run.mark("running")
    assert run.read()["ended"] is None


def test_the_git_revision_is_recorded_with_whether_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(runfolder, "__file__", str(tmp_path / "runfolder.py"))
    found = runfolder.git_revision()
    assert found == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("2")
    found = runfolder.git_revision()
    assert found is not None
    assert found["dirty"]
    monkeypatch.setenv("PATH", "")
    assert runfolder.git_revision() is None


def test_an_existing_folder_is_not_trained_into(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", config={})
    for path in (tmp_path / "empty", tmp_path):
        with pytest.raises(SeqrlError, match="run folder exists") as error:
            RunFolder.create(path, config={})
        assert error.value.hint == f"seqrl resume {path}, or --name other"
    (tmp_path / "file").write_text("")
    with pytest.raises(SeqrlError, match="run folder exists"):
        RunFolder.create(tmp_path / "file", config={})
    with pytest.raises(SeqrlError, match="cannot be made"):
        RunFolder.create(tmp_path / "file" / "run", config={})
    assert not list(tmp_path.glob(".*"))


def test_a_folder_is_found_from_inside_and_named_from_outside(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a" / "b" / "run", config={})
    for path in (run.dir, run.eval, run.dir / "config.json"):
        assert open_run(path).dir == run.dir
    with pytest.raises(SeqrlError, match="no run folder") as error:
        open_run(tmp_path)
    assert str(run.dir) in (error.value.hint or "")
    with pytest.raises(SeqrlError, match="does not exist"):
        open_run(tmp_path / "none")


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"schema": 9}', '{"status": 1}', "\udcff"])
def test_a_damaged_run_json_is_one_error(tmp_path: Path, content: str) -> None:
    run = RunFolder.create(tmp_path / "run", config={})
    (run.dir / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SeqrlError, match=r"run\.json"):
        run.read()
    (run.dir / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SeqrlError, match=r"config\.json"):
        run.config()


def test_old_records_are_upgraded_and_newer_ones_refused(tmp_path: Path) -> None:
    steps = [lambda r: ({**r, "b": 1}, "1 field added"), lambda r: ({**r, "c": 2}, "another")]
    record, notes = upgraded({"schema": 1}, tmp_path, 3, steps, "config")
    assert record == {"schema": 3, "b": 1, "c": 2}
    expected = ("upgraded config 1 → 2 (1 field added)", "upgraded config 2 → 3 (another)")
    assert notes == expected
    with pytest.raises(SeqrlError, match="config schema 4, this seqrl reads up to 3") as error:
        upgraded({"schema": 4, "seqrl_version": "9.9"}, tmp_path, 3, steps, "config")
    assert "written by seqrl 9.9" in (error.value.hint or "")


def test_json_files_are_strict_and_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": math.nan, "b": math.inf, "c": np.float32(0.5), "d": (1, 2)})
    assert json.loads(path.read_text()) == {"a": None, "b": "inf", "c": 0.5, "d": [1, 2]}

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text())["c"] == 0.5


def test_names_of_runs_do_not_collide(tmp_path: Path) -> None:
    when = datetime.datetime(2026, 1, 31, 12, 0, 0)
    first = new_run_dir(tmp_path, "oracle:seqrl/TMaze-v0?limit=3", "pkg.mod:Agent", 0, when)
    assert first.relative_to(tmp_path).as_posix() == (
        "oracle-seqrl-TMaze-v0-limit-3/pkg.mod-Agent/2026-01-31_12-00-00_s0"
    )
    first.mkdir(parents=True)
    again = new_run_dir(tmp_path, "oracle:seqrl/TMaze-v0?limit=3", "pkg.mod:Agent", 0, when)
    assert again.name == "2026-01-31_12-00-00_s0_2"
