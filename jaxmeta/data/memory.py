"""How much memory the host has left."""

import os
from pathlib import Path


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
