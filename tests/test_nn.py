"""Our convolution, normalisation and pooling against XLA's and NumPy's."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta.nn import BatchNorm, Conv, batch_statistics, conv2d, max_pool_2x2


def reference(inputs, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", "VALID", ((1, 1), (1, 1)), ((0, 2), (1, 0))]),
    channels=st.integers(1, 3),
)
def test_conv_equals_xla(height, width, window, strides, padding, channels):
    keys = jax.random.split(jax.random.key(height * width), 2)
    inputs = jax.random.normal(keys[0], [2, height, width, channels])
    kernel = jax.random.normal(keys[1], [*window, channels, 4])
    ours, theirs = conv2d(inputs, kernel, strides, padding), reference(inputs, kernel, strides, padding)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_derivatives_equal_xla_to_third_order_under_vmap(x64, stride):
    """Per-task kernels, as after an inner step; the scalar is nonlinear so that no derivative vanishes."""
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(keys[0], [2, 3, 6, 6, 2])
    kernels = jax.random.normal(keys[1], [2, 3, 3, 2, 3])
    direction = (jax.random.normal(keys[2], inputs.shape), jax.random.normal(keys[3], kernels.shape))

    def scalar(conv):
        return lambda x, k: jnp.sum(jnp.tanh(jax.vmap(lambda x, k: conv(x, k, (stride, stride), "SAME"))(x, k)) ** 2)

    def orders(conv):
        first = jax.grad(scalar(conv), (0, 1))
        second = jax.grad(lambda *a: sum(jnp.vdot(g, d) for g, d in zip(first(*a), direction, strict=True)), (0, 1))
        third = jax.jvp(second, (inputs, kernels), direction)[1]
        return first(inputs, kernels), second(inputs, kernels), third

    for ours, theirs in zip(jax.jit(lambda: orders(conv2d))(), jax.jit(lambda: orders(reference))(), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-10 * float(jnp.abs(other).max()))


def test_conv_module_is_a_drop_in():
    inputs = jax.random.normal(jax.random.key(0), [2, 9, 8, 3])
    theirs = flax.linen.Conv(5, (3, 3), strides=2)
    params = theirs.init(jax.random.key(1), inputs)
    np.testing.assert_allclose(
        Conv(5, (3, 3), strides=2).apply(params, inputs), theirs.apply(params, inputs), atol=1e-5
    )


def test_conv_refuses_other_channels():
    with pytest.raises(ValueError, match=r"given inputs \[2, 8, 8, 1\]"):
        conv2d(jnp.ones([2, 8, 8, 1]), jnp.ones([3, 3, 3, 4]))


def test_padding_examples_do_not_count():
    real = jax.random.normal(jax.random.key(0), [4, 3, 3, 2])
    padded = jnp.concatenate([real, 100.0 * jnp.ones([2, 3, 3, 2])])
    weights = jnp.array([1.0, 1, 1, 1, 0, 0])
    for ours, theirs in zip(batch_statistics(padded, weights), batch_statistics(real), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(batch_statistics(real)[1], np.var(np.asarray(real), (0, 1, 2)), rtol=1e-5)


def test_batch_norm_keeps_the_statistics_of_its_batch():
    norm = BatchNorm()
    first, second = jax.random.normal(jax.random.key(0), [2, 8, 4, 4, 3]) * 3 + 1
    variables = norm.init(jax.random.key(1), first, train=True)
    normalised, kept = norm.apply(variables, first, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(normalised.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normalised.var((0, 1, 2)), 1, atol=1e-3)
    by_first = norm.apply({**variables, **kept}, second, train=False)
    mean, variance = batch_statistics(first)
    np.testing.assert_allclose(by_first, (second - mean) / jnp.sqrt(variance + 1e-5), atol=1e-4)


def test_max_pool_equals_xla_and_drops_the_last_odd_row():
    inputs = jax.random.normal(jax.random.key(0), [2, 7, 5, 3])
    theirs = flax.linen.max_pool(inputs, (2, 2), (2, 2))
    np.testing.assert_array_equal(max_pool_2x2(inputs), theirs)
