"""MAML: learn an initialisation from which a few gradient steps solve a new task.

    phi = theta - a grad L_support(theta)                    (one inner step)
    theta <- theta - b grad_theta mean_tasks L_query(phi)    (the outer step)

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
Networks", 2017, arXiv 1703.03400.
"""

from typing import NamedTuple

import jax

from jaxmeta.base import Batch, MetaGrad, MetaLearner, Model, PyTree
from jaxmeta.inner import InnerOptimizer, inner_loop
from jaxmeta.inner.loop import continue_loop
from jaxmeta.losses import CRITERIA, Criterion

NORMS = ("transductive", "inductive")


class Adapted(NamedTuple):
    """Parameters after the inner loop, and the statistics to predict with."""

    params: PyTree
    state: PyTree


def maml(
    model: Model,
    *,
    inner_optimizer: InnerOptimizer,
    num_steps: int = 1,
    metagrad: MetaGrad | None = None,
    proximal: float = 0.0,
    criterion: Criterion = CRITERIA["classification"],
    norm: str = "transductive",
    log_grad_norms: bool = False,
) -> MetaLearner:
    """Make the MAML learner.

    Args:
      model: The network; all its parameters are adapted.
      inner_optimizer: Any optax transformation, or a function of the meta-parameters that gives one.
      num_steps: Inner steps in training; `adapt` takes another number.
      metagrad: How the inner loop is differentiated; exact second order if None.
      proximal: Strength of the pull of the adapted parameters towards the initialisation;
        with `metagrad=implicit()` this is iMAML.
      criterion: Loss of both loops, and metrics.
      norm: "transductive" normalises the query set by its own statistics, as in the
        paper; "inductive" by those of the support set under the adapted parameters, so
        that no query example is seen through another.
      log_grad_norms: Add the norm of the gradient at every inner step to the metrics, as
        "inner_grad_norm_1" and so on.

    Returns:
      A `MetaLearner` whose meta-parameters are the initialisation.

    Raises:
      ValueError: if `norm` is neither; for an inner loop that the strategy cannot serve.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxmeta import CRITERIA, Batch, Episode, example_batch, mlp
      >>> learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
      >>> points = example_batch(jnp.ones([10, 1]), jnp.ones([10, 1]))
      >>> key = jax.random.key(0)
      >>> theta, state = learner.init(key, points.inputs)
      >>> loss, (state, metrics) = learner.loss(theta, state, Episode(points, points), key, 0)
      >>> sorted(metrics)
      ['loss', 'mse']
    """
    if norm not in NORMS:
        raise ValueError(f"maml needs norm='transductive' or 'inductive'; given {norm!r}.")

    def objective(phi, theta, state, support, key):
        outputs, state = model.apply(phi, state, support.inputs, key=key, train=True, weights=support.weights)
        return criterion.loss(outputs, support.targets, support.weights), state

    record = ["grad_norm"] if log_grad_norms else []
    solve = inner_loop(objective, inner_optimizer, num_steps, metagrad, proximal=proximal, record=record)

    def finish(phi, meta_params, state, support, key):
        if norm == "inductive":
            _, state = objective(phi, meta_params, state, support, key)
        return Adapted(phi, state)

    def adapt(meta_params, state, support: Batch, key, *, num_steps=None):
        key_loop, key_statistics = jax.random.split(key)
        phi = solve(meta_params, meta_params, state, support, key_loop, num_steps=num_steps).phi
        return finish(phi, meta_params, state, support, key_statistics)

    def predict(adapted: Adapted, batch: Batch, key):
        del key  # A prediction has no noise: whatever the statistics are, dropout is off.
        outputs, _ = model.apply(
            adapted.params,
            adapted.state,
            batch.inputs,
            key=None,
            train=norm == "transductive",
            weights=batch.weights,
        )
        return outputs

    def unroll(meta_params, state, inner, episode, key, step, *, num_steps=None):
        del step
        support, query = episode
        key_adapt, key_predict = jax.random.split(key)
        key_loop, key_statistics = jax.random.split(key_adapt)
        inner, result = continue_loop(solve, inner, meta_params, meta_params, state, support, key_loop, num_steps)
        adapted = finish(result.phi, meta_params, state, support, key_statistics)
        outputs = predict(adapted, query, key_predict)
        metrics = {name: fn(outputs, query.targets, query.weights) for name, fn in criterion.metrics.items()}
        if result.per_step is not None:
            norms = result.per_step["grad_norm"]
            metrics |= {f"inner_grad_norm_{step + 1}": norms[step] for step in range(norms.shape[0])}
        value = criterion.loss(outputs, query.targets, query.weights)
        return value, (inner, adapted, (adapted.state, metrics))

    def loss(meta_params, state, episode, key, step):
        value, (_, _, outputs) = unroll(meta_params, state, None, episode, key, step)
        return value, outputs

    return MetaLearner(model.init, adapt, predict, loss, unroll)
