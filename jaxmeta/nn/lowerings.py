"""The ways of computing a convolution and its two gradients.

Each way is a function of two of input `[examples, height, width, channels]`, kernel `[window_height, window_width,
channels / groups, features]` and output `[examples, out_height, out_width, features]`, in this order, that gives the
third. A leading task axis on both is a `vmap`, or a loop over tasks where the backend is faster with one.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.nn.blocks import in_blocks
from jaxmeta.nn.canonical import DIMENSIONS, canonical_kernel, canonical_output
from jaxmeta.nn.processor import has_wide_vectors
from jaxmeta.nn.winograd import winograd_kernel, winograd_output

ROLES = ("input", "kernel", "output")
# Of 3x3 convolutions with fewer, patches were no slower on a CPU; `jaxmeta plan --lowerings` measures it.
WINOGRAD_CHANNELS = 32
# Of patches or tiles that are made at once on a CPU.
CACHE_BYTES = 5 * 2**20
# Over which the canonical gradient of a kernel sums at once: one image of 42 x 42, or five of 14 x 14, was fastest.
KERNEL_POSITIONS = 1024


class Geometry(NamedTuple):
    """The sizes of a convolution that its operands need not show."""

    size: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    padding: tuple[tuple[int, ...], ...] = ((0, 0), (0, 0))
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        spans = ((window - 1) * dilation + 1 for window, dilation in zip(self.window, self.dilation, strict=True))
        sizes = zip(self.size, self.padding, spans, self.strides, strict=True)
        height, width = ((size + sum(padding) - span) // stride + 1 for size, padding, span, stride in sizes)
        return height, width


def result_shape(first: tuple, second: tuple, missing: str, geometry: Geometry) -> tuple[int, ...]:
    """The shape of the missing role; a task axis of the operands is kept."""
    tasks, first, second = first[:-4], first[-4:], second[-4:]
    if missing == "output":
        return *tasks, first[0], *geometry.out_size, second[3]
    if missing == "input":
        return *tasks, second[0], *geometry.size, first[2] * geometry.groups
    return *tasks, *geometry.window, first[3] // geometry.groups, second[3]


def by_xla(first, second, missing, geometry, precision):
    """XLA's own convolution and the gradients that JAX derives from it."""

    def convolve(inputs, kernel):
        return jax.lax.conv_general_dilated(
            inputs,
            kernel,
            geometry.strides,
            geometry.padding,
            rhs_dilation=geometry.dilation,
            dimension_numbers=DIMENSIONS,
            feature_group_count=geometry.groups,
            precision=precision,
        )

    return _by_transposes(convolve, first, second, missing, geometry)


def by_canonical(first, second, missing, geometry, precision):
    """XLA's own convolution in the layout that is fast; by patches the gradient for the input that is not one of these.

    That is the one of a convolution with strides, or with more padding than its window reaches.
    """
    _, window, strides, padding, dilation, _ = geometry
    if missing == "kernel":
        return canonical_kernel(first, second, window, strides, padding, dilation, precision)
    if missing == "output":
        return canonical_output(first, second, strides, padding, dilation, precision)
    if back := turned(geometry):
        kernel = jax.lax.optimization_barrier(turned_kernel(first))
        return canonical_output(second, kernel, (1, 1), back.padding, dilation, precision)
    return by_patches(first, second, missing, geometry, precision)


