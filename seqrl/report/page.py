"""A report as one HTML file that needs nothing else: no network, no script, pictures inside.

Light and dark follow the reader's system. Tables scroll inside their own frame, so that a page on a
phone never scrolls sideways.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

from seqrl.report.blocks import Block, Bullets, Code, Folded, Page, Picture, Pictures, Table, Text

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c1c1e;--soft:#5b5f66;--line:#d8dbe0;--card:#f5f6f8;
--link:#0060a0}
@media(prefers-color-scheme:dark){:root{--bg:#16181c;--fg:#e8e8ea;--soft:#a3a8b0;--line:#363a42;
--card:#1f2228;--link:#7cc0f5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1480px;padding:12px 18px 60px;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.25;margin:.6em 0 .4em}
h2{font-size:1.25rem;line-height:1.3;margin:2.2em 0 .6em;padding-top:.5em;
border-top:1px solid var(--line)}
a{color:var(--link)}
p,ul{max-width:80ch}
nav{background:var(--card);border-radius:8px;padding:10px 14px;margin:0 0 1em}
nav ul{list-style:none;margin:0;padding:0;max-width:none;display:flex;flex-wrap:wrap;gap:2px 18px}
nav a{display:inline-block;padding:2px 0}
.table{width:fit-content;max-width:100%;margin:.8em 0 1.2em}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px}
table{border-collapse:separate;border-spacing:0;font-size:.92rem;font-variant-numeric:tabular-nums;min-width:100%;
overflow-wrap:normal}
th,td{padding:5px 9px;text-align:left;vertical-align:top;white-space:nowrap;
border-bottom:1px solid var(--line)}
tbody tr:last-child td,tbody tr:last-child th{border-bottom:0}
thead th{background:var(--card);font-weight:600;vertical-align:bottom;white-space:normal}
th.n,td.n{text-align:right}
td.w{white-space:normal;min-width:22ch;max-width:70ch;overflow-wrap:anywhere}
tbody th{font-weight:500;background:var(--bg)}
thead th:first-child,tbody th{position:sticky;left:0}
td small,th small{display:block;font-weight:400;color:var(--soft);font-size:.76rem;line-height:1.25}
table.one small{display:inline;margin-left:.45em}
.caption{color:var(--soft);font-size:.86rem;margin:.4em 0 0;width:0;
min-width:max(100%,min(44ch,88vw))}
.beside{display:flex;flex-wrap:wrap;gap:0 20px;align-items:flex-start}
.beside>.figures{flex:1 1 min(100%,440px)}
.dot{display:inline-block;width:.75em;height:.75em;margin-right:.5em;border-radius:50%;
background:var(--c);box-shadow:0 0 0 1px var(--soft)}
.dot.b{background:repeating-linear-gradient(90deg,var(--c) 0 3px,transparent 3px 5px)}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:16px;
margin:1em 0;align-items:start}
figure{margin:0;background:#fff;border:1px solid var(--line);border-radius:8px;padding:10px;
max-width:600px}
figure img{display:block;width:100%;height:auto}
figcaption{color:#333;font-size:.9rem;font-weight:600;margin-bottom:4px}
details{margin:.8em 0}
summary{cursor:pointer;padding:4px 0}
pre{background:var(--card);border-radius:8px;padding:10px 14px;overflow-x:auto;font-size:.88rem;
white-space:pre-wrap}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media(max-width:600px){table.one small{display:block;margin:0}body{padding:8px 10px 40px}
h1{font-size:1.4rem}h2{font-size:1.12rem}
th,td{padding:5px 6px}tbody th{white-space:normal;min-width:10.6em;overflow-wrap:break-word}
.dot{margin-right:.3em}
table{font-size:.86rem}figure{padding:6px}td.w{min-width:60vw}}
@media print{nav{display:none}figure{break-inside:avoid}}
"""


