"""Labelled files made into the pools of a dataset: what size they get, which of them do, which class goes where."""

import hashlib
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmeta.data.divide import SHARES, divide_classes, hash_order
from jaxmeta.data.images import ImageError, measure_image, read_image
from jaxmeta.data.labelled import Listing, printable
from jaxmeta.data.memory import free_memory, room_for
from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe

SIZE = 84
# More images of a class are of no use to tasks of a few, and the largest class decides on the size of a pool.
MOST_OF_A_CLASS = 2000
# So many images are looked at to tell drawings from photographs, and this share of them must be drawings.
SAMPLE, CLEARLY = 100, 0.95
_THREADS = min(8, os.cpu_count() or 1)
_LOG = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """The options of `load_folder`, which says what they are."""

    image_size: int | None
    channels: int | None
    bright_ink: bool | None
    recipe: ImageRecipe | None
    seed: int
    ways: int
    train_ways: int | None
    least_images: int


def prepare_folder(place: Path, listing: Listing, wanted: Wanted) -> tuple[Dataset, dict[str, Any]]:
    """Read the images, leave out what does not do, and divide the classes.

    Args:
      place: What to call the folder in a message.
      listing: Its labelled files.
      wanted: The options.

    Returns:
      The dataset, named by a hash of what is in it, and as plain values what there is to say: its splits, the classes
      left out, the files skipped.

    Raises:
      DataError: too few classes are left, or the images do not fit in memory or on the disk.
    """
    skipped = list(listing.skipped)
    files = [
        (split, name, file)
        for split, classes in listing.splits.items()
        for name, of_class in classes.items()
        for file in _at_most(of_class, skipped)
    ]
    paths = [file for *_, file in files]
    size = wanted.image_size or _own_size(paths) or SIZE
    # Before anything of that size is made.
    _check_memory(place, files, wanted.recipe or ImageRecipe(size, size, wanted.channels or 3))
    recipe = wanted.recipe or _choose_recipe(paths, size, wanted)
    images, readable = _read_all(place, files, recipe, skipped)
    # Grey unless there is colour; what of grey is read as colour is the same three times.
    open_to_grey = wanted.channels is None and wanted.recipe is None
    grey = open_to_grey and all(_is_grey(images[row]) for row in readable)
    recipe = recipe._replace(channels=1) if grey else recipe
    # Where the images of each class lie.
    found: dict[str, dict[str, list[int]]] = {split: {} for split in listing.splits}
    for split, name, _ in files:
        found[split].setdefault(name, [])
    for row in readable:
        found[files[row][0]][files[row][1]].append(row)
    left_out = {
        name: len(of) for split in found.values() for name, of in split.items() if len(of) < wanted.least_images
    }
    usable = {
        split: {name: of for name, of in classes.items() if name not in left_out} for split, classes in found.items()
    }
    try:
        names = _divided(usable, wanted)
    except DataError as error:
        why = f" {left_out_sentence(left_out, wanted.least_images)}" if left_out else ""
        first = f" The first file skipped: {skipped[0][0]} {skipped[0][1]}." if skipped else ""
        raise DataError(f"{place}: {error}{why}{first}") from error
    rows_of = {name: rows for classes in usable.values() for name, rows in classes.items()}
    images = images[..., : recipe.channels]
    pools = {split: _pool(images, [rows_of[name] for name in of_split]) for split, of_split in names.items()}
    facts = {
        "folder": printable(str(place)),
        "seed": wanted.seed,
        "recipe": recipe._asdict(),
        "splits": {split: {name: len(rows_of[name]) for name in of_split} for split, of_split in names.items()},
        "left_out": left_out,
        "least_images": wanted.least_images,
        "alike": _alike(names, rows_of, images),
        "skipped": [[printable(str(path)), reason] for path, reason in skipped],
    }
    return Dataset(_content_hash(names, pools), "classification", pools, names, recipe=recipe), facts


