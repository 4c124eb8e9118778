"""Baseline and Baseline++: learn an embedding by ordinary classification, then fit a new head to each task.

    training:  theta <- theta - b grad mean_n -log softmax(head(f(x_n)))[c_n]    (c_n among ALL training classes)
    a task:    f is frozen;  w_{t+1} = w_t - a grad_w L_support(w_t f(x))

    Baseline:    head_k(f) = w_k f + b_k
    Baseline++:  head_k(f) = s cos(w_k, f)

Chen, Liu, Kira, Wang and Huang, "A Closer Look at Few-shot Classification", 2019, arXiv 1904.04232.
"""

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxmeta.algorithms.adapted import check_classifies, class_weights
from jaxmeta.algorithms.embedding import NEVER, Head, embedding_learner
from jaxmeta.algorithms.options import ProbeOptions
from jaxmeta.base import Batch, MetaLearner, Model, PyTree
from jaxmeta.inner import inner_loop
from jaxmeta.losses import CRITERIA
from jaxmeta.metagrad import check_count, first_order


class Layer(NamedTuple):
    """A layer of scores: `init(key, width, outputs) -> weights`, `apply(weights, features) -> outputs`."""

    init: Callable[..., PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]


def baseline(model: Model, **options: Unpack[ProbeOptions]) -> MetaLearner:
    """Make Baseline: a linear head over all training classes, and a new one for each task, `z = W f(x) + b`.

    The episodes of its loss are batches of `sample_classification`: the class number among all training
    classes is the target. `adapt` and `predict` are for tasks as usual. The paper keeps running
    statistics, norm="running", and steps with `inner_momentum(0.01)`, in batches of 4, with dampening and
    weight decay; here a step is on the whole support set, without them.

    Args:
      model: The embedding f; its own head is left out.
      **options: See `ProbeOptions`; classes, ways and inner_optimizer are needed.

    Returns:
      A `MetaLearner` whose meta-parameters are `{"body": ..., "head": the head over all classes}`.

    Raises:
      ValueError: for an unknown norm, for regression, for numbers that are none.

    Example:
      >>> from jaxmeta import conv4, inner_momentum
      >>> learner = baseline(conv4(5), classes=64, ways=5, inner_optimizer=inner_momentum(0.01), norm="running")

    Source: Chen, Liu, Kira, Wang and Huang, 2019, arXiv 1904.04232.
    """
    layer = Layer(_linear_weights, lambda weights, features: features @ weights["kernel"] + weights["bias"])
    return _pretrained("baseline", model, layer, **options)


def baseline_plus_plus(model: Model, *, scale: float = 10.0, **options: Unpack[ProbeOptions]) -> MetaLearner:
    """Make Baseline++: as `baseline`, but both heads compare directions, `z_k = s cos(w_k, f(x))`.

    The authors learn a length of each class in training, in place of one s for all.

    Args:
      model: The embedding f; its own head is left out.
      scale: s, which is not learned.
      **options: See `ProbeOptions`; classes, ways and inner_optimizer are needed.

    Returns:
      A `MetaLearner`, as `baseline`.

    Raises:
      ValueError: as `baseline`.

    Example:
      >>> from jaxmeta import conv4, inner_momentum
      >>> learner = baseline_plus_plus(conv4(5), classes=64, ways=5, inner_optimizer=inner_momentum(0.01))

    Source: Chen, Liu, Kira, Wang and Huang, 2019, arXiv 1904.04232.
    """

    def init(key, width, outputs):
        return {"kernel": _linear_weights(key, width, outputs)["kernel"]}

    def apply(weights, features):
        return scale * _unit(features, -1) @ _unit(weights["kernel"], 0)

    return _pretrained("baseline++", model, Layer(init, apply), **options)


def _pretrained(who, model: Model, layer: Layer, *, classes, ways, inner_optimizer, num_steps=100, **options):
    criterion = options.setdefault("criterion", CRITERIA["classification"])
    check_classifies(who, criterion)
    check_count(who, "classes", classes, 2)

    def scores(fitted, features):
        weights, present = fitted
        return jnp.where(present, layer.apply(weights, features), NEVER)

    def objective(weights, present, state, support: Batch, key):
        return criterion.loss(scores((weights, present), support.inputs), support.targets, support.weights), ()

    solve = inner_loop(objective, inner_optimizer, num_steps, first_order())

    def classification_loss(weights, support: Batch, query: Batch):
        both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), support, query)
        return criterion.loss(layer.apply(weights, both.inputs), both.targets, both.weights)

    over_all_classes = Head(
        init=lambda key, features: layer.init(key, features.shape[-1], classes),
        fit=lambda weights, support: support,
        score=lambda weights, support, features: layer.apply(weights, features),
        loss=classification_loss,
    )

    def of_task(key, num_steps) -> Head:
        """Give the head that forgets the training classes and begins anew."""

        def fit(_, support: Batch):
            key_start, key_loop = jax.random.split(key)
            present = class_weights(support, ways).sum(0) > 0
            start = layer.init(key_start, support.inputs.shape[-1], ways)
            result = solve(start, present, (), support, key_loop, num_steps=num_steps)
            return result.phi, present

        return over_all_classes._replace(fit=fit, score=lambda _, fitted, features: scores(fitted, features))

    def adapt(theta, state, support, key, *, num_steps=None):
        return embedding_learner(model, of_task(key, num_steps), **options).adapt(theta, state, support, key)

    predict = embedding_learner(model, of_task(None, None), **options).predict
    return embedding_learner(model, over_all_classes, **options)._replace(adapt=adapt, predict=predict)


def _linear_weights(key, width: int, outputs: int) -> PyTree:
    return {"kernel": jax.nn.initializers.lecun_normal()(key, (width, outputs)), "bias": jnp.zeros(outputs)}


def _unit(vectors: jax.Array, axis: int) -> jax.Array:
    """Divide by the length; a vector of zeros, as rectified features can be, stays one and has a derivative."""
    return vectors * jax.lax.rsqrt(jnp.sum(jnp.square(vectors), axis, keepdims=True) + 1e-12)
