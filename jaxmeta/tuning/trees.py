"""Trees of arrays: are they finite, which of two is it, and what is their mean so far?"""

import jax
import jax.numpy as jnp

from jaxmeta.base import PyTree


def all_finite(tree: PyTree) -> jax.Array:
    """Tell whether a tree has neither infinities nor what is not a number: a boolean scalar.

    Args:
      tree: Of floating-point or integer arrays; an empty one is finite.

    Returns:
      A boolean scalar.

    Example:
      >>> bool(all_finite({"a": jnp.ones(2)})), bool(all_finite({"a": jnp.array([1.0, jnp.inf])}))
      (True, False)
    """
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)] or [jnp.bool_(True)]))


def choose(which: jax.Array, first: PyTree, second: PyTree) -> PyTree:
    """Take one tree where a truth value holds, else the other.

    Args:
      which: A scalar; under `vmap` one for each pair.
      first: Taken where it is True.
      second: A tree of the same shapes.

    Returns:
      A tree of that kind.

    Example:
      >>> choose(jnp.bool_(True), {"a": jnp.ones(1)}, {"a": jnp.zeros(1)})["a"].tolist()
      [1.0]
    """
    return jax.tree.map(lambda one, other: jnp.where(which, one, other), first, second)


def average_of_rounds(average: PyTree, phis: PyTree, index: jax.Array | int, rounds: int) -> PyTree:
    """Add a round of parameters to their mean: `m <- m + c (mean_t phi_t - m)` with `c = 1 / min(index + 1, rounds)`.

    Args:
      average: m, the mean of the rounds before.
      phis: The parameters after every step of the round, leaves `[steps, ...]`.
      index: The number of rounds before.
      rounds: How many rounds count: all alike until there are as many, then ever less the older they are.

    Returns:
      A tree like `average`.

    Raises:
      ValueError: less than one round.

    Example:
      >>> float(average_of_rounds(jnp.float32(3.0), jnp.array([4.0, 6.0]), 1, 10))
      4.0

    Source: Polyak and Juditsky, 1992, "Acceleration of stochastic approximation by averaging".
    """
    if rounds < 1:
        raise ValueError(f"average_of_rounds needs rounds >= 1; given {rounds}.")
    share = 1.0 / jnp.minimum(index + 1, rounds)
    return jax.tree.map(lambda mean, phi: mean + share.astype(mean.dtype) * (phi.mean(0) - mean), average, phis)
