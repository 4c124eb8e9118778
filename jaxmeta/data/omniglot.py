"""Omniglot (Lake et al. 2015): 1623 handwritten characters of 50 alphabets, 20 drawings each.

Read through tensorflow-datasets and without TensorFlow, from a copy that is already
there or from the published archives, and kept as one small file of 28x28 images. What
comes out is the same, pixel for pixel, whichever copy it was read from.
"""

import contextlib
import errno
import hashlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np

from jaxmeta.data.pools import (
    ClassPool,
    DataError,
    Dataset,
    cache_dir,
    cached_dataset,
    read_dataset,
    with_rotations,
)

NUM_CHARACTERS, PER_CLASS, SIZE = 1623, 20, 28
RECIPE = 1  # Part of the name of the cached file: raise it when the images change.
BUILDERS = ("omniglot", "jaxmeta_omniglot")
NEEDED_ARCHIVES = ("images_background.zip", "images_evaluation.zip")
_BOTH = " and ".join(NEEDED_ARCHIVES)

# The split of Vinyals et al. 2016, as ProtoNet (Snell et al. 2017) published it, by alphabet.
VALIDATION_ALPHABETS = frozenset({"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"})
TEST_ALPHABETS = frozenset(
    {"Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya"}
    | {"Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"}
)
# It cuts the characters at a number, which falls within one alphabet: from here on, test.
CUT_ALPHABET, CUT_CHARACTER = "Gurmukhi", 42


def load_omniglot(
    *, data_dir: Path | None = None, split: str = "vinyals", rotations: bool = True, seed: int = 0
) -> Dataset:
    """Load Omniglot as class pools of 28x28 images with bright ink.

    The drawings are resized with Lanczos filtering. Both splits have 423 test characters:

    - "vinyals": 1028 / 172 / 423 by alphabet (Vinyals et al. 2016, arXiv 1606.04080, as
      used by Snell et al. 2017, arXiv 1703.05175).
    - "random": 1100 / 100 / 423 by chance from `seed`: the 1200 training characters of
      Finn et al. 2017 (arXiv 1703.03400), 100 of them for validation.

    The first call with a copy takes half a minute; what it prepared is cached.

    Args:
      data_dir: A copy prepared by tensorflow-datasets in array_record (its data_dir, or the
        folder of the data set or of its version), or a folder with `images_background.zip`
        and `images_evaluation.zip`, or with a pool `omniglot*.npz` of this function. None:
        what was cached before, else downloaded.
      split: "vinyals" or "random".
      rotations: Every character turned by 0, 90, 180 and 270 degrees is a class of its own,
        in all three splits, as in the three papers above: four times as many classes.
      seed: Draws the "random" split.

    Returns:
      Images `[classes, 20, 28, 28, 1]` uint8, ink 255 on 0, and names "Alphabet/character01",
      with rotations followed by "/rot000" and so on.

    Raises:
      DataError: an unknown split, or data that is missing, damaged or cannot be downloaded.

    Example:
      >>> omniglot = load_omniglot(rotations=False)  # doctest: +SKIP
      >>> omniglot.splits["train"].images.shape  # doctest: +SKIP
      (1028, 20, 28, 28, 1)
    """
    if split not in SPLITS:
        raise DataError(f"Omniglot has no split {split!r}; choose {' or '.join(map(repr, SPLITS))}.")
    base = _base(None if data_dir is None else Path(data_dir).expanduser())
    images, counts = base.splits["all"]
    names = base.class_names["all"]
    pools, pool_names = {}, {}
    for part, chosen in SPLITS[split](names, seed).items():
        pool, of_pool = ClassPool(images[chosen], counts[chosen]), tuple(names[index] for index in chosen)
        pools[part], pool_names[part] = with_rotations(pool, of_pool) if rotations else (pool, of_pool)
    return Dataset("omniglot", "classification", pools, pool_names)


