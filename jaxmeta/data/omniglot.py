"""Omniglot (Lake et al. 2015): 1623 handwritten characters of 50 alphabets, 20 drawings each.

Read through tensorflow-datasets and without TensorFlow, from a copy that is already
there or from the published archives, and kept as one small file of 28x28 images. What
comes out is the same, pixel for pixel, whichever copy it was read from.
"""

import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxmeta.data.cache import cache_dir, cached_dataset, is_full_disk, read_dataset
from jaxmeta.data.omniglot_splits import CHALLENGE_SPLITS, SPLITS
from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe, with_rotations
from jaxmeta.data.prepared import cache_file, file_hashes, find_prepared

NUM_CHARACTERS, PER_CLASS, SIZE = 1623, 20, 28
DRAWINGS = ImageRecipe(SIZE, SIZE, 1, fit="pad", bright_ink=True)
RECIPE = 1  # Part of the name of the cached file: raise it when the images change.
HOME = "https://github.com/brendenlake/omniglot/"  # Where the archives are published.
# Split: archive, its size in bytes and its SHA-256, as published.
ARCHIVES = {
    "train": (
        "images_background.zip",
        9464212,
        "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    ),
    "test": (
        "images_evaluation.zip",
        6462886,
        "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
    ),
    "small1": (
        "images_background_small1.zip",
        1319022,
        "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
    ),
    "small2": (
        "images_background_small2.zip",
        1580917,
        "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
    ),
}
BUILDERS = ("omniglot", "jaxmeta_omniglot")
NEEDED_ARCHIVES = ("images_background.zip", "images_evaluation.zip")
_BOTH = " and ".join(NEEDED_ARCHIVES)


def load_omniglot(
    *, data_dir: Path | None = None, split: str = "vinyals", rotations: bool = True, seed: int = 0
) -> Dataset:
    """Load Omniglot as class pools of 28x28 images with bright ink.

    The drawings are resized with Lanczos filtering. Two splits are for random episodes, with 423 test characters:

    - "vinyals": 1028 / 172 / 423 by alphabet (Vinyals et al. 2016, arXiv 1606.04080, as
      used by Snell et al. 2017, arXiv 1703.05175).
    - "random": 1100 / 100 / 423 by chance from `seed`: the 1200 training characters of
      Finn et al. 2017 (arXiv 1703.03400), 100 of them for validation.

    Three are for the Omniglot challenge (Lake et al. 2015), with the 659 characters of the 20 evaluation alphabets
    as test, and upright in validation and test:

    - "background": of the 30 background alphabets, five drawn from `seed` are for validation.
    - "small1", "small2": of the five alphabets of a minimal background set, the smallest that has 20 characters is
      for validation (114 / 22 and 132 / 24 characters).

    The first call with a copy takes half a minute; what it prepared is cached.

    Args:
      data_dir: A copy prepared by tensorflow-datasets in array_record (its data_dir, or the
        folder of the data set or of its version), or a folder with `images_background.zip`
        and `images_evaluation.zip`, or with a pool `omniglot*.npz` of this function. None:
        what was cached before, else downloaded.
      split: "vinyals", "random", "background", "small1" or "small2".
      rotations: Every character turned by 0, 90, 180 and 270 degrees is a class of its own: four times as many
        classes, in training, and but for the challenge in validation and test too. So Vinyals and Snell; for the
        tasks of others, who turn each class of a task by chance or judge upright characters, see `Protocol.turns`.
      seed: Draws the "random" split, and what "background" validates with.

    Returns:
      Images `[classes, 20, 28, 28, 1]` uint8, ink 255 on 0, and names "Alphabet/character01",
      with rotations followed by "/rot000" and so on; groups are alphabets, each turn of one another.

    Raises:
      DataError: an unknown split, or data that is missing, damaged or cannot be downloaded.

    Example:
      >>> omniglot = load_omniglot(rotations=False)  # doctest: +SKIP
      >>> omniglot.splits["train"].images.shape  # doctest: +SKIP
      (1028, 20, 28, 28, 1)
    """
    if split not in SPLITS:
        raise DataError(f"Omniglot has no split {split!r}; choose one of {', '.join(map(repr, SPLITS))}.")
    base = _base(None if data_dir is None else Path(data_dir).expanduser())
    images, counts = base.splits["all"]
    names = base.class_names["all"]
    pools, pool_names = {}, {}
    for part, chosen in SPLITS[split](names, seed).items():
        pool, of_pool = ClassPool(images[chosen], counts[chosen]), tuple(names[index] for index in chosen)
        turned = rotations and (part == "train" or split not in CHALLENGE_SPLITS)
        pools[part], pool_names[part] = with_rotations(pool, of_pool) if turned else (pool, of_pool)
    groups = {part: tuple(map(alphabet_of, of_part)) for part, of_part in pool_names.items()}
    return Dataset("omniglot", "classification", pools, pool_names, groups, DRAWINGS, base.origin)


def alphabet_of(name: str) -> str:
    """Tell the alphabet of a class; a turned alphabet is another one.

    Args:
      name: "Alphabet/characterNN", with rotations "Alphabet/characterNN/rotNNN".

    Returns:
      "Alphabet" or "Alphabet/rotNNN".

    Example:
      >>> alphabet_of("Greek/character01"), alphabet_of("Greek/character01/rot090")
      ('Greek', 'Greek/rot090')
    """
    alphabet, _, *turn = name.split("/")
    return "/".join([alphabet, *turn])


def _base(data_dir: Path | None) -> Dataset:
    """Return all characters, in one split "all", from wherever they are."""
    if data_dir is None:
        # A download has the published checksums, or is refused.
        origin = {name: sha256 for name, _, sha256 in ARCHIVES.values()}
        return _cached(cache_dir() / f"omniglot-{RECIPE}.npz", lambda: _from_archives(None), HOME, origin)
    pool, prepared = _find_pool(data_dir), find_prepared(data_dir, BUILDERS)
    if pool is not None:
        dataset = read_dataset(pool)
        if dataset.name != "omniglot" or set(dataset.splits) != {"all"}:
            raise DataError(f"{pool} holds {dataset.name!r} and not the characters of Omniglot. Give another folder.")
        return dataset
    if prepared is not None:
        files = [file for file in sorted(prepared.iterdir()) if "-small" not in file.name]
        path = cache_file(f"omniglot-{RECIPE}", files)
        return _cached(path, lambda: _from_prepared(prepared), str(prepared), file_hashes(files))
    present = [name for name in NEEDED_ARCHIVES if (data_dir / name).is_file()]
    if len(present) == len(NEEDED_ARCHIVES):
        files = [data_dir / name for name in NEEDED_ARCHIVES]
        path = cache_file(f"omniglot-{RECIPE}", files)
        return _cached(path, lambda: _from_archives(data_dir), str(data_dir), file_hashes(files))
    state = f"only {present[0]}" if present else "none of this" if data_dir.is_dir() else "no such folder"
    raise DataError(
        f"No Omniglot in data_dir {data_dir}: {state}. It should hold a copy prepared by "
        f"tensorflow-datasets (omniglot/3.0.0/dataset_info.json), or {_BOTH}, or a prepared "
        "omniglot*.npz. Without data_dir, Omniglot is downloaded."
    )


def _cached(path: Path, build: Callable[[], Dataset], source: str, origin: dict[str, str]) -> Dataset:
    return cached_dataset(path, lambda: build()._replace(origin=origin), source=source)


def _find_pool(data_dir: Path) -> Path | None:
    found = sorted(data_dir.glob("omniglot*.npz"))
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"{data_dir} holds several prepared pools ({listed}); give a folder with one of them.")
    return found[0] if found else None


