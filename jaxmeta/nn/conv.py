"""Convolution as patches and one matrix product.

Under `vmap` over tasks every task has kernels of its own, and XLA turns
such a convolution into a grouped one, whose weight gradient is ruinous on a CPU
(`benchmarks/meta_step.py --plain` measures 17 times for the whole step). Written as
patches and a product it becomes a batched matrix product, which every backend does
well, and its derivatives of any order are again slices, pads and products.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Padding = str | Sequence[tuple[int, int]]


def extract_patches(
    inputs: jax.Array, window: tuple[int, int], strides: tuple[int, int] = (1, 1), padding: Padding = "SAME"
) -> jax.Array:
    """Collect, for each output position, the inputs under the window.

    Args:
      inputs: `[examples, height, width, channels]`.
      window: Height and width of the window.
      strides: Steps of the window.
      padding: "SAME", "VALID" or (low, high) for height and for width.

    Returns:
      `[examples, out_height, out_width, window_height * window_width * channels]`, the
      channel running fastest.

    Example:
      >>> import jax.numpy as jnp
      >>> extract_patches(jnp.ones([2, 28, 28, 1]), (3, 3), (2, 2)).shape
      (2, 14, 14, 9)
    """
    examples, height, width, channels = inputs.shape
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads((height, width), window, strides, padding)
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    out_height = (padded.shape[1] - window[0]) // strides[0] + 1
    out_width = (padded.shape[2] - window[1]) // strides[1] + 1
    columns = [
        jax.lax.slice(
            padded,
            (0, row, column, 0),
            (examples, row + (out_height - 1) * strides[0] + 1, column + (out_width - 1) * strides[1] + 1, channels),
            (1, *strides, 1),
        )
        for row in range(window[0])
        for column in range(window[1])
    ]
    return jnp.concatenate(columns, axis=-1)


def conv2d(
    inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int] = (1, 1), padding: Padding = "SAME"
) -> jax.Array:
    """Convolve images with a kernel: `y[i, j] = sum_{a, b} x[s i + a, s j + b] k[a, b]`.

    Equal to `jax.lax.conv_general_dilated` in NHWC and HWIO, and fast when both
    the images and the kernel have a task axis under `vmap`.

    Args:
      inputs: `[examples, height, width, channels]`.
      kernel: `[window_height, window_width, channels, features]`.
      strides: Steps of the window.
      padding: "SAME", "VALID" or (low, high) for height and for width.

    Returns:
      `[examples, out_height, out_width, features]`.

    Raises:
      ValueError: if the kernel does not fit the channels of the inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> conv2d(jnp.ones([2, 28, 28, 3]), jnp.ones([3, 3, 3, 8]), (2, 2)).shape
      (2, 14, 14, 8)
    """
    window_height, window_width, channels, features = kernel.shape
    if inputs.ndim != 4 or inputs.shape[-1] != channels:
        raise ValueError(
            f"conv2d needs inputs [examples, height, width, {channels}] for a kernel "
            f"{list(kernel.shape)}; given inputs {list(inputs.shape)}."
        )
    patches = extract_patches(inputs, (window_height, window_width), strides, padding)
    # A plain two-dimensional product: under vmap it becomes one batched product.
    flat = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, features)
    return flat.reshape(*patches.shape[:-1], features)


class Conv(nn.Module):
    """Two-dimensional convolution, a drop-in for `flax.linen.Conv` (same names, same parameters).

    Attributes:
      features: Number of output channels.
      kernel_size: Height and width of the kernel.
      strides: One step, or one each for height and width.
      padding: "SAME", "VALID" or (low, high) for height and for width.
      use_bias: Whether to add a learned bias.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: int | tuple[int, int] = 1
    padding: Padding = "SAME"
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolve `[examples, height, width, channels]`."""
        strides = (self.strides, self.strides) if isinstance(self.strides, int) else self.strides
        shape = (*self.kernel_size, inputs.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        outputs = conv2d(inputs, kernel, strides, self.padding)
        if self.use_bias:
            outputs = outputs + self.param("bias", nn.initializers.zeros, (self.features,))
        return outputs
