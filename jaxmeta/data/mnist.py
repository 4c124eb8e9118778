"""MNIST (LeCun et al. 1998): ten handwritten digits, to judge what was learned on another set.

Its images are those of `load_omniglot` in size and polarity: 28x28, ink 255 on 0.
"""

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxmeta.data.archive_pools import PoolPlan, pool_dataset
from jaxmeta.data.archives import ArchiveFile, ArchiveSource, Example
from jaxmeta.data.pools import DataError, Dataset, ImageRecipe

_HOME = "https://storage.googleapis.com/cvdf-datasets/mnist/"
# Images and labels of each official part.
FILES = {
    "train": (
        ArchiveFile(
            "train-images-idx3-ubyte.gz",
            _HOME + "train-images-idx3-ubyte.gz",
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        ArchiveFile(
            "train-labels-idx1-ubyte.gz",
            _HOME + "train-labels-idx1-ubyte.gz",
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
    ),
    "test": (
        ArchiveFile(
            "t10k-images-idx3-ubyte.gz",
            _HOME + "t10k-images-idx3-ubyte.gz",
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        ArchiveFile(
            "t10k-labels-idx1-ubyte.gz",
            _HOME + "t10k-labels-idx1-ubyte.gz",
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
}
NAMES = tuple(file.name for files in FILES.values() for file in files)
DIGITS = tuple("0123456789")
# Of a split: its digits, and the official part they are from. Five and five, so that 5-way tasks fit both.
SPLITS = {"train": DIGITS[:5], "validation": DIGITS[5:], "test": DIGITS}
PARTS = {"train": ("train",), "validation": ("train",), "test": ("test",)}
SIZE = 28
DIGIT_IMAGES = ImageRecipe(SIZE, SIZE, 1, fit="pad", bright_ink=True)


def load_mnist(*, data_dir: Path | None = None) -> Dataset:
    """Load MNIST as class pools of 28x28 images with bright ink, above all to test what was learned elsewhere.

    The test split is all ten digits of the official test images: a learner trained on Omniglot meets ten new classes.
    Training is the digits 0 to 4 and validation 5 to 9 of the official training images. So, unlike in the other
    datasets, the test of a learner that was *trained* on MNIST is on classes that it has seen, in new images.

    Args:
      data_dir: A folder with the four original files (`train-images-idx3-ubyte.gz` and so on, or decompressed), or a
        copy prepared by tensorflow-datasets in array_record. None: what was downloaded before, else a download.

    Returns:
      Images `[classes, most of a class, 28, 28, 1]` uint8, ink 255 on 0, in the order of the files, and the counts of
      each class; names "0" to "9".

    Raises:
      DataError: data that is missing, damaged or cannot be downloaded.

    Example:
      >>> load_mnist(data_dir=Path("data/mnist")).splits["test"].counts.tolist()  # doctest: +SKIP
      [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]

    Source: LeCun, Bottou, Bengio and Haffner, 1998, Proceedings of the IEEE 86(11); the layout of the files is
    described on http://yann.lecun.com/exdb/mnist/.
    """
    plan = PoolPlan(
        name="mnist",
        sources=(SOURCE,),
        recipe=DIGIT_IMAGES,
        splits=lambda names: SPLITS,
        parts=PARTS,
        stock=("mnist",),
        by_key=True,
    )
    return pool_dataset(plan, data_dir)


def _examples(paths: Mapping[str, Path]) -> Iterator[Example]:
    for part in FILES:
        for place, (image, label) in enumerate(zip(*_read_part(paths, part), strict=True)):
            yield Example(part, DIGITS[label], f"{place:05d}", image)


def _read_part(paths: Mapping[str, Path], part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images `[images, 28, 28]` and labels `[images]` of an official part."""
    of_images, of_labels = (paths[file.name] for file in FILES[part])
    images, labels = _read_idx(of_images, num_axes=3), _read_idx(of_labels, num_axes=1)
    if images.shape != (len(labels), SIZE, SIZE) or labels.max() > 9:
        raise DataError(
            f"{of_images} holds images {list(images.shape)} and {of_labels} {len(labels)} labels "
            f"up to {labels.max()}: not those of MNIST. Fetch {', '.join(NAMES)} again."
        )
    return images, labels


def _read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Read a file of the IDX format: two zeros, 8 for uint8, the number of axes; big-endian lengths; the bytes."""
    try:
        contents = path.read_bytes()
        # A decompressed file has no such name, and a downloaded one may have another.
        packed = path.suffix == ".gz" or contents.startswith(b"\x1f\x8b")
        contents = gzip.decompress(contents) if packed else contents
        start = 4 + 4 * num_axes
        shape = np.frombuffer(contents[4:start], ">u4").tolist()
        whole = contents[:4] == bytes([0, 0, 8, num_axes]) and len(contents) == start + math.prod(shape) > start
        reason = "" if whole else f"{len(contents)} bytes that are not an IDX file of {num_axes} axes"
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}). Fetch it again.") from error
    if reason:
        raise DataError(f"{path} is damaged: it holds {reason}. Fetch it again.")
    return np.frombuffer(contents, np.uint8, offset=start).reshape(shape)


SOURCE = ArchiveSource(
    name="mnist",
    version="1.0.0",
    description="70,000 handwritten digits of 28x28 pixels.",
    homepage="http://yann.lecun.com/exdb/mnist/",
    citation="LeCun, Bottou, Bengio and Haffner. Gradient-based learning applied to document recognition. "
    "Proceedings of the IEEE 86(11), 2278-2324, 1998.",
    files=tuple(file for files in FILES.values() for file in files),
    num_images=70000,
    class_names=lambda paths: DIGITS,
    examples=_examples,
    parts=tuple(FILES),
)