def _alike(
    names: Mapping[str, Sequence[str]], rows_of: Mapping[str, Sequence[int]], images: np.ndarray
) -> dict[str, list[str]]:
    """Find pairs of classes, in two splits, that share an image: `"class of split": its counterparts`."""
    seen: dict[bytes, tuple[str, str]] = {}
    shared: dict[str, list[str]] = {}
    for split, of_split in names.items():
        for name in of_split:
            for row in rows_of[name]:
                first_split, first = seen.setdefault(hashlib.sha256(images[row].tobytes()).digest(), (split, name))
                pair = f"{first} ({first_split})", f"{name} ({split})"
                if first_split != split and pair[1] not in shared.setdefault(pair[0], []):
                    shared[pair[0]].append(pair[1])
    return shared


def left_out_sentence(left_out: Mapping[str, int], least: int) -> str:
    """Name the classes with too few images, and the numbers."""
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(left_out.items())[:10])
    more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    return (
        f"Left out for having fewer than {least} usable images, support and query together: {listed}{more}. With fewer "
        "shots and queries (those of the evaluation, too) fewer do."
    )


def _at_most(files: Sequence[Path], skipped: list[tuple[Path, str]]) -> list[Path]:
    if len(files) <= MOST_OF_A_CLASS:
        return list(files)
    order = hash_order([printable(file.name) for file in files], 0)[:MOST_OF_A_CLASS]
    chosen = set(order)
    skipped += [
        (file, f"is beyond {MOST_OF_A_CLASS} of its class") for file in files if printable(file.name) not in chosen
    ]
    return [file for file in files if printable(file.name) in chosen]


def _choose_recipe(files: Sequence[Path], size: int, wanted: Wanted) -> ImageRecipe:
    """Tell drawings from photographs, as far as the options leave it open."""
    drawn = _are_drawings(files, size) if wanted.bright_ink is None else wanted.bright_ink
    return ImageRecipe(size, size, wanted.channels or (1 if drawn else 3), "pad" if drawn else "crop", drawn)


def _own_size(files: Sequence[Path]) -> int | None:
    """Give the side of the images if all are square, alike and no larger than the default."""
    size = None
    for file in files:
        try:
            width, height = measure_image(file)
        except ImageError:
            continue
        if width != height or width > SIZE or size not in (None, width):
            return None
        size = width
    return size


