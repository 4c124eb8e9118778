"""Mixed-mode differentiation: exact second order without back-propagating through a backward pass."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from jaxmeta.base import MetaGrad, PyTree
from jaxmeta.metagrad.closures import REVERSE_ONLY, hoist, operations, run, trace
from jaxmeta.metagrad.guards import reverse_only
from jaxmeta.metagrad.leaves import map_floats, split_floats
from jaxmeta.metagrad.paths import Remat, rematerialise

INNER_GRADIENT = "inner_gradient"
NO_FORWARD = (
    "mixed_mode() has a reverse-mode rule of its own and cannot be differentiated forwards (jax.jvp, jax.jacfwd, "
    "jax.hessian). Use metagrad=unrolled(), or reverse mode over it (jax.jacrev(jax.grad(f)))."
)


class MixedModeWarning(UserWarning):
    """An inner gradient could not be differentiated in mixed mode and is differentiated in reverse mode."""


def mixed_mode(*, remat: Remat = "step", save_gradients: bool = True) -> MetaGrad:
    """Differentiate through every inner step: exact second order, forward over reverse.

    With the cotangent `v` of an inner gradient `g = d L(phi, theta) / d phi`, the products
    that reverse mode needs are one directional derivative, because second derivatives commute:

        (H_phi,phi v, H_theta,phi v) = d/de [grad_phi L, grad_theta L] (phi + e v, theta)  at e = 0

    A forward pass frees what it has passed: live memory is that of one gradient with its
    tangents, where reverse over reverse keeps the activations of both passes. Pays for
    transformers, most of all with their layers checkpointed too (`jax.checkpoint` in a `jax.lax.scan`
    over layers: outside of a scan XLA's CPU backend undoes it); for conv4 rematerialisation
    of the steps alone gets as much (`benchmarks/memory.py`).

    Exact for everything that the objective depends on: its five arguments and what it
    closes over. An objective must be twice differentiable, almost everywhere.

    Args:
      remat: As in `unrolled`; each step by default.
      save_gradients: With remat "step" or "group", keep the inner gradient of every step
        (as much memory as phi for each): the step is computed again without its backward pass.

    Returns:
      A `MetaGrad`. Its meta-gradient raises TypeError when it is differentiated forwards.
      For an objective without a forward derivative (an operation with a `custom_vjp` that
      calls itself or a kernel) it warns with `MixedModeWarning` and goes reverse over reverse.

    Raises:
      ValueError: for an unknown `remat`.

    Example:
      >>> from jaxmeta import inner_loop
      >>> import jax, jax.numpy as jnp, optax
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum(phi**2), ()
      >>> solve = inner_loop(objective, optax.sgd(0.1), 2, mixed_mode())
      >>> adapted = lambda theta: solve(theta, theta, (), (), jax.random.key(0)).phi
      >>> round(float(jax.grad(adapted)(1.0)), 6)  # (1 - 0.1)^2
      0.81

    Source: Kemaev, Calian, Zintgraf, Farquhar and van Hasselt, 2025, arXiv 2505.00793.
    """
    policy = None
    if save_gradients and remat in ("step", "group"):
        policy = jax.checkpoint_policies.save_only_these_names(INNER_GRADIENT)
    return MetaGrad(_forward_over_reverse, *rematerialise(remat, policy))


def _forward_over_reverse(objective):
    """Make the inner gradient with a rule of its own that keeps only its arguments."""

    def gradient(*args):
        # What the objective closes over is hoisted into arguments, or the rule would not see it.
        converted, hoisted = hoist(trace(objective, *args), len(args))
        phi, *others = args
        floats, _, rest, merge = split_floats((others, hoisted))

        def loss(phi, floats, rest):
            others, hoisted = merge(floats, rest)
            return converted(phi, *others, *hoisted)

        grads, aux = _with_rule(loss)(*reverse_only((phi, floats), NO_FORWARD), rest)
        return jax.tree.map(lambda leaf: checkpoint_name(leaf, INNER_GRADIENT), grads), aux

    return gradient


def _with_rule(loss):
    def first(*args):
        return _of_all(args, jax.grad(loss, has_aux=True)(*args))

    def forward(*args):
        args = jax.tree.map(lambda primal: primal.value, args)
        return first(*args), args

    def backward(residuals, cotangents):
        phi, floats, rest = residuals
        grads, aux = cotangents
        total = jax.tree.map(jnp.zeros_like, (phi, floats))
        if not all(isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(grads)):
            direction = jax.tree.map(_instantiate, grads)

            def joint(phi, floats):
                return jax.grad(loss, argnums=(0, 1), has_aux=True)(phi, floats, rest)[0]

            total = _second_order(joint, phi, floats, direction)
        if any(_has_derivative(leaf) for leaf in jax.tree.leaves(aux)):
            _, of_aux = jax.vjp(lambda phi, floats: loss(phi, floats, rest)[1], phi, floats)
            total = jax.tree.map(jnp.add, total, of_aux(jax.tree.map(_instantiate, aux)))
        return *total, None  # Whole numbers and keys have no derivative.

    gradient = jax.custom_vjp(first)
    gradient.defvjp(forward, backward, symbolic_zeros=True)
    return gradient


def _of_all(args: PyTree, outputs: PyTree) -> PyTree:
    """Make every output one of each task, where any argument is.

    Under `vmap` an output that no mapped argument reaches is one for all tasks. Where another is of each, JAX's
    batching of a `custom_vjp` adds the gradient of an argument that tasks share up once too often (jax 0.10).
    """
    never = jnp.bool_(False)
    for leaf in jax.tree.leaves(args):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        if leaf.size:
            number = leaf.ravel()[0]
            never |= number < -jnp.inf if jnp.issubdtype(leaf.dtype, jnp.floating) else number != number
    return map_floats(lambda leaf: jnp.where(never, jnp.zeros_like(leaf), leaf), outputs)


def _second_order(joint, phi, floats, direction):
    def product(phi, direction):
        return jax.jvp(lambda phi: joint(phi, floats), (phi,), (direction,))[1]

    try:
        program = trace(product, phi, direction)
        # Under a trace JAX defers its error to the lowering, so the program is looked at.
        if not REVERSE_ONLY & operations(program):
            return run(program, phi, direction)
        missing = "an operation with a custom_vjp"
    except (TypeError, NotImplementedError) as error:
        missing = str(error).splitlines()[0]
    warnings.warn(
        f"mixed_mode: the objective has no forward derivative ({missing}). This inner gradient is differentiated "
        "reverse over reverse: right, but with the memory of unrolled(remat='step').",
        MixedModeWarning,
        stacklevel=2,
    )
    return jax.vjp(lambda phi, floats: joint(phi, floats)[0], phi, floats)[1](direction)


def _instantiate(cotangent):
    if isinstance(cotangent, SymbolicZero):
        aval: Any = cotangent.aval
        return np.zeros(aval.shape, aval.dtype)
    return cotangent


def _has_derivative(cotangent):
    # Whole numbers have cotangents of JAX's empty type float0.
    return not isinstance(cotangent, SymbolicZero) and cotangent.dtype != jax.dtypes.float0
