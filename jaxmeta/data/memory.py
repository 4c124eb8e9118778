"""How much memory the host has left, and room for what it is too small for."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmeta.data.cache import cache_dir
from jaxmeta.data.pools import DataError

# Larger arrays of images are mapped, whatever memory there is.
IN_MEMORY = 4 << 30


def free_memory() -> int | None:
    """Tell how many bytes the system, and the limit of a container, leave to this process.

    Returns:
      Bytes; where a system does not say what is free, half of what it has; None where it says neither.

    Example:
      >>> free_memory() is None or free_memory() > 0
      True
    """
    meminfo, container = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    limit, used = container / "memory.max", container / "memory.current"
    if meminfo.exists():
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        available = int(line.split()[1]) * 1024
        if limit.exists() and limit.read_text().strip().isdigit():
            available = min(available, int(limit.read_text()) - int(used.read_text()))
        return available
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def room_for(shape: tuple[int, ...]) -> np.ndarray:
    """Make room for images: in memory, or where they are large beside what is free, on the disk.

    Args:
      shape: Of the array.

    Returns:
      Zeros, uint8; of more than `IN_MEMORY` bytes, or a quarter of the free memory, as a memory map of a nameless file
      in the cache's folder, which is gone when the array is.

    Raises:
      DataError: there is no space on the disk; said before anything is read.

    Example:
      >>> int(room_for((2, 4, 4, 1)).sum())
      0
    """
    size, free = int(np.prod(shape, dtype=np.int64)), free_memory()
    if size <= min(IN_MEMORY, IN_MEMORY if free is None else free // 4):
        return np.zeros(shape, np.uint8)
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_dir()) as file:
            # Reserved first: writing to a map of a file on a full disk would end the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise DataError(
            f"There is no room for {size / 1e9:.1f} GB of images in {cache_dir()} ({error.strerror or error}): set "
            "JAXMETA_CACHE to a folder with space that you may write to, or ask for smaller images."
        ) from error


def rows_of(images: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """Take rows of an array, one after the other, into an array that `room_for` makes: no second copy in memory.

    Args:
      images: `[rows, ...]` uint8.
      rows: Which of them, in order.

    Returns:
      `[len(rows), ...]`.

    Example:
      >>> rows_of(np.array([[1], [2], [3]], np.uint8), [2, 0]).tolist()
      [[3], [1]]
    """
    taken = room_for((len(rows), *images.shape[1:]))
    for place, row in enumerate(rows):
        taken[place] = images[row]
    return taken
