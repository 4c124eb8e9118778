"""Pools that stay in the memory of the host, and the samplers that can be fed from there."""

from collections.abc import Callable
from typing import Any

import jax

from jaxmeta.base import Episode
from jaxmeta.data.augment import Augmented
from jaxmeta.data.episodes import choose_episodes, choose_within_groups, sample_episodes, sample_within_groups
from jaxmeta.data.lookup import HostImages
from jaxmeta.data.pools import ClassPool
from jaxmeta.data.sources import choose_classification, sample_classification
from jaxmeta.data.varying import choose_varying, sample_varying

# The samplers of this library, and what each chooses by.
CHOOSERS: dict[Callable[..., Episode], Callable[..., Episode]] = {
    sample_episodes: choose_episodes,
    sample_within_groups: choose_within_groups,
    sample_classification: choose_classification,
    sample_varying: choose_varying,
}


def chooser_of(sample: Callable[..., Episode]) -> Callable[..., Episode] | None:
    """Give what a sampler chooses its images by: so they can be read before it is called.

    Args:
      sample: Of a `TaskSource`.

    Returns:
      A function that is called as the sampler; it returns an `Episode` whose inputs are the class and the number of
      each image, `[tasks, examples, 2]`, and reads of the pool's images only their shape. None for a sampler that
      draws no images, or one of one's own.

    Example:
      >>> chooser_of(sample_episodes) is choose_episodes, chooser_of(lambda key, pool, spec, num_tasks: None)
      (True, None)
    """
    return chooser_of(sample.sample) if isinstance(sample, Augmented) else CHOOSERS.get(sample)


def on_host(pool: ClassPool) -> ClassPool:
    """Keep the images of a pool in the memory of the host, whatever is done with the pool.

    The numbers of images are small and go to the device. Samplers take such a pool like any other; `fit` and
    evaluators read ahead of the device from it, and give the same numbers as from a pool on the device.

    Args:
      pool: With images in a NumPy array or a memory map.

    Returns:
      The pool, with `HostImages`.

    Example:
      >>> import numpy as np
      >>> pool = on_host(ClassPool(np.zeros([9, 20, 28, 28, 1], np.uint8), np.full([9], 20, np.int32)))
      >>> pool.images.shape, [leaf.shape for leaf in jax.tree.leaves(pool)]
      ((9, 20, 28, 28, 1), [(9,)])
    """
    images: Any = pool.images
    return ClassPool(images if isinstance(images, HostImages) else HostImages(images), jax.device_put(pool.counts))
