"""Which numbers belong together: columns, targets, seeds, names of entrants, aggregates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seqrl.errors import SeqrlError
from seqrl.report import content, sections
from seqrl.report.scores import Column, RowScores
from seqrl.report.separation import gaps, verdict
from tests.report.results import line, memory_row, record, run_folder, walker_row


def row(folder: Path, number: int = 0) -> RowScores:
    return content.build([folder]).rows[number]


def limit(x: float) -> Column:
    return Column("", x)


# --- columns and estimates ---------------------------------------------------------------------


def test_a_score_is_the_mean_over_seeds(tmp_path: Path) -> None:
    memory_row(tmp_path, {"dt": [[1.0, 0.5, 0.4], [1.0, 1.0, 0.5], [1.0, 0.6, 0.6]]})
    found = row(tmp_path)
    assert [c.x for c in found.columns] == [30, 90, 300]
    e = found.estimate("dt", limit(90))
    assert e is not None
    assert (e.value, e.seeds) == (pytest.approx(0.7), 3)
    assert found.solved("dt", limit(90)) == (1, 3)
    assert found.estimate("dt", limit(7)) is None
    assert found.episodes() == [20]


def test_the_suite_says_what_a_row_is_about(tmp_path: Path) -> None:
    memory_row(tmp_path, {"dt": [[1.0, 0.5, 0.4]]})
    record(tmp_path, "new", "dt", 0, [line("normalized", 3.0)], suite="not shipped")
    known, unknown = content.build([tmp_path]).rows[::-1]
    assert (known.info.score, known.info.chance, known.info.solved) == ("success", 0.5, 0.99)
    assert known.info.axis == "corridor limit"
    assert known.info.title == "T-Maze, trained to limit 90"
    assert (unknown.info.score, unknown.info.title, unknown.info.chance) == (
        "normalized",
        "new",
        None,
    )


@pytest.mark.parametrize(
    ("score", "expected"),
    [("success", "success"), ("normalized", "normalized"), ("return", "return")],
)
def test_unknown_rows_are_about_the_best_known_measure(
    tmp_path: Path, score: str, expected: str
) -> None:
    record(tmp_path, "r", "dt", 0, [line(score, 0.5, 30)])
    info = row(tmp_path).info
    assert info.score == expected
    assert info.axis == "limit"


def test_cells_of_a_suite_of_ones_own_say_how_their_row_is_shown(tmp_path: Path) -> None:
    shown = {"title": "Mine", "score": "success", "chance": 0.25, "solved": 0.9, "axis": "depth"}
    found = [line("success", 1.0, 9), line("success", 0.5, 12)]
    record(tmp_path, "deep", "dt", 0, found, plan={"shown": shown})
    info = row(tmp_path).info
    assert (info.title, info.score, info.axis) == ("Mine", "success", "depth")
    assert (info.chance, info.solved) == (0.25, 0.9)
    record(tmp_path, "deep", "dt", 0, found, plan={"shown": {**shown, "score": "regret"}})
    info = row(tmp_path).info
    assert info.score == "success", "what was not measured cannot be the score"


def test_another_dataset_in_a_row_is_asked_like_the_suites_own(tmp_path: Path) -> None:
    walker_row(tmp_path, "mine.hdf5", {"dt": [3.0]})
    assert row(tmp_path).info.score == "normalized"


def test_the_score_is_that_of_the_last_listed_target(tmp_path: Path) -> None:
    walker_row(tmp_path, "hopper-medium", {"dt": [10.0, 20.0]})
    found = row(tmp_path)
    last, best = found.columns
    assert (last.name, best.name) == ("last", "best")
    assert (found.primary, found.best) == ([last], [best])
    assert found.values("dt", last) == {(0, 0): 10, (1, 0): 20}
    assert found.values("dt", best) == {(0, 0): 15, (1, 0): 25}
    assert found.targets("dt") == ["1800", "3600"]
    chosen = found.best_over_targets("dt", last)
    assert chosen is not None
    assert (chosen[0], chosen[1].value) == ("1800", 17)


def test_entrants_are_compared_on_the_columns_that_all_were_asked(tmp_path: Path) -> None:
    memory_row(tmp_path, {"lstm": [[1.0, 1.0, 0.0]], "dc": [[1.0, 0.5]]})
    found = row(tmp_path)
    assert [c.x for c in found.common()] == [30, 90]
    means = {line.entrant: line.estimate for line in content.build([tmp_path]).lines}
    assert means["lstm"] is not None
    assert means["lstm"].value == 1
    assert found.matrix("dc", found.primary).shape == (0, 3)


def test_rows_that_are_solved_or_not_show_a_mean(tmp_path: Path) -> None:
    # Of eight seeds two fail: the interquartile mean would not see them.
    memory_row(tmp_path, {"rate": [[1.0]] * 6 + [[0.5]] * 2})
    walker_row(tmp_path, "hopper-medium", {"dt": [0.0, 50.0, 50.0, 100.0, 1000.0]})
    lines = {line.entrant: line for line in content.build([tmp_path]).lines}
    rate, dt = lines["rate"], lines["dt"]
    assert rate.two_valued
    assert rate.estimate is not None
    assert rate.estimate.value == 0.875
    assert not dt.two_valued
    assert dt.estimate is not None
    assert dt.estimate.value == pytest.approx(200 / 3)
    assert (dt.last, dt.best, dt.minutes) == (240, 245, 2)


# --- names -------------------------------------------------------------------------------------


def test_other_settings_are_another_entrant(tmp_path: Path) -> None:
    for seed in (0, 1):
        run_folder(tmp_path / f"a{seed}", seed, context=9)
        run_folder(tmp_path / f"b{seed}", seed, context=90)
    report = content.build([tmp_path])
    assert report.entrants == ["dt (context 9)", "dt (context 90)"]
    assert [line.seeds for line in report.lines] == [2, 2]
    assert "'dt' of tmaze-30 was run with 2 settings" in report.notes[0]


def test_equal_runs_count_once(tmp_path: Path) -> None:
    run_folder(tmp_path / "a", 0)
    run_folder(tmp_path / "b", 0, values=[("1", 1.0, 0.3)])
    report = content.build([tmp_path])
    assert [line.seeds for line in report.lines] == [1]
    assert "is there twice" in report.notes[0]


def test_by_names_rows_and_entrants(tmp_path: Path) -> None:
    run_folder(tmp_path / "a", 0, context=9)
    run_folder(tmp_path / "b", 0, context=90)
    run_folder(tmp_path / "c", 1, context=90)
    together = content.build([tmp_path], by=["agent", "env"])
    assert [(line.entrant, line.key.row, line.seeds) for line in together.lines] == [
        ("dt", "seqrl/TMaze-v0", 3)
    ]
    assert "3 results of 2 seeds" in together.notes[0]
    apart = content.build([tmp_path], by=["agent_config.context"])
    assert apart.entrants == ["context 9", "context 90"]
    with pytest.raises(SeqrlError, match="no result has 'agnt'") as e:
        content.build([tmp_path], by=["agnt"])
    assert "did you mean 'agent'" in str(e.value.hint)


def test_entrants_stand_in_the_order_of_their_suite_references_last(tmp_path: Path) -> None:
    memory_row(tmp_path, {"rate": [[1.0]], "lstm": [[1.0]], "dt": [[1.0]]})
    memory_row(tmp_path, {"oracle": [[1.0]]}, plan={"reference": "oracle"})
    report = content.build([tmp_path])
    assert report.entrants == ["lstm", "dt", "rate", "oracle"]
    assert report.rows[0].trained == ["lstm", "dt", "rate"]


# --- separation --------------------------------------------------------------------------------


def test_a_row_that_separates_says_where(tmp_path: Path) -> None:
    memory_row(tmp_path, {"lstm": [[1.0, 1.0]] * 3, "dt": [[1.0, 0.5]] * 3})
    found = row(tmp_path)
    assert [g.size for g in gaps(found)] == [0, 0.5]
    assert verdict(found) == (
        "**tmaze-90** separates its entrants: best and worst have disjoint intervals at 90, and "
        "overlap at 30; the largest gap is 0.50 at 90 (lstm 1.00, dt 0.50)."
    )


def test_a_row_that_does_not_separate_says_so(tmp_path: Path) -> None:
    walker_row(tmp_path, "hopper-medium", {"bc": [0.0, 50.0, 60.0], "dt": [10.0, 50.0, 70.0]})
    assert "does not separate its entrants" in verdict(row(tmp_path))


def test_single_seeds_tell_nothing_apart(tmp_path: Path) -> None:
    memory_row(tmp_path, {"lstm": [[1.0]], "dt": [[0.5]]})
    assert "it cannot be said whether they differ" in verdict(row(tmp_path))
    memory_row(tmp_path / "b", {"lstm": [[1.0]], "dt": [[1.0]]})
    assert verdict(row(tmp_path / "b")).endswith("all trained entrants score the same.")


def test_few_seeds_do_not_stand_for_a_row_where_others_have_more(tmp_path: Path) -> None:
    values = {"lstm": [[1.0]], "dt": [[0.9]] * 3, "dc": [[0.6]] * 3, "rate": [[0.2]] * 2}
    memory_row(tmp_path, values)
    (gap,) = gaps(row(tmp_path))
    assert (gap.best, gap.worst, gap.apart) == ("dt", "dc", True)


def test_references_have_no_seeds(tmp_path: Path) -> None:
    memory_row(tmp_path, {"lstm": [[1.0]] * 3, "dt": [[1.0]]})
    memory_row(tmp_path, {"random": [[0.5]]}, plan={"reference": "random"})
    heads, rows = sections.glance_table(content.build([tmp_path]))
    assert heads[:4] == ["entrant", "row", "seeds", "success mean [95% CI]"]
    assert [r[2:4] for r in rows] == [
        ["3", "1.00 [1.00, 1.00]"],
        ["1", "1.00 (1 seed)"],
        ["-", "0.50 (reference)"],
    ]


def test_references_separate_nothing(tmp_path: Path) -> None:
    memory_row(tmp_path, {"lstm": [[1.0]] * 3, "random": [[0.0]]}, plan={"reference": "x"})
    assert "nothing to compare" in verdict(row(tmp_path))


# --- aggregates --------------------------------------------------------------------------------


def test_scores_of_one_kind_are_averaged_over_rows(tmp_path: Path) -> None:
    walker_row(tmp_path, "hopper-medium", {"bc": [10.0, 20.0], "dt": [30.0, 40.0]})
    walker_row(tmp_path, "hopper-medium-replay", {"bc": [0.0, 10.0], "dt": [50.0, 60.0]})
    (a,) = content.build([tmp_path]).aggregates
    assert a.baseline == "bc"
    assert a.iqm["bc"].value == 10
    assert a.mean["dt"].value == 45
    assert a.improvement["dt"].value == 1
    assert "bc" not in a.improvement


def test_an_entrant_that_was_not_asked_everything_is_left_out(tmp_path: Path) -> None:
    walker_row(tmp_path, "hopper-medium", {"bc": [1.0], "dt": [2.0], "dc": [3.0]})
    walker_row(tmp_path, "hopper-medium-replay", {"bc": [1.0], "dt": [2.0]})
    (a,) = content.build([tmp_path]).aggregates
    assert a.left_out == ["dc"]
    assert list(a.iqm) == ["bc", "dt"]


def test_returns_of_different_rows_have_no_average(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for entrant, v in (("dt", 5.0), ("bc", 4.0)):
            for seed in range(3):
                record(tmp_path, name, entrant, seed, [line("return", v + seed)])
    (a,) = content.build([tmp_path]).aggregates
    assert a.iqm == {}
    assert list(a.improvement) == ["dt"], "an order needs no common scale"


def test_the_baseline_can_be_chosen_and_must_be_there(tmp_path: Path) -> None:
    walker_row(tmp_path, "hopper-medium", {"bc": [1.0], "dt": [2.0]})
    (a,) = content.build([tmp_path], baseline="dt").aggregates
    assert list(a.improvement) == ["bc"]
    assert a.improvement["bc"].value == 0
    with pytest.raises(SeqrlError, match="no entrant 'dtt'") as e:
        content.build([tmp_path], baseline="dtt")
    assert e.value.hint == "did you mean 'dt'?"


def test_less_regret_is_an_improvement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrl.report.rows._guess", lambda measured, speed: "regret")
    for entrant, v in (("ad", 9.0), ("dpt", 1.0)):
        for seed in range(3):
            r = line("return", 0.0)
            r["regret"] = {"mean": v + seed, "ci": None}
            record(tmp_path, "r", entrant, seed, [r])
    report = content.build([tmp_path])
    (a,) = report.aggregates
    assert a.improvement["dpt"].value == 1
    (gap,) = gaps(report.rows[0])
    assert (gap.best, gap.worst) == ("dpt", "ad")


def test_matrices_hold_seeds_by_columns(tmp_path: Path) -> None:
    memory_row(tmp_path, {"dt": [[1.0, 0.5, 0.4], [0.9, 0.6, 0.3]]})
    found = row(tmp_path)
    expected = np.array([[1.0, 0.5, 0.4], [0.9, 0.6, 0.3]])
    assert np.array_equal(found.matrix("dt", found.columns), expected)
