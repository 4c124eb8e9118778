"""Learners that embed images and put a head on the features of the support set.

    features = embed(x; theta);  fitted = fit(support features, targets);  outputs = score(fitted, query features)

The embedding is learned through the head; how a head is fitted is what tells the algorithms apart.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.algorithms.adapted import check_norm, class_weights, metrics_of
from jaxmeta.base import Batch, MetaLearner, Model, PyTree
from jaxmeta.losses import CRITERIA, Criterion
from jaxmeta.models import with_flat_features

# Running statistics move by a hundredth at each step of training, as is the habit of the field's code.
MOMENTUM = 0.99
# The logit of a class that has no support example: never the largest, and finite.
NEVER = -1e9


class Head(NamedTuple):
    """What is done with features, for ONE task. `support` and `query` are batches of features.

    Attributes:
      init: `(key, features) -> head_params`, what the head learns across tasks; `{}` for nothing.
      fit: `(head_params, support) -> fitted`.
      score: `(head_params, fitted, features) -> outputs`.
      loss: `(head_params, fitted, query) -> scalar`; None for the criterion's, of the outputs.
      maps: Whether it takes features of any shape; else maps come to it as vectors.
    """

    init: Callable[..., PyTree]
    fit: Callable[[PyTree, Batch], PyTree]
    score: Callable[[PyTree, PyTree, jax.Array], jax.Array]
    loss: Callable[[PyTree, PyTree, Batch], jax.Array] | None = None
    maps: bool = False


class Fitted(NamedTuple):
    """A network and the head that was fitted on its features of a support set."""

    params: PyTree
    state: PyTree
    fitted: PyTree


def embedding_learner(
    model: Model,
    head: Head,
    *,
    criterion: Criterion = CRITERIA["classification"],
    norm: str = "inductive",
) -> MetaLearner:
    """Make a learner from an embedding and a head.

    Args:
      model: The embedding; its own head is left out.
      head: What is fitted on the support set.
      criterion: Metrics, and the loss if the head has none.
      norm: See `options.HeadOptions`. With "running", support and query set of a training task
        are normalised together, and an average over the training tasks is kept for all later ones.

    Returns:
      A `MetaLearner` whose meta-parameters are `{"body": ..., "head": ...}`. It has no inner
      steps: their number is not used.

    Raises:
      ValueError: for an unknown norm.

    Example:
      >>> import jax.numpy as jnp  # a class is its nearest example's
      >>> def score(_, support, features):
      ...     distances = jnp.abs(features[:, None] - support.inputs).sum(-1)
      ...     return jax.nn.one_hot(support.targets[distances.argmin(-1)], 5)
      >>> from jaxmeta import conv4
      >>> head = Head(init=lambda key, features: {}, fit=lambda _, support: support, score=score)
      >>> learner = embedding_learner(conv4(5), head)
    """
    check_norm("A learner that embeds", norm)
    model = model if head.maps else with_flat_features(model)

    def init(key, inputs):
        key_model, key_head = jax.random.split(key)
        params, state = model.init(key_model, inputs)
        features, _ = model.embed(params, state, inputs, key=None, train=True)
        return {"body": params["body"], "head": head.init(key_head, features)}, state

    def embed(params, state, batch: Batch, key, train: bool):
        features, state = model.embed(params, state, batch.inputs, key=key, train=train, weights=batch.weights)
        return batch._replace(inputs=features), state

    def adapt(params, state, support: Batch, key, *, num_steps=None):
        del key, num_steps  # A support set has one embedding: dropout is for training.
        features, of_support = embed(params, state, support, None, train=norm != "running")
        state = state if norm == "running" else of_support
        return Fitted(params, state, head.fit(params["head"], features))

    def predict(adapted: Fitted, batch: Batch, key):
        del key
        params, state, fitted = adapted
        features, _ = embed(params, state, batch, None, train=norm == "transductive")
        return head.score(params["head"], fitted, features.inputs)

    def embed_both(params, state, episode, key):
        """Embed both sets as in training, with dropout."""
        support, query = episode
        key_support, key_query = jax.random.split(key)
        if norm != "running":
            features, state = embed(params, state, support, key_support, train=True)
            return features, embed(params, state, query, key_query, train=norm == "transductive")[0], state
        both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), support, query)
        features, of_both = embed(params, state, both, key_support, train=True)
        state = jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, state, of_both)
        size = support.weights.shape[0]
        return jax.tree.map(lambda leaf: leaf[:size], features), jax.tree.map(lambda leaf: leaf[size:], features), state

    def loss(params, state, episode, key, step):
        del step
        support, query, state = embed_both(params, state, episode, key)
        fitted = head.fit(params["head"], support)
        outputs = head.score(params["head"], fitted, query.inputs)
        if head.loss is None:
            value = criterion.loss(outputs, query.targets, query.weights)
        else:
            value = head.loss(params["head"], fitted, query)
        return value, (state, metrics_of(criterion, outputs, query))

    return MetaLearner(init, adapt, predict, loss)


def class_means(support: Batch, ways: int) -> tuple[jax.Array, jax.Array]:
    """Average features by class.

    Returns:
      Means `[ways, ...]`, and which classes have an example, `[ways]` bool.
    """
    shares = class_weights(support, ways)
    counts = shares.sum(0)
    means = jnp.tensordot(shares / jnp.maximum(counts, 1e-6), support.inputs, (0, 0))
    return means, counts > 0
