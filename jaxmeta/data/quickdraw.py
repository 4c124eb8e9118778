"""Quick, Draw! (Ha and Eck 2017): 345 categories of drawings made in 20 seconds, as 28x28 bitmaps.

Read from the files of a folder, `aircraft carrier.npy` and so on: one array `[drawings, 784]` uint8 for each category,
bright ink on black. They are listed at github.com/googlecreativelab/quickdraw-dataset (the bucket quickdraw_dataset,
full/numpy_bitmap). They are arrays of pixels already and read a few rows at a time, so there is nothing that
tensorflow-datasets would have to prepare.
"""

import logging
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from jaxmeta.data.brought import ImageFiles, pool_file, some
from jaxmeta.data.cache import cached_dataset, write_beside
from jaxmeta.data.divide import divide_classes, divide_pool
from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe

_LOG = logging.getLogger(__name__)

SIZE, PER_CLASS = 28, 200
BITMAPS = ImageRecipe(SIZE, SIZE, 1, fit="pad", bright_ink=True)
RECIPE = 1  # Part of the name of the cached file: raise it when the images change.
# As the command line of the bucket and some mirrors name them.
_PREFIX = "full_numpy_bitmap_"

# The split of Meta-Dataset (Triantafillou et al. 2020): 241 / 52 / 52; all other categories are for training.
_VALIDATION = """
    ant, anvil, backpack, baseball, basketball, binoculars, bread, bulldozer, bus, calendar, camel, candle, carrot,
    church, clarinet, coffee cup, eye, firetruck, flower, golf club, grapes, hat, hot dog, ice cream, knife, lobster,
    matches, mermaid, microwave, nose, panda, paper clip, pond, purse, radio, roller coaster, skyscraper, smiley face,
    snake, steak, stethoscope, suitcase, teddy-bear, television, tennis racquet, toaster, toilet, tooth, tornado,
    trumpet, waterslide, wristwatch
"""
_TEST = """
    angel, animal migration, axe, bat, beard, bee, bridge, broom, bucket, butterfly, cactus, campfire, cookie, couch,
    cow, diving board, donut, drill, eraser, feather, finger, fire hydrant, flashlight, frying pan, giraffe, goatee,
    hammer, helicopter, helmet, hockey stick, hourglass, house, kangaroo, lantern, mailbox, mouse, palm tree, parrot,
    rabbit, rollerskates, saw, saxophone, snowman, spider, stitches, streetlight, sweater, table, umbrella, wheel,
    wine bottle, yoga
"""
HELD_OUT = {
    "validation": tuple(name.strip() for name in _VALIDATION.split(",")),
    "test": tuple(name.strip() for name in _TEST.split(",")),
}
CATEGORIES = 345


def load_quickdraw(
    *,
    data_dir: Path | None = None,
    per_class: int = PER_CLASS,
    seed: int = 0,
    ways: int = 2,
    train_ways: int | None = None,
) -> Dataset:
    """Load Quick, Draw! as class pools of 28x28 images with bright ink, as in `load_omniglot`.

    Of the 100,000 and more drawings of a category some are taken, evenly spread over its file. 200 of each are 54 MB
    in all; every further 100 are 27 MB.

    If all 345 categories are there, the split is that of Meta-Dataset, 241 / 52 / 52. Of fewer, 64 % are for training,
    16 % for validation and 20 % for test, drawn from `seed`; that split is written to a file beside the cached pool,
    which the log names.

    Args:
      data_dir: The folder of the `.npy` files.
      per_class: How many drawings of each category; all, where there are fewer.
      seed: Draws the split, where not all categories are there.
      ways: Classes in a task; a split that is drawn leaves so many for validation and for test.
      train_ways: Classes in a task of training; None for `ways`.

    Returns:
      Images `[classes, per_class, 28, 28, 1]` uint8, ink 255 on 0; names are the categories.

    Raises:
      DataError: no such folder, too few categories, a file that is damaged or has fewer than two drawings.

    Example:
      >>> load_quickdraw(data_dir=Path("numpy_bitmap")).splits["test"].images.shape  # doctest: +SKIP
      (52, 200, 28, 28, 1)

    Source: Ha and Eck, 2017, arXiv 1704.03477; Triantafillou et al., 2020, arXiv 1903.03096.
    """
    if per_class < 2:
        raise DataError(f"load_quickdraw needs at least 2 drawings of each class; given per_class={per_class}.")
    files = _files(data_dir)
    names = tuple(files)
    published = _published_split(names)
    split = published or divide_classes(names, seed, ways=ways, train_ways=train_ways)
    path = pool_file(f"quickdraw-{RECIPE}-{per_class}", {name: ImageFiles(file) for name, file in files.items()})
    pool = cached_dataset(path, lambda: _read(files, per_class), source=str(data_dir)).splits["all"]
    if published is None:
        written = write_beside(path, f"-split{seed}.json", split)
        _LOG.warning(
            "%d of the %d categories of Quick, Draw! are there: the split is drawn from seed %d, and not that of "
            "Meta-Dataset.%s",
            *(len(names), CATEGORIES, seed, f" It is written in {written}." if written.is_file() else ""),
        )
    pools, pool_names = divide_pool(pool, names, split)
    return Dataset("quickdraw", "classification", pools, pool_names, recipe=BITMAPS)


