"""The commands around training: data, config, doctor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.schema import check


def test_inspect(cli: Cli) -> None:
    done = cli("data", "inspect", "tmaze-smoke", "--plot", "plots/a.png")
    assert done.code == 0
    assert done.out.startswith("tmaze-smoke   64 episodes · ")
    assert Path("plots/a.png").read_bytes()[1:4] == b"PNG"
    facts = json.loads(cli("data", "inspect", "tmaze-smoke", "--data-episodes", "5", "--json").out)
    check(facts, {"datasets": [{"episodes": int, "steps": int, "targets": [float]}]})
    assert facts["datasets"][0]["episodes"] == 5


def test_convert_collect_split(cli: Cli) -> None:
    done = cli("data", "collect", "CartPole-v1", "--policy", "random", "--episodes", "6", "--to",
               "npz:cart.npz", "--json")  # fmt: skip
    assert done.code == 0, done.err
    rows = json.loads(done.out)["written"]
    assert (rows[0]["uri"], rows[0]["episodes"]) == ("npz:cart.npz", 6)
    again = cli("data", "collect", "CartPole-v1", "--to", "npz:cart.npz")
    assert again.code == 2
    assert "exists already" in again.err
    assert cli("data", "convert", "npz:cart.npz", "cache:fast").code == 0
    assert cli("data", "convert", "npz:cart.npz", "npz:cart.npz", "minari:my/cart-v0").code == 0
    joined = json.loads(cli("data", "inspect", "minari:my/cart-v0", "--json").out)["datasets"][0]
    assert joined["episodes"] == 12
    assert "my/cart-v0" in cli("list", "datasets").out
    words = ["--holdout", "0.5", "--to", "npz:a.npz", "npz:b.npz"]
    done = cli("data", "split", "cache:fast", *words, "--json")
    assert [r["episodes"] for r in json.loads(done.out)["written"]] == [3, 3]
    assert cli("data", "split", "cache:fast", "--to", "npz:c.npz").code == 2


def test_config_show_validate_diff(cli: Cli, run_dir: Path, tmp_path: Path) -> None:
    shown = cli("config", "show", "dt", "--preset", "dt/tmaze-30", "--lr", "3e-4").out
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in shown.splitlines()[1:]}
    assert lines["train.optim.lr"] == ["3e-4", "given"]
    assert lines["agent_config.width"] == ["64", "preset dt/tmaze-30"]
    assert lines["agent_config.activation"] == ["relu"]
    saved = tmp_path / "mine.json"
    saved.write_text(cli("config", "show", "dt", "--lr", "3e-4", "--json").out)
    done = cli("config", "validate", str(saved), str(run_dir), "dt/tmaze-30")
    assert done.code == 0
    assert len(done.out.splitlines()) == 3
    diff = cli("config", "diff", "dt/tmaze-30", str(saved)).out.splitlines()
    assert diff == ["train.optim.lr 0.001 → 3e-4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"agent": "dt", "trian": {}}, "the config has no part 'trian'"),
        ({"agent": "dt", "train": {"stepz": 1}}, "train has no setting 'stepz'"),
        (
            {"agent": "dt", "train": {"steps": "many"}},
            "train.steps is 'many', must be a whole number",
        ),
        ({"agent": "dt", "train": {"optim": {"lr": -1}}}, "optim.lr is -1.0, must be above 0"),
        ({"agent": "dt", "agent_config": {"activation": "x"}}, "must be one of relu, gelu"),
        ({"agent": "dt", "eval": {"targets": 5}}, "eval.targets is 5, must be a list of str"),
        ({"train": {}}, "no agent named"),
        ([1], "holds no JSON object"),
    ],
)
def test_invalid_configs_are_named(cli: Cli, content: object, message: str) -> None:
    Path("bad.json").write_text(json.dumps(content))
    done = cli("config", "validate", "bad.json")
    assert done.code == 2
    assert message in done.err


def test_doctor_on_a_sound_run(cli: Cli, run_dir: Path) -> None:
    done = cli("doctor", str(run_dir))
    assert done.code == 0, done.out
    for text in ("config loads (schema 1)", "weights fit", "step == sequence", "data are those"):
        assert f"ok   {text}" in done.out.replace("acting: ", "")
    rows = json.loads(cli("doctor", str(run_dir), "--json").out)
    check(rows, {"checks": [{"level": str, "text": str}], "failed": int})


def test_doctor_finds_a_damaged_run(cli: Cli, run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, symlinks=True)
    weights = (copy / "checkpoints/last").resolve() / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    done = cli("doctor", str(copy))
    assert done.code == 3
    assert "fail weights: " in done.out
    assert "error: 1 of " in done.err


def test_doctor_on_data_environment_and_installation(cli: Cli) -> None:
    data = cli("doctor", "tmaze-smoke")
    assert data.code == 0
    assert "warn all returns are equal" in data.out
    env = cli("doctor", "seqrl/TMaze-v0", "--env-kwargs", "limit=12")
    assert env.code == 0
    assert "ok   passes gymnasium's check_env" in env.out
    assert "ok   same seed and actions give the same episode" in env.out
    assert "ok   step limit 12" in env.out
    assert cli("doctor").code == 0
    missing = cli("doctor", "NoSuchThing-v0")
    assert missing.code == 3
    assert "fail making: no environment 'NoSuchThing-v0'" in missing.out


def test_acting_gap_sees_a_difference(run_dir: Path) -> None:
    from seqrl.checkpoint import load_agent
    from seqrl.doctor import acting_gap

    agent, _ = load_agent(run_dir)
    assert acting_gap(agent)[0] < 1e-4
    step = agent.step
    agent.step = lambda state, s: (step(state, s)[0] + 1.0, step(state, s)[1])  # type: ignore[method-assign]
    assert acting_gap(agent)[0] > 0.5
