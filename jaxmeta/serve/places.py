"""Where answers go: a folder for each support folder, and checked before anything is computed."""

import contextlib
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxmeta.config import ConfigError
from jaxmeta.data.labelled import printable
from jaxmeta.serve.files import shown

TABLE, PAGE, RESULT = "predictions.csv", "predictions.html", "result.json"


def place_of(run: Path, support: Path) -> Path:
    """Give the folder in a run's for the answers by a support folder, so that those by another one stay.

    Args:
      run: The run's folder.
      support: The support folder.

    Returns:
      `RUN/adapted/NAME` by the support folder's name; with -2, -3 and so on where the answers by another folder of
      that name are, or anything else is.

    Example:
      >>> place_of(Path("run"), Path("somewhere/known")).parts
      ('run', 'adapted', 'known')
    """
    first = run / "adapted" / support.resolve().name
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([first], others) if _is_free(place, support))


def support_name(support: Path) -> str:
    """Name a support folder as `result.json` does: from the root on, as text that can be printed."""
    return printable(str(support.resolve()))


def _is_free(place: Path, support: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        result = json.loads((place / RESULT).read_text())
        return isinstance(result, dict) and result.get("support") == support_name(support)
    return not place.exists() or (place.is_dir() and not any(place.iterdir()))


def check_places(out: Path, names: Sequence[str], export: Path | None = None) -> None:
    """Refuse places that cannot be written to, and leave nothing there.

    Args:
      out: The folder for the answers.
      names: The files that go there.
      export: Another file, which gets one beside it.

    Raises:
      ConfigError: there is something else, or it may not be written to; says what to change.
    """
    _check_folder(out, "--out")
    files = dict.fromkeys([out / name for name in names], "--out")
    if export is not None:
        if export.is_dir():
            raise ConfigError(
                f"--export {shown(export)} is a folder; needed is the name of a file. Give, for one, "
                f"{shown(export / 'classifier.jax')}."
            )
        _check_folder(export.parent, "--export")
        beside = export.with_name(export.name + ".json")
        for path in (export, beside):
            if path.resolve() in {file.resolve() for file in files}:
                raise ConfigError(f"--export {shown(export)} would be written over {shown(path)}. Give another name.")
        files |= dict.fromkeys([export, beside], "--export")
    for path, option in files.items():
        if path.is_dir():
            raise ConfigError(
                f"{shown(path)} is a folder, where a file is to be written. Remove it, or choose another place with "
                f"{option}."
            )


def _check_folder(folder: Path, option: str) -> None:
    """Write a file there that has no name, and take away the folders that were made for it."""
    new = []
    try:
        if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
            raise ConfigError(f"{shown(folder)} is a file, or in one. Choose another folder with {option}.")
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"The folder {shown(folder)} cannot be made, or nothing can be written in it ({error.strerror or error}). "
            f"Choose another place with {option}."
        ) from error
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
