"""The tasks behind a number: which those of a protocol are, and their hash."""

import hashlib
import json
import math
from pathlib import Path

import jax
import numpy as np

from jaxmeta.base import Key
from jaxmeta.data import DataError, Dataset, EpisodeSpec, TaskSource, augmented, number_of_tasks, task_source
from jaxmeta.data.pools import only_upright
from jaxmeta.evaluate import draw_tasks
from jaxmeta.protocols import (
    DRAWN,
    EVALUATION_SEED,
    FIXED,
    PAIRS,
    PARTS,
    TURNED_BY_CHANCE,
    TURNED_CLASSES,
    VARYING,
    Protocol,
)

# Numbers of a task source that are drawn and hashed at once.
_AT_ONCE = 2**23


def evaluation_key(part: str, seed: int = EVALUATION_SEED) -> Key:
    """Give the key of the evaluation tasks of a part."""
    return jax.random.fold_in(jax.random.key(seed), PARTS.index(part))


def episodes_of(protocol: Protocol, dataset: Dataset, data_dir: Path | None = None, pool: str = "device") -> TaskSource:
    """Make the source of a protocol's tasks.

    Args:
      protocol: The protocol.
      dataset: What tasks are drawn of.
      data_dir: Where fixed episodes are.
      pool: Where the images are kept, "device" or "host".

    Returns:
      A `TaskSource`.

    Raises:
      ValueError: if the data cannot serve them; says which number does not fit.
      DataError: if fixed episodes are missing or damaged.
    """
    if protocol.episodes_from in DRAWN:
        spec = EpisodeSpec(protocol.ways, protocol.shots, protocol.queries)
        within, varying = protocol.within_alphabet, protocol.episodes_from == VARYING
        if protocol.turns != TURNED_CLASSES:
            dataset = only_upright(dataset)
        source = task_source(dataset, protocol.part, spec, within_group=within, varying=varying, pool=pool)
        return augmented(source, ["turn"]) if protocol.turns == TURNED_BY_CHANCE else source
    if protocol.episodes_from in PAIRS:
        raise ValueError(f"episodes_from={protocol.episodes_from!r} is of verification, which has no tasks.")
    if data_dir is None:
        raise DataError(f"The tasks of {protocol.episodes_from} are not downloaded: give their folder by --data-dir.")
    source = FIXED[protocol.episodes_from](data_dir)
    # Fewer would be other tasks under the same name; more, the last one again, and an interval that is too narrow.
    if (number := number_of_tasks(source)) not in (None, protocol.episodes):
        raise ValueError(f"{protocol.episodes_from} is {number} tasks, not {protocol.episodes}.")
    return source


def episodes_hash(source: TaskSource, key: Key, num_tasks: int) -> str:
    """Hash the tasks that an evaluator meets: SHA-256 over inputs, targets and weights, 12 hex digits.

    Images are brought back to the bytes that they were made of, so that the hash does not depend on the last
    bit of a product; other inputs are hashed as they are.

    Args:
      source: Where tasks come from, with the size of the evaluation's episodes.
      key: That of the evaluator.
      num_tasks: Number of tasks.

    Returns:
      12 hex digits. One changed pixel gives others; in how many parts the tasks were drawn does not.

    Example:
      >>> from jaxmeta import load_sinusoid
      >>> source = task_source(load_sinusoid(), "test", EpisodeSpec(1, 5, 10))
      >>> len(episodes_hash(source, jax.random.key(0), 20))
      12
    """
    # As the evaluator does: the other key is for the learner.
    key = jax.random.split(key)[0]
    shapes = jax.eval_shape(lambda: source.sample(key, source.pool, source.spec, 1))
    at_once = max(1, min(num_tasks, _AT_ONCE // sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))))
    of_bytes = getattr(getattr(source.pool, "images", None), "dtype", None) == np.uint8
    described = [[leaf.dtype.name, *leaf.shape[1:]] for leaf in jax.tree.leaves(shapes)]
    digest = hashlib.sha256(json.dumps(described).encode())
    for first in range(0, num_tasks, at_once):
        episodes = jax.device_get(draw_tasks(source.sample, key, source.pool, source.spec, at_once, first))
        if of_bytes:
            episodes = episodes._replace(support=_as_bytes(episodes.support), query=_as_bytes(episodes.query))
        leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(episodes)]
        for task in range(min(at_once, num_tasks - first)):
            for leaf in leaves:
                digest.update(leaf[task])
    return digest.hexdigest()[:12]


def _as_bytes(batch):
    return batch._replace(inputs=np.rint(batch.inputs * np.float32(255)).astype(np.uint8))
