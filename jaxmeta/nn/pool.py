"""Maximum pooling whose derivatives of any order move numbers by one stored index.

XLA's own gradient (select and scatter) is slow on a CPU and has no second derivative there. Here
the place of each maximum, one byte, is all that is kept; every derivative either picks the
numbers at those places or puts numbers back there, and the two are each other's transposes.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


@jax.custom_jvp
def max_pool_2x2(inputs: jax.Array) -> jax.Array:
    """Take the maximum of each 2x2 square; an odd last row or column is dropped.

    Of equal numbers the first in reading order counts in derivatives, as in PyTorch.

    Args:
      inputs: `[examples, height, width, channels]`.

    Returns:
      `[examples, height // 2, width // 2, channels]`.

    Example:
      >>> import jax.numpy as jnp
      >>> max_pool_2x2(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, ..., 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """
    first, second, third, fourth = _corners(inputs)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


@max_pool_2x2.defjvp
def _max_pool_jvp(primals, tangents):
    (inputs,), (tangent,) = primals, tangents
    return max_pool_2x2(inputs), pick_p.bind(tangent, _places(inputs), size=inputs.shape[-3:-1])


def _corners(inputs):
    height, width = inputs.shape[1] // 2 * 2, inputs.shape[2] // 2 * 2
    return [inputs[:, row:height:2, column:width:2] for row in range(2) for column in range(2)]


def _places(inputs):
    """Which corner of its square holds the maximum: 0 to 3 in reading order."""
    best, *others = _corners(inputs)
    places = jnp.zeros(best.shape, jnp.int8)
    for place, corner in enumerate(others, start=1):
        places = jnp.where(corner > best, jnp.int8(place), places)
        best = jnp.maximum(best, corner)
    return places


def _pick(values, places, *, size):
    """The number at the place, of each square."""
    zero = jnp.zeros((), values.dtype)
    return sum(jnp.where(places == place, corner, zero) for place, corner in enumerate(_corners(values)))


def _put(values, places, *, size):
    """Squares of zeros but for the number at the place."""
    corners = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    squares = jnp.where(places[:, :, None, :, None] == corners, values[:, :, None, :, None], 0)
    examples, rows, columns, channels = values.shape
    image = squares.reshape(examples, 2 * rows, 2 * columns, channels)
    return jnp.pad(image, ((0, 0), (0, size[0] - 2 * rows), (0, size[1] - 2 * columns), (0, 0)))


def _jvp(primitive, primals, tangents, *, size):
    """Linear in the values; the places are whole numbers and have no tangent."""
    (values, places), (tangent, _) = primals, tangents
    if isinstance(tangent, ad.Zero):
        tangent = ad.instantiate_zeros(tangent)
    return primitive.bind(values, places, size=size), primitive.bind(tangent, places, size=size)


def _transpose(transposed, cotangent, values, places, *, size):
    return [transposed.bind(cotangent, places, size=size), None]


def _batch(primitive, operands, axes, *, size):
    """Tasks are more examples."""
    axis_size = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
    merged = [
        jnp.broadcast_to(operand, (axis_size, *operand.shape)) if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    result = primitive.bind(*(operand.reshape(-1, *operand.shape[2:]) for operand in merged), size=size)
    return result.reshape(axis_size, -1, *result.shape[1:]), 0


def _primitive(name, function, result_size):
    primitive = Primitive(name)

    def abstract(values, places, *, size):
        shape = (values.shape[0], *result_size(size), values.shape[3])
        return ShapedArray(shape, values.dtype)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(function, static_argnames="size"))
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    ad.primitive_jvps[primitive] = partial(_jvp, primitive)
    batching.primitive_batchers[primitive] = partial(_batch, primitive)
    return primitive


pick_p = _primitive("pick_2x2", _pick, lambda size: (size[0] // 2, size[1] // 2))
put_p = _primitive("put_2x2", _put, lambda size: size)
ad.primitive_transposes[pick_p] = partial(_transpose, put_p)
ad.primitive_transposes[put_p] = partial(_transpose, pick_p)