def patches_of(inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """The inputs under the window at each output position, `[..., window * channels]`, the channel fastest."""
    padded = jnp.pad(inputs, ((0, 0), *geometry.padding, (0, 0)))
    examples, channels = inputs.shape[0], inputs.shape[3]
    (stride_down, stride_right), (height, width) = geometry.strides, geometry.out_size
    columns = []
    for row in range(0, geometry.window[0] * geometry.dilation[0], geometry.dilation[0]):
        for column in range(0, geometry.window[1] * geometry.dilation[1], geometry.dilation[1]):
            stop = (row + (height - 1) * stride_down + 1, column + (width - 1) * stride_right + 1)
            strides = (1, stride_down, stride_right, 1)
            columns.append(jax.lax.slice(padded, (0, row, column, 0), (examples, *stop, channels), strides))
    return jnp.concatenate(columns, axis=-1)


def by_patches(first, second, missing, geometry, precision):
    """Patches and one matrix product."""
    if missing == "output":
        patches = patches_of(first, geometry)
        rows = patches.reshape(-1, patches.shape[-1])
        flat = jnp.matmul(rows, second.reshape(-1, second.shape[-1]), precision=precision)
        return flat.reshape(*patches.shape[:-1], second.shape[-1])
    if missing == "kernel":
        patches, output = patches_of(first, geometry), second.reshape(-1, second.shape[-1])
        patches = patches.reshape(-1, patches.shape[-1])
        if patches.shape[-1] > output.shape[-1]:
            # A product transposes its first factor, if need be: let it be the smaller. XLA would turn this round again.
            flat = jax.lax.optimization_barrier(jnp.matmul(output.T, patches, precision=precision)).T
        else:
            flat = jnp.matmul(patches.T, output, precision=precision)
        return flat.reshape(*geometry.window, first.shape[-1], second.shape[-1])
    if flipped := turned(geometry):
        return by_patches(second, turned_kernel(first), "output", flipped, precision)
    kernel, wide = first.reshape(-1, first.shape[-1]), jnp.promote_types(first.dtype, jnp.float32)
    like = jax.ShapeDtypeStruct(result_shape(first.shape, second.shape, missing, geometry), wide)
    patches = jnp.matmul(second, kernel.T, precision=precision, preferred_element_type=wide)
    return jax.linear_transpose(lambda inputs: patches_of(inputs, geometry), like)(patches)[0].astype(first.dtype)


def turned(geometry: Geometry) -> Geometry | None:
    """The convolution of the output that gives the input's gradient; None where strides forbid one."""
    spans = [(window - 1) * dilation for window, dilation in zip(geometry.window, geometry.dilation, strict=True)]
    (top, bottom), (left, right) = geometry.padding
    padding = ((spans[0] - top, spans[0] - bottom), (spans[1] - left, spans[1] - right))
    if geometry.strides != (1, 1) or min(*padding[0], *padding[1]) < 0:
        return None
    return geometry._replace(size=geometry.out_size, padding=padding)


def turned_kernel(kernel: jax.Array) -> jax.Array:
    """The kernel turned by half a turn, with channels and features exchanged."""
    return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


def by_winograd(first, second, missing, geometry, precision):
    """Winograd's F(2x2, 3x3): 2.25 times fewer multiplications than the definition."""
    if missing == "kernel":
        return winograd_kernel(first, second, geometry.padding, precision)
    if missing == "input" and (back := turned(geometry)):
        return winograd_output(second, turned_kernel(first), back.padding, precision)
    return winograd_output(first, second, geometry.padding, precision)


def by_shifts(first, second, missing, geometry, precision):
    """One shifted product for each place of the window, for kernels that do not mix channels (depthwise)."""
    del precision  # There is no matrix product.

    def convolve(inputs, kernel):
        examples, channels = inputs.shape[0], inputs.shape[3]
        wide = jnp.promote_types(inputs.dtype, jnp.float32)  # A sum in few digits would lose some of them.
        patches = patches_of(inputs.astype(wide), geometry).reshape(examples, *geometry.out_size, -1, channels, 1)
        taps = kernel.astype(wide).reshape(-1, channels, kernel.shape[3] // channels)
        products = [patches[..., place, :, :] * taps[place] for place in range(len(taps))]
        return functools.reduce(jnp.add, products).reshape(examples, *geometry.out_size, -1).astype(inputs.dtype)

    return _by_transposes(convolve, first, second, missing, geometry)


def _by_transposes(convolve, first, second, missing, geometry):
    """Contract by a convolution, or by what JAX derives from it."""
    if missing == "output":
        return convolve(first, second)
    like = jax.ShapeDtypeStruct(result_shape(first.shape, second.shape, missing, geometry), first.dtype)
    if missing == "input":
        return jax.linear_transpose(lambda inputs: convolve(inputs, first), like)(second)[0]
    return jax.linear_transpose(lambda kernel: convolve(first, kernel), like)(second)[0]


def _tasks_in_turn(contract):
    return lambda first, second: jax.lax.map(lambda pair: contract(*pair), (first, second))


class Lowering(NamedTuple):
    """A way of computing.

    Attributes:
      contract: `(first, second, missing, geometry, precision) -> missing role`, of one task.
      covers: `(geometry, channels, dtype)`: whether it computes these, to all digits that the type has.
      over_tasks: How tasks with kernels of their own go through it.
      at_once: `(geometry, missing, bytes of an input's pixel)`: how many examples a CPU computes at once, None for all.
    """

    contract: Callable[..., jax.Array]
    covers: Callable[[Geometry, int, str], bool]
    over_tasks: Callable[[Callable], Callable] = jax.vmap
    at_once: Callable[[Geometry, str, int], int | None] = lambda geometry, missing, pixel: None


LOWERINGS = {
    "xla": Lowering(by_xla, lambda geometry, channels, dtype: True),
    "xla_in_turn": Lowering(by_xla, lambda geometry, channels, dtype: True, _tasks_in_turn),
    "canonical": Lowering(
        by_canonical,
        lambda geometry, channels, dtype: geometry.groups == 1 and _pads(geometry),
        _tasks_in_turn,
        lambda geometry, missing, pixel: _summed(geometry, pixel) if missing == "kernel" else None,
    ),
    "patches": Lowering(
        by_patches,
        lambda geometry, channels, dtype: geometry.groups == 1 and _pads(geometry),
        at_once=lambda geometry, missing, pixel: _in_cache(geometry, math.prod(geometry.window) * pixel),
    ),
    "winograd": Lowering(
        by_winograd,
        lambda geometry, channels, dtype: _is_winograd(geometry, dtype),
        at_once=lambda geometry, missing, pixel: _in_cache(geometry, 4 * pixel),
    ),
    "shifts": Lowering(by_shifts, lambda geometry, channels, _: geometry.groups == channels > 1 and _pads(geometry)),
}


def _in_cache(geometry, bytes_per_position):
    return CACHE_BYTES // (math.prod(geometry.out_size) * bytes_per_position)


def _summed(geometry, bytes_per_pixel):
    # Of few channels an image is a poor matrix.
    return max(KERNEL_POSITIONS // math.prod(geometry.out_size), 5 if bytes_per_pixel < 32 else 1)


def _pads(geometry):
    """Whether padding adds: of less than none, which cuts off, XLA's own convolution takes care."""
    return min(*geometry.padding[0], *geometry.padding[1]) >= 0


def _is_winograd(geometry, dtype):
    # Its transforms would cost a type of few digits some of them: four times the error in bfloat16.
    plain = geometry.groups == 1 and geometry.strides == geometry.dilation == (1, 1) and "16" not in dtype
    return plain and _pads(geometry) and geometry.window == (3, 3) and turned(geometry) is not None


def choose_lowering(
    platform: str,
    geometry: Geometry,
    channels: int,
    features: int,
    per_task: bool,
    *,
    dtype: str = "float32",
    wide: bool | None = None,
) -> str:
    """Choose the way that was fastest where it was measured.

    Args:
      platform: "cpu", "cuda", "rocm", "tpu" or "other".
      geometry: Window, strides, padding, dilation, groups.
      channels: Of the input.
      features: Of the output.
      per_task: Whether every task has a kernel of its own.
      dtype: Name of the type of the operands.
      wide: Whether the products of a CPU are of 512 bits; None: as of this one.

    Returns:
      A key of `LOWERINGS`; it covers whatever an own way does.

    Example:
      >>> geometry = Geometry((14, 14), (3, 3), padding=((1, 1), (1, 1)))
      >>> [choose_lowering("cpu", geometry, 64, 64, True, wide=wide) for wide in (False, True)]
      ['winograd', 'canonical']
    """
    if LOWERINGS["shifts"].covers(geometry, channels, dtype):
        return "shifts"
    if geometry.groups > 1:
        return "xla_in_turn" if platform == "cpu" else "xla"
    if platform != "cpu" and not per_task:
        return "xla"
    # Measured on two cores of a Xeon with jax 0.10.2, on the layers of conv4: where products are fast, the memory that
    # the others go through takes the time. With strides patches were as fast; of float64 XLA has no fast kernels.
    wide = has_wide_vectors() if wide is None else wide
    if platform == "cpu" and geometry.strides == (1, 1) and dtype == "float32" and wide:
        return "canonical"
    # Of few channels the transforms cost more than the products that they save.
    if platform == "cpu" and min(channels, features) >= WINOGRAD_CHANNELS and _is_winograd(geometry, dtype):
        return "winograd"
    return "patches"


def contract_by(lowering: str, platform: str, first, second, missing: str, geometry: Geometry, precision):
    """Contract two roles to the missing one, by a way of the table that covers them."""
    way = LOWERINGS[lowering]

    def contract(first, second):
        return way.contract(first, second, missing, geometry, precision)

    if platform == "cpu":
        channels = first.shape[-2] * geometry.groups if missing == "input" else first.shape[-1]
        fitting = way.at_once(geometry, missing, channels * first.dtype.itemsize)
        contract = contract if fitting is None else in_blocks(contract, missing, max(1, fitting))
    return contract(first, second) if first.ndim == 4 else way.over_tasks(contract)(first, second)
