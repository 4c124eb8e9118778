"""Few-shot learning by a learned optimiser: where to begin and how to step are learned together."""

from collections.abc import Callable
from typing import Unpack

import jax

from jaxmeta.algorithms.gradient import Adaptation, gradient_learner
from jaxmeta.algorithms.options import StrategyOptions
from jaxmeta.base import MetaLearner, Model, PyTree
from jaxmeta.tuning.learned_optimizer import LearnedOptimizer


def learned_maml(
    model: Model,
    optimizer: LearnedOptimizer,
    *,
    begin: Callable[[PyTree], PyTree] = lambda weights: weights,
    **options: Unpack[StrategyOptions],
) -> MetaLearner:
    """Make MAML with inner steps of a learned optimiser, whose weights w are learned with the initialisation.

    `phi_0 = theta,  (phi_{t+1}, m_{t+1}) = u(grad L_support(phi_t), phi_t, m_t; w)`, m the optimiser's state,
    `(theta, w) <- (theta, w) - b grad_{theta, w} mean_tasks L_query(phi_T)`

    Meta-SGD learns a rate for each parameter and keeps it in every step and task. Here one rule serves all parameters,
    and what it does depends on the gradients that come. Its weights, `theta["optimizer"]`, fit a network of any size.

    Args:
      model: The network; all its parameters are adapted.
      optimizer: From `mlp_optimizer` or `lstm_optimizer`; set its horizon to num_steps.
      begin: `w -> w`, what the optimiser is at first: `lambda w: optimizer.as_sgd(w, 0.1)` for MAML of that rate.
        As it was made if not given: Adam at its step_size.
      **options: See `StrategyOptions`.

    Returns:
      A `MetaLearner` whose meta-parameters are `{"params": ..., "optimizer": ...}`.

    Raises:
      ValueError: as `maml`.

    Example:
      >>> from jaxmeta.models import mlp
      >>> from jaxmeta.tuning import mlp_optimizer
      >>> optimizer = mlp_optimizer(hidden=(4,), horizon=5)
      >>> learner = learned_maml(mlp(2, hidden=(3,)), optimizer, num_steps=5)
      >>> theta, state = learner.init(jax.random.key(0), jax.numpy.ones([1, 2]))
      >>> sorted(theta)
      ['optimizer', 'params']

    Source: Ravi and Larochelle, "Optimization as a Model for Few-Shot Learning", 2017 (openreview rJY0-Kcll), learn
    both with an LSTM of another make. For the optimisers see `mlp_optimizer` and `lstm_optimizer`.
    """

    def init(key, inputs):
        params, state = model.init(key, inputs)
        return {"params": params, "optimizer": begin(optimizer.init(jax.random.fold_in(key, 1)))}, state

    adaptation = Adaptation(init, lambda theta: theta["params"], lambda phi, theta, index: phi)
    return gradient_learner(
        model, adaptation, inner_optimizer=lambda theta: optimizer.transform(theta["optimizer"]), **options
    )
