"""Tasks whose ways and shots vary, in arrays whose shapes do not: what is missing has weight 0.

The sampling of Meta-Dataset (Triantafillou et al., 2020, arXiv 1903.03096, section 3.2 and its appendix):

    ways N       uniform in [5, most ways]
    queries      q = min(most queries, floor(min_c n_c / 2)) of each class, n_c being its number of images
    support      |S| = min(most support images, sum_c ceil(beta min(100, n_c - q))),  beta uniform in (0, 1]
    shots        k_c = min(floor(R_c (|S| - N)) + 1, n_c - q),  R_c = exp(a_c) n_c / sum_d exp(a_d) n_d,
                 a_c uniform in [log 0.5, log 2)

It is computed with whole numbers, so that every device and every program draws the same tasks: a rounded product may
differ from one to the next, and its floor by an image. beta is in steps of 2^-16; a_c in 1024 steps, exp(a_c) rounded.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.base import Batch, Episode, Key
from jaxmeta.data.episodes import EpisodeSpec, task_keys
from jaxmeta.data.lookup import with_pixels
from jaxmeta.data.pools import ClassPool

# As in the paper. Where fewer ways are asked for than the fewest, tasks have these.
FEWEST_WAYS = 5
LARGEST_CLASS = 100
_BETA_STEPS = 2**16
_IMBALANCES = 1024


def check_varying(spec: EpisodeSpec, pool: ClassPool, name: str = "the pool") -> None:
    """Refuse a specification of varying tasks that a pool cannot serve.

    Args:
      spec: What is asked for, see `sample_varying`.
      pool: Where it is to come from.
      name: What to call the pool in the message.

    Raises:
      ValueError: names the numbers asked for and those at hand.
    """
    for field, value in spec._asdict().items():
        if value < 1:
            raise ValueError(f"{field} must be at least 1; given {value}.")
    classes, per_class = pool.images.shape[:2]
    if spec.ways > classes:
        raise ValueError(
            f"Up to {spec.ways} ways were asked for, but {name} has {classes} classes. Ask for at most {classes} ways."
        )
    fewest = int(np.asarray(pool.counts).min())
    if fewest < 2:
        raise ValueError(
            f"A task needs an image of each class for support and one for query, but a class of {name} has {fewest}. "
            "Leave classes with fewer than two images out."
        )
    if _scale(spec, per_class) < 2:
        raise ValueError(
            f"Up to {spec.ways * spec.shots} support images of classes with up to {per_class} in {name} are more than "
            "can be drawn in proportion with 32 bits. Ask for fewer ways or shots."
        )


def sample_varying(
    key: Key, pool: ClassPool, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Draw tasks with varying ways and shots, as Meta-Dataset does, padded to one shape.

    Every task has another number of classes, and every class of it another number of support images; the query set
    has as many of each class. What is real has weight 1; what fills up repeats an image, with target and weight 0.
    So nothing is compiled again from one task to the next.

    Args:
      key: Source of randomness, as for `sample_episodes`.
      pool: Images `[classes, per_class, height, width, channels]` uint8, at least two of each class.
      spec: The most there may be: `ways` classes, `ways * shots` support images of all classes together (of one
        class there may be more than `shots`), `queries` query images of each class. The paper's numbers are
        `EpisodeSpec(50, 10, 10)`.
      num_tasks: Number of tasks.
      first_task: Number of the first one, to draw a part of a larger batch.

    Returns:
      An `Episode`: inputs `[num_tasks, ways * shots, ...]` and `[num_tasks, ways * queries, ...]` float32 in [0, 1].
      Targets are int32 in [0, N), N being the ways of the task.

    Example:
      >>> import jax, numpy as np
      >>> pool = ClassPool(np.zeros([9, 20, 28, 28, 1], np.uint8), np.full([9], 20, np.int32))
      >>> sample = jax.jit(sample_varying, static_argnums=(2, 3))
      >>> support, query = sample(jax.random.key(0), pool, EpisodeSpec(9, 5, 3), 4)
      >>> support.inputs.shape, query.weights.sum(1).tolist()  # three queries of each class
      ((4, 45, 28, 28, 1), [15.0, 18.0, 27.0, 21.0])

    Source: Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples",
    2020, arXiv 1903.03096.
    """
    return with_pixels(pool.images, choose_varying(key, pool, spec, num_tasks, first_task=first_task))


