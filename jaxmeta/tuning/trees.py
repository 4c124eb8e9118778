"""Trees of arrays: are they finite, and which of two is it?"""

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
