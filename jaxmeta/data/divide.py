"""Classes divided into those to train on, to validate with and to test on, by chance and the same everywhere."""

import hashlib
from collections.abc import Mapping, Sequence

from jaxmeta.data.memory import rows_of
from jaxmeta.data.pools import ClassPool, DataError

# As of the 100 classes of mini-ImageNet (Ravi and Larochelle, 2017): 64, 16 and 20.
SHARES = {"validation": 0.16, "test": 0.20}


def divide_classes(
    names: Sequence[str], seed: int = 0, *, ways: int = 2, train_ways: int | None = None
) -> dict[str, tuple[str, ...]]:
    """Divide classes into splits that share none: 64 % to train on, 16 % to validate with, 20 % to test on.

    Validation and test get at least as many as a task needs, at the cost of training. Who goes where depends on the
    names and the seed alone: each name has a place in an order by hash, and the order is cut in three. So it does not
    depend on the order the names are given in, on the machine, or on what is in the classes; a class that is added
    moves at most one other across each cut.

    Args:
      names: Distinct names.
      seed: Another one gives another order.
      ways: Classes in a task.
      train_ways: Classes in a task of training; None for `ways`.

    Returns:
      "train", "validation" and "test", each sorted by name.

    Raises:
      DataError: there are too few classes for a task of each split.

    Example:
      >>> {split: len(of_split) for split, of_split in divide_classes([f"class {n}" for n in range(100)]).items()}
      {'train': 64, 'validation': 16, 'test': 20}
    """
    least = train_ways or ways
    needed = least + 2 * ways
    if len(names) < needed:
        # The largest task that would do; of two classes at least.
        remedy = f"Use at most {len(names) // 3} ways, or" if len(names) >= 6 else "Use"
        raise DataError(
            f"{len(names)} classes do not do: tasks of {ways} classes that were not trained on need {least} to train "
            f"on, {ways} others to validate with and {ways} to test on, {needed} in all. {remedy} more classes."
        )
    order = hash_order(names, seed)
    test = min(max(ways, round(SHARES["test"] * len(names))), len(names) - ways - least)
    validation = min(max(ways, round(SHARES["validation"] * len(names))), len(names) - test - least)
    cut = test + validation
    parts = {"train": order[cut:], "validation": order[test:cut], "test": order[:test]}
    return {split: tuple(sorted(of_split)) for split, of_split in parts.items()}


def hash_order(names: Sequence[str], seed: int) -> list[str]:
    """Put names in an order that looks like chance, in which a new one finds its place and the others keep theirs."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest())


def divide_pool(
    pool: ClassPool, names: Sequence[str], split: Mapping[str, Sequence[str]]
) -> tuple[dict[str, ClassPool], dict[str, tuple[str, ...]]]:
    """Divide a pool of classes as a split says; large parts are memory maps, see `room_for`.

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
    pools = {part: ClassPool(rows_of(pool.images, rows), pool.counts[rows]) for part, rows in chosen.items()}
    return pools, {part: tuple(of_part) for part, of_part in split.items()}
