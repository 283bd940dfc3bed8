"""One report of everything, written once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from seqrl.report import content, sections, tables, write
from seqrl.report.blocks import Page
from seqrl.report.content import Report
from tests.report.results import everything


class Written(NamedTuple):
    """A report, its page and where its files are."""

    report: Report
    page: Page
    folder: Path


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results with everything in it; tests must not change it."""
    return everything(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The report of that folder in every format."""
    pytest.importorskip("matplotlib")
    report = content.build([results], title="Everything & more")
    page = sections.page(report)
    folder = tmp_path_factory.mktemp("report")
    write.write(page, tables.tables(report), folder)
    return Written(report, page, folder)
