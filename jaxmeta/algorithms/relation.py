"""Relation networks: how alike a query image and a class are is itself learned.

    r_k(x) = sigmoid(g([sum_{n in class k} f(x_n), f(x)]));   loss = mean_{x, k} (r_k(x) - [y = k])^2

Sung, Yang, Zhang, Xiang, Torr and Hospedales, "Learning to Compare: Relation Network for
Few-Shot Learning", 2018, arXiv 1711.06025.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from jaxmeta.algorithms.adapted import check_classifies, class_weights
from jaxmeta.algorithms.embedding import NEVER, Head, embedding_learner
from jaxmeta.algorithms.options import HeadOptions
from jaxmeta.base import MetaLearner, Model
from jaxmeta.models import relation_module


def relation(
    model: Model, *, ways: int, filters: int = 64, hidden: int = 8, **options: Unpack[HeadOptions]
) -> MetaLearner:
    """Make the relation network: `r_k(x) = sigmoid(g([sum_n f(x_n), f(x)]))`, trained by squared error.

    Args:
      model: The embedding f; in the paper one with feature maps, `conv4(5, maps=True, halvings=2)`,
        the row "conv4-maps" of `MODELS`. If its features are vectors, g is a perceptron.
      ways: Most classes in a task; one without a support example is never predicted.
      filters: Channels of the two blocks of g.
      hidden: Width of the layer before the score.
      **options: See `HeadOptions`; of the criterion only the metrics are used. Within g each pair
        of images is normalised by itself: `norm` is for the embedding.

    Returns:
      A `MetaLearner` whose meta-parameters are the embedding's and, as "head", those of g. Its
      outputs are the scores before the sigmoid.

    Raises:
      ValueError: for an unknown norm, and for regression; at `init`, for maps smaller than 4x4.

    Example:
      >>> from jaxmeta import conv4
      >>> learner = relation(conv4(5, filters=4, maps=True, halvings=2), ways=5, filters=4)
      >>> params, state = jax.jit(learner.init)(jax.random.key(0), jnp.ones([5, 16, 16, 1]))
      >>> params["head"]["Dense_0"]["kernel"].shape
      (4, 8)

    Source: Sung et al., 2018, arXiv 1711.06025.
    """
    check_classifies("relation", options.get("criterion"))
    init, compare = relation_module(filters=filters, hidden=hidden)

    def fit(_, support):
        shares = class_weights(support, ways)
        return jnp.tensordot(shares, support.inputs, (0, 0)), shares.sum(0) > 0

    def score(params, fitted, features):
        classes, present = fitted
        return jnp.where(present, compare(params, classes, features), NEVER)

    def loss(params, fitted, query):
        squared = jnp.square(jax.nn.sigmoid(score(params, fitted, query.inputs)) - jax.nn.one_hot(query.targets, ways))
        pairs = query.weights[:, None] * fitted[1]
        return jnp.sum(pairs * squared) / jnp.maximum(jnp.sum(pairs), 1e-6)

    return embedding_learner(model, Head(init, fit, score, loss, maps=True), **options)
