"""Convolution of images, fast also where every task has a kernel of its own.

Under `vmap` over tasks XLA turns a convolution with per-task kernels into a grouped one, whose
weight gradient is ruinous on a CPU. Ours is a primitive (`nn/contraction.py`) that is closed under
differentiation and lowered by shape and backend (`nn/lowerings.py`), or by a table of what
was measured (`nn/lowering_table.py`).
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.nn.canonical import DIMENSIONS
from jaxmeta.nn.contraction import Static, contract
from jaxmeta.nn.lowering_table import LoweringTable
from jaxmeta.nn.lowerings import LOWERINGS, Geometry
from jaxmeta.nn.moments import are_cheaper, convolution_statistics

Padding = str | Sequence[tuple[int, int]]


def conv2d(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: int | tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    *,
    dilation: int | tuple[int, int] = (1, 1),
    groups: int = 1,
    lowering: str | LoweringTable = "auto",
) -> jax.Array:
    """Convolve images with a kernel: `y[i, j] = sum_{a, b} x[s i + d a, s j + d b] k[a, b]`.

    Equal to `jax.lax.conv_general_dilated` in NHWC and HWIO, in derivatives of any order,
    forward and reverse, and fast when images and kernel have a task axis under `vmap`.

    Args:
      inputs: `[examples, height, width, channels]`.
      kernel: `[window_height, window_width, channels / groups, features]`.
      strides: Steps of the window, one or one each way.
      padding: "SAME", "VALID" or (low, high) for height and for width.
      dilation: Distance between the places of the window, one or one each way.
      groups: Parts that channels and features are divided into; as many as channels is depthwise.
      lowering: A key of `LOWERINGS`, how it is computed; "auto" chooses by backend and shape; a
        `LoweringTable` by what was measured, and like "auto" where it does not have the case.

    Returns:
      `[examples, out_height, out_width, features]`.

    Raises:
      ValueError: if the kernel does not fit the channels of the inputs, or the window the image; for strides,
        dilations or groups that are not positive, and an unknown lowering.

    Example:
      >>> import jax.numpy as jnp
      >>> conv2d(jnp.ones([2, 28, 28, 3]), jnp.ones([3, 3, 3, 8]), (2, 2)).shape
      (2, 14, 14, 8)
    """
    inputs, kernel = jnp.asarray(inputs), jnp.asarray(kernel)
    strides, dilation = _both_ways(strides), _both_ways(dilation)
    if min(*strides, *dilation, groups) < 1:
        raise ValueError(
            f"conv2d needs positive strides, dilations and groups; given strides={strides}, dilation={dilation}, "
            f"groups={groups}."
        )
    if kernel.ndim != 4 or inputs.ndim != 4 or inputs.shape[-1] != kernel.shape[2] * groups:
        needed = kernel.shape[2] * groups if kernel.ndim == 4 else "channels"
        raise ValueError(
            f"conv2d needs inputs [examples, height, width, {needed}] for a kernel "
            f"{list(kernel.shape)}; given inputs {list(inputs.shape)}."
        )
    if kernel.shape[3] % groups:
        raise ValueError(f"groups={groups} does not divide the {kernel.shape[3]} features. Use a divisor of them.")
    if not isinstance(lowering, LoweringTable) and lowering not in ("auto", *LOWERINGS):
        raise ValueError(f"lowering={lowering!r} is none of: auto, {', '.join(LOWERINGS)}, a LoweringTable.")
    geometry = _geometry(inputs.shape, kernel.shape, strides, padding, dilation, groups)
    if min(geometry.out_size) < 1:
        raise ValueError(
            f"The window {list(geometry.window)} does not fit images of {list(geometry.size)} with padding "
            f"{geometry.padding}. Use larger images, a smaller window or padding 'SAME'."
        )
    dtype = jnp.promote_types(inputs.dtype, kernel.dtype)
    static = Static("output", geometry, lowering, jax.config.values["jax_default_matmul_precision"])
    return contract(inputs.astype(dtype), kernel.astype(dtype), static)


def _geometry(inputs_shape, kernel_shape, strides, padding, dilation, groups) -> Geometry:
    size, window = inputs_shape[1:3], kernel_shape[:2]
    if isinstance(padding, str):
        spans = [(places - 1) * step + 1 for places, step in zip(window, dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(size, spans, strides, padding)
    return Geometry(size, window, tuple(strides), tuple(map(tuple, padding)), tuple(dilation), groups)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    *,
    precision: Any = None,
    lowering: str | LoweringTable = "auto",
    **options: Any,
) -> jax.Array:
    """Compute what `jax.lax.conv_general_dilated` does, images as `conv2d` does: for Flax's own `Conv`.

    `flax.linen.Conv` and `flax.nnx.Conv` take it as their `conv_general_dilated`, and with it become as fast where
    every task has a kernel of its own. What is no convolution of images in NHWC and HWIO (other dimensions or numbers
    of them, dilated inputs, a type of the results) is XLA's own.

    Args:
      lhs: Inputs.
      rhs: Kernel.
      window_strides: Steps of the window.
      padding: "SAME", "VALID" or (low, high) for each dimension.
      lhs_dilation: Of the inputs.
      rhs_dilation: Of the kernel.
      dimension_numbers: Which axis is which.
      feature_group_count: Groups.
      precision: Of products, by name or as `jax.lax.Precision`; None: as `jax.default_matmul_precision`.
      lowering: As for `conv2d`.
      options: Others of `jax.lax.conv_general_dilated`.

    Returns:
      As `jax.lax.conv_general_dilated`.

    Raises:
      ValueError: as `conv2d`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> layer = nn.Conv(8, (3, 3), kernel_init=nn.initializers.ones, conv_general_dilated=conv_general_dilated)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones([2, 28, 28, 3]))[0].shape
      (2, 28, 28, 8)
    """
    try:
        # Of its aliases `jax.default_matmul_precision` does not know all.
        name = None if precision is None else jax.lax.Precision(precision).name.lower()
    except ValueError:
        name = "of each operand, or an algorithm"
    ours = lhs.ndim == 4 and jnp.issubdtype(lhs.dtype, jnp.floating) and lhs.dtype == rhs.dtype
    ours &= set(lhs_dilation or (1,)) == {1} and len(rhs_dilation or (1, 1)) == 2
    ours &= name in (None, "default", "high", "highest") and options.get("batch_group_count", 1) == 1
    ours &= all(value is None for option, value in options.items() if option != "batch_group_count")
    if ours:
        given = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        ours = given == jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, DIMENSIONS)
    if not ours:
        options |= {"lhs_dilation": lhs_dilation, "rhs_dilation": rhs_dilation, "precision": precision}
        options |= {"dimension_numbers": dimension_numbers, "feature_group_count": feature_group_count}
        return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    (down, right), (spread_down, spread_right) = window_strides, rhs_dilation or (1, 1)
    windows = {"dilation": (spread_down, spread_right), "groups": feature_group_count, "lowering": lowering}
    with jax.default_matmul_precision(name) if name else contextlib.nullcontext():
        return conv2d(lhs, rhs, (down, right), padding, **windows)


class BeforeNorm(NamedTuple):
    """A convolution whose outputs will be normalised.

    Attributes:
      outputs: `[examples, out_height, out_width, features]`, without the bias.
      bias: `[features]`, or None.
      statistics: Computes their mean and variance from the inputs; None where the outputs are the cheaper way.
    """

    outputs: jax.Array
    bias: jax.Array | None
    statistics: Callable[[], tuple[jax.Array, jax.Array]] | None


class Conv(nn.Module):
    """Two-dimensional convolution with the names and parameters of `flax.linen.Conv`.

    It has what few-shot backbones need. A module that is written with Flax's own `Conv`, of linen or nnx, keeps
    all of its options with `conv_general_dilated=jaxmeta.nn.conv_general_dilated`.

    Attributes:
      features: Number of output channels.
      kernel_size: Height and width of the kernel.
      strides: One step, or one each for height and width.
      padding: "SAME", "VALID" or (low, high) for height and for width.
      use_bias: Whether to add a learned bias.
      kernel_dilation: One distance between the places of the window, or one each way.
      feature_group_count: Parts that channels and features are divided into.
      lowering: How it is computed, as in `conv2d`.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: int | tuple[int, int] = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_dilation: int | tuple[int, int] = 1
    feature_group_count: int = 1
    lowering: str | LoweringTable = "auto"

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolve `[examples, height, width, channels]`."""
        outputs, bias, _ = self.before_norm(inputs)
        return outputs if bias is None else outputs + bias

    @nn.compact
    def before_norm(self, inputs: jax.Array, weights: jax.Array | None = None) -> BeforeNorm:
        """Convolve, and give apart what spares `BatchNorm` a pass over all outputs; `weights` as it takes them."""
        shape = (*self.kernel_size, inputs.shape[-1] // self.feature_group_count, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        windows = {
            "strides": _both_ways(self.strides),
            "padding": self.padding,
            "dilation": _both_ways(self.kernel_dilation),
            "groups": self.feature_group_count,
        }
        outputs = conv2d(inputs, kernel, **windows, lowering=self.lowering)
        geometry = _geometry(inputs.shape, kernel.shape, **windows)
        cheaper = are_cheaper(kernel.shape, geometry) and _products_are_exact()
        statistics = partial(convolution_statistics, inputs, kernel, geometry, weights) if cheaper else None
        return BeforeNorm(outputs, bias, statistics)


def _products_are_exact() -> bool:
    """Whether outputs are those that statistics of patches are of: TF32 rounds the kernel, and with it their mean."""
    asked = jax.config.values["jax_default_matmul_precision"]
    return jax.default_backend() == "cpu" or asked in ("highest", "float32")


def _both_ways(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
