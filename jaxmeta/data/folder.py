"""A dataset of your own images: a folder with one sub-folder a class, or a CSV; see `labelled` for the layouts.

Images of any size, kind and colour mode may be mixed. What cannot be used is said in the log, a line for each reason,
and listed in full in a JSON file beside the prepared pool, with the split of every class.
"""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from jaxmeta.data.cache import cache_dir, cached_dataset, write_beside
from jaxmeta.data.folder_pool import Wanted, left_out_sentence, prepare_folder
from jaxmeta.data.images import reads_heic
from jaxmeta.data.labelled import Listing, list_labelled, printable
from jaxmeta.data.pools import DataError, Dataset, ImageRecipe

RECIPE = 1  # Part of the key of the cached file: raise it when the images or the splits change.
_EXAMPLES = 3
_LOG = logging.getLogger(__name__)


def load_folder(
    data_dir: Path | str | None = None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    bright_ink: bool | None = None,
    recipe: ImageRecipe | None = None,
    seed: int = 0,
    ways: int = 2,
    train_ways: int | None = None,
    least_images: int = 2,
) -> Dataset:
    """Load your own images as class pools: a folder with one sub-folder a class, or a CSV of paths and labels.

    Layouts: `PATH/class/*`; `PATH/group/class/*`, whose groups become the dataset's; either of them below folders
    `train`, `validation` (or `val`) and `test`; a CSV with the columns path, label and, if you like, split. Where no
    splits are named, or no validation, they are made by `divide_classes`: 64 / 16 / 20 % of the classes.

    The pool is cached under the names, sizes and times of the files, which are known without reading any of them: it
    opens fast, a changed file is noticed, and a folder that was moved is known again. (Not noticed is a file that
    changed while its size and its time did not.) Beside it lies a JSON file with the split of every class, and with
    every file that was skipped and why.

    Args:
      data_dir: The folder, or the CSV.
      image_size: Side of the square images; None: 84, or their own if all are square, alike and no larger.
      channels: 1 or 3; None: 1 if all images are grey or they are drawings, else 3.
      bright_ink: Read dark drawings on white paper as bright ink on black, as Omniglot is, with what surrounds them
        kept; photographs are cropped to their middle. None: if they clearly are drawings, which is when of a sample at
        least 95 % are grey, white along the border and over most of the area, and dark somewhere.
      recipe: Make the images as those of another dataset; in place of the three options before.
      seed: Draws the splits, where none are named.
      ways: Classes in a task: validation and test get at least as many.
      train_ways: Classes in a task of training; None for `ways`.
      least_images: Images that a class needs, for support and query; classes with fewer are left out and named. At
        least two.

    Returns:
      Images `[classes, per_class, size, size, channels]` uint8; at most 2000 of a class. The name is that of the
      folder and a hash of what is in the pools: the same wherever the folder lies, another if an image changes.

    Raises:
      DataError: nothing labelled is found, too few classes are left, a class is in two splits or spelled in two ways,
        or the images do not fit in memory; says what to change.

    Example:
      >>> photographs = load_folder("photographs", image_size=84)  # doctest: +SKIP
      >>> photographs.splits["test"].images.shape  # doctest: +SKIP
      (5, 30, 84, 84, 3)
    """
    wanted = Wanted(image_size, channels, bright_ink, recipe, seed, ways, train_ways, max(least_images, 2))
    _check(data_dir, wanted)
    place = Path(data_dir or "").expanduser()
    listing = list_labelled(place)
    path = cache_dir() / f"folder-{_key(place, listing, wanted)}.npz"
    record, made = path.with_suffix(".json"), {}
    if not record.is_file():
        # Who prepared the pool knows what was skipped, and nobody else does.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def build() -> Dataset:
        dataset, facts = prepare_folder(place, listing, wanted)
        made.update(facts)
        write_beside(path, ".json", facts)
        return dataset

    dataset = cached_dataset(path, build, source=printable(str(place.resolve())))
    if not path.is_file():
        # A record of a pool that could not be kept would be nobody's.
        with contextlib.suppress(OSError):
            record.unlink(missing_ok=True)
    with contextlib.suppress(OSError, ValueError, LookupError):
        _report(place, made or json.loads(record.read_text()), record, new=bool(made))
    # The folder may have another name than when it was cached.
    base = printable(place.resolve().name if place.is_dir() else place.stem)
    names = [name for of_split in dataset.class_names.values() for name in of_split]
    groups = None
    if all("/" in name for name in names):
        groups = {split: tuple(map(_group, of_split)) for split, of_split in dataset.class_names.items()}
    return dataset._replace(name=f"folder:{base}-{dataset.name}", groups=groups)


