"""The examples of the documentation run."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqrl.cli.main import COMMANDS
from tests.cli.conftest import ROOT, Cli
from tests.cli.console import blocks, pages


def _run(cli: Cli, page: Path, slow: bool) -> None:
    for block in blocks(page):
        if block.slow and not slow:
            continue
        for i, (program, *words) in enumerate(block.commands):
            assert program == "seqrl", f"{page.name}:{block.line} runs {program}"
            expected = block.exit_code if i == len(block.commands) - 1 else 0
            done = cli(*words)
            where = f"{page.name}:{block.line}: seqrl {' '.join(words)}"
            assert done.code == expected, f"{where}\n{done.err}"


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda p: p.name)
def test_examples_run(cli: Cli, page: Path) -> None:
    _run(cli, page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in pages(ROOT) if any(b.slow for b in blocks(p))], ids=lambda p: p.name
)
def test_slow_examples_run(cli: Cli, page: Path) -> None:
    _run(cli, page, slow=True)


def test_blocks_are_found_with_their_options(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n<!-- run -->\n```console\n$ seqrl list agents   # all\nNAME\n$ seqrl info\n```\n"
        "<!-- run: slow exit 2 -->\n```console\n$ seqrl eval 'a b'\n```\n"
        "```console\n$ seqrl never\n```\n"
    )
    first, second = blocks(page)
    assert first.commands == (("seqrl", "list", "agents"), ("seqrl", "info"))
    assert (first.slow, first.exit_code, first.line) == (False, 0, 2)
    assert (second.commands, second.slow, second.exit_code) == (
        (("seqrl", "eval", "a b"),),
        True,
        2,
    )


def test_the_reference_names_every_command() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"`seqrl {command.name}" in text, command.name
