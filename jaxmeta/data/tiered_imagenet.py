"""tiered-ImageNet (Ren et al. 2018): 608 classes of ImageNet, the categories of which no two splits share.

Read from a folder that the user brings, as the licence of ImageNet demands.
"""

import logging
from pathlib import Path

from jaxmeta.data.brought import ImageFiles, pool_file, read_pool
from jaxmeta.data.cache import cached_dataset
from jaxmeta.data.imagenet import find_classes, how_to_get
from jaxmeta.data.imagenet_splits import TIERED_IMAGENET
from jaxmeta.data.pools import DataError, Dataset, ImageRecipe

_LOG = logging.getLogger(__name__)

SIZE = 84
RECIPE = 1  # Part of the name of the cached file: raise it when the images change.


def load_tiered_imagenet(*, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Load tiered-ImageNet as class pools of colour images, 351 / 97 / 160 classes of 20 / 6 / 8 categories.

    All images of a class are taken, about 1,300; the middle of each is shrunk to a square by Lanczos filtering. At
    84 x 84 the pools are 17 GB, which the cache's folder must have room for; preparing them takes an hour or more on a
    few cores.

    Args:
      data_dir: The training images of ILSVRC 2012, or of these classes, a folder or a tar file for each class; all in
        one folder, or in folders train, val and test.
      image_size: Height and width in pixels; None for 84.

    Returns:
      Images `[classes, most of a class, 84, 84, 3]` uint8; names are the numbers of WordNet, such as "n01530575",
      groups those of the categories.

    Raises:
      DataError: no such folder, classes that are missing or in the folder of another split, or no room.

    Example:
      >>> tiered = load_tiered_imagenet(data_dir=Path("ILSVRC2012"), image_size=32)  # doctest: +SKIP
      >>> tiered.splits["test"].images.shape  # doctest: +SKIP
      (160, 1300, 32, 32, 3)

    Source: Ren et al., 2018, arXiv 1803.00676.
    """
    recipe = ImageRecipe(image_size or SIZE, image_size or SIZE, 3)
    if data_dir is None:
        name = "tiered-ImageNet"
        raise DataError(f"{name} is not downloaded: give its folder as data_dir. {how_to_get(name)}")
    folder = Path(data_dir).expanduser()
    classes = find_classes(folder, TIERED_IMAGENET, "tiered-ImageNet")
    file = pool_file(f"tiered_imagenet-{RECIPE}-{recipe.height}", classes)
    dataset = cached_dataset(file, lambda: _dataset(classes, recipe), source=str(folder))
    # Groups are not part of a cached file.
    groups = {split: tuple(categories.values()) for split, categories in TIERED_IMAGENET.items()}
    return dataset._replace(groups=groups)


def _dataset(classes: dict[str, ImageFiles], recipe: ImageRecipe) -> Dataset:
    _LOG.info("tiered-ImageNet is prepared from its images, which takes an hour or more; what comes out is kept.")
    pools = {
        split: read_pool({number: classes[number] for number in numbers}, recipe)
        for split, numbers in TIERED_IMAGENET.items()
    }
    names = {split: tuple(numbers) for split, numbers in TIERED_IMAGENET.items()}
    return Dataset("tiered_imagenet", "classification", pools, names, recipe=recipe)
