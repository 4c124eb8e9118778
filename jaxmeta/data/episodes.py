"""Episodes from a pool of classes: a pure function of a key, jittable, on the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.base import Batch, Episode, Key, example_batch
from jaxmeta.data.pools import ClassPool


class EpisodeSpec(NamedTuple):
    """Size of an episode: classes, and support and query images of each."""

    ways: int
    shots: int
    queries: int


class TaskSource(NamedTuple):
    """Where batches of tasks come from.

    Attributes:
      sample: `(key, pool, spec, num_tasks, *, first_task=0) -> Episode`, pure and jittable.
      pool: The arrays it reads, `()` if it makes its tasks from the key alone.
      spec: Size of the episodes.
    """

    sample: Callable[..., Episode]
    pool: Any
    spec: EpisodeSpec


def check_spec(spec: EpisodeSpec, pool: ClassPool, name: str = "the pool") -> None:
    """Refuse a specification that a pool cannot serve.

    Args:
      spec: What is asked for.
      pool: Where it is to come from.
      name: What to call the pool in the message.

    Raises:
      ValueError: names the numbers asked for and those at hand.

    Example:
      >>> import numpy as np
      >>> pool = ClassPool(np.zeros([3, 20, 28, 28, 1], np.uint8), np.full([3], 20, np.int32))
      >>> check_spec(EpisodeSpec(ways=5, shots=1, queries=15), pool)
      Traceback (most recent call last):
      ...
      ValueError: 5 ways were asked for, but the pool has 3 classes. Ask for at most 3 ways.
    """
    for field, value in spec._asdict().items():
        if value < 1:
            raise ValueError(f"{field} must be at least 1; given {value}.")
    classes = pool.images.shape[0]
    if spec.ways > classes:
        raise ValueError(
            f"{spec.ways} ways were asked for, but {name} has {classes} classes. Ask for at most {classes} ways."
        )
    fewest = int(pool.counts.min())
    if spec.shots + spec.queries > fewest:
        raise ValueError(
            f"{spec.shots} shots + {spec.queries} queries were asked for, but a class of {name} has "
            f"{fewest} images. Shots and queries must add up to at most {fewest}."
        )


def sample_episode(key: Key, pool: ClassPool, spec: EpisodeSpec) -> Episode:
    """Draw one task: distinct classes, and distinct images for support and query.

    Args:
      key: Source of randomness; the same key gives the same episode.
      pool: Images `[classes, per_class, height, width, channels]` uint8.
      spec: Ways, shots and queries.

    Returns:
      An `Episode`: inputs `[ways * shots, ...]` and `[ways * queries, ...]` float32 in
      [0, 1], grouped by class; targets int32 in [0, ways), numbered in the order drawn.

    Example:
      >>> import jax, numpy as np
      >>> pool = ClassPool(np.zeros([9, 20, 28, 28, 1], np.uint8), np.full([9], 20, np.int32))
      >>> sample_episode(jax.random.key(0), pool, EpisodeSpec(5, 1, 15)).query.inputs.shape
      (75, 28, 28, 1)
    """
    key_classes, key_images = jax.random.split(key)
    num_classes, per_class = pool.images.shape[:2]
    # The largest of independent uniforms are a draw without replacement.
    _, classes = jax.lax.top_k(jax.random.uniform(key_classes, [num_classes]), spec.ways)
    scores = jax.random.uniform(key_images, [spec.ways, per_class])
    real = jnp.arange(per_class) < jnp.asarray(pool.counts)[classes][:, None]
    _, chosen = jax.lax.top_k(jnp.where(real, scores, -1.0), spec.shots + spec.queries)
    images = _as_floats(jnp.asarray(pool.images)[classes[:, None], chosen])
    support, query = images[:, : spec.shots], images[:, spec.shots :]
    return Episode(_flatten(support), _flatten(query))


def sample_episodes(
    key: Key, pool: ClassPool, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Draw a batch of tasks; every leaf has a leading task axis.

    Args:
      key: Source of randomness: fold the outer step into it for episode = f(seed, step).
      pool: Images `[classes, per_class, height, width, channels]` uint8.
      spec: Ways, shots and queries.
      num_tasks: Number of tasks.
      first_task: Number of the first one, to draw a part of a larger batch.

    Returns:
      An `Episode` with leaves `[num_tasks, ...]`. Task i of a key is the same in
      whatever batch it is drawn.

    Example:
      >>> import jax, numpy as np
      >>> pool = ClassPool(np.zeros([9, 20, 28, 28, 1], np.uint8), np.full([9], 20, np.int32))
      >>> sample_episodes(jax.random.key(0), pool, EpisodeSpec(5, 1, 1), 32).support.inputs.shape
      (32, 5, 28, 28, 1)
    """
    keys = task_keys(key, num_tasks, first_task=first_task)
    return jax.vmap(lambda task_key: sample_episode(task_key, pool, spec))(keys)


