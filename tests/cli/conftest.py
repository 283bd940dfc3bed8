"""Running the command line inside the test process, and one small trained run to look at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from seqrl.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

AGENT = ["--agent.width", "16", "--agent.n-layer", "1", "--agent.positions", "none"]
TINY = ["--data", "tmaze-smoke", "--context", "10", *AGENT]
"""A Decision Transformer that trains in a second."""
QUICK_EVAL = ["--eval.episodes", "8", "--eval-episodes", "4", "--eval-every", "20"]


class Result(NamedTuple):
    """What a command printed and returned."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def _places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every test in an empty folder, with a home and a Minari store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQRL_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``seqrl WORDS`` in this process."""

    def run(*words: str) -> Result:
        capsys.readouterr()
        code = main(words)
        done = capsys.readouterr()
        assert "Traceback" not in done.err
        return Result(code, done.out, done.err)

    return run


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 60 updates; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    out = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SEQRL_HOME", str(folder / "home"))
        words = ["train", "dt", *TINY, *QUICK_EVAL, "--steps", "60", "--lr", "3e-3"]
        assert main([*words, "--targets", "0,1", "--out", str(out), "-q"]) == 0
    return out


def spawn(words: list[str], **options: object) -> subprocess.Popen[str]:
    """``python -m seqrl WORDS`` as a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "seqrl", *words],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )
