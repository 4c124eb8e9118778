"""Protocols: everything that says how a number was got, as a value and as a hash.

A field is of the judging (which tasks, what is shown of them, how the values become one number) or of the learner that
is judged (what it was trained on, its steps, its normalisation, its precision). Two hashes stand beside every number:
`protocol_hash` covers the judging, so that all who answer the same question share it, and `fingerprint` covers the
whole protocol, so that two numbers with one fingerprint were got alike in all that a protocol tells. The algorithm, the
network and its rates are what is compared: they stand beside a number, and are not in it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmeta.algorithms import NORMS
from jaxmeta.data import TaskSource, challenge_source
from jaxmeta.data.omniglot_splits import CHALLENGE_SPLITS

# Every run is judged on the same tasks, whatever seed it was trained with.
EVALUATION_SEED = 20240229
PARTS = ("train", "validation", "test")
INTERVALS = OVER_TASKS, OVER_FOLDS = "t-95 over tasks", "t-95 over folds"
CHECKPOINTS = ("best", "latest")
# Where episodes come from: drawn of the dataset's classes, or fixed ones of their own.
DRAWN = SAMPLED, VARYING = "sampled", "varying"
CHALLENGE = "omniglot-challenge"
FIXED: dict[str, Callable[[Path], TaskSource]] = {CHALLENGE: challenge_source}
# Of verification: two images each, drawn or of a published list.
PAIRS = DRAWN_PAIRS, LISTED_PAIRS = "pairs", "listed pairs"
SETTINGS = ("inductive", "transductive")
# What becomes of the characters of Omniglot, whose every quarter turn is a class of its own in the pool: they stay so
# (Vinyals et al.), each class of a task is a character turned by chance (MAML), or all are upright (Reptile).
TURNS = TURNED_CLASSES, TURNED_BY_CHANCE, UPRIGHT = "classes", "by chance", "none"
# Of the learner, not of the judging. The inner steps are here, since nobody who judges a learner by its predictions
# needs to know how many gradient steps it takes, or whether any; and the normalisation, of which the judge needs to
# know only whether a prediction sees the other queries: the setting.
_AS_TRAINED = ("norm", "ways", "shots", "queries", "within_alphabet", "episodes_from")
OF_THE_LEARNER = frozenset(
    {"trained_on", "trained_split", "train_inner_steps", "eval_inner_steps", "norm", "measured", "precision", "augment"}
    | {f"train_{name}" for name in _AS_TRAINED}
)
# Fields of the judging that came later: out of `protocol_hash` while they say what was always done, so that published
# hashes stand.
_ADDED_LATER = {"turns": TURNED_CLASSES, "image_size": None}
_LEAST = {"ways": 1, "shots": 1, "queries": 1, "episodes": 2, "ensemble": 1, "eval_inner_steps": 0, "seed": 0}


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
      episodes_from: "sampled"; "varying", see `sample_varying`; the name of fixed episodes: a row of `FIXED`; or
        pairs, see `verify_run`.
      checkpoint: "best" by validation, or "latest".
      within_alphabet: Whether the classes of a task are of one alphabet.
      trained_on: The dataset of training; "" if it is the one that is judged. Of the learner.
      measured: The setting that the leak test found; None before it was made. Of the learner, as the
        property `setting` takes its place in the hashes.
      trained_split: The division of the classes of that dataset; "" if it is the one that is judged. Of the learner.
      precision: How exactly the network computes. Of the learner.
      turns: "classes", "by chance" or "none": see `TURNS`; nothing to data whose classes are not turned.
      image_size: Side of the images, where it is not what is usual for the dataset.
      train_norm: Whose statistics normalised in training; this and all that follow: None, as it is judged. Of the
        learner.
      train_ways, train_shots, train_queries, train_within_alphabet, train_episodes_from: The tasks of training. Of
        the learner.
      augment: What changed the tasks of training. Of the learner.
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
    interval: str = OVER_TASKS
    seed: int = EVALUATION_SEED
    episodes_from: str = "sampled"
    checkpoint: str = "best"
    within_alphabet: bool = False
    trained_on: str = ""
    measured: str | None = None
    trained_split: str = ""
    precision: str = "float32"
    turns: str = TURNED_CLASSES
    image_size: int | None = None
    train_norm: str | None = None
    train_ways: int | None = None
    train_shots: int | None = None
    train_queries: int | None = None
    train_within_alphabet: bool | None = None
    train_episodes_from: str | None = None
    augment: tuple[str, ...] = ()

    def __post_init__(self):
        """Refuse a protocol that nothing can be judged by."""
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"A protocol needs {name} of at least {least}; given {getattr(self, name)}.")
        known = {
            "part": PARTS,
            "interval": INTERVALS,
            "checkpoint": CHECKPOINTS,
            "episodes_from": (*DRAWN, *FIXED, *PAIRS),
        }
        known |= {"norm": (*NORMS, "none"), "measured": (None, *SETTINGS), "turns": TURNS}
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
    for name in _AS_TRAINED:
        told = getattr(protocol, f"train_{name}")
        trained[f"train_{name}"] = getattr(protocol, name) if told is None else told
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
    fields = judged_by(protocol)
    said = {name: value for name, value in fields.items() if (name, value) not in _ADDED_LATER.items()}
    return _hash(said)


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


def _hash(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_background(split: str) -> None:
    if split not in CHALLENGE_SPLITS:
        raise ValueError(
            f"The Omniglot challenge judges alphabets that split {split!r} trains on: it would tell nothing. Train a "
            f"run with --split {' or '.join(CHALLENGE_SPLITS)}."
        )
