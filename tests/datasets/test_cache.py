"""Converted copies: used when good, rebuilt when not, never in the way."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrl.datasets import LoadOptions, cache, convert, load_dataset
from seqrl.datasets import d4rl as d4rl_reader
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from tests.datasets.builders import assert_same, flat_arrays, trajectories, write_hdf5


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return write_hdf5(tmp_path / "hopper_medium-v2.hdf5", flat_arrays())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs that were really read from their files."""
    seen: list[str] = []
    original = d4rl_reader.read

    def read(source: Any, options: Any, allocate: Any) -> Trajectories:
        seen.append(str(source))
        return original(source, options, allocate)

    monkeypatch.setattr(d4rl_reader, "read", read)
    return seen


def copies() -> list[Path]:
    return cache.list_copies()


def leftovers() -> list[str]:
    root = cache.cache_folder()
    return [p.name for p in root.iterdir() if p.name.startswith(".")] if root.is_dir() else []


# --- automatic copies -------------------------------------------------------------------------


def test_a_second_load_opens_the_copy(uri: str, reads: list[str]) -> None:
    first, second = load_dataset(uri), load_dataset(uri)
    assert len(reads) == 1
    assert_same(first, second)
    assert second.notes["split"] == first.notes["split"]
    assert_same(second, load_dataset(uri, options=LoadOptions(cache=False)))
    assert len(copies()) == 1
    assert leftovers() == []


def test_large_columns_are_memory_maps(tmp_path: Path) -> None:
    uri = write_hdf5(tmp_path / "big.hdf5", flat_arrays((100_000,)))
    for _ in range(2):
        data = load_dataset(uri)
        assert isinstance(data.observations, np.memmap)
        assert data.rtg is not None
        np.testing.assert_allclose(data.rtg[0], data.rewards.sum(dtype=np.float64), rtol=1e-4)


def test_options_applied_afterwards_share_one_copy(uri: str, reads: list[str]) -> None:
    load_dataset(uri)
    load_dataset(uri, options=LoadOptions(best=50, delayed=True, episodes=3, reward_scale=2))
    assert len(reads) == 1


def test_options_that_change_reading_have_their_own_copy(uri: str, reads: list[str]) -> None:
    load_dataset(uri)
    load_dataset(uri, options=LoadOptions(keep_tail=True))
    assert len(reads) == 2
    assert len(copies()) == 2


def test_cache_false_neither_reads_nor_writes(uri: str, reads: list[str]) -> None:
    for _ in range(2):
        load_dataset(uri, options=LoadOptions(cache=False))
    assert len(reads) == 2
    assert copies() == []


def test_a_file_changed_in_size_is_read_again(uri: str, reads: list[str], tmp_path: Path) -> None:
    before = load_dataset(uri)
    write_hdf5(tmp_path / "hopper_medium-v2.hdf5", flat_arrays((5, 6)))
    after = load_dataset(uri)
    assert len(reads) == 2
    assert after.lengths.tolist() == [5, 6]
    assert before.lengths.tolist() == [4, 1, 7, 3]
    assert len(copies()) == 1


def test_a_file_changed_in_time_only_is_read_again(
    uri: str, reads: list[str], tmp_path: Path
) -> None:
    load_dataset(uri)
    os.utime(tmp_path / "hopper_medium-v2.hdf5", ns=(1, 1))
    load_dataset(uri)
    load_dataset(uri)
    assert len(reads) == 2


