"""Activations and dense layers for gradients of gradients: the same numbers as JAX's own, with less that is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.nn import dense, pointwise

ACTIVATIONS = {"gelu": jax.nn.gelu, "silu": jax.nn.silu, "tanh": jnp.tanh, "cube": lambda x: x**3}


def nth_derivatives(function, inputs, cotangent):
    """Values, then gradients of the first to the third order, by reverse, forward and reverse mode."""

    def first(inputs):
        return jax.vjp(function, inputs)[1](cotangent)[0]

    def second(inputs):
        return jax.jvp(first, (inputs,), (cotangent,))[1]

    def third(inputs):
        return jax.vjp(second, inputs)[1](cotangent)[0]

    return [jax.jit(one)(inputs) for one in (function, first, second, third)]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_the_same_to_third_order(x64, name):
    inputs = jax.random.normal(jax.random.key(0), [4, 3])
    cotangent = jax.random.normal(jax.random.key(1), [4, 3])
    ours, theirs = (
        nth_derivatives(one, inputs, cotangent) for one in (pointwise(ACTIVATIONS[name]), ACTIVATIONS[name])
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_an_activation_goes_through_every_transformation(x64):
    gelu, inputs = pointwise(jax.nn.gelu), jax.random.normal(jax.random.key(0), [5, 4, 3])
    expected = jax.nn.gelu(inputs)
    np.testing.assert_allclose(gelu(inputs), expected, rtol=1e-13)
    np.testing.assert_allclose(jax.vmap(jax.vmap(gelu, 1, 1), 2, 2)(inputs), expected, rtol=1e-13)
    np.testing.assert_allclose(jax.lax.map(jax.checkpoint(gelu), inputs), expected, rtol=1e-13)
    np.testing.assert_allclose(gelu(2.0), jax.nn.gelu(2.0), rtol=1e-13)
    slope = jax.grad(lambda scale: jax.lax.scan(lambda total, x: (total + gelu(scale * x).sum(), None), 0.0, inputs)[0])
    np.testing.assert_allclose(slope(0.7), jax.grad(lambda scale: jax.nn.gelu(scale * inputs).sum())(0.7), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_activation_keeps_its_type(dtype):
    inputs = jnp.linspace(-3, 3, 7).astype(dtype)
    values, slopes = jax.vmap(jax.value_and_grad(pointwise(jax.nn.gelu)))(inputs)
    assert values.dtype == slopes.dtype == dtype
    for ours, theirs in zip((values, slopes), jax.vmap(jax.value_and_grad(jax.nn.gelu))(inputs), strict=True):
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), rtol=2e-2, atol=2e-2)


def test_an_activation_of_whole_numbers_is_refused():
    with pytest.raises(TypeError, match="needs floats; given int32"):
        pointwise(jax.nn.gelu)(jnp.arange(3))


@pytest.mark.parametrize("function", [jnp.sum, lambda x: x > 0])
def test_a_function_that_is_none_of_numbers_is_refused(function):
    with pytest.raises(TypeError, match="needs a function from number to number; given one from float32"):
        pointwise(function)(jnp.ones([2, 3]))


def meta_gradient(activation, product):
    """Of one inner step of scanned layers, as MAML takes it."""

    def loss(weights, inputs):
        def layer(hidden, layer):
            return hidden + product(activation(product(hidden, layer["up"])), layer["down"]), None

        return jnp.square(jax.lax.scan(layer, inputs, weights)[0]).mean()

    def meta(weights, inputs):
        step = jax.grad(loss)(weights, inputs)
        return loss(jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, weights, step), inputs)

    return jax.grad(meta)


def layers(key, tasks=()):
    ups, downs = jax.random.split(key)
    shape = (*tasks, 3, 16, 64)
    return {
        "up": 0.3 * jax.random.normal(ups, shape),
        "down": 0.1 * jax.random.normal(downs, shape).swapaxes(-1, -2),
    }


def test_the_meta_gradient_of_scanned_layers_is_the_same(x64):
    weights, inputs = layers(jax.random.key(0)), jax.random.normal(jax.random.key(1), [5, 6, 16])
    ours = jax.jit(meta_gradient(pointwise(jax.nn.gelu), dense))(weights, inputs)
    theirs = jax.jit(meta_gradient(jax.nn.gelu, jnp.matmul))(weights, inputs)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13), ours, theirs)


def test_less_is_kept_of_an_inner_loop():
    """What XLA sets aside: JAX's own keeps an array for each step of the derivative's formula."""
    weights, inputs = layers(jax.random.key(0)), jnp.ones([50, 20, 16])

    def set_aside(activation):
        compiled = jax.jit(meta_gradient(activation, dense)).lower(weights, inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert set_aside(pointwise(jax.nn.gelu)) < 0.7 * set_aside(jax.nn.gelu)


@pytest.mark.parametrize("shared", ["neither", "inputs", "kernel"])
def test_a_product_is_the_same_to_third_order_for_tasks(x64, shared):
    keys = jax.random.split(jax.random.key(0), 3)
    axes = (None if shared == "inputs" else 0, None if shared == "kernel" else 0)
    inputs = jax.random.normal(keys[0], [*([2] if axes[0] == 0 else []), 5, 3, 4])
    kernel = jax.random.normal(keys[1], [*([2] if axes[1] == 0 else []), 4, 6])
    both = {"inputs": inputs, "kernel": kernel}
    cotangent = jax.random.normal(keys[2], [2, 5, 3, 6])

    def derivatives(product):
        def value(both):
            # Of degree four: a third derivative is not zero.
            outputs = jax.vmap(product, axes)(both["inputs"], both["kernel"])
            return jnp.sum(cotangent * outputs**2)

        def along(function):
            return lambda both: jax.jvp(function, (both,), (jax.tree.map(jnp.cos, both),))[1]

        return [jax.jit(jax.grad(one))(both) for one in (value, along(value), along(along(value)))]

    for one, other in zip(derivatives(dense), derivatives(jnp.matmul), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), one, other)


def test_a_product_of_any_number_of_axes():
    kernel = jax.random.normal(jax.random.key(0), [4, 6])
    for shape in ((4,), (3, 4), (2, 3, 5, 4), (0, 4)):
        inputs = jax.random.normal(jax.random.key(1), shape)
        np.testing.assert_allclose(dense(inputs, kernel), inputs @ kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inputs, kernel", [((3, 5), (4, 6)), ((3, 4), (2, 4, 6)), ((), (4, 6)), ((3, 0), (0, 6))])
def test_a_kernel_that_does_not_fit_is_refused(inputs, kernel):
    with pytest.raises(ValueError, match=r"dense needs inputs \[..., features\] and a kernel"):
        dense(jnp.ones(inputs), jnp.ones(kernel))
