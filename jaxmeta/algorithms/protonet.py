"""Prototypical networks: a class is the mean of its embedded examples.

    c_k = mean_{n in class k} f(x_n);   p(y = k | x) = softmax_k(-|f(x) - c_k|^2)

Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", 2017, arXiv 1703.05175.
"""

from typing import Unpack

import jax.numpy as jnp

from jaxmeta.algorithms.adapted import check_classifies
from jaxmeta.algorithms.embedding import NEVER, Head, class_means, embedding_learner
from jaxmeta.algorithms.options import HeadOptions
from jaxmeta.base import MetaLearner, Model


def protonet(model: Model, *, ways: int, **options: Unpack[HeadOptions]) -> MetaLearner:
    """Make the prototypical network: `p(y = k | x) = softmax_k(-|f(x) - c_k|^2)`.

    Args:
      model: The embedding f.
      ways: Most classes in a task; one without a support example is never predicted. The paper
        trains with more ways than it tests.
      **options: See `HeadOptions`.

    Returns:
      A `MetaLearner` whose meta-parameters are the embedding's.

    Raises:
      ValueError: for an unknown norm, and for regression.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmeta import example_batch, from_function
      >>> learner = protonet(from_function(lambda key, x: {}, lambda params, x: x), ways=2)
      >>> support = example_batch(jnp.array([[0.0], [2.0], [9.0]]), jnp.array([0, 0, 1]))
      >>> adapted = learner.adapt({"body": {}, "head": {}}, {}, support, jax.random.key(0))
      >>> learner.predict(adapted, support, jax.random.key(0))[0].tolist()  # -(0 - 1)^2, -(0 - 9)^2
      [-1.0, -81.0]

    Source: Snell, Swersky and Zemel, 2017, arXiv 1703.05175.
    """
    check_classifies("protonet", options.get("criterion"))

    def fit(_, support):
        return class_means(support, ways)

    def score(_, fitted, features):
        prototypes, present = fitted
        squared = jnp.sum(jnp.square(features[:, None] - prototypes), -1)
        return jnp.where(present, -squared, NEVER)

    return embedding_learner(model, Head(lambda key, features: {}, fit, score), **options)
