"""The inner loop: the one place where inner updates happen."""

from collections.abc import Callable

import jax
import optax

from jaxmeta.base import InnerResult, Key, Loop, MetaGrad, PyTree
from jaxmeta.metagrad import unrolled

Objective = Callable[[PyTree, PyTree, PyTree, PyTree, Key], tuple[jax.Array, PyTree]]
InnerOptimizer = optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation]


def inner_loop(
    objective: Objective,
    optimizer: InnerOptimizer,
    num_steps: int,
    metagrad: MetaGrad | None = None,
    *,
    record: bool = False,
) -> Callable[[PyTree, PyTree, PyTree, PyTree, Key], InnerResult]:
    """Make a solver that takes a fixed number of optimiser steps on an objective.

    `phi_{t+1} = phi_t + update(grad_phi objective(phi_t, theta, state, data, key_t))`

    Args:
      objective: `(phi, theta, state, data, key) -> scalar, aux`. It takes everything
        it depends on: rules of some strategies cannot see what it closes over.
      optimizer: Any optax transformation, or a function `theta -> transformation`
        for one with learned parts.
      num_steps: Number of inner steps, at least 0.
      metagrad: How the loop is differentiated; `unrolled()` if None.
      record: Keep phi and the norm of the gradient at every step.

    Returns:
      `solve(phi, theta, state, data, key) -> InnerResult`. phi is the start; step t
      uses `fold_in(key, t)`.

    Raises:
      ValueError: if `num_steps` is negative.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum((phi - data) ** 2), ()
      >>> solve = inner_loop(objective, optax.sgd(0.5), num_steps=3)
      >>> float(solve(jnp.zeros(()), (), (), 8.0, jax.random.key(0)).phi)
      7.0
    """
    if num_steps < 0:
        raise ValueError(f"inner_loop needs num_steps >= 0; given {num_steps}.")
    metagrad = unrolled() if metagrad is None else metagrad
    gradient = metagrad.grad(objective)

    def solve(phi, theta, state, data, key):
        transformation = optimizer
        if not isinstance(optimizer, optax.GradientTransformation):
            transformation = optimizer(theta)

        def step(carry, index):
            phi, opt_state = carry
            grads, _ = gradient(phi, theta, state, data, jax.random.fold_in(key, index))
            updates, opt_state = transformation.update(grads, opt_state, phi)
            phi = optax.apply_updates(phi, updates)
            per_step = {"phi": phi, "grad_norm": optax.tree.norm(grads)} if record else ()
            return (phi, opt_state), per_step

        def optimality(phi):
            return jax.grad(objective, has_aux=True)(phi, theta, state, data, key)[0]

        loop = Loop((phi, transformation.init(phi)), metagrad.step(step), num_steps, optimality)
        (phi, opt_state), per_step = metagrad.solve(loop)
        return InnerResult(phi, opt_state, per_step if record else None)

    return solve
