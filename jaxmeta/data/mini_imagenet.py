"""mini-ImageNet (Vinyals et al. 2016, in the split of Ravi and Larochelle 2017): 100 classes, 600 photographs each.

Read from a folder that the user brings, as the licence of ImageNet demands, in one of three packings.
"""

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np

from jaxmeta.data.brought import ImageFiles, choose_names, image_names, pool_file, read_pool, some
from jaxmeta.data.cache import cached_dataset
from jaxmeta.data.imagenet import find_classes, how_to_get, warn_if_few
from jaxmeta.data.imagenet_splits import MINI_IMAGENET
from jaxmeta.data.pickled import read_pickle
from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe

_LOG = logging.getLogger(__name__)

PER_CLASS, SIZE = 600, 84
RECIPE = 1  # Part of the name of the cached file: raise it when the images change.
_LISTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
_PICKLES = {
    "train": "mini-imagenet-cache-train.pkl",
    "validation": "mini-imagenet-cache-val.pkl",
    "test": "mini-imagenet-cache-test.pkl",
}


def load_mini_imagenet(*, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Load mini-ImageNet as class pools of colour images, 64 / 16 / 20 classes.

    The middle of each photograph is shrunk to a square by Lanczos filtering. What a folder may hold:

    - `train.csv`, `val.csv` and `test.csv` of Ravi and Larochelle (columns filename and label; as published in
      github.com/twitter-research/meta-learning-lstm, data/miniImagenet) beside a folder `images` of these files.
    - The training images of ILSVRC 2012, a folder or a tar file for each class (see `imagenet.find_classes`). The
      images are then not the published 600 of a class, which only the lists tell, but 600 as if drawn by chance,
      always the same ones; the log says so.
    - `mini-imagenet-cache-train.pkl`, `-val.pkl` and `-test.pkl`, which others have made: they are read without
      running what is in them, and refused if they hold more than arrays.

    Args:
      data_dir: The folder.
      image_size: Height and width in pixels; None for 84.

    Returns:
      Images `[classes, 600, 84, 84, 3]` uint8; names are the numbers of WordNet, such as "n01532829".

    Raises:
      DataError: no such folder, files or classes that are missing, other classes in the lists, a damaged file.

    Example:
      >>> load_mini_imagenet(data_dir=Path("mini")).splits["test"].images.shape  # doctest: +SKIP
      (20, 600, 84, 84, 3)

    Source: Vinyals et al., 2016, arXiv 1606.04080; Ravi and Larochelle, 2017, "Optimization as a Model for Few-Shot
    Learning".
    """
    recipe = ImageRecipe(image_size or SIZE, image_size or SIZE, 3)
    if data_dir is None:
        raise DataError(f"mini-ImageNet is not downloaded: give its folder as data_dir. {how_to_get('mini-ImageNet')}")
    folder = Path(data_dir).expanduser()
    prefix = f"mini_imagenet-{RECIPE}-{recipe.height}"
    pickles = {split: folder / name for split, name in _PICKLES.items()}
    lists = {split: folder / name for split, name in _LISTS.items()}
    if _all_there(pickles):
        file = pool_file(prefix, {split: ImageFiles(path) for split, path in pickles.items()})
        return cached_dataset(file, lambda: _from_pickles(pickles, recipe), source=str(folder))
    if _all_there(lists):
        classes = _listed(lists, folder / "images" if (folder / "images").is_dir() else folder)
    else:
        classes = _chosen(folder)
    return cached_dataset(pool_file(prefix, classes), lambda: _dataset(classes, recipe), source=str(folder))


def _all_there(paths: dict[str, Path]) -> bool:
    missing = [path.name for path in paths.values() if not path.is_file()]
    if 0 < len(missing) < len(paths):
        present = next(path for path in paths.values() if path.is_file())
        raise DataError(f"There is {present}, but no {' and no '.join(missing)} beside it. Fetch all three.")
    return not missing


def _dataset(classes: dict[str, ImageFiles], recipe: ImageRecipe) -> Dataset:
    _LOG.info("mini-ImageNet is prepared from its images, which takes minutes; what comes out is kept.")
    pools = {
        split: read_pool({number: classes[number] for number in numbers}, recipe)
        for split, numbers in MINI_IMAGENET.items()
    }
    return _named(pools, recipe)


def _named(pools: dict[str, ClassPool], recipe: ImageRecipe) -> Dataset:
    counts = {
        number: int(count)
        for split, numbers in MINI_IMAGENET.items()
        for number, count in zip(numbers, pools[split].counts, strict=True)
    }
    warn_if_few(counts, PER_CLASS, "mini-ImageNet")
    return Dataset("mini_imagenet", "classification", pools, dict(MINI_IMAGENET), recipe=recipe)


def _chosen(folder: Path) -> dict[str, ImageFiles]:
    """Choose 600 images of each class of a folder of ImageNet."""
    found = find_classes(folder, MINI_IMAGENET, "mini-ImageNet")
    names = {number: image_names(files) for number, files in found.items()}
    if any(len(of_class) > PER_CLASS for of_class in names.values()):
        _LOG.warning(
            "Without train.csv, val.csv and test.csv of Ravi and Larochelle in %s, the %d images of each class are "
            "others than theirs: scores are not exactly comparable.",
            folder,
            PER_CLASS,
        )
    return {number: files._replace(names=choose_names(names[number], PER_CLASS)) for number, files in found.items()}


def _listed(lists: dict[str, Path], images: Path) -> dict[str, ImageFiles]:
    """Read which images are of which class, and check the classes against the published split."""
    listed: dict[str, list[str]] = {}
    for split, path in lists.items():
        rows = _read_list(path)
        classes = {number for _, number in rows}
        strange, missing = sorted(classes - set(MINI_IMAGENET[split])), sorted(set(MINI_IMAGENET[split]) - classes)
        if strange or missing:
            what = (
                f"lists {some(strange)} classes that are not" if strange else f"lacks {some(missing)} classes that are"
            )
            raise DataError(
                f"{path} {what} of the {split} split of Ravi and Larochelle, which mini_imagenet is. Fetch their "
                "lists, or read yours by --dataset folder:PATH."
            )
        for name, number in rows:
            listed.setdefault(number, []).append(name)
    names = [name for of_class in listed.values() for name in of_class]
    if len(set(names)) < len(names):
        raise DataError(
            f"The lists beside {lists['train']} name {len(names) - len(set(names))} images more than once: one image "
            "would be of two classes, or be met in training and in test. Fetch the lists again."
        )
    present = set(image_names(ImageFiles(images)))
    # A name that leads out of the folder is not among its files.
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            f"{images} lacks {some(missing, 3)} of the {len(names)} images that train.csv, val.csv and "
            "test.csv name. Fetch or unpack them too."
        )
    return {number: ImageFiles(images, tuple(sorted(names))) for number, names in listed.items()}


def _read_list(path: Path) -> list[tuple[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [(row["filename"].strip(), row["label"].strip()) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, KeyError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a table with columns filename and label ({type(error).__name__}: {error})."
        ) from error


def _from_pickles(paths: dict[str, Path], recipe: ImageRecipe) -> Dataset:
    pools = {split: _pickled_pool(path, MINI_IMAGENET[split], recipe) for split, path in paths.items()}
    return _named(pools, recipe)


def _pickled_pool(path: Path, numbers: tuple[str, ...], recipe: ImageRecipe) -> ClassPool:
    """Read a file of `{"image_data": [images, 84, 84, 3] uint8, "class_dict": {class: places}}`."""
    from PIL import Image

    images, places = _checked(path, read_pickle(_bytes(path), path), numbers)
    size, most = (recipe.width, recipe.height), max(map(len, places.values()))
    pool = np.zeros([len(numbers), most, recipe.height, recipe.width, 3], np.uint8)
    for row, number in enumerate(numbers):
        of_class = images[places[number]]
        if of_class.shape[1:] != pool.shape[2:]:
            resized = [Image.fromarray(image).resize(size, Image.Resampling.LANCZOS) for image in of_class]
            of_class = np.stack([np.asarray(image) for image in resized])
        pool[row, : len(of_class)] = of_class
    return ClassPool(pool, np.array([len(places[number]) for number in numbers], np.int32))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error


def _checked(path: Path, content: Any, numbers: tuple[str, ...]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Refuse a file that is not such a cache of these classes."""
    try:
        images = content["image_data"]
        places = {number: np.asarray(of_class, np.int64) for number, of_class in content["class_dict"].items()}
        used = np.concatenate(list(places.values()))
        whole = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
        whole &= 0 <= used.min() and used.max() < len(images) and len(set(used.tolist())) == used.size
        reason = "" if whole else f"images {images.dtype}{list(images.shape)}, and places up to {used.max()} in them"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    if reason:
        raise DataError(
            f"{path} is not a cache of mini-ImageNet ({reason}); it should be a dictionary with image_data, "
            "[images, 84, 84, 3] uint8, and class_dict, the places of each class. Fetch it again."
        )
    if set(places) != set(numbers):
        raise DataError(
            f"{path} has {some(sorted(set(places) - set(numbers)))} classes that are not of this split of Ravi and "
            f"Larochelle, and lacks {some(sorted(set(numbers) - set(places)))}. Fetch the files of their split."
        )
    return images, places
