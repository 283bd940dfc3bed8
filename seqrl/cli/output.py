"""What the commands print: tables, help texts, JSON objects and messages, at most 100 columns wide.

Results go to standard output, everything else to standard error. Nothing here writes a control
character unless the stream is a terminal that wants colour.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from seqrl.cli.flags import Flag, FlagSet, show, type_name
from seqrl.spec import to_plain

MAX_WIDTH = 100


def width() -> int:
    """Columns to use: those of the terminal, at most 100; 100 when there is none."""
    if not sys.stdout.isatty():
        return MAX_WIDTH
    return max(40, min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns))


def out(text: str = "") -> None:
    """A line of results."""
    print(text, file=sys.stdout)


def log(text: str = "") -> None:
    """A line about what is going on."""
    print(text, file=sys.stderr, flush=True)


def error(message: str, hint: str | None = None) -> None:
    """A mistake and its remedy, in the form ``error: ...`` and ``hint: ...``."""
    log(f"{_paint('error:', '31;1', sys.stderr)} {message}")
    if hint:
        log(f"{_paint('hint:', '36', sys.stderr)} {hint}")


def _paint(text: str, code: str, stream: TextIO) -> str:
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\033[{code}m{text}\033[0m"


def print_json(value: Any) -> None:
    """One JSON object on standard output; NaN and infinities become null."""
    out(json.dumps(_finite(to_plain(value)), ensure_ascii=False))


def packed(parts: Sequence[str], separator: str = " · ") -> list[str]:
    """Parts joined into as few lines as fit; a part too long for any line stays whole."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(separator) + len(part) <= MAX_WIDTH:
            lines[-1] += separator + part
        else:
            lines.append(part if not lines else f"  {part}")
    return lines


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if value in ("inf", "-inf") or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns padded to their widest cell; the last one is cut or wrapped to the line's width.

    >>> print(table(["NAME", "STEPS"], [["a", 1], ["bb", 20]]))
    NAME  STEPS
    a     1
    bb    20
    """
    cells = [list(map(str, headers)), *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    indent = sum(w + 2 for w in widths[:-1])
    room = max(20, width() - indent)
    lines = []
    for row in cells:
        head = "".join(c.ljust(w + 2) for c, w in zip(row[:-1], widths, strict=False))
        tail = textwrap.wrap(row[-1], room) or [""]
        lines.append((head + tail[0]).rstrip())
        lines += [" " * indent + more for more in tail[1:]]
    return "\n".join(lines)


def help_text(
    flags: FlagSet,
    purpose: str,
    *,
    usage: str | None = None,
    examples: Sequence[str] = (),
    notes: str = "",
) -> str:
    """A command's help: usage, purpose, what it takes, examples last."""
    wide = width()
    names = " ".join(
        f"{p.name} …" if p.many else p.name if p.required else f"[{p.name}]"
        for p in flags.positionals
    )
    parts = [f"usage: seqrl {usage or f'{flags.command} {names} [options]'.replace('  ', ' ')}"]
    parts.append(textwrap.fill(purpose, wide))
    if flags.positionals:
        parts.append(_section("arguments", [(p.name, p.help) for p in flags.positionals], wide))
    shown = [f for f in flags.flags if not f.hidden]
    for group in dict.fromkeys(f.group for f in shown):
        members = [(_left(f), _right(f)) for f in shown if f.group == group]
        parts.append(_section(group, members, wide))
    if notes:
        parts.append(notes)
    if examples:
        parts.append("examples:\n" + "\n".join(f"  {e}" for e in examples))
    return "\n\n".join(parts)


def _left(flag: Flag) -> str:
    short = f"-{flag.short}, " if flag.short else ""
    if flag.type is bool:
        head, dot, tail = flag.name.rpartition(".")
        return f"{short}--{head}{dot}{'[no-]' if flag.default else ''}{tail}"
    value = flag.metavar or type_name(flag.type).replace(" or none", "|none")
    if "|" not in value.removesuffix("|none"):
        value = value.upper().replace("|NONE", "|none")
    return f"{short}--{flag.name} {value}"


def _right(flag: Flag) -> str:
    if flag.type is bool or flag.default in (None, "", (), [], {}) or "default" in flag.help:
        return flag.help
    return f"{flag.help} [{show(flag.default)}]"


def _section(title: str, rows: Sequence[tuple[str, str]], wide: int) -> str:
    column = min(30, max(len(left) for left, _ in rows) + 4)
    lines = [f"{title}:"]
    for left, right in rows:
        wrapped = textwrap.wrap(right, wide - column) or [""]
        if len(left) + 3 > column:
            lines.append(f"  {left}")
        else:
            lines.append(f"  {left.ljust(column - 2)}{wrapped.pop(0)}".rstrip())
        lines += [" " * column + line for line in wrapped if line]
    return "\n".join(lines)
