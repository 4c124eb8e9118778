"""What a task looks like, as numbers: so that what worked on similar tasks can be found before anything is trained.

Every function is for ONE task, pure, and respects the weights of its `Batch`; `vmap` gives those of many.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxmeta.base import Batch
from jaxmeta.losses import weighted_mean

TINY = 1e-8


class Pca(NamedTuple):
    """Principal components.

    Attributes:
      mean: `[inputs]`.
      directions: `[components, inputs]`, orthonormal rows; the first explains the most.
      variances: `[components]`, of the examples along each (divided by n - 1).
    """

    mean: jax.Array
    directions: jax.Array
    variances: jax.Array


def fit_pca(inputs: jax.Array, components: int) -> Pca:
    """Find the directions of the greatest variance, by the singular values of the centred examples.

    `X - m = U S V^T`: directions are the first rows of V^T, variances `S^2 / (n - 1)`

    Args:
      inputs: `[examples, ...]`; each is flattened.
      components: How many directions.

    Returns:
      A `Pca`; the largest entry of each direction is positive, so that it does not depend on the machine.

    Raises:
      ValueError: more components than examples less one, or than inputs; inputs that are not finite (outside `jit`).

    Example:
      >>> pca = fit_pca(jnp.array([[0.0, 0.0], [2.0, 2.0], [4.0, 4.0]]), 1)
      >>> pca.directions.round(3).tolist(), pca.variances.round(3).tolist()
      ([[0.7070000171661377, 0.7070000171661377]], [8.0])

    Source: Pearson, 1901, "On lines and planes of closest fit to systems of points in space".
    """
    flat = inputs.reshape(inputs.shape[0], -1)
    most = min(flat.shape[0] - 1, flat.shape[1])
    if not 1 <= components <= most:
        raise ValueError(
            f"{flat.shape[0]} examples of {flat.shape[1]} numbers have at most {most} principal components; given "
            f"{components}. Take fewer, or give more examples."
        )
    if not isinstance(flat, Tracer) and not bool(jnp.isfinite(flat).all()):
        raise ValueError("fit_pca needs finite inputs; some of those given are infinite or not a number.")
    mean = flat.mean(0)
    _, singular, rows = jnp.linalg.svd(flat - mean, full_matrices=False)
    rows = rows[:components]
    largest = jnp.take_along_axis(rows, jnp.abs(rows).argmax(1, keepdims=True), 1)
    return Pca(mean, rows * jnp.sign(largest), singular[:components] ** 2 / (flat.shape[0] - 1))


def project(pca: Pca, inputs: jax.Array, *, whiten: bool = False) -> jax.Array:
    """Describe examples by their principal components: `V (x - m)`.

    Args:
      pca: From `fit_pca`.
      inputs: `[examples, ...]`.
      whiten: Divide each component by its standard deviation.

    Returns:
      `[examples, components]`.

    Example:
      >>> pca = fit_pca(jnp.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]), 1)
      >>> project(pca, jnp.array([[5.0, 1.0]])).tolist()
      [[3.0]]
    """
    found = (inputs.reshape(inputs.shape[0], -1) - pca.mean) @ pca.directions.T
    return found / jnp.sqrt(pca.variances + TINY) if whiten else found


def statistical_features(batch: Batch, ways: int) -> jax.Array:
    """Describe a task by its size and the shape of its data.

    The logarithm of the number of examples; the entropy of the classes over that of equal ones; mean, standard
    deviation, skewness and kurtosis (less 3) of all inputs; and how far classes lie apart: the logarithm of the mean
    squared distance between the means of classes over that of the examples from their own.

    Args:
      batch: The labelled examples of a task, inputs of any shape.
      ways: Most classes.

    Returns:
      `[7]`.

    Raises:
      ValueError: targets that are no classes (looked into outside `jit`).

    Example:
      >>> batch = Batch(jnp.array([[0.0], [0.0], [4.0], [4.0]]), jnp.array([0, 0, 1, 1]), jnp.ones(4))
      >>> [round(float(value), 3) for value in statistical_features(batch, 2)[:4]]
      [1.386, 1.0, 2.0, 2.0]

    Source: Michie, Spiegelhalter and Taylor, 1994, "Machine Learning, Neural and Statistical Classification";
    Vanschoren, 2018, arXiv 1810.03548, table 1.
    """
    _check_targets(batch, ways)
    flat, weights = batch.inputs.reshape(batch.inputs.shape[0], -1), batch.weights
    number = jnp.maximum(weights.sum(), TINY)
    mean = weighted_mean(flat.mean(1), weights)
    powers = [weighted_mean(((flat - mean) ** power).mean(1), weights) for power in (2, 3, 4)]
    deviation = jnp.sqrt(powers[0] + TINY)
    means, shares = _class_means(flat, batch, ways)
    entropy = -jnp.sum(shares * jnp.log(shares + TINY)) / jnp.log(float(max(ways, 2)))
    within = weighted_mean(jnp.sum((flat - means[batch.targets]) ** 2, 1), weights)
    between = jnp.sum(shares * jnp.sum((means - shares @ means) ** 2, 1))
    apart = jnp.log((between + TINY) / (within + TINY))
    shape = mean, deviation, powers[1] / deviation**3, powers[2] / deviation**4 - 3
    return jnp.stack([jnp.log(number), entropy, *shape, jnp.clip(apart, -10.0, 10.0)])


def pca_features(pca: Pca, batch: Batch) -> jax.Array:
    """Describe a task by where its examples lie among principal components: the mean and the spread along each.

    Args:
      pca: Fitted to other tasks.
      batch: The examples of a task.

    Returns:
      `[2 * components]`: means in standard deviations of the fitted examples, then the logarithms of the task's own
      standard deviations, in the same unit.

    Example:
      >>> pca = fit_pca(jnp.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]), 1)
      >>> batch = Batch(jnp.array([[4.0, 1.0], [4.0, 1.0]]), jnp.zeros(2, int), jnp.ones(2))
      >>> round(float(pca_features(pca, batch)[0]), 3)
      1.0
    """
    found = project(pca, batch.inputs, whiten=True)
    weights = batch.weights[:, None] / jnp.maximum(batch.weights.sum(), TINY)
    mean = jnp.sum(weights * found, 0)
    variance = jnp.sum(weights * (found - mean) ** 2, 0)
    return jnp.concatenate([mean, 0.5 * jnp.log(variance + 1e-4)])


def landmark_features(batch: Batch, ways: int) -> jax.Array:
    """Describe a task by how well two simple classifiers do on it, each example predicted from the others.

    Leave-one-out accuracy of the nearest example, and of the nearest class mean.

    Args:
      batch: The labelled examples of a task.
      ways: Most classes.

    Returns:
      `[2]`, each in [0, 1]; an example that is the only one of its class counts as wrong.

    Raises:
      ValueError: as `statistical_features`.

    Example:
      >>> batch = Batch(jnp.array([[0.0], [1.0], [9.0], [8.0]]), jnp.array([0, 0, 1, 1]), jnp.ones(4))
      >>> landmark_features(batch, 2).tolist()
      [1.0, 1.0]

    Source: Pfahringer, Bensusan and Giraud-Carrier, 2000, "Meta-Learning by Landmarking Various Learning Algorithms".
    """
    _check_targets(batch, ways)
    flat, weights, targets = batch.inputs.reshape(batch.inputs.shape[0], -1), batch.weights, batch.targets
    far = jnp.inf
    # The differences themselves, as in `nearest`.
    distances = jnp.sum((flat[:, None] - flat) ** 2, -1)
    other = (weights > 0)[None, :] & ~jnp.eye(flat.shape[0], dtype=bool)
    nearest = targets[jnp.where(other, distances, far).argmin(1)]
    of_class = (targets[:, None] == jnp.arange(ways)) * weights[:, None]
    sums, counts = of_class.T @ flat, of_class.sum(0)
    # The mean of an example's own class is taken without it.
    own = jax.nn.one_hot(targets, ways) * weights[:, None]
    left = counts - own
    means = (sums - own[..., None] * flat[:, None]) / jnp.maximum(left, TINY)[..., None]
    to_means = jnp.where(left > 0, jnp.sum((flat[:, None] - means) ** 2, -1), far)
    has_other = jnp.take_along_axis(left, targets[:, None], 1)[:, 0] > 0
    right = [(found == targets) & has_other for found in (nearest, to_means.argmin(1))]
    return jnp.stack([weighted_mean(one.astype(flat.dtype), weights) for one in right])


def task_features(pca: Pca, batch: Batch, ways: int) -> jax.Array:
    """Describe a task by everything above: statistics, principal components, landmarks.

    Args:
      pca: Fitted to other tasks.
      batch: The labelled examples of a task.
      ways: Most classes.

    Returns:
      `[9 + 2 * components]`.

    Raises:
      ValueError: as `statistical_features`.

    Example:
      >>> pca = fit_pca(jnp.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]), 1)
      >>> batch = Batch(jnp.array([[4.0, 1.0], [3.0, 1.0]]), jnp.array([0, 1]), jnp.ones(2))
      >>> task_features(pca, batch, 2).shape
      (11,)
    """
    parts = statistical_features(batch, ways), landmark_features(batch, ways), pca_features(pca, batch)
    return jnp.concatenate(parts)


def _check_targets(batch: Batch, ways: int) -> None:
    targets = batch.targets
    if not isinstance(targets, Tracer) and not bool(((targets >= 0) & (targets < ways)).all()):
        raise ValueError(f"Features of a task of {ways} ways need targets from 0 to {ways - 1}; given {targets}.")


def _class_means(flat: jax.Array, batch: Batch, ways: int) -> tuple[jax.Array, jax.Array]:
    """Give the mean `[ways, inputs]` and the share `[ways]` of each class."""
    of_class = (batch.targets[:, None] == jnp.arange(ways)) * batch.weights[:, None]
    counts = of_class.sum(0)
    return (of_class.T @ flat) / jnp.maximum(counts, TINY)[:, None], counts / jnp.maximum(counts.sum(), TINY)
