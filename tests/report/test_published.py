"""Published numbers: the shipped files, and how they stand beside what was measured."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from seqrl.report import content, published
from seqrl.report.published import FOLDER, Published
from tests.report.results import line, memory_row, record, walker_row

FILES = sorted(FOLDER.glob("*.csv"))


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_files_have_every_column_and_numbers_in_them(file: Path) -> None:
    with open(file, encoding="utf-8", newline="") as lines:
        head = next(csv.reader(lines))
    assert head == [f.name for f in dataclasses.fields(Published)]
    rows = published.read(file)
    assert rows
    for p in rows:
        assert p.suite == file.stem
        assert p.row
        assert p.entrant
        assert p.protocol
        assert p.source
        float(p.value)
        assert p.n_seeds == "" or int(p.n_seeds) > 0
        assert p.spread == "" or p.spread.startswith(("±", "sem ", "std "))
    places = [(p.row, p.entrant, p.label, p.source) for p in rows]
    assert len(set(places)) == len(places), "a source says everything once"


def test_some_numbers_as_their_papers_print_them() -> None:
    found = {(p.row, p.entrant, p.label, p.source.partition(",")[0]): p
             for f in FILES for p in published.read(f)}  # fmt: skip
    rate = found["tmaze-90", "rate", "limit 900", "RATE"]
    assert (rate.value, rate.spread, rate.n_seeds) == ("0.90", "sem 0.07", "4")
    dc = found["hopper-medium", "dc", "last", "Decision ConvFormer"]
    assert (dc.value, dc.best_of) == ("92.5", "6 targets")
    dt = found["hopper-medium-replay", "dt", "last", "Decision Transformer"]
    assert (dt.value, dt.spread, dt.n_seeds) == ("82.7", "± 7.0 over seeds", "3")


def test_measured_numbers_stand_beside_published_ones(tmp_path: Path) -> None:
    memory_row(tmp_path, {"rate": [[1.0, 1.0, 0.5], [1.0, 0.9, 0.5]]})
    found = published.pairs("tmaze", content.build([tmp_path]).rows)
    here = [p for p in found if p.measured is not None]
    assert [(p.published.entrant, p.published.label) for p in here] == [("rate", "limit 90")]
    assert here[0].measured is not None
    assert here[0].measured.value == pytest.approx(0.95)
    assert "2 seeds here, 4 there" in here[0].differences
    assert found[0] is here[0], "measured ones first"


def test_what_was_not_measured_names_its_command(tmp_path: Path) -> None:
    memory_row(tmp_path, {"rate": [[1.0, 1.0, 0.5]]})
    found = published.pairs("tmaze", content.build([tmp_path]).rows)
    commands = {(p.published.row, p.published.entrant, p.published.label): p.command for p in found}
    assert commands["tmaze-90", "dt", "limit 90"] == (
        "seqrl bench tmaze --rows tmaze-90 --agents dt"
    )
    assert commands["tmaze-90", "dt", "limit 480"].endswith("--agents dt --lengths 480")
    assert commands["tmaze-150", "rate, valve none", "limit 150"] == ""


def test_other_data_of_the_same_name_is_said_to_be_other_data(tmp_path: Path) -> None:
    data = [{"source": "minari:seqrl/hopper/medium-v0", "fingerprint": "f"}]
    walker_row(tmp_path / "a", "hopper-medium", {"dc": [50.0] * 3}, data=data)
    d4rl = [{"source": "d4rl:hopper_medium-v2.hdf5", "fingerprint": "f"}]
    walker_row(tmp_path / "b", "hopper_medium-v2.hdf5", {"dc": [50.0] * 5}, data=d4rl)
    words = []
    for name in ("a", "b"):
        pairs = published.pairs("locomotion", content.build([tmp_path / name]).rows)
        (dc,) = [p for p in pairs if p.measured is not None]
        words.append("; ".join(dc.differences))
    assert "**other data** (minari:seqrl/hopper/medium-v0, not D4RL)" in words[0]
    assert "there the best of 6 targets" in words[0]
    assert "other data" not in words[1]
    assert "seeds here" not in words[1]


def test_suites_without_published_numbers_have_none() -> None:
    assert published.published("no such suite") == []
    assert published.pairs("smoke", []) == []


@pytest.mark.parametrize("source", ["oracle:seqrl/RepeatFirst-v0?level=easy", "npz:ppo.npz"])
def test_oracle_data_beside_data_recorded_by_ppo_is_said_to_be_other(
    tmp_path: Path, source: str
) -> None:
    data = [{"source": source, "fingerprint": "f"}]
    lines = [line("return", 1.0, target=1.0)]
    record(tmp_path, "repeat-first-easy", "dt", 0, lines, suite="memory", data=data)
    pairs = published.pairs("memory", content.build([tmp_path]).rows)
    (dt,) = [p for p in pairs if p.measured is not None]
    assert any("other data" in d for d in dt.differences) == source.startswith("oracle:")
