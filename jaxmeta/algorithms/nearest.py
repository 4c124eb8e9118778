"""Nearest neighbour on the inputs themselves: what a task is worth without learning to learn.

    y(x) = y_n  with  n = argmin_n |x - x_n|

Cover and Hart, "Nearest Neighbor Pattern Classification", 1967, IEEE Transactions on Information
Theory 13; a few-shot baseline since Vinyals et al., 2016, arXiv 1606.04080,
table 1 ("Pixels"), who compare by the cosine.
"""

import jax.numpy as jnp

from jaxmeta.algorithms.adapted import check_classifies, metrics_of
from jaxmeta.algorithms.embedding import NEVER
from jaxmeta.base import MetaLearner, Model
from jaxmeta.losses import CRITERIA, Criterion


def nearest(model: Model, *, ways: int, criterion: Criterion = CRITERIA["classification"]) -> MetaLearner:
    """Make nearest neighbour on the inputs: `z_k(x) = -min_{n in class k} |x - x_n|`.

    There is nothing to learn: the meta-parameters are an empty tree, and the loss has no gradient.

    Args:
      model: Not used; every row of `ALGORITHMS` is given one. Inputs are compared as they are,
        pixels if they are images.
      ways: Most classes in a task; one without a support example is never predicted.
      criterion: Metrics and the value of the loss.

    Returns:
      A `MetaLearner` without meta-parameters, state or inner steps.

    Raises:
      ValueError: for regression.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmeta import conv4, example_batch
      >>> learner = nearest(conv4(2), ways=2)
      >>> support = example_batch(jnp.array([[0.0, 0.0], [2.0, 0.0], [3.0, 4.0]]), jnp.array([0, 0, 1]))
      >>> adapted = learner.adapt({}, {}, support, jax.random.key(0))
      >>> learner.predict(adapted, support, jax.random.key(0))[0].tolist()
      [-0.0, -5.0]

    Source: Cover and Hart, 1967; Vinyals et al., 2016, arXiv 1606.04080.
    """
    del model
    check_classifies("nearest", criterion)

    def init(key, inputs):
        del key, inputs
        return {}, {}

    def adapt(theta, state, support, key, *, num_steps=None):
        del theta, state, key, num_steps
        return support

    def predict(support, batch, key):
        del key
        queries, examples = (one.inputs.reshape(one.inputs.shape[0], -1) for one in (batch, support))
        # The differences themselves, which compiled are never kept: |x|^2 - 2 xy + |y|^2 would lose close neighbours.
        distances = jnp.sqrt(jnp.sum(jnp.square(queries[:, None] - examples), -1))
        of_class = (support.targets[:, None] == jnp.arange(ways)) & (support.weights > 0)[:, None]
        to_class = jnp.min(jnp.where(of_class, distances[:, :, None], -NEVER), 1)
        return -to_class

    def loss(theta, state, episode, key, step):
        del step
        support, query = episode
        outputs = predict(adapt(theta, state, support, key), query, key)
        return criterion.loss(outputs, query.targets, query.weights), (state, metrics_of(criterion, outputs, query))

    return MetaLearner(init, adapt, predict, loss)
