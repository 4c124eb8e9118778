"""FGVC-Aircraft (Maji et al. 2013): photographs of a hundred variants of aircraft."""

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxmeta.data.archive_pools import PoolPlan, photographs, pool_dataset, train_on_the_rest
from jaxmeta.data.archives import ArchiveFile, ArchiveSource, Example, damaged, read_members
from jaxmeta.data.pools import Dataset

SIZE, BANNER = 84, 20
# No SHA-256 of it is published.
ARCHIVE = ArchiveFile(
    "fgvc-aircraft-2013b.tar.gz",
    "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
)
SPLITS = {
    "train": (
        "707-320, 727-200, 737-200, 737-300, 737-500, 737-600, 737-700, 747-100, 747-200, 747-300, 747-400, 767-300, "
        "777-200, 777-300, A300B4, A318, A319, A321, A330-200, A330-300, A340-200, A340-300, A340-500, A340-600, A380, "
        "ATR-72, An-12, BAE 146-200, C-130, C-47, Cessna 172, Cessna 208, Cessna 525, Cessna 560, Challenger 600, "
        "DC-3, DC-6, DH-82, DHC-1, DHC-6, DHC-8-100, DR-400, Dornier 328, E-190, E-195, EMB-120, ERJ 135, ERJ 145, "
        "Embraer Legacy 600, Eurofighter Typhoon, F-16A/B, F/A-18, Falcon 2000, Falcon 900, Fokker 100, Fokker 50, "
        "Fokker 70, Global Express, Gulfstream IV, Hawk T1, Il-76, MD-11, MD-80, MD-87, Metroliner, Model B200, PA-28, "
        "Saab 340, Tu-134, Tu-154"
    ).split(", "),
    "validation": (
        "737-900, 757-300, 767-200, A310, A320, BAE 146-300, CRJ-900, DC-10, DC-8, DC-9-30, DHC-8-300, Gulfstream V, "
        "SR-20, Tornado, Yak-42"
    ).split(", "),
    "test": (
        "737-400, 737-800, 757-200, 767-400, ATR-42, BAE-125, Beechcraft 1900, Boeing 717, CRJ-200, CRJ-700, E-170, "
        "L-1011, MD-90, Saab 2000, Spitfire"
    ).split(", "),
}
CLASSES = tuple(sorted(name for names in SPLITS.values() for name in names))
_VARIANTS = re.compile(r"(?:.*/)?data/images_variant_(?:train|val|trainval|test)\.txt")
_IMAGE = re.compile(r"(?:.*/)?data/images/(?P<image>\d+)\.jpe?g", re.I)


def load_fgvc_aircraft(*, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Load FGVC-Aircraft as class pools, with the class split of Meta-Dataset: 70 / 15 / 15.

    The lowest 20 rows of every photograph, a banner that names its author, are cut off, as its README asks for; then
    it is cut to its middle.

    Args:
      data_dir: A folder with `fgvc-aircraft-2013b.tar.gz` (2.8 GB), or with it packed in another way. It is not
        downloaded: no checksum is published that a download could be compared with.
      image_size: Pixels a side; None: 84.

    Returns:
      Images `[classes, 100, size, size, 3]` uint8.

    Raises:
      DataError: data that is missing or damaged.

    Example:
      >>> load_fgvc_aircraft(data_dir=Path("data/aircraft")).splits["test"].images.shape  # doctest: +SKIP
      (15, 100, 84, 84, 3)

    Source: Maji, Kannala, Rahtu, Blaschko and Vedaldi, 2013 (arXiv 1306.5151); the layout is described in the README
    in the archive and on https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/. The split: Triantafillou et al., 2020
    (arXiv 1903.03096), in aircraft_splits.json of its code.
    """
    splits = train_on_the_rest(CLASSES, SPLITS)
    recipe = photographs(image_size, SIZE)
    return pool_dataset(PoolPlan("fgvc_aircraft", (SOURCE,), recipe, lambda names: splits, edit=_no_banner), data_dir)


def _no_banner(contents: bytes) -> bytes:
    """Cut off the banner at the bottom; what is no whole image is left as it is, to be named when it is read."""
    from PIL import Image

    cut = io.BytesIO()
    try:
        with Image.open(io.BytesIO(contents)) as image:
            image.crop((0, 0, image.width, image.height - BANNER)).save(cut, "bmp")
    except Exception:  # It fails in a dozen ways, and again where it is read.
        return contents
    return cut.getvalue()


def _examples(paths: Mapping[str, Path]) -> Iterator[Example]:
    path = paths[ARCHIVE.name]
    variants = {}
    for _, contents in read_members(path, _VARIANTS):
        # A line: the number of an image, and its variant, which may have spaces in it.
        for line in contents.decode().splitlines():
            image, _, variant = line.strip().partition(" ")
            variants[image] = variant
    if not variants:
        raise damaged(path, "it has no data/images_variant_*.txt")
    for match, contents in read_members(path, _IMAGE):
        if match["image"] not in variants:
            raise damaged(path, f"image {match['image']} is of no variant")
        yield Example("images", variants[match["image"]], f"{match['image']}.jpg", contents)


SOURCE = ArchiveSource(
    name="fgvc_aircraft",
    version="1.0.0",
    description="Photographs of 100 variants of aircraft.",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    citation="Maji et al. Fine-grained visual classification of aircraft. arXiv 1306.5151, 2013.",
    files=(ARCHIVE,),
    num_images=10000,
    class_names=lambda paths: CLASSES,
    examples=_examples,
)
