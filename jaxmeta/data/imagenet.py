"""ImageNet (ILSVRC 2012) as the user brings it: where its classes are, in whatever packing it was unpacked."""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxmeta.data.brought import ImageFiles, some
from jaxmeta.data.pools import DataError

_LOG = logging.getLogger(__name__)

# Where the class folders of the training images are in the official archive, in common loaders' folders, in Kaggle's.
_ROOTS = (".", "train", "ILSVRC2012_img_train", "Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/train")
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
_CLASS = re.compile(r"n\d{8}")


def find_classes(folder: Path, wanted: Mapping[str, Iterable[str]], name: str) -> dict[str, ImageFiles]:
    """Find the images of classes of ImageNet in a folder.

    Either all classes are in one place, as in ILSVRC 2012, each a folder `nXXXXXXXX` or a tar file `nXXXXXXXX.tar`; or
    those of each split are in a folder `train`, `val` or `test`.

    Args:
      folder: The folder.
      wanted: Of each split, its classes.
      name: What to call the data set in a message.

    Returns:
      The images of each class, in the order wanted.

    Raises:
      DataError: no such folder, a class is missing, or the folders are of another split.
    """
    if not folder.is_dir():
        raise DataError(f"No {name} in data_dir {folder}: no such folder. {how_to_get(name)}")
    classes = [number for of_split in wanted.values() for number in of_split]
    places = [_in_one_place(folder / root, classes) for root in _ROOTS]
    found = max(places, key=len)
    if len(found) < len(classes):
        by_split = _by_split(folder, wanted, name)
        found = max(found, by_split, key=len)
    missing = [number for number in classes if number not in found]
    if len(missing) == len(classes):
        raise DataError(f"No {name} in data_dir {folder}: no class of it. {_packed(folder)}{how_to_get(name)}")
    if missing:
        raise DataError(
            f"{folder} lacks {some(missing)} of the {len(classes)} classes of {name}. Each is a folder or a tar file "
            "of that name: fetch or unpack them too."
        )
    return {number: found[number] for number in classes}


def how_to_get(name: str) -> str:
    """Tell what a folder should hold.

    Args:
      name: The data set.

    Returns:
      A sentence or two.
    """
    return (
        f"The images of {name} are ImageNet's, whose licence lets nobody hand them on: get the training images of "
        "ILSVRC 2012 from image-net.org, and give the folder with its class folders (n01440764 and so on) or with the "
        "tar file of each class."
    )


def _in_one_place(root: Path, classes: Iterable[str]) -> dict[str, ImageFiles]:
    found = {}
    for number in classes:
        for path in (root / number, root / f"{number}.tar"):
            if number not in found and path.exists():
                found[number] = ImageFiles(path)
    return found


def _by_split(folder: Path, wanted: Mapping[str, Iterable[str]], name: str) -> dict[str, ImageFiles]:
    """Find classes in a folder for each split, and refuse those that lie in the folder of another split."""
    found = {}
    for split, of_split in wanted.items():
        others = {number for other, of_other in wanted.items() if other != split for number in of_other}
        for root in (folder / own for own in SPLIT_FOLDERS[split]):
            strange = sorted(others & {path.stem for path in root.glob("n*") if _CLASS.fullmatch(path.stem)})
            if strange:
                raise DataError(
                    f"{root} holds {some(strange)} classes that are not of the {split} split of {name}: it is "
                    "divided in another way, and scores on it would not be comparable. Move them to their split, or "
                    "read the folder as it is by --dataset folder:PATH."
                )
            found |= _in_one_place(root, of_split)
    return found


def _packed(folder: Path) -> str:
    archives = sorted(path.name for path in folder.glob("ILSVRC*.tar*"))
    return f"Unpack {archives[0]} first (tar -xf), the tar files in it need not be. " if archives else ""


def warn_if_few(counts: Mapping[str, int], least: int, name: str) -> None:
    """Say in the log which classes have fewer images than the published ones.

    Args:
      counts: Images of each class.
      least: How many there should be.
      name: The data set.
    """
    short = [f"{number}: {count}" for number, count in counts.items() if count < least]
    if short:
        _LOG.warning("%s of the classes of this %s have fewer than %d images.", some(short), name, least)
