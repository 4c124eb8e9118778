"""Which leaves of a tree can be differentiated, and how to name one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmeta.base import PyTree


def is_float(leaf) -> bool:
    """Tell whether a leaf has a derivative: class numbers, counters and random keys have none."""
    return jnp.issubdtype(jnp.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype, jnp.inexact)


def map_floats(function: Callable, tree: PyTree) -> PyTree:
    """Apply a function to the leaves that can be differentiated and leave the others."""
    return jax.tree.map(lambda leaf: function(leaf) if is_float(leaf) else leaf, tree)


def split_floats(tree: PyTree) -> tuple[list, list[str], Callable[[list], PyTree]]:
    """Take a tree apart.

    Returns:
      The leaves that can be differentiated, their names (the path in the tree), and a
      function from such a list of leaves to the whole tree.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [leaf for _, leaf in paths]
    places = [place for place, leaf in enumerate(leaves) if is_float(leaf)]

    def merge(floats):
        merged = list(leaves)
        for place, leaf in zip(places, floats, strict=True):
            merged[place] = leaf
        return jax.tree.unflatten(treedef, merged)

    return [jnp.asarray(leaves[place]) for place in places], [name_of(paths[place][0]) for place in places], merge


def name_of(path) -> str:
    """Name a leaf as one would write it: `theta['rates']`."""
    return jax.tree_util.keystr(path).removeprefix(".")


def check_floats(tree: PyTree, what: str) -> None:
    """Refuse a tree with a leaf that has no derivative.

    Raises:
      ValueError: names the leaf and its dtype.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_float(leaf):
            dtype = getattr(leaf, "dtype", type(leaf).__name__)
            raise ValueError(
                f"{what}{name_of(path)} is {dtype}, which has no gradient; {what} must hold floating-point leaves "
                "only. Make it a float, or keep it in the state or in the data."
            )
