"""CIFAR-10 (Krizhevsky 2009): ten classes of small colour photographs, in tasks or as one ordinary problem."""

from pathlib import Path

import numpy as np

from jaxmeta.data.archive_pools import PoolPlan, photographs, pool_dataset
from jaxmeta.data.cifar_files import PARTS, SIZE, cifar_sources
from jaxmeta.data.pools import ClassPool, Dataset

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Of a split: the official part that its images are from, and its classes. Nobody has published a class split of ten
# classes; this one is by label, and in threes so that three-way tasks fit all of it.
SPLITS = {"train": ("train", slice(0, 4)), "validation": ("train", slice(4, 7)), "test": ("test", slice(7, 10))}


def load_cifar10(*, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Load CIFAR-10 as class pools that share no class, for tasks of up to three ways.

    Training is airplane, automobile, bird and cat, validation deer, dog and frog, both of the official training images
    (5000 each). The test is horse, ship and truck of the official test images (1000 each).

    Args:
      data_dir: A folder with `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz`, with `cifar10_images.tar.xz` of
        `train/CLASS/*.jpg` and `test/CLASS/*.jpg` (another packing of the same images), or with a copy that
        tensorflow-datasets prepared in array_record. None: what was downloaded before, else a download.
      image_size: Pixels a side; None: 32, the images as they are.

    Returns:
      Images `[classes, per_class, size, size, 3]` uint8.

    Raises:
      DataError: data that is missing, damaged or cannot be downloaded.

    Example:
      >>> load_cifar10(data_dir=Path("data/cifar10")).class_names["test"]  # doctest: +SKIP
      ('horse', 'ship', 'truck')

    Source: Krizhevsky, 2009; the layout of the files is described on https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    base = _by_part(data_dir, image_size)
    pools, names = {}, {}
    for split, (part, classes) in SPLITS.items():
        images, counts = base.splits[part]
        pools[split], names[split] = ClassPool(images[classes], counts[classes]), base.class_names[part][classes]
    return base._replace(splits=pools, class_names=names)


def load_cifar10_arrays(
    *, data_dir: Path | None = None, image_size: int | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Load CIFAR-10 as it was published: training and test images of all ten classes, for ordinary classification.

    Args:
      data_dir: As of `load_cifar10`.
      image_size: Pixels a side; None: 32.

    Returns:
      "train" and "test": images `[images, size, size, 3]` uint8 and labels `[images]` int32 in [0, 10), sorted by
      label. Shuffle them before training on batches.

    Raises:
      DataError: data that is missing, damaged or cannot be downloaded.

    Example:
      >>> images, labels = load_cifar10_arrays(data_dir=Path("data/cifar10"))["train"]  # doctest: +SKIP
      >>> images.shape  # doctest: +SKIP
      (50000, 32, 32, 3)
    """
    arrays = {}
    for part, (images, counts) in _by_part(data_dir, image_size).splits.items():
        real = np.arange(images.shape[1]) < np.asarray(counts)[:, None]
        arrays[part] = np.asarray(images)[real], np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return arrays


def _by_part(data_dir: Path | None, image_size: int | None) -> Dataset:
    """Open all classes of both official parts; in the cache they are kept so, for both uses."""
    plan = PoolPlan(
        name="cifar10",
        sources=cifar_sources("cifar10", CLASSES),
        recipe=photographs(image_size, SIZE),
        splits=lambda names: {part: CLASSES for part in PARTS},
        parts={part: (part,) for part in PARTS},
        stock=("cifar10",),
    )
    return pool_dataset(plan, data_dir)