def _builder_module():
    try:
        from jaxmeta.data import omniglot_builder
    except ImportError as error:
        raise DataError(
            f"Preparing Omniglot needs tensorflow-datasets ({error}). Install it (pip install "
            "tensorflow-datasets importlib_resources), or give as data_dir a folder with the omniglot*.npz "
            "that another machine has in its cache."
        ) from error
    return omniglot_builder


def _from_archives(folder: Path | None) -> Dataset:
    """Prepare the archives of a folder, or downloaded ones, with our builder and read the result."""
    builder = _builder_module()
    # Only the pool is kept: the archives, or their source, are there to prepare it again.
    with tempfile.TemporaryDirectory() as scratch:
        try:
            prepared = builder.prepare(folder, Path(scratch))
        except Exception as error:  # Damaged archives and networks fail in a dozen ways.
            if is_full_disk(error):
                raise DataError(
                    f"There is no space in {scratch} to prepare Omniglot: it takes about 50 MB. Set TMPDIR to a folder "
                    "with more."
                ) from error
            if folder is not None:
                damaged = [name for name in NEEDED_ARCHIVES if not zipfile.is_zipfile(folder / name)]
                again = " and ".join(damaged) or _BOTH
                raise DataError(f"The archives in {folder} cannot be read ({error}). Fetch {again} again.") from error
            raise DataError(
                f"Omniglot could not be downloaded ({error}). Give as data_dir a folder with {_BOTH}, "
                "or try again with a network."
            ) from error
        return _from_prepared(prepared)


def _from_prepared(folder: Path) -> Dataset:
    """Read a prepared copy, ours or the stock builder's, into one pool sorted by name."""
    drawings: dict[str, list[tuple[bytes, np.ndarray]]] = {}
    builder = _builder_module()
    try:
        for name, png in builder.read_drawings(folder):
            ink, small = read_drawing(png)
            drawings.setdefault(name, []).append((np.packbits(ink).tobytes(), small))
    except Exception as error:  # A damaged copy fails in a dozen ways, none of them named.
        if isinstance(error, MemoryError):
            raise
        raise DataError(
            f"The copy of Omniglot in {folder} cannot be read ({type(error).__name__}: {error}). Copy it "
            "again, or prepare it again in array_record (tfds.builder(..., file_format='array_record'))."
        ) from error
    sizes = {len(of_class) for of_class in drawings.values()}
    if len(drawings) != NUM_CHARACTERS or sizes != {PER_CLASS}:
        raise DataError(
            f"The copy of Omniglot in {folder} has {len(drawings)} characters with {sorted(sizes)} drawings; "
            f"it should have {NUM_CHARACTERS} with {PER_CLASS}. Copy or prepare it again."
        )
    names = tuple(sorted(drawings))
    # Prepared copies are shuffled, each in its way: the bits of a drawing give it its place.
    images = np.stack([[image for _, image in sorted(drawings[name], key=_bits)] for name in names])
    pool = ClassPool(images[..., None], np.full(len(names), PER_CLASS, np.int32))
    return Dataset("omniglot", "classification", {"all": pool}, {"all": names}, recipe=DRAWINGS)


def _bits(drawing: tuple[bytes, np.ndarray]) -> bytes:
    return drawing[0]


def read_drawing(png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decode a drawing, as all images of Omniglot are here.

    Args:
      png: The file: black ink on white.

    Returns:
      Where there is ink, `[105, 105]` bool, and its ink shrunk by Lanczos filtering, `[28, 28]` uint8, 255 on 0.
    """
    from PIL import Image

    # To grey levels first: of a one-bit image Pillow would pick pixels instead of filtering.
    grey = Image.open(io.BytesIO(png)).convert("L")
    small = grey.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(grey) < 128, 255 - np.asarray(small)
