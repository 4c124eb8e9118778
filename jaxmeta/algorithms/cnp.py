"""Conditional neural processes: the support set is the mean of its embedded, labelled examples.

    r = mean_n h(f(x_n), y_n);   (mu, s) = g(f(x), r);   sigma = 0.1 + 0.9 softplus(s)
    loss = -mean_query log N(y; mu, sigma^2)

For classification r is the means of each class, side by side in the order of the classes, and g
gives logits, whose loss is the cross-entropy. The paper's loss counts the support examples among the
queries; here, as in all learners, it is that of the query set.

Garnelo, Rosenbaum, Maddison, Ramalho, Saxton, Shanahan, Teh, Rezende and Eslami, "Conditional
Neural Processes", 2018, arXiv 1807.01613.
"""

from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp

from jaxmeta.algorithms.adapted import regresses, values_of
from jaxmeta.algorithms.embedding import NEVER, Head, class_means, embedding_learner
from jaxmeta.algorithms.options import HeadOptions
from jaxmeta.base import MetaLearner, Model, PyTree
from jaxmeta.losses import weighted_mean
from jaxmeta.models.cnp import ConditionalNeuralProcess


def cnp(model: Model, *, ways: int, width: int = 128, **options: Unpack[HeadOptions]) -> MetaLearner:
    """Make a conditional neural process: `outputs = mu(f(x), mean_n h(f(x_n), y_n))`.

    Args:
      model: The embedding f of an input x.
      ways: Most classes in a task, or the number of regressed values; the network's shape depends on it. A
        class without a support example is never predicted.
      width: Width of the layers of h and g.
      **options: See `HeadOptions`. With the criterion of regression, the targets are values `[examples, ways]`,
        and the loss is their negative log-likelihood.

    Returns:
      A `MetaLearner` whose head holds h and g. What it predicts in regression is mu; `cnp_distribution`
      gives sigma too.

    Raises:
      ValueError: for an unknown norm.

    Example:
      >>> from jaxmeta import CRITERIA, mlp
      >>> learner = cnp(mlp(1), ways=1, criterion=CRITERIA["regression"])

    Source: Garnelo et al., 2018, arXiv 1807.01613.
    """
    if not regresses(options.get("criterion")):
        return embedding_learner(model, _classifier(ways, width), **options)
    distribution = _regressor(ways, width)

    def score(head, fitted, features):
        return distribution.score(head, fitted, features)[0]

    def loss(head, fitted, query):
        mean, deviation = distribution.score(head, fitted, query.inputs)
        densities = jax.scipy.stats.norm.logpdf(query.targets, mean, deviation)
        return -weighted_mean(densities.sum(-1), query.weights)

    return embedding_learner(model, distribution._replace(score=score, loss=loss), **options)


def cnp_distribution(model: Model, *, ways: int, width: int = 128, **options: Unpack[HeadOptions]) -> Callable:
    """Make the function that tells what a conditional neural process of regression predicts, and how surely.

    Args:
      model: As given to `cnp`.
      ways: As given to it.
      width: As given to it.
      **options: As given to it.

    Returns:
      `(adapted, batch, key) -> mean [examples, ways], standard deviation [examples, ways]`; adapted is
      what `adapt` of the learner gives.

    Raises:
      ValueError: for an unknown norm.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmeta import CRITERIA, example_batch, mlp
      >>> options = {"ways": 1, "criterion": CRITERIA["regression"]}
      >>> learner, distribution = cnp(mlp(1), **options), cnp_distribution(mlp(1), **options)
      >>> points, key = example_batch(jnp.ones([3, 1]), jnp.ones([3, 1])), jax.random.key(0)
      >>> adapted = learner.adapt(*learner.init(key, points.inputs), points, key)
      >>> mean, deviation = distribution(adapted, points, key)
      >>> bool((deviation > 0.1).all())
      True

    Source: Garnelo et al., 2018, arXiv 1807.01613.
    """
    return embedding_learner(model, _regressor(ways, width), **options).predict


def _regressor(ways: int, width: int) -> Head:
    """One representation of all examples; the score is a pair, mean and standard deviation."""
    init, encode, decode = _network(ways, 2 * ways, 1, width)

    def fit(head, support):
        # All examples as of one class.
        together = support._replace(inputs=encode(head, support), targets=jnp.zeros(support.weights.shape, jnp.int32))
        return class_means(together, 1)[0]

    def score(head, fitted, features) -> PyTree:
        mean, spread = jnp.split(decode(head, fitted, features), 2, -1)
        return mean, 0.1 + 0.9 * jax.nn.softplus(spread)

    return Head(init, fit, score)


def _classifier(ways: int, width: int) -> Head:
    """A representation of each class; the score is logits."""
    init, encode, decode = _network(ways, ways, ways, width)

    def fit(head, support):
        return class_means(support._replace(inputs=encode(head, support)), ways)

    def score(head, fitted, features):
        representations, present = fitted
        return jnp.where(present, decode(head, representations, features), NEVER)

    return Head(init, fit, score)


def _network(labels: int, outputs: int, slots: int, width: int):
    """Give `init`, `encode = h`, and `decode = g` of features beside `slots` representations."""
    network = ConditionalNeuralProcess(outputs, width)

    def beside(features, numbers):
        return jnp.concatenate([features, numbers.astype(features.dtype)], 1)

    def init(key, features):
        of_examples, of_queries = (jnp.zeros([features.shape[0], size]) for size in (labels, slots * width))
        return network.init(key, beside(features, of_examples), beside(features, of_queries))["params"]

    def encode(head, support) -> PyTree:
        labelled = beside(support.inputs, values_of(support, labels))
        return network.apply({"params": head}, labelled, method="encode")

    def decode(head, representations, features) -> PyTree:
        same = jnp.broadcast_to(representations.ravel(), [features.shape[0], slots * width])
        return network.apply({"params": head}, beside(features, same), method="decode")

    return init, encode, decode
