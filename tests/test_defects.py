"""The table of defects in released code names tests that exist; and one of those tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "defects.md"
TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """Cells of every row but heads and rules."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return [c for c in cells if not c[0].startswith(("---", "defect"))]


def test_every_defect_has_a_test_or_a_reason() -> None:
    assert len(rows()) > 30
    for row in rows():
        assert len(row) == 3, row
        assert TEST_ID.search(row[2]) or row[2].startswith(("does not apply: ", "not guarded: "))


@pytest.mark.parametrize("path", sorted({p for p, _ in TEST_ID.findall(PAGE.read_text("utf-8"))}))
def test_every_named_test_exists(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    there = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    named = {name for p, name in TEST_ID.findall(PAGE.read_text("utf-8")) if p == path}
    assert named <= there, named - there
    assert all(name.startswith("test_") for name in named), "pytest would not run it"


def test_the_pages_of_the_agents_lead_here() -> None:
    for name in ("dpt", "q_transformer"):
        assert "(../defects.md" in (ROOT / "docs" / "agents" / f"{name}.md").read_text("utf-8")


def stops(tree: ast.AST) -> list[int]:
    """Lines that call or import a debugger."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = ["pdb"] if node.func.id == "breakpoint" else []
        else:
            names = []
        if any(n.split(".")[0] in ("pdb", "ipdb", "pudb") for n in names):
            found.append(node.lineno)
    return sorted(found)


def test_no_debugger_stop_is_left_behind() -> None:
    assert stops(ast.parse("import os, ipdb\nbreakpoint()\nfrom pdb import set_trace")) == [1, 2, 3]
    folders = ("seqrl", "benchmarks", "examples")
    files = [f for folder in folders for f in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    for file in files:
        assert not stops(ast.parse(file.read_text("utf-8"))), file
