"""Converted copies of datasets: a folder of flat ``.npy`` columns that opens as memory maps.

Opening a folder costs milliseconds whatever its size, and sampling reads only the pages it needs.
Folders are made by ``seqrl data convert SRC cache:PATH`` and, for repeat loads of slow sources,
automatically under ``$SEQRL_HOME/cache``. A folder is written under another name, synced, then
renamed; ``meta.json`` holds the key it was made for and the size of every file, so that a stale,
half-written or damaged copy is rebuilt and never read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl.datasets import columns as cols
from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.datasets.catalog import DatasetURI, LoadOptions
    from seqrl.datasets.trajectories import Trajectories

READER_VERSION = 1
"""Raised whenever a reader gives other columns for the same file: older copies are then rebuilt."""

_META = "meta.json"
_EDGE = 65_536
"""Bytes hashed at the head and at the tail of a source file."""
_ABANDONED = 24 * 3600.0
"""Seconds after which an unfinished folder is taken for one whose process died."""

_log = logging.getLogger("seqrl")


def seqrl_home() -> Path:
    """The folder of everything seqrl keeps for itself: ``$SEQRL_HOME`` or ``~/.seqrl``."""
    given = os.environ.get("SEQRL_HOME")
    return Path(given).expanduser() if given else Path.home() / ".seqrl"


def cache_folder() -> Path:
    """Where automatic copies live; deleting it only costs the next load some time."""
    return seqrl_home() / "cache"


# --- automatic copies -------------------------------------------------------------------------


def load_cached(reader: Any, uri: DatasetURI, options: LoadOptions) -> Trajectories:
    """Open the copy of a source, made first where there is none that is still good.

    Args:
        reader: module with ``read``, ``source_files`` and ``READ_OPTIONS``.

    Raises:
        SeqrlError: from the reader. A cache that cannot be written is only a warning.
    """
    key = source_key(reader, uri, options)
    target = cache_folder() / _folder_name(uri, key)
    found = _open_if_good(target, key)
    if found is not None:
        return found
    try:
        build = Build(target)
    except OSError as error:
        _warn(target.parent, error)
        return _plain_read(reader, uri, options)
    try:
        data: Trajectories = reader.read(uri, options, build.allocate)
        if source_key(reader, uri, options) != key:
            _log.warning("%s changed while it was read; no copy is kept", uri)
            return data
        try:
            build.finish(data, key)
        except OSError as error:
            _warn(target.parent, error)
            return data
    finally:
        build.discard()
    return _open_if_good(target, key) or data


def _plain_read(reader: Any, uri: DatasetURI, options: LoadOptions) -> Trajectories:
    data: Trajectories = reader.read(uri, options, cols.in_memory)
    return data


def _warn(folder: Path, error: OSError) -> None:
    _log.warning("no converted copy is kept in %s: %s", folder, error)


def source_key(reader: Any, uri: DatasetURI, options: LoadOptions) -> dict[str, Any]:
    """Everything a copy depends on, as JSON data: versions, URI, options, state of the files."""
    files = [_file_state(path) for path in reader.source_files(uri, options)]
    chosen = {name: getattr(options, name) for name in reader.READ_OPTIONS}
    key = {
        "schema": cols.SCHEMA,
        "reader": READER_VERSION,
        "uri": str(uri),
        "options": chosen,
        "files": files,
    }
    plain: dict[str, Any] = json.loads(json.dumps(key))  # as it reads back
    return plain


def _file_state(path: Path) -> dict[str, Any]:
    state = path.stat()
    with path.open("rb") as file:
        digest = hashlib.blake2b(file.read(_EDGE), digest_size=16)
        if state.st_size > _EDGE:
            file.seek(max(_EDGE, state.st_size - _EDGE))
            digest.update(file.read(_EDGE))
    return {
        "path": str(path.resolve()),
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ends": digest.hexdigest(),
    }


def _folder_name(uri: DatasetURI, key: dict[str, Any]) -> str:
    """One folder for a source and its options: a changed file replaces its old copy."""
    place = {k: key[k] for k in ("uri", "options")} | {"paths": [f["path"] for f in key["files"]]}
    digest = hashlib.blake2b(json.dumps(place, sort_keys=True).encode(), digest_size=8)
    name = Path(uri.name).name if uri.scheme == "d4rl" else uri.name
    label = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-60:]
    return f"{uri.scheme}-{label}-{digest.hexdigest()}"


def _open_if_good(folder: Path, key: dict[str, Any]) -> Trajectories | None:
    """The copy in a folder, or None when it is missing, stale or damaged."""
    try:
        meta = json.loads((folder / _META).read_text("utf-8"))
        return _open(folder, meta) if meta.get("key") == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SeqrlError):
        return None


# --- folders ----------------------------------------------------------------------------------


def read(
    uri: DatasetURI, options: LoadOptions, allocate: cols.Allocate = cols.in_memory
) -> Trajectories:
    """Open the folder of a ``cache:PATH`` URI.

    Raises:
        SeqrlError: no such folder, not one of ours, damaged, or of a newer version.
    """
    return open_folder(uri.name)


def open_folder(path: str | Path) -> Trajectories:
    """Open a converted folder as memory maps (see :func:`read`)."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise SeqrlError(
            f"folder '{path}' does not exist", hint=f"make it: seqrl data convert SRC cache:{path}"
        )
    try:
        meta = json.loads((folder / _META).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SeqrlError(
            f"cache:{path} has no readable {_META}: {error}",
            hint="it is no converted dataset, or its conversion did not finish: convert again",
        ) from None
    try:
        return _open(folder, meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise SeqrlError(
            f"cache:{path} is damaged: {reason}", hint="convert the source again"
        ) from None


def _open(folder: Path, meta: dict[str, Any]) -> Trajectories:
    columns: dict[str, np.ndarray] = {}
    for name, entry in meta["columns"].items():
        path = folder / entry["file"]
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"{entry['file']} has {size} bytes, must have {entry['bytes']}")
        # Small arrays (episodes) are simply read; an empty file cannot be mapped.
        mode: Any = "r" if size > 2**20 else None
        columns[name] = np.load(path, mmap_mode=mode, allow_pickle=False)
    rtg = columns.pop("rtg")
    return cols.from_columns(columns, meta, source=meta["source"], rtg=rtg, validated=True)


class Build:
    """A converted folder in the making.

    Readers allocate their large columns in it, so that what they read goes straight to disk and a
    source larger than memory can be converted.

    Args:
        target: the folder to be. It is replaced if it exists by the time of :meth:`finish`.

    Raises:
        OSError: the folder above cannot be written.
    """

    def __init__(self, target: Path):
        self.target = target
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        name = f".{target.name}.part-{os.getpid()}-{secrets.token_hex(4)}"
        self.folder = target.with_name(name)
        self.folder.mkdir()
        self.made: dict[str, np.ndarray] = {}
        self.failure: OSError | None = None

    def allocate(self, column: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """A new column backed by a file of the folder; plain memory when the disk is full."""
        path = self.folder / f"{column}.npy"
        try:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
            _reserve(path)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                self.failure = error
            path.unlink(missing_ok=True)
            return cols.in_memory(column, shape, dtype)
        self.made[column] = array
        return array

    def finish(self, data: Trajectories, key: dict[str, Any] | None = None) -> Path:
        """Write what is not there yet, sync, and give the folder its name.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        if self.failure is not None:
            raise self.failure
        columns = cols.columns_of(data)
        if data.rtg is not None:
            columns["rtg"] = data.rtg
        entries: dict[str, Any] = {}
        for i, (name, array) in enumerate(columns.items()):
            path = self.folder / (f"extra_{i}.npy" if name.startswith("extra/") else f"{name}.npy")
            made = self.made.pop(name, None)
            if made is not None and _same_memory(made, array):
                made.flush()  # type: ignore[attr-defined]
            else:
                path.unlink(missing_ok=True)
                np.save(path, array, allow_pickle=False)
            _sync(path)
            entries[name] = {"file": path.name, "bytes": path.stat().st_size}
        meta = cols.meta_of(data)
        meta["notes"]["fingerprint_of_columns"] = data.fingerprint
        meta |= {"key": key, "columns": entries}
        (self.folder / _META).write_text(json.dumps(meta, indent=1), "utf-8")
        _sync(self.folder / _META)
        _sync(self.folder)
        return self._rename()

    def _rename(self) -> Path:
        old = Path(f"{self.folder}.old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.target, old)
        try:
            os.rename(self.folder, self.target)
        except OSError:
            # Another process finished the same copy in between: its folder is as good.
            if not (self.target / _META).exists():
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
        _sync(self.target.parent)
        return self.target

    def discard(self) -> None:
        """Remove what was not finished; without effect afterwards."""
        self.made.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    same = a.__array_interface__["data"] == b.__array_interface__["data"]
    return same and a.shape == b.shape and a.dtype == b.dtype and b.flags.c_contiguous


def _reserve(path: Path) -> None:
    """Claim the disk space of a sparse file: writing a map on a full disk kills the process.

    Raises:
        OSError: there is not enough space.
    """
    size = path.stat().st_size
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(path).free < size:
        raise OSError(28, "No space left on device", str(path))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_abandoned(target: Path) -> None:
    """Unfinished folders of the same target whose process must have died."""
    for path in target.parent.glob(f".{target.name}.part*"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


# --- conversion -------------------------------------------------------------------------------


def convert(
    source: str | Trajectories | Sequence[str | Trajectories],
    destination: str,
    options: LoadOptions | None = None,
) -> str:
    """Write data in another form: ``cache:PATH``, ``npz:PATH``, ``d4rl:PATH`` or ``minari:ID``.

    A single source that goes to ``cache:`` without options that change its contents is converted
    column by column on disk, so it may be larger than memory.

    Args:
        source: URI, name, data, or several that belong together.
        destination: URI of a place where nothing is yet.
        options: as for :func:`seqrl.load_dataset`.

    Returns:
        The destination.

    Raises:
        SeqrlError: unknown kind of destination, something is there already, or a failed write.
    """
    from seqrl.datasets import catalog

    options = options or catalog.LoadOptions()
    to = catalog.parse_uri(destination)
    if to.scheme not in ("cache", "npz", "d4rl", "minari"):
        raise SeqrlError(
            f"cannot write '{to.scheme}:' data", hint="write cache:, npz:, d4rl: or minari:"
        )
    if to.scheme == "minari":
        catalog.load_dataset(source, options=options).to_minari(to.name)
        return destination
    path = Path(to.name).expanduser()
    if path.exists():
        raise SeqrlError(f"'{path}' exists already", hint="delete it, or name another place")
    if to.scheme == "cache":
        _convert_to_folder(source, path, options)
    else:
        data = catalog.load_dataset(source, options=options)
        (data.to_npz if to.scheme == "npz" else data.to_d4rl)(path)
    return destination


def _convert_to_folder(
    source: str | Trajectories | Sequence[str | Trajectories], path: Path, options: LoadOptions
) -> None:
    from seqrl.datasets import catalog

    try:
        build = Build(path)
    except OSError as error:
        raise SeqrlError(f"'{path}' cannot be written: {error}") from error
    try:
        if isinstance(source, str):
            plain = dataclasses.replace(options, cache=False)
            data = catalog.read_source(source, plain, build.allocate)
            if source in catalog.CATALOGUE:
                data.task = dataclasses.replace(data.task, name=source)
            data = catalog.apply_options(data, plain)
        else:
            data = catalog.load_dataset(source, options=options)
        build.finish(data.compact())
    except OSError as error:
        raise SeqrlError(f"'{path}' cannot be written: {error}") from error
    finally:
        build.discard()


def list_copies() -> list[Path]:
    """The automatic copies there are; each is a folder that may be deleted."""
    root = cache_folder()
    return sorted(p for p in root.iterdir() if (p / _META).exists()) if root.is_dir() else []
