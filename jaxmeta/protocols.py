"""Protocols: everything that says how a number was got, as a value, and the tasks it was got on, as a hash.

A field is of the judging (which tasks, what is shown of them, how the values become one number) or of the learner that
is judged (what it was trained on, its steps, its normalisation, its precision). Two hashes stand beside every number:
`protocol_hash` covers the judging, so that all who answer the same question share it, and `fingerprint` covers the
whole protocol, so that two numbers with one fingerprint were got alike in everything. Runs are compared where the first
is the same and refused where it is not; what the learners differ in stands beside the difference, as it may explain it.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta.algorithms import NORMS
from jaxmeta.base import Key
from jaxmeta.data import DataError, Dataset, EpisodeSpec, TaskSource, challenge_source, number_of_tasks, task_source
from jaxmeta.data.omniglot_splits import CHALLENGE_SPLITS
from jaxmeta.evaluate import draw_tasks

# Every run is judged on the same tasks, whatever seed it was trained with.
EVALUATION_SEED = 20240229
PARTS = ("train", "validation", "test")
INTERVALS = ("t-95 over tasks",)
CHECKPOINTS = ("best", "latest")
# Where episodes come from: drawn of the dataset's classes, or fixed ones of their own.
DRAWN = SAMPLED, VARYING = "sampled", "varying"
CHALLENGE = "omniglot-challenge"
FIXED: dict[str, Callable[[Path], TaskSource]] = {CHALLENGE: challenge_source}
SETTINGS = ("inductive", "transductive")
# Of the learner, not of the judging. The inner steps are here, since nobody who judges a learner by its predictions
# needs to know how many gradient steps it takes, or whether any; and the normalisation, of which the judge needs to
# know only whether a prediction sees the other queries: the setting.
OF_THE_LEARNER = frozenset(
    {"trained_on", "trained_split", "train_inner_steps", "eval_inner_steps", "norm", "measured", "precision"}
)
_LEAST = {"ways": 1, "shots": 1, "queries": 1, "episodes": 2, "ensemble": 1, "eval_inner_steps": 0, "seed": 0}
# Numbers of a task source that are drawn and hashed at once.
_AT_ONCE = 2**23


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a learner was judged.

    Attributes:
      dataset: What the tasks are made of.
      split: Which division of its classes.
      part: "test", "validation" or "train".
      ways: Classes in a task.
      shots: Support examples of each class.
      queries: Query examples of each class.
      train_inner_steps: Inner steps in training. Of the learner.
      eval_inner_steps: Inner steps in evaluation. Of the learner.
      norm: Whose statistics normalise the query set; "none" if nothing is normalised. Of the learner.
      episodes: Number of tasks.
      ensemble: How many of the best checkpoints predict together.
      interval: What the interval is.
      seed: What the tasks are drawn from.
      episodes_from: "sampled"; "varying", see `sample_varying`; or the name of fixed episodes: a row of `FIXED`.
      checkpoint: "best" by validation, or "latest".
      within_alphabet: Whether the classes of a task are of one alphabet.
      trained_on: The dataset of training; "" if it is the one that is judged. Of the learner.
      measured: The setting that the leak test found; None before it was made. Of the learner, as the
        property `setting` takes its place in the hashes.
      trained_split: The division of the classes of that dataset; "" if it is the one that is judged. Of the learner.
      precision: How exactly the network computes. Of the learner.
    """

    dataset: str
    split: str
    part: str
    ways: int
    shots: int
    queries: int
    train_inner_steps: int
    eval_inner_steps: int
    norm: str
    episodes: int
    ensemble: int = 1
    interval: str = INTERVALS[0]
    seed: int = EVALUATION_SEED
    episodes_from: str = "sampled"
    checkpoint: str = "best"
    within_alphabet: bool = False
    trained_on: str = ""
    measured: str | None = None
    trained_split: str = ""
    precision: str = "float32"

    def __post_init__(self):
        """Refuse a protocol that nothing can be judged by."""
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"A protocol needs {name} of at least {least}; given {getattr(self, name)}.")
        known = {"part": PARTS, "interval": INTERVALS, "checkpoint": CHECKPOINTS, "episodes_from": (*DRAWN, *FIXED)}
        known |= {"norm": (*NORMS, "none"), "measured": (None, *SETTINGS)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                listed = " or ".join(map(repr, values))
                raise ValueError(f"A protocol needs {name}={listed}; given {getattr(self, name)!r}.")
        if (self.episodes_from, self.trained_on) == (CHALLENGE, "omniglot"):
            _check_background(self.trained_split)

    @property
    def setting(self) -> str:
        """Whether a prediction sees the other query images: as was measured, else as the normalisation says."""
        return self.measured or ("transductive" if self.norm == "transductive" else "inductive")


def judged_by(protocol: Protocol) -> dict[str, Any]:
    """Give what `protocol_hash` covers: the fields of the judging, and the setting, by name.

    Args:
      protocol: The protocol.

    Returns:
      Plain values.

    Example:
      >>> own = Protocol("glyphs", "vinyals", "test", 5, 1, 15, 1, 3, "transductive", 1000)
      >>> judged_by(own)["setting"], "norm" in judged_by(own)
      ('transductive', False)
    """
    fields = {name: value for name, value in vars(protocol).items() if name not in OF_THE_LEARNER}
    return {**fields, "setting": protocol.setting}


def everything_of(protocol: Protocol) -> dict[str, Any]:
    """Give what `fingerprint` covers: all that is known, with what the learner was trained on spelt out."""
    learner = {name: getattr(protocol, name) for name in OF_THE_LEARNER - {"measured"}}
    trained = {"trained_on": protocol.trained_on or protocol.dataset}
    trained["trained_split"] = protocol.trained_split or protocol.split
    return {**judged_by(protocol), **learner, **trained}


def protocol_hash(protocol: Protocol) -> str:
    """Hash what decides the judged tasks and how they are judged: SHA-256 of canonical JSON, 12 hex digits.

    Args:
      protocol: The protocol.

    Returns:
      12 hex digits; the same for learners that are judged in the same way (see `OF_THE_LEARNER`).

    Example:
      >>> own = Protocol("glyphs", "vinyals", "test", 5, 1, 15, 1, 3, "inductive", 1000)
      >>> protocol_hash(own) == protocol_hash(dataclasses.replace(own, eval_inner_steps=10))
      True
      >>> protocol_hash(own) == protocol_hash(dataclasses.replace(own, norm="transductive"))
      False
    """
    return _hash(judged_by(protocol))


def fingerprint(protocol: Protocol) -> str:
    """Hash the whole protocol, what is of the learner too: SHA-256 of canonical JSON, 12 hex digits.

    Args:
      protocol: The protocol.

    Returns:
      12 hex digits; the same only where nothing differs that a protocol tells.

    Example:
      >>> own = Protocol("glyphs", "vinyals", "test", 5, 1, 15, 1, 3, "inductive", 1000)
      >>> fingerprint(own) == fingerprint(dataclasses.replace(own, eval_inner_steps=10))
      False
    """
    return _hash(everything_of(protocol))


def differences(
    first: Protocol, second: Protocol, fields: Callable[[Protocol], dict[str, Any]] = judged_by
) -> dict[str, tuple[Any, Any]]:
    """Tell in what two protocols differ, with both values: in the judging, or in `fields=everything_of`."""
    one, other = fields(first), fields(second)
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


def evaluation_key(part: str, seed: int = EVALUATION_SEED) -> Key:
    """Give the key of the evaluation tasks of a part."""
    return jax.random.fold_in(jax.random.key(seed), PARTS.index(part))


def episodes_of(protocol: Protocol, dataset: Dataset, data_dir: Path | None = None, pool: str = "device") -> TaskSource:
    """Make the source of a protocol's tasks.

    Args:
      protocol: The protocol.
      dataset: What tasks are drawn of.
      data_dir: Where fixed episodes are.
      pool: Where the images are kept, "device" or "host".

    Returns:
      A `TaskSource`.

    Raises:
      ValueError: if the data cannot serve them; says which number does not fit.
      DataError: if fixed episodes are missing or damaged.
    """
    if protocol.episodes_from in DRAWN:
        spec = EpisodeSpec(protocol.ways, protocol.shots, protocol.queries)
        within, varying = protocol.within_alphabet, protocol.episodes_from == VARYING
        return task_source(dataset, protocol.part, spec, within_group=within, varying=varying, pool=pool)
    if data_dir is None:
        raise DataError(f"The tasks of {protocol.episodes_from} are not downloaded: give their folder by --data-dir.")
    source = FIXED[protocol.episodes_from](data_dir)
    # Fewer would be other tasks under the same name; more, the last one again, and an interval that is too narrow.
    if (number := number_of_tasks(source)) not in (None, protocol.episodes):
        raise ValueError(f"{protocol.episodes_from} is {number} tasks, not {protocol.episodes}.")
    return source


def episodes_hash(source: TaskSource, key: Key, num_tasks: int) -> str:
    """Hash the tasks that an evaluator meets: SHA-256 over inputs, targets and weights, 12 hex digits.

    Images are brought back to the bytes that they were made of, so that the hash does not depend on the last
    bit of a product; other inputs are hashed as they are.

    Args:
      source: Where tasks come from, with the size of the evaluation's episodes.
      key: That of the evaluator.
      num_tasks: Number of tasks.

    Returns:
      12 hex digits. One changed pixel gives others; in how many parts the tasks were drawn does not.

    Example:
      >>> from jaxmeta import load_sinusoid
      >>> source = task_source(load_sinusoid(), "test", EpisodeSpec(1, 5, 10))
      >>> len(episodes_hash(source, jax.random.key(0), 20))
      12
    """
    # As the evaluator does: the other key is for the learner.
    key = jax.random.split(key)[0]
    shapes = jax.eval_shape(lambda: source.sample(key, source.pool, source.spec, 1))
    at_once = max(1, min(num_tasks, _AT_ONCE // sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))))
    of_bytes = getattr(getattr(source.pool, "images", None), "dtype", None) == np.uint8
    described = [[leaf.dtype.name, *leaf.shape[1:]] for leaf in jax.tree.leaves(shapes)]
    digest = hashlib.sha256(json.dumps(described).encode())
    for first in range(0, num_tasks, at_once):
        episodes = jax.device_get(draw_tasks(source.sample, key, source.pool, source.spec, at_once, first))
        if of_bytes:
            episodes = episodes._replace(support=_as_bytes(episodes.support), query=_as_bytes(episodes.query))
        leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(episodes)]
        for task in range(min(at_once, num_tasks - first)):
            for leaf in leaves:
                digest.update(leaf[task])
    return digest.hexdigest()[:12]


def _as_bytes(batch):
    return batch._replace(inputs=np.rint(batch.inputs * np.float32(255)).astype(np.uint8))


def _hash(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_background(split: str) -> None:
    if split not in CHALLENGE_SPLITS:
        raise ValueError(
            f"The Omniglot challenge judges alphabets that split {split!r} trains on: it would tell nothing. Train a "
            f"run with --split {' or '.join(CHALLENGE_SPLITS)}."
        )
