"""The front door for bilevel problems that have nothing to do with few-shot learning."""

from collections.abc import Callable

import jax

from jaxmeta.base import Key, MetaLearner, Metrics, PyTree
from jaxmeta.inner.loop import Objective, continue_loop
from jaxmeta.metagrad import check_floats

Start = Callable[[PyTree], PyTree]


def theta_itself(theta):
    """Begin at theta: what is learned is the start."""
    return theta


def meta_grad(
    outer_loss: Objective, solve: Callable, *, start: Start = theta_itself
) -> Callable[[PyTree, PyTree, PyTree, PyTree, Key], tuple[tuple[jax.Array, PyTree], PyTree]]:
    """Make the gradient of an outer loss through an inner loop.

    `d/dtheta outer_loss(phi_T(theta), theta)`, with `phi_0 = start(theta)`

    Args:
      outer_loss: `(phi, theta, state, data, key) -> scalar, aux`, phi after the inner loop.
      solve: From `inner_loop`; its `metagrad` says how the loop is differentiated.
      start: `theta -> phi`, where the inner loop begins; theta itself by default. Return a
        constant for a fixed start.

    Returns:
      `(theta, state, inner_data, outer_data, key) -> (value, aux), grads like theta`: pure, to
      be jitted, mapped and scanned by the caller.

    Raises:
      ValueError: at trace time, for a theta with leaves that have no gradient.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxmeta import inner_loop, inner_sgd, unrolled
      >>> def weighted(phi, theta, state, data, key):  # which examples to trust?
      ...     return jnp.sum(theta * (phi - data) ** 2), ()
      >>> def validation(phi, theta, state, data, key):
      ...     return (phi - data) ** 2, ()
      >>> solve = inner_loop(weighted, inner_sgd(0.1), 20, unrolled(remat="group"))
      >>> gradient = meta_grad(validation, solve, start=lambda theta: jnp.zeros(()))
      >>> (value, _), grads = gradient(jnp.ones(2), (), jnp.array([1.0, 5.0]), 1.0, jax.random.key(0))
      >>> (grads > 0).tolist()  # the outlier deserves less weight, the good example more
      [False, True]
    """

    def value_and_grad(theta, state, inner_data, outer_data, key):
        check_floats(theta, "theta")

        def meta_loss(theta):
            return _meta_loss(outer_loss, solve, start, theta, state, inner_data, outer_data, key)

        return jax.value_and_grad(meta_loss, has_aux=True)(theta)

    return value_and_grad


def _meta_loss(outer_loss, solve, start, theta, state, inner_data, outer_data, key):
    key_inner, key_outer = jax.random.split(key)
    phi = solve(start(theta), theta, state, inner_data, key_inner).phi
    return outer_loss(phi, theta, state, outer_data, key_outer)


def _metrics(aux) -> Metrics:
    if not isinstance(aux, dict) and aux != ():
        raise ValueError("The outer loss of bilevel() must return a scalar and a dict of metrics, or ().")
    return dict(aux)


def bilevel(
    outer_loss: Objective,
    solve: Callable,
    *,
    init: Callable[[Key], tuple[PyTree, PyTree]],
    start: Start = theta_itself,
) -> MetaLearner:
    """Make a learner of a bilevel problem, for the estimators and the train step.

    A task is an `Episode(inner_data, outer_data)` of any two trees.

    Args:
      outer_loss: As in `meta_grad`; aux is `()` or a dict of metrics.
      solve: From `inner_loop`.
      init: `(key) -> theta, state`.
      start: As in `meta_grad`.

    Returns:
      A `MetaLearner` whose `adapt` returns phi and whose `predict` returns phi as well.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmeta import Episode, evolution, inner_loop, inner_sgd
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * (phi - theta - data) ** 2, ()
      >>> learner = bilevel(
      ...     objective,
      ...     inner_loop(objective, inner_sgd(0.5), 10),
      ...     init=lambda key: (jnp.zeros(()), ()),
      ...     start=jnp.zeros_like,
      ... )
      >>> episodes, keys = Episode(jnp.ones(4), jnp.ones(4)), jax.random.split(jax.random.key(0), 4)
      >>> (loss, _), grads, _ = evolution(std=0.1).value_and_grad(learner, 0.5, (), (), episodes, keys, 0)
      >>> bool(loss < 0.01)
      True
    """

    def first(key, example_inputs):
        del example_inputs
        return init(key)

    def adapt(theta, state, support, key, *, num_steps=None):
        return solve(start(theta), theta, state, support, key, num_steps=num_steps).phi

    def predict(phi, batch, key):
        del batch, key
        return phi

    def loss(theta, state, episode, key, step):
        del step
        inner_data, outer_data = episode
        value, aux = _meta_loss(outer_loss, solve, start, theta, state, inner_data, outer_data, key)
        return value, (state, _metrics(aux))

    def unroll(theta, state, inner, episode, key, step, *, num_steps=None):
        del step
        inner_data, outer_data = episode
        key_inner, key_outer = jax.random.split(key)
        inner, result = continue_loop(solve, inner, start(theta), theta, state, inner_data, key_inner, num_steps)
        value, aux = outer_loss(result.phi, theta, state, outer_data, key_outer)
        return value, (inner, result.phi, (state, _metrics(aux)))

    return MetaLearner(first, adapt, predict, loss, unroll)
