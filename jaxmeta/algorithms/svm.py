"""MetaOptNet: a linear classifier that is the solution of a convex problem on the support set.

    Support vector machine of Crammer and Singer, in the dual, y_n the class of example n:
    min_alpha  1/2 sum_k |sum_n alpha_nk f_n|^2 - sum_n alpha_{n, y_n}
    subject to alpha_nk <= C [k = y_n],  sum_k alpha_nk = 0
    w_k = sum_n alpha_nk f_n;   outputs_k(x) = scale w_k . f(x)

How it is solved and differentiated says `crammer_singer.py`. The scale is learned across tasks.

Lee, Maji, Ravichandran and Soatto, "Meta-Learning with Differentiable Convex Optimization",
2019, arXiv 1904.03758.
"""

from typing import Unpack

import jax.numpy as jnp

from jaxmeta.algorithms.adapted import check_classifies, present_classes, values_of
from jaxmeta.algorithms.crammer_singer import quadratic_solver, svm_weights
from jaxmeta.algorithms.embedding import NEVER, Head, embedding_learner
from jaxmeta.algorithms.options import HeadOptions
from jaxmeta.algorithms.ridge import ridge_weights
from jaxmeta.base import MetaLearner, Model


def metaoptnet(model: Model, *, ways: int, regularization: float = 0.1, **options: Unpack[HeadOptions]) -> MetaLearner:
    """Make MetaOptNet with a support vector machine: `outputs_k = scale w_k . f(x)`.

    Args:
      model: The embedding f.
      ways: Most classes in a task; one without a support example takes no part and is never predicted.
      regularization: C, the most that an example may count.
      **options: See `HeadOptions`.

    Returns:
      A `MetaLearner` whose head holds the scale, which begins as 10.

    Raises:
      ValueError: for an unknown norm, for regression, and for a C that is not positive.
      ImportError: without the library qpax.

    Example:
      >>> from jaxmeta import conv4
      >>> learner = metaoptnet(conv4(5), ways=5)

    Source: Lee, Maji, Ravichandran and Soatto, 2019, arXiv 1904.03758.
    """
    check_classifies("metaoptnet", options.get("criterion"))
    if regularization <= 0:
        raise ValueError(f"metaoptnet needs a positive regularization C; given {regularization}.")
    quadratic_solver()

    def fit(_, support):
        return svm_weights(support, ways, regularization), present_classes(support, ways)

    return embedding_learner(model, Head(_scale, fit, _score), **options)


def metaoptnet_ridge(
    model: Model, *, ways: int, regularization: float = 50.0, **options: Unpack[HeadOptions]
) -> MetaLearner:
    """Make MetaOptNet with ridge regression on one-hot classes: `outputs = scale f(x) W`.

    Args:
      model: The embedding f.
      ways: Most classes in a task; one without a support example is never predicted.
      regularization: lambda, the same for all tasks.
      **options: See `HeadOptions`.

    Returns:
      A `MetaLearner` whose head holds the scale, which begins as 10.

    Raises:
      ValueError: for an unknown norm, for regression, and for a lambda that is not positive.

    Example:
      >>> from jaxmeta import conv4
      >>> learner = metaoptnet_ridge(conv4(5), ways=5)

    Source: Lee, Maji, Ravichandran and Soatto, 2019, arXiv 1904.03758.
    """
    check_classifies("metaoptnet_ridge", options.get("criterion"))
    if regularization <= 0:
        raise ValueError(f"metaoptnet_ridge needs a positive regularization lambda; given {regularization}.")

    def fit(_, support):
        solution = ridge_weights(support.inputs, values_of(support, ways), support.weights, regularization)
        return solution, present_classes(support, ways)

    return embedding_learner(model, Head(_scale, fit, _score), **options)


def _scale(key, features):
    # Margins are of order 1, and Adam's small steps would take long to make decided logits of them.
    return {"scale": jnp.full((), 10.0)}


def _score(head, fitted, features):
    solution, present = fitted
    return jnp.where(present, head["scale"] * (features @ solution), NEVER)
