"""The folder of prepared data sets: each is prepared once (rendered, downloaded, resized) and then only opened.

The cache is a convenience: where it cannot be written, the data set is still handed back.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from jaxmeta.data.pool_file import FORMAT_VERSION, read_dataset, write_dataset
from jaxmeta.data.pools import DataError, Dataset


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


def cached_dataset(path: Path, build: Callable[[], Dataset]) -> Dataset:
    """Open a prepared data set, or prepare it and leave it for the next time.

    A file that is damaged or of another version is rebuilt, with a warning. Several
    processes may do so at once: each replaces the file as a whole. Where the file cannot
    be written (no permission, full disk) the data set is returned all the same, with a
    warning, and no part of a file stays behind.

    Args:
      path: The `.npz` file.
      build: Prepares the data set; called only when the file cannot be used.

    Returns:
      The data set, with NumPy arrays.

    Example:
      >>> import tempfile
      >>> pool = ClassPool(np.zeros([1, 1, 2, 2, 1], np.uint8), np.ones([1], np.int32))
      >>> toy = Dataset("toy", "classification", {"train": pool}, {"train": ("a",)})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = cached_dataset(Path(folder) / "toy.npz", lambda: toy)
      ...     again = cached_dataset(Path(folder) / "toy.npz", lambda: None)  # not called
      >>> again.class_names
      {'train': ('a',)}
    """
    path = Path(path)
    try:
        return read_dataset(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (DataError, OSError) as error:
        warnings.warn(f"The cached data is prepared again: {error}", stacklevel=2)
    dataset = build()
    try:
        write_dataset(path, dataset)
    except OSError as error:
        warnings.warn(
            f"The prepared data could not be kept in {path} ({error.strerror or error}), so it will be "
            "prepared again next time; set JAXMETA_CACHE to a folder with space that you may write to.",
            stacklevel=2,
        )
    return dataset


__all__ = ["FORMAT_VERSION", "cache_dir", "cached_dataset", "read_dataset", "write_dataset"]
