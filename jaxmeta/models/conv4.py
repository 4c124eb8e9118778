"""The four-block convolutional network of the few-shot papers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.base import Model
from jaxmeta.models.adapters import from_linen
from jaxmeta.nn import BatchNorm, Conv, LoweringTable


class Conv4Body(nn.Module):
    """Four blocks of 3x3 convolution, normalisation and ReLU, each halving the image unless told otherwise.

    Attributes:
      filters: Channels of every block.
      downsample: "pool" (2x2 maximum after each block) or "stride" (convolutions of stride 2).
      conv_bias: Whether the convolutions have biases.
      context: Parameters called `context` that scale and shift the channels of the third block.
      lowering: How they are computed.
      halvings: How many blocks, the first ones, halve the image.
      maps: Give the maps of the last block as they are.
    """

    filters: int = 64
    downsample: str = "pool"
    conv_bias: bool = False
    context: int = 0
    lowering: str | LoweringTable = "auto"
    halvings: int = 4
    maps: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool, weights: jax.Array | None = None) -> jax.Array:
        """Embed `[examples, height, width, channels]` as `[examples, features]`, or as maps."""
        least = 2**self.halvings
        if self.downsample == "pool" and min(inputs.shape[1:3]) < least:
            times = ("never", "once", "twice", "three times", "four times")[self.halvings]
            raise ValueError(
                f"conv4 halves its images {times} and needs {least}x{least} or more; given "
                f"{list(inputs.shape[1:3])}. Use larger images or downsample='stride'."
            )
        hidden = inputs
        for block in range(4):
            # No bias by default: the normalisation that follows subtracts it again.
            halves = block < self.halvings
            strides = 2 if self.downsample == "stride" and halves else 1
            convolve = Conv(self.filters, strides=strides, use_bias=self.conv_bias, lowering=self.lowering)
            outputs, bias, statistics = convolve.before_norm(hidden, weights)
            # Rectifying keeps the order of numbers: it may as well come after the pooling.
            pool = self.downsample == "pool" and halves
            hidden = BatchNorm()(outputs, train=train, weights=weights, pool=pool, offset=bias, statistics=statistics)
            if self.context and block == 2:
                context = self.param("context", nn.initializers.zeros, (self.context,))
                scale, shift = jnp.split(nn.Dense(2 * self.filters, name="film")(context), 2)
                hidden = hidden * (1 + scale) + shift
            hidden = nn.relu(hidden)
        if self.maps:
            return hidden
        if self.downsample == "stride":
            return hidden.mean((1, 2))
        return hidden.reshape(hidden.shape[0], -1)


class FlatDense(nn.Module):
    """A linear layer of the flattened maps.

    Attributes:
      features: Number of outputs.
    """

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map `[examples, ...]` to `[examples, features]`."""
        return nn.Dense(self.features)(inputs.reshape(inputs.shape[0], -1))


def conv4(
    outputs: int,
    *,
    filters: int = 64,
    downsample: str = "pool",
    conv_bias: bool = False,
    context: int = 0,
    lowering: str | LoweringTable = "auto",
    halvings: int = 4,
    maps: bool = False,
) -> Model:
    """Make the four-block network: 28x28x1 gives 64 features, 84x84x3 gives 1600 (pooled).

    With `downsample="stride"` the last block is averaged over positions, as in the
    Omniglot experiments of the MAML paper; it costs a quarter of the pooled form. With
    `maps=True, halvings=2` it is the embedding of relation networks: 28x28 gives maps of 7x7.

    Args:
      outputs: Number of classes.
      filters: Channels of every block (64 for Omniglot, 32 for mini-ImageNet in MAML).
      downsample: "pool" or "stride".
      conv_bias: Give the convolutions biases, as most PyTorch code does. They change nothing in
        training, since the normalisation subtracts them; they are there to compare costs.
      context: Number of context parameters, for `cavia`: a scale and a shift of each channel of the
        third block are linear in them (Perez et al., 2018, arXiv 1709.07871). They begin as 0.
      lowering: How the convolutions are computed, as in `nn.conv2d`.
      halvings: How many of the four blocks, the first ones, halve the image.
      maps: Let the features be the maps of the last block, `[examples, height, width, filters]`, for
        `relation`; all other learners that compare features take them as vectors.

    Returns:
      A `Model` on images `[examples, height, width, channels]` of at least 16x16 (2**halvings).

    Raises:
      ValueError: if `downsample` is neither, or there are not so many blocks to halve.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = conv4(5, filters=8)
      >>> params, state = model.init(jax.random.key(0), jnp.ones([2, 28, 28, 1]))
      >>> model.apply(params, state, jnp.ones([2, 28, 28, 1]))[0].shape
      (2, 5)

    Source: Vinyals et al., 2016, arXiv 1606.04080; Finn, Abbeel and Levine, 2017, arXiv 1703.03400;
    Sung et al., 2018, arXiv 1711.06025, for the maps.
    """
    if downsample not in ("pool", "stride"):
        raise ValueError(f"conv4 needs downsample='pool' or 'stride'; given {downsample!r}.")
    if not 0 <= halvings <= 4:
        raise ValueError(f"conv4 has four blocks and needs halvings from 0 to 4; given {halvings}.")
    body = Conv4Body(filters, downsample, conv_bias, context, lowering, halvings, maps)
    return from_linen(body, FlatDense(outputs) if maps else nn.Dense(outputs))
