"""Activations whose derivatives, of any order, are one array each.

What differentiates a smooth activation takes its formula apart, and keeps an array for every step of it; what
differentiates that again keeps arrays for every step of the derivative. A `custom_jvp` does not help a second
derivative: a `lax.scan` that is differentiated forgets it. So the activation is a primitive, as the convolution is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def pointwise(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Let the tangent of an activation be one product, `f'(x) dx`, with `f'` computed at once.

    Equal to the function in values and in derivatives of any order, forward and reverse. An inner loop through it
    keeps `f'` and `f''` of its inputs, where JAX by itself keeps an array for each step of their formulas. Worth it for
    smooth activations (GELU, SiLU, softplus); a ReLU has nothing to keep.

    Args:
      function: From one number to one number, by `jax.numpy`; computed on arrays of any shape. It may not mix
        elements, as a softmax does, which is not checked, nor use a parameter from around it. One that is
        defined once, at the top of a module: each object is compiled by itself.

    Returns:
      The same function of an array of floats.

    Raises:
      TypeError: when it is called, for an array that is not of floats, or a function that changes type or shape.

    Example:
      >>> gelu = pointwise(jax.nn.gelu)
      >>> x = jnp.linspace(-2, 2, 5)
      >>> bool(jnp.allclose(jax.vmap(jax.grad(jax.grad(gelu)))(x), jax.vmap(jax.grad(jax.grad(jax.nn.gelu)))(x)))
      True
    """

    def value(inputs: jax.Array) -> jax.Array:
        inputs = jnp.asarray(inputs)
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise TypeError(f"An activation of `pointwise` needs floats; given {inputs.dtype}. Cast them first.")
        given = jax.eval_shape(function, inputs)
        if (given.shape, given.dtype) != (inputs.shape, inputs.dtype):
            raise TypeError(
                "`pointwise` needs a function from number to number; given one from "
                f"{inputs.dtype}{list(inputs.shape)} to {given.dtype}{list(given.shape)}."
            )
        return derivative_p.bind(inputs, function=function, order=0)

    return value


def _derivative(inputs, *, function, order):
    if order == 0:
        return function(inputs)

    def below(inputs):
        return _derivative(inputs, function=function, order=order - 1)

    return jax.jvp(below, (inputs,), (jnp.ones_like(inputs),))[1]


def _tangent(tangent, inputs, *, function, order):
    return tangent * derivative_p.bind(inputs, function=function, order=order + 1)


def _batch(operands, axes, **params):
    return derivative_p.bind(operands[0], **params), axes[0]


derivative_p = Primitive("pointwise_derivative")
derivative_p.def_abstract_eval(lambda inputs, **_: inputs)
derivative_p.def_impl(jax.jit(derivative_p.bind, static_argnames=("function", "order")))
ad.defjvp(derivative_p, _tangent)
batching.primitive_batchers[derivative_p] = _batch
mlir.register_lowering(derivative_p, mlir.lower_fun(_derivative, multiple_results=False))
