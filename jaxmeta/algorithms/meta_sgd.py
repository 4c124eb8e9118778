"""Meta-SGD: learn the initialisation, and a learning rate for every parameter.

    phi = theta - alpha * grad L_support(theta)      (alpha like theta, element by element)
    (theta, alpha) <- (theta, alpha) - b grad_{theta, alpha} mean_tasks L_query(phi)

Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017,
arXiv 1707.09835.
"""

from typing import Unpack

from jaxmeta.algorithms.gradient import Adaptation, gradient_learner
from jaxmeta.algorithms.options import StrategyOptions
from jaxmeta.base import MetaLearner, Model
from jaxmeta.inner import inner_sgd, learning_rates


def meta_sgd(model: Model, *, inner_lr: float = 0.1, **options: Unpack[StrategyOptions]) -> MetaLearner:
    """Make Meta-SGD: `phi = theta - alpha * grad L_support(theta)` with theta and alpha learned.

    Args:
      model: The network; all its parameters are adapted.
      inner_lr: What every learning rate begins with.
      **options: See `StrategyOptions`.

    Returns:
      A `MetaLearner` whose meta-parameters are `{"params": ..., "rates": ...}`, two trees alike.

    Raises:
      ValueError: as `maml`.

    Example:
      >>> from jaxmeta import conv4
      >>> learner = meta_sgd(conv4(5), inner_lr=0.4)

    Source: Li, Zhou, Chen and Li, 2017, arXiv 1707.09835.
    """

    def init(key, inputs):
        params, state = model.init(key, inputs)
        return {"params": params, "rates": learning_rates(params, inner_lr, per="parameter")}, state

    adaptation = Adaptation(init, lambda theta: theta["params"], lambda phi, theta, index: phi)
    return gradient_learner(model, adaptation, inner_optimizer=inner_sgd(lambda theta: theta["rates"]), **options)
