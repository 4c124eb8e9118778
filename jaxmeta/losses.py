"""Losses and accuracies of one task, weighted by example."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Average over real examples: `sum_n w_n v_n / sum_n w_n`, and 0 if there are none.

    Args:
      values: `[examples]`.
      weights: `[examples]`.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> float(weighted_mean(jnp.array([1.0, 3.0, 9.0]), jnp.array([1.0, 1.0, 0.0])))
      2.0
    """
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-6)


def cross_entropy(outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Average the negative log-probability of the true class: `-mean_n log softmax(z_n)[y_n]`.

    Args:
      outputs: Logits `[examples, ways]`.
      targets: Class numbers `[examples]` int32 in [0, ways).
      weights: `[examples]`.

    Returns:
      A scalar, in nats.

    Raises:
      ValueError: if the targets are not integers.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(cross_entropy(jnp.zeros([2, 4]), jnp.array([0, 3]), jnp.ones(2))), 4)
      1.3863
    """
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"cross_entropy needs class numbers as targets, an integer type; given {targets.dtype}.")
    return weighted_mean(optax.softmax_cross_entropy_with_integer_labels(outputs, targets), weights)


def accuracy(outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Compute the share of examples whose largest logit is at the true class, in [0, 1], or NaN where a logit is NaN.

    An adaptation that diverged has no accuracy: to count it as the first class would be to call it guessing.

    Args:
      outputs: Logits `[examples, ways]`.
      targets: Class numbers `[examples]` int32.
      weights: `[examples]`.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> float(accuracy(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2)))
      0.5
    """
    share = weighted_mean((jnp.argmax(outputs, -1) == targets).astype(outputs.dtype), weights)
    lost = jnp.isnan(outputs).any(-1) & (weights > 0)
    return jnp.where(lost.any(), jnp.nan, share)


def mean_squared_error(outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Average the squared error over examples and outputs: `mean_n mean_d (z_nd - y_nd)^2`.

    Args:
      outputs: `[examples, outputs]`.
      targets: `[examples, outputs]`.
      weights: `[examples]`.

    Returns:
      A scalar, in squared units of the targets.

    Raises:
      ValueError: if outputs and targets differ in shape (they would broadcast silently).

    Example:
      >>> import jax.numpy as jnp
      >>> float(mean_squared_error(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [4.0]]), jnp.ones(2)))
      2.0
    """
    if outputs.shape != targets.shape:
        raise ValueError(
            "mean_squared_error needs outputs and targets of one shape; given "
            f"{list(outputs.shape)} and {list(targets.shape)}."
        )
    squared = jnp.square(outputs - targets)
    return weighted_mean(jnp.mean(squared.reshape(squared.shape[0], -1), -1), weights)


Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Criterion(NamedTuple):
    """What a task is judged by.

    Attributes:
      loss: `(outputs, targets, weights) -> scalar`, differentiated in both loops.
      metrics: Functions of the same arguments by name; the first is the headline.
      regresses: Whether targets are values and not classes, as they are with `mean_squared_error` anyway: what a
        learner that can do both goes by, and one that cannot refuses.
    """

    loss: Loss
    metrics: dict[str, Loss]
    regresses: bool = False


CRITERIA = {
    "classification": Criterion(cross_entropy, {"accuracy": accuracy, "loss": cross_entropy}),
    "regression": Criterion(mean_squared_error, {"mse": mean_squared_error, "loss": mean_squared_error}, True),
}
