"""The one file that a prepared data set is kept in: an uncompressed `.npz`, checked against its own checksum.

Opening it needs NumPy only. Its members are the images and counts of each split, a header (JSON: names, recipe, where
the data came from) and a SHA-256 over all of them. A small file is read and checked as a whole. The images of a large
one stay on the disk, mapped into memory, and a sample of them is checked; `verify_dataset` checks the rest.
"""

import hashlib
import json
import os
import struct
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe

# Raised by one whenever the layout of the file changes: older files are rebuilt.
FORMAT_VERSION = 1
# Members of so many bytes are mapped: reading and hashing as many takes a good part of a second.
MAP_FROM = 256 << 20
# As many images of a split, evenly spread, are checked when its file is mapped.
SAMPLED = 64


class VersionError(DataError):
    """A whole file of another version of the library."""


def write_dataset(path: Path, dataset: Dataset, made: Mapping[str, Any] | None = None) -> None:
    """Write a data set of class pools to one `.npz` file, all of it or nothing.

    The images are streamed: writing needs a few MB of memory, whatever their number.

    Args:
      path: The file; its folder is made if need be.
      dataset: Splits of `ClassPool`.
      made: How the data set came about, kept in the header: plain values, as for JSON.

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
        "groups": dataset.groups,
        "recipe": None if dataset.recipe is None else dataset.recipe._asdict(),
        "origin": dataset.origin,
        "samples": {split: _sample_digest(arrays[f"{split}.images"]) for split in dataset.splits},
        "made": dict(made or {}),
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    arrays["sha256"] = np.frombuffer(_digest(arrays).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(draft, "xb") as file:
            with zipfile.ZipFile(cast(BinaryIO, _Sink(file)), "w") as archive:
                for key, array in arrays.items():
                    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        # Gone already where all went well; also removed on Ctrl-C.
        draft.unlink(missing_ok=True)


class _Sink:
    """Where an archive is streamed to. After a write that failed, what the archive writes to close itself is dropped.

    Otherwise closing it on a full disk would fail in other ways and hide the reason.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._failed = file, False

    def write(self, data) -> int:
        if self._failed:
            return len(data)
        self._failed = True
        written = self._file.write(data)
        self._failed = False
        return written

    def flush(self) -> None:
        if not self._failed:
            self._file.flush()


def read_dataset(path: Path) -> Dataset:
    """Read a file of `write_dataset` and check it: all of a small one, a sample of the images of a large one.

    Args:
      path: The `.npz` file.

    Returns:
      The data set, with NumPy arrays; those of `MAP_FROM` bytes and more are read-only maps of the file.

    Raises:
      FileNotFoundError: there is no such file.
      DataError: it is not such a file, is damaged, or is of another version.
    """
    header, arrays, stored = _load(path, MAP_FROM)
    mapped = any(isinstance(array, np.memmap) for array in arrays.values())
    # Files of earlier versions have no samples; they are checked as a whole.
    if mapped and "samples" in header:
        _check_samples(path, header, arrays)
    elif stored != _digest(arrays):
        raise _unusable(path, "its contents do not match its checksum")
    return _dataset(path, header, arrays)


def read_header(path: Path) -> tuple[dict[str, Any], Dataset]:
    """Read what a file says of itself, and check a sample of its images; it takes milliseconds, however large it is.

    Args:
      path: The `.npz` file.

    Returns:
      Its header, and the data set with images that are maps of the file.

    Raises:
      FileNotFoundError: there is no such file.
      DataError: it is not such a file, is damaged where one looked, or is of another version.
    """
    header, arrays, _ = _load(path, map_from=1 << 16)
    if "samples" in header:
        _check_samples(path, header, arrays)
    return header, _dataset(path, header, arrays)


