"""Statistics of a convolution from the moments of its patches, against those of its outputs."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import conv4
from jaxmeta.nn import Conv, batch_statistics, conv, conv2d
from jaxmeta.nn.lowerings import Geometry
from jaxmeta.nn.moments import convolution_statistics

GEOMETRIES = {
    "same": Geometry((9, 8), (3, 3), padding=((1, 1), (1, 1))),
    "strides": Geometry((9, 8), (3, 3), (2, 1), ((0, 1), (1, 1))),
    "dilated, even": Geometry((9, 8), (2, 3), (1, 2), dilation=(2, 1)),
    "one pixel": Geometry((9, 8), (1, 1)),
}


def by_outputs(inputs, kernel, geometry, weights=None):
    outputs = conv2d(inputs, kernel, geometry.strides, geometry.padding, dilation=geometry.dilation)
    return batch_statistics(outputs, weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_statistics_are_those_of_the_outputs_in_every_order(x64, name, weighted):
    geometry, keys = GEOMETRIES[name], jax.random.split(jax.random.key(0), 3)
    inputs = 2 + jax.random.normal(keys[0], [5, *geometry.size, 2])
    kernel = jax.random.normal(keys[1], [*geometry.window, 2, 24])
    # Of no weight, of less and of more; weights are learned by some, where they are none too.
    weights = jnp.array([1.0, 0.5, 0.0, 2.0, 1.0]) if weighted else None

    def orders(statistics):
        def loss(inputs, kernel, weights):
            mean, variance = statistics(inputs, kernel, geometry, weights)
            return jnp.sum(jnp.sin(mean) + jnp.cos(variance))

        operands = (0, 1, 2) if weighted else (0, 1)
        first = jax.grad(loss, operands)

        def steep(kernel):
            return sum(jnp.vdot(leaf, leaf) for leaf in first(inputs, kernel, weights))

        return statistics(inputs, kernel, geometry, weights), first(inputs, kernel, weights), jax.grad(steep)(kernel)

    ours, theirs = orders(convolution_statistics), orders(by_outputs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert jnp.linalg.norm(one - other) <= 1e-12 * jnp.linalg.norm(other)


def test_every_platform_computes_the_same(x64, monkeypatch):
    """One image at a time on a CPU, all at once elsewhere."""
    geometry, keys = GEOMETRIES["same"], jax.random.split(jax.random.key(0))
    inputs, kernel = jax.random.normal(keys[0], [4, 9, 8, 2]), jax.random.normal(keys[1], [3, 3, 2, 18])
    here = convolution_statistics(inputs, kernel, geometry)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda operand, *, cpu, default: default(operand))
    for one, other in zip(here, convolution_statistics(inputs, kernel, geometry), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_an_exported_program_takes_any_number_of_examples():
    geometry, kernel = GEOMETRIES["same"], jax.random.normal(jax.random.key(0), [3, 3, 1, 9])
    (examples,) = jax.export.symbolic_shape("examples")
    function = jax.jit(lambda images: convolution_statistics(images, kernel, geometry))
    shape = jax.ShapeDtypeStruct((examples, 9, 8, 1), jnp.float32)
    exported = jax.export.export(function, platforms=["cpu", "cuda"])(shape)
    for number in (1, 5):
        images = jax.random.normal(jax.random.key(1), [number, 9, 8, 1])
        for one, other in zip(exported.call(images), by_outputs(images, kernel, geometry), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_padding_of_less_than_none_has_no_patches():
    inputs, layer = jnp.ones([2, 6, 6, 1]), Conv(9, padding=((-1, 0), (0, 0)))
    variables = layer.init(jax.random.key(0), inputs)
    assert layer.apply(variables, inputs, method="before_norm").statistics is None


def test_statistics_from_patches_only_of_exact_products(monkeypatch):
    """With a kernel rounded to TF32 the outputs have another mean than the patches say."""
    inputs, layer = jnp.ones([2, 6, 6, 1]), Conv(9)
    variables = layer.init(jax.random.key(0), inputs)

    def given():
        return layer.apply(variables, inputs, method=Conv.before_norm).statistics is not None

    assert given()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    asked = {"highest": True, "float32": True, "tensorfloat32": False, None: False}
    for precision, expected in asked.items():
        with jax.default_matmul_precision(precision):
            assert given() == expected


def test_padding_alone_has_no_statistics():
    inputs, kernel = jnp.ones([2, 9, 8, 1]), jnp.ones([3, 3, 1, 9])
    mean, variance = convolution_statistics(inputs, kernel, GEOMETRIES["same"], jnp.zeros(2))
    assert not mean.any() and not variance.any()


def test_a_filter_of_edges_on_a_smooth_image_keeps_its_digits():
    """Its outputs are a thousandth of the image; of the pixels' own moments three digits of its variance are left."""
    slope = jnp.linspace(0, 1, 84)
    image = (3 + slope[:, None] ** 2 + slope**2)[None, :, :, None]
    kernel = jnp.zeros([3, 3, 1, 9]).at[..., 0, 0].set(jnp.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]))
    kernel = kernel.at[..., 0, 1].set(jnp.array([[0, 0, 0], [0, -1, 1], [0, 0, 0]]))
    geometry = Geometry((84, 84), (3, 3))
    variance = convolution_statistics(image, kernel, geometry)[1]
    pixels = np.asarray(image, np.float64)[0, :, :, 0]
    step = (pixels[1:-1, 2:] - pixels[1:-1, 1:-1]).var()
    np.testing.assert_allclose(variance[1], step, rtol=1e-5)
    # The second derivative is the same everywhere but for the rounding of the image.
    assert 0 <= variance[0] < 1e-10


