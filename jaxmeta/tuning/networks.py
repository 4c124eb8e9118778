"""The convolutional classifier that is tuned, with a noise whose strength can be learned."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxmeta.nn import Conv, max_pool_2x2


class Network(NamedTuple):
    """A classifier as two pure functions.

    Attributes:
      init: `(key, inputs) -> params`, a dict with one entry for each layer.
      apply: `(params, inputs, *, key=None, dropout=0.0) -> logits [examples, outputs]`. With a key, hidden features are
        multiplied by noise of mean 1 and standard deviation `dropout`, through which a derivative with respect to
        `dropout` goes.
    """

    init: Callable[..., Any]
    apply: Callable[..., jax.Array]


def outputs_in_parts(network: Network, params: Any, inputs: jax.Array, *, part: int = 500) -> jax.Array:
    """Compute the outputs of many examples, so many at a time: memory for hidden features of a part, not of all.

    Args:
      network: Which treats every example for itself.
      params: Its parameters.
      inputs: `[examples, ...]`.
      part: Examples at a time.

    Returns:
      `[examples, outputs]`, without noise.

    Example:
      >>> import jax.numpy as jnp
      >>> network = conv_net(10, widths=(2,), hidden=4)
      >>> images = jnp.ones([7, 8, 8, 3])
      >>> outputs_in_parts(network, network.init(jax.random.key(0), images), images, part=3).shape
      (7, 10)
    """
    if inputs.shape[0] <= part:
        return network.apply(params, inputs)
    return jax.lax.map(lambda example: network.apply(params, example[None])[0], inputs, batch_size=part)


class _ConvNet(nn.Module):
    outputs: int
    widths: Sequence[int]
    hidden: int

    @nn.compact
    def __call__(self, inputs, noise=None, dropout=0.0):
        features = inputs
        for place, width in enumerate(self.widths):
            features = max_pool_2x2(nn.relu(Conv(width, name=f"conv{place + 1}")(features)))
        features = nn.relu(nn.Dense(self.hidden, name="hidden")(features.reshape(features.shape[0], -1)))
        if noise is not None:
            features = features * (1 + dropout * jax.random.normal(noise, features.shape, features.dtype))
        return nn.Dense(self.outputs, name="head")(features)


def conv_net(outputs: int = 10, *, widths: Sequence[int] = (64, 128), hidden: int = 512) -> Network:
    """Make the article's network for CIFAR-10: 3x3 convolutions, ReLU and 2x2 maxima, one hidden layer, logits.

    Args:
      outputs: Number of classes.
      widths: Channels of each convolution.
      hidden: Width of the fully connected layer.

    Returns:
      A `Network` on `[examples, height, width, channels]`, with the layers conv1, conv2, ..., hidden and head. Its
      `init` raises ValueError for images that so many layers would halve to nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> network = conv_net(10, widths=(4, 8), hidden=16)
      >>> params = network.init(jax.random.key(0), jnp.zeros([2, 32, 32, 3]))
      >>> sorted(params), network.apply(params, jnp.zeros([2, 32, 32, 3])).shape
      (['conv1', 'conv2', 'head', 'hidden'], (2, 10))

    Source: the Gaussian noise is that of Srivastava et al., 2014, "Dropout", section 10.
    """
    module = _ConvNet(outputs, tuple(widths), hidden)

    def init(key, inputs):
        if min(inputs.shape[1:3]) < 2 ** len(module.widths):
            raise ValueError(
                f"conv_net halves images {len(module.widths)} times; given {inputs.shape[1]}x{inputs.shape[2]}. Take "
                "larger images or fewer widths."
            )
        return module.init(key, inputs)["params"]

    def apply(params, inputs, *, key=None, dropout=0.0) -> Any:
        return module.apply({"params": params}, inputs, key, dropout)

    return Network(init, apply)
