"""CUB-200-2011 (Wah et al. 2011): photographs of two hundred kinds of birds."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxmeta.data.archive_pools import PoolPlan, photographs, pool_dataset
from jaxmeta.data.archives import ArchiveFile, ArchiveSource, Example, damaged, read_members
from jaxmeta.data.pools import DataError, Dataset

SIZE, NUM_CLASSES = 84, 200
ARCHIVE = ArchiveFile(
    "CUB_200_2011.tgz",
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
    1150585339,
    "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
)
_CLASSES = re.compile(r"(?:.*/)?classes\.txt")
_IMAGE = re.compile(r"(?:.*/)?images/(?P<label>\d{3}\.[^/]+)/(?P<file>[^/.][^/]*\.jpe?g)", re.I)


def load_cub(*, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Load CUB-200-2011 as class pools, split 100 / 50 / 50 by the rule of Chen et al. 2019.

    With the classes numbered from 0 in their order, every second one, from the first, is for training; of the others
    the first, third and so on are for validation, the rest for the test. As there, the whole photograph is shown, cut
    to its middle, and not the bounding box of the bird.

    Args:
      data_dir: A folder with `CUB_200_2011.tgz`, or with it packed in another way. None: what was downloaded before,
        else a download (1.2 GB).
      image_size: Pixels a side; None: 84.

    Returns:
      Images `[classes, 60, size, size, 3]` uint8, and the counts: 41 to 60 of a class. Names such as
      "001.Black_footed_Albatross".

    Raises:
      DataError: data that is missing, damaged or cannot be downloaded.

    Example:
      >>> load_cub(data_dir=Path("data/cub")).splits["test"].images.shape  # doctest: +SKIP
      (50, 60, 84, 84, 3)

    Source: Wah, Branson, Welinder, Perona and Belongie, 2011, technical report CNS-TR-2011-001; the layout is described
    in the README in the archive. The split: Chen, Liu, Kira, Wang and Huang, 2019 (arXiv 1904.04232), whose code states
    it in filelists/CUB/write_CUB_filelist.py.
    """
    plan = PoolPlan("cub", (SOURCE,), photographs(image_size, SIZE), split_birds)
    return pool_dataset(plan, data_dir)


def split_birds(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Split the classes by their place; see `load_cub`."""
    if len(names) != NUM_CLASSES:
        raise DataError(f"This cub has {len(names)} classes; it should have {NUM_CLASSES}. Fetch it again.")
    names = tuple(names)
    return {"train": names[0::2], "validation": names[1::4], "test": names[3::4]}


def _class_names(paths: Mapping[str, Path]) -> list[str]:
    """Read the list of classes: "1 001.Black_footed_Albatross" and so on."""
    path = paths[ARCHIVE.name]
    for _, contents in read_members(path, _CLASSES):
        return sorted(line.split()[-1] for line in contents.decode().splitlines() if line.strip())
    raise damaged(path, "it has no classes.txt")


def _examples(paths: Mapping[str, Path]) -> Iterator[Example]:
    for match, contents in read_members(paths[ARCHIVE.name], _IMAGE):
        yield Example("images", match["label"], match["file"], contents)


SOURCE = ArchiveSource(
    name="cub",
    version="1.0.0",
    description="Photographs of 200 kinds of birds.",
    homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    citation="Wah et al. The Caltech-UCSD Birds-200-2011 dataset. Technical report CNS-TR-2011-001, 2011.",
    files=(ARCHIVE,),
    num_images=11788,
    class_names=_class_names,
    examples=_examples,
)
