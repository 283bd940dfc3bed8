"""Help, lists and info come at once: no torch, little time, at most 100 columns, plain text."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from seqrl.cli.main import COMMANDS
from tests.cli.conftest import ROOT, Cli, spawn

LIGHT = [
    ["--help"],
    ["--version"],
    *([c.name, "--help"] for c in COMMANDS),
    *(["data", action, "--help"] for action in ("inspect", "convert", "collect", "split")),
    ["train", "dt", "--help"],
    ["list"],
    *(["list", what] for what in ("agents", "envs", "datasets", "presets", "runs")),
    ["info"],
    ["info", "--json"],
    ["data", "inspect", "tmaze-smoke"],
    ["trian"],
]

CHECK = """
import sys
from seqrl.cli.main import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was imported"
raise SystemExit(code)
"""


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_light_commands_import_no_torch(words: list[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *words], capture_output=True, text=True, env=env, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "torch was imported" not in done.stderr
    assert done.returncode == (2 if words == ["trian"] else 0), done.stderr
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert seconds < 1.5, f"{seconds:.2f} s of processor time"
    text = done.stdout + done.stderr
    assert not any(ord(c) < 32 and c != "\n" for c in text), "control characters off a terminal"
    if words[0] != "info":  # it prints whole paths
        wide = [line for line in text.splitlines() if len(line) > 100]
        assert not wide, wide


def test_help_ends_with_examples(cli: Cli) -> None:
    for command in COMMANDS:
        text = cli(command.name, "--help").out
        assert "examples:\n  seqrl " in text, command.name
    assert cli("--help").out == cli().out == cli("help").out


def test_train_help_lists_every_setting_once(cli: Cli) -> None:
    text = cli("train", "dt", "--help").out
    for flag in (
        "--steps",
        "--lr",
        "--optim.warmup-steps",
        "--agent.n-layer",
        "--context",
        "--best",
    ):
        assert text.count(f"  {flag} ") == 1, flag
    assert "--eval.targets" not in text
    assert "Time steps K of a training window" in text


def test_lists_show_what_is_registered(cli: Cli) -> None:
    from seqrl import presets
    from seqrl.agents import registry
    from seqrl.datasets.catalog import CATALOGUE
    from seqrl.envs import ENVIRONMENTS

    expected = {
        "agents": registry.names(),
        "envs": [e.id for e in ENVIRONMENTS],
        "datasets": list(CATALOGUE),
        "presets": presets.names(),
    }
    for what, names in expected.items():
        text, rows = cli("list", what).out, json.loads(cli("list", what, "--json").out)[what]
        shown = [row.get("name", row.get("id")) for row in rows]
        assert [n for n in names if n in shown] == names
        assert all(n in text for n in names)


def test_list_runs(cli: Cli, run_dir: Path) -> None:
    assert cli("list", "runs").out.strip() == "no runs under runs"
    rows = json.loads(cli("list", "runs", str(run_dir.parent), "--json").out)["runs"]
    assert [(r["run"], r["agent"], r["status"], r["step"]) for r in rows] == [
        (str(run_dir), "dt", "done", 60)
    ]
    assert "success" in cli("list", "runs", str(run_dir.parent)).out


def test_info_names_versions_and_places(cli: Cli, tmp_path: Path) -> None:
    facts = json.loads(cli("info", "--json").out)
    assert facts["packages"]["torch"]
    assert facts["paths"]["MINARI_DATASETS_PATH"] == str(tmp_path / "minari")
    assert facts["machine"]["cores"] >= 1
    assert set(facts["extras"]) >= {"mujoco", "plot", "video", "wandb"}


def test_a_closed_pipe_is_no_error() -> None:
    process = spawn(["list", "presets"])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(20) == 0
    assert process.stderr.read() == ""
    process.stderr.close()
