"""Our convolution, normalisation and pooling against XLA's and NumPy's."""

import re
from functools import partial
from pathlib import Path

import flax.linen
import flax.nnx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta.folder import lowerings_file
from jaxmeta.nn import (
    LOWERINGS,
    BatchNorm,
    Conv,
    batch_statistics,
    contractions_in,
    conv2d,
    conv_general_dilated,
    lowerings,
    max_pool_2x2,
    processor,
)
from jaxmeta.nn.lowerings import choose_lowering

GEOMETRY = lowerings.Geometry((6, 6), (3, 3), padding=((1, 1), (1, 1)))


def reference(inputs, kernel, strides, padding, dilation=(1, 1), groups=1):
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


def relative_error(one, other):
    return float(jnp.linalg.norm(one - other) / jnp.maximum(jnp.linalg.norm(other), 1e-30))


def cases(lowering):
    """What each way is there for, drawn so that most of it is covered."""
    plain = lowering == "winograd"
    return st.fixed_dictionaries(
        {
            "size": st.tuples(st.integers(5, 9), st.integers(5, 9)),
            "window": st.just((3, 3)) if plain else st.tuples(st.integers(1, 3), st.integers(1, 3)),
            "strides": st.just((1, 1)) if plain else st.tuples(st.integers(1, 3), st.integers(1, 3)),
            "padding": st.sampled_from(["SAME", "VALID", ((1, 1), (1, 1)), ((0, 2), (1, 0))]),
            "dilation": st.just((1, 1)) if plain else st.sampled_from([(1, 1), (2, 1)]),
            "channels": st.integers(1, 3),
            "groups": st.just(1),
            "batched": st.sampled_from([(0, 0), (0, None), (None, 0)]),
        }
    ).map(lambda case: {**case, "groups": case["channels"] if lowering == "shifts" else 1})


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_every_lowering_equals_xla_in_value_and_derivatives(x64, lowering):
    """Shapes, strides, paddings, dilations; batched and shared operands; reverse, over it forward and again reverse."""

    drawn = []

    # The simplest case, a window of one pixel, is the first.
    @settings(max_examples=10, deadline=None)
    @given(cases(lowering))
    def check(case):
        if lowering == "shifts" and case["channels"] == 1:
            case |= {"channels": 2, "groups": 2}
        channels, groups = case["channels"], case["groups"]
        keys = jax.random.split(jax.random.key(sum(case["size"])), 4)
        tasks = [() if axis is None else (2,) for axis in case["batched"]]
        inputs = jax.random.normal(keys[0], [*tasks[0], 2, *case["size"], channels])
        kernel = jax.random.normal(keys[1], [*tasks[1], *case["window"], channels // groups, 4 * groups])
        tangents = [jax.random.normal(key, value.shape) for key, value in zip(keys[2:], (inputs, kernel), strict=True)]

        def orders(conv):
            over_tasks = jax.vmap(conv, case["batched"])
            first = jax.grad(lambda *operands: jnp.sum(jnp.tanh(over_tasks(*operands)) ** 2), (0, 1))

            @jax.jit
            def all_orders(operands, tangents):
                def second(*operands):
                    return jax.jvp(first, operands, tangents)

                values, back = jax.vjp(second, *operands)
                return over_tasks(*operands), values, back((tangents, tangents))

            return all_orders((inputs, kernel), tuple(tangents))

        options = (case["strides"], case["padding"])
        drawn.append(case["batched"])
        ours = orders(lambda x, k: conv2d(x, k, *options, dilation=case["dilation"], groups=groups, lowering=lowering))
        theirs = orders(lambda x, k: reference(x, k, *options, case["dilation"], groups))
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert relative_error(one, other) < 1e-10

    check()
    assert len(drawn) >= 10


THIRD_ORDER = []  # The reference is compiled once.


@pytest.mark.parametrize("lowering", [name for name in LOWERINGS if name != "shifts"])
def test_float32_keeps_its_digits_to_third_order(lowering):
    """The bound of 1e-5 in float32 at highest precision, on the widths of the papers."""
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(keys[0], [2, 3, 7, 7, 64])
    kernels = jax.random.normal(keys[1], [2, 3, 3, 64, 64]) / 24
    direction = (jax.random.normal(keys[2], inputs.shape), jax.random.normal(keys[3], kernels.shape))
    with jax.default_matmul_precision("highest"):
        ours = third_order(lambda x, k: conv2d(x, k, lowering=lowering), inputs, kernels, direction)
        if not THIRD_ORDER:
            THIRD_ORDER.append(third_order(lambda x, k: reference(x, k, (1, 1), "SAME"), inputs, kernels, direction))
        (theirs,) = THIRD_ORDER
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert relative_error(one, other) < 1e-5


def third_order(conv, inputs, kernels, direction):
    """Per-task kernels, as after an inner step; the scalar is nonlinear so that no derivative vanishes."""

    # Of arguments: the compiler would compute with constants.
    @jax.jit
    def orders(inputs, kernels, direction):
        first = jax.grad(lambda x, k: jnp.sum(jnp.tanh(jax.vmap(conv)(x, k)) ** 2), (0, 1))
        second = jax.grad(lambda *a: sum(jnp.vdot(g, d) for g, d in zip(first(*a), direction, strict=True)), (0, 1))
        third = jax.jvp(second, (inputs, kernels), direction)[1]
        return first(inputs, kernels), second(inputs, kernels), third

    return orders(inputs, kernels, direction)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("stride", [1, 2])
def test_derivatives_equal_xla_to_third_order_under_vmap(x64, stride, lowering):
    if lowering == "shifts" or (lowering == "winograd" and stride == 2):
        pytest.skip("not what this lowering is for")
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(keys[0], [2, 3, 6, 6, 2])
    kernels = jax.random.normal(keys[1], [2, 3, 3, 2, 3])
    direction = (jax.random.normal(keys[2], inputs.shape), jax.random.normal(keys[3], kernels.shape))
    strides = (stride, stride)
    ours = third_order(lambda x, k: conv2d(x, k, strides, lowering=lowering), inputs, kernels, direction)
    theirs = third_order(lambda x, k: reference(x, k, strides, "SAME"), inputs, kernels, direction)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert relative_error(one, other) < 1e-10


@pytest.mark.parametrize(
    "lowering, groups, stride",
    [("xla", 2, 1), ("xla_in_turn", 2, 2), ("auto", 2, 1), ("xla", 4, 2), ("shifts", 4, 1), ("shifts", 4, 2)],
)
def test_groups_equal_xla_to_third_order_under_vmap(x64, lowering, groups, stride):
    """Of two channels each, and depthwise, with two features for every channel of a group."""
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(keys[0], [2, 3, 5, 6, 4])
    kernels = jax.random.normal(keys[1], [2, 3, 3, 4 // groups, 8])
    direction = (jax.random.normal(keys[2], inputs.shape), jax.random.normal(keys[3], kernels.shape))
    strides = (stride, stride)

    def ours(inputs, kernel):
        return conv2d(inputs, kernel, strides, groups=groups, lowering=lowering)

    def theirs(inputs, kernel):
        return reference(inputs, kernel, strides, "SAME", groups=groups)

    both = (third_order(conv, inputs, kernels, direction) for conv in (ours, theirs))
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        assert relative_error(one, other) < 1e-10


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_an_inner_loop_in_a_scan_is_differentiated(x64, lowering):
    """Kernels that become each task's own in a scan, by gradients of the convolution: the gradient for their start."""
    groups = 2 if lowering == "shifts" else 1
    keys = jax.random.split(jax.random.key(0), 2)
    inputs = jax.random.normal(keys[0], [3, 2, 5, 6, 2])
    kernel = jax.random.normal(keys[1], [3, 3, 2 // groups, 4]) / 3

    @partial(jax.jit, static_argnums=0)
    def orders(conv, kernel):
        def of_task(kernel, images):
            loss = lambda kernel: jnp.mean(jnp.tanh(conv(images, kernel)) ** 2)  # noqa: E731
            step = lambda kernel, _: (kernel - 0.1 * jax.grad(loss)(kernel), None)  # noqa: E731
            return loss(jax.lax.scan(step, kernel, length=2)[0])

        def outer(kernel):
            return jnp.sum(jax.vmap(of_task, (None, 0))(kernel, inputs))

        return jax.grad(outer)(kernel), jax.jvp(jax.grad(outer), (kernel,), (jnp.sin(kernel),))[1]

    ours = orders(lambda x, k: conv2d(x, k, groups=groups, lowering=lowering), kernel)
    theirs = orders(lambda x, k: reference(x, k, (1, 1), "SAME", groups=groups), kernel)
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(one, other) < 1e-10


def test_two_task_axes_and_a_scan(x64):
    """Populations of tasks: kernels that depend on one axis, on the other, on both; inside of a scan."""
    keys = jax.random.split(jax.random.key(0), 2)
    inputs = jax.random.normal(keys[0], [2, 3, 4, 6, 6, 2])
    kernels = jax.random.normal(keys[1], [2, 3, 3, 3, 2, 3])

    @partial(jax.jit, static_argnums=(0, 1))
    def outputs(conv, in_axes, inputs, kernels):
        over_tasks = jax.vmap(jax.vmap(conv, (0, in_axes[1])), (0, in_axes[0]))
        kernel = kernels[tuple(slice(None) if axis == 0 else 0 for axis in in_axes)]
        scanned = jax.lax.scan(lambda carry, k: (carry, over_tasks(inputs, k)), 0, kernel[None])[1]
        gradient = jax.grad(lambda k: jnp.sum(over_tasks(inputs, k) ** 2))(kernel)
        return scanned, gradient

    for in_axes in ((0, 0), (0, None), (None, 0), (None, None)):
        ours = outputs(conv2d, in_axes, inputs, kernels)
        theirs = outputs(lambda x, k: reference(x, k, (1, 1), "SAME"), in_axes, inputs, kernels)
        for one, other in zip(ours, theirs, strict=True):
            assert relative_error(one, other) < 1e-10


def test_shared_kernels_stay_one_operation():
    """All tasks with one kernel: one larger batch. With their own: the product that each lowering names."""
    inputs, kernel = jnp.ones([4, 2, 8, 8, 3]), jnp.ones([3, 3, 3, 5])
    shared = str(jax.make_jaxpr(jax.vmap(conv2d, (0, None)))(inputs, kernel))
    assert "f32[8,8,8,3]" in shared
    own = str(jax.make_jaxpr(jax.vmap(conv2d))(inputs, jnp.ones([4, 3, 3, 3, 5])))
    assert "f32[4,2,8,8,5]" in own


def test_a_lowering_that_does_not_cover_says_so_once_and_uses_xla():
    inputs, kernel = jnp.ones([1, 9, 8, 2]), jnp.ones([3, 3, 2, 3])
    with pytest.warns(UserWarning, match="'winograd' does not cover"):
        ours = conv2d(inputs, kernel, (2, 1), lowering="winograd")
    np.testing.assert_allclose(ours, reference(inputs, kernel, (2, 1), "SAME"), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The lowering")
@pytest.mark.parametrize("lowering", ["auto", *LOWERINGS])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_of_less_than_none_is_left_to_xla(x64, lowering, stride):
    """It cuts off what is at the border; with gradients, and where every task has a kernel."""
    groups = 2 if lowering == "shifts" else 1
    keys = jax.random.split(jax.random.key(0), 2)
    inputs = jax.random.normal(keys[0], [2, 2, 8, 7, 2])
    kernels = jax.random.normal(keys[1], [2, 3, 3, 2 // groups, 4])
    padding = ((-1, 1), (1, -2))

    @partial(jax.jit, static_argnums=0)
    def gradients(conv, *operands):
        return jax.value_and_grad(lambda *operands: jnp.sum(jnp.sin(jax.vmap(conv)(*operands))), (0, 1))(*operands)

    def ours(inputs, kernel):
        return conv2d(inputs, kernel, stride, padding, groups=groups, lowering=lowering)

    def theirs(inputs, kernel):
        return reference(inputs, kernel, (stride, stride), padding, groups=groups)

    both = (gradients(conv, inputs, kernels) for conv in (ours, theirs))
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        assert relative_error(one, other) < 1e-10


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (1, 32), (2, 32)])
def test_bfloat16_keeps_the_digits_that_it_has(stride, groups):
    """The rule takes no way, and for no gradient, that loses more of them than XLA's own convolution does."""
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[0], [2, 15, 14, 32]).astype(jnp.bfloat16)
    kernel = (jax.random.normal(keys[1], [3, 3, 32 // groups, 32]) / 17).astype(jnp.bfloat16)

    def errors(lowering):
        def all_three(inputs, kernel):
            outputs, back = jax.vjp(lambda *a: conv2d(*a, stride, groups=groups, lowering=lowering), inputs, kernel)
            return outputs, *back(jax.random.normal(keys[2], outputs.shape).astype(jnp.bfloat16).astype(outputs.dtype))

        exact = all_three(inputs.astype(jnp.float32), kernel.astype(jnp.float32))
        given = (leaf.astype(jnp.float32) for leaf in jax.jit(all_three)(inputs, kernel))
        return [relative_error(one, other) for one, other in zip(given, exact, strict=True)]

    for ours, theirs in zip(errors("auto"), errors("xla"), strict=True):
        assert ours < 1.2 * theirs


def test_winograd_is_not_for_few_digits():
    images, kernel = jnp.ones([2, 6, 6, 4], jnp.bfloat16), jnp.ones([3, 3, 4, 4], jnp.bfloat16)
    with pytest.warns(UserWarning, match="'winograd' does not cover .* in bfloat16"):
        conv2d(images, kernel, lowering="winograd")


@pytest.mark.parametrize("shared", [False, True])
def test_no_tasks(shared):
    kernel = jnp.ones([3, 3, 2, 3]) if shared else jnp.ones([0, 3, 3, 2, 3])
    outputs = jax.vmap(conv2d, (0, None if shared else 0))(jnp.ones([0, 2, 6, 6, 2]), kernel)
    assert outputs.shape == (0, 2, 6, 6, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (0, 1)}, r"positive strides, dilations and groups; given strides=\(0, 1\)"),
        ({"dilation": 0}, r"given .* dilation=\(0, 0\)"),
        ({"groups": 0}, "given .* groups=0"),
        ({"lowering": "winogrd"}, "is none of: auto, xla"),
        ({"groups": 3, "kernel": jnp.ones([3, 3, 2, 4])}, "does not divide the 4 features"),
        ({"padding": "VALID", "dilation": (4, 4)}, "does not fit images"),
    ],
)
def test_conv_refuses(change, message):
    options = {"kernel": jnp.ones([3, 3, 6, 4]), **change}
    with pytest.raises(ValueError, match=message):
        conv2d(jnp.ones([2, 8, 8, 6]), **options)


def test_max_pool_derivatives_pick_the_first_maximum_to_any_order(x64):
    """Against a gather by `argmax`, batched twice, with ties and an odd last row."""
    inputs = jnp.round(2 * jax.random.normal(jax.random.key(0), [3, 2, 5, 6, 2]))
    direction = jax.random.normal(jax.random.key(1), inputs.shape)

    def by_argmax(image):
        squares = image[:, :4].reshape(2, 2, 2, 3, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(2, 2, 3, 2, 4)
        return jnp.take_along_axis(squares, jnp.argmax(squares, -1, keepdims=True), -1)[..., 0]

    @partial(jax.jit, static_argnums=0)
    def orders(pool, inputs, direction):
        first = jax.grad(lambda x: jnp.sum(jnp.sin(jax.vmap(pool)(x))))
        return first(inputs), jax.jvp(first, (inputs,), (direction,))[1], jax.vmap(jax.vmap(first))(inputs[None, None])

    ours, theirs = (orders(pool, inputs, direction) for pool in (max_pool_2x2, by_argmax))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_pooling_before_normalising_changes_nothing(x64):
    """Also where the scale is negative, and in the derivatives for inputs, scale and bias."""
    inputs = jax.random.normal(jax.random.key(0), [3, 6, 6, 4])
    scale, bias = jnp.array([1.0, -0.5, 2.0, -1.0]), jnp.arange(4.0)

    @partial(jax.jit, static_argnums=0)
    def gradients(apply, inputs, scale, bias):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(apply(*a))), (0, 1, 2))(inputs, scale, bias)

    def normalise(inputs, scale, bias, pool):
        variables = {"params": {"scale": scale, "bias": bias}}
        return BatchNorm().apply(variables, inputs, train=True, pool=pool, mutable=["batch_stats"])[0]

    first = gradients(lambda *a: normalise(*a, True), inputs, scale, bias)
    last = gradients(lambda *a: max_pool_2x2(normalise(*a, False)), inputs, scale, bias)
    for one, other in zip(first, last, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_conv_module_is_a_drop_in():
    inputs = jax.random.normal(jax.random.key(0), [2, 9, 8, 3])
    theirs = flax.linen.Conv(5, (3, 3), strides=2)
    params = theirs.init(jax.random.key(1), inputs)
    np.testing.assert_allclose(
        Conv(5, (3, 3), strides=2).apply(params, inputs), theirs.apply(params, inputs), atol=1e-5
    )


FLAX_OPTIONS = {
    "plain": {},
    "strides": {"strides": 2, "padding": 1, "kernel_init": flax.linen.initializers.ones},
    "dilated, circular": {"kernel_dilation": 2, "padding": "CIRCULAR", "precision": "highest"},
    "groups, bfloat16": {"feature_group_count": 3, "dtype": jnp.bfloat16, "precision": jax.lax.Precision.HIGHEST},
    "by another name": {"precision": "fastest"},
    "of each, XLA's own": {"precision": ("highest", "default")},
    "dilated inputs, XLA's own": {"input_dilation": (2, 2), "padding": ((1, 1), (1, 1))},
}


@pytest.mark.parametrize("name", FLAX_OPTIONS)
def test_flax_layers_compute_by_ours(name):
    """Linen and nnx: all of their options, and the primitive where it is for them."""
    inputs = jax.random.normal(jax.random.key(0), [2, 9, 8, 3])
    options, keys = FLAX_OPTIONS[name], jax.random.key(1)

    def linen(conv):
        layer = flax.linen.Conv(6, (3, 3), **options, conv_general_dilated=conv)
        return lambda inputs: layer.init_with_output(keys, inputs)[0]

    def nnx(conv):
        return flax.nnx.Conv(3, 6, (3, 3), **options, conv_general_dilated=conv, rngs=flax.nnx.Rngs(0))

    for make in (linen, nnx):
        ours, theirs = make(conv_general_dilated), make(jax.lax.conv_general_dilated)
        np.testing.assert_allclose(ours(inputs), theirs(inputs), rtol=1e-2 if "bfloat" in name else 1e-5, atol=1e-5)
        assert (sum(contractions_in(ours, inputs).values()) == 1) == ("XLA" not in name)


def test_flax_layers_of_other_dimensions_are_xla_s_own():
    inputs = jax.random.normal(jax.random.key(0), [2, 9, 3])
    layer = flax.linen.Conv(6, (3,), conv_general_dilated=conv_general_dilated)
    params = layer.init(jax.random.key(1), inputs)
    np.testing.assert_array_equal(layer.apply(params, inputs), flax.linen.Conv(6, (3,)).apply(params, inputs))
    images, kernel = jnp.ones([2, 3, 8, 8]), jnp.ones([4, 3, 3, 3])
    dimensions = ("NCHW", "OIHW", "NCHW")
    ours = conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    assert ours.shape == (2, 4, 8, 8)
    images, kernel = (
        images.transpose(0, 2, 3, 1).astype(jnp.bfloat16),
        kernel.transpose(2, 3, 1, 0).astype(jnp.bfloat16),
    )
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "preferred_element_type": jnp.float32}
    assert conv_general_dilated(images, kernel, (1, 1), "SAME", **options).dtype == jnp.float32


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
    # Of no examples at all there is nothing to keep.
    by_none, same = norm.apply({**variables, **kept}, second, train=True, weights=jnp.zeros(8), mutable=["batch_stats"])
    np.testing.assert_allclose(by_none, by_first, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, same, kept)


def test_max_pool_equals_xla_and_drops_the_last_odd_row():
    inputs = jax.random.normal(jax.random.key(0), [2, 7, 5, 3])
    theirs = flax.linen.max_pool(inputs, (2, 2), (2, 2))
    np.testing.assert_array_equal(max_pool_2x2(inputs), theirs)


@pytest.mark.parametrize("lowering", ["patches", "winograd"])
def test_blocks_of_examples_change_nothing(x64, lowering, monkeypatch):
    """Where patches do not fit the cache they are made block by block; all three contractions go through it."""
    inputs = jax.random.normal(jax.random.key(0), [12, 6, 6, 2])
    kernel = jax.random.normal(jax.random.key(1), [3, 3, 2, 3])

    def all_three():
        # A new function each time: the program of an old one is kept.
        @jax.jit
        def compiled(inputs, kernel):
            outputs, backward = jax.vjp(lambda x, k: conv2d(x, k, lowering=lowering), inputs, kernel)
            return outputs, *backward(jnp.sin(outputs))

        return compiled(inputs, kernel), compiled.lower(inputs, kernel).as_text().count("stablehlo.while")

    whole, loops = all_three()
    assert loops == 0
    monkeypatch.setattr(lowerings, "CACHE_BYTES", 6000)
    program = str(
        jax.make_jaxpr(lambda x: lowerings.contract_by(lowering, "cpu", x, kernel, "output", GEOMETRY, None))(inputs)
    )
    assert "scan" in program
    blocks, loops = all_three()
    assert loops == 3
    for one, other in zip(blocks, whole, strict=True):
        assert relative_error(one, other) < 1e-12


def test_the_canonical_gradient_of_a_kernel_sums_in_blocks(x64, monkeypatch):
    keys = jax.random.split(jax.random.key(0), 2)
    inputs, cotangent = jax.random.normal(keys[0], [20, 6, 6, 8]), jax.random.normal(keys[1], [20, 6, 6, 3])

    def gradient():
        contract = lambda x, y: lowerings.contract_by("canonical", "cpu", x, y, "kernel", GEOMETRY, None)  # noqa: E731
        return contract(inputs, cotangent), str(jax.make_jaxpr(contract)(inputs, cotangent))

    whole, program = gradient()
    assert "scan" not in program
    monkeypatch.setattr(lowerings, "KERNEL_POSITIONS", 80)
    blocks, program = gradient()
    assert "length=10" in program
    assert relative_error(blocks, whole) < 1e-12
    # Of few channels no fewer than five images.
    inputs = inputs[..., :1]
    _, program = gradient()
    assert "length=4" in program


@pytest.mark.parametrize("lowering", ["canonical", "patches", "winograd"])
def test_blocks_of_few_digits_are_summed_in_more(lowering, monkeypatch):
    """Of 128 or more small numbers a sum in bfloat16 would go wrong, or stand still."""
    monkeypatch.setattr(lowerings, "KERNEL_POSITIONS", 1)
    monkeypatch.setattr(lowerings, "CACHE_BYTES", 1)
    inputs, cotangent = jnp.ones([512, 6, 6, 8], jnp.bfloat16), jnp.full([512, 6, 6, 3], 0.25, jnp.bfloat16)
    gradient = lowerings.contract_by(lowering, "cpu", inputs, cotangent, "kernel", GEOMETRY, None)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient[1, 1].astype(jnp.float32), 512 * 36 * 0.25, rtol=1e-2)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("missing", lowerings.ROLES)
def test_uneven_sizes(x64, lowering, missing):
    """No size divides another, padding differs by side, and some inputs are never reached."""
    geometry = lowerings.Geometry((9, 8), (3, 2), (3, 2), ((0, 2), (1, 0)), (2, 1), 2 if lowering == "shifts" else 1)
    if lowering == "winograd":
        geometry = lowerings.Geometry((9, 8), (3, 3), padding=((0, 2), (1, 0)))
    channels = 2
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {
        "input": (3, *geometry.size, channels),
        "kernel": (*geometry.window, channels // geometry.groups, 4),
        "output": (3, *geometry.out_size, 4),
    }
    roles = {role: jax.random.normal(key, shapes[role]) for role, key in zip(lowerings.ROLES, keys, strict=True)}
    given = [roles[role] for role in lowerings.ROLES if role != missing]
    ours, theirs = (lowerings.contract_by(name, "cpu", *given, missing, geometry, None) for name in (lowering, "xla"))
    assert ours.shape == shapes[missing]
    assert relative_error(ours, theirs) < 1e-12


@pytest.mark.parametrize("channels, turned", [(4, True), (1, False)])
def test_the_product_of_patches_transposes_the_smaller_factor(channels, turned):
    """Behind a barrier, or XLA turns it round again; nine places of four channels are more than 16 features."""
    images, cotangent = jnp.ones([2, 6, 6, channels]), jnp.ones([2, 6, 6, 16])
    gradient = partial(lowerings.by_patches, missing="kernel", geometry=GEOMETRY, precision=None)
    program = jax.make_jaxpr(gradient)(images, cotangent)
    product = next(equation for equation in program.eqns if equation.primitive.name == "dot_general")
    assert product.outvars[0].aval.shape == ((16, 9 * channels) if turned else (9 * channels, 16))
    assert ("optimization_barrier" in str(program)) == turned


def test_no_examples():
    empty = jnp.zeros([0, 6, 6, 2])
    for lowering in ("canonical", "patches", "winograd"):
        gradient = lowerings.contract_by(lowering, "cpu", empty, jnp.zeros([0, 6, 6, 3]), "kernel", GEOMETRY, None)
        np.testing.assert_array_equal(gradient, jnp.zeros([3, 3, 2, 3]))


def test_canonical_convolutions_stay_so_in_a_loop_over_tasks():
    """XLA takes transpositions into a convolution, which then has a layout without fast kernels."""
    images, kernels = jnp.ones([3, 25, 14, 14, 16]), jnp.ones([3, 3, 3, 16, 16])

    def loss(images, kernel):
        hidden = conv2d(images, kernel, lowering="canonical")
        return jnp.sum(jnp.tanh(conv2d(jnp.tanh(hidden), kernel, lowering="canonical")))

    step = jax.jit(lambda *tasks: jax.lax.map(lambda task: jax.grad(loss, (0, 1))(*task), tasks))
    layouts = re.findall(r"convolution\(.*dim_labels=(\S+?),", step.lower(images, kernels).compile().as_text())
    assert len(layouts) >= 6 and set(layouts) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("flags, wide", [("fma avx2", False), ("avx2 avx512f avx512bw", True), (None, False)])
def test_the_rule_asks_the_processor(flags, wide, monkeypatch):
    def read_text(path):
        if flags is None:
            raise FileNotFoundError(path)
        return f"flags : {flags}"

    monkeypatch.setattr(Path, "read_text", read_text)
    assert processor.has_wide_vectors.__wrapped__() is wide
    monkeypatch.setattr(lowerings, "has_wide_vectors", lambda: wide)
    assert choose_lowering("cpu", GEOMETRY, 64, 64, True) == ("canonical" if wide else "winograd")
    assert choose_lowering("cpu", GEOMETRY, 64, 64, True, dtype="float64") == "winograd"
    assert choose_lowering("cuda", GEOMETRY, 64, 64, True) == "patches"


def test_processors_have_tables_of_their_own(monkeypatch):
    """JAX calls all of them "cpu"."""
    monkeypatch.setattr(processor, "processor_name", processor.processor_name.__wrapped__)
    monkeypatch.setattr(processor, "has_wide_vectors", processor.has_wide_vectors.__wrapped__)
    names = []
    for text in ("model name\t: AMD EPYC\nflags\t: avx2", "model name\t: AMD EPYC\nflags\t: avx512f", "flags\t: fma"):
        monkeypatch.setattr(processor, "_cpuinfo", lambda text=text: text)
        names.append(lowerings_file(processor.device_name()).name)
    assert names[:2] == ["lowerings-cpu-amd-epyc.json", "lowerings-cpu-amd-epyc-512-bits.json"]
    assert names[2] not in ("lowerings-cpu.json", *names[:2])


def test_the_rule_on_a_cpu():
    plain, strided = GEOMETRY, GEOMETRY._replace(strides=(2, 2))
    chosen = {
        (wide, geometry.strides[0], channels): choose_lowering("cpu", geometry, channels, 64, True, wide=wide)
        for wide in (False, True)
        for geometry in (plain, strided)
        for channels in (1, 64)
    }
    assert chosen == {
        (False, 1, 1): "patches",
        (False, 1, 64): "winograd",
        (False, 2, 1): "patches",
        (False, 2, 64): "patches",
        (True, 1, 1): "canonical",
        (True, 1, 64): "canonical",
        (True, 2, 1): "patches",
        (True, 2, 64): "patches",
    }


@pytest.mark.parametrize("train", [True, False])
def test_an_offset_is_as_if_added(x64, train):
    """With pooling, padding and a negative scale; the offset's own gradient too, which is nothing in training."""
    keys = jax.random.split(jax.random.key(0), 5)
    inputs, offset = jax.random.normal(keys[0], [3, 4, 4, 2]), jax.random.normal(keys[1], [2])
    weights, layer = jnp.array([1.0, 1.0, 0.0]), BatchNorm()
    variables = {
        "params": {"scale": jnp.array([1.5, -0.5]), "bias": jnp.array([0.1, 0.2])},
        "batch_stats": {"mean": jax.random.normal(keys[2], [2]), "variance": jnp.array([0.5, 2.0])},
    }
    direction = jax.random.normal(keys[3], [3, 2, 2, 2])

    def normalised(inputs, offset, *, apart):
        given = {"offset": offset} if apart else {}
        inputs = inputs if apart else inputs + offset
        options = {"train": train, "weights": weights, "pool": True, "mutable": ["batch_stats"]}
        outputs, kept = layer.apply(variables, inputs, **options, **given)
        return jnp.vdot(outputs, direction), (outputs, kept)

    ours, theirs = (
        jax.value_and_grad(partial(normalised, apart=apart), (0, 1), has_aux=True)(inputs, offset)
        for apart in (True, False)
    )
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    assert (jnp.abs(ours[1][1]).max() < 1e-12) == train


def test_an_offset_with_more_digits_changes_no_type():
    """Parameters may be kept in float32 beside inputs in bfloat16."""
    inputs, layer = jnp.ones([2, 4, 4, 3], jnp.bfloat16), BatchNorm()
    variables = layer.init(jax.random.key(0), inputs, train=True)
    for dtype in (jnp.float32, jnp.bfloat16):
        outputs, kept = layer.apply(variables, inputs, train=True, offset=jnp.ones(3, dtype), mutable=["batch_stats"])
        assert outputs.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}


def test_a_bias_can_be_given_apart():
    inputs = jax.random.normal(jax.random.key(0), [2, 5, 5, 3])
    for use_bias in (True, False):
        layer = Conv(4, use_bias=use_bias)
        variables = layer.init(jax.random.key(1), inputs)
        variables["params"] |= {"bias": jnp.arange(4.0)} if use_bias else {}
        outputs, bias, _ = layer.apply(variables, inputs, method=Conv.before_norm)
        assert (bias is not None) == use_bias
        whole = outputs if bias is None else outputs + bias
        np.testing.assert_array_equal(whole, layer.apply(variables, inputs))


@pytest.mark.parametrize("lowering", ["patches", "winograd", "canonical"])
def test_an_exported_program_takes_any_number_of_examples(lowering):
    """On the platform where examples go through in blocks, of which a symbol has none."""
    kernel = jax.random.normal(jax.random.key(0), [3, 3, 4, 2])
    (examples,) = jax.export.symbolic_shape("examples")
    shape = jax.ShapeDtypeStruct((examples, 8, 8, 4), jnp.float32)
    exported = jax.export.export(jax.jit(lambda images: conv2d(images, kernel, lowering=lowering)))(shape)
    for number in (1, 5):
        images = jax.random.normal(jax.random.key(1), [number, 8, 8, 4])
        np.testing.assert_allclose(exported.call(images), conv2d(images, kernel), atol=1e-4)
