"""MNIST (LeCun et al. 1998): ten handwritten digits, to judge what was learned on another set.

Its images are those of `load_omniglot` in size and polarity: 28x28, ink 255 on 0. Read from the four original files,
or from a copy that tensorflow-datasets prepared.
"""

import gzip
import io
import math
import os
import zlib
from pathlib import Path

import numpy as np

from jaxmeta.data.cache import cached_dataset
from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe
from jaxmeta.data.prepared import cache_file, compare_checksum, file_hashes, find_prepared, read_records

# Part of the official data: images, labels; each with the SHA-256 of the file when it is decompressed.
FILES = {
    "train": (
        ("train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    ),
    "test": (
        ("t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
}
NAMES = tuple(name for files in FILES.values() for name, _ in files)
# Of a split: the official part it is from, and its digits. Five and five, so that 5-way tasks fit both.
DIGITS = {"train": ("train", range(5)), "validation": ("train", range(5, 10)), "test": ("test", range(10))}
SIZE = 28
DIGIT_IMAGES = ImageRecipe(SIZE, SIZE, 1, fit="pad", bright_ink=True)
RECIPE = 1  # Part of the name of the cached file: raise it when the images change.


def load_mnist(*, data_dir: Path | None = None) -> Dataset:
    """Load MNIST as class pools of 28x28 images with bright ink, above all to test what was learned elsewhere.

    The test split is all ten digits of the official test images: a learner trained on Omniglot meets ten new classes.
    Training is the digits 0 to 4 and validation 5 to 9 of the official training images. So, unlike in the other
    datasets, the test of a learner that was *trained* on MNIST is on classes that it has seen, in new images.

    Args:
      data_dir: A folder with the four original files (`train-images-idx3-ubyte.gz` and so on, or decompressed), or a
        copy prepared by tensorflow-datasets in array_record. None: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
      Images `[classes, most of a class, 28, 28, 1]` uint8, ink 255 on 0, and the counts of each class; names "0" to
      "9".

    Raises:
      DataError: data that is missing or damaged.

    Example:
      >>> load_mnist(data_dir=Path("data/mnist")).splits["test"].counts.tolist()  # doctest: +SKIP
      [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]

    Source: LeCun, Bottou, Bengio and Haffner, 1998, Proceedings of the IEEE 86(11).
    """
    default = os.environ.get("TFDS_DATA_DIR") or Path("~/tensorflow_datasets")
    folder = Path(default if data_dir is None else data_dir).expanduser()
    paths = {name: path for name in NAMES for path in (folder / name, folder / f"{name}.gz") if path.is_file()}
    if len(paths) == len(NAMES):
        return _dataset({part: _read_part(paths, part) for part in FILES})
    prepared = find_prepared(folder, ("mnist",))
    if prepared is not None:
        # Decoding 70,000 PNG files takes a while.
        files = [path for path in sorted(prepared.iterdir()) if path.is_file()]
        path, origin = cache_file(f"mnist-{RECIPE}", files), file_hashes(files)
        return cached_dataset(
            path, lambda: _dataset(_read_prepared(prepared))._replace(origin=origin), source=str(prepared)
        )
    missing = [name for name in NAMES if name not in paths]
    state = "none of this" if folder.is_dir() else "no such folder"
    state = f"there is no {', '.join(missing)}" if paths else state
    raise DataError(
        f"No MNIST in data_dir {folder}: {state}. It should hold {', '.join(NAMES)} (.gz or decompressed), or a copy "
        "prepared by tensorflow-datasets (mnist/3.0.1/dataset_info.json) in array_record. MNIST is not downloaded."
    )


def _dataset(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Dataset:
    """Sort images `[images, 28, 28]` by their labels `[images]` into the splits."""
    pools, names = {}, {}
    for split, (part, digits) in DIGITS.items():
        images, labels = parts[part]
        counts = np.bincount(labels, minlength=10)[list(digits)].astype(np.int32)
        if not counts.all():
            raise DataError(
                f"The {part} images of this MNIST show the digits {np.unique(labels).tolist()} only. Fetch it again."
            )
        pool = np.zeros([len(digits), counts.max(), SIZE, SIZE, 1], np.uint8)
        for place, digit in enumerate(digits):
            pool[place, : counts[place], ..., 0] = images[labels == digit]
        pools[split], names[split] = ClassPool(pool, counts), tuple(map(str, digits))
    return Dataset("mnist", "classification", pools, names, recipe=DIGIT_IMAGES)


def _read_part(paths: dict[str, Path], part: str) -> tuple[np.ndarray, np.ndarray]:
    (images_name, images_sum), (labels_name, labels_sum) = FILES[part]
    images = _read_idx(paths[images_name], images_sum, num_axes=3)
    labels = _read_idx(paths[labels_name], labels_sum, num_axes=1)
    if images.shape != (len(labels), SIZE, SIZE) or labels.max() > 9:
        raise DataError(
            f"{paths[images_name]} holds images {list(images.shape)} and {paths[labels_name]} {len(labels)} labels "
            f"up to {labels.max()}: not those of MNIST. Fetch {', '.join(NAMES)} again."
        )
    return images, labels


def _read_idx(path: Path, published: str, num_axes: int) -> np.ndarray:
    """Read a file of the IDX format: two zeros, 8 for uint8, the number of axes; big-endian lengths; the bytes."""
    try:
        contents = path.read_bytes()
        contents = gzip.decompress(contents) if path.suffix == ".gz" else contents
        start = 4 + 4 * num_axes
        shape = np.frombuffer(contents[4:start], ">u4").tolist()
        whole = contents[:4] == bytes([0, 0, 8, num_axes]) and len(contents) == start + math.prod(shape) > start
        reason = "" if whole else f"{len(contents)} bytes that are not an IDX file of {num_axes} axes"
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}). Fetch it again.") from error
    if reason:
        raise DataError(f"{path} is damaged: it holds {reason}. Fetch it again.")
    compare_checksum(path, contents, published)
    return np.frombuffer(contents, np.uint8, offset=start).reshape(shape)


def _read_prepared(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read a copy that tensorflow-datasets prepared: images and labels of its two parts."""
    try:
        import tensorflow_datasets as tfds
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"Reading {folder} needs tensorflow-datasets ({error}). Install it (pip install tensorflow-datasets "
            f"importlib_resources), or give as data_dir a folder with {', '.join(NAMES)}."
        ) from error
    try:
        builder = tfds.builder_from_directory(folder)
        parts = {}
        for part in FILES:
            records = list(read_records(builder, (part,)))
            images = [np.asarray(Image.open(io.BytesIO(record["image"])).convert("L")) for record in records]
            parts[part] = np.stack(images), np.array([int(record["label"]) for record in records])
        return parts
    except Exception as error:  # A damaged copy fails in a dozen ways, none of them named.
        if isinstance(error, MemoryError):
            raise
        raise DataError(
            f"The copy of MNIST in {folder} cannot be read ({type(error).__name__}: {error}). Copy it again, or "
            "prepare it again in array_record (tfds.builder('mnist', file_format='array_record'))."
        ) from error
