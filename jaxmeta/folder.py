"""The folder of a run: its configuration, its log, and files that are whole or not there.

config.json     the configuration, with what was chosen automatically
data.json       what of the data a learner was built for: kind, number of training classes, recipe of the images
classes.json    where what is in a folder divides the classes, which were trained on
lowerings.json  which way each convolution of a step, and of an evaluation, is computed
metrics.jsonl   one row for each logged step and each validation
checkpoints/    the two latest and the best, or several of the best
episode.png     a test task; at the end with what is predicted
curves.png, result.json, calibration.json   at the end
"""

import contextlib
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

from jaxmeta.algorithms import ALGORITHMS, options_of
from jaxmeta.calibration import Calibration
from jaxmeta.config import Config, ConfigError, options_of_dataset
from jaxmeta.config_json import from_json, to_json
from jaxmeta.data import DataError, Dataset
from jaxmeta.data.cache import cache_dir
from jaxmeta.data.glyphs import LETTERS
from jaxmeta.data.mnist import DIGIT_IMAGES
from jaxmeta.data.omniglot import DRAWINGS
from jaxmeta.data.pools import ImageRecipe
from jaxmeta.nn import LoweringTable

# Of datasets that runs were trained on before they wrote down how their images are made.
KNOWN_RECIPES = {"glyphs": LETTERS, "omniglot": DRAWINGS, "mnist": DIGIT_IMAGES}


def refuse_existing(out: Path) -> None:
    """Refuse a folder that something is in.

    Args:
      out: The folder that a new run is to go to.

    Raises:
      ConfigError: if it exists and is not empty.
    """
    if out.is_dir() and (out / "config.json").exists():
        raise ConfigError(f"The run folder {out} exists. Continue it with --resume, or choose another name with --out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and holds no run. Choose another name with --out.")
    for parent in out.parents:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"{out} cannot be made, since {parent} is a file. Choose another place with --out.")


def read_config(out: Path) -> Config:
    """Read the configuration of a run.

    Args:
      out: The run's folder.

    Returns:
      Its configuration.

    Raises:
      ConfigError: if there is no run, or its configuration cannot be read.
    """
    path = out / "config.json"
    if not path.is_file():
        raise ConfigError(f"There is no run in {out}: {path} is missing. Train one with `jaxmeta train --out {out}`.")
    try:
        return from_json(json.loads(path.read_text()))
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}). Restore it, or train under another name.") from error


def write_config(out: Path, config: Config, dataset: Dataset) -> None:
    """Write the configuration of a run and what its learner was built for, and make its folder.

    Where what is in a folder divides the classes, and it may change, also these.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "config.json", json.dumps(to_json(config), indent=2) + "\n")
    write_atomically(out / "data.json", json.dumps(data_to_json(dataset), indent=2) + "\n")
    if "train_ways" in options_of_dataset(config):
        classes = {"dataset": dataset.name, "splits": dataset.class_names}
        write_atomically(out / "classes.json", json.dumps(classes, indent=1) + "\n")


def read_data(out: Path, config: Config) -> Dataset:
    """Read what a run's learner was built for.

    Args:
      out: The run's folder.
      config: Its configuration.

    Returns:
      A `Dataset` without splits: its name, its kind, its recipe, and as many training classes, without names.

    Raises:
      ConfigError: if the file is damaged; or missing, as in runs of earlier versions, and nothing else tells.
    """
    path = out / "data.json"
    if path.is_file():
        try:
            return data_from_json(json.loads(path.read_text()))
        except (UnicodeDecodeError, json.JSONDecodeError, DataError) as error:
            raise ConfigError(f"{path} is damaged ({error}). Write it anew: {_write_again(out)}") from error
    if config.dataset == "sinusoid":
        return Dataset("sinusoid", "regression", {}, {"train": ()})
    if config.dataset not in KNOWN_RECIPES or "classes" in options_of(ALGORITHMS[config.algorithm]):
        raise ConfigError(f"{out} has no data.json, which tells what its learner was built for: {_write_again(out)}")
    return Dataset(config.dataset, "classification", {}, {"train": ()}, recipe=KNOWN_RECIPES[config.dataset])


def _write_again(out: Path) -> str:
    return f"`jaxmeta train --resume --out {out}`, where the data of training is."


def data_to_json(dataset: Dataset) -> dict[str, Any]:
    """Turn what a learner is built for into plain values: it can then be used without the data."""
    recipe = None if dataset.recipe is None else dataset.recipe._asdict()
    return {"name": dataset.name, "kind": dataset.kind, "classes": len(dataset.class_names["train"]), "recipe": recipe}


def data_from_json(values: Any) -> Dataset:
    """Rebuild from plain values what `read_data` gives.

    Raises:
      DataError: if they are damaged.
    """
    try:
        name, kind, classes, recipe = (values[key] for key in ("name", "kind", "classes", "recipe"))
        names = {"train": ("",) * classes}
    except (KeyError, TypeError) as error:
        raise DataError(f"The description of the data is damaged: {error}.") from error
    return Dataset(name, kind, {}, names, recipe=None if recipe is None else ImageRecipe.from_json(recipe))


def write_calibration(out: Path, calibration: Calibration) -> None:
    """Write into a run's folder how sure its predictions are."""
    write_atomically(out / "calibration.json", json.dumps(calibration._asdict(), indent=2) + "\n")


