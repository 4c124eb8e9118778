"""Which images are labelled, which are to be, and what of them can be read."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmeta.data import DataError
from jaxmeta.data.images import ImageError, read_image
from jaxmeta.data.labelled import is_hidden, refuse_two_spellings
from jaxmeta.data.pools import ImageRecipe

LAYOUT = "The support folder has one sub-folder for each class, with a few images of it."


class Images(NamedTuple):
    """Images that could be read, and files that could not.

    Attributes:
      pixels: `[images, height, width, channels]` uint8.
      files: `[images]`, where each is from.
      skipped: A sentence for each file that could not be read, and for what else was passed over.
    """

    pixels: np.ndarray
    files: tuple[Path, ...]
    skipped: tuple[str, ...]


class Support(NamedTuple):
    """Labelled images.

    Attributes:
      images: The `Images`, sorted by class.
      targets: `[images]` int32, the number of each one's class.
      class_names: Name of each class.
    """

    images: Images
    targets: np.ndarray
    class_names: tuple[str, ...]


def read_images(files: Iterable[Path], recipe: ImageRecipe) -> Images:
    """Read files as a recipe says; those that are no images are named, and the rest goes on.

    Args:
      files: The files.
      recipe: Size, channels and polarity.

    Returns:
      The `Images`.
    """
    pixels, read, skipped = [], [], []
    for path in files:
        try:
            pixels.append(read_image(path, recipe))
            read.append(path)
        except ImageError as error:
            skipped.append(str(error))
    shape = (0, recipe.height, recipe.width, recipe.channels)
    return Images(np.stack(pixels) if pixels else np.zeros(shape, np.uint8), tuple(read), tuple(skipped))


def read_support(folder: Path, recipe: ImageRecipe, queries: Sequence[Path] = ()) -> Support:
    """Read the labelled images of a folder with one sub-folder for each class.

    Args:
      folder: The folder.
      recipe: How its images are read.
      queries: Files and folders to be labelled, which may lie inside: they are no class, and of none.

    Returns:
      The `Support`, classes in the order of their names.

    Raises:
      DataError: if there is no such folder, there are fewer than two classes, two spellings of one, or a class has no
        image.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"The support folder {folder} {problem}. {LAYOUT}")
    around = {real_path(folder), *real_path(folder).parents}
    # A query folder around the support folder, or the folder itself, takes no class away.
    asked = {real_path(path) for path in queries}
    inside = asked - around
    # Nor is a link back to where it lies a class.
    none = inside | around
    classes = [entry for entry in _entries(folder) if entry.is_dir() and real_path(entry) not in none]
    if len(classes) < 2:
        found = f"one class, {classes[0].name}" if classes else "no class"
        raise DataError(f"{folder} has {found}; at least two are needed to tell apart. {LAYOUT}")
    refuse_two_spellings(entry.name for entry in classes)
    of_class = [_images_below(entry, recipe, inside) for entry in classes]
    for entry, images in zip(classes, of_class, strict=True):
        if not images.files:
            why = f" ({images.skipped[0]})" if images.skipped else ""
            raise DataError(
                f"The class {entry.name} has no image that can be read in {entry}{why}. Put one there, or remove the "
                "folder: what has no example cannot be recognised."
            )
    left = [path for path in _entries(folder) if path not in classes and real_path(path) not in inside]
    # What is a folder and no class is a link back.
    links = [_not_followed(path) for path in left if path.is_dir()]
    loose = [f"{path} is in the folder of no class." for path in left if not path.is_dir()]
    # Where the whole folder is to be labelled, they are queries.
    skipped = links if asked & around else links + loose
    pixels, files, of_files = zip(*of_class, strict=True)
    together = Images(np.concatenate(pixels), sum(files, ()), (*sum(of_files, ()), *skipped))
    targets = np.repeat(np.arange(len(classes), dtype=np.int32), [len(one) for one in files])
    return Support(together, targets, tuple(entry.name for entry in classes))


def query_files(queries: Sequence[Path], support: Sequence[Path] = ()) -> tuple[list[Path], list[str]]:
    """List the files to be labelled: those given, and all below the folders given, each once.

    Args:
      queries: Files and folders.
      support: Files that are labelled already, and left out.

    Returns:
      The files, those of a folder in the order of their names; and a sentence for each link that is not followed.

    Raises:
      DataError: if something given does not exist, or nothing is left.
    """
    files: dict[Path, Path] = {}
    links: list[str] = []
    for path in queries:
        if not path.exists():
            raise DataError(f"There is no file or folder {path} to label.")
        for file in _files_below(path, links) if path.is_dir() else [path]:
            files.setdefault(real_path(file), file)
    labelled = {real_path(path) for path in support}
    left = [file for resolved, file in files.items() if resolved not in labelled]
    if not left:
        what = "all files there are in the support folder" if files else "the folders are empty"
        also = f" But {links[0]} Give the folder itself." if links else ""
        raise DataError(f"There is nothing to label in {', '.join(map(str, queries))}: {what}.{also}")
    return left, links


def real_path(path: Path) -> Path:
    """Follow all links; a link that leads round to itself stays what it is, where `Path.resolve` would raise."""
    return Path(os.path.realpath(path))


def shown(path: Path | str) -> str:
    """Write a path as text that every encoding takes: a file's name may be any bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


def _entries(folder: Path) -> list[Path]:
    """List what is in a folder, in order, without what its owner is not shown either."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def _images_below(folder: Path, recipe: ImageRecipe, leave_out: Iterable[Path]) -> Images:
    links: list[str] = []
    images = read_images(_files_below(folder, links, leave_out), recipe)
    return images._replace(skipped=(*images.skipped, *links))


def _not_followed(link: Path) -> str:
    return f"{link} is a link to a folder, which is not followed."


def _files_below(folder: Path, links: list[str], leave_out: Iterable[Path] = ()) -> Iterator[Path]:
    """Give all files below a folder in order; links to folders, which may go round, are added to those not followed."""
    out = set(leave_out)

    def wanted(names: list[str], here: Path) -> list[str]:
        return sorted(name for name in names if not is_hidden(name) and real_path(here / name) not in out)

    def refuse(error: OSError):
        raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}.") from error

    for where, folders, names in os.walk(folder, onerror=refuse):
        here = Path(where)
        folders[:] = wanted(folders, here)
        linked = [here / name for name in folders if (here / name).is_symlink()]
        links.extend(map(_not_followed, linked))
        yield from (here / name for name in wanted(names, here))
