"""Episodes from a pool of classes: a pure function of a key, jittable, on the device."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.base import Episode, Key
from jaxmeta.data.lookup import examples_of_classes, with_pixels
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


class GroupedPool(NamedTuple):
    """A pool whose classes are in groups, as characters are in alphabets.

    Attributes:
      images: `[classes, per_class, height, width, channels]` uint8.
      counts: `[classes]` int32, see `ClassPool`.
      groups: `[classes]` int32, the number of each class's group.
      sizes: `[groups]` int32, how many classes each group has.
    """

    images: Any
    counts: Any
    groups: Any
    sizes: Any


def check_spec(spec: EpisodeSpec, pool: ClassPool | GroupedPool, name: str = "the pool") -> None:
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
    largest = int(pool.sizes.max()) if isinstance(pool, GroupedPool) else classes
    if spec.ways > largest:
        raise ValueError(
            f"{spec.ways} ways within one group (an alphabet) were asked for, but the largest group of {name} has "
            f"{largest} classes. Ask for at most {largest} ways, or draw the classes of a task from all groups."
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
    return with_pixels(pool.images, _choose_episode(key, pool, spec))


def _choose_episode(key: Key, pool: ClassPool, spec: EpisodeSpec) -> Episode:
    key_classes, key_images = jax.random.split(key)
    # The largest of independent uniforms are a draw without replacement.
    _, classes = jax.lax.top_k(jax.random.uniform(key_classes, [pool.images.shape[0]]), spec.ways)
    return _choose_images(key_images, pool, classes, spec)


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
    return with_pixels(pool.images, choose_episodes(key, pool, spec, num_tasks, first_task=first_task))


def choose_episodes(
    key: Key, pool: ClassPool, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Choose the images of `sample_episodes`, without looking them up: inputs are `[..., 2]`, class and number."""
    keys = task_keys(key, num_tasks, first_task=first_task)
    return jax.vmap(lambda task_key: _choose_episode(task_key, pool, spec))(keys)


def sample_within_groups(
    key: Key, pool: GroupedPool, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Draw a batch of tasks, the classes of each from one group; see `within_groups`.

    Args:
      key: Source of randomness.
      pool: Images with the group of every class.
      spec: Ways, shots and queries; at least one group has as many classes as ways.
      num_tasks: Number of tasks.
      first_task: Number of the first one, to draw a part of a larger batch.

    Returns:
      An `Episode` as of `sample_episodes`.
    """
    return with_pixels(pool.images, choose_within_groups(key, pool, spec, num_tasks, first_task=first_task))


def choose_within_groups(
    key: Key, pool: GroupedPool, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Choose the images of `sample_within_groups`, without looking them up: inputs are `[..., 2]`, class and number."""

    def one_task(key):
        key_group, key_classes, key_images = jax.random.split(key, 3)
        enough = jnp.asarray(pool.sizes) >= spec.ways
        group = jnp.where(enough, jax.random.uniform(key_group, enough.shape), -1.0).argmax()
        scores = jax.random.uniform(key_classes, [pool.images.shape[0]])
        _, classes = jax.lax.top_k(jnp.where(jnp.asarray(pool.groups) == group, scores, -1.0), spec.ways)
        return _choose_images(key_images, pool, classes, spec)

    return jax.vmap(one_task)(task_keys(key, num_tasks, first_task=first_task))


def within_groups(source: TaskSource, groups: Sequence[str], name: str = "the pool") -> TaskSource:
    """Draw all classes of a task from one group, such as the characters of one alphabet.

    Groups with fewer classes than ways are passed over; each of the others is as likely, whatever its size.

    Args:
      source: A source of `sample_episodes`.
      groups: `[classes]`, the name of each class's group.
      name: What to call the pool in a message.

    Returns:
      A `TaskSource`; its pool is a `GroupedPool`.

    Raises:
      ValueError: there is not one name for each class, or no group has as many classes as ways.

    Example:
      >>> pool = ClassPool(np.zeros([4, 20, 28, 28, 1], np.uint8), np.full([4], 20, np.int32))
      >>> source = TaskSource(sample_episodes, pool, EpisodeSpec(ways=3, shots=1, queries=1))
      >>> within_groups(source, ["Greek", "Latin", "Latin", "Latin"]).pool.sizes.tolist()
      [1, 3]

    Source: Lake, Salakhutdinov and Tenenbaum, 2015, Science 350(6266): one-shot classification within an alphabet.
    """
    images, counts = source.pool
    if len(groups) != images.shape[0]:
        raise ValueError(f"{name} has {images.shape[0]} classes, each of one group; given {len(groups)} groups.")
    _, numbers, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    grouped = GroupedPool(images, counts, jnp.asarray(numbers, jnp.int32), jnp.asarray(sizes, jnp.int32))
    check_spec(source.spec, grouped, name)
    return TaskSource(sample_within_groups, grouped, source.spec)


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


def _choose_images(key: Key, pool: ClassPool | GroupedPool, classes: jax.Array, spec: EpisodeSpec) -> Episode:
    """Choose distinct images of the classes `[ways]`, for support and query."""
    per_class = pool.images.shape[1]
    scores = jax.random.uniform(key, [spec.ways, per_class])
    real = jnp.arange(per_class) < jnp.asarray(pool.counts)[classes][:, None]
    _, chosen = jax.lax.top_k(jnp.where(real, scores, -1.0), spec.shots + spec.queries)
    support, query = chosen[:, : spec.shots], chosen[:, spec.shots :]
    return Episode(examples_of_classes(classes, support), examples_of_classes(classes, query))