def vinyals_split(names: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Split characters by alphabet, as Vinyals et al. 2016 (arXiv 1606.04080) did.

    Args:
      names: "Alphabet/characterNN" of every character.
      seed: Not used; every split takes one.

    Returns:
      Positions in `names` for "train", "validation" and "test".

    Example:
      >>> vinyals_split(("Gurmukhi/character41", "Gurmukhi/character42", "Hebrew/character01"))["test"]
      array([1])
    """
    del seed
    parts = {"train": [], "validation": [], "test": []}
    for index, name in enumerate(names):
        alphabet, _, character = name.partition("/character")
        beyond = alphabet == CUT_ALPHABET and int(character) >= CUT_CHARACTER
        if alphabet in TEST_ALPHABETS or beyond:
            parts["test"].append(index)
        else:
            parts["validation" if alphabet in VALIDATION_ALPHABETS else "train"].append(index)
    return {part: np.array(chosen, np.int64) for part, chosen in parts.items()}


def random_split(names: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Split characters by chance: 1100 to train, 100 to validate, the rest to test.

    Finn et al. 2017 (arXiv 1703.03400) train on 1200 characters irrespective of alphabet;
    100 of them choose the checkpoint.

    Args:
      names: Name of every character; only their number matters.
      seed: Of the permutation.

    Returns:
      Positions in `names` for "train", "validation" and "test".

    Example:
      >>> [len(part) for part in random_split(("",) * 1623, seed=0).values()]
      [1100, 100, 423]
    """
    # RandomState, because NumPy promises that its permutations never change.
    order = np.random.RandomState(seed).permutation(len(names))
    return {"train": order[:1100], "validation": order[1100:1200], "test": order[1200:]}


SPLITS = {"vinyals": vinyals_split, "random": random_split}


def _base(data_dir: Path | None) -> Dataset:
    """Return all characters, in one split "all", from wherever they are."""
    if data_dir is None:
        return cached_dataset(cache_dir() / f"omniglot-{RECIPE}.npz", lambda: _from_archives(None))
    pool, prepared = _find_pool(data_dir), _find_prepared(data_dir)
    if pool is not None:
        dataset = read_dataset(pool)
        if dataset.name != "omniglot" or set(dataset.splits) != {"all"}:
            raise DataError(f"{pool} holds {dataset.name!r} and not the characters of Omniglot. Give another folder.")
        return dataset
    if prepared is not None:
        files = [file for file in sorted(prepared.iterdir()) if "-small" not in file.name]
        return cached_dataset(_cache_file(files), lambda: _from_prepared(prepared))
    present = [name for name in NEEDED_ARCHIVES if (data_dir / name).is_file()]
    if len(present) == len(NEEDED_ARCHIVES):
        files = [data_dir / name for name in NEEDED_ARCHIVES]
        return cached_dataset(_cache_file(files), lambda: _from_archives(data_dir))
    state = f"only {present[0]}" if present else "none of this" if data_dir.is_dir() else "no such folder"
    raise DataError(
        f"No Omniglot in data_dir {data_dir}: {state}. It should hold a copy prepared by "
        f"tensorflow-datasets (omniglot/3.0.0/dataset_info.json), or {_BOTH}, or a prepared "
        "omniglot*.npz. Without data_dir, Omniglot is downloaded."
    )


def _find_pool(data_dir: Path) -> Path | None:
    found = sorted(data_dir.glob("omniglot*.npz"))
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"{data_dir} holds several prepared pools ({listed}); give a folder with one of them.")
    return found[0] if found else None


def _find_prepared(data_dir: Path) -> Path | None:
    """Find the folder of a version of a prepared data set at or below `data_dir`."""
    for folder in (data_dir, *(data_dir / name for name in BUILDERS)):
        for info in (folder / "dataset_info.json", *sorted(folder.glob("*/dataset_info.json"), reverse=True)):
            with contextlib.suppress(OSError, ValueError):
                if json.loads(info.read_text())["name"] in BUILDERS:
                    return info.parent
    return None


def _cache_file(files: list[Path]) -> Path:
    """Name the cached pool of a copy by the contents of its files, wherever they lie."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return cache_dir() / f"omniglot-{RECIPE}-{digest.hexdigest()[:16]}.npz"


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
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            if folder is not None:
                raise DataError(f"The archives in {folder} cannot be read ({error}). Fetch {_BOTH} again.") from error
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
            drawings.setdefault(name, []).append(_shrunk(png))
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
    return Dataset("omniglot", "classification", {"all": pool}, {"all": names})


def _bits(drawing: tuple[bytes, np.ndarray]) -> bytes:
    return drawing[0]


def _shrunk(png: bytes) -> tuple[bytes, np.ndarray]:
    """Return the packed bits of a drawing `[105, 105]`, and its ink `[28, 28]` uint8."""
    from PIL import Image

    # To grey levels first: of a one-bit image Pillow would pick pixels instead of filtering.
    grey = Image.open(io.BytesIO(png)).convert("L")
    small = grey.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.packbits(np.asarray(grey) < 128).tobytes(), 255 - np.asarray(small)
