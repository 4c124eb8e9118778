"""The files of CIFAR-10 and CIFAR-100 (Krizhevsky 2009): how they are packed and what is in them.

The layouts are those described on https://www.cs.toronto.edu/~kriz/cifar.html. A record of the binary version is its
label (of CIFAR-100 the coarse label and then the fine one) and 3072 bytes: the red, green and blue 32x32 pixels by
rows. The Python version holds pickled dictionaries of the same rows, `data`, with `labels` or `fine_labels`.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxmeta.data.archives import ArchiveFile, ArchiveSource, Example, damaged, read_members
from jaxmeta.data.pickled import read_pickle

_HOME = "https://www.cs.toronto.edu/~kriz/"
_CITATION = "Krizhevsky. Learning multiple layers of features from tiny images. Technical report, 2009."
SIZE, PARTS = 32, ("train", "test")
_PIXELS = 3 * SIZE * SIZE
_BINARY = re.compile(r"(?:.*/)?(?P<batch>data_batch_\d+|train|test|test_batch)\.bin")
_PYTHON = re.compile(r"(?:.*/)?(?P<batch>data_batch_\d+|train|test|test_batch)")
_IMAGES = re.compile(r"(?:.*/)?(?P<part>train|test)/(?P<label>[^/]+)/(?P<file>[^/.][^/]*\.(?:jpe?g|png))", re.I)
CIFAR10 = (
    ArchiveFile(
        "cifar-10-binary.tar.gz",
        _HOME + "cifar-10-binary.tar.gz",
        170052171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    ArchiveFile(
        "cifar-10-python.tar.gz",
        _HOME + "cifar-10-python.tar.gz",
        170498071,
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
)
CIFAR100 = (
    ArchiveFile(
        "cifar-100-binary.tar.gz",
        _HOME + "cifar-100-binary.tar.gz",
        168513733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    ArchiveFile(
        "cifar-100-python.tar.gz",
        _HOME + "cifar-100-python.tar.gz",
        169001437,
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
)
# The same images as files, class by class, in folders `train` and `test`.
CIFAR10_IMAGES = ArchiveFile("cifar10_images.tar.xz")


def cifar_sources(name: str, class_names: Sequence[str]) -> tuple[ArchiveSource, ...]:
    """Describe the packings of CIFAR-10 or CIFAR-100.

    Args:
      name: "cifar10" or "cifar100".
      class_names: In the order of their labels.

    Returns:
      The binary version and the Python version; of CIFAR-10 also one of JPEG or PNG files.
    """
    files, num_labels = (CIFAR10, 1) if name == "cifar10" else (CIFAR100, 2)

    def source(file: ArchiveFile, examples, remark: str = "") -> ArchiveSource:
        return ArchiveSource(
            name=name,
            version="1.0.0",
            description=f"60,000 colour photographs of 32x32 pixels in {len(class_names)} classes.",
            homepage=_HOME + "cifar.html",
            citation=_CITATION,
            files=(file,),
            num_images=60000,
            class_names=lambda paths: class_names,
            examples=lambda paths: examples(paths[file.name]),
            parts=PARTS,
            remark=remark,
        )

    binary, pickled = files
    packings = (
        source(binary, lambda path: _binary_examples(path, num_labels, class_names)),
        source(pickled, lambda path: _python_examples(path, class_names)),
    )
    if name != "cifar10":
        return packings
    remark = "Where its images were encoded anew as JPEG, accuracies differ a little from those on the original pixels."
    return (*packings, source(CIFAR10_IMAGES, _image_examples, remark))


def _binary_examples(path: Path, num_labels: int, class_names: Sequence[str]) -> Iterator[Example]:
    for match, contents in read_members(path, _BINARY):
        if not contents or len(contents) % (num_labels + _PIXELS):
            raise damaged(path, f"{match.string} has {len(contents)} bytes, which is no whole number of images")
        records = np.frombuffer(contents, np.uint8).reshape(-1, num_labels + _PIXELS)
        yield from _rows(path, match, records[:, num_labels:], records[:, num_labels - 1], class_names)


def _python_examples(path: Path, class_names: Sequence[str]) -> Iterator[Example]:
    for match, contents in read_members(path, _PYTHON):
        batch = read_pickle(contents, f"{match.string} in {path}")
        labels = batch.get("labels" if len(class_names) == 10 else "fine_labels") if isinstance(batch, dict) else None
        rows = batch.get("data") if labels is not None else None
        fits = isinstance(rows, np.ndarray) and rows.shape == (len(labels), _PIXELS) and rows.dtype == np.uint8
        if not fits:
            raise damaged(path, f"{match.string} does not hold the rows and labels of {len(class_names)} classes")
        yield from _rows(path, match, rows, np.asarray(labels), class_names)


def _rows(path: Path, match: re.Match, rows: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Iterator[Example]:
    if labels.min() < 0 or labels.max() >= len(names):
        raise damaged(path, f"{match.string} has labels up to {labels.max()}; there are {len(names)} classes")
    part = "test" if match["batch"].startswith("test") else "train"
    images = rows.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield Example(part, names[label], f"{match['batch']}/{place:05d}", np.ascontiguousarray(image))


def _image_examples(path: Path) -> Iterator[Example]:
    for match, contents in read_members(path, _IMAGES):
        yield Example(match["part"].lower(), match["label"], f"{match['part']}/{match['file']}", contents)