def _group(name: str) -> str:
    return name.rpartition("/")[0]


def _check(data_dir: Path | str | None, wanted: Wanted) -> None:
    if data_dir is None or not str(data_dir):
        raise DataError("A folder of images needs its path: --dataset folder:PATH, with one sub-folder a class.")
    if wanted.recipe is not None and (wanted.image_size, wanted.channels, wanted.bright_ink) != (None, None, None):
        raise DataError("A recipe says the size, the channels and the ink: leave out those options, or the recipe.")
    if wanted.image_size is not None and wanted.image_size < 1:
        raise DataError(f"image_size must be at least 1; given {wanted.image_size}.")
    if wanted.channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (colour); given {wanted.channels}.")


def _key(place: Path, listing: Listing, wanted: Wanted) -> str:
    """Hash what the pool is made of: the options, and the names, sizes and times of the files."""
    root = place if place.is_dir() else place.parent
    digest = hashlib.sha256(json.dumps([RECIPE, reads_heic(), *wanted]).encode())
    for split, classes in listing.splits.items():
        for name, files in classes.items():
            digest.update(f"\n{split}\0{name}\0".encode())
            for file in files:
                with contextlib.suppress(OSError):
                    status = file.stat()
                    digest.update(os.fsencode(os.path.relpath(file, root)))
                    digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    for path, reason in listing.skipped:
        digest.update(os.fsencode(os.path.relpath(path, root)) + reason.encode())
    return digest.hexdigest()[:16]


def _report(place: Path, facts: dict[str, Any], record: Path, new: bool) -> None:
    """Say what was skipped, a line for each reason, and where the whole list is."""
    reasons: dict[str, list[tuple[str, str]]] = {}
    for path, reason in facts["skipped"]:
        # In brackets is what differs from file to file.
        reasons.setdefault(reason.partition(" (")[0], []).append((path, reason))
    for of_reason in reasons.values():
        first, *others = (path.removeprefix(f"{facts['folder']}/") for path, _ in of_reason)
        more = f" and {len(others) - _EXAMPLES} more" if len(others) > _EXAMPLES else ""
        also = f"; likewise {', '.join(others[:_EXAMPLES])}{more}" if others else ""
        _LOG.warning("%s: skipped %s, which %s%s", place, first, of_reason[0][1], also)
    for one, others in facts.get("alike", {}).items():
        _LOG.warning(
            "%s: the same image is in %s and in %s: what is tested must not be trained on. Leave one of them out.",
            *(place, one, " and ".join(others)),
        )
    if facts["left_out"]:
        _LOG.warning("%s: %s", place, left_out_sentence(facts["left_out"], facts["least_images"]))
    if new:
        size = "x".join(str(facts["recipe"][name]) for name in ("height", "width", "channels"))
        counts = {split: f"{len(of)} ({sum(of.values())} images)" for split, of in facts["splits"].items()}
        # A warning, since nothing less is shown: it is said once, when the pool is made.
        _LOG.warning(
            "%s: classes to train on %s, to validate with %s, to test on %s; images %s. All of it: %s",
            place,
            *(counts[split] for split in ("train", "validation", "test")),
            size,
            record,
        )
