"""The Python examples of docs/environments.md run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "environments.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int) -> None:
    exec(compile(EXAMPLES[number], f"{DOCS.name}, example {number}", "exec"), {})


def test_every_environment_has_its_section() -> None:
    from seqrl.envs import ENVIRONMENTS

    sections = re.findall(r"^## (.*)$", DOCS.read_text("utf-8"), re.MULTILINE)
    for row in ENVIRONMENTS:
        assert any(f"`{row.id}`" in section for section in sections), row.id
