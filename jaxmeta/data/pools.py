"""Pools of labelled images, and the one file a prepared data set is cached in.

A data set is prepared once (rendered, downloaded, resized) and kept as one
uncompressed `.npz`: opening it needs NumPy only, takes a fraction of a second, and
a checksum over its arrays tells a whole file from a damaged one. The cache is a
convenience: where it cannot be written, the data set is still handed back.
"""

import hashlib
import io
import json
import os
import uuid
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Raised by one whenever the layout of the file changes: older files are rebuilt.
FORMAT_VERSION = 1
FITS = ("crop", "pad", "stretch")


class DataError(ValueError):
    """What the caller got wrong about data: what was given, what is needed, what to change."""


class ClassPool(NamedTuple):
    """Images sorted by class, as a rectangle.

    Attributes:
      images: `[classes, per_class, height, width, channels]` uint8.
      counts: `[classes]` int32, how many images of each class are real; the others,
        at the end, are zeros. So classes may have different numbers of images.
    """

    images: Any
    counts: Any


class ImageRecipe(NamedTuple):
    """How an image becomes the pixels of a dataset; kept with a run, so that new images are treated alike.

    Attributes:
      height: Pixels.
      width: Pixels.
      channels: 1 for grey, 3 for colour.
      fit: What is done to another aspect ratio: "crop" the middle, "pad" with what surrounds the image, "stretch".
      bright_ink: Drawings, whose ink is to be bright on black: an image whose border is bright is inverted.
    """

    height: int
    width: int
    channels: int
    fit: str = "crop"
    bright_ink: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ImageRecipe":
        """Rebuild a recipe from `_asdict()`; raises DataError if it is damaged or of another version."""
        try:
            recipe = cls(**values)
        except TypeError as error:
            raise DataError(f"A recipe of images is damaged or of another version: {error}.") from error
        sizes = recipe[:3]
        whole = all(type(size) is int and size > 0 for size in sizes) and recipe.channels in (1, 3)
        if not whole or recipe.fit not in FITS or type(recipe.bright_ink) is not bool:
            raise DataError(f"A recipe of images is damaged: {recipe}. Sizes are positive, channels 1 or 3.")
        return recipe


class Dataset(NamedTuple):
    """Everything the library knows of one source of tasks.

    Attributes:
      name: The name it is asked for by.
      kind: "classification" or "regression".
      splits: "train", "validation" and "test", each a `ClassPool` of NumPy arrays.
      class_names: With the same keys, one name for each class.
      groups: With the same keys, the group of each class: its alphabet. None where classes have none.
      recipe: How the images were made of files, so that others can be made alike. None where there are no images.
    """

    name: str
    kind: str
    splits: dict[str, Any]
    class_names: dict[str, tuple[str, ...]]
    groups: dict[str, tuple[str, ...]] | None = None
    recipe: ImageRecipe | None = None


