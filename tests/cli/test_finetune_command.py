"""``seqrl finetune`` at the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seqrl.cli.main import main
from tests.cli.conftest import Cli

S4 = [
    "--agent.width",
    "8",
    "--agent.state",
    "8",
    "--agent.n-layer",
    "1",
    "--agent.embed-width",
    "8",
]
QUICK = [
    *("--steps", "8", "--collect-every", "4", "--collect-episodes", "3", "--first-episodes", "4"),
    *("--eval.episodes", "5", "--eval-episodes", "2", "--eval-every", "4", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Decision S4 that has hardly seen the T-Maze; tests must not change it."""
    folder = tmp_path_factory.mktemp("policy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SEQRL_HOME", str(folder / "home"))
        words = ["train", "decision_s4", "--data", "tmaze-smoke", "--steps", "4", *S4]
        words += [
            "--targets",
            "0,1",
            "--eval.episodes",
            "5",
            "--batch-size",
            "8",
            "--device",
            "cpu",
        ]
        assert main([*words, "--out", str(folder / "run"), "-q", "--loggers", "jsonl"]) == 0
    return folder / "run"


def test_a_run_says_what_begins_and_what_came_of_it(cli: Cli, policy: Path) -> None:
    done = cli("finetune", str(policy), *QUICK, "--out", "tuned")
    assert done.code == 0, done.err
    assert "weighted_bc of" in done.err
    assert "decision_s4 at step 4" in done.err
    for part in ("8 updates", "2 rounds, 7 episodes", "seed 0"):
        assert part in done.err
    assert "before  5 ep at target 1: return" in done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("done  8 updates, ")
    assert "environment steps" in lines[0]
    assert lines[1].split("  ")[0] == "TARGET"
    assert lines[1].rstrip().endswith("FINE-TUNED [95% CI]")
    assert [line.split()[0] for line in lines[2:4]] == ["0", "1"]
    assert "success" in lines[2]
    assert lines[4] == "next:  seqrl eval tuned   |   seqrl eval tuned --checkpoint best"
    assert all(len(line) <= 100 for line in lines)
    assert cli("eval", "tuned", "--checkpoint", "best").code == 0
    assert "decision_s4" in cli("list", "runs", ".").out


def test_one_json_object(cli: Cli, policy: Path) -> None:
    done = cli("finetune", str(policy), *QUICK, "--out", "t", "--json", "-q", "--bc.no-offline")
    assert done.code == 0
    assert done.err == ""
    found = json.loads(done.out)
    assert found["method"] == "weighted_bc"
    assert found["steps"] == 8
    assert [s["target_label"] for s in found["before"]] == ["0", "1"]
    assert found["final"][-1]["n"] == 5
    settings = json.loads(Path("t/config.json").read_text())["config"]
    assert settings["finetune"]["bc"]["offline"] is False
    assert settings["finetune"]["collect_episodes"] == 3
    assert settings["train"]["optim"]["warmup_steps"] == 0


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--method", "actor-critic"], "--method takes", "actor_critic"),
        (["--method", "actor_critic"], "needs continuous actions", "--method weighted_bc"),
        (["--bc.temperture", "1"], "no option '--bc.temperture'", "--bc.temperature"),
        (["--noise", "lots"], "noise 'lots' is not understood", "--noise 0:0.2,100%:0.05"),
        (["--resume"], "is no fine-tuning run", "seqrl resume"),
        (["--target", "p55"], "target 'p55' is not understood", "p5"),
        (["--checkpoint", "best5"], "has no checkpoint 'best5'", "there are"),
    ],
)
def test_mistakes(cli: Cli, policy: Path, words: list[str], message: str, hint: str) -> None:
    done = cli("finetune", str(policy), *QUICK, "--out", "no", *words)
    assert done.code == 2
    assert message in done.err
    assert hint in done.err
    assert not Path("no").exists()


def test_a_place_that_is_taken_and_a_run_that_is_missing(cli: Cli, policy: Path) -> None:
    Path("taken").mkdir()
    Path("taken/file").touch()
    done = cli("finetune", str(policy), *QUICK, "--out", "taken")
    assert (done.code, "run folder exists" in done.err) == (2, True)
    done = cli("finetune", "nowhere", *QUICK)
    assert (done.code, "does not exist" in done.err) == (2, True)
    assert cli("finetune").code == 2


def test_an_interrupted_run_is_resumed_here_and_not_as_offline_training(
    cli: Cli, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqrl.finetune.loop import OnlineTrainer

    real = OnlineTrainer._update

    def update(self: OnlineTrainer) -> None:
        if self.step == 5:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineTrainer, "_update", update)
        done = cli("finetune", str(policy), *QUICK, "--out", "cut")
    assert done.code == 130
    assert "--resume" in done.err
    assert cli("resume", "cut").code == 2
    done = cli("finetune", "cut", "--resume", "-q")
    assert done.code == 0, done.err
    assert "done  8 updates" in done.out