def read_calibration(out: Path) -> Calibration | None:
    """Read how sure a run's predictions are; None for a run without calibration.

    Raises:
      ConfigError: if the file is damaged.
    """
    path = out / "calibration.json"
    if not path.is_file():
        return None
    try:
        calibration = Calibration(**json.loads(path.read_text()))
        if not calibration.temperature > 0:
            raise ValueError(f"temperature {calibration.temperature}")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}). Delete it: predictions are then not calibrated.") from error
    return calibration


def check_classes(out: Path, dataset: Dataset, *, unchanged: bool = False) -> tuple[str, ...]:
    """Refuse to judge a run on classes that it was trained on, since the images in its folder changed.

    Of images of a folder any change is known, of faces and drawings one of the classes.

    Args:
      out: The run's folder.
      dataset: Its dataset, as it is now.
      unchanged: Refuse any change: the run is to go on.

    Returns:
      The classes that were trained on, as far as that was written down; else those of the dataset.

    Raises:
      ConfigError: says what changed.
    """
    path = out / "classes.json"
    # A dataset without names stands for one that is not judged on.
    if not path.is_file() or "test" not in dataset.class_names:
        return dataset.class_names["train"]
    try:
        stored = json.loads(path.read_text())
        before, divided = stored["dataset"], {split: tuple(names) for split, names in stored["splits"].items()}
        trained = set(divided["train"])
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError, LookupError) as error:
        raise ConfigError(f"{path} is damaged ({error}). Restore it, or train under another name.") from error
    # The folder may have another name now; behind it is a hash of the images.
    if before.rpartition("-")[2] == dataset.name.rpartition("-")[2] and divided == dataset.class_names:
        return divided["train"]
    if unchanged:
        raise ConfigError(
            f"The run in {out} began with {before}, and the folder is {dataset.name} now: its images changed, or how "
            "its classes are divided. Restore them, or train anew under another --out."
        )
    held_out = {name for split in ("validation", "test") for name in dataset.class_names[split]}
    if both := sorted(trained & held_out):
        raise ConfigError(
            f"The run in {out} was trained on {both[0]!r}, which would be tested on now ({len(both)} such classes): "
            f"the classes in the folder changed. Restore {before}, or train anew."
        )
    return divided["train"]


def lowerings_file(device_kind: str) -> Path:
    """Tell where the table of lowerings that was measured on a kind of device is kept.

    Args:
      device_kind: From `device_name`.

    Returns:
      A file in the cache; it need not exist.

    Example:
      >>> lowerings_file("NVIDIA H200").name
      'lowerings-nvidia-h200.json'
    """
    slug = re.sub("[^a-z0-9]+", "-", device_kind.lower()).strip("-")
    return cache_dir() / f"lowerings-{slug}.json"


def save_lowerings(path: Path, table: LoweringTable) -> None:
    """Write a table of lowerings, and make the folder of its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(table.to_json(), indent=1) + "\n")


def load_lowerings(path: Path) -> LoweringTable | None:
    """Read a table of lowerings.

    Args:
      path: A file of `save_lowerings`.

    Returns:
      The table; None if there is no file.

    Raises:
      ConfigError: if it is damaged or of another version.
    """
    if not path.is_file():
        return None
    values = None
    with contextlib.suppress(UnicodeDecodeError, json.JSONDecodeError):
        values = json.loads(path.read_text())
    try:
        return LoweringTable.from_json(values)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be used. {error} Or delete it: without it the rule decides.") from error


@contextlib.contextmanager
def open_log(out: Path, tensorboard: bool):
    """Give a function that appends a row to metrics.jsonl, flushed, and to TensorBoard."""
    writer = None
    if tensorboard:
        from tensorboardX import SummaryWriter

        writer = SummaryWriter(str(out / "tensorboard"))
    try:
        with open(out / "metrics.jsonl", "a") as file:

            def log(row):
                file.write(json.dumps(row) + "\n")
                file.flush()
                if writer:
                    for name, value in row.items():
                        writer.add_scalar(name, value, row["step"])

            yield log
    finally:
        if writer:
            writer.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl`; a last row cut off in the middle is left out."""
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def truncate_rows(out: Path, step: int) -> None:
    """Drop rows beyond a step: a killed process logs further than it saves."""
    path = out / "metrics.jsonl"
    if path.is_file():
        kept = [json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step]
        write_atomically(path, "".join(kept))


def write_atomically(path: Path, text: str) -> None:
    """Write a file under another name and move it into place: a reader meets the old or the new."""
    # Of this call alone: others may write the same file at the same time.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
