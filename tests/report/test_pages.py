"""The page, the text and the tables: whole, self-contained, and saying what they must."""

from __future__ import annotations

import base64
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from seqrl.errors import SeqrlError
from seqrl.report import content, published, sections, tables, text, write
from seqrl.report import page as html
from seqrl.report.blocks import Page, Section, Table, Text
from tests.report.conftest import Written
from tests.report.results import line, memory_row, record, spread, walker_row

VOID = {"meta", "link", "img", "br"}


class Document(HTMLParser):
    """Tags, what they load, and whether they close."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data") and v]
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pictures(source: str) -> list[str]:
    return [
        base64.b64decode(b).decode()
        for b in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", source)
    ]


def page_of(written: Written) -> str:
    return (written.folder / "report.html").read_text(encoding="utf-8")


# --- the page ----------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_anywhere(written: Written) -> None:
    source = page_of(written)
    document = Document(source)
    assert all(v.startswith(("data:", "#")) for v in document.loads)
    assert "script" not in {tag for tag, _ in document.tags}
    styles = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]
    for svg in pictures(source):
        assert not re.search(r"(?:href|src)=\"(?!#|data:)", svg)
        assert not re.search(r"url\((?!#)", svg)


def test_every_picture_is_there_and_says_what_it_shows(written: Written) -> None:
    source = page_of(written)
    images = [attrs for tag, attrs in Document(source).tags if tag == "img"]
    assert len(images) == len(written.page.pictures()) == len(pictures(source))
    assert all(len(str(i["alt"])) > 30 for i in images)
    names = [p.name for p in written.page.pictures()]
    assert len(set(names)) == len(names)
    for wanted in ("score-tmaze", "heat-tmaze", "heat-locomotion", "score-locomotion", "iqm-",
                   "improvement-", "loss-", "targets-", "regret-", "trials-", "latency-",
                   "throughput-", "state-"):  # fmt: skip
        assert any(n.startswith(wanted) for n in names), wanted
    assert {p.stem for p in (written.folder / "figures").glob("*.png")} == set(names)


def test_contents_lead_to_every_section(written: Written) -> None:
    document = Document(page_of(written))
    targets = [v[1:] for v in document.loads if v.startswith("#")]
    assert targets == document.ids
    assert len(set(targets)) == len(targets)
    titles = [s.title for s in written.page.sections]
    order = ["At a glance", "What was run", "tmaze", "Which rows", "Over all rows",
             "Learning curves", "Return asked", "Learning within", "Speed", "Published",
             "Settings", "Provenance"]  # fmt: skip
    found = [next(i for i, t in enumerate(titles) if t.startswith(w)) for w in order]
    assert found == sorted(found)


def test_what_results_say_is_no_markup(written: Written) -> None:
    source = page_of(written)
    assert "loss is NaN at step 12 &lt;b&gt;&amp;" in source
    assert "<h1>Everything &amp; more</h1>" in source
    strange = Page(
        "<x>", [Text("**a**<b> `c<d>`")], [Section("a b", "t", [Table(["<h>"], [["<c>\n<s>"]])])]
    )
    document = html.render(strange, {})
    Document(document)
    assert "<strong>a</strong>&lt;b&gt; <code>c&lt;d&gt;</code>" in document
    assert "&lt;c&gt;<small>&lt;s&gt;</small>" in document


def test_entrants_have_one_colour_in_every_table(written: Written) -> None:
    shown: dict[str, set[str]] = {}
    for colour, name in re.findall(
        r'--c:(#\w+)"[^>]*></span>(?:<strong>)?([^<]+)', page_of(written)
    ):
        shown.setdefault(name, set()).add(colour)
    assert shown.keys() >= {"lstm", "dt", "rate", "dc", "bc", "dpt", "ucb"}
    for name, colours in shown.items():
        assert colours == {written.report.looks[name].colour}


def test_failed_and_unfinished_cells_are_listed(written: Written) -> None:
    source = page_of(written)
    assert "1 cell failed" in source
    assert "Not finished: tmaze-90/dc_s7" in source
    assert "torn_s0.json is damaged" in source


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    memory_row(tmp_path / "in", {"dt": [[1.0, 0.5], [1.0, 0.7]]}, curve=[])
    written = []
    for name in ("a", "b"):
        report = content.build([tmp_path / "in"])
        (file,) = write.write(sections.page(report), {}, tmp_path / name, ["html"])
        written.append(file.read_text())
    assert written[0] == written[1]


# --- what is said ------------------------------------------------------------------------------


def text_of(folder: Path, **options: str) -> str:
    return text.render(sections.page(content.build([folder], **options)), {})  # type: ignore[arg-type]


def test_headline_cells_hold_mean_interval_seeds_and_solved(tmp_path: Path) -> None:
    memory_row(tmp_path, {"dt": [[1.0, 0.5], [1.0, 1.0], [1.0, 0.6]], "dc": [[0.7]]})
    found = text_of(tmp_path)
    assert "| dt | 3 | 1.00 (3/3) [1.00, 1.00] | 0.70 (1/3) [0.50, 1.00] |" in found
    assert "| dc | 1 | 0.70 (0/1) (1 seed) | - |" in found
    assert "n = 20 episodes a seed" in found
    assert "guessing scores 0.5" in found
    assert "±" not in found.partition("## Published")[0]


def test_best_of_targets_has_columns_of_its_own(tmp_path: Path) -> None:
    walker_row(tmp_path, "hopper-medium", {"dt": [10.0, 10.0, 10.0]})
    found = text_of(tmp_path)
    head = next(line for line in found.splitlines() if "best of targets |" in line)
    assert head == (
        "| entrant | last at 1800 | last at 3600 | last, best of targets | best at 1800 | "
        "best at 3600 | best, best of targets |"
    )
    assert "| dt | 12.0 [12.0, 12.0] | 10.0 [10.0, 10.0] | 12.0 [12.0, 12.0] at 1800 |" in found
    assert "chosen afterwards" in found


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    for entrant, width in (("dt", 64), ("dc", 128)):
        settings = {"agent_config": {"width": width, "n_layer": 2, f"{entrant}_only": 1}}
        record(tmp_path, "r", entrant, 0, [line_of(0.5)], settings=settings)
    found = text_of(tmp_path)
    assert "width=64 |" in found
    assert "width=128 |" in found
    assert "n_layer=" not in found
    assert "_only" not in found
    assert "| dt | dt | - | 12k | 1 000 | 120 | 8.3 | 0.5 | width=64 |" in found


def line_of(value: float) -> dict[str, object]:
    from tests.report.results import line

    return line("success", value)


def test_provenance_has_commands_versions_and_dates(written: Written) -> None:
    found = (written.folder / "report.md").read_text(encoding="utf-8")
    part = found.partition("## Provenance")[2]
    assert "seqrl bench tmaze --rows tmaze-90 --agents" in part
    assert "seqrl bench mine.json" in part
    assert "| revision | 0123456789ab |" in part
    assert "| processor | a processor, 2 cores, 1 thread used |" in part
    assert "2026-01-01T10:00:00+00:00 and 2026-01-01T10:05:00+00:00" in part


def test_the_command_of_a_suite_is_checked_against_its_cells(tmp_path: Path) -> None:
    from seqrl.bench import suite as suites
    from seqrl.bench.cells import Choice, plan_cells

    choice = Choice(agents=("bc", "lstm"), rows=("tmaze",), seeds=(0, 1), steps=7)
    plans = [c.plan for c in plan_cells(suites.load("smoke"), choice, tmp_path)]
    for plan in plans:
        record(tmp_path, plan["row"], plan["entrant"], plan["seed"], [line_of(1.0)],
               suite="smoke", plan=plan)  # fmt: skip
    found = text_of(tmp_path)
    assert "seqrl bench smoke --rows tmaze --agents bc lstm --seeds 0-1 --steps 7" in found
    assert "Checked: the suite as it is now plans these cells" in found
    record(tmp_path, "tmaze", "bc", 0, [line_of(1.0)], suite="smoke",
           plan={**plans[0], "key": "another"})  # fmt: skip
    assert "plans 1 of 4 cells differently, among them tmaze · bc · seed 0" in text_of(tmp_path)


def test_missing_points_of_speed_have_their_reason(written: Written) -> None:
    found = (written.folder / "report.md").read_text(encoding="utf-8")
    assert "- dt, batch 1, at 200 steps: over 240 s to walk there" in found
    assert "| dt | 5.50 | 10.5 | - |" in found


# --- Markdown and CSV --------------------------------------------------------------------------


def test_markdown_tables_are_whole_and_pictures_are_files(written: Written) -> None:
    found = (written.folder / "report.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", found, re.MULTILINE)
    assert len(blocks) > 10
    for block in blocks:
        lines = block.strip().splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines[0]
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", found)
    assert len(shown) == len(written.page.pictures())
    assert all((written.folder / s).is_file() for s in shown)
    assert "<" not in re.sub(r"<b>|`[^`]*`", "", found)


def test_csv_has_plain_numbers(written: Written) -> None:
    found = {
        p.stem: list(csv.DictReader(io.StringIO(p.read_text())))
        for p in (written.folder / "tables").glob("*.csv")
    }
    assert found.keys() == {"results", "scores", "glance", "aggregate", "speed", "curves",
                            "settings", "published", "failed"}  # fmt: skip
    (dt,) = [
        r for r in found["scores"]
        if (r["row"], r["entrant"], r["length"]) == ("tmaze-90", "dt", "90.0")
    ]  # fmt: skip
    assert float(dt["mean"]) == pytest.approx(0.6)
    assert (dt["seeds"], dt["episodes"], dt["solved"], dt["chance"]) == ("3", "20", "0.0", "0.5")
    assert dt["interval"] == "bootstrap over 3 seeds"
    best = {r["entrant"]: r["best_over_targets"] for r in found["scores"]
            if r["row"] == "hopper-medium" and r["measure"] == "last"}  # fmt: skip
    assert float(best["dt"]) == pytest.approx(57)
    assert {r["seed"] for r in found["results"] if r["entrant"] == "rate"} == {"0", "1", "2"}
    assert [r["reason"] for r in found["speed"] if r["entrant"] == "dt"][-1].startswith("over 240")
    assert found["failed"][0]["error"] == "loss is NaN at step 12 <b>&"
    assert {r["baseline"] for r in found["aggregate"] if r["suite"] == "locomotion"} == {"bc"}


# --- writing -----------------------------------------------------------------------------------


def test_only_what_was_asked_for_is_written(tmp_path: Path) -> None:
    memory_row(tmp_path / "in", {"dt": [[1.0, 0.5]]})
    report = content.build([tmp_path / "in"])
    files = write.write(sections.page(report), tables.tables(report), tmp_path / "out", ["md"])
    assert [f.name for f in files] == ["report.md"]
    assert "![" not in files[0].read_text()
    with pytest.raises(SeqrlError, match="no format 'pdf'"):
        write.write(sections.page(report), {}, tmp_path / "out", ["pdf"])
    (tmp_path / "file").write_text("")
    with pytest.raises(SeqrlError, match="cannot be written") as e:
        write.write(sections.page(report), {}, tmp_path / "file" / "out", ["md"])
    assert e.value.hint == "--out DIR"


def test_pictures_that_a_new_report_has_not_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def report() -> set[str]:
        made = content.build([tmp_path / "in"])
        write.write(sections.page(made), tables.tables(made), out, ["md", "png"])
        assert {str(out / shown) for shown in write._shown(out / "report.md")} <= {
            str(f) for f in (out / "figures").iterdir()
        }
        return {f.name for f in (out / "figures").iterdir()}

    for row in ("hopper-medium", "walker2d-medium"):
        walker_row(tmp_path / "in", row, {"dt": [60.0, 70.0], "bc": [50.0, 40.0]})
    both = report()
    (out / "figures" / "mine.png").write_bytes(b"")
    for cell in (tmp_path / "in" / "cells" / "walker2d-medium").iterdir():
        cell.unlink()
    one = report()
    assert "mine.png" in one, "only what a report of ours showed"
    assert one - {"mine.png"} < both
    assert not [f for f in one if "walker2d-medium" in f]
    made = content.build([tmp_path / "in"])
    write.write(sections.page(made), {}, out, ["md"])
    assert {f.name for f in (out / "figures").iterdir()} == one


# --- the shipped suites ------------------------------------------------------------------------


def fabricated(suite: str, out: Path) -> None:
    """Records of every cell of a shipped suite, with scores that mean nothing."""
    from seqrl.bench import suite as suites
    from seqrl.bench.cells import Choice, plan_cells
    from tests.report.results import line

    known = suites.load(suite)
    for cell in plan_cells(known, Choice(), out):
        plan, score = cell.plan, cell.row.score
        lines = []
        for k, m in enumerate(plan["measures"]):
            place = {"label": m["label"], "group": m.get("group", ""), "x": m.get("x")}
            value = 0.1 * (plan["seed"] + k + len(plan["entrant"])) % 1
            if plan["kind"] == "speed":
                group = f"batch {m['batch']}"
                lines.append(
                    {**place, "group": group, "batch": m["batch"], "latency_ms": value + 1}
                )
                continue
            found = {**line(score, value), **place, "regret": {"mean": value, "ci": None}}
            found["checkpoint"] = m["options"].get("checkpoint") if plan["settings"] else None
            lines += [found | {"label": f"given {n}", "x": n, "group": "given"}
                      for n in m["options"].get("context_sizes", ())] or [found]  # fmt: skip
        record(out, plan["row"], plan["entrant"], plan["seed"], lines, suite=suite,
               kind=plan["kind"], plan=plan)  # fmt: skip


def test_every_shipped_suite_can_be_reported(tmp_path: Path) -> None:
    from seqrl.bench import suite as suites

    for name in suites.names():
        fabricated(name, tmp_path / name)
        report = content.build([tmp_path / name])
        page = sections.page(report)
        Document(html.render(page, {}))
        titles = [s.title for s in page.sections]
        assert not report.found.warnings
        for row in report.trained_rows:
            assert any(t.startswith(row.info.key.row) for t in titles), row.info.key
            assert row.info.title in " ".join(titles)
            assert row.primary
            shown = [e for e in row.entrants if any(row.values(e, c) for c in row.columns)]
            assert shown == row.entrants, f"{row.info.key}: an entrant without a place"
        assert "Checked: the suite as it is now plans these cells" in text.render(page, {})


def test_entrants_that_are_asked_in_different_ways_are_ranked_by_their_own(tmp_path: Path) -> None:
    fabricated("in_context", tmp_path)
    row = next(r for r in content.build([tmp_path]).rows if r.info.key.row == "bandit-50")
    assert row.first["dpt"] == "drawn"
    assert row.first["thompson"] == "online"
    assert row.first["lcb"] == "given"
    assert row.primary == [("first measure", None)]
    assert row.values("lcb", row.primary[0]) == {}, "it was asked at lengths only"
    assert len(row.values("dpt", row.primary[0])) == 3
    assert row.groups == ["drawn", "most likely", "online", "given"]
    assert row.info.axis == "recorded steps given"
    found = text_of(tmp_path)
    assert "entrants are ranked by the first measure of each (dpt drawn; thompson online" in found


def test_the_best_checkpoint_may_be_the_first_measure(tmp_path: Path) -> None:
    fabricated("credit", tmp_path)
    report = content.build([tmp_path])
    row = report.rows[0]
    assert [c.name for c in row.primary] == ["argmax, best"]
    assert [c.name for c in row.last] == ["argmax, last"]
    assert [c.name for c in row.best] == ["argmax, best"]
    (dt,) = [x for x in report.lines if (x.entrant, x.key) == ("dt", row.info.key)]
    values = row.values("dt", row.primary[0]).values()
    assert dt.best == pytest.approx(sum(values) / 3)
    assert dt.last != dt.best
    here = [p.published.entrant for p in published.pairs("credit", report.rows) if p.measured]
    assert set(here) == {"dt", "bc", "bc of successes", "random"}


def test_trials_stand_by_measure_and_target(tmp_path: Path) -> None:
    """Last and largest return of every target, not of the last-listed one alone."""

    def attempts(largest: float, last: float) -> dict[str, object]:
        return {"target_label": "-", "trials": 10, "episodes": 4, "returns": [spread(1.0)] * 4,
                "best": spread(largest), "last": spread(last), "regret": None}  # fmt: skip

    lines = [
        line("return", 5.0, group=group, target=target, trials=attempts(target * k, target * k / 2))
        for group, k in (("greedy", 1.0), ("drawn", 3.0))
        for target in (10.0, 20.0)
    ]
    for seed in range(2):
        record(tmp_path, "pole", "at", seed, lines)
    section = text_of(tmp_path).partition("## Learning within a trial")[2].partition("## ")[0]
    assert "| entrant | measure | target | seeds | trials | episodes | largest return" in section
    assert "regret of a trial" not in section, "nobody measured one"
    found = {tuple(r.split(" | ")[1:3]): r for r in section.splitlines() if r.startswith("| at | ")}
    assert set(found) == {("greedy", "10"), ("greedy", "20"), ("drawn", "10"), ("drawn", "20")}
    assert "| 2 | 10 | 4 | 60.0 [60.0, 60.0] | 30.0 [30.0, 30.0] |" in found["drawn", "20"]


def test_trials_of_one_episode_have_one_return(tmp_path: Path) -> None:
    once = {"target_label": "-", "trials": 10, "episodes": 1, "returns": [spread(7.0)],
            "best": spread(7.0), "last": spread(7.0), "regret": None}  # fmt: skip
    record(tmp_path, "pole", "at", 0, [line("return", 7.0, trials=once)])
    section = text_of(tmp_path).partition("## Learning within a trial")[2]
    assert "| entrant | seeds | trials | episodes | its return |" in section
    assert "by luck alone" not in section
