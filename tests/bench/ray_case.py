"""The comparison of launchers, apart so that it can be read without the rest."""

from __future__ import annotations

import json
from pathlib import Path

from seqrl.cli.main import main
from tests.bench.conftest import lasting, tiny


def compare(folder: Path) -> None:
    """Run the tiny suite with workers of this machine and on a local Ray; compare the records."""
    file = folder / "suite.json"
    broken = {"agent": "lstm", "agent_config": {"width": 0}}
    file.write_text(json.dumps(tiny(entrants={"broken": broken, "bc": None})))
    words = ["bench", str(file), "--rows", "maze", "--quiet", "--out"]
    assert main([*words, str(folder / "local"), "--jobs", "2"]) == 1  # one cell is broken
    assert main([*words, str(folder / "ray"), "--launcher", "ray"]) == 1
    for name in ("lstm_s0", "random_s0", "broken_s0"):
        one, two = (folder / p / "cells" / "maze" / f"{name}.json" for p in ("local", "ray"))
        assert lasting(one) == lasting(two)