def render(page: Page, pictures: Mapping[str, str]) -> str:
    """The HTML of a page.

    Args:
        page: what it says.
        pictures: name of each picture to its SVG; the others are left out.
    """
    body = [f"<h1>{escape(page.title)}</h1>"]
    body += [_block(b, page, pictures) for b in page.lead]
    links = (f'<li><a href="#{_id(s.id)}">{escape(s.title)}</a></li>' for s in page.sections)
    contents = f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>'
    body.append(contents)
    for s in page.sections:
        parts = _blocks(s.blocks, page, pictures)
        body.append(f'<section id="{_id(s.id)}">\n<h2>{escape(s.title)}</h2>\n{parts}\n</section>')
    head = (
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        # An icon of its own keeps browsers from asking a server for one.
        f'<link rel="icon" href="data:,">\n<title>{escape(page.title)}</title>\n'
        f"<style>{_STYLE}</style>"
    )
    text = "\n".join(body)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
        f"<body>\n{text}\n</body>\n</html>\n"
    )


def _id(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z_-]+", "-", text)


def _blocks(blocks: Sequence[Block], page: Page, pictures: Mapping[str, str]) -> str:
    """Blocks in order; pictures stand beside the table before them where there is room."""
    parts: list[str] = []
    for i, block in enumerate(blocks):
        shown = _block(block, page, pictures)
        if isinstance(block, Pictures) and i and isinstance(blocks[i - 1], Table) and shown:
            shown = f'<div class="beside">\n{parts.pop()}\n{shown}\n</div>'
        parts.append(shown)
    return "\n".join(parts)


def _block(block: Block, page: Page, pictures: Mapping[str, str]) -> str:
    if isinstance(block, Text):
        return f"<p>{inline(block.text)}</p>"
    if isinstance(block, Bullets):
        items = "".join(f"<li>{inline(i)}</li>" for i in block.items)
        return f"<ul>{items}</ul>"
    if isinstance(block, Code):
        return f"<pre><code>{escape(block.text)}</code></pre>"
    if isinstance(block, Table):
        return _table(block, page)
    if isinstance(block, Pictures):
        shown = [_picture(p, pictures[p.name]) for p in block.items if p.name in pictures]
        return f'<div class="figures">{"".join(shown)}</div>' if shown else ""
    if isinstance(block, Folded):
        inner = _blocks(block.blocks, page, pictures)
        return f"<details><summary>{inline(block.summary)}</summary>\n{inner}\n</details>"
    raise TypeError(type(block))


def inline(text: str) -> str:
    """A text with its bold and code parts; everything else is shown as it is.

    >>> inline("**a** < `b`")
    '<strong>a</strong> &lt; <code>b</code>'
    """
    safe = escape(text)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)


def _table(table: Table, page: Page) -> str:
    head = "".join(
        f'<th scope="col" class="{table.kind(j)}">{_stacked(h)}</th>'
        for j, h in enumerate(table.head)
    )
    rows = "\n".join(f"<tr>{_row(table, i, page)}</tr>" for i in range(len(table.rows)))
    caption = f'<p class="caption">{inline(table.caption)}</p>' if table.caption else ""
    label = escape(re.sub(r"[*`]", "", table.caption)[:120] or "table", quote=True)
    one = ' class="one"' if table.one_line else ""
    return (
        # Focusable, so that the keyboard can scroll it.
        '<div class="table"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{label}">\n<table{one}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n{caption}</div>"
    )


def _row(table: Table, i: int, page: Page) -> str:
    cells = []
    for j, text in enumerate(table.rows[i]):
        shown = _stacked(text, (i, j) in table.bold)
        if j == table.entrants:
            shown = _dot(text, page) + shown
        tag = 'th scope="row"' if j == 0 else "td"
        cells.append(f'<{tag} class="{table.kind(j)}">{shown}</{tag.split()[0]}>')
    return "".join(cells)


def _stacked(text: str, bold: bool = False) -> str:
    """The first line of a cell large, the second small."""
    main, _, small = text.partition("\n")
    shown = f"<strong>{inline(main)}</strong>" if bold else inline(main)
    return f"{shown}<small>{inline(small)}</small>" if small else shown


def _dot(entrant: str, page: Page) -> str:
    """The colour that an entrant has in every picture."""
    if entrant not in page.colours:
        return ""
    colour, broken = page.colours[entrant]
    kind = "dot b" if broken else "dot"
    return f'<span class="{kind}" style="--c:{colour}" aria-hidden="true"></span>'


def _picture(picture: Picture, svg: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    alt = escape(picture.alt, quote=True)
    source = f"data:image/svg+xml;base64,{data}"
    return (
        f"<figure><figcaption>{escape(picture.title)}</figcaption>"
        f'<img alt="{alt}" src="{source}"></figure>'
    )
