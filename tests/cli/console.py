"""Commands out of documentation pages, so that every example is one that runs.

A block that is to be run stands under a marker::

    <!-- run -->
    ```console
    $ seqrl list agents
    ...output, for the reader...
    ```

``<!-- run: slow -->`` leaves it to the slow tests, ``<!-- run: exit 2 -->`` expects that exit code
of its last command. Blocks of one page run in order in one folder. Lines that do not begin with
``$`` are output and are not compared: it holds times and paths.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"<!-- run(?:: ([^>]*?))? -->\n```console\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A marked block of a page."""

    commands: tuple[tuple[str, ...], ...]
    """Each split into words; comments after ``#`` dropped."""
    slow: bool
    exit_code: int
    """Of the last command; the others must end with 0."""
    line: int


def blocks(page: Path) -> list[Block]:
    """The marked blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        options = (match[1] or "").split()
        lines = [line[2:] for line in match[2].splitlines() if line.startswith("$ ")]
        code = int(options[options.index("exit") + 1]) if "exit" in options else 0
        found.append(
            Block(
                tuple(tuple(shlex.split(line, comments=True)) for line in lines),
                "slow" in options,
                code,
                text[: match.start()].count("\n") + 1,
            )
        )
    return found


def pages(root: Path) -> list[Path]:
    """README and everything under docs that has marked blocks."""
    files = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [f for f in files if f.is_file() and _BLOCK.search(f.read_text(encoding="utf-8"))]
