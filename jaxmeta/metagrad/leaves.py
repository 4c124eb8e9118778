"""Which leaves of a tree can be differentiated, and how to name one."""

import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.base import PyTree


def is_float(leaf) -> bool:
    """Tell whether a leaf has a derivative: class numbers, counters and random keys have none."""
    return jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf), jnp.inexact)


def map_floats(function: Callable, tree: PyTree) -> PyTree:
    """Apply a function to the leaves that can be differentiated and leave the others."""
    return jax.tree.map(lambda leaf: function(leaf) if is_float(leaf) else leaf, tree)


class Split(NamedTuple):
    """A tree taken apart.

    Attributes:
      floats: The leaves that can be differentiated.
      names: Their names, the paths in the tree.
      rest: The other leaves.
      merge: `(floats, rest) -> tree`.
    """

    floats: list
    names: list[str]
    rest: list
    merge: Callable[[list, list], PyTree]


def split_floats(tree: PyTree) -> Split:
    """Take a tree apart into what can be differentiated and what cannot."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    differentiable = [is_float(leaf) for _, leaf in paths]

    def merge(floats, rest):
        floats, rest = iter(floats), iter(rest)
        return jax.tree.unflatten(treedef, [next(floats if of_float else rest) for of_float in differentiable])

    pairs = list(zip(paths, differentiable, strict=True))
    return Split(
        [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for (_, leaf), of_float in pairs if of_float],
        [name_of(path) for (path, _), of_float in pairs if of_float],
        [leaf for (_, leaf), of_float in pairs if not of_float],
        merge,
    )


def name_of(path) -> str:
    """Name a leaf as one would write it: `theta['rates']`."""
    return jax.tree_util.keystr(path).removeprefix(".")


def check_count(who: str, what: str, number, least: int) -> None:
    """Refuse what is not a whole number of at least so much.

    Raises:
      ValueError: says what was given.
    """
    if isinstance(number, bool) or not isinstance(number, numbers.Integral) or number < least:
        raise ValueError(f"{who} needs {what} >= {least}, a whole number known before tracing; given {number!r}.")


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
