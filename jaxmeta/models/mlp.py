"""Multilayer perceptrons, and the linear model as the one without hidden layers."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.base import Model
from jaxmeta.models.adapters import from_linen


class MlpBody(nn.Module):
    """Flatten each example, then Dense and ReLU for each hidden width.

    Attributes:
      hidden: Widths of the hidden layers; none for a linear model.
      context: Parameters called `context` that every example has beside its own inputs.
    """

    hidden: Sequence[int] = (40, 40)
    context: int = 0

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Embed `[examples, ...]` as `[examples, features]`."""
        features = inputs.reshape(inputs.shape[0], -1)
        if self.context:
            context = self.param("context", nn.initializers.zeros, (self.context,))
            features = jnp.concatenate([features, jnp.tile(context, (features.shape[0], 1))], axis=1)
        for width in self.hidden:
            features = nn.relu(nn.Dense(width)(features))
        return features


def mlp(outputs: int, *, hidden: Sequence[int] = (40, 40), context: int = 0) -> Model:
    """Make a perceptron with ReLU hidden layers; the default is MAML's for sinusoids.

    Args:
      outputs: Number of classes or of regressed values.
      hidden: Widths of the hidden layers.
      context: Number of context parameters, for `cavia`: further inputs, the same for all examples
        of a task. They begin as 0.

    Returns:
      A `Model` on any `[examples, ...]` inputs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = mlp(1)
      >>> params, state = model.init(jax.random.key(0), jnp.ones([3, 1]))
      >>> model.apply(params, state, jnp.ones([3, 1]))[0].shape
      (3, 1)

    Source: Finn, Abbeel and Levine, 2017, arXiv 1703.03400.
    """
    return from_linen(MlpBody(tuple(hidden), context), nn.Dense(outputs))


def linear(outputs: int) -> Model:
    """Make a linear model `z = W x + b` of the flattened inputs.

    Args:
      outputs: Number of classes or of regressed values.

    Returns:
      A `Model` on any `[examples, ...]` inputs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params, _ = linear(5).init(jax.random.key(0), jnp.ones([3, 28, 28, 1]))
      >>> params["head"]["kernel"].shape
      (784, 5)
    """
    return mlp(outputs, hidden=())
