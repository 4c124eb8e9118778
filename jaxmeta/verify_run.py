"""A run judged by verification: are two images of one class? By pairs of held-out classes, or of a published list."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmeta import checkpoint
from jaxmeta.candidate import open_run
from jaxmeta.config import Config, ConfigError, check_name
from jaxmeta.data import check_spec, load_pairs, sample_pairs
from jaxmeta.data.episodes import EpisodeSpec
from jaxmeta.folder import check_classes
from jaxmeta.judged_tasks import evaluation_key
from jaxmeta.judgement import protocol_of
from jaxmeta.plots import plot_roc
from jaxmeta.protocols import DRAWN_PAIRS, LISTED_PAIRS, OVER_FOLDS, Protocol, fingerprint, protocol_hash
from jaxmeta.request import Request
from jaxmeta.verification import area_under_roc, equal_error_rate, roc, verification_accuracy, verification_scores
from jaxmeta.workspace import Workspace, state_like

# Their output for a class does not depend on the other classes; what that output is.
SCORES = {
    "siamese": "the logit of p(same)",
    "relation": "the relation",
    "protonet": "minus the squared distance",
}
FOLDS = 10


class JudgedPairs(NamedTuple):
    """Pairs to judge by.

    Attributes:
      first: Images `[pairs, height, width, channels]` float.
      second: The other images.
      same: `[pairs]` bool, whether the two are of one class.
      folds: Number of folds, or `[pairs]` int, the fold of each.
      kind: Where they are from.
      seen: Whether the learner was trained on classes of theirs.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    folds: Any
    kind: str
    seen: bool


def verify_run(
    out: Path,
    *,
    pairs: int = 3000,
    listed: Path | None = None,
    split: str = "test",
    data_dir: Path | None = None,
    images: Path | None = None,
    latest: bool = False,
    picture: Path | None = None,
) -> dict[str, Any]:
    """Judge a run's best checkpoint by pairs of images of classes; of its training only if `split` is "train".

    Args:
      out: The run's folder.
      pairs: How many are drawn, half of one class and half of two.
      listed: A published list of pairs instead, as `load_pairs` reads it. Pairs with a class of training are left out.
      split: Where pairs are drawn: "test", "validation" or "train".
      data_dir: Where the run's data is now; None for the run's own.
      images: The folder of the list's images; None for that of the run's data.
      latest: Judge the latest checkpoint, not the best.
      picture: Where to draw the receiver operating characteristic, in a folder that exists; None for no picture.

    Returns:
      The result, as `jaxmeta verify` prints it: the accuracy over ten folds with a threshold that the others chose, its
      95 % interval, the area under the curve, the equal error rate, and whether classes of training were judged.

    Raises:
      ConfigError: if there is no run in the folder, it does not score pairs, or the picture has no folder.
      DataError: if the data or the list is missing or damaged.
      CheckpointError: if no checkpoint can be read.
    """
    _check(pairs, split, listed, images)
    own = open_run(out, Request(part=split, data_dir=data_dir))
    _check_learner(own)
    _check_picture(picture)
    trained_on = check_classes(out, own.dataset)
    chosen = _drawn(own, split, pairs) if listed is None else _listed(own, listed, images, trained_on)
    restored = checkpoint.restore(out / "checkpoints", state_like(own), best=not latest)
    learner, state = own.parts.learner, restored.train_state
    score = jax.jit(lambda *numbers: verification_scores(learner, *numbers))
    scores = np.asarray(score(state.meta_params, state.state, chosen.first, chosen.second))
    accuracy, curve = verification_accuracy(scores, chosen.same, folds=chosen.folds), roc(scores, chosen.same)
    if picture is not None:
        plot_roc(picture, {own.config.algorithm: curve})
    protocol = _protocol(own, chosen, split, listed, "latest" if latest else "best")
    digest = hashlib.sha256(np.rint(255 * np.stack([chosen.first, chosen.second])).astype(np.uint8).tobytes())
    return {
        "verification_accuracy": accuracy.mean,
        "ci95": accuracy.ci95,
        "area_under_roc": area_under_roc(curve),
        "equal_error_rate": equal_error_rate(curve),
        "pairs": len(scores),
        "folds": accuracy.per_task.shape[0],
        "pairs_from": chosen.kind,
        "pairs_hash": digest.hexdigest()[:12],
        "protocol": protocol_hash(protocol),
        "fingerprint": fingerprint(protocol),
        "setting": protocol.setting,
        "seen_classes": chosen.seen,
        "dataset": own.dataset.name,
        "algorithm": own.config.algorithm,
        "score": SCORES[own.config.algorithm],
        "model": own.config.model,
        "precision": own.config.precision,
        "checkpoint_step": int(state.step),
        "norm": own.norm,
        "seed": own.config.seed,
        "run": str(out),
        "damaged_checkpoints": list(restored.damaged),
    }