def test_a_file_changed_in_contents_only_is_read_again(
    uri: str, reads: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "hopper_medium-v2.hdf5"
    load_dataset(uri)
    state = path.stat()
    write_hdf5(path, flat_arrays(seed=1))
    assert path.stat().st_size == state.st_size
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert load_dataset(uri).rewards.tolist() == flat_arrays(seed=1)["rewards"].tolist()
    assert len(reads) == 2


def test_another_reader_version_rebuilds(
    uri: str, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_dataset(uri)
    monkeypatch.setattr(cache, "READER_VERSION", cache.READER_VERSION + 1)
    load_dataset(uri)
    assert len(reads) == 2


@pytest.mark.parametrize("damage", ["column missing", "column short", "no meta", "half a meta"])
def test_a_half_written_copy_is_rebuilt(uri: str, reads: list[str], damage: str) -> None:
    load_dataset(uri)
    (folder,) = copies()
    if damage == "column missing":
        (folder / "rewards.npy").unlink()
    elif damage == "column short":
        with (folder / "observations.npy").open("r+b") as file:
            file.truncate((folder / "observations.npy").stat().st_size - 4)
    elif damage == "no meta":
        (folder / "meta.json").unlink()
    else:
        meta = (folder / "meta.json").read_text()
        (folder / "meta.json").write_text(meta[: len(meta) // 2])
    again = load_dataset(uri)
    assert len(reads) == 2
    assert again.lengths.tolist() == [4, 1, 7, 3]
    assert len(load_dataset(uri)) == 4
    assert len(reads) == 2


def test_a_reader_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    arrays = flat_arrays()
    arrays["rewards"][3] = np.nan
    uri = write_hdf5(tmp_path / "bad.hdf5", arrays)
    with pytest.raises(SeqrlError, match="rewards"):
        load_dataset(uri)
    assert copies() == []
    assert leftovers() == []


def test_a_home_that_cannot_be_written_is_only_a_warning(
    uri: str, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "home").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="seqrl"):
        data = load_dataset(uri)
    assert len(data) == 4
    assert "no converted copy is kept" in caplog.text


@pytest.mark.parametrize("moment", ["while reading", "while finishing"])
def test_a_full_disk_is_only_a_warning(
    uri: str, moment: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if moment == "while reading":
        monkeypatch.setattr(cache, "_reserve", full)
    else:
        monkeypatch.setattr(np, "save", full)
    with caplog.at_level(logging.WARNING, logger="seqrl"):
        data = load_dataset(uri)
    assert len(data) == 4
    assert "No space left" in caplog.text
    assert copies() == []
    assert leftovers() == []
    np.testing.assert_array_equal(data.rewards, flat_arrays()["rewards"])


def test_a_source_that_changes_while_it_is_read_is_not_kept(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = d4rl_reader.read

    def read(*args: Any) -> Trajectories:
        os.utime(tmp_path / "hopper_medium-v2.hdf5", ns=(5, 5))
        return original(*args)

    monkeypatch.setattr(d4rl_reader, "read", read)
    assert len(load_dataset(uri)) == 4
    assert copies() == []


def test_two_processes_may_finish_the_same_copy(uri: str) -> None:
    data = load_dataset(uri, options=LoadOptions(cache=False))
    target = cache.cache_folder() / "same"
    builds = [cache.Build(target), cache.Build(target)]
    for build in builds:
        build.finish(data, {"k": 1})
        build.discard()
    assert_same(cache.open_folder(target), data)
    assert leftovers() == []


def test_abandoned_folders_are_removed_after_a_day(uri: str) -> None:
    load_dataset(uri)
    (folder,) = copies()
    old, new = (folder.with_name(f".{folder.name}.part-{i}-x") for i in (1, 2))
    for path in (old, new):
        path.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    shutil.rmtree(folder)
    load_dataset(uri)
    assert not old.exists()
    assert new.exists()  # its process may be alive


def test_minari_and_generated_data_are_cached_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqrl.datasets import generated, minari_store

    trajectories().to_minari("test/toy-v0")
    names = ("minari:test/toy-v0", "oracle:seqrl/TMaze-v0?limit=5&episodes=3")
    first = [load_dataset(n) for n in names]
    for module in (minari_store, generated):
        monkeypatch.setattr(module, "read", None)
    for name, data in zip(names, first, strict=True):
        assert_same(load_dataset(name), data)


# --- conversion -------------------------------------------------------------------------------


def test_large_columns_are_read_straight_into_the_folder(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a source larger than memory can be converted."""
    saved: list[str] = []
    original = np.save

    def save(path: Path, array: np.ndarray, **options: Any) -> None:
        saved.append(path.stem)
        original(path, array, **options)

    trajectories().to_minari("test/toy-v0")
    monkeypatch.setattr(np, "save", save)
    for source in (uri, "minari:test/toy-v0"):
        saved.clear()
        convert(source, f"cache:{tmp_path}/{len(source)}")
        assert not {"observations", "actions", "rewards"} & set(saved)
        assert {"rtg", "final_observations", "episode_starts"} <= set(saved)


@pytest.mark.parametrize("destination", ["cache:{}/x", "npz:{}/x.npz", "d4rl:{}/x.hdf5"])
def test_conversion_is_lossless(tmp_path: Path, destination: str) -> None:
    data = trajectories()
    where = convert(data, destination.format(tmp_path))
    assert_same(load_dataset(where), data)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_conversion_to_minari(home: Path) -> None:
    data = load_dataset("tmaze-smoke")
    convert("tmaze-smoke", "minari:test/maze-v0")
    back = load_dataset("test/maze-v0")
    assert back.fingerprint == data.fingerprint
    assert back.task == dataclasses.replace(data.task, reference_source="minari metadata")


def test_conversion_applies_options_and_copies_only_what_is_used(uri: str, tmp_path: Path) -> None:
    convert(uri, f"cache:{tmp_path}/part", LoadOptions(episodes=2, delayed=True))
    back = load_dataset(f"cache:{tmp_path}/part")
    assert back.columns_steps == 5
    assert back.notes["delayed"]
    whole = load_dataset(uri, options=LoadOptions(episodes=2, delayed=True))
    np.testing.assert_array_equal(back.rewards, whole.compact().rewards)


def test_several_sources_become_one(tmp_path: Path) -> None:
    convert(["tmaze-smoke", "oracle:seqrl/TMaze-v0?limit=9&episodes=3"], f"npz:{tmp_path}/a.npz")
    assert len(load_dataset(f"npz:{tmp_path}/a.npz")) == 67


@pytest.mark.parametrize("destination", ["cache:{}/x", "npz:{}/x", "d4rl:{}/x"])
def test_nothing_is_overwritten(tmp_path: Path, destination: str) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(SeqrlError, match="exists already"):
        convert("tmaze-smoke", destination.format(tmp_path))


def test_destinations_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SeqrlError, match="cannot write 'oracle:' data"):
        convert("tmaze-smoke", "oracle:X-v0")
    (tmp_path / "file").write_text("")
    for kind in ("cache", "npz", "d4rl"):
        with pytest.raises(SeqrlError, match="cannot be written"):
            convert("tmaze-smoke", f"{kind}:{tmp_path}/file/x")


def test_folders_that_are_no_datasets(tmp_path: Path) -> None:
    with pytest.raises(SeqrlError, match="does not exist") as error:
        load_dataset(f"cache:{tmp_path}/none")
    assert "seqrl data convert" in str(error.value.hint)
    with pytest.raises(SeqrlError, match="has no readable"):
        load_dataset(f"cache:{tmp_path}")
    convert("tmaze-smoke", f"cache:{tmp_path}/x")
    meta = json.loads((tmp_path / "x/meta.json").read_text())
    (tmp_path / "x/meta.json").write_text(json.dumps({**meta, "schema": 99}))
    with pytest.raises(SeqrlError, match="data schema 99"):
        load_dataset(f"cache:{tmp_path}/x")
    (tmp_path / "x/meta.json").write_text(json.dumps(meta))
    (tmp_path / "x/actions.npy").write_bytes(b"")
    with pytest.raises(SeqrlError, match=r"is damaged: actions\.npy has 0 bytes"):
        load_dataset(f"cache:{tmp_path}/x")
