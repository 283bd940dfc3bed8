"""``seqrl report``: tables, intervals and pictures of benchmark results and training runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl.cli import output
from seqrl.cli.flags import Flag, FlagSet, Parsed, Positional
from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.report.compare import Comparison
    from seqrl.report.content import Report

_FORMATS = "html,md,csv,png"


def _flags() -> FlagSet:
    return FlagSet(
        "report",
        [
            Flag("out", str, "Folder to write to (default: report in the first DIR).",
                 metavar="DIR"),
            Flag("title", str, "Title of the page.", metavar="TEXT"),
            Flag("baseline", str, "Entrant that the others are compared with (default: the "
                 "first of the suite).", metavar="ENTRANT"),
            Flag("by", str, "What names rows and entrants: row, suite, data, env; entrant, agent, "
                 "preset, or settings such as agent_config.context.", metavar="KEY,…", many=True,
                 commas=True),
            Flag("compare", str, "Differences of two folders, B - A, instead of a report.",
                 metavar="A B", many=True),
            Flag("format", str, "Files to write.", _FORMATS, metavar=_FORMATS.replace(",", "|"),
                 many=True, commas=True),
            Flag("quiet", bool, "Show results only.", short="q", group="output"),
            Flag("json", bool, "One JSON object on standard output.", group="output"),
        ],
        [Positional("DIR", "results of seqrl bench, runs, or folders of them", required=False,
                    many=True)],
    )  # fmt: skip


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl report --help``."""
    return output.help_text(
        _flags(),
        "What benchmark results and training runs say: one HTML page with everything in it, the "
        "same as Markdown, tables as CSV, pictures as PNG. Folders are searched for results of "
        "seqrl bench and for runs of seqrl train; every score comes with its seeds and interval. "
        "Pictures need matplotlib; --format md,csv does not.",
        examples=[
            "seqrl report runs/bench/tmaze",
            "seqrl report runs/bench/tmaze runs/bench/memory --out site",
            "seqrl report runs/hopper --by agent,env --format md,csv",
            "seqrl report runs/bench/locomotion --baseline bc-10%",
            "seqrl report --compare runs/before runs/after",
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Write a report and print its summary."""
    parsed = _flags().parse(argv)
    folders, pair = parsed.get("dir") or [], parsed.get("compare")
    formats = list(dict.fromkeys(parsed.get("format") or _FORMATS.split(",")))
    _check(folders, pair, formats, parsed)
    if pair is not None:
        return _compare(pair, formats, parsed)
    return _report(folders, formats, parsed)


def _check(
    folders: Sequence[str], pair: Sequence[str] | None, formats: Sequence[str], parsed: Parsed
) -> None:
    if unknown := [f for f in formats if f not in _FORMATS.split(",")]:
        raise SeqrlError(f"no format '{unknown[0]}'", hint=f"formats: {_FORMATS}")
    if pair is None:
        if not folders:
            raise SeqrlError(
                "'seqrl report' needs a folder of results",
                hint="seqrl report DIR, or seqrl report --compare A B",
            )
        return
    if len(pair) != 2 or folders:
        raise SeqrlError("--compare takes two folders, A and B, and no other", hint="--compare A B")
    if "baseline" in parsed:
        raise SeqrlError("--baseline is not for --compare", hint="A is what B is compared with")


# --- a report ----------------------------------------------------------------------------------


def _report(folders: Sequence[str], formats: Sequence[str], parsed: Parsed) -> int:
    from seqrl.report import content, sections, tables, write

    report = content.build(
        folders,
        title=parsed.get("title"),
        baseline=parsed.get("baseline"),
        by=parsed.get("by") or (),
    )
    for warning in report.found.warnings:
        output.log(f"warning: {warning}")
    if not parsed.get("quiet"):
        for note in report.notes:
            output.log(f"note: {note}")
    found = tables.tables(report)
    out = Path(parsed.get("out") or Path(folders[0]) / "report")
    files = write.write(sections.page(report), found, out, formats)
    if parsed.get("json"):
        output.print_json(_facts(report, found, files))
        return 0
    heads, rows = sections.glance_table(report)
    if rows:
        narrow = [[_short(c) for c in r[:2]] + r[2:] for r in rows]
        output.out(output.table([h.upper() for h in heads], narrow))
        _say(sections.glance_note(report.lines))
    for row in report.speed_rows:
        points = sum(len(r.values) > 0 for c in row.cells for r in c.results)
        _say(f"{report.row_name(row.info.key)}: {points} points of speed, see the report")
    if report.found.failed:
        names = [f"{c.row} · {c.entrant} · seed {c.seed}" for c in report.found.failed]
        count = "1 cell" if len(names) == 1 else f"{len(names)} cells"
        _say(f"{count} failed: {_some(names)}")
    if report.found.unfinished:
        _say(f"{len(report.found.unfinished)} not finished")
    _where(files, out)
    return 0


def _short(name: str, most: int = 28) -> str:
    """A long name without its middle, so that the table fits a terminal."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _say(text: str) -> None:
    """A sentence of the results, on as many lines as it takes."""
    import textwrap

    output.out("\n".join(textwrap.wrap(text, output.width(), break_on_hyphens=False)))


def _facts(report: Report, found: dict[str, Any], files: Sequence[Path]) -> dict[str, Any]:
    """What ``--json`` prints: the aggregate tables, and what could not be used."""
    return {
        "title": report.title,
        "glance": found.get("glance", []),
        "scores": found.get("scores", []),
        "aggregate": found.get("aggregate", []),
        "speed": found.get("speed", []),
        "failed": found.get("failed", []),
        "unfinished": report.found.unfinished,
        "warnings": [*report.found.warnings, *report.notes],
        "files": [str(f) for f in files],
    }


def _where(files: Sequence[Path], out: Path) -> None:
    """Where the files are: the pages by name, the others by folder."""
    from seqrl.cli.reporting import shown

    pages = [shown(f) for f in files if f.parent == out]
    folders = [shown(f) + "/" for f in dict.fromkeys(f.parent for f in files) if f != out]
    output.out(f"written: {'  '.join([*pages, *folders])}")


# --- a comparison ------------------------------------------------------------------------------


def _compare(pair: Sequence[str], formats: Sequence[str], parsed: Parsed) -> int:
    from seqrl.report import compare, write

    found = compare.compare(pair[0], pair[1], by=parsed.get("by") or ())
    for warning in (*found.a.found.warnings, *found.b.found.warnings):
        output.log(f"warning: {warning}")
    rows = compare.change_table(found)
    out = Path(parsed.get("out") or Path(pair[1]) / "compare")
    page = compare.page(found, parsed.get("title"))
    files = write.write(page, {"changes": rows}, out, formats, "compare")
    if parsed.get("json"):
        only = {"only_a": found.only_a, "only_b": found.only_b}
        output.print_json({"changes": rows, **only, "files": [str(f) for f in files]})
        return 0
    output.out(_changes(found))
    for name, missing in (("A", found.only_a), ("B", found.only_b)):
        if missing:
            _say(f"only in {name}: {_some(missing)}")
    _where(files, out)
    return 0


def _changes(found: Comparison) -> str:
    from seqrl.report import compare

    heads = ["ROW", "ENTRANT", "COLUMN", "TARGET", "A", "B", "B - A [95% CI]", "OVER", "VERDICT"]
    table = output.table(heads, compare.change_rows(found.changes))
    return f"{table}\n{compare.counts(found.changes)}"
