"""Pairs of images for verification: of one class or of two?"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmeta.base import Key
from jaxmeta.data.lookup import as_floats
from jaxmeta.data.pools import ClassPool, DataError


class Pairs(NamedTuple):
    """Pairs of images.

    Attributes:
      first: `[pairs, height, width, channels]` float32 in [0, 1].
      second: The other image of each.
      same: `[pairs]` bool, whether both are of one class.
    """

    first: jax.Array
    second: jax.Array
    same: jax.Array


def sample_pairs(key: Key, pool: ClassPool, num_pairs: int) -> Pairs:
    """Draw pairs of images, the first half of one class and the second half of two.

    Classes are drawn uniformly and with replacement, then images of them. The two images of a pair
    are never one and the same image.

    Args:
      key: Source of randomness; the same key gives the same pairs.
      pool: Images `[classes, per_class, height, width, channels]` uint8.
      num_pairs: How many pairs; an even number.

    Returns:
      `Pairs`, which unpack as first, second, same.

    Raises:
      DataError: for an odd number, or a pool (looked into outside `jit`) with one class only or
        with a class of fewer than two images.

    Example:
      >>> pool = ClassPool(np.zeros([9, 20, 28, 28, 1], np.uint8), np.full([9], 20, np.int32))
      >>> first, second, same = sample_pairs(jax.random.key(0), pool, 6)
      >>> first.shape, same.tolist()
      ((6, 28, 28, 1), [True, True, True, False, False, False])

    Source: Koch, Zemel and Salakhutdinov, 2015, section 4.2.
    """
    _check_pool(pool, num_pairs)
    counts, half, num_classes = jnp.asarray(pool.counts), num_pairs // 2, pool.images.shape[0]
    key_class, key_other, key_image, key_step, key_free = jax.random.split(key, 5)
    same = jnp.arange(num_pairs) < half
    classes = jax.random.randint(key_class, [num_pairs], 0, num_classes)
    # A step of 1 to n - 1 around a ring of n never comes back to where it began.
    others = (classes + jax.random.randint(key_other, [num_pairs], 1, num_classes)) % num_classes
    others = jnp.where(same, classes, others)
    images = jax.random.randint(key_image, [num_pairs], 0, counts[classes])
    step = jax.random.randint(key_step, [num_pairs], 1, jnp.maximum(counts[classes], 2))
    of_same, of_other = (images + step) % counts[classes], jax.random.randint(key_free, [num_pairs], 0, counts[others])
    return Pairs(_at(pool, classes, images), _at(pool, others, jnp.where(same, of_same, of_other)), same)


def _at(pool, classes, images):
    if isinstance(pool.images, np.ndarray) and not isinstance(classes, Tracer):
        # Only what was drawn is read: the pool may be too large for the device, or a file.
        return as_floats(jnp.asarray(pool.images[np.asarray(classes), np.asarray(images)]))
    return as_floats(jnp.asarray(pool.images)[classes, images])


def _check_pool(pool: ClassPool, num_pairs: int) -> None:
    if num_pairs < 2 or num_pairs % 2:
        raise DataError(
            f"sample_pairs draws half of its pairs of one class: num_pairs must be even; given {num_pairs}."
        )
    if pool.images.shape[0] < 2:
        raise DataError(f"sample_pairs needs two classes for pairs that differ; given {pool.images.shape[0]}.")
    if isinstance(pool.counts, Tracer):
        return
    short = np.flatnonzero(np.asarray(pool.counts) < 2)
    if short.size:
        raise DataError(
            f"sample_pairs needs two images of every class, for pairs of one class; given {short.size} of "
            f"{pool.images.shape[0]} classes with fewer, the first is class {short[0]} with "
            f"{int(np.asarray(pool.counts)[short[0]])}. Leave such classes out, or add images to them."
        )
