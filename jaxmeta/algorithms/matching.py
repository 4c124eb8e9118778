"""Matching networks: the class of a query image is voted for by the support images that are like it.

    a(x, x_n) = softmax_n(s cosine(f(x), g(x_n)));   p(y = k | x) = sum_n a(x, x_n) [y_n = k]

Plain, f and g are the embedding. With full context embeddings g(x_n, S) has read the support
set S by an LSTM in each direction, and f(x, S) by K reads with attention (`models/context.py`).

Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, "Matching Networks for One Shot
Learning", 2016, arXiv 1606.04080.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from jaxmeta.algorithms.adapted import check_classifies, class_weights
from jaxmeta.algorithms.embedding import NEVER, Head, embedding_learner
from jaxmeta.algorithms.options import HeadOptions
from jaxmeta.base import Batch, MetaLearner, Model
from jaxmeta.metagrad import check_count
from jaxmeta.models import full_context


def matching(model: Model, *, ways: int, scale: float = 40.0, **options: Unpack[HeadOptions]) -> MetaLearner:
    """Make the matching network: `p(y = k | x) = sum_n softmax_n(s cosine(f(x), f(x_n))) [y_n = k]`.

    Args:
      model: The embedding f.
      ways: Most classes in a task; one without a support example is never predicted.
      scale: Factor of the cosine before the softmax. The paper has none: then a vote is at most e^2 times another,
        the loss stays far from 0 for many ways, and hardly anything is learned (on Omniglot, trained with 20 ways,
        87 % of 5-way 1-shot in place of 98). Others take 100 (Chen et al., 2019, arXiv 1904.04232).
      **options: See `HeadOptions`.

    Returns:
      A `MetaLearner` whose meta-parameters are the embedding's. Its outputs are log p(y = k | x).

    Raises:
      ValueError: for an unknown norm, a scale that is not positive, and for regression.

    Example:
      >>> from jaxmeta import example_batch, from_function
      >>> learner = matching(from_function(lambda key, x: {}, lambda params, x: x), ways=2, scale=1.0)
      >>> support = example_batch(jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([0, 1]))
      >>> adapted = learner.adapt({"body": {}, "head": {}}, {}, support, jax.random.key(0))
      >>> logits = learner.predict(adapted, support, jax.random.key(0))
      >>> round(float(jnp.exp(logits[0, 0])), 4)  # e^1 / (e^1 + e^0)
      0.7311

    Source: Vinyals et al., 2016, arXiv 1606.04080.
    """
    _check("matching", options, scale)

    def score(_, support, features):
        return vote(features, support, ways, scale)

    return embedding_learner(model, Head(lambda key, features: {}, lambda _, support: support, score), **options)


def matching_fce(
    model: Model, *, ways: int, scale: float = 40.0, reads: int = 5, **options: Unpack[HeadOptions]
) -> MetaLearner:
    """Make the matching network with full context embeddings: `matching` with `f(x, S)` and `g(x_n, S)`.

    The LSTMs along the support set read it in the order given, so that another order gives other
    outputs, as in the paper. Padding is passed over and changes nothing.

    Args:
      model: The embedding f' = g'.
      ways: See `matching`.
      scale: See `matching`.
      reads: K, how often a query reads the support set; the paper does not say.
      **options: See `HeadOptions`.

    Returns:
      A `MetaLearner` whose meta-parameters are the embedding's and, as "head", those of the LSTMs.

    Raises:
      ValueError: as `matching`, and for fewer reads than 1.

    Example:
      >>> from jaxmeta import mlp
      >>> learner = matching_fce(mlp(5), ways=5, reads=3)
      >>> params, state = jax.jit(learner.init)(jax.random.key(0), jnp.ones([5, 8]))
      >>> sorted(params["head"])
      ['query', 'support']

    Source: Vinyals et al., 2016, arXiv 1606.04080, appendices A.1 and A.2.
    """
    _check("matching_fce", options, scale)
    check_count("matching_fce", "reads", reads, 1)
    context = full_context(reads)

    def fit(params, support):
        return support._replace(inputs=context.support(params, support.inputs, support.weights))

    def score(params, support, features):
        features = context.query(params, features, support.inputs, support.weights)
        return vote(features, support, ways, scale)

    return embedding_learner(model, Head(context.init, fit, score), **options)


def vote(features: jax.Array, support: Batch, ways: int, scale: float) -> jax.Array:
    """Give log p(y = k | x) `[queries, ways]`; `NEVER` where a class has no support example."""
    members = class_weights(support, ways) > 0
    cosines = unit(features) @ unit(support.inputs).T
    # The log of a class's share of all e^cosine; a sum of logarithms does not underflow.
    votes = jnp.where(members, scale * cosines[..., None], NEVER)
    shares = jax.nn.log_softmax(jax.nn.logsumexp(votes, axis=1))
    return jnp.where(members.any(0), shares, NEVER)


def unit(features: jax.Array) -> jax.Array:
    """Scale vectors `[examples, size]` to length 1; those next to zero stay so."""
    return features * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(features), -1, keepdims=True), 1e-12))


def _check(who, options, scale):
    check_classifies(who, options.get("criterion"))
    if not scale > 0:
        raise ValueError(f"{who} needs a positive scale; given {scale}.")
