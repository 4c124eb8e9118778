"""Siamese networks: are two images of one class?

    p(same | a, b) = sigmoid(sum_j alpha_j |f_j(a) - f_j(b)| + beta)

trained by cross-entropy on pairs; a query image is of the class of the support image that it is
most likely the same as.

Koch, Zemel and Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition", 2015,
ICML deep learning workshop.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxmeta.algorithms.adapted import check_classifies, class_weights
from jaxmeta.algorithms.embedding import NEVER, Head, embedding_learner
from jaxmeta.algorithms.options import HeadOptions
from jaxmeta.base import Batch, MetaLearner, Model

ALTERNATIVE = (
    "Give each class an image in both sets (shots and queries of 1 or more); where a class has one image only, "
    "make a second one of it by augmentation, or leave the class out. A learner with an output for each class, as "
    "maml, takes tasks whose query set lacks one."
)


def siamese(model: Model, *, ways: int, **options: Unpack[HeadOptions]) -> MetaLearner:
    """Make the siamese network: `p(same) = sigmoid(sum_j alpha_j |f_j(a) - f_j(b)| + beta)`.

    It is trained on all pairs of a support and a query image; those of one class have half of the
    weight together, and those of two the other half. The score of a class is the largest logit
    among its support images. Without a pair of one class there is nothing to tell apart: loss and gradient
    are then not a number, which training stops at, and where the targets are known it is refused.

    Args:
      model: The embedding f.
      ways: Most classes in a task; one without a support example is never predicted.
      **options: See `HeadOptions`; of the criterion only the metrics are used. For verification by
        `verification_scores` use norm="running".

    Returns:
      A `MetaLearner` whose meta-parameters are the embedding's and, as "head", alpha and beta. Its
      outputs are logits of p(same).

    Raises:
      ValueError: for an unknown norm, and for regression; from `loss`, where the support or the query
        set is empty, or (targets being known, outside `jit`) they share no class.

    Example:
      >>> from jaxmeta import example_batch, from_function
      >>> learner = siamese(from_function(lambda key, x: {}, lambda params, x: x), ways=2)
      >>> support = example_batch(jnp.array([[0.0], [4.0]]), jnp.array([0, 1]))
      >>> params = {"body": {}, "head": {"alpha": jnp.array([-1.0]), "beta": jnp.float32(0.5)}}
      >>> adapted = learner.adapt(params, {}, support, jax.random.key(0))
      >>> learner.predict(adapted, support, jax.random.key(0))[0].tolist()  # 0.5 - |0 - 0|, 0.5 - |0 - 4|
      [0.5, -3.5]

    Source: Koch, Zemel and Salakhutdinov, 2015.
    """
    check_classifies("siamese", options.get("criterion"))

    def init(key, features):
        # Negative: images far from each other are not the same. The mean distance counts once.
        size = features.shape[-1]
        return {"alpha": -jax.random.uniform(key, [size], maxval=2.0 / size), "beta": jnp.zeros(())}

    def score(params, support, features):
        members = class_weights(support, ways) > 0
        logits = pair_logits(params, features, support.inputs)
        return jnp.where(members, logits[..., None], NEVER).max(1)

    def pair_loss(params, support, query):
        same = query.targets[:, None] == support.targets
        losses = optax.sigmoid_binary_cross_entropy(pair_logits(params, query.inputs, support.inputs), same)
        weights = query.weights[:, None] * support.weights
        value = jnp.sum(pair_weights(same, weights) * losses)
        # Learned from pairs of two classes alone, nothing would ever be the same, and no number would tell.
        return value * jnp.where(jnp.any(same & (weights > 0)), 1.0, jnp.nan)

    learner = embedding_learner(model, Head(init, lambda _, support: support, score, pair_loss), **options)

    def loss(meta_params, state, episode, key, step):
        _check_pairs(*episode)
        return learner.loss(meta_params, state, episode, key, step)

    return learner._replace(loss=loss)


def pair_logits(params, first: jax.Array, second: jax.Array) -> jax.Array:
    """Give the logits of p(same), `[firsts, seconds]`, of features `[firsts, size]` and `[seconds, size]`."""
    return jnp.abs(first[:, None] - second) @ params["alpha"] + params["beta"]


def pair_weights(same: jax.Array, weights: jax.Array) -> jax.Array:
    """Let pairs of one class and pairs of two weigh a half each, all of a kind alike; padding keeps 0."""
    same, different = same * weights, ~same * weights
    return 0.5 * (same / jnp.maximum(same.sum(), 1e-6) + different / jnp.maximum(different.sum(), 1e-6))


def _check_pairs(support: Batch, query: Batch) -> None:
    """Refuse sets without a pair of one class, as far as it can be known while tracing."""
    sizes = support.weights.shape[0], query.weights.shape[0]
    if 0 in sizes:
        raise ValueError(
            f"siamese learns from pairs of one class, a support and a query image; given {sizes[0]} support and "
            f"{sizes[1]} query images. {ALTERNATIVE}"
        )
    if any(isinstance(leaf, Tracer) for batch in (support, query) for leaf in batch[1:]):
        return
    classes = [set(np.asarray(one.targets)[np.asarray(one.weights) > 0].tolist()) for one in (support, query)]
    if not classes[0] & classes[1]:
        raise ValueError(
            f"siamese learns from pairs of one class, a support and a query image; given support classes "
            f"{sorted(classes[0])} and query classes {sorted(classes[1])}. {ALTERNATIVE}"
        )
