"""VGG Flowers, or Oxford Flowers 102 (Nilsback and Zisserman 2008): photographs of 102 kinds of flowers."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmeta.data.archive_pools import PoolPlan, photographs, pool_dataset, train_on_the_rest
from jaxmeta.data.archives import ArchiveFile, ArchiveSource, Example, damaged, read_members
from jaxmeta.data.pools import DataError, Dataset

SIZE = 84
_HOME = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
IMAGES = ArchiveFile(
    "102flowers.tgz",
    _HOME + "102flowers.tgz",
    344862509,
    "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
)
LABELS = ArchiveFile(
    "imagelabels.mat",
    _HOME + "imagelabels.mat",
    502,
    "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
)
# By their labels, from 1.
CLASSES = tuple(
    name.strip()
    for name in """
    pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon orchid,
    bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow iris,
    globe-flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily,
    pincushion flower, fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers,
    stemless gentian, artichoke, sweet william, carnation, garden phlox, love in the mist, mexican aster,
    alpine sea holly, ruby-lipped cattleya, cape flower, great masterwort, siam tulip, lenten rose,
    barbeton daisy, daffodil, sword lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup,
    oxeye daisy, common dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff,
    gaura, geranium, orange dahlia, pink-yellow dahlia?, cautleya spicata, japanese anemone, black-eyed susan,
    silverbush, californian poppy, osteospermum, spring crocus, bearded iris, windflower, tree poppy, gazania,
    azalea, water lily, rose, thorn apple, morning glory, passion flower, lotus, toad lily, anthurium,
    frangipani, clematis, hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen, watercress,
    canna lily, hippeastrum, bee balm, ball moss, foxglove, bougainvillea, camellia, mallow, mexican petunia,
    bromelia, blanket flower, trumpet creeper, blackberry lily
    """.split(",")
)
# Labels, from 1; what is for neither is for training.
SPLITS: dict[str, tuple[int, ...]] = {
    "validation": (10, 16, 17, 23, 26, 47, 53, 56, 57, 62, 82, 83, 86, 97, 102),
    "test": (5, 9, 15, 19, 35, 40, 41, 42, 45, 46, 65, 85, 89, 94, 96, 98),
}
_IMAGE = re.compile(r"(?:.*/)?jpg/(?P<file>image_(?P<number>\d{5})\.jpe?g)", re.I)


def load_vgg_flowers(*, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Load VGG Flowers as class pools, with the class split of Meta-Dataset: 71 / 15 / 16.

    Args:
      data_dir: A folder with `102flowers.tgz` (or packed in another way) and `imagelabels.mat`, or with a copy that
        tensorflow-datasets prepared (oxford_flowers102) in array_record. None: what was downloaded before, else a
        download (345 MB).
      image_size: Pixels a side; None: 84.

    Returns:
      Images `[classes, most of a class, size, size, 3]` uint8, cut to their middle, and the counts: 40 to 258.

    Raises:
      DataError: data that is missing, damaged or cannot be downloaded.

    Example:
      >>> load_vgg_flowers(data_dir=Path("data/flowers")).class_names["test"][0]  # doctest: +SKIP
      'english marigold'

    Source: Nilsback and Zisserman, 2008, Indian Conference on Computer Vision, Graphics and Image Processing; the
    files are described on https://www.robots.ox.ac.uk/~vgg/data/flowers/102/. The split: Triantafillou et al., 2020
    (arXiv 1903.03096), in vgg_flower_splits.json of its code.
    """
    plan = PoolPlan(
        "vgg_flowers", (SOURCE,), photographs(image_size, SIZE), split_flowers, stock=("oxford_flowers102",)
    )
    return pool_dataset(plan, data_dir)


def split_flowers(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Split the classes by their labels; see `load_vgg_flowers`."""
    if len(names) != len(CLASSES):
        raise DataError(f"This vgg_flowers has {len(names)} classes; it should have {len(CLASSES)}. Fetch it again.")
    held_out = {split: [str(names[label - 1]) for label in labels] for split, labels in SPLITS.items()}
    return train_on_the_rest(names, held_out)


def _examples(paths: Mapping[str, Path]) -> Iterator[Example]:
    labels = _labels(paths[LABELS.name])
    for match, contents in read_members(paths[IMAGES.name], _IMAGE):
        number = int(match["number"])
        if not 1 <= number <= len(labels):
            raise DataError(
                f"{paths[IMAGES.name]} has an image {number}, but {paths[LABELS.name]} has {len(labels)} labels: they "
                f"are not of one version. Fetch both again from {_HOME}."
            )
        yield Example("images", CLASSES[labels[number - 1] - 1], match["file"], contents)


def _labels(path: Path) -> np.ndarray:
    """Read the label of each image, from 1: a MATLAB file with one array `labels`."""
    from scipy.io import loadmat

    contents = path.read_bytes()
    try:
        labels = loadmat(io.BytesIO(contents))["labels"].reshape(-1).astype(int)
    except Exception as error:  # A damaged file fails in a dozen ways.
        raise damaged(path, error) from error
    if not labels.size or labels.min() < 1 or labels.max() > len(CLASSES):
        raise damaged(path, f"its labels are not those of {len(CLASSES)} classes")
    return labels


SOURCE = ArchiveSource(
    name="vgg_flowers",
    version="1.0.0",
    description="Photographs of 102 kinds of flowers.",
    homepage=_HOME,
    citation="Nilsback and Zisserman. Automated flower classification over a large number of classes. ICVGIP 2008.",
    files=(IMAGES, LABELS),
    num_images=8189,
    class_names=lambda paths: CLASSES,
    examples=_examples,
)
