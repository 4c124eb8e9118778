"""Winograd's minimal filtering F(2x2, 3x3), for windows of 3x3 and stride 1.

Two outputs of three taps take four products instead of six; in two dimensions sixteen instead of
thirty-six. `Y = A^T [(G k G^T) * (B^T x B)] A` on tiles of 4x4 inputs that overlap by two, where
the products in brackets, summed over channels, are sixteen matrix products. The transforms only
add, subtract and halve, so the rounding error stays near that of the definition; larger tiles
save more and lose digits. The gradient for the kernel is the transpose of the same form.

Source: Lavin and Gray, 2015, arXiv 1509.09308.
"""

import jax
import jax.numpy as jnp

Pairs = tuple[tuple[int, ...], ...]


def winograd_output(inputs: jax.Array, kernel: jax.Array, padding: Pairs, precision: str | None = None) -> jax.Array:
    """Convolve `[examples, height, width, channels]` with `[3, 3, channels, features]`."""
    height, width = (size + sum(pair) - 2 for size, pair in zip(inputs.shape[1:3], padding, strict=True))
    tiles = _input_tiles(inputs, padding, (height, width))
    grid, features = tiles.shape[1:4], kernel.shape[3]
    taps = jnp.stack(_both_ways(_kernel_transform, kernel, list))
    products = jnp.matmul(tiles.reshape(16, -1, tiles.shape[4]), taps, precision=precision)
    squares = _both_ways(_output_transform, products.reshape(4, 4, *grid, features), list)
    rows = [jnp.stack(squares[start : start + 2], axis=3) for start in (0, 2)]
    return jnp.stack(rows, axis=2).reshape(grid[0], 2 * grid[1], 2 * grid[2], features)[:, :height, :width]


def winograd_kernel(inputs: jax.Array, output: jax.Array, padding: Pairs, precision: str | None = None) -> jax.Array:
    """Give the gradient `[3, 3, channels, features]` for the kernel from that for the output."""
    height, width = output.shape[1:3]
    even = jnp.pad(output, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows = [even[:, start::2] for start in range(2)]
    spread = _both_ways(_output_transposed, rows, lambda row: [row[:, :, start::2] for start in range(2)])
    spread = jnp.stack(spread).reshape(16, -1, output.shape[3])
    tiles = _input_tiles(inputs, padding, (height, width)).reshape(16, -1, inputs.shape[3])
    products = jnp.einsum("tnc,tnf->tcf", tiles, spread, precision=precision)
    taps = _both_ways(_kernel_transposed, products.reshape(4, 4, *products.shape[1:]), list)
    return jnp.stack(taps).reshape(3, 3, *products.shape[1:])


def _input_tiles(inputs, padding, out_size):
    """`B^T x B` of the tile under each 2x2 square of outputs, `[16, examples, rows, columns, channels]`."""
    rows, columns = (-(-size // 2) for size in out_size)
    (top, _), (left, _) = padding
    bottom, right = 2 * rows + 2 - top - inputs.shape[1], 2 * columns + 2 - left - inputs.shape[2]
    padded = jnp.pad(inputs, ((0, 0), (top, bottom), (left, right), (0, 0)))
    lines = [padded[:, start : start + 2 * rows - 1 : 2] for start in range(4)]
    return jnp.stack(
        _both_ways(
            _input_transform,
            lines,
            lambda line: [line[:, :, start : start + 2 * columns - 1 : 2] for start in range(4)],
        )
    )


def _both_ways(transform, rows, columns_of):
    """Transform the rows, then the columns that each of the results is cut into."""
    return [entry for row in transform(rows) for entry in transform(columns_of(row))]


def _input_transform(x):
    """`B^T x`."""
    return x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]


def _kernel_transform(k):
    """`G k`."""
    outer, middle = 0.5 * (k[0] + k[2]), 0.5 * k[1]
    return k[0], outer + middle, outer - middle, k[2]


def _kernel_transposed(m):
    """`G^T m`."""
    return m[0] + 0.5 * (m[1] + m[2]), 0.5 * (m[1] - m[2]), 0.5 * (m[1] + m[2]) + m[3]


def _output_transform(m):
    """`A^T m`."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _output_transposed(y):
    """`A y`."""
    return y[0], y[0] + y[1], y[0] - y[1], -y[1]
