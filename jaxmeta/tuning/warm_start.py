"""Which configuration worked on similar tasks: a warm start for a new one, before anything is trained on it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Experience(NamedTuple):
    """What was tried on earlier tasks.

    Attributes:
      features: `[tasks, features]`, of `task_features` for example.
      scores: `[tasks, configurations]`, the higher the better; not a number where nothing was tried.
    """

    features: jax.Array
    scores: jax.Array


def expected_scores(experience: Experience, features: jax.Array, *, width: float = 1.0) -> jax.Array:
    """Expect of each configuration what it gave on similar tasks.

    `s_c(t) = sum_u k(t, u) s_uc / sum_u k(t, u)`, `k(t, u) = exp(-d(t, u)^2 / (2 width^2))`

    d is the distance of standardised features, in units of the mean distance between earlier tasks.

    Args:
      experience: Earlier tasks.
      features: `[features]` of a new one.
      width: How near a task must be to count; infinity is the mean of all.

    Returns:
      `[configurations]`; a configuration that was tried nowhere is minus infinity. Under `jit`, where nothing can be
      refused, a feature of the new task that is not finite counts as its mean over the earlier ones.

    Raises:
      ValueError: shapes that do not fit, no task, a width of 0 or less, or (outside `jit`) features that are not
        finite.

    Example:
      >>> experience = Experience(jnp.array([[0.0], [9.0]]), jnp.array([[0.9, 0.5], [0.4, 0.8]]))
      >>> int(expected_scores(experience, jnp.array([1.0]), width=0.3).argmax())
      0

    Source: Feurer, Springenberg and Hutter, 2015, "Initializing Bayesian Hyperparameter Optimization via
    Meta-Learning", AAAI; the mean is that of Nadaraya and of Watson, 1964.
    """
    known, scores = experience
    if jnp.ndim(known) != 2 or jnp.shape(scores)[:1] != known.shape[:1] or jnp.shape(features) != known.shape[1:]:
        raise ValueError(
            "expected_scores needs features [tasks, features], scores [tasks, configurations] and [features] of the "
            f"new task; given {list(jnp.shape(known))}, {list(jnp.shape(scores))} and {list(jnp.shape(features))}."
        )
    if known.shape[0] < 1 or not width > 0:
        raise ValueError(f"expected_scores needs a task or more and a width > 0; given {known.shape[0]} and {width}.")
    for whose, given in (("earlier tasks", known), ("the new task", features)):
        if not isinstance(given, Tracer) and not np.isfinite(np.asarray(given)).all():
            raise ValueError(f"expected_scores needs features that are numbers; those of {whose} are not all finite.")
    middle, spread = known.mean(0), known.std(0)
    # What is the same in all earlier tasks tells none of them from another.
    scale = jnp.where(spread > 1e-6, 1 / jnp.maximum(spread, 1e-6), 0.0)
    known, new = (known - middle) * scale, jnp.where(jnp.isfinite(features), (features - middle) * scale, 0.0)
    # |a - b|^2 = |a|^2 + |b|^2 - 2ab, since the differences of all would not fit in memory.
    squares = jnp.sum(known**2, -1)
    between = jnp.sqrt(jnp.maximum(squares[:, None] + squares - 2 * known @ known.T, 0.0))
    unit = jnp.maximum(between.sum() / max(known.shape[0] * (known.shape[0] - 1), 1), 1e-6)
    closeness = -jnp.sum((known - new) ** 2, -1) / (2 * (width * unit) ** 2)
    tried = ~jnp.isnan(scores)
    # A softmax for each configuration over the tasks it was tried on: far tasks count if there are no near ones.
    shares = jax.nn.softmax(closeness[:, None] * jnp.ones_like(scores), axis=0, where=tried)
    expected = jnp.sum(jnp.where(tried, shares * jnp.nan_to_num(scores), 0.0), 0)
    return jnp.where(tried.any(0), expected, -jnp.inf)


def warm_start(experience: Experience, features: jax.Array, *, width: float = 1.0) -> jax.Array:
    """Choose the configuration that is expected to be best on a new task.

    Args:
      experience: Earlier tasks.
      features: `[features]` of the new one.
      width: As in `expected_scores`.

    Returns:
      The number of the configuration, int32.

    Raises:
      ValueError: as `expected_scores`, and (outside `jit`) where nothing was tried on any task.

    Example:
      >>> experience = Experience(jnp.array([[0.0], [9.0]]), jnp.array([[0.9, 0.5], [0.4, 0.8]]))
      >>> int(warm_start(experience, jnp.array([8.0]), width=0.3))
      1
    """
    expected = expected_scores(experience, features, width=width)
    if not isinstance(expected, Tracer) and bool(jnp.isneginf(expected).all()):
        raise ValueError("warm_start needs a configuration that was tried on some task; every score given is NaN.")
    return expected.argmax().astype(jnp.int32)
