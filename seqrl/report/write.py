"""Writing a report: the page, the text, the tables, the pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from seqrl.errors import SeqrlError
from seqrl.report import page as html
from seqrl.report import text as markdown
from seqrl.report.blocks import Page
from seqrl.report.tables import Rows, csv_text
from seqrl.runfolder import write_text
from seqrl.trials import figure_class

FORMATS = ("html", "md", "csv", "png")
DPI = 150


def write(
    page: Page,
    tables: Mapping[str, Rows],
    out: str | Path,
    formats: Collection[str] = FORMATS,
    name: str = "report",
) -> list[Path]:
    """Write a page in some formats.

    Pictures that the report written there before shows, and this one has not, are removed; where
    no pictures are asked for, none are.

    Args:
        page: what it says.
        tables: by name, for CSV.
        out: folder; made if it is not there.
        formats: of ``html`` (one file, pictures inside), ``md``, ``csv`` (``tables/``) and ``png``
            (``figures/``).
        name: of the files.

    Returns:
        The files, the page first.

    Raises:
        SeqrlError: an unknown format, matplotlib is missing where pictures are asked for, or a
            file cannot be written.
    """
    if unknown := [f for f in formats if f not in FORMATS]:
        raise SeqrlError(f"no format '{unknown[0]}'", hint=f"formats: {', '.join(FORMATS)}")
    folder = Path(out)
    drawn = {}
    if {"html", "png"} & set(formats):
        figure_class()  # says what to install, before anything is written
        drawn = draw(page, svg="html" in formats, png="png" in formats)
    files: list[Path] = []
    stale: set[str] = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if "html" in formats:
            pictures = {k: v["svg"].decode() for k, v in drawn.items()}
            files.append(write_text(folder / f"{name}.html", html.render(page, pictures)))
        if "md" in formats:
            places = {k: f"figures/{k}.png" for k, v in drawn.items() if "png" in v}
            stale = _shown(folder / f"{name}.md") - set(places.values()) if places else set()
            files.append(write_text(folder / f"{name}.md", markdown.render(page, places)))
        if "csv" in formats:
            (folder / "tables").mkdir(exist_ok=True)
            for table, rows in tables.items():
                files.append(write_text(folder / "tables" / f"{table}.csv", csv_text(rows)))
        if "png" in formats and drawn:
            (folder / "figures").mkdir(exist_ok=True)
            for k, v in drawn.items():
                file = folder / "figures" / f"{k}.png"
                file.write_bytes(v["png"])
                files.append(file)
        for picture in stale:
            (folder / picture).unlink(missing_ok=True)
    except OSError as e:
        raise SeqrlError(
            f"the report cannot be written to {folder}: {e.strerror or e}", hint="--out DIR"
        ) from e
    return files


def _shown(report: Path) -> set[str]:
    """Pictures that a report of ours shows; none where there is no report."""
    if not report.is_file():
        return set()
    text = report.read_text(encoding="utf-8", errors="replace")
    return set(re.findall(r"\]\((figures/[\w.%+-]+\.png)\)", text))


def draw(page: Page, svg: bool, png: bool) -> dict[str, dict[str, bytes]]:
    """Every picture of a page: name to its bytes by format, each drawn once."""
    import matplotlib

    looks: dict[str, Any] = {
        "font.size": 10,
        "axes.labelsize": 10,
        "axes.edgecolor": "#666666",
        "svg.hashsalt": "seqrl",  # the same report is the same bytes
        "svg.fonttype": "path",
        "path.simplify": True,
    }
    out: dict[str, dict[str, bytes]] = {}
    with matplotlib.rc_context(looks):  # type: ignore[arg-type]
        for picture in page.pictures():
            figure = picture.draw()
            kept: dict[str, bytes] = {}
            if svg:
                kept["svg"] = _svg(figure)
            if png:
                buffer = io.BytesIO()
                figure.suptitle(picture.title, fontsize=10)
                figure.savefig(buffer, format="png", dpi=DPI)
                kept["png"] = buffer.getvalue()
            out[picture.name] = kept
    return out


def _svg(figure: Any) -> bytes:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # Without the declarations that only a file of its own needs, and their addresses.
    text = re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.DOTALL)
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL).encode()
