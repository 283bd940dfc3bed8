"""Folders become cells; what cannot be read is named and left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from seqrl.errors import SeqrlError
from seqrl.report import content, records, sections, tables
from seqrl.report.records import target_name
from tests.report.results import (
    in_context_row,
    line,
    memory_row,
    record,
    run_folder,
    speed_row,
)


def test_everything_below_a_folder_is_found(results: Path) -> None:
    found = records.load([results])
    kinds = {(c.suite, c.row) for c in found.cells}
    assert ("tmaze", "tmaze-90") in kinds
    assert ("locomotion", "hopper-medium") in kinds
    assert ("mine", "bandit") in kinds
    assert ("speed", "acting") in kinds
    assert [(c.entrant, c.hint) for c in found.failed] == [("lram", "--lr 1e-5")]
    assert found.unfinished == ["tmaze-90/dc_s7"], "the run of an unfinished cell is no run"
    assert len(found.warnings) == 2
    assert "torn_s0.json is damaged" in " ".join(found.warnings)
    assert "foreign_s0.json is no record" in " ".join(found.warnings)


def test_a_cell_holds_what_its_record_says(tmp_path: Path) -> None:
    record(tmp_path, "r", "dt", 4, [line("success", 0.5, 30, group="sampled", target=1800.0)])
    (cell,) = records.load([tmp_path]).cells
    assert (cell.entrant, cell.seed, cell.updates, cell.parameters) == ("dt", 4, 1000, 12345)
    (result,) = cell.results
    assert (result.group, result.x, result.target, result.n) == ("sampled", 30, 1800, 20)
    assert result.values["success"] == (0.5, 0.4, 0.5, "wilson")
    assert "normalized" not in result.values
    assert result.env == "seqrl/TMaze-v0 (limit 30)"
    assert cell.curve[0] == {"step": 0, "loss": 2.0}


def test_points_of_speed_keep_their_reason(tmp_path: Path) -> None:
    speed_row(tmp_path, {"dt": 0.1})
    (cell,) = records.load([tmp_path]).cells
    assert [r.reason for r in cell.results] == [None, None, "over 240 s to walk there"]
    assert cell.results[0].values["latency"].mean == 5.5


def test_training_runs_are_cells(tmp_path: Path) -> None:
    run_folder(tmp_path / "a" / "s3", 3, values=[("p50", 0.2, 0.4), ("1", 1.0, 0.9)])
    run_folder(tmp_path / "b", status="interrupted")
    run_folder(tmp_path / "c", status="failed")
    found = records.load([tmp_path])
    (cell,) = found.cells
    assert (cell.suite, cell.row, cell.entrant, cell.seed) == ("", "tmaze-30", "dt", 3)
    assert [(r.target_label, r.values["success"].mean) for r in cell.results] == [
        ("p50", 0.4),
        ("1", 0.9),
    ]
    assert len(cell.curve) == 3, "a torn last line of metrics takes nothing with it"
    assert (cell.train_seconds, cell.policy_ms) == (60, 0.4)
    assert [c.error for c in found.failed] == ["killed"]
    assert len(found.unfinished) == 1


def test_a_run_of_several_tasks_has_results_of_each(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["config"]["data"] = ["a", "b"]
    (run / "config.json").write_text(json.dumps(config))
    shutil.copy(run / "eval" / "final.json", run / "eval" / "final_task1.json")
    (cell,) = records.load([tmp_path]).cells
    assert [r.group for r in cell.results] == ["task 0", "task 1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"results": [1, 2]}, "is damaged"),
        ({"results": [{"group": "x"}]}, "is damaged: KeyError 'label'"),
        ({"seed": "first"}, "is damaged: ValueError"),
        ({"results": [{"label": "a", "success": 5}]}, "is damaged"),
        ({"curve": 7}, "is damaged"),
        ({"plan": {"settings": 5}}, "is damaged: TypeError 5 in the place of an object"),
        ({"timing": {"git": "main"}}, "is damaged"),
        ({"schema": 9}, "has schema 9, not 1"),
        ({"schema": None}, "has schema None"),
    ],
)
def test_damage_is_named_and_the_rest_is_read(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    record(tmp_path, "r", "good", 0, [line("success", 1.0)])
    file = record(tmp_path, "r", "bad", 0, [line("success", 1.0)])
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    found = records.load([tmp_path])
    assert [c.entrant for c in found.cells] == ["good"]
    assert len(found.warnings) == 1
    assert words in found.warnings[0]
    assert "bad_s0.json" in found.warnings[0]


@pytest.mark.parametrize("name", ["run.json", "config.json", "eval/final.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1}', '{"schema": 99}'])
def test_damaged_runs_are_named(tmp_path: Path, name: str, content: str) -> None:
    run = run_folder(tmp_path / "run")
    (run / name).write_text(content)
    run_folder(tmp_path / "good")
    found = records.load([tmp_path])
    assert any(c.path.name == "good" for c in found.cells)
    if (name, content) not in (("config.json", '{"schema": 1}'), ("config.json", '{"schema": 99}')):
        assert found.warnings


def test_missing_values_are_left_out(tmp_path: Path) -> None:
    bad = line("success", 0.5)
    bad["success"]["rate"] = None
    bad["return"] = {"mean": float("nan"), "ci": None}
    record(tmp_path, "r", "dt", 0, [bad])
    (cell,) = records.load([tmp_path]).cells
    assert cell.results[0].values == {}


def test_folders_that_overlap_are_read_once(tmp_path: Path) -> None:
    memory_row(tmp_path / "out", {"dt": [[1.0, 0.5, 0.5]]})
    inside = tmp_path / "out" / "cells" / "tmaze-90"
    assert len(records.load([tmp_path, tmp_path / "out", inside]).cells) == 1


def test_a_foreign_plan_is_no_cell(tmp_path: Path) -> None:
    memory_row(tmp_path / "out", {"dt": [[1.0, 0.5, 0.5]]})
    (tmp_path / "plan.json").write_text("{}")
    assert len(records.load([tmp_path]).cells) == 1


def test_folders_without_results_say_where_results_come_from(tmp_path: Path) -> None:
    with pytest.raises(SeqrlError, match="no results in") as e:
        records.load([tmp_path])
    assert "seqrl bench SUITE" in str(e.value.hint)
    with pytest.raises(SeqrlError, match="does not exist"):
        records.load([tmp_path / "nowhere"])
    (tmp_path / "file").write_text("")
    with pytest.raises(SeqrlError, match="is no folder"):
        records.load([tmp_path / "file"])
    (tmp_path / "cells" / "r").mkdir(parents=True)
    (tmp_path / "cells" / "r" / "x_s0.json").write_text("{")
    with pytest.raises(SeqrlError, match="damaged"):
        records.load([tmp_path])


def test_target_names_do_not_depend_on_how_a_number_was_written() -> None:
    assert target_name("1800.0") == target_name("1800") == target_name(1800) == "1800"
    assert target_name("p90") == "p90"
    assert target_name(None) == "-"


def _places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inside: list[tuple[object, object]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value[:1]))
    return [path, *(p for k, v in inside for p in _places(v, (*path, k)))]


def _put(value: Any, path: tuple[object, ...], new: object) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _put(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("new", [5, [1]], ids=repr)
def test_nothing_a_record_says_breaks_a_report(tmp_path: Path, new: object) -> None:
    speed_row(tmp_path, {"lstm": 0.0})
    in_context_row(tmp_path, {"dpt": [0.2]})
    for file in sorted(tmp_path.rglob("*_s0.json")):
        text = file.read_text()
        good = json.loads(text)
        for place in _places(good):
            file.write_text(json.dumps(_put(good, place, new)))
            tables.tables(report := content.build([tmp_path]))
            sections.page(report)
        file.write_text(text)
