"""Checkpoints load what was saved, run no code, and say in one line what is wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_agent import OtherAgent, TinyAgent, TinyConfig, tiny, tiny_data
from torch import nn

from seqrl import checkpoint as ckpt
from seqrl.checkpoint import PolicyMeta, find_checkpoint, load_agent, save_checkpoint
from seqrl.datasets.sampling import Sampler
from seqrl.errors import SeqrlError
from seqrl.runfolder import RunFolder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run folder with the checkpoints 1 and 2, the second last, the first best."""
    run = RunFolder.create(tmp_path / "run", config={})
    for step in (1, 2):
        agent = tiny()
        torch.nn.init.constant_(agent.head.bias, float(step))
        meta = PolicyMeta.of(agent, step, targets=("p50", 1.0), data=[{"source": "x"}])
        trainer = {"step": step}
        save_checkpoint(run.checkpoints, agent, meta, optimizer={"a": 1}, trainer=trainer)
    ckpt.point(run.checkpoints, "last", "step_0000002")
    ckpt.point(run.checkpoints, "best", "step_0000001")
    return run.dir


def test_a_loaded_agent_is_the_saved_one(tmp_path: Path) -> None:
    agent = tiny(width=24, dropout=0.1)
    agent.updates.fill_(7)
    agent.set_acting(temperature=0.5)
    save_checkpoint(tmp_path, agent, PolicyMeta.of(agent, 7, targets=(1.0,)))
    state = torch.random.get_rng_state()
    loaded, meta = load_agent(tmp_path / "step_0000007")
    assert torch.equal(state, torch.random.get_rng_state()), "loading drew random numbers"
    assert isinstance(loaded, TinyAgent)
    assert (loaded.config, loaded.tasks, loaded.stats) == (agent.config, agent.tasks, agent.stats)
    assert loaded.acting == agent.acting
    assert not loaded.training
    assert (meta.step, meta.targets, meta.window_length) == (7, (1.0,), 6)
    for (name, a), b in zip(agent.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    batch = Sampler([tiny_data()], agent.config.window(), 4).batch(0)
    assert torch.equal(agent.eval().predict(batch), loaded.predict(batch))


def test_a_checkpoint_is_found_from_anywhere_in_its_run(saved: Path) -> None:
    last, best = saved / "checkpoints/step_0000002", saved / "checkpoints/step_0000001"
    for path in (saved, saved / "eval", saved / "run.json", saved / "checkpoints"):
        assert find_checkpoint(path) == last.resolve()
        assert find_checkpoint(path, "best") == best.resolve()
    for path in (best, best / "policy.json", saved / "checkpoints/best"):
        assert find_checkpoint(path) == best.resolve()
    for which in ("1", "step_0000001", best):
        assert find_checkpoint(saved, which) == best.resolve()


def test_a_checkpoint_that_is_not_there_is_said(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(SeqrlError, match="no checkpoint '7'") as error:
        find_checkpoint(saved, "7")
    assert "step_0000001" in (error.value.hint or "")
    (saved / "checkpoints/best").unlink()
    with pytest.raises(SeqrlError, match="no checkpoint 'best'"):
        find_checkpoint(saved, "best")
    with pytest.raises(SeqrlError, match="does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(SeqrlError, match="is no run folder") as error:
        find_checkpoint(tmp_path)
    assert str(saved) in (error.value.hint or "")
    empty = RunFolder.create(tmp_path / "empty", config={})
    with pytest.raises(SeqrlError, match="holds no checkpoint yet"):
        find_checkpoint(empty.dir)


def test_last_works_without_its_link_and_without_links_at_all(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved / "checkpoints"
    (folder / "last").unlink()
    assert find_checkpoint(saved).name == "step_0000002"

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    ckpt.point(folder, "last", "step_0000001")
    assert (folder / "last").is_file()
    assert find_checkpoint(saved).name == "step_0000001"
    assert find_checkpoint(folder / "last").name == "step_0000001"


def test_links_are_relative_so_that_a_run_can_be_moved(saved: Path, tmp_path: Path) -> None:
    saved.rename(tmp_path / "moved")
    assert load_agent(tmp_path / "moved")[1].step == 2


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "header":
        path.write_bytes(b"\xff" * 8 + data[8:])
    else:
        path.write_bytes(b"\x80\x04garbage\x00" * 10)


@pytest.mark.parametrize("name", ["weights.safetensors", "policy.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "header", "garbage"])
def test_a_damaged_file_gives_one_error_that_names_it(saved: Path, name: str, how: str) -> None:
    path = saved / "checkpoints" / "step_0000002" / name
    damage(path, how)
    with pytest.raises(SeqrlError) as error:
        load_agent(saved)
    assert str(path) in error.value.message
    assert error.value.hint
    assert "\n" not in error.value.message


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    record = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 99}, "policy schema 99, this seqrl reads up to 1"),
        ({"schema": None}, "no valid schema"),
        ({"schema": "1"}, "no valid schema"),
        ({"config": None}, "no 'config'"),
        ({"tasks": None}, "no 'tasks'"),
        ({"tasks": 3}, "damaged"),
        ({"tasks": []}, "0 tasks and 1 sets"),
        ({"stats": [{}]}, "damaged"),
        ({"stats": []}, "1 tasks and 0 sets"),
        ({"acting": {"rule": "levitate"}}, "cannot act by 'levitate'"),
        ({"acting": {"wheels": 4}}, "does not make a policy"),
        ({"config": {"width": 16, "wings": 2}}, "has no field 'wings'"),
        ({"config": {"width": -5}}, "does not make a policy"),
        ({"config": {"width": "wide"}}, "does not make a policy"),
        ({"config": {"width": 10**13}}, "does not make a policy"),
        ({"config": {"width": 8}}, "does not fit the agent"),
        ({"agent": "dtt"}, "no agent 'dtt'"),
        ({"agent": "no_such_module:Agent"}, "code outside seqrl"),
        ({"agent": "os:system"}, "code outside seqrl"),
        ({"agent": "tiny_agent:nothing"}, "code outside seqrl"),
        ({"agent": ""}, "no agent ''"),
        ({"extra_state": {"_extra_state": 3}}, "does not fit the agent"),
    ],
)
def test_a_wrong_entry_of_policy_json_gives_one_error(
    saved: Path, changes: dict[str, Any], said: str
) -> None:
    path = saved / "checkpoints/step_0000002/policy.json"
    edit(path, **changes)
    with pytest.raises(SeqrlError) as error:
        load_agent(saved)
    assert said in error.value.message
    assert str(path.parent) in error.value.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("head.bias"), "no tensor 'head.bias'"),
        (lambda t: t.update(more=torch.zeros(1)), "unexpected tensor 'more'"),
        (
            lambda t: t.update({"head.bias": torch.zeros(3)}),
            r"'head.bias' is \(3,\), must be \(2,\)",
        ),
        (lambda t: t.update({"head.bias": torch.zeros(2, dtype=torch.int64)}), "is torch.int64"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved: Path, change: Any, said: str) -> None:
    path = saved / "checkpoints/step_0000002/weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(SeqrlError, match=said):
        load_agent(saved)


class Exploit:
    """What a malicious pickle holds: unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def read_everything(folder: Path) -> None:
    load_agent(folder)
    ckpt.read_trainer_state(folder)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_file_of_a_checkpoint_can_run_code(saved: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    raw = pickle.dumps(Exploit(trap))
    folder = saved / "checkpoints/step_0000002"
    zipped = tmp_path / "zipped.pt"
    torch.save(Exploit(trap), zipped)
    for name in ("weights.safetensors", "policy.json", "optimizer.pt", "trainer.json"):
        before = (folder / name).read_bytes()
        for evil in (raw, zipped.read_bytes()):
            (folder / name).write_bytes(evil)
            with pytest.raises(SeqrlError, match=name):
                read_everything(folder)
            assert not trap.exists(), f"{name} ran code"
        (folder / name).write_bytes(before)
    pickle.loads(raw)
    assert trap.exists(), "the trap itself does not work"


def test_a_foreign_agent_is_imported_only_when_trusted(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "imported"
    code = f"import os\nos.mkdir({str(trap)!r})\nfrom tiny_agent import TinyAgent as Foreign\n"
    (tmp_path / "foreign_agents.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    edit(saved / "checkpoints/step_0000002/policy.json", agent="foreign_agents:Foreign")
    with pytest.raises(SeqrlError, match="code outside seqrl") as error:
        load_agent(saved)
    assert "--trust" in (error.value.hint or "")
    assert not trap.exists()
    assert isinstance(load_agent(saved, trust=True)[0], TinyAgent)
    assert trap.exists()
    # Now that the program has imported it, loading runs nothing new.
    assert isinstance(load_agent(saved)[0], TinyAgent)
    sys.modules.pop("foreign_agents")


def test_looking_for_an_imported_class_runs_no_module_code(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = types.ModuleType("lazy_module")

    def explode(name: str) -> Any:
        raise AssertionError(f"asked for {name}")

    lazy.__getattr__ = explode  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy_module", lazy)
    edit(saved / "checkpoints/step_0000002/policy.json", agent="lazy_module:Agent")
    with pytest.raises(SeqrlError, match="code outside seqrl"):
        load_agent(saved)


def test_old_policies_are_upgraded_and_say_so(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(record: dict[str, Any]) -> tuple[dict[str, Any], str]:
        record["config"]["width"] = record["config"].pop("n_units")
        return record, "1 field renamed"

    path = saved / "checkpoints/step_0000002/policy.json"
    config = json.loads(path.read_text())["config"]
    config["n_units"] = config.pop("width")
    edit(path, config=config)
    monkeypatch.setattr(ckpt, "POLICY_SCHEMA", 2)
    monkeypatch.setattr(ckpt, "POLICY_UPGRADES", [rename])
    agent, meta = load_agent(saved)
    assert agent.config == TinyConfig()
    assert meta.notes == ("upgraded policy 1 → 2 (1 field renamed)",)


def test_pruning_keeps_the_newest_and_what_the_links_lead_to(tmp_path: Path) -> None:
    agent = tiny()
    for step in range(1, 7):
        save_checkpoint(tmp_path, agent, PolicyMeta.of(agent, step))
    ckpt.point(tmp_path, "best", "step_0000002")
    ckpt.point(tmp_path, "last", "step_0000003")
    ckpt.prune(tmp_path, 2)
    assert ckpt.saved_steps(tmp_path) == [2, 3, 5, 6]
    assert not list(tmp_path.glob(".*"))


def test_rewinding_forgets_later_checkpoints_and_leftovers(tmp_path: Path) -> None:
    agent = tiny()
    for step in range(1, 5):
        save_checkpoint(tmp_path, agent, PolicyMeta.of(agent, step))
    ckpt.point(tmp_path, "best", "step_0000004")
    (tmp_path / ".step_0000005.9.tmp").mkdir()
    ckpt.rewind(tmp_path, 3, best=2)
    assert ckpt.saved_steps(tmp_path) == [1, 2, 3]
    assert find_checkpoint(tmp_path / "best").name == "step_0000002"
    assert not list(tmp_path.glob(".*"))


class _Odd(TinyAgent):
    """Tied weights, a frozen parameter and state that is no tensor."""

    name = "odd"

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.tied = self.head.weight
        self.transposed = nn.Parameter(torch.randn(4, 3).t(), requires_grad=False)
        self.counts = {"a": 1}

    def get_extra_state(self) -> Any:
        return self.counts

    def set_extra_state(self, state: Any) -> None:
        self.counts = dict(state)


def test_tied_weights_and_extra_state_survive(tmp_path: Path) -> None:
    data = tiny_data()
    agent = _Odd(TinyConfig(), [data.task], [data.stats])
    agent.counts = {"a": 5}
    save_checkpoint(tmp_path, agent, PolicyMeta.of(agent, 1))
    loaded, _ = load_agent(tmp_path / "step_0000001")
    assert isinstance(loaded, _Odd)
    assert loaded.counts == {"a": 5}
    assert loaded.tied is loaded.head.weight
    assert torch.equal(loaded.tied, agent.tied)
    assert torch.equal(loaded.transposed, agent.transposed)
    assert not loaded.transposed.requires_grad


def test_a_full_disk_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ckpt, "save_file", full)
    with pytest.raises(SeqrlError, match="No space left on device"):
        save_checkpoint(saved / "checkpoints", tiny(), PolicyMeta.of(tiny(), 3))
    assert load_agent(saved)[1].step == 2
    assert not list((saved / "checkpoints").glob(".*"))


def test_agents_are_named_by_registry_or_path() -> None:
    from seqrl.agents import registry

    row = registry.ROWS[0]
    assert ckpt.agent_name(registry.agent_class(row.name)) == row.name
    assert ckpt.agent_name(OtherAgent) == "tiny_agent:OtherAgent"