def cache_dir() -> Path:
    """Return the folder prepared data is kept in; it need not exist yet.

    It is `$JAXMETA_CACHE` where that is set, else `jaxmeta` in the user's cache folder
    (`$XDG_CACHE_HOME`, or `.cache` in the home folder).

    Example:
      >>> from unittest.mock import patch
      >>> with patch.dict("os.environ", JAXMETA_CACHE="somewhere"):
      ...     cache_dir().name
      'somewhere'
    """
    own = os.environ.get("JAXMETA_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmeta"


def with_rotations(pool: ClassPool, names: Sequence[str]) -> tuple[ClassPool, tuple[str, ...]]:
    """Make every class at 0, 90, 180 and 270 degrees a class of its own.

    Vinyals et al. 2016 (arXiv 1606.04080) and Finn et al. 2017 (arXiv 1703.03400) multiply
    the characters of Omniglot in this way. Turns are counter-clockwise.

    Args:
      pool: Square images `[classes, per_class, size, size, channels]`.
      names: `[classes]` names.

    Returns:
      The pool `[4 * classes, per_class, size, size, channels]`, all classes upright first,
      then all at 90 degrees and so on, and its names with the suffix "/rot000" to "/rot270".

    Raises:
      DataError: the images are not square.

    Example:
      >>> pool = ClassPool(np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2, 1), np.array([1, 1], np.int32))
      >>> turned, names = with_rotations(pool, ["a", "b"])
      >>> turned.images[2, 0, :, :, 0].tolist(), names[2]
      ([[1, 3], [0, 2]], 'a/rot090')
    """
    images = np.asarray(pool.images)
    if images.ndim != 5 or images.shape[2] != images.shape[3]:
        raise DataError(
            f"with_rotations was given images {list(images.shape)}; it needs square ones, "
            "[classes, per_class, size, size, channels]. Crop or resize them first."
        )
    turned = np.concatenate([np.rot90(images, quarters, axes=(2, 3)) for quarters in range(4)])
    turned_names = tuple(f"{name}/rot{90 * quarters:03d}" for quarters in range(4) for name in names)
    return ClassPool(turned, np.tile(np.asarray(pool.counts), 4)), turned_names


def cached_dataset(path: Path, build: Callable[[], Dataset]) -> Dataset:
    """Open a prepared data set, or prepare it and leave it for the next time.

    A file that is damaged or of another version is rebuilt, with a warning. Several
    processes may do so at once: each replaces the file as a whole. Where the file cannot
    be written (no permission, full disk) the data set is returned all the same, with a
    warning, and no part of a file stays behind.

    Args:
      path: The `.npz` file.
      build: Prepares the data set; called only when the file cannot be used.

    Returns:
      The data set, with NumPy arrays.

    Example:
      >>> import tempfile
      >>> pool = ClassPool(np.zeros([1, 1, 2, 2, 1], np.uint8), np.ones([1], np.int32))
      >>> toy = Dataset("toy", "classification", {"train": pool}, {"train": ("a",)})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = cached_dataset(Path(folder) / "toy.npz", lambda: toy)
      ...     again = cached_dataset(Path(folder) / "toy.npz", lambda: None)  # not called
      >>> again.class_names
      {'train': ('a',)}
    """
    path = Path(path)
    try:
        return read_dataset(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (DataError, OSError) as error:
        warnings.warn(f"The cached data is prepared again: {error}", stacklevel=2)
    dataset = build()
    try:
        write_dataset(path, dataset)
    except OSError as error:
        warnings.warn(
            f"The prepared data could not be kept in {path} ({error.strerror or error}), so it will be "
            "prepared again next time; set JAXMETA_CACHE to a folder with space that you may write to.",
            stacklevel=2,
        )
    return dataset


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a data set of class pools to one `.npz` file, all of it or nothing.

    Args:
      path: The file; its folder is made if need be.
      dataset: Splits of `ClassPool`.

    Raises:
      OSError: the file could not be written; what was there before is untouched.
    """
    arrays = {}
    for split, pool in dataset.splits.items():
        arrays[f"{split}.images"] = np.asarray(pool.images)
        arrays[f"{split}.counts"] = np.asarray(pool.counts)
    header = {
        "format": FORMAT_VERSION,
        "name": dataset.name,
        "kind": dataset.kind,
        "class_names": dataset.class_names,
        "recipe": None if dataset.recipe is None else dataset.recipe._asdict(),
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    arrays["sha256"] = np.frombuffer(_digest(arrays).encode(), np.uint8)
    # Into memory first: a zip file cannot be abandoned cleanly half way on a full disk.
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(draft, "xb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        # Gone already where all went well; also removed on Ctrl-C.
        draft.unlink(missing_ok=True)


def read_dataset(path: Path) -> Dataset:
    """Read a file of `write_dataset` and check it against its own checksum.

    Args:
      path: The `.npz` file.

    Returns:
      The data set, with NumPy arrays.

    Raises:
      FileNotFoundError: there is no such file.
      DataError: it is not such a file, is damaged, or is of another version.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as loaded:
            arrays = {key: loaded[key] for key in loaded.files}
        stored = arrays.pop("sha256").tobytes().decode()
        header = json.loads(arrays["header"].tobytes())
        version, whole = header["format"], stored == _digest(arrays)
    except OSError as error:
        # Only what the system says (no such file, no permission) carries a number.
        if error.errno:
            raise
        raise _unusable(path, error) from error
    except Exception as error:  # A damaged zip or array header fails in a dozen ways.
        raise _unusable(path, error) from error
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format {version}; this version reads {FORMAT_VERSION}. Replace it.")
    if not whole:
        raise _unusable(path, "its contents do not match its checksum")
    names = {split: tuple(of_split) for split, of_split in header["class_names"].items()}
    splits = {split: ClassPool(arrays[f"{split}.images"], arrays[f"{split}.counts"]) for split in names}
    # Files of earlier versions have none.
    recipe = header.get("recipe") and ImageRecipe.from_json(header["recipe"])
    return Dataset(header["name"], header["kind"], splits, names, recipe=recipe or None)


def _unusable(path: Path, reason: object) -> DataError:
    why = "a damaged zip file" if isinstance(reason, zipfile.BadZipFile) else reason
    return DataError(f"{path} is damaged or not a data file of jaxmeta ({why}). Replace it.")


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Hash names, dtypes, shapes and contents, in an order of their own."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
