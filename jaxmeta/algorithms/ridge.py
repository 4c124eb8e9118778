"""R2-D2: ridge regression on the features of the support set, in closed form.

    W = X^T (X X^T + lambda I)^-1 Y = (X^T X + lambda I)^-1 X^T Y;   outputs(x) = a x W + b

X: features of the support set with a constant appended; Y: one-hot classes, or the values to
regress. lambda, a and b are learned across tasks with the embedding.

Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with Differentiable Closed-form
Solvers", 2019, arXiv 1805.08136.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from jaxmeta.algorithms.adapted import present_classes, regresses, values_of
from jaxmeta.algorithms.embedding import NEVER, Head, embedding_learner
from jaxmeta.algorithms.options import HeadOptions
from jaxmeta.base import MetaLearner, Model


def ridge_weights(inputs: jax.Array, targets: jax.Array, weights: jax.Array, strength: jax.Array | float) -> jax.Array:
    """Solve `min_W sum_n w_n |x_n W - y_n|^2 + lambda |W|^2` in closed form.

    The system has the size of the examples or of the features, whichever are fewer.

    Args:
      inputs: `[examples, features]`.
      targets: `[examples, outputs]`.
      weights: `[examples]`; an example of weight 0 counts for nothing.
      strength: lambda, positive.

    Returns:
      W, `[features, outputs]`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0], [2.0]])
      >>> ridge_weights(x, 3 * x, jnp.ones(2), 1.0).round(3).tolist()  # 15 / (5 + 1)
      [[2.5]]

    Source: Bertinetto, Henriques, Torr and Vedaldi, 2019, arXiv 1805.08136.
    """
    # Products of TF32, a GPU's habit, would be coarser than the least eigenvalue of the system.
    with jax.default_matmul_precision("highest"):
        rows = jnp.sqrt(weights)[:, None]
        x, y = inputs * rows, targets * rows
        examples, features = x.shape
        if examples <= features:
            return x.T @ _solve(x @ x.T + strength * jnp.eye(examples, dtype=x.dtype), y)
        return _solve(x.T @ x + strength * jnp.eye(features, dtype=x.dtype), x.T @ y)


def _solve(matrix, right):
    return jax.scipy.linalg.solve(matrix, right, assume_a="pos")


def r2d2(model: Model, *, ways: int, **options: Unpack[HeadOptions]) -> MetaLearner:
    """Make R2-D2: `outputs = a x W + b`, W of ridge regression on the support set.

    Args:
      model: The embedding.
      ways: Most classes in a task; one without a support example is never predicted. Nothing to regression.
      **options: See `HeadOptions`. With the criterion of regression, the targets are what is regressed.

    Returns:
      A `MetaLearner` whose head holds the logarithm of lambda, and a and b. They begin as lambda = 1,
      b = 0, and a = 1 for regression, 10 for classification: the values regressed are in [0, 1] and
      are the logits of a softmax.

    Raises:
      ValueError: for an unknown norm.

    Example:
      >>> from jaxmeta import conv4
      >>> learner = r2d2(conv4(5), ways=5)

    Source: Bertinetto, Henriques, Torr and Vedaldi, 2019, arXiv 1805.08136.
    """
    start = 1.0 if regresses(options.get("criterion")) else 10.0

    def init(key, features):
        return {"log_lambda": jnp.zeros(()), "scale": jnp.full((), start), "bias": jnp.zeros(())}

    def fit(head, support):
        solution = ridge_weights(
            _with_constant(support.inputs), values_of(support, ways), support.weights, jnp.exp(head["log_lambda"])
        )
        return solution, present_classes(support, ways)

    def score(head, fitted, features):
        solution, present = fitted
        outputs = head["scale"] * (_with_constant(features) @ solution) + head["bias"]
        return jnp.where(present, outputs, NEVER)

    return embedding_learner(model, Head(init, fit, score), **options)


def _with_constant(features):
    return jnp.concatenate([features, jnp.ones_like(features[:, :1])], 1)
