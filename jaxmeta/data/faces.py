"""Faces, or anything else of which there are a few images each: a folder for each person, and pairs to tell apart.

The layout is that of Labeled Faces in the Wild (Huang et al. 2007), `Aaron_Eckhart/Aaron_Eckhart_0001.jpg`, as its page
describes it (vis-www.cs.umass.edu/lfw, README); any other names of images will do for training. The files are read
as they are: a prepared copy of tensorflow-datasets would hold the same.
"""

import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmeta.data.brought import ImageFiles, choose_names, image_names, in_threads, pool_file, read_pool, some
from jaxmeta.data.cache import cached_dataset, write_beside
from jaxmeta.data.divide import divide_classes, divide_pool
from jaxmeta.data.images import ImageError, read_image
from jaxmeta.data.labelled import refuse_two_spellings
from jaxmeta.data.memory import rows_of
from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe

_LOG = logging.getLogger(__name__)

SIZE, PER_CLASS = 84, 20
FACES = ImageRecipe(SIZE, SIZE, 3)
RECIPE = 1  # Part of the name of the cached file: raise it when the images change.
# What the archives of Labeled Faces in the Wild, aligned or not, unpack to.
_UNPACKED = ("lfw", "lfw_funneled", "lfw-funneled", "lfw-deepfunneled")