def _files(data_dir: Path | None) -> dict[str, Path]:
    """Find the file of each category, by name."""
    wanted = (
        "Give as data_dir a folder with the 28x28 bitmaps, a file such as 'cat.npy' for each category: gsutil -m cp "
        "'gs://quickdraw_dataset/full/numpy_bitmap/*.npy' DIR."
    )
    if data_dir is None:
        raise DataError(f"Quick, Draw! is not downloaded (it is 39 GB). {wanted}")
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise DataError(f"No Quick, Draw! in data_dir {folder}: no such folder. {wanted}")
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.npy")):
        # Downloaded copies have %20 or _ for a space.
        name = unquote(path.stem).removeprefix(_PREFIX).replace("_", " ").strip()
        if path.name.startswith("."):
            continue
        if name in files:
            raise DataError(f"{folder} holds {name!r} twice: {files[name].name} and {path.name}. Remove one of them.")
        files[name] = path
    if not files:
        raise DataError(f"No Quick, Draw! in data_dir {folder}: it holds no .npy file. {wanted}")
    return dict(sorted(files.items()))


def _published_split(names: tuple[str, ...]) -> dict[str, tuple[str, ...]] | None:
    held_out = {name for of_part in HELD_OUT.values() for name in of_part}
    if len(names) != CATEGORIES or not held_out <= set(names):
        return None
    return {"train": tuple(sorted(set(names) - held_out)), **HELD_OUT}


def _read(files: dict[str, Path], per_class: int) -> Dataset:
    drawings = [_drawings(path, per_class) for path in files.values()]
    counts = np.array([len(of_class) for of_class in drawings], np.int32)
    images = np.zeros([len(files), counts.max(), SIZE, SIZE, 1], np.uint8)
    for place, of_class in enumerate(drawings):
        images[place, : len(of_class)] = of_class
    short = [f"{name}: {count}" for name, count in zip(files, counts, strict=True) if count < per_class]
    if short:
        _LOG.warning("%s categories have fewer than %d drawings.", some(short), per_class)
    return Dataset(
        "quickdraw", "classification", {"all": ClassPool(images, counts)}, {"all": tuple(files)}, recipe=BITMAPS
    )


def _drawings(path: Path, per_class: int) -> np.ndarray:
    """Read some drawings of a category, evenly spread over its file."""
    try:
        # The bare format: no archive of several arrays, and no pickled objects, which could run a program.
        stored = np.lib.format.open_memmap(path, mode="r")
        shape, kind = list(stored.shape), stored.dtype
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}). Fetch it again.") from error
    if kind != np.uint8 or shape[1:] != [SIZE * SIZE]:
        raise DataError(f"{path} holds {kind}{shape}; it should be uint8[drawings, {SIZE * SIZE}]. Fetch it again.")
    if shape[0] < 2:
        raise DataError(f"{path} has {shape[0]} drawings, a class needs two or more. Fetch it again, or remove it.")
    chosen = min(per_class, shape[0])
    return stored[np.arange(chosen) * shape[0] // chosen].reshape(chosen, SIZE, SIZE, 1)
