"""Suites as data: what a file may say, and the cells that come of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seqrl import presets, references
from seqrl.agents import registry
from seqrl.bench import cells, suite
from seqrl.errors import SeqrlError
from tests.bench.conftest import TINY, planned, tiny


@pytest.mark.parametrize("name", suite.names())
def test_shipped_suites_resolve(name: str, tmp_path: Path) -> None:
    shipped = suite.load(name)
    found = cells.plan_cells(shipped, cells.Choice(), tmp_path)
    assert shipped.name == name
    assert (
        shipped.published is None
        or (suite.FOLDER.parent / "published" / shipped.published).exists()
    )
    assert len(found) >= len(shipped.rows)
    for row in shipped.rows:
        for e in row.entrants:
            assert e.preset is None or e.preset in presets.names()
            assert e.agent is None or e.agent in registry.names()
            assert e.reference is None or references.is_reference(e.reference)
    # Every agent option exists: nobody should learn of a misspelt one after hours.
    for cell in found:
        if cell.plan["settings"] and cell.plan["kind"] == "train":
            from seqrl.experiment import ExperimentConfig

            ExperimentConfig.from_json(cell.plan["settings"])


def test_cells_come_seed_by_seed(tmp_path: Path) -> None:
    found = planned(tmp_path, seeds=(3, 1))
    seeds = [c.plan["seed"] for c in found]
    assert seeds == sorted(seeds)
    assert {c.id for c in found} >= {"maze/bc_s1", "maze/lstm_s3", "pole/bc_s1"}
    randoms = [c for c in found if c.plan["reference"]]
    assert [c.plan["seed"] for c in randoms] == [3, 3], "evaluated once: no seed changes it"


def test_the_seed_stands_in_the_data(tmp_path: Path) -> None:
    found = {c.id: c.plan for c in planned(tmp_path, seeds=(0, 2))}
    assert found["pole/bc_s2"]["data"] == ["random:CartPole-v1?episodes=20&seed=2"]
    assert found["pole/bc_s2"]["settings"]["train"]["seed"] == 2
    assert found["pole/bc_s0"]["key"] != found["pole/bc_s2"]["key"]


def test_long_lengths_are_for_stream_rules(tmp_path: Path) -> None:
    found = {c.id: [m["x"] for m in c.plan["measures"]] for c in planned(tmp_path)}
    assert found["maze/bc_s0"] == [9, 12]
    assert found["maze/lstm_s0"] == [9, 12, 20]
    assert found["maze/random_s0"] == [9, 12]
    assert found["pole/bc_s0"] == [None]
    content = tiny(
        entrants={
            "dt": {"agent": "dt", "agent_config": {"context": 9}, "eval": {"acting": "stream"}}
        }
    )
    cell = next(c for c in planned(tmp_path, content) if c.id == "maze/dt_s0")
    assert [m["x"] for m in cell.plan["measures"]] == [9, 12, 20]
    assert cell.plan["measures"][0]["options"]["env_kwargs"] == {"limit": 9}


def test_choices(tmp_path: Path) -> None:
    found = planned(tmp_path, rows=("maze",), agents=("lstm", "dt/tmaze-30"), steps=5)
    assert [c.id for c in found] == ["maze/lstm_s0", "maze/dt.tmaze-30_s0"]
    assert {c.plan["settings"]["train"]["steps"] for c in found} == {5}
    assert found[1].plan["preset"] == "dt/tmaze-30"
    shorter = planned(tmp_path, lengths=(7,), episodes=2)
    maze = next(c for c in shorter if c.id == "maze/lstm_s0").plan["measures"]
    assert [(m["x"], m["options"]["episodes"]) for m in maze] == [(7, 2)]


def test_settings_that_follow_the_updates(tmp_path: Path) -> None:
    content = tiny(from_steps={"train.optim.warmup_steps": 0.25})
    plan = planned(tmp_path, content, steps=40)[0].plan
    assert plan["settings"]["train"]["optim"] == {"warmup_steps": 10}
    timed = planned(tmp_path, content, seconds=5.0)[0].plan
    assert timed["seconds"] == 5.0
    assert timed["from_steps"] == {"train.optim.warmup_steps": 0.25}


def test_other_data(tmp_path: Path) -> None:
    content = tiny(data_template=True, rows=[TINY["rows"][1]])
    found = planned(tmp_path, content, data=("random:Acrobot-v1?episodes=3",), agents=("bc",))
    assert [c.plan["data"] for c in found] == [["random:Acrobot-v1?episodes=3"]]
    with pytest.raises(SeqrlError, match="data of its own"):
        planned(tmp_path, data=("tmaze-30",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "no rows"),
        ({"titel": "x"}, "unknown key 'titel'"),
        ({"rows": [{"name": "x"}]}, "names no data"),
        ({"rows": [{"name": "x", "data": ["d"], "kind": "slow"}]}, "kind is 'slow'"),
        ({"rows": [{"name": "x", "data": ["d"], "score": "fun"}]}, "score is 'fun'"),
        ({"rows": [{"name": "x", "data": ["d"], "lengths": [1]}]}, "no axis"),
        ({"rows": [TINY["rows"][0], TINY["rows"][0]]}, "same name"),
        ({"measures": [{"target": 1}]}, "unknown key 'target'"),
        ({"measures": [{}, {}]}, "same label"),
        ({"entrants": {"bc": {"agent": None}}}, "names no preset, agent or reference"),
        ({"entrants": {"bc": {"reference": "random"}}}, "names agent and reference"),
        ({"entrants": {"bc": {"steps": 3}}}, "unknown key 'steps'"),
        ({"seeds": "2-1"}, "runs backwards"),
    ],
)
def test_mistakes_in_a_suite(changes: dict, message: str) -> None:
    with pytest.raises(SeqrlError, match=message):
        suite.parse(tiny(**changes))


@pytest.mark.parametrize(
    ("choice", "message", "hint"),
    [
        ({"agents": ("lstmm",)}, "no entrant 'lstmm'", "lstm"),
        ({"rows": ("mase",)}, "no row 'mase'", "maze"),
        ({"agents": ("dt/tmaze-30",), "steps": None, "rows": ("pole",)}, "", ""),
    ],
)
def test_mistakes_in_a_choice(choice: dict, message: str, hint: str, tmp_path: Path) -> None:
    if not message:
        assert planned(tmp_path, **choice)
        return
    with pytest.raises(SeqrlError, match=message) as e:
        planned(tmp_path, **choice)
    assert hint in str(e.value.hint)


def test_a_file_of_your_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(tiny(name="mine")))
    assert suite.load(str(file)).entrants() == ["bc", "lstm", "random"]
    file.write_text("{")
    with pytest.raises(SeqrlError, match="not JSON"):
        suite.load(str(file))
    with pytest.raises(SeqrlError, match="cannot be read"):
        suite.load(str(tmp_path / "none.json"))
    with pytest.raises(SeqrlError, match="no suite 'tmase'") as e:
        suite.load("tmase")
    assert "tmaze" in str(e.value.hint)


def test_null_takes_an_entrant_out_of_a_row() -> None:
    content = tiny()
    content["rows"][1]["entrants"] = {"lstm": None}
    parsed = suite.parse(content)
    assert [e.name for e in parsed.rows[1].entrants] == ["bc", "random"]


def test_rows_of_other_suites(tmp_path: Path) -> None:
    """A row taken over has the cells, settings and keys that it has at home."""
    content = tiny(rows=[*TINY["rows"], {"suite": "tmaze", "name": "tmaze-90"}])
    mine = {c.id: c.plan for c in planned(tmp_path, content) if c.plan["row"] == "tmaze-90"}
    home = cells.plan_cells(suite.load("tmaze"), cells.Choice(rows=("tmaze-90",)), tmp_path)
    assert {i: p["key"] for i, p in mine.items()} == {c.id: c.plan["key"] for c in home}
    assert {p["seed"] for p in mine.values()} == {0, 1, 2}, "the seeds of the suite it is of"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"suite": "tmase", "name": "tmaze-90"}, "no suite 'tmase'"),
        ({"suite": "tmaze", "name": "tmaze-91"}, "suite 'tmaze' has none"),
        ({"suite": "tmaze", "name": "tmaze-90", "seeds": "0"}, "unknown key 'seeds'"),
        ({"suite": "memory", "name": "tmaze-90"}, "suite 'memory' has none"),
    ],
)
def test_rows_of_other_suites_refused(row: dict[str, str], said: str) -> None:
    with pytest.raises(SeqrlError, match=said):
        suite.parse(tiny(rows=[row]))


@pytest.mark.parametrize("agent", ["dt", "decision_mamba"])
def test_memory_rows_have_timestep_positions_where_no_length_is_new(
    agent: str, tmp_path: Path
) -> None:
    found = cells.plan_cells(suite.load("memory"), cells.Choice(agents=(agent,)), tmp_path)
    positions = {c.row.name: c.plan["settings"]["agent_config"]["positions"] for c in found}
    longer = {c.row.name for c in found if c.row.lengths}
    assert longer == {"tmaze-90", "action-retrieval-90"}
    assert positions == {r: "none" if r in longer else "timestep" for r in positions}
