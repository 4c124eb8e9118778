"""Verification: are two images of one class? Scores of pairs, and how well they tell.

A pair is called the same if its score is at least a threshold. The curve over all thresholds is the
receiver operating characteristic; a single accuracy needs a threshold that was chosen elsewhere.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.base import Estimate, MetaLearner, Model, PyTree, example_batch
from jaxmeta.metrics import estimate


class Roc(NamedTuple):
    """A receiver operating characteristic, from the highest threshold to the lowest.

    Attributes:
      false_positive_rate: `[points]`, share of the different pairs that are called the same.
      true_positive_rate: `[points]`, share of the same pairs that are.
      thresholds: `[points]`; the first is infinite, where nothing is called the same.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


def verification_scores(
    learner: MetaLearner,
    meta_params: PyTree,
    state: PyTree,
    first: jax.Array,
    second: jax.Array,
    *,
    batch_size: int = 64,
) -> jax.Array:
    """Score pairs by a learner: its output for the class of the first image, shown the second.

    Each pair is a task of one class and one image, to which the learner adapts. Of use for learners
    whose output for a class does not depend on the other classes: `siamese` (the logit of
    p(same)), `relation`, and `protonet` (minus the squared distance). They should normalise by
    norm="running": "inductive" would use the statistics of the one first image.

    Args:
      learner: The learner.
      meta_params: Its meta-parameters.
      state: Its state.
      first: Images `[pairs, ...]` float.
      second: The other images.
      batch_size: Pairs computed at once.

    Returns:
      Scores `[pairs]`, the higher the more alike.

    Raises:
      ValueError: if the two differ in shape.

    Example:
      >>> from jaxmeta import from_function, protonet
      >>> learner = protonet(from_function(lambda key, x: {}, lambda params, x: x), ways=5)
      >>> first, second = jnp.array([[0.0], [0.0]]), jnp.array([[1.0], [3.0]])
      >>> verification_scores(learner, {"body": {}, "head": {}}, {}, first, second).tolist()
      [-1.0, -9.0]

    Source: Koch, Zemel and Salakhutdinov, 2015; Huang et al., 2007, "Labeled Faces in the Wild".
    """
    _check_images(first, second)
    # Adapting and predicting draw no noise that a score should have.
    key, target = jax.random.key(0), jnp.zeros([1], jnp.int32)

    def score(pair):
        one, other = (example_batch(image[None], target) for image in pair)
        return learner.predict(learner.adapt(meta_params, state, one, key), other, key)[0, 0]

    return jax.lax.map(score, (jnp.asarray(first), jnp.asarray(second)), batch_size=batch_size)


def embedding_scores(
    model: Model, params: PyTree, state: PyTree, first: jax.Array, second: jax.Array, *, batch_size: int = 64
) -> jax.Array:
    """Score pairs by an embedding: `cosine(f(a), f(b))`, in [-1, 1].

    Args:
      model: The embedding f; it normalises by the statistics of its state.
      params: Its parameters.
      state: Its state.
      first: Images `[pairs, ...]` float.
      second: The other images.
      batch_size: Pairs computed at once.

    Returns:
      Scores `[pairs]`; 0 where the features are all zero.

    Raises:
      ValueError: if the two differ in shape.

    Example:
      >>> from jaxmeta import from_function
      >>> model = from_function(lambda key, x: {}, lambda params, x: x)
      >>> first, second = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[3.0, 0.0], [0.0, 2.0]])
      >>> embedding_scores(model, {"body": {}, "head": {}}, {}, first, second).tolist()
      [1.0, 0.0]
    """
    _check_images(first, second)

    def unit(image):
        features = model.embed(params, state, image[None], key=None, train=False, weights=None)[0].reshape(-1)
        return features / jnp.maximum(jnp.linalg.norm(features), 1e-12)

    pairs = jnp.asarray(first), jnp.asarray(second)
    return jax.lax.map(lambda pair: jnp.dot(*map(unit, pair)), pairs, batch_size=batch_size)


def roc(scores, same) -> Roc:
    """Compute the receiver operating characteristic, one point for each different score.

    `false positive rate = #(different, score >= t) / #different`, and the true one of the same pairs.

    Args:
      scores: `[pairs]`, the higher the more alike.
      same: `[pairs]` bool.

    Returns:
      A `Roc`, from (0, 0) to (1, 1).

    Raises:
      ValueError: if the shapes differ, a score is not a number, or one kind of pair is missing.

    Example:
      >>> curve = roc([0.9, 0.6, 0.4, 0.1], [True, False, True, False])
      >>> curve.false_positive_rate.tolist(), curve.true_positive_rate.tolist()
      ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])

    Source: Fawcett, 2006, "An introduction to ROC analysis".
    """
    scores, same = _checked(scores, same)
    order = np.argsort(-scores, kind="stable")
    scores, same = scores[order], same[order]
    # Pairs of one score fall on one side of any threshold together.
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    hits, alarms = np.cumsum(same)[last], np.cumsum(~same)[last]
    return Roc(np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1]), np.append(np.inf, scores[last]))


