"""The twelve-layer residual network of the few-shot papers."""

import flax.linen as nn
import jax

from jaxmeta.base import Model
from jaxmeta.models.adapters import from_linen
from jaxmeta.nn import BatchNorm, Conv, LoweringTable, max_pool_2x2

SLOPE = 0.1


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions beside a 1x1 one, added, rectified and pooled.

    Attributes:
      filters: Channels of the block.
      lowering: How the convolutions are computed.
    """

    filters: int
    lowering: str | LoweringTable = "auto"

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool, weights: jax.Array | None = None) -> jax.Array:
        """Halve `[examples, height, width, channels]`."""
        hidden = inputs
        for layer in range(3):
            # No bias: the normalisation that follows subtracts it again.
            hidden = Conv(self.filters, use_bias=False, lowering=self.lowering)(hidden)
            hidden = BatchNorm()(hidden, train=train, weights=weights)
            if layer < 2:
                hidden = nn.leaky_relu(hidden, SLOPE)
        shortcut = Conv(self.filters, kernel_size=(1, 1), use_bias=False, lowering=self.lowering)(inputs)
        shortcut = BatchNorm()(shortcut, train=train, weights=weights)
        return max_pool_2x2(nn.leaky_relu(hidden + shortcut, SLOPE))


class ResNet12Body(nn.Module):
    """Four residual blocks and the mean over positions.

    Attributes:
      width: Channels of the first block, even; the others have 2.5, 5 and 10 times as many.
      lowering: How the convolutions are computed.
    """

    width: int = 64
    lowering: str | LoweringTable = "auto"

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool, weights: jax.Array | None = None) -> jax.Array:
        """Embed `[examples, height, width, channels]` as `[examples, 10 * width]`."""
        if min(inputs.shape[1:3]) < 16:
            raise ValueError(
                f"resnet12 halves its images four times and needs 16x16 or more; given {list(inputs.shape[1:3])}. "
                "Use larger images."
            )
        hidden = inputs
        for filters in block_filters(self.width):
            hidden = ResidualBlock(filters, self.lowering)(hidden, train=train, weights=weights)
        return hidden.mean((1, 2))


def block_filters(width: int) -> tuple[int, int, int, int]:
    """Give the channels of the four blocks.

    Args:
      width: Channels of the first.

    Returns:
      Those of all.

    Example:
      >>> block_filters(64)
      (64, 160, 320, 640)
    """
    return width, width * 5 // 2, width * 5, width * 10


def resnet12(outputs: int, *, width: int = 64, lowering: str | LoweringTable = "auto") -> Model:
    """Make ResNet-12: 640 features of an image, a linear head.

    Each block is `pool(f(norm(conv3(f(norm(conv2(f(norm(conv1(x)))))))) + norm(conv1x1(x)))`
    with the leaky rectifier `f(z) = max(z, z / 10)`. The papers' DropBlock is left out.

    Args:
      outputs: Number of classes.
      width: Channels of the first block, even; the blocks have 64, 160, 320 and 640 by default.
      lowering: How the convolutions are computed, as in `nn.conv2d`.

    Returns:
      A `Model` on images `[examples, height, width, channels]` of at least 16x16.

    Raises:
      ValueError: if the width is not a positive even number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = resnet12(5, width=4)
      >>> params, state = jax.jit(model.init)(jax.random.key(0), jnp.ones([2, 16, 16, 3]))
      >>> jax.jit(model.apply)(params, state, jnp.ones([2, 16, 16, 3]))[0].shape
      (2, 5)

    Source: Oreshkin et al., 2018, arXiv 1805.10123; Lee et al., 2019, arXiv 1904.03758.
    """
    if width < 2 or width % 2:
        raise ValueError(
            f"resnet12 needs a positive even width (the second block has 2.5 times as much); given {width}."
        )
    return from_linen(ResNet12Body(width, lowering), nn.Dense(outputs))
