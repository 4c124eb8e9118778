"""How one inner loop is differentiated: the exact ways and the first-order one."""

import jax

from jaxmeta.base import Loop, MetaGrad


def _identity(step):
    return step


def _inner_gradient(objective):
    return jax.grad(objective, has_aux=True)


def run_loop(loop: Loop):
    """Run a `Loop` forwards by one `jax.lax.scan`.

    Args:
      loop: The loop; `num_steps=0` returns its first carry.

    Returns:
      The last carry, and the per-step records stacked along a new first axis.
    """
    # The scan keeps compilation time and program size independent of the number of steps.
    return jax.lax.scan(loop.step, loop.init, jax.numpy.arange(loop.num_steps))


def unrolled(*, remat: bool = False) -> MetaGrad:
    """Differentiate through every inner step: exact second order, reverse over reverse.

    `d phi_T / d theta = prod_t (I - a H(phi_t))` for gradient descent with rate `a`.

    Args:
      remat: Keep only the carry of each inner step and recompute the rest on the way
        back: memory of one step instead of all, for one more forward pass.

    Returns:
      A `MetaGrad`.

    Example:
      >>> from jaxmeta import inner_loop
      >>> import jax, jax.numpy as jnp, optax
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum(phi**2), ()
      >>> solve = inner_loop(objective, optax.sgd(0.1), 2, unrolled(remat=True))
      >>> adapted = lambda theta: solve(theta, theta, (), (), jax.random.key(0)).phi
      >>> round(float(jax.grad(adapted)(1.0)), 6)  # (1 - 0.1)^2
      0.81

    Source: Finn, Abbeel and Levine, 2017, arXiv 1703.03400.
    """

    def step(step_fn):
        # prevent_cse is for code outside of a scan; inside it only costs time.
        return jax.checkpoint(step_fn, prevent_cse=False) if remat else step_fn

    return MetaGrad(_inner_gradient, step, run_loop)


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
        exact = _inner_gradient(objective)

        def stopped(*args):
            grads, aux = exact(*args)
            return jax.lax.stop_gradient(grads), aux

        return stopped

    return MetaGrad(grad, _identity, run_loop)
