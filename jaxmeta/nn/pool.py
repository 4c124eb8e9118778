"""Pooling that differentiates to any order and under any `vmap`."""

import jax
import jax.numpy as jnp


def max_pool_2x2(inputs: jax.Array) -> jax.Array:
    """Take the maximum of each 2x2 square; an odd last row or column is dropped.

    Args:
      inputs: `[examples, height, width, channels]`.

    Returns:
      `[examples, height // 2, width // 2, channels]`.

    Example:
      >>> import jax.numpy as jnp
      >>> max_pool_2x2(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, ..., 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """
    examples, height, width, channels = inputs.shape
    inputs = inputs[:, : height // 2 * 2, : width // 2 * 2]
    # A reshape and a maximum: XLA's pooling gradient (select and scatter) is slow
    # on a CPU and has no second derivative there.
    squares = inputs.reshape(examples, height // 2, 2, width // 2, 2, channels)
    return jnp.max(squares, axis=(2, 4))