def _protocol(own: Workspace, chosen: JudgedPairs, split: str, listed: Path | None, checkpoint: str) -> Protocol:
    """Give the protocol of pairs: one image against one; what is of the learner as for its tasks."""
    judged = {"episodes": len(chosen.same), "interval": OVER_FOLDS, "checkpoint": checkpoint, "within_alphabet": False}
    judged |= {"ways": 2, "shots": 1, "queries": 1, "episodes_from": DRAWN_PAIRS, "eval_inner_steps": 0}
    if listed is not None:
        trained = {"trained_on": own.dataset.name, "trained_split": own.config.split}
        judged |= {"dataset": listed.name, "split": "listed", "episodes_from": LISTED_PAIRS, **trained}
    return dataclasses.replace(protocol_of(own, split), **judged)


def _check(pairs: int, split: str, listed: Path | None, images: Path | None) -> None:
    check_name("split", split, ("test", "validation", "train"))
    if listed is None and images is not None:
        raise ConfigError(f"--images is the folder of a list's images: leave it out without --list; given {images}.")
    if listed is None and (pairs < 2 * FOLDS or pairs % 2):
        raise ConfigError(
            f"--pairs is an even number, {2 * FOLDS} at least: half of one class and half of two in each of {FOLDS} "
            f"folds; given {pairs}."
        )


def _check_learner(own: Workspace) -> None:
    config: Config = own.config
    if own.dataset.kind != "classification":
        raise ConfigError(f"--dataset {own.dataset.name} is regression and has no classes to verify.")
    if config.algorithm not in SCORES:
        raise ConfigError(
            f"--algorithm {config.algorithm} gives no score to a pair of images by itself. Train a run with one of "
            f"{', '.join(SCORES)}."
        )
    if own.norm not in ("running", "none"):
        raise ConfigError(
            f"The run normalises by the statistics of a task (--norm {own.norm}), and a pair has one image to take "
            "them from: its score would say little. Train a run with --norm running."
        )


def _check_picture(picture: Path | None) -> None:
    if picture is not None and (picture.is_dir() or not picture.parent.is_dir()):
        what = "is a folder" if picture.is_dir() else f"is in {picture.parent}, which is no folder"
        raise ConfigError(f"--picture {picture} {what}; give the name of a PNG file in a folder that exists.")


def _drawn(own: Workspace, split: str, pairs: int) -> JudgedPairs:
    pool = own.dataset.splits[split]
    try:
        check_spec(EpisodeSpec(2, 1, 1), pool, f"split {split!r} of {own.dataset.name}")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    first, second, same = sample_pairs(evaluation_key(split), pool, pairs)
    names = own.dataset.class_names
    seen = not set(names["train"]).isdisjoint(names[split])
    kind = f"drawn from split {split}"
    return JudgedPairs(np.asarray(first), np.asarray(second), np.asarray(same), FOLDS, kind, seen)


def _listed(own: Workspace, listed: Path, images: Path | None, trained_on: Sequence[str]) -> JudgedPairs:
    recipe, folder = own.dataset.recipe, images or own.config.data_dir
    if recipe is None or folder is None:
        what = "cannot be imitated" if recipe is None else "are not a folder: give --images"
        raise ConfigError(f"--list {listed} needs its images; those of {own.dataset.name} {what}.")
    # Also as a list names the classes of a folder with groups: by the last part.
    known = {name for full in trained_on for name in (full, full.rpartition("/")[2])}
    found = load_pairs(listed, folder, recipe=recipe, without=known)
    folds = found.fold if len(np.unique(found.fold)) > 1 else FOLDS
    return JudgedPairs(found.first, found.second, found.same, folds, f"list {listed.name}", seen=False)
