"""How one inner loop is differentiated: through its steps."""

import jax

from jaxmeta.base import Loop, MetaGrad
from jaxmeta.metagrad.guards import no_derivative
from jaxmeta.metagrad.leaves import check_count
from jaxmeta.metagrad.paths import Remat, rematerialise, run_loop, run_steps


def inner_gradient(objective):
    """Differentiate an objective with respect to phi: `grads, aux`."""
    return jax.grad(objective, has_aux=True)


def unrolled(*, remat: Remat = None) -> MetaGrad:
    """Differentiate through every inner step: exact second order, reverse over reverse.

    `d phi_T / d theta = prod_t (I - a H(phi_t))` for gradient descent with rate `a`.

    Args:
      remat: What is computed again on the way back instead of kept. None: nothing.
        "step": each step, from its carry `(phi, opt_state)`: the memory of one step and T
        carries, for one more forward pass. "group": each of about sqrt(T) groups of steps,
        then each step: about 2 sqrt(T) carries, for two more. The name of a member of
        `jax.checkpoint_policies` such as "dots_saveable", or a policy: each step, but what it saves.

    Returns:
      A `MetaGrad`.

    Raises:
      ValueError: for an unknown `remat`.

    Example:
      >>> from jaxmeta import inner_loop
      >>> import jax, jax.numpy as jnp, optax
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum(phi**2), ()
      >>> solve = inner_loop(objective, optax.sgd(0.1), 2, unrolled(remat="step"))
      >>> adapted = lambda theta: solve(theta, theta, (), (), jax.random.key(0)).phi
      >>> round(float(jax.grad(adapted)(1.0)), 6)  # (1 - 0.1)^2
      0.81

    Source: Finn, Abbeel and Levine, 2017, arXiv 1703.03400.
    """
    return MetaGrad(inner_gradient, *rematerialise(remat))


def first_order() -> MetaGrad:
    """Treat every inner gradient as a constant: `d phi_T / d theta = I` for gradient descent.

    Only the gradients are stopped, not phi: the identity path from the
    initialisation stays, and so does that from a learned learning rate.

    Returns:
      A `MetaGrad`.

    Example:
      >>> from jaxmeta import inner_loop
      >>> import jax, jax.numpy as jnp, optax
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum(phi**2), ()
      >>> solve = inner_loop(objective, optax.sgd(0.1), 2, first_order())
      >>> float(jax.grad(lambda theta: solve(theta, theta, (), (), jax.random.key(0)).phi)(1.0))
      1.0

    Source: Finn, Abbeel and Levine, 2017, arXiv 1703.03400; Nichol, Achiam and Schulman,
    2018, arXiv 1803.02999.
    """

    def grad(objective):
        exact = inner_gradient(objective)

        def stopped(*args):
            grads, aux = exact(*args)
            return jax.lax.stop_gradient(grads), aux

        return stopped

    return MetaGrad(grad, *rematerialise(None))


def truncated(num_steps: int = 1, *, remat: Remat = None) -> MetaGrad:
    """Differentiate through the last inner steps only; those before are a constant.

    `d L(phi_T) / d theta ~ sum_{t > T-k} dL/dphi_T prod_{s > t} (I - a H(phi_s)) d update_t / d theta`

    Biased: what theta did earlier is not seen, so that the horizon looks shorter than it
    is. For meta-parameters that act in every step (rates, weights of the loss). A learned
    start of the loop has no gradient at all through it, and is refused.

    Args:
      num_steps: How many steps, k, at least 1; all of a shorter loop.
      remat: As in `unrolled`; "group" is for longer stretches than this is made for.

    Returns:
      A `MetaGrad`. It raises ValueError at trace time when the start of the loop is learned.

    Raises:
      ValueError: for less than one step, or an unknown `remat`.

    Example:
      >>> from jaxmeta import inner_loop
      >>> import jax, jax.numpy as jnp, optax
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum((phi - theta)**2), ()
      >>> solve = inner_loop(objective, optax.sgd(0.1), 5, truncated(2))
      >>> adapted = lambda theta: solve(jnp.zeros(()), theta, (), (), jax.random.key(0)).phi
      >>> round(float(jax.grad(adapted)(1.0)), 6)  # 0.1 + 0.1 (1 - 0.1)
      0.19

    Source: Shaban, Cheng, Hatch and Boots, 2019, arXiv 1810.10667.
    """
    check_count("truncated", "num_steps", num_steps, 1)
    if remat == "group":
        raise ValueError("truncated takes remat=None, 'step' or a policy; 'group' is for unrolled().")
    step, _ = rematerialise(remat)
    again = remat is not None

    def solve(loop: Loop):
        cut = loop.num_steps - num_steps
        if cut <= 0:
            return run_loop(loop, remat=again)
        reason = (
            f"truncated({num_steps}) of {loop.num_steps} steps cannot see the start of the inner loop, which depends "
            "on a meta-parameter: its gradient would be zero. Say that this is meant by jax.lax.stop_gradient, "
            "or use unrolled(remat='step') or mixed_mode()."
        )
        start = no_derivative(loop.inputs.phi, reason)
        constant = jax.lax.stop_gradient(loop.inputs._replace(phi=start))
        # What init does not take from its inputs is an opt_state that was handed in.
        first = no_derivative(loop.init(constant), reason)
        carry, early = jax.lax.stop_gradient(run_steps(loop, constant, first, 0, cut))
        carry, late = run_steps(loop, loop.inputs, carry, cut, loop.num_steps, remat=again)
        return carry, jax.tree.map(lambda *leaves: jax.numpy.concatenate(leaves), early, late)

    return MetaGrad(inner_gradient, step, solve)
