"""Meta-Curvature: learn the initialisation, and how to turn gradients before each inner step.

    MC(G) = G x_f M_f x_i M_i x_o M_o          (a matrix along each axis of a layer's gradient)
    phi = theta - a MC(grad L_support(theta))

Park and Oliva, "Meta-Curvature", 2019, arXiv 1902.03356.
"""

import math
from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from jaxmeta.algorithms.gradient import Adaptation, gradient_learner
from jaxmeta.algorithms.options import StrategyOptions
from jaxmeta.base import MetaLearner, Model, PyTree


def meta_curvature(model: Model, *, inner_lr: float = 0.1, **options: Unpack[StrategyOptions]) -> MetaLearner:
    """Make Meta-Curvature: `phi = theta - a MC(grad L_support(theta))` with theta and the matrices learned.

    A kernel `[positions..., inputs, outputs]` has a matrix for its positions taken together (if there
    are several), one for its inputs and one for its outputs; a vector one. All begin as the identity.

    Args:
      model: The network; all its parameters are adapted.
      inner_lr: a, the learning rate, which is not learned: the matrices have a scale.
      **options: See `StrategyOptions`.

    Returns:
      A `MetaLearner` whose meta-parameters are `{"params": ..., "curvature": {path: matrices}}`.

    Raises:
      ValueError: as `maml`.

    Example:
      >>> from jaxmeta import conv4
      >>> learner = meta_curvature(conv4(5), inner_lr=0.1)

    Source: Park and Oliva, 2019, arXiv 1902.03356.
    """

    def init(key, inputs):
        params, state = model.init(key, inputs)
        return {"params": params, "curvature": _identities(params)}, state

    def inner_optimizer(theta):
        turn = optax.stateless(lambda updates, params: _turned(updates, theta["curvature"]))
        return optax.chain(turn, optax.scale(-inner_lr))

    adaptation = Adaptation(init, lambda theta: theta["params"], lambda phi, theta, index: phi)
    return gradient_learner(model, adaptation, inner_optimizer=inner_optimizer, **options)


def _identities(params: PyTree) -> dict[str, list[jax.Array]]:
    return {
        jax.tree_util.keystr(path): [jnp.eye(size, dtype=leaf.dtype) for size in _sizes(leaf.shape) if size > 1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def _sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give positions, inputs and outputs of a kernel; a vector has outputs only."""
    return (math.prod(shape[:-2]), *shape[-2:])


def _turned(updates: PyTree, curvature: dict[str, list[jax.Array]]) -> PyTree:
    def turn(path, update):
        matrices, sizes = iter(curvature[jax.tree_util.keystr(path)]), _sizes(update.shape)
        turned = update.reshape(sizes)
        for axis, size in enumerate(sizes):
            if size > 1:
                turned = jnp.moveaxis(jnp.tensordot(next(matrices), turned, (1, axis)), 0, axis)
        return turned.reshape(update.shape)

    return jax.tree_util.tree_map_with_path(turn, updates)
