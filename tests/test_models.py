"""Models and adapters: every row, and foreign networks, behave as the interface says."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from conftest import tiny_model
from jaxmeta import (
    MODELS,
    Episode,
    EpisodeSpec,
    TaskSource,
    conv4,
    example_batch,
    from_function,
    from_linen,
    from_nnx,
    in_precision,
    init_train_state,
    make_train_step,
    maml,
    resnet12,
)
from jaxmeta.models import with_flat_features
from jaxmeta.nn import BatchNorm

KEY = jax.random.key(2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (84, 84, 3)])
def test_every_model(name, shape):
    model = MODELS[name](5)
    inputs = jnp.ones([2, *shape])
    params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
    assert set(params) == {"body", "head"}
    features, _ = jax.eval_shape(lambda p, s: model.embed(p, s, inputs), params, state)
    outputs, new_state = jax.eval_shape(lambda p, s: model.apply(p, s, inputs), params, state)
    assert features.ndim == (4 if name == "conv4-maps" else 2) and outputs.shape == (2, 5)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("shape", "downsample", "features"),
    [((28, 28, 1), "pool", 64), ((84, 84, 3), "pool", 1600), ((28, 28, 1), "stride", 64)],
)
def test_conv4_sizes_of_the_papers(shape, downsample, features):
    model = conv4(5, downsample=downsample)
    inputs = jnp.ones([1, *shape])
    params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
    assert params["head"]["kernel"].shape == (features, 5)


def test_apply_is_the_head_of_embed():
    model = conv4(5, filters=4)
    inputs = jax.random.normal(jax.random.key(0), [3, 16, 16, 1])
    params, state = jax.jit(model.init)(jax.random.key(1), inputs)
    features, _ = jax.jit(model.embed, static_argnames="train")(params, state, inputs, train=True)
    outputs, _ = jax.jit(model.apply, static_argnames="train")(params, state, inputs, train=True)
    head = params["head"]
    np.testing.assert_allclose(outputs, features @ head["kernel"] + head["bias"], atol=1e-5)


def test_conv4_refuses_an_unknown_downsample():
    with pytest.raises(ValueError, match="given 'avg'"):
        conv4(5, downsample="avg")


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        hidden = nn.BatchNorm(use_running_average=not train, momentum=0.0)(nn.Dense(8)(inputs))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.relu(hidden)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.0, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, inputs):
        return self.second(self.dropout(nnx.relu(self.norm(self.first(inputs)))))


@pytest.mark.parametrize("momentum", [0.99, 0.9])
def test_normalisation_that_keeps_a_running_mean_is_refused(momentum):
    """Of which a support set would be a hundredth, and what is called inductive would not be."""

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, inputs, train):
            return nn.BatchNorm(use_running_average=not train, momentum=momentum)(inputs)

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(4, momentum=momentum, rngs=rngs)

        def __call__(self, inputs):
            return self.norm(inputs)

    for make in (lambda: from_linen(Linen()).init(jax.random.key(0), jnp.ones([3, 4])), lambda: from_nnx(Nnx)):
        with pytest.raises(ValueError, match=f"BatchNorm of momentum {momentum} keeps a running mean"):
            make()


@pytest.mark.parametrize("model", [from_linen(LinenNet()), from_nnx(NnxNet)], ids=["linen", "nnx"])
def test_foreign_modules_keep_statistics_and_can_be_adapted(model):
    inputs = jax.random.normal(jax.random.key(0), [16, 4]) * 3 + 1
    params, state = model.init(jax.random.key(1), inputs)
    assert jax.tree.leaves(state)
    key = jax.random.key(2)
    _, kept = model.apply(params, state, inputs, key=key, train=True)
    one, same = model.apply(params, kept, inputs[:1], key=key, train=False)
    many, _ = model.apply(params, kept, inputs, key=key, train=False)
    np.testing.assert_allclose(one[0], many[0], atol=1e-5)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.array_equal(a, b), same, kept))
    assert not jax.tree.all(jax.tree.map(lambda a, b: jnp.array_equal(a, b), state, kept))

    # Noise follows the key, and without a key there is none.
    noisy = [model.apply(params, state, inputs, key=jax.random.key(seed))[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.abs(noisy[0] - noisy[2]).max() > 1e-3
    quiet = [model.apply(params, state, inputs)[0] for _ in range(2)]
    np.testing.assert_array_equal(*quiet)
    np.testing.assert_allclose(quiet[0], many, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        from_linen(LinenNet(), LinenNet()),
        from_linen(LinenNet()),
        from_nnx(NnxNet, lambda rngs: nnx.Linear(3, 2, rngs=rngs)),
        in_precision(from_linen(LinenNet(), LinenNet()), "bfloat16"),
    ],
    ids=["linen", "no head", "nnx", "bfloat16"],
)
@pytest.mark.parametrize("train", [True, False])
def test_the_head_of_the_features_is_the_whole_network(model, train):
    """With its noise and its state, which the head of the first has too."""
    inputs = jax.random.normal(jax.random.key(0), [6, 4])
    params, state = model.init(jax.random.key(1), inputs)
    options = {"key": KEY if train else None, "train": train, "weights": jnp.ones(6)}
    features, between = model.embed(params, state, inputs, **options)
    whole = model.apply(params, state, inputs, **options)
    jax.tree.map(np.testing.assert_array_equal, model.head(params, between, features, **options), whole)


def test_flat_features_are_not_what_the_head_is_for():
    assert with_flat_features(conv4(5, filters=2, maps=True)).head is None


@pytest.mark.parametrize("norm", ["transductive", "inductive"])
@pytest.mark.parametrize("model", [from_linen(LinenNet()), from_nnx(NnxNet)], ids=["linen", "nnx"])
def test_foreign_modules_are_trained_and_predict_without_noise(model, norm):
    learner, optimizer = maml(model, inner_optimizer=optax.sgd(0.1), norm=norm), optax.adam(1e-3)

    def sample(key, pool, spec, num_tasks):
        inputs = jax.random.normal(key, [num_tasks, 6, 4])
        batch = jax.vmap(example_batch)(inputs, jnp.tile(jnp.arange(6) % 3, (num_tasks, 1)))
        return Episode(batch, batch)

    source, key = TaskSource(sample, (), EpisodeSpec(3, 2, 2)), jax.random.key(0)
    train_state = init_train_state(key, learner, optimizer, source, num_tasks=4)
    train_step = make_train_step(learner, optimizer, task_chunk=2)
    train_state, metrics = jax.jit(train_step)(train_state, sample(key, (), None, 4), key)
    assert 0 < metrics["grad_norm"] < jnp.inf
    episode = jax.tree.map(lambda leaf: leaf[0], sample(key, (), None, 1))
    adapted = learner.adapt(train_state.meta_params, train_state.state, episode.support, key)
    one, other = (learner.predict(adapted, episode.query, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_plain_function_needs_no_state():
    model = from_function(lambda key, x: jnp.zeros([x.shape[-1], 3]), lambda w, x: x @ w)
    params, state = model.init(jax.random.key(0), jnp.ones([2, 4]))
    assert state == {} and params["head"] == {}


def test_conv4_refuses_images_that_it_would_pool_away():
    with pytest.raises(ValueError, match=r"needs 16x16 or more; given \[8, 8\]"):
        conv4(3).init(jax.random.key(0), jnp.ones([2, 8, 8, 1]))


def test_resnet12_sizes_of_the_papers():
    """640 features, and the 12.4 million parameters that the papers give."""
    inputs = jnp.ones([1, 84, 84, 3])
    params, _ = jax.eval_shape(resnet12(5).init, jax.random.key(0), inputs)
    assert params["head"]["kernel"].shape == (640, 5)
    assert sum(leaf.size for leaf in jax.tree.leaves(params["body"])) == 12_424_320


class FlaxResidualBlock(nn.Module):
    filters: int

    @nn.compact
    def __call__(self, inputs, train):
        def normalised(hidden):
            # A momentum of zero keeps the statistics of the last batch, as our own does.
            return nn.BatchNorm(use_running_average=not train, momentum=0.0)(hidden)

        hidden = nn.leaky_relu(normalised(nn.Conv(self.filters, (3, 3), use_bias=False)(inputs)), 0.1)
        hidden = nn.leaky_relu(normalised(nn.Conv(self.filters, (3, 3), use_bias=False)(hidden)), 0.1)
        hidden = normalised(nn.Conv(self.filters, (3, 3), use_bias=False)(hidden))
        shortcut = normalised(nn.Conv(self.filters, (1, 1), use_bias=False)(inputs))
        return nn.max_pool(nn.leaky_relu(hidden + shortcut, 0.1), (2, 2), (2, 2))


class FlaxResNet12(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        for number, filters in enumerate((4, 10, 20, 40)):
            inputs = FlaxResidualBlock(filters, name=f"ResidualBlock_{number}")(inputs, train)
        return inputs.mean((1, 2))


@pytest.mark.slow
def test_resnet12_equals_flax_with_the_same_parameters(x64):
    model, inputs = resnet12(3, width=4), jax.random.normal(jax.random.key(0), [2, 17, 18, 3])
    params, state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), jax.jit(model.init)(KEY, inputs))

    @jax.jit
    def both(params, inputs):
        ours, _ = model.embed(params, state, inputs, train=True)
        return ours, FlaxResNet12().apply({"params": params["body"]}, inputs, True, mutable=["batch_stats"])[0]

    ours, theirs = both(params, inputs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_resnet12_refuses_small_images_and_odd_widths():
    with pytest.raises(ValueError, match=r"needs 16x16 or more; given \[8, 8\]"):
        resnet12(3, width=4).init(jax.random.key(0), jnp.ones([2, 8, 8, 1]))
    with pytest.raises(ValueError, match="positive even width .* given 5"):
        resnet12(3, width=5)


def test_conv4_with_biases_is_the_same_network():
    inputs = jax.random.normal(jax.random.key(0), [3, 28, 28, 1])
    model = conv4(5, filters=4, conv_bias=True)
    params, state = model.init(jax.random.key(1), inputs)
    bare = jax.tree.map(lambda leaf: leaf, params)
    for number in range(4):
        bias = bare["body"][f"Conv_{number}"].pop("bias")
        params["body"][f"Conv_{number}"]["bias"] = bias + 3.0
    expected, _ = conv4(5, filters=4).apply(bare, state, inputs, train=True)
    outputs, kept = model.apply(params, state, inputs, train=True)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    # Judged by the statistics that were kept, and by those of a new network, whose mean is 0: there a bias does count.
    judged, _ = model.apply(params, kept, inputs, train=False)
    np.testing.assert_allclose(judged, expected, atol=1e-4)
    bare_outputs, _ = conv4(5, filters=4).apply(bare, state, inputs, train=False)
    apart = bare_outputs - model.apply(params, state, inputs, train=False)[0]
    assert jnp.abs(apart).max() > 0.1


def meta_gradient(precision):
    """The program of a loss and its second-order gradient by one task, and its arguments."""
    model = in_precision(tiny_model(), precision)
    learner = maml(model, inner_optimizer=optax.sgd(0.1), num_steps=2)
    inputs = jax.random.normal(jax.random.key(0), [4, 16, 16, 1])
    batch = example_batch(inputs, jnp.array([0, 1, 2, 1]))
    theta, state = learner.init(jax.random.key(1), inputs)
    run = jax.value_and_grad(lambda theta, batch: learner.loss(theta, state, Episode(batch, batch), KEY, 0)[0])
    return jax.jit(run).lower(theta, batch), theta, batch


def test_precision_reaches_every_derivative_and_parameters_stay_float32():
    (plain, *arguments), (shorter, *_), (bfloat16, *_) = map(meta_gradient, ("float32", "tf32", "bfloat16"))
    theta, _ = arguments
    text = plain.as_text()
    assert "HIGHEST" in text and "DEFAULT" not in text and "bf16" not in text
    text = shorter.as_text()
    assert "HIGH," in text and "DEFAULT" not in text
    text = bfloat16.as_text()
    _, exact = plain.compile()(*arguments)
    loss, rounded = bfloat16.compile()(*arguments)
    products = [line for line in text.splitlines() if "dot_general" in line or "stablehlo.convolution" in line]
    assert products and all("bf16" in line.split("->")[1] for line in products)
    assert loss.dtype == jnp.float32
    assert jax.tree.map(lambda leaf: leaf.dtype, rounded) == jax.tree.map(lambda leaf: leaf.dtype, theta)
    error = optax.tree.norm(optax.tree.sub(rounded, exact)) / optax.tree.norm(exact)
    assert 1e-4 < error < 0.2


def test_bfloat16_statistics_are_those_of_float32():
    inputs = 100.0 + jax.random.normal(jax.random.key(0), [64, 28, 28, 2])
    model = from_linen(BatchNorm())
    params, state = model.init(jax.random.key(1), inputs)
    _, kept = in_precision(model, "bfloat16").apply(params, state, inputs)
    rounded = inputs.astype(jnp.bfloat16).astype(jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(kept))
    np.testing.assert_allclose(kept["body"]["batch_stats"]["mean"], rounded.mean((0, 1, 2)), rtol=1e-4)


def test_precision_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="'float16' is none of: float32, tf32, bfloat16"):
        in_precision(conv4(2), "float16")
