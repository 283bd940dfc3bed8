"""What ``data inspect`` says of a dataset, and the picture it draws."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrl.datasets import format_report, inspect, load_dataset, plot_dataset
from seqrl.errors import SeqrlError
from tests.datasets.builders import flat_arrays, trajectories, write_hdf5


def test_facts_are_plain_json_and_right() -> None:
    data = trajectories()
    facts = json.loads(json.dumps(inspect(data)))
    assert (facts["episodes"], facts["steps"]) == (4, 15)
    assert [facts["length"][k] for k in ("min", "p25", "p50", "max")] == [1, 2.5, 3.5, 7]
    assert facts["ended"] == {
        "terminated": 2, "truncated": 2, "one_step": 1, "final_observation_unknown": 1,
    }  # fmt: skip
    assert facts["return"]["max"] == pytest.approx(float(data.returns.max()))
    assert facts["reference"]["normalised_mean"] == pytest.approx(
        100 * (data.returns.mean() + 3.0) / 8.5
    )
    assert facts["action"]["low"] == pytest.approx(data.actions.min(axis=0).tolist())
    assert facts["reward"]["min"] == pytest.approx(float(data.rewards.min()))
    assert facts["env"]["id"] == "Pendulum-v1"
    assert set(facts["extras"]) == {"optimal_action", "weight", "good"}


def test_only_the_episodes_in_use_count() -> None:
    data = trajectories()
    facts = inspect(data.select([1]))
    assert (facts["episodes"], facts["steps"]) == (1, 1)
    assert facts["action"]["low"] == pytest.approx(data.actions[4].tolist())
    assert facts["ended"]["final_observation_unknown"] == 0


def test_the_report_fits_the_terminal_and_says_the_essentials(tmp_path: Path) -> None:
    uri = write_hdf5(tmp_path / "hopper_medium-v2.hdf5", flat_arrays())
    for data in (load_dataset("tmaze-30"), trajectories(), load_dataset(uri)):
        report = format_report(inspect(data))
        assert all(len(line) <= 100 for line in report.splitlines())
        for word in (
            "episodes",
            "obs",
            "action",
            "length",
            "return",
            "targets suggested",
            "checks",
        ):
            assert word in report
    assert "environment guessed from file name: Hopper-v4; --env overrides" in report
    assert "published evaluations ask for 3600, 1800" in report
    assert "1 one-step episodes" in format_report(inspect(trajectories()))
    first = format_report(inspect(load_dataset("tmaze-30"))).splitlines()[0]
    assert first.startswith("tmaze-30   2 000 episodes · 30 944 steps")
    assert first.endswith("env seqrl/TMaze-v0 (limit=30)")


def test_targets_are_return_quantiles() -> None:
    data = trajectories()
    wanted = np.quantile(data.returns, [0.5, 0.9, 1.0])
    np.testing.assert_allclose(inspect(data)["targets"], wanted, rtol=1e-3)
    assert inspect(load_dataset("tmaze-smoke"))["targets"] == [1.0]


@pytest.mark.parametrize(
    "uri",
    [
        "random:Pendulum-v1?episodes=1",
        "oracle:seqrl/TMaze-v0?limit=5&episodes=4&obs=pixels",
    ],
)
def test_a_picture_is_drawn_for_every_kind_of_data(tmp_path: Path, uri: str) -> None:
    pytest.importorskip("matplotlib")
    path = plot_dataset(load_dataset(uri), tmp_path / "new" / "data.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(SeqrlError, match="cannot be written"):
        plot_dataset(load_dataset("tmaze-smoke"), tmp_path / "data.nosuchformat")


def test_missing_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SeqrlError, match="plots need matplotlib") as error:
        plot_dataset(trajectories(), tmp_path / "data.png")
    assert error.value.hint == 'pip install "seqrl[plot]"'
