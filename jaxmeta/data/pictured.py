"""An episode as a person sees it: which images of which classes were drawn."""

from typing import NamedTuple

import jax
import numpy as np

from jaxmeta.data.episodes import EpisodeSpec, check_spec, sample_episodes
from jaxmeta.data.pools import ClassPool, Dataset


class Pictures(NamedTuple):
    """The images of one episode.

    Attributes:
      support: `[ways, shots, height, width, channels]` uint8.
      query: `[ways, queries, height, width, channels]` uint8.
      names: `[ways]`, the name of each class.
    """

    support: np.ndarray
    query: np.ndarray
    names: tuple[str, ...]


def draw_pictures(dataset: Dataset, split: str, spec: EpisodeSpec, seed: int = 0) -> Pictures:
    """Draw an episode with the names of its classes; of the images only those drawn are read.

    Args:
      dataset: Of classes of images.
      split: "train", "validation" or "test".
      spec: Ways, shots and queries.
      seed: The episode is the first of `sample_episodes` with this key.

    Returns:
      The `Pictures`.

    Raises:
      ValueError: the split cannot serve such an episode.

    Example:
      >>> pool = ClassPool(np.zeros([3, 4, 8, 8, 1], np.uint8), np.full([3], 4, np.int32))
      >>> toy = Dataset("toy", "classification", {"train": pool}, {"train": ("a", "b", "c")})
      >>> sorted(draw_pictures(toy, "train", EpisodeSpec(3, 1, 2)).names)
      ['a', 'b', 'c']
    """
    pool, names = dataset.splits[split], dataset.class_names[split]
    check_spec(spec, pool, f"split {split!r} of {dataset.name}")
    # An episode does not say where its images are from. The same draw from a pool of images that show nothing but their
    # own place, three bytes for the class and three for the image, does.
    classes, per_class = pool.images.shape[:2]
    places = np.stack(np.meshgrid(np.arange(classes), np.arange(per_class), indexing="ij"), -1)
    places = (places[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8).reshape(classes, per_class, 1, 1, 6)
    numbered = ClassPool(places, np.asarray(pool.counts))
    episode = sample_episodes(jax.random.key(seed), numbered, spec, 1)
    support, query = (_images(pool, batch.inputs, spec.ways) for batch in episode)
    drawn = _places(episode.support.inputs).reshape(spec.ways, spec.shots, 2)[:, 0, 0]
    return Pictures(support, query, tuple(names[number] for number in drawn))


def _places(inputs: jax.Array) -> np.ndarray:
    """Read class and image `[images, 2]` from images of their places."""
    digits = np.rint(np.asarray(inputs) * 255).astype(int).reshape(-1, 2, 3)
    return (digits << np.array([0, 8, 16])).sum(-1)


def _images(pool: ClassPool, inputs: jax.Array, ways: int) -> np.ndarray:
    images = np.stack([pool.images[tuple(place)] for place in _places(inputs)])
    return images.reshape(ways, -1, *images.shape[1:])