def area_under_roc(curve: Roc) -> float:
    """Compute the area under the curve: the chance that a same pair scores above a different one (a tie is half).

    Args:
      curve: From `roc`.

    Returns:
      The area, 0.5 for guessing and 1 for scores that tell all pairs apart.

    Example:
      >>> area_under_roc(roc([0.9, 0.6, 0.4, 0.1], [True, False, True, False]))
      0.75

    Source: Fawcett, 2006, "An introduction to ROC analysis".
    """
    return float(np.trapezoid(curve.true_positive_rate, curve.false_positive_rate))


def equal_error_rate(curve: Roc) -> float:
    """Find the rate at which as many different pairs are accepted as same pairs are rejected.

    `false positive rate = 1 - true positive rate`, on the straight lines between the points.

    Args:
      curve: From `roc`.

    Returns:
      The rate, 0.5 for guessing and 0 for scores that tell all pairs apart.

    Example:
      >>> equal_error_rate(roc([0.9, 0.6, 0.4, 0.1], [True, False, True, False]))
      0.5

    Source: Fawcett, 2006, "An introduction to ROC analysis".
    """
    excess = curve.false_positive_rate + curve.true_positive_rate - 1
    return float(np.interp(0.0, excess, curve.false_positive_rate))


def verification_accuracy(scores, same, *, folds=10) -> Estimate:
    """Compute the accuracy with a threshold chosen by cross-validation, as for Labeled Faces in the Wild.

    The pairs are divided into folds, each with its share of same and of different pairs. On each
    fold those thresholds are judged that are the most accurate on all the others: it plays no part
    in the choice. Of several best ones the middle one is taken.

    Args:
      scores: `[pairs]`, the higher the more alike.
      same: `[pairs]` bool.
      folds: Number of folds; within a kind, pair i is in fold i modulo folds. Or `[pairs]` int, the fold of each, as
        `load_pairs` reads it of a published list.

    Returns:
      An `Estimate` over folds: `per_task` is the accuracy on each. (The protocol for faces gives the
      standard error of the mean beside it; here it is the 95 % interval.)

    Raises:
      ValueError: as `roc`, and if there are fewer than 2 folds, or a fold would lack one kind of pair.

    Example:
      >>> same = np.arange(40) >= 20
      >>> verification_accuracy(np.where(same, 0.9, 0.2), same).mean
      1.0

    Source: Huang, Ramesh, Berg and Learned-Miller, 2007, "Labeled Faces in the Wild", section 4.
    """
    scores, same = _checked(scores, same)
    fold = _folds(same, folds)
    right = []
    for number in np.unique(fold):
        here = fold == number
        called = scores[here] >= _best_threshold(scores[~here], same[~here])
        right.append((called == same[here]).mean())
    return estimate(right)


def _folds(same: np.ndarray, folds) -> np.ndarray:
    """Give the fold of each pair; refuse folds that lack one kind of pair."""
    if np.ndim(folds):
        fold = np.asarray(folds)
        numbers = np.unique(fold).tolist()
        whole = fold.shape == same.shape and len(numbers) >= 2
        if not whole or any(np.unique(same[fold == number]).size < 2 for number in numbers):
            raise ValueError(
                f"verification_accuracy needs the fold of each of {same.size} pairs, of two folds or more with a same "
                f"and a different pair in each; given {list(fold.shape)} with the folds {numbers}."
            )
        return fold
    fewest = min(same.sum(), (~same).sum())
    if not 2 <= folds <= fewest:
        raise ValueError(
            f"verification_accuracy needs 2 folds or more, and a same and a different pair in each; given {folds} "
            f"folds for {same.sum()} same and {(~same).sum()} different pairs. Use at most {fewest} folds."
        )
    return np.where(same, np.cumsum(same) - 1, np.cumsum(~same) - 1) % folds


def _best_threshold(scores, same) -> float:
    curve = roc(scores, same)
    positives = same.sum()
    right = curve.true_positive_rate * positives + (1 - curve.false_positive_rate) * (same.size - positives)
    best = np.flatnonzero(np.isclose(right, right.max(), rtol=0, atol=1e-6))
    chosen = best[len(best) // 2]
    if chosen in (0, len(right) - 1):
        return float("inf") if chosen == 0 else -float("inf")
    # Half way to the next score below, which is called different.
    return float(curve.thresholds[chosen] + curve.thresholds[chosen + 1]) / 2


def _checked(scores, same) -> tuple[np.ndarray, np.ndarray]:
    scores, same = np.asarray(scores, np.float64), np.asarray(same)
    if scores.ndim != 1 or scores.shape != same.shape or same.dtype != bool:
        raise ValueError(
            f"A curve needs scores [pairs] and same [pairs] bool; given {list(scores.shape)} and "
            f"{same.dtype}{list(same.shape)}."
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite numbers.")
    if not 0 < same.sum() < same.size:
        raise ValueError(
            f"A curve needs pairs of both kinds; given {same.sum()} same and {(~same).sum()} different ones. "
            "Draw them with sample_pairs."
        )
    return scores, same


def _check_images(first, second) -> None:
    if jnp.shape(first) != jnp.shape(second):
        raise ValueError(
            f"Pairs need as many first images as second ones, of one size; given {list(jnp.shape(first))} and "
            f"{list(jnp.shape(second))}."
        )
