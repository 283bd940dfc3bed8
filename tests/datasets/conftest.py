"""Every test here has its own seqrl home and its own Minari store, and touches no network."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SEQRL_HOME and MINARI_DATASETS_PATH inside the test's folder; returns the folder."""
    monkeypatch.setenv("SEQRL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path
