"""The one file that a prepared data set is kept in: an uncompressed `.npz`, checked against its own checksum.

Opening it needs NumPy only.
"""

import hashlib
import io
import json
import os
import uuid
import zipfile
from pathlib import Path

import numpy as np

from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe

# Raised by one whenever the layout of the file changes: older files are rebuilt.
FORMAT_VERSION = 1


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
        "origin": dataset.origin,
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
    return Dataset(header["name"], header["kind"], splits, names, recipe=recipe or None, origin=header.get("origin"))


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