def choose_varying(
    key: Key, pool: ClassPool, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Choose the images of `sample_varying`, without looking them up: inputs are `[..., 2]`, class and number."""
    most = spec.ways * spec.shots

    def one_task(key):
        key_classes, key_images, key_sizes = jax.random.split(key, 3)
        _, classes = jax.lax.top_k(jax.random.uniform(key_classes, [pool.images.shape[0]]), spec.ways)
        counts = jnp.asarray(pool.counts)[classes]
        queries, shots = _sizes(key_sizes, counts, spec, pool.images.shape[1])
        order = _shuffled(key_images, counts, pool.images.shape[1], spec.queries + most)
        return Episode(_support(classes, order, queries, shots, most), _query(classes, order, queries, shots, spec))

    return jax.vmap(one_task)(task_keys(key, num_tasks, first_task=first_task))


def _sizes(key: Key, counts: jax.Array, spec: EpisodeSpec, per_class: int) -> tuple[jax.Array, jax.Array]:
    """Draw the queries of every class, and the shots `[ways]` of each: 0 for a class that is not in the task."""
    key_ways, key_beta, key_imbalance = jax.random.split(key, 3)
    ways = jax.random.randint(key_ways, [], min(FEWEST_WAYS, spec.ways), spec.ways + 1)
    present = jnp.arange(spec.ways) < ways
    queries = jnp.minimum(spec.queries, jnp.where(present, counts, jnp.iinfo(jnp.int32).max).min() // 2)
    left = jnp.where(present, counts - queries, 0)

    beta = jax.random.randint(key_beta, [], 1, _BETA_STEPS + 1)
    wished = (beta * jnp.minimum(LARGEST_CLASS, left) + _BETA_STEPS - 1) // _BETA_STEPS
    size = jnp.minimum(spec.ways * spec.shots, wished.sum())

    scale = _scale(spec, per_class)
    levels = np.exp(np.linspace(math.log(0.5), math.log(2), _IMBALANCES, endpoint=False))
    imbalances = jnp.asarray(np.rint(scale * levels), jnp.uint32)
    imbalance = imbalances[jax.random.randint(key_imbalance, [spec.ways], 0, _IMBALANCES)]
    shares = imbalance * jnp.where(present, counts, 0).astype(jnp.uint32)
    extra = shares * (size - ways).astype(jnp.uint32) // shares.sum()
    return queries, jnp.where(present, jnp.minimum(extra.astype(jnp.int32) + 1, left), 0)


def _scale(spec: EpisodeSpec, per_class: int) -> int:
    """Give the whole number that stands for exp(a) = 1: the largest, up to 256, whose products stay below 2^32."""
    return min(256, (2**32 - 1) // (2 * per_class * spec.ways * spec.shots))


def _shuffled(key: Key, counts: jax.Array, per_class: int, wanted: int) -> jax.Array:
    """Put the images of each class into random order, `[ways, wanted]` or all there are; the real ones first."""
    scores = jax.random.uniform(key, [counts.shape[0], per_class])
    real = jnp.arange(per_class) < counts[:, None]
    return jax.lax.top_k(jnp.where(real, scores, -1.0), min(per_class, wanted))[1]


def _support(classes, order, queries, shots, most: int) -> Batch:
    """Lay the support images out class after class, and fill up to `most`: in each order they follow the queries."""
    ends = jnp.cumsum(shots)
    place = jnp.arange(most)
    way = jnp.minimum(jnp.searchsorted(ends, place, side="right"), len(shots) - 1)
    of_class = queries + place - (ends - shots)[way]
    return _batch(classes, order, way, of_class, place < ends[-1])


def _query(classes, order, queries, shots, spec: EpisodeSpec) -> Batch:
    way, of_class = jnp.divmod(jnp.arange(spec.ways * spec.queries), spec.queries)
    return _batch(classes, order, way, of_class, (shots[way] > 0) & (of_class < queries))


def _batch(classes, order, way, of_class, real) -> Batch:
    """Look the number of each image up in its class's order; what is not real is the first image of the task."""
    way, of_class = jnp.where(real, way, 0).astype(jnp.int32), jnp.where(real, of_class, 0)
    return Batch(jnp.stack([classes[way], order[way, of_class]], -1), way, real.astype(jnp.float32))
