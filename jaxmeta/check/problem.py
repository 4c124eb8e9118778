"""A bilevel problem as a value, for the tools of this package."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.base import Episode, Key, MetaGrad, MetaLearner, PyTree
from jaxmeta.inner import InnerOptimizer, Objective, bilevel, inner_loop
from jaxmeta.inner.bilevel import theta_itself


class Problem(NamedTuple):
    """A bilevel problem at one point: what `inner_loop` and `meta_grad` take, and the arguments.

    The meta-loss is the outer loss after `num_steps` inner steps; with `num_unrolls` above 1,
    the mean of it after `num_steps`, `2 num_steps`, ... steps, as online estimators see it.

    Attributes:
      objective: `(phi, theta, state, data, key) -> scalar, aux`, the inner loss.
      outer_loss: The same of the adapted phi.
      theta: The meta-parameters to differentiate at, floats only.
      optimizer: As in `inner_loop`.
      num_steps: Inner steps.
      start: `theta -> phi`, where the inner loop begins.
      state: As the objectives take it.
      inner_data: Data of the objective.
      outer_data: Data of the outer loss.
      key: Source of the noise of both.
      proximal: As in `inner_loop`.
      num_unrolls: How often the loss is taken.
    """

    objective: Objective
    outer_loss: Objective
    theta: PyTree
    optimizer: InnerOptimizer
    num_steps: int
    start: Callable[[PyTree], PyTree] = theta_itself
    state: PyTree = ()
    inner_data: PyTree = ()
    outer_data: PyTree = ()
    key: Any = None
    proximal: float = 0.0
    num_unrolls: int = 1


def key_of(problem: Problem) -> Key:
    """Return the key of a problem, a fixed one if it has none."""
    return jax.random.key(0) if problem.key is None else problem.key


def learner_of(problem: Problem, metagrad: MetaGrad | None = None) -> MetaLearner:
    """Make the learner of a problem: its `loss` is the meta-loss, whatever `num_unrolls`.

    Args:
      problem: The problem.
      metagrad: How the inner loop is differentiated; `unrolled()` if None.

    Returns:
      A `MetaLearner`; its tasks are `episode_of(problem)`.

    Example:
      >>> import jax
      >>> from jaxmeta import check
      >>> problem = check.quadratic(jax.random.key(0)).problem
      >>> theta, state = learner_of(problem).init(jax.random.key(1), None)
      >>> theta is problem.theta
      True
    """
    solve = inner_loop(problem.objective, problem.optimizer, problem.num_steps, metagrad, proximal=problem.proximal)
    learner = bilevel(problem.outer_loss, solve, init=lambda key: (problem.theta, problem.state), start=problem.start)
    unroll = learner.unroll
    assert unroll is not None  # A bilevel problem has an inner loop.
    if problem.num_unrolls == 1:
        return learner

    def loss(theta, state, episode, key, step):
        inner, total, outputs = None, 0.0, (state, {})
        for _ in range(problem.num_unrolls):
            value, (inner, _, outputs) = unroll(theta, state, inner, episode, key, step)
            total += value
        return total / problem.num_unrolls, outputs

    return learner._replace(loss=loss)


def episode_of(problem: Problem) -> Episode:
    """Return the data of a problem as the one task of its learner.

    Args:
      problem: The problem.

    Returns:
      `Episode(inner_data, outer_data)`.

    Example:
      >>> import jax
      >>> from jaxmeta import check
      >>> episode_of(check.quadratic(jax.random.key(0)).problem).query.shape
      (4,)
    """
    return Episode(problem.inner_data, problem.outer_data)


def meta_loss_of(problem: Problem, metagrad: MetaGrad | None = None) -> Callable[[PyTree], jax.Array]:
    """Make the function `theta -> meta-loss` of a problem.

    Args:
      problem: The problem.
      metagrad: How the inner loop is differentiated; `unrolled()` if None.

    Returns:
      The function, to be differentiated and jitted.

    Example:
      >>> import jax
      >>> from jaxmeta import check
      >>> problem = check.quadratic(jax.random.key(0)).problem
      >>> sorted(jax.grad(meta_loss_of(problem))(problem.theta))
      ['offset', 'start']
    """
    learner = learner_of(problem, metagrad)

    def meta_loss(theta):
        return learner.loss(theta, problem.state, episode_of(problem), key_of(problem), jnp.int32(0))[0]

    return meta_loss


def in_float64(problem: Problem) -> Problem:
    """Return the problem with its floats in double precision; call it under `jax.enable_x64(True)`."""

    def widen(leaf):
        return jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    trees = ("theta", "state", "inner_data", "outer_data")
    return problem._replace(**{name: jax.tree.map(widen, getattr(problem, name)) for name in trees})
