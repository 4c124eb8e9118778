"""In-context learning: a transformer reads the labelled support set and answers each query.

    tokens = [f(x_n), y_n, 1] of the support set, [f(x), 0, 0] of a query
    outputs(x) = transformer(tokens) at the query's, which attends to the support set and to itself

The setting, a learner that is a sequence model trained across tasks, is that of SNAIL (Mishra,
Rohaninejad, Chen and Abbeel, "A Simple Neural Attentive Meta-Learner", 2018, arXiv 1707.03141); the
network is a transformer (Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762).
Unlike SNAIL it has no convolutions over time and no causal order: the support set is a set, and its
examples all see each other. No query sees another.
"""

from typing import Unpack

import jax.numpy as jnp

from jaxmeta.algorithms.adapted import present_classes, values_of
from jaxmeta.algorithms.embedding import NEVER, Head, embedding_learner
from jaxmeta.algorithms.options import HeadOptions
from jaxmeta.base import MetaLearner, Model, PyTree
from jaxmeta.models.in_context import InContextTransformer


def in_context(
    model: Model, *, ways: int, width: int = 64, layers: int = 3, heads: int = 4, **options: Unpack[HeadOptions]
) -> MetaLearner:
    """Make an in-context learner: `outputs = transformer([f(x_n), y_n, 1], [f(x), 0, 0])`.

    Args:
      model: The embedding f.
      ways: Most classes in a task, or the number of regressed values; the network's shape depends on it. A
        class without a support example is never predicted. What a label stands for is learned in training,
        whose tasks number their classes at random.
      width: Numbers in a token.
      layers: Layers of the transformer.
      heads: Heads of its attention; they divide the width.
      **options: See `HeadOptions`. With the criterion of regression, the targets are values `[examples, ways]`.

    Returns:
      A `MetaLearner` whose head holds the parameters of the transformer.

    Raises:
      ValueError: for an unknown norm, and for heads that do not divide the width.

    Example:
      >>> from jaxmeta import conv4
      >>> learner = in_context(conv4(5), ways=5)

    Source: Mishra, Rohaninejad, Chen and Abbeel, 2018, arXiv 1707.03141; Vaswani et al., 2017, arXiv 1706.03762.
    """
    if width % heads:
        raise ValueError(f"in_context needs heads that divide the width {width}; given {heads}.")
    network = InContextTransformer(ways, width, layers, heads)

    def init(key, features):
        examples = features.shape[0]
        labels, weights = jnp.zeros([examples, ways], features.dtype), jnp.ones(examples)
        return network.init(key, features, labels, weights, features)["params"]

    def fit(_, support):
        return support._replace(targets=values_of(support, ways)), present_classes(support, ways)

    def answer(head, support, queries) -> PyTree:
        return network.apply({"params": head}, *support, queries)

    def score(head, fitted, features):
        support, present = fitted
        return jnp.where(present, answer(head, support, features), NEVER)

    return embedding_learner(model, Head(init, fit, score), **options)
