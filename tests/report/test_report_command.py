"""``seqrl report`` at the terminal: what it prints and writes, and its answers to mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from seqrl.cli.main import main
from tests.report.results import memory_row, run_folder, walker_row


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Result:
        capsys.readouterr()
        code = main(["report", *words])
        done = capsys.readouterr()
        assert "Traceback" not in done.err
        return Result(code, done.out, done.err)

    return run


def test_a_report_prints_a_line_for_each_entrant_and_row(cli: Cli) -> None:
    memory_row(Path("out"), {"lstm": [[1.0, 1.0]] * 3, "dt": [[1.0, 0.5]]})
    done = cli("out", "--format", "md,csv")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split("  ")[0] == "ENTRANT"
    assert "SUCCESS MEAN [95% CI]" in lines[0]
    assert lines[1].split() == [
        "lstm",
        "tmaze-90",
        "3",
        "1.00",
        "[1.00,",
        "1.00]",
        "1.00",
        "-",
        "2",
    ]
    assert lines[2].split() == ["dt", "tmaze-90", "1", "0.75", "(1", "seed)", "0.75", "-", "2"]
    assert lines[-1] == "written: out/report/report.md  out/report/tables/"
    assert Path("out/report/tables/results.csv").is_file()
    assert not Path("out/report/report.html").exists()
    assert all(len(line) <= 100 for line in lines)
    again = cli("out", "--format", "md,csv")
    assert again == done, "a report inside its folder is not read as results"


def test_rows_of_different_scores_name_them(cli: Cli) -> None:
    memory_row(Path("out"), {"lstm": [[1.0]] * 2})
    walker_row(Path("out"), "hopper-medium", {"dt": [50.0, 60.0]})
    done = cli("out", "--format", "md", "--out", "site", "--title", "Mine")
    assert "IQM/MEAN [95% CI]" in done.out
    assert "normalized" in done.out
    assert Path("site/report.md").read_text().startswith("# Mine\n")


def test_everything_is_written_by_default(cli: Cli) -> None:
    pytest.importorskip("matplotlib")
    memory_row(Path("out"), {"lstm": [[1.0, 1.0]], "dt": [[1.0, 0.5]]})
    done = cli("out")
    assert "out/report/report.html" in done.out
    assert Path("out/report/report.html").stat().st_size > 10_000
    assert list(Path("out/report/figures").glob("*.png"))


def test_json_holds_the_aggregate_tables(cli: Cli) -> None:
    walker_row(Path("out"), "hopper-medium", {"bc": [1.0, 2.0], "dt": [50.0, 60.0]})
    run_folder(Path("out/runs/dt"))
    done = cli("out", "--json", "--format", "csv", "--baseline", "bc")
    facts = json.loads(done.out)
    assert {"title", "glance", "scores", "aggregate", "speed", "failed", "unfinished", "warnings",
            "files"} == facts.keys()  # fmt: skip
    (dt,) = [a for a in facts["aggregate"] if a["entrant"] == "dt" and a["suite"] == "locomotion"]
    assert (dt["iqm"], dt["baseline"], dt["improvement"]) == (55, "bc", 1)
    assert all(Path(f).is_file() for f in facts["files"])


def test_by_groups_runs(cli: Cli) -> None:
    run_folder(Path("runs/a"), 0, context=9)
    run_folder(Path("runs/b"), 1, context=90)
    done = cli("runs", "--by", "agent,env", "--format", "md")
    assert "seqrl/TMaze-v0  2" in done.out
    done = cli("runs", "--by", "agent", "agent_config.context", "--format", "md")
    assert "dt · context 90" in done.out


def test_damage_is_a_warning_and_failures_are_counted(cli: Cli) -> None:
    memory_row(Path("out"), {"lstm": [[1.0]]})
    memory_row(Path("out"), {"dt": [[1.0]]}, status="failed", error="broke")
    Path("out/cells/tmaze-90/torn_s0.json").write_text("{")
    done = cli("out", "--format", "md")
    assert done.code == 0
    assert "warning: " in done.err
    assert "torn_s0.json is damaged" in done.err
    assert "1 cell failed: tmaze-90 · dt · seed 0" in done.out
    assert "broke" in Path("out/report/report.md").read_text()


def test_compare_prints_differences(cli: Cli) -> None:
    walker_row(Path("a"), "hopper-medium", {"dt": [1.0, 2.0, 3.0], "bc": [1.0]})
    walker_row(Path("b"), "hopper-medium", {"dt": [2.0, 3.0, 4.0]})
    done = cli("--compare", "a", "b", "--format", "md,csv")
    assert done.code == 0
    lines = done.out.splitlines()
    assert "+1.0 [1.0, 1.0]  3 paired seeds  better" in lines[1]
    assert "4 better" in lines
    assert "only in A: hopper-medium · bc · last at target 1800" in done.out
    assert lines[-1] == "written: b/compare/compare.md  b/compare/tables/"
    facts = json.loads(cli("--compare", "a", "b", "--json", "--format", "csv", "--out", "c").out)
    assert [c["verdict"] for c in facts["changes"]] == ["better"] * 4
    assert Path("c/tables/changes.csv").is_file()


MISTAKES = [
    ([], "needs a folder of results", "--compare A B"),
    (["nowhere"], "nowhere does not exist", "seqrl report DIR"),
    (["empty"], "no results in empty", "seqrl bench SUITE --out DIR"),
    (["out", "--format", "pdf"], "no format 'pdf'", "html,md,csv,png"),
    (["out", "--baseline", "lstn"], "no entrant 'lstn' for --baseline", "did you mean 'lstm'?"),
    (["out", "--by", "agnt"], "--by: no result has 'agnt'", "did you mean 'agent'"),
    (["--compare", "out"], "--compare takes two folders", "--compare A B"),
    (["out", "--compare", "out", "empty"], "--compare takes two folders", "--compare A B"),
    (["--compare", "out", "empty"], "no results in empty", "seqrl bench"),
    (["--compare", "out", "out", "--baseline", "x"], "--baseline is not for --compare", "A is"),
    (["out", "--formats", "md"], "has no option '--formats'", "did you mean --format"),
]


@pytest.mark.parametrize(("words", "message", "hint"), MISTAKES, ids=lambda v: str(v)[:40])
def test_mistake(cli: Cli, words: list[str], message: str, hint: str) -> None:
    memory_row(Path("out"), {"lstm": [[1.0]]})
    Path("empty").mkdir()
    done = cli(*words)
    assert done.code == 2
    assert message in done.err
    assert f"hint: {hint}" in done.err or hint in done.err
    assert not Path("out/report").exists()


def test_without_matplotlib_texts_and_tables_are_written(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_row(Path("out"), {"lstm": [[1.0, 1.0]]})
    for name in [m for m in sys.modules if m.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = cli("out")
    assert done.code == 2
    assert 'hint: pip install "seqrl[plot]"' in done.err
    assert not Path("out/report").exists()
    assert cli("out", "--format", "md,csv").code == 0


@pytest.mark.parametrize("words", [["--help"], ["out", "--format", "md,csv"]], ids=" ".join)
def test_neither_torch_nor_matplotlib_is_loaded_without_need(
    tmp_path: Path, words: list[str]
) -> None:
    memory_row(tmp_path / "out", {"lstm": [[1.0, 1.0]]})
    code = (
        "import sys\nfrom seqrl.cli.main import main\n"
        "assert main(['report', *sys.argv[1:]]) == 0\n"
        "loaded = {'torch', 'matplotlib'} & set(sys.modules)\nassert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
