"""Other ways to tasks than drawing classes: tasks that are given, and ordinary classification."""

import jax
import jax.numpy as jnp

from jaxmeta.base import Episode, Key, example_batch
from jaxmeta.data.episodes import EpisodeSpec, TaskSource, task_keys
from jaxmeta.data.lookup import with_pixels
from jaxmeta.data.pools import ClassPool


def sample_fixed(
    key: Key, pool: Episode, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Give tasks first_task, first_task + 1, ... of a fixed set, whatever the key; see `fixed_source`.

    Args:
      key: Not used.
      pool: The tasks, leaves `[tasks, ...]`.
      spec: Not used: every task is as it is.
      num_tasks: Number of tasks.
      first_task: Number of the first one.

    Returns:
      An `Episode` with leaves `[num_tasks, ...]`; beyond the end, the last task again.
    """
    del key, spec
    tasks = first_task + jnp.arange(num_tasks)
    return jax.tree.map(lambda leaf: jnp.take(leaf, tasks, axis=0, mode="clip"), pool)


def fixed_source(episodes: Episode) -> TaskSource:
    """Make a source of tasks that are given, such as the runs of a published protocol.

    `sample` gives tasks first_task, first_task + 1, ... of them, whatever the key. Beyond the end it repeats the last
    one, since evaluators draw whole chunks of tasks and cut; they refuse to judge more tasks than there are.

    Args:
      episodes: The tasks, leaves `[tasks, ...]`.

    Returns:
      A `TaskSource`; its spec says how large the tasks are.

    Raises:
      ValueError: leaves differ in the number of tasks.

    Example:
      >>> from jaxmeta.base import example_batch
      >>> batch = jax.vmap(example_batch)(jnp.arange(12.0).reshape(3, 2, 2), jnp.zeros([3, 2], jnp.int32))
      >>> source = fixed_source(Episode(batch, batch))
      >>> source.sample(None, source.pool, source.spec, 2, first_task=2).query.inputs[:, 0, 0].tolist()
      [8.0, 8.0]
    """
    numbers = sorted({jnp.shape(leaf)[0] for leaf in jax.tree.leaves(episodes)})
    if len(numbers) != 1 or numbers[0] < 1:
        raise ValueError(f"fixed_source needs leaves [tasks, ...] of one number of tasks; given {numbers}.")
    targets = episodes.support.targets
    classes = jnp.issubdtype(targets.dtype, jnp.integer)
    ways = int(max(targets.max(), episodes.query.targets.max())) + 1 if classes else 1
    sizes = (max(1, batch.weights.shape[1] // ways) for batch in episodes)
    return TaskSource(sample_fixed, episodes, EpisodeSpec(ways, *sizes))


def number_of_tasks(source: TaskSource) -> int | None:
    """Tell how many tasks a source has.

    Args:
      source: Where tasks come from.

    Returns:
      Their number; None where they are drawn, and there is no end to them.

    Example:
      >>> from jaxmeta.base import example_batch
      >>> batch = jax.vmap(example_batch)(jnp.ones([3, 2, 2]), jnp.zeros([3, 2], jnp.int32))
      >>> number_of_tasks(fixed_source(Episode(batch, batch)))
      3
    """
    return jax.tree.leaves(source.pool)[0].shape[0] if source.sample is sample_fixed else None


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
    return with_pixels(pool.images, choose_classification(key, pool, spec, num_tasks, first_task=first_task))


def choose_classification(
    key: Key, pool: ClassPool, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Choose the images of `sample_classification`, without looking them up: inputs are `[..., 2]`."""
    ends = jnp.cumsum(jnp.asarray(pool.counts))

    def one_pair(task_key):
        sizes = spec.ways * spec.shots, spec.ways * spec.queries
        number = jax.random.randint(task_key, [sum(sizes)], 0, ends[-1])
        classes = jnp.searchsorted(ends, number, side="right").astype(jnp.int32)
        of_class = number - ends[classes] + jnp.asarray(pool.counts)[classes]
        batch = example_batch(jnp.stack([classes, of_class], -1), classes)
        support, query = (jax.tree.map(part, batch) for part in (lambda x: x[: sizes[0]], lambda x: x[sizes[0] :]))
        return Episode(support, query)

    return jax.vmap(one_pair)(task_keys(key, num_tasks, first_task=first_task))
