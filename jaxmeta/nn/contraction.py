"""The convolution as one primitive that is closed under differentiation.

A convolution is the trilinear form `sum x[n, s i + d a, c] k[a, c, f] y[n, i, f]` of an input, a
kernel and an output, with one of the three left out. Leaving out the output convolves; leaving out
the input, or the kernel, gives the gradient for it. The derivative of each is again one of the
three, so that any order of forward and reverse mode ends in the same few fast lowerings. A
`custom_vjp` would shut out forward mode, and a `custom_jvp` fails under a gradient of a gradient.
"""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, Primitive, jaxprs_in_params
from jax.interpreters import ad, batching, mlir

from jaxmeta.nn.lowering_table import Case, LoweringTable, lowering_of
from jaxmeta.nn.lowerings import ROLES, Geometry, contract_by, result_shape


class Static(NamedTuple):
    """What of a contraction is known when it is traced."""

    missing: str
    geometry: Geometry
    lowering: str | LoweringTable
    precision: str | None


def contract(first: jax.Array, second: jax.Array, static: Static) -> jax.Array:
    """Contract two of input, kernel and output (in this order) to the missing one."""
    return contract_p.bind(first, second, static=static)


def _abstract(first, second, *, static):
    shape = result_shape(first.shape, second.shape, static.missing, static.geometry)
    return ShapedArray(shape, first.dtype)


def _given(missing):
    return [role for role in ROLES if role != missing]


def _transpose(position, cotangent, first, second, *, static):
    """The cotangent takes the place of the missing role; the role it is asked for goes missing."""
    given = _given(static.missing)
    operands = {static.missing: cotangent, given[1 - position]: (second, first)[position]}
    static = static._replace(missing=given[position])
    ahead, behind = (operands[role] for role in _given(static.missing))
    return contract(ahead, behind, static)


def _batch(operands, axes, *, static):
    """Merge the new axis into the examples where the kernel is shared, or make it a task axis.

    Images that share a kernel are one larger batch, in one operation. Kernels of their own
    make a leading task axis; under several `vmap`s these become one.
    """
    given = dict(zip(_given(static.missing), zip(operands, axes, strict=True), strict=True))
    size = next(operand.shape[axis] for operand, axis in given.values() if axis is not None)
    kernel, axis = given.get("kernel", (None, 0))
    images = [role for role in given if role != "kernel"]
    if "kernel" in given and axis is None:
        (image, axis), examples_at = given[images[0]], kernel.ndim - 4
        merged, undo = _merge(image, axis, examples_at)
        values = {"kernel": kernel, images[0]: merged}
        ahead, behind = (values[role] for role in given)
        return undo(contract(ahead, behind, static)), examples_at
    values, tasks = [], ()
    for operand, axis in given.values():
        operand = jnp.broadcast_to(operand, (size, *operand.shape)) if axis is None else jnp.moveaxis(operand, axis, 0)
        tasks = operand.shape[:-4]
        values.append(operand.reshape(math.prod(tasks), *operand.shape[-4:]))
    result = contract(values[0], values[1], static)
    return result.reshape(*tasks, *result.shape[1:]), 0


def _merge(image, axis, at):
    """Move an axis beside the examples, which are at `at`, and make them one; also give the way back."""
    image = jnp.moveaxis(image, axis, at)
    size, shape = image.shape[at], image.shape
    merged = image.reshape(*shape[:at], size * shape[at + 1], *shape[at + 2 :])
    return merged, lambda result: result.reshape(*result.shape[:at], *shape[at : at + 2], *result.shape[at + 1 :])


def _lower(platform):
    return mlir.lower_fun(partial(_contract_on, platform), multiple_results=False)


def _contract_on(platform, first, second, *, static):
    lowering = lowering_of(_case_of(first, second, static), platform, static.lowering)
    return contract_by(lowering, platform, first, second, static.missing, static.geometry, static.precision)


def _case_of(first, second, static):
    return Case(static.missing, static.geometry, first.shape, second.shape, first.dtype.name, static.precision)


def contractions_in(function: Callable, *args) -> dict[Case, int]:
    """Trace a function and count the contractions of its program; nothing is computed.

    Args:
      function: Of arrays, in any nest of `jit`, `scan`, `remat`, `shard_map`.
      args: Arrays, or `jax.ShapeDtypeStruct` in their place.

    Returns:
      How often each case is in the program, in the order of the program. What a scan repeats counts as often as it is
      repeated, what a while loop repeats once, and every branch of a condition.

    Example:
      >>> from jaxmeta.nn import conv2d
      >>> counts = contractions_in(jax.grad(lambda k: conv2d(jnp.ones([2, 8, 8, 3]), k).sum()), jnp.ones([3, 3, 3, 5]))
      >>> [(case.missing, count) for case, count in counts.items()]
      [('output', 1), ('kernel', 1)]
    """
    counts = Counter()
    _count(jax.make_jaxpr(function)(*args).jaxpr, 1, counts)
    return dict(counts)


def _count(jaxpr: Jaxpr, times: int, counts: Counter) -> None:
    for equation in jaxpr.eqns:
        if equation.primitive is contract_p:
            first, second = (operand.aval for operand in equation.invars)
            counts[_case_of(first, second, equation.params["static"])] += times
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            _count(inner, times * repeats, counts)


contract_p = Primitive("task_convolution")
contract_p.def_abstract_eval(_abstract)
contract_p.def_impl(jax.jit(contract_p.bind, static_argnames="static"))
ad.defbilinear(contract_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[contract_p] = _batch
for _platform in ("cpu", "cuda", "rocm", "tpu"):
    mlir.register_lowering(contract_p, _lower(_platform), platform=_platform)
mlir.register_lowering(contract_p, _lower("other"))
