"""Verification of pairs: curves and accuracies against scikit-learn and by hand, and where pairs come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from jaxmeta import (
    ClassPool,
    area_under_roc,
    embedding_scores,
    equal_error_rate,
    from_function,
    roc,
    sample_pairs,
    siamese,
    verification_accuracy,
    verification_scores,
)
from jaxmeta.data import DataError
from jaxmeta.plots import plot_roc

KEY = jax.random.key(0)
IDENTITY = from_function(lambda key, x: {}, lambda params, x: x)


@pytest.fixture(scope="module")
def scored():
    """Scores with ties, and whether the pairs are the same."""
    rng = np.random.default_rng(3)
    same = rng.random(60) < 0.4
    return np.round(rng.normal(size=60) + 1.2 * same, 1), same


def test_roc_equals_that_of_sklearn(scored):
    scores, same = scored
    curve = roc(scores, same)
    for ours, theirs in zip(curve, sklearn_metrics.roc_curve(same, scores, drop_intermediate=False), strict=True):
        np.testing.assert_allclose(ours, theirs)
    np.testing.assert_allclose(area_under_roc(curve), sklearn_metrics.roc_auc_score(same, scores))


def test_equal_error_rate(scored):
    rate = equal_error_rate(roc(*scored))
    curve = roc(*scored)
    # On the curve, and on the line of equal errors.
    np.testing.assert_allclose(np.interp(rate, curve.false_positive_rate, curve.true_positive_rate), 1 - rate)
    # One of five different pairs above all same ones but one, of five: 1 in 5 either way.
    same = np.array([True, False, True, True, True, False, True, False, False, False])
    np.testing.assert_allclose(equal_error_rate(roc(-np.arange(10.0), same)), 0.2)


def test_the_threshold_is_not_chosen_on_the_fold_it_is_judged_on():
    """Each fold is told apart by a threshold of its own, and all by 0.25; the other fold's errs on half."""
    same = np.array([True, False, True, False])
    scores = np.array([0.9, 0.1, 0.4, -0.4])
    assert area_under_roc(roc(scores, same)) == 1.0
    result = verification_accuracy(scores, same, folds=2)
    assert result.per_task.tolist() == [0.5, 0.5] and result.mean == 0.5


def test_verification_accuracy_of_noise_and_of_certainty(scored):
    same = np.arange(200) % 2 == 0  # In turn: every fold has its share of both.
    certain = verification_accuracy(same.astype(float), same)
    assert certain.mean == 1.0 and certain.ci95 == 0.0 and len(certain.per_task) == 10
    noise = verification_accuracy(np.random.default_rng(4).normal(size=200), same)
    assert 0.35 < noise.mean < 0.65 and noise.ci95 > 0


def test_curves_refuse_what_cannot_be_judged(scored):
    scores, same = scored
    with pytest.raises(ValueError, match="pairs of both kinds; given 60 same and 0 different"):
        roc(scores, np.ones(60, bool))
    with pytest.raises(ValueError, match="same .pairs. bool; given .60. and int64"):
        roc(scores, same.astype(int))
    with pytest.raises(ValueError, match="1 of 60 scores"):
        roc(np.where(np.arange(60) == 3, np.nan, scores), same)
    with pytest.raises(ValueError, match="given 31 folds"):
        verification_accuracy(scores, same, folds=31)


def test_pairs_are_what_they_say():
    counts = np.array([2, 5, 3, 5], np.int32)
    # The pixels of an image are its class and its number in it.
    numbers = np.stack(np.meshgrid(np.arange(4), np.arange(5), indexing="ij"), -1).astype(np.uint8)
    pool = ClassPool(numbers[:, :, None, None, :], counts)
    first, second, same = jax.jit(sample_pairs, static_argnums=2)(jax.random.key(1), pool, 2000)
    assert first.shape == (2000, 1, 1, 2) and same.tolist() == [True] * 1000 + [False] * 1000
    (class_one, image_one), (class_two, image_two) = (
        np.rint(np.asarray(images).reshape(2000, 2) * 255).astype(int).T for images in (first, second)
    )
    np.testing.assert_array_equal(class_one == class_two, same)
    assert (image_one < counts[class_one]).all() and (image_two < counts[class_two]).all()
    assert (image_one != image_two)[:1000].all()
    # Every ordered pair of images of a class comes, and every pair of classes.
    assert len(set(zip(class_one[:1000], image_one[:1000], image_two[:1000], strict=True))) == 2 + 20 + 6 + 20
    assert len(set(zip(class_one[1000:], class_two[1000:], strict=True))) == 12


def test_pools_without_pairs_are_refused():
    images = np.zeros([3, 4, 1, 1, 1], np.uint8)
    with pytest.raises(DataError, match="two images of every class.* given 1 of 3 .* class 1 with 1.* Leave such"):
        sample_pairs(KEY, ClassPool(images, np.array([4, 1, 2])), 4)
    with pytest.raises(DataError, match="even; given 3"):
        sample_pairs(KEY, ClassPool(images, np.array([4, 4, 4])), 3)
    with pytest.raises(DataError, match="two classes .* given 1"):
        sample_pairs(KEY, ClassPool(images[:1], np.array([4])), 4)


def test_scores_of_pairs_by_hand():
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=[2, 5, 3]).astype(np.float32)
    alpha = np.array([-1.0, 0.5, -2.0], np.float32)
    params = {"body": {}, "head": {"alpha": jnp.asarray(alpha), "beta": jnp.float32(0.25)}}
    # Three at once, then the two that are left.
    scores = verification_scores(siamese(IDENTITY, ways=4), params, {}, first, second, batch_size=3)
    np.testing.assert_allclose(scores, np.abs(first - second) @ alpha + 0.25, rtol=1e-5)
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(embedding_scores(IDENTITY, {"body": {}}, {}, first, second), cosines, rtol=1e-5)
    with pytest.raises(ValueError, match="as many first images as second"):
        embedding_scores(IDENTITY, {"body": {}}, {}, first, second[:4])


def test_a_picture_of_curves(tmp_path, scored):
    plot_roc(tmp_path / "roc.png", {"siamese": roc(*scored), "cosine": roc(-scored[0], scored[1])})
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")
