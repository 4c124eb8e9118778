"""Which files carry which label: of a folder with one sub-folder a class, or of a CSV with a path and a label.

    PATH/class/*            or  PATH/group/class/*, where no folder at the first level holds files itself
    PATH/train|validation|test/class/*
    PATH.csv                columns path (from the CSV's own folder on) and label, and maybe split

Nothing is decoded here. What cannot be used is listed with the reason; what would make a wrong classifier without a
word (a class in two splits, two spellings of one class) is refused.
"""

import csv
import io
import os
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jaxmeta.data.pools import DataError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
# What operating systems leave in folders of images, beside files whose names begin with a dot.
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}


class Listing(NamedTuple):
    """Labelled files, before any of them is opened.

    Attributes:
      splits: Split -> class -> its files, sorted by name. The split is "" where none are named, or "train" only.
      skipped: What is not used, and why: `(path, reason)`.
    """

    splits: dict[str, dict[str, list[Path]]]
    skipped: list[tuple[Path, str]]


def list_labelled(place: Path) -> Listing:
    """List the labelled files of a folder or of a CSV.

    Hidden files are passed over in silence. A folder that is met a second time, through a link, is not entered again.

    Args:
      place: A folder or a CSV.

    Returns:
      The `Listing`; its class names are printable whatever the folders are called.

    Raises:
      DataError: there is no such place, no labelled file in it, a class in two splits, or two spellings of a class.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for name in ("cat", "dog"):
      ...         (Path(folder) / name).mkdir()
      ...         _ = (Path(folder) / name / "1.png").write_bytes(b"")
      ...     sorted(list_labelled(Path(folder)).splits[""])
      ['cat', 'dog']
    """
    if place.is_dir():
        listing = _of_folder(place)
    elif place.is_file():
        listing = _of_csv(place)
    else:
        raise DataError(f"There is no folder {place}, and no CSV of this name. Give one with a sub-folder a class.")
    if set(listing.splits) == {"train"}:
        listing = listing._replace(splits={"": listing.splits["train"]})
    _refuse_mixed_classes(place, listing.splits)
    return listing


def printable(name: str) -> str:
    r"""Give a file's name as text that can be printed and hashed: bytes that are no UTF-8 become `\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is none of its owner's: hidden, or left there by an operating system."""
    return name.startswith(".") or name.casefold() in _LITTER


def refuse_two_spellings(names: Iterable[str]) -> None:
    """Refuse names of classes that differ in upper and lower case, or in spaces around them, only.

    Args:
      names: The names of all classes, as the folders or the rows have them.

    Raises:
      DataError: two of them are one; says which.

    Example:
      >>> refuse_two_spellings(["thing 30", "Thing 30"])
      Traceback (most recent call last):
      ...
      jaxmeta.data.pools.DataError: The classes 'thing 30' and 'Thing 30' differ in ...
    """
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(_folded(printable(name)), []).append(name)
    for same in spellings.values():
        if len(same) > 1:
            listed = " and ".join(repr(printable(name)) for name in same)
            raise DataError(
                f"The classes {listed} differ in upper and lower case, or in spaces, only. Put them into one, or give "
                "one of them another name."
            )


def _of_folder(root: Path) -> Listing:
    skipped: list[tuple[Path, str]] = []
    seen = {_identity(root.stat())}
    folders, files = _entries(root, seen, skipped)
    inside = {folder: _entries(folder, seen, skipped) for folder in folders}
    named = {folder: SPLIT_NAMES.get(folder.name.casefold()) for folder in folders}
    # A class may be called "train", too: the split holds folders.
    if any(split == "train" and inside[folder][0] for folder, split in named.items()):
        splits: dict[str, dict[str, list[Path]]] = {}
        skipped += [(path, "lies beside the folders of the splits") for path in files]
        for folder, split in named.items():
            if split is None:
                skipped.append((folder, "lies beside the folders of the splits"))
            elif split in splits:
                raise DataError(f"{root} has two folders of the {split} split. Put their classes into one.")
            else:
                below = {inner: _entries(inner, seen, skipped) for inner in inside[folder][0]}
                skipped += [(path, "lies beside the folders of the classes") for path in inside[folder][1]]
                splits[split] = _classes(folder, below, seen, skipped)
    else:
        skipped += [(path, "lies beside the folders of the classes") for path in files]
        splits = {"": _classes(root, inside, seen, skipped)}
    if not any(splits.values()):
        tables = [path.name for path in files if path.suffix.lower() == ".csv"]
        hint = f" There is a CSV in it: try {root / tables[0]}." if tables else ""
        raise DataError(f"{root} has no sub-folder with files. Make one for each class, with its images in it.{hint}")
    return Listing(splits, skipped)