def verify_dataset(path: Path) -> None:
    """Check every byte of a file of `write_dataset` against its checksum.

    Args:
      path: The `.npz` file.

    Raises:
      FileNotFoundError: there is no such file.
      DataError: it is not such a file, is damaged (says where), or is of another version.
    """
    _, arrays, stored = _load(path, map_from=1 << 16)
    if stored == _digest(arrays):
        return
    with zipfile.ZipFile(path) as archive:
        # The checksums of the zip format tell which member it is.
        first = (archive.testzip() or "one of its members").removesuffix(".npy")
    raise _unusable(path, f"{first} does not match its checksum")


def _load(path: Path, map_from: int) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """Return header, members and stored checksum; of the members only the header is known to be whole."""
    try:
        arrays = {}
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                arrays[member.filename.removesuffix(".npy")] = _read_member(file, archive, member, map_from)
        stored = arrays.pop("sha256").tobytes().decode()
        header = json.loads(arrays["header"].tobytes())
        version = header["format"]
    except OSError as error:
        # Only what the system says (no such file, no permission) carries a number.
        if error.errno:
            raise
        raise _unusable(path, error) from error
    except Exception as error:  # A damaged zip or array header fails in a dozen ways.
        if isinstance(error, MemoryError):
            raise
        raise _unusable(path, error) from error
    if version != FORMAT_VERSION:
        raise VersionError(f"{path} has format {version}; this version reads {FORMAT_VERSION}. Replace it.")
    return header, arrays, stored


def _read_member(file: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo, map_from: int) -> np.ndarray:
    with archive.open(info) as member:
        if info.file_size < map_from or info.compress_type != zipfile.ZIP_STORED:
            return np.lib.format.read_array(member, allow_pickle=False)
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(member)
        within = member.tell()
    # In a zip file a member begins with 30 bytes, the last four of them the lengths of two more fields.
    file.seek(info.header_offset)
    start = file.read(30)
    place = info.header_offset + 30 + sum(struct.unpack("<HH", start[26:])) + within
    if start[:4] != b"PK\3\4" or fortran_order or dtype.hasobject:
        raise DataError(f"{info.filename} is no plain array")
    return np.memmap(file, dtype, "r", place, shape)


def _dataset(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Dataset:
    try:
        names = _tuples(header["class_names"])
        splits = {split: ClassPool(arrays[f"{split}.images"], arrays[f"{split}.counts"]) for split in names}
        # Files of earlier versions have none of these.
        recipe, groups = header.get("recipe"), header.get("groups")
        groups = None if groups is None else _tuples(groups)
        recipe = None if recipe is None else ImageRecipe.from_json(recipe)
        return Dataset(header["name"], header["kind"], splits, names, groups, recipe, header.get("origin"))
    except (KeyError, TypeError, AttributeError) as error:
        raise _unusable(path, f"{type(error).__name__} in its header: {error}") from error


def _tuples(lists: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {split: tuple(of_split) for split, of_split in lists.items()}


def _check_samples(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    for split, digest in header["samples"].items():
        images = arrays.get(f"{split}.images")
        if images is None or _sample_digest(images) != digest:
            raise _unusable(path, f"{split}.images does not match its checksum")


def _unusable(path: Path, reason: object) -> DataError:
    return DataError(f"{path} is damaged or not a data file of jaxmeta ({reason}). Replace it.")


def _sample_digest(images: np.ndarray) -> str:
    """Hash some images `[classes, per_class, ...]`, evenly spread, the first and the last among them."""
    digest = hashlib.sha256()
    total = images.shape[0] * images.shape[1]
    for place in np.unique(np.linspace(0, total - 1, SAMPLED).astype(int)) if total else ():
        digest.update(np.ascontiguousarray(images[divmod(int(place), images.shape[1])]).data)
    return digest.hexdigest()


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash names, dtypes, shapes and contents, in an order of their own."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = arrays[key]
        digest.update(f"{key}|{array.dtype.str}|{array.shape}|".encode())
        # A pool that is a view of another is not copied as a whole.
        for part in [array] if array.flags.c_contiguous else array:
            digest.update(np.ascontiguousarray(part).data if part.size else b"")
    return digest.hexdigest()
