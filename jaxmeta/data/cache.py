"""The folder of prepared data sets: each is prepared once (rendered, downloaded, resized) and then only opened.

Of several processes that want the same data set, one prepares it and the others wait. The cache is a convenience: where
it cannot be written or locked, the data set is still handed back.
"""

import contextlib
import datetime
import errno
import glob
import importlib.metadata
import json
import logging
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxmeta.data.pool_file import FORMAT_VERSION, read_dataset, write_dataset
from jaxmeta.data.pools import DataError, Dataset

_LOG = logging.getLogger(__name__)
# Seconds to wait for another process. It may hang; then the data is prepared here as well.
PATIENCE = 3600
# What the pixels depend on.
_PACKAGES = ("jaxmeta", "numpy", "pillow", "tensorflow-datasets")


def cache_dir() -> Path:
    """Return the folder prepared data is kept in; it need not exist yet.

    It is `$JAXMETA_CACHE` where that is set, else `jaxmeta` in the user's cache folder
    (`$XDG_CACHE_HOME`, or `.cache` in the home folder).

    Example:
      >>> from unittest.mock import patch
      >>> with patch.dict("os.environ", JAXMETA_CACHE="somewhere"):
      ...     cache_dir().name
      'somewhere'
    """
    own = os.environ.get("JAXMETA_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmeta"


def cached_dataset(path: Path, build: Callable[[], Dataset], *, source: str = "") -> Dataset:
    """Open a prepared data set, or prepare it and leave it for the next time.

    A file that is damaged or of another version is rebuilt, with a warning. Of several
    processes that do so at once, one prepares it and the others wait for it; where files
    cannot be locked, each prepares it and replaces the file as a whole. Where the file cannot
    be written (no permission, full disk) the data set is returned all the same, with a
    warning, and no part of a file stays behind.

    Args:
      path: The `.npz` file.
      build: Prepares the data set; called only when the file cannot be used.
      source: Where it is prepared from, a folder or an address, to be kept with it (as is its `origin`).

    Returns:
      The data set, with NumPy arrays; large ones are read-only maps of the file.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from jaxmeta.data.pools import ClassPool
      >>> pool = ClassPool(np.zeros([1, 1, 2, 2, 1], np.uint8), np.ones([1], np.int32))
      >>> toy = Dataset("toy", "classification", {"train": pool}, {"train": ("a",)})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = cached_dataset(Path(folder) / "toy.npz", lambda: toy)
      ...     again = cached_dataset(Path(folder) / "toy.npz", lambda: None)  # not called
      >>> again.class_names
      {'train': ('a',)}
    """
    path = Path(path)
    dataset, amiss = _open(path)
    if dataset is not None:
        return dataset
    if amiss:
        warnings.warn(f"The cached data is prepared again: {amiss}", stacklevel=2)
    with locked(path, PATIENCE):
        # Another process may have prepared it meanwhile.
        dataset, _ = _open(path)
        if dataset is not None:
            return dataset
        began = time.perf_counter()
        dataset = build()
        seconds = time.perf_counter() - began
        try:
            write_dataset(path, dataset, _made(source, seconds))
            _LOG.info("prepared in %.1f s and kept in %s", seconds, path, extra={"cached": path, "prepared": True})
        except OSError as error:
            _LOG.info("not kept in %s", path, extra={"cached": path, "problem": error.strerror or str(error)})
            warnings.warn(
                f"The prepared data could not be kept in {path} ({error.strerror or error}), so it will be "
                "prepared again next time; set JAXMETA_CACHE to a folder with space that you may write to.",
                stacklevel=2,
            )
    return dataset


def write_beside(path: Path, ending: str, facts: Mapping[str, Any]) -> Path:
    """Write facts about a cached data set down beside it, for those who want to know; the log says where that fails.

    Args:
      path: The `.npz` file.
      ending: What the name of the note ends with, in place of ".npz"; it ends with ".json" itself.
      facts: Plain values.

    Returns:
      The file that was written, or should have been.
    """
    note = path.with_name(path.stem + ending)
    # The name of a draft of the data set itself, which is removed with it.
    draft = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    text = json.dumps(facts, indent=1) + "\n"
    try:
        if note.is_file() and note.read_text() == text:
            return note
        note.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text)
        os.replace(draft, note)
    except OSError as error:
        _LOG.warning("%s could not be written (%s).", note, error.strerror or error)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return note


def is_full_disk(error: BaseException) -> bool:
    """Tell whether an error, or what it came of, is that nothing more can be written: some say so in words only."""
    numbers = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
    words = [os.strerror(number).lower() for number in numbers]
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in numbers or any(word in str(cause).lower() for word in words):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _open(path: Path) -> tuple[Dataset | None, str]:
    """Return the data set that a file holds, or None and what is amiss with the file, if there is one."""
    try:
        dataset = read_dataset(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except (DataError, OSError) as error:
        return None, str(error)
    _LOG.info("opened %s", path, extra={"cached": path})
    return dataset, ""


def _made(source: str, seconds: float) -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "source": source,
        "versions": versions,
    }


@contextlib.contextmanager
def locked(path: Path, patience: float) -> Iterator[str]:
    """Prepare or remove a cached file while no other process does.

    The lock is the operating system's and ends with the process that holds it, however that ends.

    Args:
      path: The cached file; the lock is a file beside it, there only while it is held.
      patience: Seconds to wait for another process.

    Yields:
      "mine"; "taken" if another process does not let go of it; "none" where files cannot be locked.
    """
    # Not needed to open what is prepared, and not quite free to import.
    from filelock import FileLock

    new_folders = [folder for folder in path.parents if not folder.exists()]
    lock_file = path.with_name(f".{path.name}.lock")
    # A soft lock, which is a mere file, would outlive a process that is killed.
    lock = FileLock(lock_file, fallback_to_soft=False)
    state = "none"
    try:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            state = "mine" if _acquire(lock, path, patience) else "taken"
        if state == "mine":
            _remove_drafts(path)
        yield state
    finally:
        if state == "mine":
            # Before it is released: who waits for a file that is gone makes a new one.
            with contextlib.suppress(OSError):
                lock_file.unlink()
            lock.release()
        # Nothing came of it where they are still empty.
        with contextlib.suppress(OSError):
            for folder in new_folders:
                folder.rmdir()


def _acquire(lock, path: Path, patience: float) -> bool:
    from filelock import Timeout

    with contextlib.suppress(Timeout):
        lock.acquire(timeout=0)
        return True
    if patience > 0:
        _LOG.warning("Another process is preparing %s; waiting for it.", path)
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=patience)
            return True
        _LOG.warning("The other process does not finish with %s; no longer waiting for it.", path)
    return False


def _remove_drafts(path: Path) -> None:
    """Remove what processes that were killed while they wrote the file have left."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*-*.tmp"):
        with contextlib.suppress(OSError):
            draft.unlink()


__all__ = [
    "FORMAT_VERSION",
    "cache_dir",
    "cached_dataset",
    "is_full_disk",
    "locked",
    "read_dataset",
    "write_beside",
    "write_dataset",
]
