"""Training and resuming from the command line."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.cli.conftest import QUICK_EVAL, TINY, Cli, spawn
from tests.cli.schema import RUN, TRAIN, check

FAST = [*TINY, "--no-evaluate", "--loggers", "jsonl", "-q"]


def config_of(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())["config"]


def weights_of(run: Path) -> bytes:
    return (run / "checkpoints/last/weights.safetensors").read_bytes()


def test_a_run_explains_itself(run_dir: Path) -> None:
    record = json.loads((run_dir / "run.json").read_text())
    assert record["status"] == "done"
    assert record["command"][:1] == ["seqrl"]
    assert record["data"][0]["fingerprint"]
    check(record["summary"], RUN)
    names = {p.name for p in run_dir.iterdir()}
    assert names >= {"run.json", "config.json", "metrics.jsonl", "metrics.csv", "tb", "eval",
                     "checkpoints", "log.txt"}  # fmt: skip
    assert {p.name for p in (run_dir / "eval").iterdir()} >= {"step_0000020.json", "final.json"}


def test_what_is_printed(cli: Cli, run_dir: Path) -> None:
    done = cli("train", "dt", *TINY, *QUICK_EVAL, "--steps", "20", "--out", "mine")
    assert done.code == 0
    log, result = done.err.splitlines(), done.out.splitlines()
    assert log[0].startswith("dt on tmaze-smoke · 4k params · cpu (")
    assert log[0].endswith("· seed 0 · mine")
    assert log[1].endswith("hold-out 3 ep")
    assert log[2].startswith(
        "  eval seqrl/TMaze-v0 (limit=9), targets [p50, p90, max], 4 ep every 20"
    )
    assert "config context=10 width=16" in done.err
    assert result[0].startswith("done  20 steps in ")
    assert "final eval 8 ep at target max: success " in done.out
    assert result[-1] == "next:  seqrl eval mine   |   seqrl play mine --video play.mp4"
    assert all(len(line) <= 100 for line in log + result)


def test_json_is_one_object_that_fits_its_schema(cli: Cli) -> None:
    done = cli("train", "dt", *TINY, *QUICK_EVAL, "--steps", "5", "--out", "mine", "--json", "-q")
    assert done.code == 0
    report = json.loads(done.out)
    check(report, TRAIN)
    assert report["runs"][0]["run"] == "mine"
    assert done.err == ""


@pytest.mark.parametrize("words", [["a", "b"], ["a", "--data", "b"]])
def test_both_forms_of_data_add_up(cli: Cli, words: list[str]) -> None:
    uris = {n: f"oracle:seqrl/TMaze-v0?limit=9&episodes={n * 4}" for n in (1, 2)}
    words = [uris[1 if w == "a" else 2] if w in "ab" else w for w in words]
    done = cli("train", "dt", *FAST, "--data", *words, "--steps", "1", "--out", "mine")
    assert done.code == 0, done.err
    # TINY names tmaze-smoke itself, so three sources are joined into one task.
    assert config_of(Path("mine"))["data"] == ["tmaze-smoke", *uris.values()]


def test_sources_of_different_tasks_are_refused_by_a_one_task_agent(cli: Cli) -> None:
    done = cli("train", "dt", *TINY, "--data", "random:CartPole-v1?episodes=3")
    assert done.code == 2
    assert "agent 'dt' takes one task, the data hold 2: actions are Discrete(4) and " in done.err


def test_precedence_class_preset_file_flag(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps({"agent_config": {"width": 24, "context": 8}, "train": {"steps": 9}})
    )
    words = ["--preset", "dt/tmaze-30", "--config", str(file), "--context", "7", "--json"]
    config = json.loads(cli("config", "show", "dt", *words).out)
    assert config["agent_config"]["context"] == 7  # flag
    assert config["agent_config"]["width"] == 24  # file
    assert config["agent_config"]["n_layer"] == 2  # preset
    assert config["agent_config"]["activation"] == "relu"  # class
    assert config["train"]["steps"] == 9
    assert config["train"]["optim"]["grad_clip"] == 0.25


def test_without_data_the_built_in_set_and_its_preset(cli: Cli) -> None:
    config = json.loads(cli("config", "show", "dt", "--json").out)
    assert (config["data"], config["preset"]) == (["tmaze-30"], "dt/tmaze-30")
    assert config["agent_config"]["positions"] == "none"
    named = json.loads(cli("config", "show", "dt", "--data", "tmaze-30", "--json").out)
    assert named == config
    bare = json.loads(cli("config", "show", "dt", "--preset", "none", "--json").out)
    assert bare["preset"] is None
    assert bare["agent_config"]["positions"] == "timestep"
    agentless = json.loads(cli("config", "show", "--preset", "dt/tmaze-30", "--json").out)
    assert agentless["agent"] == "dt"


def test_dry_run_trains_nothing(cli: Cli, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    done = cli("train", "dt", *TINY, "--dry-run")
    assert done.code == 0
    assert "4k params" in done.out
    assert "tmaze-smoke   64 episodes" in done.out
    facts = json.loads(cli("train", "dt", *TINY, "--dry-run", "--json").out)
    check(facts, {"config": {"train": dict}, "parameters": int, "data": [{"episodes": int}]})
    assert set(tmp_path.iterdir()) == before


def test_several_seeds(cli: Cli) -> None:
    done = cli("train", "dt", *FAST, "--steps", "3", "--seeds", "0,2", "--out", "many")
    assert done.code == 0
    assert [config_of(Path(f"many/s{s}"))["train"]["seed"] for s in (0, 2)] == [0, 2]
    assert done.out.splitlines()[-1] == "runs:  many/s0 many/s2"
    report = cli("train", "dt", *FAST, "--steps", "3", "--seeds", "0-1", "--out", "more", "--json")
    assert [r["seed"] for r in json.loads(report.out)["runs"]] == [0, 1]
    assert weights_of(Path("many/s0")) == weights_of(Path("more/s0"))


def test_default_folder_and_relative_files(cli: Cli, tmp_path: Path) -> None:
    assert cli("data", "convert", "tmaze-smoke", "npz:mine.npz").code == 0
    words = [*FAST[2:], "--data", "npz:mine.npz", "--steps", "2"]
    done = cli("train", "dt", *words)
    assert done.code == 0, done.err
    (run,) = Path("runs").glob("*/dt/*_s0")
    assert config_of(run)["data"] == [f"npz:{tmp_path}/mine.npz"]


def test_no_environment_is_said_and_validation_decides(cli: Cli) -> None:
    import numpy as np

    from seqrl.datasets import Trajectories

    rng = np.random.default_rng(0)
    ends = np.arange(60) % 6 == 5
    data = Trajectories.from_arrays(
        rng.normal(size=(60, 3)), rng.uniform(-1, 1, (60, 2)), rng.normal(size=60), ends
    )
    data.to_npz("own.npz")
    words = ["--data", "npz:own.npz", "--steps", "6", "--eval-every", "2", "--out", "mine"]
    done = cli("train", "bc", "--agent.width", "8", *words)
    assert done.code == 0, done.err
    assert (
        "note: the data name no environment: no evaluation, the validation loss decides" in done.err
    )
    assert "validation loss" in done.out
    assert "best step" in done.out
    assert not Path("mine/eval/final.json").exists()


def test_warm_start_names_what_does_not_fit(cli: Cli, run_dir: Path) -> None:
    words = [*FAST[:-1], "--steps", "1", "--init-from", str(run_dir)]
    done = cli("train", "dt", *words, "--out", "same")
    assert "23 of 23 tensors" in done.err
    wider = cli("train", "dt", *words, "--agent.width", "24", "--out", "wider")
    assert "not taken over: head.out.weight (4, 16), here (4, 24)" in wider.err


def test_resume_extends_and_equals_the_uninterrupted_run(cli: Cli) -> None:
    assert cli("train", "dt", *FAST, "--steps", "20", "--out", "whole").code == 0
    assert cli("train", "dt", *FAST, "--steps", "8", "--out", "parts").code == 0
    assert "the run is complete at step 8" in cli("resume", "parts").out
    done = cli("resume", "parts/checkpoints", "--steps", "20")
    assert done.code == 0, done.err
    assert "resuming at step 8 (done " in done.err
    assert "note: steps 8 → 20; schedule constant" in done.err
    assert weights_of(Path("parts")) == weights_of(Path("whole"))
    assert config_of(Path("parts"))["train"]["steps"] == 20


def test_a_refused_resume_leaves_the_run_as_it_was(cli: Cli) -> None:
    assert cli("train", "dt", *FAST, "--steps", "8", "--out", "run").code == 0
    before = Path("run/config.json").read_bytes()
    refused = cli("resume", "run", "--steps", "4")
    assert refused.code == 2
    assert "the run is at step 8, past the 4 asked for" in refused.err
    assert Path("run/config.json").read_bytes() == before
    assert cli("resume", "run").code == 0


def test_resume_with_allowed_changes(cli: Cli) -> None:
    assert cli("train", "dt", *FAST, "--steps", "4", "--out", "run").code == 0
    done = cli("resume", "run", "--steps", "6", "--lr", "1e-5", "--allow-change")
    assert done.code == 0, done.err
    assert "note: changed: optim.lr 1e-4 → 1e-5" in done.err
    assert config_of(Path("run"))["train"]["optim"]["lr"] == 1e-5


def test_resume_refuses_other_data(cli: Cli) -> None:
    assert cli("data", "convert", "tmaze-smoke", "npz:mine.npz").code == 0
    words = [*FAST[2:], "--data", "npz:mine.npz", "--steps", "2", "--out", "run"]
    assert cli("train", "dt", *words).code == 0
    Path("mine.npz").unlink()
    assert cli("data", "convert", "tmaze-smoke", "npz:mine.npz", "--data-episodes", "50").code == 0
    done = cli("resume", "run", "--steps", "4")
    assert done.code == 2
    assert "error: the data are not those the run began with: npz:" in done.err
    assert "--allow-change" in done.err


def test_resume_repeats_an_interrupted_final_evaluation(
    cli: Cli, run_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, symlinks=True)
    final = copy / "eval/final.json"
    before = json.loads(final.read_text())
    final.unlink()
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    assert cli("resume", str(copy), "-q").code == 0
    after = json.loads(final.read_text())
    assert (after["episodes"], after["summary"]) == (before["episodes"], before["summary"])
    assert json.loads((copy / "run.json").read_text())["status"] == "done"


def test_ctrl_c_leaves_a_resumable_run(cli: Cli, tmp_path: Path) -> None:
    words = ["train", "dt", *TINY, "--no-evaluate", "--loggers", "jsonl", "--log-every", "5",
             "--steps", "1e6", "--out", "run"]  # fmt: skip
    process = spawn(words)
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "error: interrupted at step " in err
    assert "checkpoint saved" in err
    assert "hint: seqrl resume " in err
    assert out == ""
    assert not any(ord(c) < 32 and c != "\n" for c in err), "control characters off a terminal"
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "interrupted"
    done = cli("resume", "run", "--steps", str(record["step"] + 3), "-q")
    assert done.code == 0, done.err


def test_two_processes_train_one_run(tmp_path: Path) -> None:
    """``torchrun -m seqrl train``: one folder, one report, everybody leaves with 0."""
    pytest.importorskip("torch")
    import os
    import subprocess
    import sys

    from tests.cli.conftest import ROOT

    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["train", "dt", *FAST, "--steps", "3", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "seqrl", *words],
        env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done  3 steps") == 1
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "done"


test_two_processes_train_one_run = pytest.mark.slow(test_two_processes_train_one_run)


def test_what_comes_next_works_for_an_agent_of_the_users_own(cli: Cli) -> None:
    done = cli(
        "train", "examples.causal_conv:CausalConv", "--data", "tmaze-smoke", "--steps", "2",
        "--agent.context", "9", "--eval-every", "2", "--eval-episodes", "2", "--out", "own",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "next:  seqrl eval own --trust" in done.out
    assert cli("eval", "own", "--trust", "--episodes", "2").code == 0