def _are_drawings(files: Sequence[Path], size: int) -> bool:
    """Look at a sample, and stop at once where it holds too many photographs."""
    sample = files[:: max(1, len(files) // SAMPLE)]
    drawings, others = 0, 0
    for file in sample:
        try:
            pixels = read_image(file, ImageRecipe(size, size, 3, fit="pad"))
        except ImageError:
            continue
        drawings, others = (drawings + 1, others) if _is_drawing(pixels) else (drawings, others + 1)
        if others > (1 - CLEARLY) * len(sample):
            return False
    return drawings > 0


def _is_drawing(pixels: np.ndarray) -> bool:
    """Tell dark ink on white paper: white at its border and over most of its area, dark somewhere, and grey."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    # A scanner's white and grey are a little coloured.
    grey = np.ptp(pixels.astype(int), axis=-1).max() <= 16
    return bool(grey and np.median(border) >= 224 and (pixels >= 224).mean() >= 0.6 and pixels.min() <= 128)


def _is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[..., :1]).all())


def _check_memory(place: Path, files: Sequence[tuple[str, str, Path]], recipe: ImageRecipe) -> None:
    """Refuse images so large that those which are read at once would not fit; the pools themselves may be mapped."""
    counts: dict[tuple[str, str], int] = {}
    for split, name, _ in files:
        counts[split, name] = counts.get((split, name), 0) + 1
    largest = max(counts.values())
    # Decoded, resized and kept, in each thread.
    needed, free = 3 * _THREADS * recipe.height * recipe.width * recipe.channels, free_memory()
    if free is not None and needed > 0.8 * free:
        name = next(name for (_, name), count in counts.items() if count == largest)
        raise DataError(
            f"{place} has {len(files):,} images in {len(counts):,} classes, of which {name!r} has the most, {largest}: "
            f"reading them at {recipe.height}x{recipe.width}x{recipe.channels} takes up to {needed / 2**30:.1f} GiB of "
            f"memory, and {free / 2**30:.1f} are free. Use a smaller image size."
        )


def _read_all(
    place: Path, files: Sequence[tuple[str, str, Path]], recipe: ImageRecipe, skipped
) -> tuple[np.ndarray, list[int]]:
    """Read every file into an array, and list those that could be read; the others get an entry in `skipped`."""

    def read(file: Path) -> np.ndarray | ImageError:
        try:
            return read_image(file, recipe)
        except ImageError as error:
            return error

    images, readable = room_for((len(files), recipe.height, recipe.width, recipe.channels)), []
    if len(files) > 1000:
        # A warning, since nothing less is shown, and it takes a while.
        _LOG.warning("%s: reading %d files; this is done once", place, len(files))
    paths = [file for *_, file in files]
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as threads:
        # Each thread hushes Pillow and restores what it found, which another may have changed: restored here for good.
        warnings.simplefilter("ignore")
        # A few at a time: what is read and not yet taken lies in memory.
        for first in range(0, len(paths), 8 * _THREADS):
            part = paths[first : first + 8 * _THREADS]
            for row, result in enumerate(threads.map(read, part), start=first):
                if isinstance(result, ImageError):
                    skipped.append((paths[row], str(result).removeprefix(f"{paths[row]} ").removesuffix(".")))
                else:
                    images[row] = result
                    readable.append(row)
    return images, readable


def _divided(usable: Mapping[str, Mapping[str, Any]], wanted: Wanted) -> dict[str, tuple[str, ...]]:
    """Give the names of each split, sorted: as they are named, or by chance."""
    least = wanted.train_ways or wanted.ways
    if set(usable) == {""}:
        return divide_classes(list(usable[""]), wanted.seed, ways=wanted.ways, train_ways=least)
    names = {split: tuple(sorted(classes)) for split, classes in usable.items()}
    if not names.get("train") or not names.get("test"):
        here = ", ".join(f"{len(of_split)} in {split}" for split, of_split in names.items())
        raise DataError(
            f"There are usable classes {here}; there must be some in train and in test. Name no splits, "
            "and they are made."
        )
    if not names.get("validation"):
        order = hash_order(names["train"], wanted.seed)
        # The share of validation in what is not the test.
        count = max(wanted.ways, round(SHARES["validation"] / (1 - SHARES["test"]) * len(order)))
        count = min(count, len(order) - least)
        if count < wanted.ways:
            raise DataError(
                f"{len(order)} classes to train on are too few to validate with some of them: {least} to train on and "
                f"{wanted.ways} others are needed. Add classes, or a folder validation."
            )
        names |= {"train": tuple(sorted(order[count:])), "validation": tuple(sorted(order[:count]))}
    return {split: names[split] for split in ("train", "validation", "test")}


def _pool(images: np.ndarray, rows_of_classes: Sequence[Sequence[int]]) -> ClassPool:
    counts = np.array([len(rows) for rows in rows_of_classes], np.int32)
    pool = room_for((len(counts), int(counts.max()), *images.shape[1:]))
    for of_class, rows in zip(pool, rows_of_classes, strict=True):
        for place, row in enumerate(rows):
            of_class[place] = images[row]
    return ClassPool(pool, counts)


def _content_hash(names: Mapping[str, Sequence[str]], pools: Mapping[str, ClassPool]) -> str:
    """Hash the classes and the pixels: what tasks are made of, wherever the files lie."""
    digest = hashlib.sha256()
    for split, pool in pools.items():
        digest.update(f"{split}{pool.images.shape}{pool.counts.tolist()}{list(names[split])}".encode())
        digest.update(pool.images)
    return digest.hexdigest()[:8]
