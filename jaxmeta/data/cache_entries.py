"""What is in the cache: listed, and removed without touching anything that is not the library's."""

import contextlib
import glob
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmeta.data.cache import cache_dir, locked
from jaxmeta.data.pool_file import VersionError, read_header
from jaxmeta.data.pools import DataError, Dataset

# What writing and locking leave behind when they are killed: ".NAME.npz.PROCESS-RANDOM.tmp" and ".NAME.npz.lock".
_LEFT_OVER = re.compile(r"\.(?P<name>.+\.npz)\.(?:\d+-[0-9a-f]{8}\.tmp|lock)")
# What the names of notes beside a file end with: see `write_beside`.
_NOTE = re.compile(r"(?:-split\d+)?\.json")
# What follows the name of a data set in the name of its file: numbers, and the beginning of a checksum.
_ENDING = re.compile(r"(?:-[0-9a-z]+)*-(?:\d+|[0-9a-f]{12,64})")


class CacheEntry(NamedTuple):
    """A prepared data set in the cache.

    Attributes:
      path: Its `.npz` file.
      size: Bytes on the disk, of all that belongs to it.
      state: "ready", "damaged", "other version" or "unfinished" (being prepared, or left by a process that was killed).
      problem: What is amiss with it; "" if it is ready.
      header: What the file says of itself; empty if it cannot be used.
      dataset: What it holds, its images mapped; None if it cannot be used.
    """

    path: Path
    size: int
    state: str
    problem: str = ""
    header: dict[str, Any] = {}
    dataset: Dataset | None = None


def cache_entries(known: Collection[str], folder: Path | None = None) -> list[CacheEntry]:
    """List the prepared data sets of a cache. Their headers are read, and a sample of their images is checked.

    Args:
      known: Names of data sets: a damaged file is taken for one of the library's by its name only.
      folder: The cache; None for `cache_dir()`.

    Returns:
      The entries by file name. Other files of the folder are none.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = (Path(folder) / "holidays.npz").write_bytes(b"not ours")
      ...     cache_entries(["omniglot"], Path(folder))
      []
    """
    folder = cache_dir() if folder is None else folder
    if not folder.is_dir():
        return []
    # A link may lead to a file that belongs elsewhere.
    present = {path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink()}
    left_over = {name for name in map(_left_over_of, present) if name}
    pools = {name for name in present if name.endswith(".npz") and not name.startswith(".")}
    entries = (_entry(folder / name, known) for name in sorted(pools | left_over))
    return [entry for entry in entries if entry is not None]


def _entry(path: Path, known: Collection[str]) -> CacheEntry | None:
    size = sum(file.stat().st_size for file in _files(path))
    try:
        header, dataset = read_header(path)
        return CacheEntry(path, size, "ready", "", header, dataset)
    except FileNotFoundError:
        return CacheEntry(path, size, "unfinished", "it is being prepared, or was when its process was killed")
    except VersionError as error:
        return CacheEntry(path, size, "other version", str(error))
    except (DataError, OSError) as error:
        ours = any(path.stem.startswith(name) and _ENDING.fullmatch(path.stem[len(name) :]) for name in known)
        return CacheEntry(path, size, "damaged", str(error)) if ours else None


def _left_over_of(name: str) -> str | None:
    match = _LEFT_OVER.fullmatch(name)
    return match and match["name"]


def _files(path: Path) -> list[Path]:
    """List what belongs to a prepared data set: its file, the notes beside it, and what was left over."""
    notes = path.parent.glob(f"{glob.escape(path.stem)}*.json")
    own = [path, *(note for note in notes if _NOTE.fullmatch(note.name[len(path.stem) :]))] if path.exists() else []
    left = [file for file in path.parent.glob(".*") if _left_over_of(file.name) == path.name]
    return [file for file in [*own, *left] if file.is_file()]


def entries_named(entries: Sequence[CacheEntry], name: str) -> list[CacheEntry]:
    """Find the entries that a name stands for: that of a file, or of a data set.

    Args:
      entries: Of `cache_entries`.
      name: "omniglot-1-0123456789abcdef", with or without ".npz", or "omniglot", or "folder:PATH".

    Returns:
      The entries.
    """
    exact = [entry for entry in entries if name in (entry.path.name, entry.path.stem)]
    row, _, place = name.partition(":")
    if place:
        name = f"{row}:{Path(place).expanduser().resolve()}"
    # All folders' files begin with "folder".
    return exact or [entry for entry in entries if name in (dataset_name(entry), entry.path.stem.split("-")[0])]


def dataset_name(entry: CacheEntry) -> str:
    """Tell the data set of an entry, by its file's name where its header cannot be read; a folder by its path."""
    row, source = entry.path.stem.split("-")[0], (entry.header.get("made") or {}).get("source")
    if row == "folder" and source:
        return f"folder:{source}"
    return entry.header.get("name") or row


def remove_entry(entry: CacheEntry) -> int | None:
    """Remove a prepared data set and what belongs to it, unless it is being prepared.

    A process that has it open goes on with it.

    Args:
      entry: Of `cache_entries`.

    Returns:
      How many bytes are free now; None if another process is preparing it, and nothing was removed.

    Raises:
      OSError: it may not be removed.
    """
    with locked(entry.path, patience=0) as state:
        if state == "taken":
            return None
        for file in _files(entry.path):
            # The lock itself is removed when it is released.
            if not file.name.endswith(".lock") or state == "none":
                with contextlib.suppress(FileNotFoundError):
                    file.unlink()
    return entry.size
