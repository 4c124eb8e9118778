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
    criterion: Criterion = CRITERIA["classification"],
    norm: str = "transductive",
) -> MetaLearner:
    """Make the MAML learner.

    Args:
      model: The network; all its parameters are adapted.
      inner_optimizer: Any optax transformation, or a function of the meta-parameters that gives one.
      num_steps: Inner steps in training; `adapt` takes another number.
      metagrad: How the inner loop is differentiated; exact second order if None.
      criterion: Loss of both loops, and metrics.
      norm: "transductive" normalises the query set by its own statistics, as in the
        paper; "inductive" by those of the support set under the adapted parameters, so
        that no query example is seen through another.

    Returns:
      A `MetaLearner` whose meta-parameters are the initialisation.

    Raises:
      ValueError: if `norm` is neither.

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
    training_steps = num_steps

    def objective(phi, theta, state, support, key):
        outputs, state = model.apply(phi, state, support.inputs, key=key, train=True, weights=support.weights)
        return criterion.loss(outputs, support.targets, support.weights), state

    def adapt(meta_params, state, support: Batch, key, *, num_steps=None):
        steps = training_steps if num_steps is None else num_steps
        key_loop, key_statistics = jax.random.split(key)
        solve = inner_loop(objective, inner_optimizer, steps, metagrad)
        phi = solve(meta_params, meta_params, state, support, key_loop).phi
        if norm == "inductive":
            _, state = objective(phi, meta_params, state, support, key_statistics)
        return Adapted(phi, state)

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

    def loss(meta_params, state, episode, key, step):
        key_adapt, key_predict = jax.random.split(key)
        adapted = adapt(meta_params, state, episode.support, key_adapt)
        query = episode.query
        outputs = predict(adapted, query, key_predict)
        metrics = {name: fn(outputs, query.targets, query.weights) for name, fn in criterion.metrics.items()}
        return criterion.loss(outputs, query.targets, query.weights), (adapted.state, metrics)

    return MetaLearner(model.init, adapt, predict, loss)
