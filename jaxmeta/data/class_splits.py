"""Splits of classes where none is published: drawn from a seed, by the names alone."""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxmeta.data.pools import ClassPool, DataError

_LOG = logging.getLogger(__name__)

PARTS = ("train", "validation", "test")
# The share of validation, and of test: as Meta-Dataset (Triantafillou et al. 2020) divides.
HELD_OUT = 0.15


def split_classes(
    names: Sequence[str], seed: int = 0, *, ways: int = 2, train_ways: int | None = None
) -> dict[str, tuple[str, ...]]:
    """Divide classes among training, validation and test, as if by chance: 70 %, 15 % and 15 %.

    Classes are ranked by the SHA-256 of the seed and their name: the split does not depend on their order, on the
    machine, or on the version of a library, and a class that is added moves at most the ones at the borders.

    Args:
      names: The classes.
      seed: Another seed, another split.
      ways: Classes in a task; validation and test get at least as many, at the cost of training.
      train_ways: Classes in a task of training; None for `ways`.

    Returns:
      For "train", "validation" and "test" their classes, sorted by name; no class is in two.

    Raises:
      DataError: there are too few classes.

    Example:
      >>> {part: len(of_part) for part, of_part in split_classes([f"class {i}" for i in range(345)]).items()}
      {'train': 241, 'validation': 52, 'test': 52}
    """
    needed = (train_ways or ways) + 2 * ways
    if len(names) < needed:
        raise DataError(
            f"There are {len(names)} classes; tasks of {ways} classes that were not trained on need {needed}: "
            f"{train_ways or ways} to train on, {ways} to validate with and {ways} to test on. Use fewer ways, or more "
            "classes."
        )
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}|{name}".encode(errors="surrogateescape")).digest())
    held_out = min(max(ways, round(HELD_OUT * len(names))), (len(names) - (train_ways or ways)) // 2)
    cut = len(names) - 2 * held_out
    parts = ranked[:cut], ranked[cut : cut + held_out], ranked[cut + held_out :]
    return {part: tuple(sorted(of_part)) for part, of_part in zip(PARTS, parts, strict=True)}


def divide_pool(
    pool: ClassPool, names: Sequence[str], split: Mapping[str, Sequence[str]]
) -> tuple[dict[str, ClassPool], dict[str, tuple[str, ...]]]:
    """Divide a pool of classes as a split says.

    Args:
      pool: All classes.
      names: `[classes]`.
      split: Of each part its classes.

    Returns:
      The pool and the names of each part.

    Example:
      >>> import numpy as np
      >>> pool = ClassPool(np.zeros([3, 1, 2, 2, 1], np.uint8), np.ones([3], np.int32))
      >>> divide_pool(pool, ["a", "b", "c"], {"train": ["a", "c"], "test": ["b"]})[1]
      {'train': ('a', 'c'), 'test': ('b',)}
    """
    place = {name: number for number, name in enumerate(names)}
    chosen = {part: [place[name] for name in of_part] for part, of_part in split.items()}
    pools = {part: ClassPool(pool.images[rows], pool.counts[rows]) for part, rows in chosen.items()}
    return pools, {part: tuple(of_part) for part, of_part in split.items()}


def write_split(path: Path, split: Mapping[str, Sequence[str]]) -> None:
    """Write a split down as JSON, for those who want to know; where that fails, the log says so.

    Args:
      path: The file, beside the cached pool.
      split: Of each part its classes.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    text = json.dumps({part: list(of_part) for part, of_part in split.items()}, indent=1)
    try:
        if path.is_file() and path.read_text() == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text)
        os.replace(draft, path)
    except OSError as error:
        _LOG.warning("The split of the classes could not be written to %s (%s).", path, error.strerror or error)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
