"""Put the tables of committed results into the documentation.

    python benchmarks/update_tables.py [--check]

A table between ``<!-- table: COMMAND -->`` and ``<!-- end of table -->`` is what the command (a
script of this folder with its arguments) prints. ``--check`` changes nothing and fails where one
differs.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with every marked table made anew."""

    def made(match: re.Match[str]) -> str:
        words = [sys.executable, *shlex.split(match[2])]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{match[2]}\n{done.stderr[-2000:]}")
        return f"{match[1]}\n{done.stdout.strip()}\n\n{match[3]}"

    return TABLE.sub(made, text)


def main() -> None:
    """Fill in all pages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where a table is out of date")
    args = parser.parse_args()
    stale = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale.append(str(page.relative_to(ROOT)))
            if not args.check:
                page.write_text(new, encoding="utf-8")
    if args.check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; python benchmarks/update_tables.py")
    print("\n".join(stale) or "all tables are up to date")


if __name__ == "__main__":
    main()
