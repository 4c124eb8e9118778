"""Copies of published data on a disk: where they are, whether they are the published ones, what is in them."""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxmeta.data.cache import cache_dir

_LOG = logging.getLogger(__name__)


def find_prepared(data_dir: Path, builders: Sequence[str]) -> Path | None:
    """Find the folder of a version of a data set that tensorflow-datasets prepared, at or below a folder.

    Args:
      data_dir: tensorflow-datasets' data_dir, or the folder of the data set or of its version.
      builders: Names of the data set.

    Returns:
      The folder with its `dataset_info.json`; None if there is none.
    """
    for folder in (data_dir, *(data_dir / name for name in builders)):
        for info in (folder / "dataset_info.json", *sorted(folder.glob("*/dataset_info.json"), reverse=True)):
            with contextlib.suppress(OSError, ValueError):
                if json.loads(info.read_text())["name"] in builders:
                    return info.parent
    return None


def cache_file(prefix: str, files: Sequence[Path]) -> Path:
    """Name the cached pool of a copy by the contents of its files, wherever they lie.

    Args:
      prefix: What the name begins with: the data set, and the recipe of its images.
      files: The copy.

    Returns:
      A path in `cache_dir()`.
    """
    digest = hashlib.sha256()
    for name, of_file in file_hashes(files).items():
        digest.update(name.encode() + bytes.fromhex(of_file))
    return cache_dir() / f"{prefix}-{digest.hexdigest()[:16]}.npz"


def file_hashes(files: Sequence[Path]) -> dict[str, str]:
    """Hash the files of a copy.

    Args:
      files: The copy.

    Returns:
      The SHA-256 of each, by its name.
    """
    stats = [(path, path.stat()) for path in files]
    return {path.name: _file_hash(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats}


@functools.lru_cache(maxsize=1024)
def _file_hash(path: Path, size: int, modified: int) -> str:
    # A large archive is hashed once in a process; size and time tell whether it is still the same.
    del size, modified
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare_checksum(path: Path, contents: bytes, published: str) -> None:
    """Say in the log if a file is not the published one; it is used all the same.

    Args:
      path: What to call it.
      contents: What is in it.
      published: SHA-256 of what should be.
    """
    found = hashlib.sha256(contents).hexdigest()
    if found != published:
        _LOG.warning(
            "%s is not byte for byte the published file: its sha256 is %s, published is %s. It is used all the same.",
            path,
            found,
            published,
        )


def read_records(builder: Any, splits: Sequence[str], at_once: int = 1000) -> Iterator[dict[str, Any]]:
    """Read the records of a prepared data set in the order they are stored, images as encoded bytes.

    Args:
      builder: From `tfds.builder_from_directory`; its files are array_record.
      splits: Which of its splits.
      at_once: Records read in one go; several times faster than one by one.

    Yields:
      Each record.
    """
    import tensorflow_datasets as tfds

    # The images stay encoded: decoders differ in what they make of one-bit PNGs (0 and 1, or 0 and 255).
    decoders = {"image": tfds.decode.SkipDecoding()}
    for split in splits:
        source = builder.as_data_source(split=split, decoders=decoders)
        for start in range(0, len(source), at_once):
            yield from source.__getitems__(range(start, min(start + at_once, len(source))))
