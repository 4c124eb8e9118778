"""A trained learner for another number of classes.

Training numbers the classes of every task at random, so that what is learned does not tell one number from another.
A leaf with an axis for the classes can therefore be made anew for any number of them, by what is the same for all:

    one axis:   w'_k  = mean_j w_j                     (weights and biases of a head, their learning rates)
    two axes:   M'_kk = mean_j M_jj,  M'_kl = mean_{i != j} M_ij   (k != l; a matrix that turns gradients of the head)
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxmeta.base import MetaLearner, PyTree


class Served(NamedTuple):
    """A learner and its numbers, ready for a number of classes.

    Attributes:
      learner: The learner.
      meta_params: Its meta-parameters.
      state: Its state.
      outputs: For how many classes it was made; the first ones of them are used.
      made: How the outputs were come by: "as trained", "free" (nothing depends on their number), "first" (the first
        ones of more), or "mean" (made of the mean over those that were trained).
    """

    learner: MetaLearner
    meta_params: PyTree
    state: PyTree
    outputs: int
    made: str


def ways_to_serve(
    make_learner: Callable[[int], MetaLearner],
    trained: int,
    classes: int,
    meta_params: PyTree,
    state: PyTree,
    example_inputs: jax.ShapeDtypeStruct,
    *,
    reads_labels: bool,
) -> Iterator[Served]:
    """Give the ways in which a trained learner can tell a number of classes apart, the best first; none if it cannot.

    Args:
      make_learner: Makes the learner for a number of classes.
      trained: The number that it was trained for.
      classes: The number that is wanted.
      meta_params: What was trained.
      state: Its state.
      example_inputs: Shape of a few images.
      reads_labels: Whether the learner takes its number of classes as an option: the most in a task, any fewer of
        which it can serve, since one without a support example is never predicted. Others have an output for each.

    Yields:
      Each way. One of "mean" serves only if adapting tells the classes apart: to be seen from the outputs.
    """
    if classes == trained:
        yield Served(make_learner(trained), meta_params, state, trained, "as trained")
        return
    learner = make_learner(classes)
    before, after = (_shapes(one, example_inputs) for one in (make_learner(trained), learner))
    if before == after:
        yield Served(learner, meta_params, state, classes, "free")
    elif reads_labels:
        # A label is an input of the network, which has as many inputs as it was trained with.
        if classes < trained:
            yield Served(make_learner(trained), meta_params, state, trained, "first")
    else:
        resizes = {"mean": mean_outputs, "first": first_outputs}
        for made in ("mean", "first") if classes < trained else ("mean",):
            numbers = _resized((meta_params, state), after, resizes[made])
            yield Served(learner, numbers[0], numbers[1], classes, made)


def mean_outputs(leaf, shape: tuple[int, ...]) -> np.ndarray:
    """Make a leaf for another number of classes, by the mean over those that it has.

    Args:
      leaf: An array; the axes whose length differs from the shape's are its classes, at most two.
      shape: The shape that is wanted.

    Returns:
      An array of that shape, which looks alike to every class.

    Raises:
      ValueError: if the two shapes have not the same number of axes, or more than two of them differ.

    Example:
      >>> mean_outputs(np.array([[1.0, 3.0]]), (1, 3)).tolist()
      [[2.0, 2.0, 2.0]]
      >>> mean_outputs(np.array([[1.0, 0.0], [2.0, 3.0]]), (3, 3))[0].tolist()
      [2.0, 1.0, 1.0]
    """
    leaf = np.asarray(leaf)
    axes = _class_axes(leaf, shape)
    if len(axes) < 2:
        mean = leaf.mean(tuple(axes), keepdims=True, dtype=np.float64) if axes else leaf
        return np.broadcast_to(mean, shape).astype(leaf.dtype)
    matrices = np.moveaxis(leaf, axes, (-2, -1)).astype(np.float64)
    size, wanted = matrices.shape[-1], shape[axes[0]]
    diagonal = np.trace(matrices, axis1=-2, axis2=-1)
    others = (matrices.sum((-2, -1)) - diagonal) / (size * (size - 1))
    made = np.where(np.eye(wanted, dtype=bool), (diagonal / size)[..., None, None], others[..., None, None])
    return np.moveaxis(made, (-2, -1), axes).astype(leaf.dtype)


def first_outputs(leaf, shape: tuple[int, ...]) -> np.ndarray:
    """Cut a leaf down to the first classes; see `mean_outputs`."""
    leaf = np.asarray(leaf)
    _class_axes(leaf, shape)
    return leaf[tuple(slice(length) for length in shape)]


def tells_apart(outputs) -> bool:
    """Tell whether outputs `[examples, classes]` differ between classes by more than rounding."""
    outputs = np.asarray(outputs, np.float64)
    spread = outputs.max(1) - outputs.min(1)
    return bool(spread.max() > 1e-4 * max(1.0, np.abs(outputs).max()))


def _shapes(learner: MetaLearner, example_inputs):
    return jax.eval_shape(learner.init, jax.random.key(0), example_inputs)


def _resized(tree: PyTree, shapes: PyTree, resize) -> PyTree:
    if jax.tree.structure(tree) != jax.tree.structure(shapes):
        raise ValueError("The numbers of this learner are arranged differently for another number of classes.")
    return jax.tree.map(lambda leaf, like: resize(leaf, like.shape), tree, shapes)


def _class_axes(leaf: np.ndarray, shape: tuple[int, ...]) -> list[int]:
    axes = [axis for axis, lengths in enumerate(zip(leaf.shape, shape, strict=False)) if lengths[0] != lengths[1]]
    lengths = {(leaf.shape[axis], shape[axis]) for axis in axes}
    if leaf.ndim != len(shape) or len(axes) > 2 or len(lengths) > 1:
        raise ValueError(
            f"A leaf {list(leaf.shape)} is to become {list(shape)}: at most two axes, of one length, can be classes."
        )
    return axes