class FoldedPairs(NamedTuple):
    """Pairs of images of a published list, as `sample_pairs` draws them, with the fold of each.

    Attributes:
      first: `[pairs, height, width, channels]` float32 in [0, 1].
      second: The other image of each.
      same: `[pairs]` bool, whether both are of one person.
      fold: `[pairs]` int32, for `verification_accuracy`.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray


def load_faces(
    *,
    data_dir: Path | None = None,
    image_size: int | None = None,
    per_class: int = PER_CLASS,
    seed: int = 0,
    ways: int = 2,
    train_ways: int | None = None,
) -> Dataset:
    """Load a folder of people as class pools of colour images, no person in two splits.

    For verification draw pairs of them (`sample_pairs`), for recognition of a few people episodes. 64 % of the people
    are for training, 16 % for validation and 20 % for test, drawn from `seed`; the split is written to a file beside
    the cached pool. People of whom there is one image only are left out: such an image makes neither a pair of one
    person nor a task with something to ask. (`load_pairs` reads them, where a published list has them.)

    Args:
      data_dir: A folder with one folder for each person, or one that `lfw` and its like were unpacked in.
      image_size: Height and width in pixels; None for 84. The middle of each image is shrunk to a square.
      per_class: At most so many images of a person are taken, always the same ones: some people have hundreds, and
        a pool has room for as many of everybody.
      seed: Draws the split.
      ways: People in a task; the split leaves so many for validation and for test.
      train_ways: People in a task of training; None for `ways`.

    Returns:
      Images `[people, most of a person, 84, 84, 3]` uint8, and how many there are of each; names are the folders'.

    Raises:
      DataError: no such folder, or too few people with two images each: six at least.

    Example:
      >>> load_faces(data_dir=Path("lfw")).splits["train"].counts.shape  # doctest: +SKIP
      (1176,)

    Source: Huang, Ramesh, Berg and Learned-Miller, 2007, "Labeled Faces in the Wild".
    """
    if per_class < 2:
        raise DataError(f"load_faces needs at least 2 images of each person; given per_class={per_class}.")
    recipe = FACES._replace(height=image_size or SIZE, width=image_size or SIZE)
    people = {}
    everybody = _people(data_dir)
    for name, folder in everybody.items():
        names = image_names(ImageFiles(folder))
        if len(names) > 1:
            people[name] = ImageFiles(folder, choose_names(names, per_class))
    if len(people) < len(everybody):
        left = len(everybody) - len(people)
        _LOG.warning("%d of %d people have fewer than two images, and are left out.", left, len(everybody))
    # Refused here if they are too few, before any is read.
    divide_classes(tuple(people), seed, ways=ways, train_ways=train_ways)
    path = pool_file(f"faces-{RECIPE}-{recipe.height}-{per_class}", people)
    stored = cached_dataset(path, lambda: _read(people, recipe), source=str(data_dir))
    names = stored.class_names["all"]
    split = divide_classes(names, seed, ways=ways, train_ways=train_ways)
    write_beside(path, f"-split{seed}.json", split)
    pools, pool_names = divide_pool(stored.splits["all"], names, split)
    return Dataset("faces", "classification", pools, pool_names, recipe=recipe)


def _read(people: dict[str, ImageFiles], recipe: ImageRecipe) -> Dataset:
    images, counts = read_pool(people, recipe, least=0)
    # Of some there may be one image left that can be read.
    kept = np.flatnonzero(counts >= 2)
    names, pool = list(people), ClassPool(rows_of(images, kept.tolist()), counts[kept])
    of_kept = tuple(names[place] for place in kept)
    return Dataset("faces", "classification", {"all": pool}, {"all": of_kept}, recipe=recipe)


def _people(data_dir: Path | None) -> dict[str, Path]:
    """Find the folder of each person."""
    wanted = "Give as data_dir a folder with one folder of images for each person."
    if data_dir is None:
        raise DataError(f"Faces are not downloaded. {wanted}")
    root = _root(Path(data_dir).expanduser())
    try:
        people = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."}
    except OSError as error:
        raise DataError(f"No faces in data_dir {data_dir}: {error.strerror or error}. {wanted}") from error
    if not people:
        packed = "Unpack the archive. " if any(root.glob("lfw*.t*gz")) else ""
        raise DataError(f"No faces in data_dir {data_dir}: there is no folder in it. {packed}{wanted}")
    refuse_two_spellings(people)
    own: dict[str, str] = {}
    for name, path in people.items():
        # One that is no link, if there is one, comes first.
        place = os.path.realpath(path)
        if place not in own or own[place] != name and not path.is_symlink():
            own[place] = name
    if len(own) < len(people):
        _LOG.warning("%d folders are links to those of other people, and are left out.", len(people) - len(own))
    return {name: people[name] for name in sorted(own.values())}


def _root(folder: Path) -> Path:
    inner = next((folder / name for name in _UNPACKED if (folder / name).is_dir()), None)
    return folder if inner is None else _root(inner)


def load_pairs(path: Path, folder: Path, *, recipe: ImageRecipe = FACES, without: Collection[str] = ()) -> FoldedPairs:
    """Read a published list of pairs, `pairs.txt` of Labeled Faces in the Wild, and its images.

    The first line of the list holds how many folds there are (none for a list of one fold, such as pairsDevTest.txt)
    and how many pairs of each kind are in a fold. Of each fold first come pairs of one person, "name, number, number";
    then of two, "name, number, name, number".

    Args:
      path: The list.
      folder: A folder with one folder for each person; image 1 of a name is `name/name_0001.jpg`.
      recipe: How images become pixels: that of the `Dataset` that a learner was trained on.
      without: Pairs with one of these people are left out: those that a learner was trained on, since it is to be
        judged by people that it has never seen.

    Returns:
      `FoldedPairs`; 6,000 pairs at 84 x 84 are 1 GB.

    Raises:
      DataError: no list, a line that is none, images that are missing or damaged, or no pairs of both kinds left.

    Example:
      >>> pairs = load_pairs(Path("pairs.txt"), Path("lfw"))  # doctest: +SKIP
      >>> pairs.first.shape, pairs.fold.max()  # doctest: +SKIP
      ((6000, 84, 84, 3), 9)

    Source: Huang, Ramesh, Berg and Learned-Miller, 2007, "Labeled Faces in the Wild", section 4.
    """
    root, left_out = _root(Path(folder)), frozenset(without)
    listed = [pair for pair in _lines(Path(path)) if not left_out & {pair[0][0], pair[1][0]}]
    same = np.array([one[0] == other[0] for one, other, _ in listed], bool)
    if not 0 < same.sum() < same.size:
        raise DataError(
            f"{path} has {same.sum()} pairs of one person and {(~same).sum()} of two, without those of "
            f"{len(left_out)} people that are left out; both kinds are needed."
        )
    unique = list(dict.fromkeys(image for one, other, _ in listed for image in (one, other)))
    images, places = _images(root, unique, recipe), {image: place for place, image in enumerate(unique)}
    first, second = [places[one] for one, _, _ in listed], [places[other] for _, other, _ in listed]
    fold = np.array([number for _, _, number in listed], np.int32)
    return FoldedPairs(_floats(images[first]), _floats(images[second]), same, fold)


def _floats(images: np.ndarray) -> np.ndarray:
    # As `as_floats` does on the device.
    return images.astype(np.float32) * np.float32(1 / 255)


def _lines(path: Path) -> Iterator[tuple[tuple[str, int], tuple[str, int], int]]:
    """Give the two images of each pair, and its fold."""
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list of pairs {path} cannot be read ({error}).") from error
    if not lines or len(lines[0]) > 2 or not all(word.isdecimal() for word in lines[0]):
        raise DataError(f"{path} is no list of pairs: its first line should be two numbers, folds and pairs of a kind.")
    *folds, of_kind = map(int, lines[0])
    expected = 2 * of_kind * (folds[0] if folds else 1)
    if len(lines) - 1 != expected or not expected:
        raise DataError(f"{path} has {len(lines) - 1} pairs; its first line says {expected}. Fetch it again.")
    for number, words in enumerate(lines[1:]):
        same = number // of_kind % 2 == 0
        if len(words) == 3 and same:
            name, one, other = words
            words = [name, one, name, other]
        elif len(words) != 4 or same or words[0] == words[2]:
            words = ["", "", "", ""]
        if not (words[1].isdecimal() and words[3].isdecimal()):
            kind = "of one person, 'name number number'" if same else "of two people, 'name number name number'"
            raise DataError(f"Line {number + 2} of {path} should be a pair {kind}. Fetch it again.")
        yield (words[0], int(words[1])), (words[2], int(words[3])), number // (2 * of_kind)


def _images(root: Path, wanted: list[tuple[str, int]], recipe: ImageRecipe) -> np.ndarray:
    """Read images `[images, height, width, channels]` uint8, each once."""
    paths = [root / name / f"{name}_{number:04d}.jpg" for name, number in wanted]
    missing = [f"{path.parent.name}/{path.name}" for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{root} lacks {some(missing, 3)} of the {len(paths)} images of the list. Unpack all of them.")
    try:
        return np.stack(in_threads(lambda path: read_image(path, recipe), paths))
    except ImageError as error:
        raise DataError(f"{error} The list of pairs needs every image: fetch it again.") from error
