"""Tables of the documentation are what the committed results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_tables_are_made_from_the_committed_results() -> None:
    script = ROOT / "benchmarks" / "update_tables.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "<!-- table:" in (ROOT / "docs" / "results.md").read_text("utf-8")