def _classes(root: Path, inside: dict[Path, tuple[list[Path], list[Path]]], seen, skipped) -> dict[str, list[Path]]:
    """Give the classes of sub-folders `inside` a folder, or where all of those hold folders only, of the next level."""
    if any(files for _, files in inside.values()):
        for folders, files in inside.values():
            why = "is a folder within the folder of a class" if files else "lies in a folder that holds no files"
            skipped += [(folder, why) for folder in folders]
    else:
        groups = [folder for folders, _ in inside.values() for folder in folders]
        if groups:
            inside = {folder: _entries(folder, seen, skipped) for folder in groups}
            skipped += [
                (deep, "is a folder within the folder of a class") for below, _ in inside.values() for deep in below
            ]
    skipped += [(folder, "holds no files") for folder, (folders, files) in inside.items() if not folders and not files]
    return _by_name({folder.relative_to(root).as_posix(): files for folder, (_, files) in inside.items() if files})


def _entries(folder: Path, seen: set, skipped: list[tuple[Path, str]]) -> tuple[list[Path], list[Path]]:
    """Give the visible folders and files in a folder, sorted by the bytes of their names."""
    folders, files = [], []
    try:
        names = sorted(os.listdir(folder), key=os.fsencode)
    except OSError as error:
        skipped.append((folder, f"cannot be read ({error.strerror})"))
        return [], []
    for path in (folder / name for name in names if not is_hidden(name)):
        try:
            status = path.stat()
        except OSError as error:
            skipped.append((path, f"leads nowhere ({error.strerror})"))
            continue
        if stat.S_ISREG(status.st_mode):
            files.append(path)
        elif not stat.S_ISDIR(status.st_mode):
            skipped.append((path, "is neither a file nor a folder"))
        elif _identity(status) in seen:
            skipped.append((path, "is a link to a folder that is listed already"))
        else:
            seen.add(_identity(status))
            folders.append(path)
    return folders, files


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _by_name(classes: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Make the names printable, and refuse two spellings of one."""
    refuse_two_spellings(classes)
    return {printable(name).strip(): files for name, files in classes.items()}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _refuse_mixed_classes(place: Path, splits: dict[str, dict[str, list[Path]]]) -> None:
    """Refuse a class in two splits: what is tested must not have been trained on."""
    found: dict[str, tuple[str, str]] = {}
    for split, classes in splits.items():
        for name in classes:
            earlier, spelled = found.setdefault(_folded(name), (split, name))
            if earlier != split:
                raise DataError(
                    f"In {place} the class {name!r} is in the {split} split, and as {spelled!r} in the {earlier} "
                    "split: a class that is tested must not be trained on. Give each class to one split, or name no "
                    "splits: then they are made."
                )


def _of_csv(path: Path) -> Listing:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        # As many programs write it where a comma divides decimals.
        delimiter = max(",;\t", key=(text.splitlines() or [""])[0].count)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8 ({error}). Give a folder, or a CSV of path and label.") from error
    header = [name.strip().casefold() for name in rows[0]] if rows else []
    if not {"path", "label"} <= set(header):
        has = ", ".join(header) or "nothing"
        raise DataError(f"The first row of {path} has {has}. It needs the columns path and label, and may have split.")
    wanted = [header.index(name) if name in header else None for name in ("path", "label", "split")]
    table = []
    for number, row in enumerate(rows[1:], start=2):
        if any(row):
            cells = ["" if at is None or at >= len(row) else row[at].strip() for at in wanted]
            table.append((number, *cells))
    return _of_rows(path, table, named=any(split for *_, split in table))


def _of_rows(path: Path, table: Iterable[tuple[int, str, str, str]], named: bool) -> Listing:
    splits: dict[str, dict[str, list[Path]]] = {}
    skipped: list[tuple[Path, str]] = []
    before: dict[tuple[int, int], tuple[str, str, int]] = {}
    for number, place, label, split in table:
        if named and split and split.casefold() not in SPLIT_NAMES:
            raise DataError(f"Row {number} of {path} has the split {split!r}. Use train, validation or test.")
        file, of_split = path.parent / place, SPLIT_NAMES.get(split.casefold(), "")
        missing = "path" if not place else "label" if not label else "split" if named and not split else ""
        if missing:
            skipped.append((file, f"has no {missing} in its row"))
            continue
        try:
            status = file.stat()
        except (OSError, ValueError) as error:
            skipped.append((file, f"is not there ({getattr(error, 'strerror', None) or error})"))
            continue
        if not stat.S_ISREG(status.st_mode):
            skipped.append((file, "is no file"))
            continue
        earlier = before.setdefault(_identity(status), (of_split, label, number))
        if earlier[:2] != (of_split, label):
            raise DataError(
                f"{file} is listed twice in {path}, as {earlier[1]!r} in row {earlier[2]} and as {label!r} in row "
                f"{number}. Give it one label and one split."
            )
        if earlier[2] == number:
            splits.setdefault(of_split, {}).setdefault(label, []).append(file)
        else:
            skipped.append((file, "is listed twice"))
    if not splits:
        why = f" The first: {skipped[0][0]} {skipped[0][1]}." if skipped else ""
        raise DataError(f"{path} lists no file that is there.{why} Paths begin at the folder of the CSV.")
    sort = {
        split: {name: sorted(files, key=os.fsencode) for name, files in of_split.items()}
        for split, of_split in splits.items()
    }
    return Listing({split: _by_name(classes) for split, classes in sort.items()}, skipped)
