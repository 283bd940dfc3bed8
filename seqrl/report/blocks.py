"""What a report consists of, before it is HTML or Markdown: texts, tables, pictures, sections.

In texts ``**bold**`` and ```` `code` ```` mean what they do in Markdown, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of short texts."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines to be typed."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; a line break in a cell parts what is printed large from what is printed small."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kinds: str = ""
    """A letter a column: ``t`` text, ``n`` number, ``w`` text that may wrap; the last goes on."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """Cells (row, column) to print bold."""
    entrants: int | None = None
    """The column that names entrants, which gets their colours."""
    one_line: bool = False
    """Whether the small print stands beside the large where there is room."""

    def kind(self, column: int) -> str:
        """The letter of a column."""
        kinds = self.kinds or "tn"
        return kinds[min(column, len(kinds) - 1)]


@dataclass(frozen=True)
class Picture:
    """A picture, drawn when it is written."""

    name: str
    """Of its file, without suffix."""
    title: str
    alt: str
    """What is to be seen, for readers who do not see it."""
    draw: Callable[[], Any]
    """Returns a matplotlib figure."""


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side where there is room."""

    items: Sequence[Picture]


@dataclass(frozen=True)
class Folded:
    """Blocks that open on a click."""

    summary: str
    blocks: Sequence[Block]


Block = Text | Bullets | Code | Table | Pictures | Folded


@dataclass(frozen=True)
class Section:
    """A part with a title that the table of contents lists."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    lead: Sequence[Block]
    """Before the first section."""
    sections: Sequence[Section]
    colours: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Entrant to its colour, and whether its lines are broken."""

    def pictures(self) -> list[Picture]:
        """Every picture, in order."""

        def inside(blocks: Sequence[Block]) -> list[Picture]:
            out: list[Picture] = []
            for b in blocks:
                if isinstance(b, Pictures):
                    out += b.items
                elif isinstance(b, Folded):
                    out += inside(b.blocks)
            return out

        return inside([*self.lead, *(b for s in self.sections for b in s.blocks)])