def test_statistics_from_patches_where_these_are_small():
    """And where they are not, none: the outputs are the cheaper way."""
    inputs, weights = jax.random.normal(jax.random.key(0), [3, 6, 6, 2]), jnp.array([1.0, 0.0, 2.0])
    for features, groups, given in ((18, 1, True), (17, 1, False), (18, 2, False)):
        layer = Conv(features, strides=2, feature_group_count=groups)
        variables = layer.init(jax.random.key(1), inputs)
        outputs, _, statistics = layer.apply(variables, inputs, weights, method=Conv.before_norm)
        assert (statistics is not None) == given
        if given:
            for one, other in zip(statistics(), batch_statistics(outputs, weights), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_the_network_is_the_same_with_and_without(x64, downsample, monkeypatch):
    """Outputs, kept statistics, and a gradient through a step of gradient descent, of two tasks."""
    model = conv4(3, filters=9, downsample=downsample, conv_bias=True)
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(keys[0], [2, 4, 16, 16, 1])
    params, state = model.init(keys[1], images[0])
    weights, direction = jnp.array([1.0, 1.0, 2.0, 0.0]), jax.random.normal(keys[2], [4, 3])

    def outcome():
        def loss(params, images):
            logits, kept = model.apply(params, state, images, key=keys[2], train=True, weights=weights)
            return jnp.vdot(jnp.tanh(logits), direction), (logits, kept)

        def after_a_step(params, images):
            slopes = jax.grad(loss, has_aux=True)(params, images)[0]
            return loss(jax.tree.map(lambda one, slope: one - 0.1 * slope, params, slopes), images)

        def both(params):
            values, (logits, kept) = jax.vmap(after_a_step, (None, 0))(params, images)
            return values.sum(), (logits, kept)

        return jax.jit(jax.grad(both, has_aux=True))(params)

    ours = outcome()
    used = []
    monkeypatch.setattr(conv, "are_cheaper", lambda *given: used.append(given) and False)
    theirs = outcome()
    assert used
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_no_map_of_the_first_layer_is_kept_for_the_derivative(monkeypatch):
    """But a byte for each square of it, the place of the maximum."""
    model = conv4(5, filters=32)
    images = jax.ShapeDtypeStruct((25, 84, 84, 3), "float32")
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)

    def kept(params, images):
        return jax.vjp(lambda params: model.apply(params, state, images, key=jax.random.key(0))[0], params)[1]

    def shapes():
        # A new function each time: the program of an old one is kept.
        return {leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(lambda *given: kept(*given), params, images))}

    assert (25, 84, 84, 32) not in shapes()
    monkeypatch.setattr(conv, "are_cheaper", lambda *given: False)
    assert (25, 84, 84, 32) in shapes()
