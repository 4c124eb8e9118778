"""The inner loop, optimisers for it, and the front door for problems that are not few-shot learning."""

from functools import partial

from jaxmeta.inner.bilevel import bilevel, meta_grad
from jaxmeta.inner.loop import InnerOptimizer, Objective, inner_loop
from jaxmeta.inner.optimizers import inner_adam, inner_momentum, inner_sgd, learning_rates, scale_by_rates

INNER_OPTIMIZERS = {
    "sgd": inner_sgd,
    "momentum": inner_momentum,
    "adam": inner_adam,
    "adam-no-momentum": partial(inner_adam, b1=0.0),
}

__all__ = [
    "INNER_OPTIMIZERS",
    "InnerOptimizer",
    "Objective",
    "bilevel",
    "inner_adam",
    "inner_loop",
    "inner_momentum",
    "inner_sgd",
    "learning_rates",
    "meta_grad",
    "scale_by_rates",
]
