"""The Omniglot challenge: the official 20 runs of 20-way one-shot classification within one alphabet.

Ten evaluation alphabets, two runs of each: 20 characters, one training and one test drawing of each, by different
people. What counts is the error over the 400 test drawings: people 4.5 %, chance 95 % (Lake et al. 2015).
"""

import zipfile
from pathlib import Path, PurePosixPath

import jax.numpy as jnp
import numpy as np

from jaxmeta.base import Batch, Episode
from jaxmeta.data.episodes import TaskSource
from jaxmeta.data.omniglot import read_drawing
from jaxmeta.data.pools import DataError
from jaxmeta.data.prepared import compare_checksum
from jaxmeta.data.sources import fixed_source

ARCHIVE = "one_shot_all_runs.zip"
SHA256 = "437c1eeab0af8484112e1b4cc0f3d541ec727f7c47b9b202da738af9dfd6c325"
RUNS, WAYS, SIDE = 20, 20, 105


def load_challenge(data_dir: Path) -> Episode:
    """Load the 20 runs, their images made as those of `load_omniglot` are.

    Args:
      data_dir: The folder of `one_shot_all_runs.zip`, or that archive.

    Returns:
      An `Episode` with leaves `[20 runs, 20 examples, ...]`: inputs `[20, 20, 28, 28, 1]` float32 with ink 1 on 0.
      Classes are numbered as the training images are; the target of a test image is the class whose training image
      `class_labels.txt` names.

    Raises:
      DataError: the archive is missing or damaged, or is not 20 runs of 20 training and 20 test images.

    Example:
      >>> episodes = load_challenge(Path("data/omniglot"))  # doctest: +SKIP
      >>> episodes.query.inputs.shape  # doctest: +SKIP
      (20, 20, 28, 28, 1)

    Source: Lake, Salakhutdinov and Tenenbaum, 2015, Science 350(6266); 2019, arXiv 1902.03477.
    """
    images, targets = _read_archive(data_dir, lambda drawing: drawing[1][..., None])
    # The product that sample_episode takes, for the same pixels to the last bit.
    return _episode(images.astype(np.float32) * np.float32(1 / 255), targets)


def load_challenge_drawings(data_dir: Path) -> Episode:
    """Load the 20 runs as they were drawn, for methods that work on strokes or pixels: `hausdorff_error`.

    Args:
      data_dir: See `load_challenge`.

    Returns:
      As `load_challenge`, but inputs `[20, 20, 105, 105, 1]` float32, 1 where there is ink and 0 elsewhere.

    Raises:
      DataError: see `load_challenge`.

    Example:
      >>> load_challenge_drawings(Path("data/omniglot")).support.inputs.shape  # doctest: +SKIP
      (20, 20, 105, 105, 1)
    """
    images, targets = _read_archive(data_dir, lambda drawing: drawing[0][..., None])
    return _episode(images.astype(np.float32), targets)


def challenge_source(data_dir: Path) -> TaskSource:
    """Make the source of the 20 runs: `make_evaluator(...)(meta_params, state, source, key, 20)` judges them.

    Args:
      data_dir: See `load_challenge`.

    Returns:
      A `TaskSource` that gives the runs in their order, whatever the key.

    Raises:
      DataError: see `load_challenge`.

    Example:
      >>> challenge_source(Path("data/omniglot")).spec  # doctest: +SKIP
      EpisodeSpec(ways=20, shots=1, queries=1)
    """
    return fixed_source(load_challenge(data_dir))


def _episode(images: np.ndarray, targets: np.ndarray) -> Episode:
    """Make episodes of images `[runs, 2, ways, ...]` of training and test, and targets `[runs, 2, ways]`."""
    ones = jnp.ones([RUNS, WAYS], jnp.float32)
    batches = (Batch(jnp.asarray(images[:, part]), jnp.asarray(targets[:, part]), ones) for part in (0, 1))
    return Episode(*batches)


def _read_archive(data_dir: Path, keep) -> tuple[np.ndarray, np.ndarray]:
    path = Path(data_dir).expanduser()
    path = path / ARCHIVE if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"No {path}. Give the folder of {ARCHIVE} (of github.com/brendenlake/omniglot), or that file.")
    try:
        compare_checksum(path, path.read_bytes(), SHA256)
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.namelist())
            runs = [_read_run(archive, f"run{run:02d}", keep) for run in range(1, RUNS + 1)]
    except Exception as error:  # A damaged archive or image fails in a dozen ways.
        if isinstance(error, MemoryError):
            raise
        reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be used ({reason}). Fetch the official {ARCHIVE} again.") from error
    images, targets = zip(*runs, strict=True)
    return np.stack(images), np.stack(targets)


def _check_members(names: list[str]) -> None:
    """Refuse an archive with anything but 20 x (20 + 20) drawings, or with a path that leads out of it."""
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise DataError(f"the path {name!r} leads out of the archive")
    found = {name for name in names if name.endswith(".png")}
    needed = {name for run in range(1, RUNS + 1) for part in _files(f"run{run:02d}") for name in part}
    if found != needed:
        raise DataError(
            f"it should hold {RUNS} runs of {WAYS} training and {WAYS} test images, {len(needed)} drawings; "
            f"it holds {len(found)}, first amiss: {min(found ^ needed)}"
        )


def _files(run: str) -> tuple[list[str], list[str]]:
    numbers = range(1, WAYS + 1)
    return [f"{run}/training/class{n:02d}.png" for n in numbers], [f"{run}/test/item{n:02d}.png" for n in numbers]


def _read_run(archive: zipfile.ZipFile, run: str, keep) -> tuple[np.ndarray, np.ndarray]:
    """Read a run: `[2, ways, ...]` of training and test, and targets `[2, ways]`."""
    training, test = _files(run)
    drawings = [[read_drawing(archive.read(name)) for name in part] for part in (training, test)]
    sizes = {ink.shape for part in drawings for ink, _ in part}
    if sizes != {(SIDE, SIDE)}:
        raise DataError(f"the drawings of {run} have the sizes {sorted(sizes)}, not {SIDE}x{SIDE}")
    labels = [line.split() for line in archive.read(f"{run}/class_labels.txt").decode().splitlines() if line.strip()]
    class_of = dict(label for label in labels if len(label) == 2)
    # Names are compared, never opened.
    if len(labels) != WAYS or set(class_of) != set(test) or not set(class_of.values()) <= set(training):
        raise DataError(f"{run}/class_labels.txt should name a training image for each of the {WAYS} test images")
    targets = [list(range(WAYS)), [training.index(class_of[name]) for name in test]]
    images = np.stack([np.stack([keep(drawing) for drawing in part]) for part in drawings])
    return images, np.array(targets, np.int32)
