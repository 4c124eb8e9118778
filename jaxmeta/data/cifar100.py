"""Two few-shot data sets made of CIFAR-100 (Krizhevsky 2009), a hundred classes of 600 small colour photographs.

They differ in how the classes are split: by chance (CIFAR-FS), or by superclass (FC100), which is harder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxmeta.data.archive_pools import PoolPlan, photographs, pool_dataset, train_on_the_rest
from jaxmeta.data.cifar_files import SIZE, cifar_sources
from jaxmeta.data.pools import Dataset

SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
# The fine labels are numbered in alphabetical order.
CLASSES = tuple(sorted(name for names in SUPERCLASSES.values() for name in names.split()))
# What is for neither is for training.
CIFAR_FS = {
    "validation": (
        "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark "
        "television tractor"
    ),
    "test": (
        "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table "
        "telephone wardrobe whale woman worm"
    ),
}
FC100 = {
    "validation": (
        "large_carnivores",
        "large_omnivores_and_herbivores",
        "non-insect_invertebrates",
        "small_mammals",
    ),
    "test": ("aquatic_mammals", "insects", "medium_mammals", "people"),
}


def load_cifar_fs(*, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Load CIFAR-FS: the classes of CIFAR-100 split by chance into 64 / 16 / 20, as published.

    Args:
      data_dir: A folder with `cifar-100-binary.tar.gz` or `cifar-100-python.tar.gz`, or with a copy that
        tensorflow-datasets prepared in array_record. None: what was downloaded before, else a download.
      image_size: Pixels a side; None: 32, the images as they are.

    Returns:
      Images `[classes, 600, size, size, 3]` uint8; the groups are the superclasses.

    Raises:
      DataError: data that is missing, damaged or cannot be downloaded.

    Example:
      >>> load_cifar_fs(data_dir=Path("data/cifar100")).splits["train"].images.shape  # doctest: +SKIP
      (64, 600, 32, 32, 3)

    Source: Bertinetto, Henriques, Torr and Vedaldi, 2019 (arXiv 1805.08136); the layout of the files is described on
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    return _load("cifar_fs", {split: names.split() for split, names in CIFAR_FS.items()}, data_dir, image_size)


def load_fc100(*, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Load FC100: the classes of CIFAR-100 split by superclass into 60 / 20 / 20, as published.

    Args:
      data_dir: As of `load_cifar_fs`.
      image_size: Pixels a side; None: 32, the images as they are.

    Returns:
      Images `[classes, 600, size, size, 3]` uint8; the groups are the superclasses.

    Raises:
      DataError: data that is missing, damaged or cannot be downloaded.

    Example:
      >>> set(load_fc100(data_dir=Path("data/cifar100")).groups["test"])  # doctest: +SKIP
      {'aquatic_mammals', 'insects', 'medium_mammals', 'people'}

    Source: Oreshkin, Rodriguez and Lacoste, 2018 (arXiv 1805.10123).
    """
    splits = {split: [name for group in groups for name in _of(group)] for split, groups in FC100.items()}
    return _load("fc100", splits, data_dir, image_size)


def _load(name: str, held_out: Mapping[str, Sequence[str]], data_dir: Path | None, image_size: int | None) -> Dataset:
    splits = train_on_the_rest(CLASSES, held_out)
    plan = PoolPlan(
        name=name,
        sources=cifar_sources("cifar100", CLASSES),
        recipe=photographs(image_size, SIZE),
        splits=lambda names: splits,
        stock=("cifar100",),
    )
    superclass = {name: group for group in SUPERCLASSES for name in _of(group)}
    groups = {split: tuple(superclass[name] for name in names) for split, names in splits.items()}
    return pool_dataset(plan, data_dir)._replace(groups=groups)


def _of(superclass: str) -> list[str]:
    return SUPERCLASSES[superclass].split()
