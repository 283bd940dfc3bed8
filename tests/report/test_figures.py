"""Pictures: one look an entrant wherever it is drawn, nothing hidden, nothing pretended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrl.report import content, drawings, figures
from seqrl.report.palette import COLOURS, looks
from seqrl.report.statistics import over_seeds
from tests.report.results import everything, memory_row

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> content.Report:
    return content.build([everything(tmp_path_factory.mktemp("figures"))])


def colours(figure: Any) -> dict[str, set[str]]:
    """Names of lines and their colours."""
    from matplotlib.colors import to_hex

    found: dict[str, set[str]] = {}
    for axes in figure.axes:
        for line in axes.get_lines():
            name = str(line.get_label())
            if not name.startswith("_") and name not in ("chance", "as asked"):
                found.setdefault(name, set()).add(to_hex(line.get_color()).upper())
    return found


def test_an_entrant_has_one_colour_in_every_picture(report: content.Report) -> None:
    from seqrl.report import sections

    seen: dict[str, set[str]] = {}
    for picture in sections.page(report).pictures():
        for name, found in colours(picture.draw()).items():
            seen.setdefault(name, set()).update(found)
    assert seen.keys() >= {"lstm", "dt", "rate", "dc", "bc", "dpt", "ad", "ucb"}
    for name, found in seen.items():
        assert found == {report.looks[name].colour.upper()}, name


def test_looks_tell_entrants_apart() -> None:
    names = [f"agent {i}" for i in range(21)]
    found = looks([*names, "oracle", "random"], {"oracle", "random"})
    assert len(set(found.values())) == 23
    assert len({found[n].marker for n in names[:14]}) == 14, "for readers without colour vision"
    assert [found[n].colour for n in names[:7]] == list(COLOURS)
    assert all(found[n].line == "-" for n in names[:7])
    assert found[names[7]].line == "--", "a second time round the line is another one"
    assert found["oracle"].colour not in COLOURS


def test_legends_lie_below_the_lines(report: content.Report) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    row = next(r for r in report.rows if r.info.key.row == "tmaze-90")
    figure = figures.length_figure(row, report.looks, row.entrants, row.primary)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    box, axes = legend.get_window_extent(), figure.axes[0].get_window_extent()
    assert box.y1 <= axes.y0
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1 + 1


def test_one_seed_is_hollow_and_has_no_bar(tmp_path: Path) -> None:
    memory_row(tmp_path, {"lstm": [[1.0, 0.6, 0.5], [0.8, 0.9, 0.5]], "dt": [[1.0, 0.5, 0.4]]})
    found = content.build([tmp_path])
    axes = figures.length_figure(
        found.rows[0], found.looks, ["lstm", "dt"], found.rows[0].primary
    ).axes[0]
    hollow = [x for x in axes.get_lines() if x.get_markerfacecolor() == "white"]
    assert [h.get_color() for h in hollow] == [found.looks["dt"].colour]
    bars = [c for c in axes.collections if len(c.get_segments())]
    assert len(bars) == 3, "one for each length of the entrant with two seeds"


def test_many_entrants_are_shared_out_over_panels() -> None:
    names = [f"agent {i}" for i in range(17)]
    found = drawings.panels(names)
    assert [len(n) for _, _, n in found] == [6, 6, 5]
    assert [e for _, _, some in found for e in some] == names
    assert found[1][:2] == ("-2", " (2 of 3)")


def test_heat_maps_print_every_number_in_a_readable_colour() -> None:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    values: list[list[float | None]] = [[0.0, 0.25, 0.5], [0.75, 1.0, None]]
    axes = figures.heat_figure(["a", "b"], ["1", "2", "3"], values, "success", "x").axes[0]
    found = [(t.get_text(), t.get_color()) for t in axes.texts]
    assert [t for t, _ in found] == ["0.00", "0.25", "0.50", "0.75", "1.00", "-"]
    for (_, ink), v in zip(found, [v for r in values for v in r], strict=True):
        if v is not None:
            ground = np.dot(colormaps["cividis"](v)[:3], [0.2126, 0.7152, 0.0722])
            assert abs(np.dot(to_rgb(ink), [0.2126, 0.7152, 0.0722]) - ground) > 0.35


def test_long_names_below_a_heat_map_are_slanted_and_whole() -> None:
    long = ["repeat-previous-medium", "repeat-first-medium", "autoencode-medium", "tmaze-90"]
    for heads, angle in ((long, 35), (["30", "90", "9600", "1"], 0)):
        axes = figures.heat_figure(["a"], heads, [[0.0, 0.5, 1.0, None]], "return", "").axes[0]
        shown = axes.get_xticklabels()
        assert [t.get_text() for t in shown] == heads
        assert {t.get_rotation() for t in shown} == {angle}


def test_logarithmic_axes_have_numbers_whatever_the_range() -> None:
    look = looks(["a"])
    for ys in ([0.25, 0.24], [1e-4, 1e-4], [0.3, 900.0], [1.0, 3e6]):
        points = {"a": list(zip([5.0, 20.0], ys, strict=True))}
        axes = figures.speed_figure(points, look, "steps", "ms").axes[0]
        low, high = axes.get_ylim()
        shown = [t for t in axes.get_yticks() if low <= t <= high]
        assert len(shown) >= 2, ys
        assert low < min(ys)
        assert max(ys) < high


def test_curves_of_different_lengths_meet_where_they_can() -> None:
    curves = {"a": [([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), ([1.0, 2.0], [3.0, 4.0])]}
    (line,) = figures.band_figure(curves, looks(["a"]), "x", "y").axes[0].get_lines()
    assert line.get_xydata().tolist() == [[1, 2], [2, 3]]


def test_estimates_are_sorted_and_mark_the_middle() -> None:
    found = {"a": over_seeds([0.2, 0.3]), "b": over_seeds([0.9])}
    axes = figures.estimates_figure(found, looks(["a", "b"]), "P", 0.5, True).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_xlim() == (-0.03, 1.03)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.5, 0.49], "At 90 none does better than guessing."),
        ([0.5, 0.51], "At 90 the best is dt with 0.51."),
    ],
)
def test_no_winner_is_named_where_all_guess(
    tmp_path: Path, scores: list[float], words: str
) -> None:
    memory_row(tmp_path, {"dt": [[1.0, scores[1]]], "lstm": [[1.0, scores[0]]]})
    found = content.build([tmp_path])
    lines = drawings.score_pictures(found, found.rows[0])[0]
    assert lines.alt.endswith(words)