def sample_classification(
    key: Key, pool: ClassPool, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Draw batches for ordinary classification: any images, with their class numbers among all of the pool.

    Every real image is equally likely, and may come again. Two batches make an `Episode`, so that
    a train step takes it.

    Args:
      key: Source of randomness, as for `sample_episodes`.
      pool: Images `[classes, per_class, height, width, channels]` uint8.
      spec: The support batch has ways * shots images, the query batch ways * queries.
      num_tasks: Number of pairs of batches.
      first_task: Number of the first one.

    Returns:
      An `Episode` with leaves `[num_tasks, ...]`: inputs float32 in [0, 1], targets int32 in
      [0, classes). Pair i of a key is the same however many are drawn.

    Example:
      >>> import jax, numpy as np
      >>> pool = ClassPool(np.zeros([64, 20, 28, 28, 1], np.uint8), np.full([64], 20, np.int32))
      >>> episodes = sample_classification(jax.random.key(0), pool, EpisodeSpec(5, 1, 15), 2)
      >>> episodes.query.inputs.shape, bool(episodes.query.targets.max() >= 5)
      ((2, 75, 28, 28, 1), True)
    """
    ends = jnp.cumsum(jnp.asarray(pool.counts))

    def one_pair(task_key):
        sizes = spec.ways * spec.shots, spec.ways * spec.queries
        number = jax.random.randint(task_key, [sum(sizes)], 0, ends[-1])
        classes = jnp.searchsorted(ends, number, side="right").astype(jnp.int32)
        of_class = number - ends[classes] + jnp.asarray(pool.counts)[classes]
        batch = example_batch(_as_floats(jnp.asarray(pool.images)[classes, of_class]), classes)
        support, query = (jax.tree.map(part, batch) for part in (lambda x: x[: sizes[0]], lambda x: x[sizes[0] :]))
        return Episode(support, query)

    return jax.vmap(one_pair)(task_keys(key, num_tasks, first_task=first_task))


def task_keys(key: Key, num_tasks: int, *, first_task: int | jax.Array = 0) -> Key:
    """Make one key for each task, that of task i independent of the number of tasks.

    Args:
      key: The key of the batch.
      num_tasks: Number of tasks.
      first_task: Number of the first one.

    Returns:
      Keys `[num_tasks]`.

    Example:
      >>> import jax
      >>> key = jax.random.key(0)
      >>> bool(task_keys(key, 8)[5] == task_keys(key, 3, first_task=3)[2])
      True
    """
    return jax.vmap(lambda task: jax.random.fold_in(key, task))(first_task + jnp.arange(num_tasks))


def _as_floats(images: jax.Array) -> jax.Array:
    # A product, since a compiled division may differ from this one in its last bit.
    return images.astype(jnp.float32) * jnp.float32(1 / 255)


def _flatten(images: jax.Array) -> Batch:
    ways, count = images.shape[:2]
    targets = jnp.repeat(jnp.arange(ways, dtype=jnp.int32), count)
    return example_batch(images.reshape(ways * count, *images.shape[2:]), targets)
