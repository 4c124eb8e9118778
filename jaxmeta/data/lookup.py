"""From chosen images to their pixels: on the device that holds the pool, or in the memory of the host.

A sampler of images *chooses* which images make the tasks, from the key and the numbers of images alone, and *looks
up* their bytes in the pool. A pool on the device has both in one compiled program. One on the host is looked up there,
by NumPy, and the bytes cross to the device, a quarter of what the floats would be. What a program is made of from the
bytes on is the same either way, so that the numbers that come out of it are the same to the bit.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.base import Batch, Episode


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class HostImages:
    """Images that stay in the memory of the host, in the place of an array in a pool.

    To `jit` they are a constant without contents: they are never copied to a device as a whole.

    Attributes:
      array: `[classes, per_class, height, width, channels]`, a NumPy array or a memory map.
    """

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """The type of a pixel."""
        return self.array.dtype

    def read(self, places: Any) -> np.ndarray:
        """Copy images, by class and number `[..., 2]`, to `[..., height, width, channels]`."""
        places = np.asarray(places)
        # One row an image: several times faster than indexing by two arrays. A view, since pools are contiguous.
        rows = self.array.reshape(-1, *self.shape[2:])
        return np.asarray(np.take(rows, places[..., 0] * self.shape[1] + places[..., 1], axis=0))


@partial(jax.tree_util.register_dataclass, data_fields=["support", "query", "step"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class ReadImages:
    """Images of tasks that were looked up already, in the place of an array in a pool: those its sampler will choose.

    Attributes:
      support: Bytes `[steps, tasks, examples, height, width, channels]`.
      query: The same, of the query sets.
      step: Of which of the steps the tasks are wanted.
      shape: Of all images of the pool.
    """

    support: Any
    query: Any
    step: Any
    shape: tuple[int, ...]

    def take(self) -> tuple[jax.Array, jax.Array]:
        """Take the images of the step, for support and query."""
        # One by one, as out of a whole pool, though they lie together: the compiler then makes the same program of all
        # that follows, with the same rounding. A slice it would draw into what reads it.
        return _take(self.support, self.step), _take(self.query, self.step)


def _take(images: jax.Array, step: Any) -> jax.Array:
    tasks, examples = images.shape[1:3]
    return images[step, jnp.arange(tasks)[:, None], jnp.arange(examples)]


def look_up(images: Any, chosen: Episode) -> Episode:
    """Put the bytes of images in the place of their numbers.

    Args:
      images: `[classes, per_class, height, width, channels]`, or what takes the place of such an array: `ReadImages`
        or `HostImages`. The last are read by a callback in the middle of the program, which waits for it; `fit` and
        evaluators read ahead instead.
      chosen: Inputs `[..., 2]`: class and number.

    Returns:
      The episode with inputs `[..., height, width, channels]`.

    Example:
      >>> batch = Batch(jnp.array([[1, 0]]), jnp.array([0]), jnp.ones(1))
      >>> images = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2, 1)
      >>> look_up(images, Episode(batch, batch)).query.inputs[0, :, :, 0].tolist()
      [[4, 5], [6, 7]]
    """

    def pixels_of(places):
        if isinstance(images, HostImages):
            result = jax.ShapeDtypeStruct((*places.shape[:-1], *images.shape[2:]), images.dtype)
            return jax.pure_callback(images.read, result, places, vmap_method="broadcast_all")
        return jnp.asarray(images)[places[..., 0], places[..., 1]]

    if isinstance(images, ReadImages):
        pixels = images.take()
    else:
        pixels = tuple(pixels_of(batch.inputs) for batch in chosen)
    return Episode(*(batch._replace(inputs=found) for batch, found in zip(chosen, pixels, strict=True)))


def as_floats(images: jax.Array) -> jax.Array:
    """Scale bytes to [0, 1], to the same bits wherever it is done."""
    # A product, since a compiled division may differ from this one in its last bit.
    return images.astype(jnp.float32) * jnp.float32(1 / 255)


def with_pixels(images: Any, chosen: Episode) -> Episode:
    """Put the images themselves, as floats in [0, 1], in the place of their numbers; see `look_up`."""
    return Episode(*(batch._replace(inputs=as_floats(batch.inputs)) for batch in look_up(images, chosen)))


def examples_of_classes(classes: jax.Array, numbers: jax.Array) -> Batch:
    """Make a batch of images chosen class by class.

    Args:
      classes: `[ways]`, which classes of the pool.
      numbers: `[ways, images]`, which images of each.

    Returns:
      A `Batch` with inputs `[ways * images, 2]`, the place of each image in the pool; targets are 0 for the
      images of the first class and so on.
    """
    ways, count = numbers.shape
    places = jnp.stack([jnp.broadcast_to(classes[:, None], numbers.shape), numbers], -1)
    targets = jnp.repeat(jnp.arange(ways, dtype=jnp.int32), count)
    return Batch(places.reshape(ways * count, 2), targets, jnp.ones([ways * count], jnp.float32))
