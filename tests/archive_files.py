"""Small archives in any packing, for tests."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

PACKINGS = {".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz", ".tar": "w"}


def pack(path, members):
    """Write members, name -> contents, to an archive of the kind that its name says."""
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, contents in members.items():
                archive.writestr(name, contents)
        return path
    mode = next(mode for suffix, mode in PACKINGS.items() if path.name.endswith(suffix))
    with tarfile.open(path, mode) as archive:
        for name, contents in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return path


def image_file(pixels, kind="jpeg"):
    """The contents of an image file."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind)
    return file.getvalue()


def real_images(pool):
    """The images of a pool without its padding, class by class."""
    return [images[:count] for images, count in zip(pool.images, pool.counts, strict=True)]


def same_pools(one, other):
    """Whether two datasets are the same in names, counts and pixels."""
    return one.class_names == other.class_names and all(
        np.array_equal(pool.images, other.splits[split].images)
        and np.array_equal(pool.counts, other.splits[split].counts)
        for split, pool in one.splits.items()
    )
