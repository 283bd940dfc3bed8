"""The Python examples of docs/datasets.md run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"{DOCS.name}, example {number}", "exec"), {})


def test_every_scheme_and_option_is_described() -> None:
    import dataclasses

    from seqrl.datasets.catalog import SCHEMES, LoadOptions

    text = DOCS.read_text("utf-8")
    for scheme in SCHEMES:
        assert f"`{scheme}:" in text
    for option in dataclasses.fields(LoadOptions):
        assert f"`{option.name}" in text or f"--{option.name.replace('_', '-')}" in text
