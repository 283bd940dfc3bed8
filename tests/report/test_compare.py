"""Two folders side by side: differences, pairing, verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqrl.errors import SeqrlError
from seqrl.report import compare
from seqrl.report import text as markdown
from tests.report.results import memory_row, speed_row, walker_row


def verdicts(found: compare.Comparison) -> dict[str, str]:
    return {c.name: c.verdict for c in found.changes}


def test_verdicts(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    before = {"dt": [0.2, 0.5, 0.8], "dc": [0.5] * 3, "lstm": [0.9] * 3, "rate": [0.1, 0.5, 0.9]}
    after = {"dt": [0.3, 0.6, 0.9], "dc": [0.5] * 3, "lstm": [0.8] * 3, "rate": [0.3, 0.5, 0.8]}
    memory_row(a, {e: [[v] for v in s] for e, s in before.items()})
    memory_row(b, {e: [[v] for v in s] for e, s in after.items()})
    memory_row(a, {"lram": [[0.1], [0.2]]})
    memory_row(b, {"lram": [[0.9], [0.9]]})
    found = compare.compare(a, b)
    assert verdicts(found) == {
        "dt, 30, target 1": "better",
        "dc, 30, target 1": "equal",
        "lstm, 30, target 1": "worse",
        "rate, 30, target 1": "unclear",
        "lram, 30, target 1": "few seeds",
    }
    (dt,) = [c for c in found.changes if c.entrant == "dt"]
    # Seeds differ by far more than the two folders do: pairing sees through it.
    assert dt.difference.value == pytest.approx(0.1)
    assert dt.difference.low == pytest.approx(0.1)
    assert dt.difference.over == "3 paired seeds"
    assert compare.counts(found.changes) == "1 better, 1 worse, 1 unclear, 1 equal, 1 few seeds"


def test_less_latency_is_better(tmp_path: Path) -> None:
    speed_row(tmp_path / "a", {"dt": 0.02})
    speed_row(tmp_path / "b", {"dt": 0.01})
    found = compare.compare(tmp_path / "a", tmp_path / "b")
    assert {c.verdict for c in found.changes} == {"few seeds"}
    assert all(c.difference.value < 0 for c in found.changes)
    assert compare.verdict(
        found.changes[0].difference._replace(low=-2, high=-1, seeds=3), True
    ) == ("better")


def test_every_target_and_checkpoint_is_compared(tmp_path: Path) -> None:
    walker_row(tmp_path / "a", "hopper-medium", {"dt": [1.0, 2.0, 3.0], "bc": [1.0]})
    walker_row(tmp_path / "b", "hopper-medium", {"dt": [2.0, 3.0, 4.0], "dc": [1.0]})
    found = compare.compare(tmp_path / "a", tmp_path / "b")
    places = [(c.column.name, c.target) for c in found.changes]
    assert places == [("last", "1800"), ("last", "3600"), ("best", "1800"), ("best", "3600")]
    assert {c.verdict for c in found.changes} == {"better"}
    assert found.only_a[0] == "hopper-medium · bc · last at target 1800"
    assert found.only_b[0] == "hopper-medium · dc · last at target 1800"
    text = markdown.render(compare.page(found), {})
    assert "| hopper-medium | dt | last | 1800 | 4.0 | 5.0 | +1.0 [1.0, 1.0] |" in text
    assert "4 better" in text
    assert "Only in A" in text
    (line, *_) = compare.change_table(found)
    assert (line["a"], line["b"], line["difference"], line["verdict"]) == (4, 5, 1, "better")


def test_folders_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    walker_row(tmp_path / "a", "hopper-medium", {"dt": [1.0]})
    memory_row(tmp_path / "b", {"dt": [[1.0]]})
    with pytest.raises(SeqrlError, match="no row and entrant in common"):
        compare.compare(tmp_path / "a", tmp_path / "b")
