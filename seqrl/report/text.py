"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping

from seqrl.report.blocks import Block, Bullets, Code, Folded, Page, Pictures, Table, Text


def render(page: Page, pictures: Mapping[str, str]) -> str:
    """The Markdown of a page.

    Args:
        page: what it says.
        pictures: name of each picture to its file, relative to the text; the others are left out.
    """
    parts = [f"# {page.title}", *(_block(b, pictures) for b in page.lead)]
    for s in page.sections:
        parts += [f"## {s.title}", *(_block(b, pictures) for b in s.blocks)]
    return "\n\n".join(p for p in parts if p) + "\n"


def _block(block: Block, pictures: Mapping[str, str]) -> str:
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Bullets):
        return "\n".join(f"- {i}" for i in block.items)
    if isinstance(block, Code):
        return f"```console\n{block.text}\n```"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Pictures):
        shown = [p for p in block.items if p.name in pictures]
        return "\n\n".join(f"![{_plain(p.alt)}]({pictures[p.name]})" for p in shown)
    if isinstance(block, Folded):
        inner = "\n\n".join(filter(None, (_block(b, pictures) for b in block.blocks)))
        return f"**{block.summary}**\n\n{inner}"
    raise TypeError(type(block))


def _plain(text: str) -> str:
    return re.sub(r"[\[\]]", "", text)


def _table(table: Table) -> str:
    kinds = [table.kind(j) for j in range(len(table.head))]
    lines = [
        _line([_cell(h) for h in table.head]),
        _line(["---:" if k == "n" else "---" for k in kinds]),
    ]
    for i, row in enumerate(table.rows):
        cells = [_cell(c) for c in row]
        lines.append(_line([_bold(c) if (i, j) in table.bold else c for j, c in enumerate(cells)]))
    caption = f"\n\n{table.caption}" if table.caption else ""
    return "\n".join(lines) + caption


def _bold(cell: str) -> str:
    main, space, rest = cell.partition(" ")
    return f"**{main}**{space}{rest}"


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|").strip()


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
