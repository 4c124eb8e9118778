"""Augmentation of tasks, on the device and inside of `jit`: a pure function of a key.

A row of `AUGMENTATIONS` is `(key, episode) -> episode`, for ONE task of images in [0, 1]. Most change each image for
itself (`each_image`); a quarter turn is of a whole class of the task, in support and query alike (`each_class`), and so
makes other classes of the same images; mixup makes more examples, with weights that add up to the same.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxmeta.base import Batch, Episode, Key
from jaxmeta.data.episodes import TaskSource, task_keys

# How far a crop is shifted, as a share of the image; and how far brightness, contrast and saturation are from 1.
SHIFT = 1 / 8
COLOUR = 0.4
# How far the matrix of a warp is from the identity, in every entry, and its shift from 0, as a share of the image.
BEND = 0.15
DRIFT = 1 / 20
# Folded into the key of a batch, beside the numbers of its tasks.
_STREAM = 2**31 - 1

Augmentation = Callable[[Key, Episode], Episode]


def random_crop(key: Key, image: jax.Array) -> jax.Array:
    """Shift an image by up to an eighth of its size; what comes in at the edge is mirrored.

    Args:
      key: Source of randomness.
      image: `[height, width, channels]`.

    Returns:
      The crop, of the same shape.

    Example:
      >>> random_crop(jax.random.key(0), jnp.ones([28, 28, 1])).shape
      (28, 28, 1)
    """
    reach = [max(1, round(SHIFT * size)) for size in image.shape[:2]]
    wide = jnp.pad(image, [(size, size) for size in reach] + [(0, 0)], mode="reflect")
    corner = jax.random.randint(key, [2], 0, 2 * jnp.array(reach) + 1)
    return jax.lax.dynamic_slice(wide, (*corner, 0), image.shape)


def horizontal_flip(key: Key, image: jax.Array) -> jax.Array:
    """Exchange left and right in every second image.

    Args:
      key: Source of randomness.
      image: `[height, width, channels]`.

    Returns:
      The image, or its mirror image.

    Example:
      >>> horizontal_flip(jax.random.key(1), jnp.arange(2.0).reshape(1, 2, 1)).ravel().tolist()
      [1.0, 0.0]
    """
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def quarter_turn(key: Key, image: jax.Array) -> jax.Array:
    """Turn a square image by 0, 90, 180 or 270 degrees.

    Args:
      key: Source of randomness.
      image: `[size, size, channels]`.

    Returns:
      The turned image.

    Example:
      >>> quarter_turn(jax.random.key(0), jnp.ones([28, 28, 1])).shape
      (28, 28, 1)
    """
    quarters = jax.random.randint(key, [], 0, 4)
    image = jnp.where(quarters % 2 == 1, jnp.rot90(image), image)
    return jnp.where(quarters >= 2, image[::-1, ::-1], image)


def colour(key: Key, image: jax.Array) -> jax.Array:
    """Change brightness, contrast and saturation, each by a factor in [0.6, 1.4].

    Brightness mixes the image with black, contrast with the mean of its grey levels, saturation each pixel with its
    own grey level, which is the mean of its channels.

    Args:
      key: Source of randomness.
      image: `[height, width, channels]` in [0, 1].

    Returns:
      The image, cut off at 0 and 1.

    Example:
      >>> colour(jax.random.key(0), jnp.ones([84, 84, 3])).shape
      (84, 84, 3)
    """
    brightness, contrast, saturation = 1 + COLOUR * jax.random.uniform(key, [3], minval=-1.0)
    image = brightness * image
    image = image.mean() + contrast * (image - image.mean())
    grey = image.mean(-1, keepdims=True)
    return jnp.clip(grey + saturation * (image - grey), 0.0, 1.0)


def warp(key: Key, image: jax.Array) -> jax.Array:
    """Turn, stretch, slant and shift an image a little, as another hand would have drawn it.

    `image(x)` becomes `image(c + A (x - c) + b)`, c the centre, every entry of A within 0.15 of the identity's and b
    within a twentieth of the image.

    Args:
      key: Source of randomness.
      image: `[height, width, channels]`.

    Returns:
      The image, bilinearly interpolated; beyond its edge is what is at the edge.

    Example:
      >>> warp(jax.random.key(0), jnp.ones([28, 28, 1])).shape
      (28, 28, 1)
    """
    key_matrix, key_shift = jax.random.split(key)
    matrix = jnp.eye(2) + BEND * jax.random.uniform(key_matrix, [2, 2], minval=-1.0)
    shift = DRIFT * jnp.array(image.shape[:2]) * jax.random.uniform(key_shift, [2], minval=-1.0)
    return _resampled(image, matrix, shift)


def _resampled(image: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    height, width = image.shape[:2]
    centre = (jnp.array([height, width]) - 1) / 2
    pixels = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    places = (pixels - centre) @ matrix.T + centre + shift

    def channel(values):
        return jax.scipy.ndimage.map_coordinates(values, [places[..., 0], places[..., 1]], order=1, mode="nearest")

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)


def mixup(key: Key, episode: Episode) -> Episode:
    """Mix the query images in pairs: `x = a x_i + (1 - a) x_j` with a uniform in [0, 1].

    A mixed image is of class y_i to the share a and of y_j to the share 1 - a. It stands in the query set twice, once
    with each target, weighted by its share: as losses are weighted means, that is the loss of a soft target, for whole
    class numbers. The query set becomes twice as large, and its weights still add up to the number of images. The
    support set, whose examples some learners count, is left alone.

    Args:
      key: Source of randomness.
      episode: One task.

    Returns:
      The task with `[2 * queries, ...]` query examples.

    Example:
      >>> batch = Batch(jnp.eye(4)[:, None, None], jnp.arange(4), jnp.ones(4))
      >>> mixed = mixup(jax.random.key(0), Episode(batch, batch)).query
      >>> mixed.inputs.shape, round(float(mixed.weights.sum()), 4)
      ((8, 1, 1, 4), 4.0)

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018, arXiv 1710.09412, with alpha = 1.
    """
    key_pairs, key_shares = jax.random.split(key)
    inputs, targets, weights = episode.query
    count = weights.shape[0]
    other = jax.random.permutation(key_pairs, count)
    # Never with padding.
    share = jnp.where(weights[other] > 0, jax.random.uniform(key_shares, [count]), 1.0)
    of_image = share.reshape(-1, *[1] * (inputs.ndim - 1))
    mixed = of_image * inputs + (1 - of_image) * inputs[other]
    query = Batch(
        jnp.concatenate([mixed, mixed]),
        jnp.concatenate([targets, targets[other]]),
        jnp.concatenate([share * weights, (1 - share) * weights]),
    )
    return episode._replace(query=query)


def each_image(change: Callable[[Key, jax.Array], jax.Array]) -> Augmentation:
    """Change every image of a task for itself: make `(key, episode) -> episode` of `(key, image) -> image`."""

    def augment(key: Key, episode: Episode) -> Episode:
        changed = []
        for number, batch in enumerate(episode):
            keys = jax.random.split(jax.random.fold_in(key, number), batch.weights.shape[0])
            changed.append(batch._replace(inputs=jax.vmap(change)(keys, batch.inputs)))
        return Episode(*changed)

    return augment


def each_class(change: Callable[[Key, jax.Array], jax.Array]) -> Augmentation:
    """Change the images of a class of the task alike, in support and query: it becomes another class."""

    def augment(key: Key, episode: Episode) -> Episode:
        def of_class(target, image):
            return change(jax.random.fold_in(key, target), image)

        return Episode(*(batch._replace(inputs=jax.vmap(of_class)(batch.targets, batch.inputs)) for batch in episode))

    return augment


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": each_image(random_crop),
    "flip": each_image(horizontal_flip),
    "turn": each_class(quarter_turn),
    "warp": each_image(warp),
    "colour": each_image(colour),
    "mixup": mixup,
}


@dataclasses.dataclass(frozen=True)
class Augmented:
    """A sampler whose tasks are augmented, called as that sampler is. Equal if it is made of equals.

    No NamedTuple: `jax.jit` refers weakly to what it compiles, and to a tuple it cannot.

    Attributes:
      sample: The sampler.
      names: Rows of `AUGMENTATIONS`, applied in this order.
    """

    sample: Callable[..., Episode]
    names: tuple[str, ...]

    def __call__(self, key: Key, pool, spec, num_tasks: int, *, first_task: int | jax.Array = 0) -> Episode:
        """Draw tasks and augment them."""

        def of_task(key, episode):
            for number, name in enumerate(self.names):
                episode = AUGMENTATIONS[name](jax.random.fold_in(key, number), episode)
            return episode

        episodes = self.sample(key, pool, spec, num_tasks, first_task=first_task)
        keys = task_keys(jax.random.fold_in(key, _STREAM), num_tasks, first_task=first_task)
        return jax.vmap(of_task)(keys, episodes)


def augmented(source: TaskSource, names: Sequence[str]) -> TaskSource:
    """Augment the tasks of a source, for training.

    Args:
      source: A source of images. Its pool may be on the device or on the host: the tasks are the same.
      names: Rows of `AUGMENTATIONS`, applied in this order.

    Returns:
      The source. Task i is still a function of the key and i alone.

    Raises:
      ValueError: for an unknown name, for tasks that are not drawn from a pool of images, or for turns of images
        that are not square.

    Example:
      >>> import numpy as np
      >>> from jaxmeta.data import ClassPool, EpisodeSpec, sample_episodes
      >>> pool = ClassPool(np.zeros([9, 20, 28, 28, 1], np.uint8), np.full([9], 20, np.int32))
      >>> source = augmented(TaskSource(sample_episodes, pool, EpisodeSpec(5, 1, 3)), ["crop", "turn", "mixup"])
      >>> draw = jax.jit(source.sample, static_argnums=(2, 3))
      >>> draw(jax.random.key(0), source.pool, source.spec, 4).query.inputs.shape
      (4, 30, 28, 28, 1)
    """
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if unknown:
        raise ValueError(f"Unknown augmentation {unknown[0]!r}. Known: {', '.join(AUGMENTATIONS)}.")
    if not names:
        return source
    images = getattr(source.pool, "images", None)
    if images is None:
        raise ValueError("Tasks that are not drawn from a pool of images cannot be augmented: leave it out.")
    height, width = images.shape[2:4]
    if "turn" in names and height != width:
        raise ValueError(f"Quarter turns need square images; given {height}x{width}. Leave 'turn' out.")
    return source._replace(sample=Augmented(source.sample, tuple(names)))
