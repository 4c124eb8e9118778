"""Bootstrapped meta-gradients: move the adapted learner towards where more steps would have taken it."""

import jax
import jax.numpy as jnp

from jaxmeta.base import Batch, Episode, Estimator, MetaLearner
from jaxmeta.metagrad.estimators import mean_over_tasks
from jaxmeta.metagrad.evolution import unroll_of
from jaxmeta.metagrad.leaves import check_count, check_floats, is_float

MATCHES = ("outputs", "parameters")


def bootstrapped(*, num_steps: int = 1, rate: float = 0.0, match: str = "outputs") -> Estimator:
    """Match a target that the learner sets itself, by inner steps beyond the horizon.

    `grad_theta distance(stop(target), phi_K(theta))`, `target = phi_{K+L} - rate grad L_query(phi_{K+L})`

    The meta-gradient goes through K inner steps and is informed by K + L. Not the gradient of
    the query loss: with a good inner rule it points where the learner is heading.

    Args:
      num_steps: Further inner steps on the support set, L, at least 0.
      rate: Size of one last gradient step on the query loss; 0 leaves it out.
      match: "outputs" is the divergence KL(target || adapted) of the predicted classes of the query
        set, or half the squared difference for targets that are values; "parameters" is half the squared
        distance of what `adapt` returns (for parameters without statistics).

    Returns:
      An `Estimator` without a state. The value it returns is the learner's query loss; what
      is minimised is in the metrics as "matching". It needs a learner with `unroll`.

    Raises:
      ValueError: for negative numbers, no further step of any kind, or another match.

    Example:
      >>> bootstrapped(num_steps=0)
      Traceback (most recent call last):
      ...
      ValueError: bootstrapped needs a target beyond the horizon: num_steps >= 1 or rate > 0.

    Source: Flennerhag, Schroecker, Zahavy, van Hasselt, Silver and Singh, 2021, arXiv 2109.04504.
    """
    check_count("bootstrapped", "num_steps", num_steps, 0)
    if not 0 <= rate < float("inf"):
        raise ValueError(f"bootstrapped needs rate >= 0; given {rate}.")
    if num_steps == 0 and rate == 0:
        raise ValueError("bootstrapped needs a target beyond the horizon: num_steps >= 1 or rate > 0.")
    if match not in MATCHES:
        raise ValueError(f"bootstrapped needs match='outputs' or 'parameters'; given {match!r}.")

    def init(key, learner, meta_params, state, episodes):
        unroll_of(learner, "bootstrapped")
        return ()

    def value_and_grad(learner: MetaLearner, meta_params, state, estimator_state, episodes, keys, step):
        unroll = unroll_of(learner, "bootstrapped")
        check_floats(meta_params, "meta_params")
        if match == "outputs" and not isinstance(episodes.query, Batch):
            raise ValueError("bootstrapped(match='outputs') compares predictions on a Batch; use match='parameters'.")

        def matching_loss(theta, episode: Episode, key):
            loss, (inner, adapted, (new_state, metrics)) = unroll(theta, state, None, episode, key, step)
            target = jax.lax.stop_gradient(_target(unroll, theta, state, inner, episode, key, step))
            if match == "outputs":
                target_outputs, outputs = (learner.predict(of, episode.query, key) for of in (target, adapted))
                distance = _output_distance(target_outputs, outputs, episode.query)
            else:
                distance = _parameter_distance(target, adapted)
            return distance, (loss, (new_state, {**metrics, "matching": distance}))

        def of_task(episode, key):
            (_, value), grads = jax.value_and_grad(matching_loss, has_aux=True)(meta_params, episode, key)
            return value, grads

        value, grads = mean_over_tasks(jax.vmap(of_task)(episodes, keys))
        return value, grads, estimator_state

    def _target(unroll, theta, state, inner, episode, key, step):
        theta, inner = jax.lax.stop_gradient((theta, inner))
        _, (inner, target, _) = unroll(theta, state, inner, episode, key, step, num_steps=num_steps)
        if rate == 0:
            return target

        def query_loss(inner):
            return unroll(theta, state, inner, episode, key, step, num_steps=0)[0]

        grads = jax.grad(query_loss, allow_int=True)(inner)
        inner = jax.tree.map(lambda leaf, grad: leaf - rate * grad if is_float(leaf) else leaf, inner, grads)
        return unroll(theta, state, inner, episode, key, step, num_steps=0)[1][1]

    return Estimator(init, value_and_grad)


def _output_distance(target, adapted, query):
    if is_float(query.targets):
        distance = 0.5 * jnp.square(adapted - target).reshape(target.shape[0], -1).sum(1)
    else:
        log_target, log_adapted = jax.nn.log_softmax(target), jax.nn.log_softmax(adapted)
        distance = jnp.sum(jnp.exp(log_target) * (log_target - log_adapted), axis=-1)
    return jnp.vdot(query.weights, distance) / jnp.maximum(query.weights.sum(), 1)


def _parameter_distance(target, adapted):
    pairs = zip(jax.tree.leaves(target), jax.tree.leaves(adapted), strict=True)
    return 0.5 * sum(jnp.sum(jnp.square(leaf - goal)) for goal, leaf in pairs if is_float(leaf))
