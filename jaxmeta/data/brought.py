"""Images that the user brings, as files in folders or in tar files: found, named by contents, read into pools.

Nothing of this goes through a prepared copy of tensorflow-datasets: the files are images already, and a second copy
of up to a hundred gigabytes on the way to the pool would hold nothing that the first does not.
"""

import hashlib
import logging
import os
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmeta.data.cache import cache_dir
from jaxmeta.data.images import ImageError, read_image
from jaxmeta.data.memory import room_for
from jaxmeta.data.pools import ClassPool, DataError, ImageRecipe

_LOG = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


class ImageFiles(NamedTuple):
    """The images of one class.

    Attributes:
      source: A folder, or a tar file of images.
      names: Which of its files; None for all images in it.
    """

    source: Path
    names: tuple[str, ...] | None = None


def image_names(files: ImageFiles) -> tuple[str, ...]:
    """List the images of a class by name.

    Args:
      files: The class.

    Returns:
      File names, sorted. Hidden files and what does not end like an image are passed over.

    Raises:
      DataError: the folder or tar file cannot be read.
    """
    if files.names is not None:
        return files.names
    try:
        if files.source.is_dir():
            with os.scandir(files.source) as entries:
                names = [entry.name for entry in entries if entry.is_file()]
        else:
            with tarfile.open(files.source) as archive:
                names = [member.name for member in archive if member.isfile()]
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{files.source} cannot be read ({error}). Fetch it again.") from error
    return tuple(sorted(name for name in names if _is_image(Path(name))))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def pool_file(prefix: str, classes: Mapping[str, ImageFiles]) -> Path:
    """Name the cached pool of some classes by their files, wherever they lie.

    The names, sizes and times of the files stand for their contents: reading tens of gigabytes to tell whether they
    have changed would take minutes at every opening.

    Args:
      prefix: What the name begins with: the data set, and the recipe of its images.
      classes: The images of each class.

    Returns:
      A path in `cache_dir()`.

    Raises:
      DataError: a file is missing.
    """
    digest = hashlib.sha256()
    for name in sorted(classes):
        source, paths = classes[name].source, [classes[name].source]
        if source.is_dir():
            paths = [source / of_class for of_class in image_names(classes[name])]
        for path in paths:
            try:
                state = path.stat()
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror}). Fetch it again.") from error
            line = f"{name}|{path.name}|{state.st_size}|{state.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return cache_dir() / f"{prefix}-{digest.hexdigest()[:16]}.npz"


def choose_names(names: Iterable[str], most: int | None) -> tuple[str, ...]:
    """Choose images as if by chance, the same ones in whatever order and packing they come.

    Args:
      names: File names.
      most: How many to choose; None for all.

    Returns:
      The names whose SHA-256 are the smallest, sorted by name.

    Example:
      >>> choose_names(["a.jpg", "b.jpg", "c.jpg"], 2) == choose_names(["c.jpg", "b.jpg", "a.jpg"], 2)
      True
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(Path(name).name.encode(errors="surrogateescape")).digest())
    return tuple(sorted(ranked[:most]))


def read_pool(classes: Mapping[str, ImageFiles], recipe: ImageRecipe, *, least: int = 1) -> ClassPool:
    """Read the images of classes into a pool, several classes at once.

    An image that cannot be read is left out, and the log names it. A large pool is a memory map: see `room_for`.

    Args:
      classes: The images of each class, in the order of the pool.
      recipe: How they become pixels.
      least: How many images of each class must be readable.

    Returns:
      Images `[classes, most of a class, height, width, channels]` uint8, each class in the order of its names.

    Raises:
      DataError: a class has too few images that can be read, or there is no space for the pool.
    """
    names = {name: image_names(files) for name, files in classes.items()}
    most = max(map(len, names.values()), default=0)
    images = room_for((len(classes), most, recipe.height, recipe.width, recipe.channels))
    counts = np.zeros(len(classes), np.int32)
    damaged: list[str] = []

    def read_class(place: int, name: str) -> None:
        files = classes[name]
        for member, contents in _contents(files.source, names[name]):
            try:
                images[place, counts[place]] = read_image(contents, recipe)
                counts[place] += 1
            except ImageError as error:
                # Of a file the error tells the name.
                damaged.append(f"{files.source / member}: {error}" if isinstance(contents, bytes) else str(error))

    in_threads(read_class, range(len(classes)), classes)
    if damaged:
        _LOG.warning("%d images cannot be read and are left out; the first: %s", len(damaged), min(damaged))
    short = [f"{name}: {count}" for name, count in zip(classes, counts, strict=True) if count < least]
    if short:
        raise DataError(
            f"Of {len(classes)} classes, {some(short)} have fewer than {least} images that can be read. Fetch them "
            "again."
        )
    return ClassPool(images, counts)


def in_threads(function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
    """Map a function over arguments in as many threads as there are cores; the first error ends it.

    Args:
      function: What to call: something that reads images, which Pillow does in several threads at once.
      *arguments: As of `map`.

    Returns:
      The results in order.
    """
    workers = ThreadPoolExecutor(os.cpu_count())
    # `read_image` sets the filters of warnings, which belong to all threads; here they are set back.
    with warnings.catch_warnings():
        try:
            return list(workers.map(function, *arguments))
        finally:
            # After Ctrl-C or an error what was not begun is left.
            workers.shutdown(cancel_futures=True)


def some(names: Iterable[str], most: int = 5) -> str:
    """Count names and list the first.

    Args:
      names: The names.
      most: How many are listed.

    Returns:
      A part of a sentence.

    Example:
      >>> some(["a", "b", "c"], 2)
      '3 (a, b, ...)'
    """
    names = list(names)
    return f"{len(names)} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"


def _contents(source: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Path | bytes]]:
    """Give the images of one class one after the other: a path, or the bytes in a tar file."""
    if source.is_dir():
        yield from ((name, source / name) for name in names)
        return
    try:
        with tarfile.open(source) as archive:
            for name in names:
                member = archive.extractfile(name)
                yield name, b"" if member is None else member.read()
    except (OSError, KeyError, tarfile.TarError) as error:
        raise DataError(f"{source} is damaged ({error}). Fetch it again.") from error
