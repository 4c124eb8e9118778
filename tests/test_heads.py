"""Heads in closed form against NumPy and scikit-learn, heads that are networks, and what all heads must not do."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxmeta import (
    CRITERIA,
    Criterion,
    EpisodeSpec,
    cnp,
    cnp_distribution,
    example_batch,
    from_function,
    in_context,
    load_sinusoid,
    metaoptnet,
    metaoptnet_ridge,
    mlp,
    protonet,
    r2d2,
    ridge_weights,
    svm_weights,
    task_source,
)
from jaxmeta.losses import weighted_mean

REGRESSION = CRITERIA["regression"]


def identity():
    """A model whose features are its inputs."""
    return from_function(lambda key, inputs: {}, lambda params, inputs: inputs)


def ridge_problem(examples, features):
    rng = np.random.default_rng(examples)
    return rng.normal(size=(examples, features)), rng.normal(size=(examples, 2)), rng.uniform(0.2, 2.0, examples)


@pytest.mark.parametrize(("examples", "features"), [(4, 7), (7, 4)])
def test_ridge_is_the_solution_of_the_normal_equations(x64, examples, features):
    x, y, weights = ridge_problem(examples, features)
    padding = np.where(np.arange(examples) < 2, 0.0, 1.0)
    for one in (np.ones(examples), weights, padding):
        expected = np.linalg.solve(x.T @ (one[:, None] * x) + 0.3 * np.eye(features), x.T @ (one[:, None] * y))
        np.testing.assert_allclose(ridge_weights(*map(jnp.asarray, (x, y, one)), 0.3), expected, rtol=1e-10, atol=1e-12)
    check_grads(lambda x, strength: ridge_weights(x, y, weights, strength), (jnp.asarray(x), 0.3), 1, modes=["rev"])


def svm_problem():
    """Three classes that overlap, so that examples are on the margin, within it and beyond it."""
    rng = np.random.default_rng(1)
    targets = np.arange(9) % 3
    return rng.normal(size=(3, 12))[targets] + 1.5 * rng.normal(size=(9, 12)), targets


@jax.jit
def svm(features, targets):
    return svm_weights(example_batch(features, targets), 3, 0.1)


def test_svm_is_that_of_scikit_learn_and_meets_its_conditions(x64):
    from sklearn.svm import LinearSVC

    features, targets = svm_problem()
    solution = np.asarray(svm(features, targets))
    reference = LinearSVC(multi_class="crammer_singer", C=0.1, fit_intercept=False, tol=1e-10, max_iter=10**6)
    reference.fit(features, targets)
    np.testing.assert_allclose(solution.T, reference.coef_, atol=1e-6)
    others = np.random.default_rng(2).normal(size=(40, 12))
    assert (np.argmax(others @ solution, 1) == reference.predict(others)).all()
    # Conditions of Karush, Kuhn and Tucker, for the alpha that give these w_k.
    alpha = np.linalg.lstsq(features.T, solution, rcond=None)[0]
    bounds = 0.1 * np.eye(3)[targets]
    gradient = features @ solution - np.eye(3)[targets]
    duals = gradient.max(1, keepdims=True) - gradient
    np.testing.assert_allclose(features.T @ alpha, solution, atol=1e-8)
    np.testing.assert_allclose(alpha.sum(1), 0, atol=1e-8)
    assert (alpha < bounds + 1e-8).all()
    np.testing.assert_allclose(duals * (bounds - alpha), 0, atol=1e-8)
    # Of every kind: at the bound, within, and without any part.
    at_bound = alpha[np.arange(9), targets]
    assert (at_bound > 0.1 - 1e-8).any() and ((at_bound > 1e-6) & (at_bound < 0.1 - 1e-6)).any()


def test_svm_gradient_is_that_of_finite_differences(x64):
    features, targets = svm_problem()
    rng = np.random.default_rng(3)
    cotangent, direction = rng.normal(size=(12, 3)), rng.normal(size=features.shape)
    gradient = jax.jit(jax.grad(lambda features: jnp.sum(svm(features, targets) * cotangent)))(jnp.asarray(features))
    plus, minus = svm(features + 1e-6 * direction, targets), svm(features - 1e-6 * direction, targets)
    difference = np.sum((plus - minus) * cotangent) / 2e-6
    np.testing.assert_allclose(np.sum(gradient * direction), difference, rtol=1e-5)


def test_svm_in_float32_over_tasks(x64):
    """What training does, vmap and grad in float32, against float64: a 5-shot task and a padded 1-shot one."""
    targets = jnp.arange(25) % 5
    rng = np.random.default_rng(4)
    # As after a ReLU.
    features = np.maximum(rng.normal(size=(2, 5, 16))[:, targets] + rng.normal(size=(2, 25, 16)), 0)
    weights = np.stack([np.ones(25), np.arange(25) < 5])
    cotangent = rng.normal(size=(16, 5))

    @jax.jit
    @jax.vmap
    def gradient(features, weights):
        def loss(features):
            support = example_batch(features, targets)._replace(weights=weights)
            return jnp.sum(svm_weights(support, 5, 0.1) * cotangent.astype(features.dtype))

        return jax.grad(loss)(features)

    single, double = gradient(*(one.astype(np.float32) for one in (features, weights))), gradient(features, weights)
    assert single.dtype == jnp.float32 and (single[1, 5:] == 0).all()
    error = np.linalg.norm(single - double, axis=(1, 2)) / np.linalg.norm(double, axis=(1, 2))
    assert (error < 5e-3).all(), error


def test_outputs_of_r2d2_and_of_ridge_by_hand(x64):
    """`a [x, 1] W + b`, and `scale x W`, with numbers that no head begins with."""
    rng = np.random.default_rng(3)
    x, classes, queries = rng.normal(size=(6, 4)), np.arange(6) % 3, rng.normal(size=(5, 4))
    support, query = (example_batch(jnp.asarray(one), jnp.zeros(len(one), jnp.int32)) for one in (x, queries))
    support = support._replace(targets=jnp.asarray(classes))
    one_hot, ones = np.eye(3)[classes], np.ones((6, 1))
    extended = np.concatenate([x, ones], 1)
    wide = np.linalg.solve(extended.T @ extended + 0.7 * np.eye(5), extended.T @ one_hot)
    plain = np.linalg.solve(x.T @ x + 5.0 * np.eye(4), x.T @ one_hot)
    cases = [
        (
            r2d2(identity(), ways=3),
            {"log_lambda": np.log(0.7), "scale": 3.0, "bias": -0.4},
            3.0 * (np.concatenate([queries, ones[:5]], 1) @ wide) - 0.4,
        ),
        (metaoptnet_ridge(identity(), ways=3, regularization=5.0), {"scale": 2.5}, 2.5 * (queries @ plain)),
    ]
    for learner, head, expected in cases:
        params, state = learner.init(jax.random.key(0), support.inputs)
        assert jax.tree.leaves(params) and set(params["head"]) == set(head)
        params = {**params, "head": jax.tree.map(jnp.asarray, head)}
        adapted = learner.adapt(params, state, support, jax.random.key(0))
        np.testing.assert_allclose(learner.predict(adapted, query, jax.random.key(0)), expected, rtol=1e-9)


# Four ways, of which the tasks below have three.
CLASSIFIERS = {
    "protonet": lambda: protonet(identity(), ways=4),
    "r2d2": lambda: r2d2(identity(), ways=4),
    "metaoptnet": lambda: metaoptnet(identity(), ways=4),
    "metaoptnet-ridge": lambda: metaoptnet_ridge(identity(), ways=4),
    "in-context": lambda: in_context(identity(), ways=4, width=8, layers=2, heads=2),
    "cnp": lambda: cnp(identity(), ways=4, width=8),
}


def unpadded(batch, size):
    return jax.tree.map(lambda leaf: leaf[:size], batch)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_what_no_head_may_look_at(name):
    """Neither padding, nor the order of the support set, nor other queries; and no class without an example."""
    learner, key = CLASSIFIERS[name](), jax.random.key(0)
    rng = np.random.default_rng(5)
    inputs = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    support = example_batch(inputs, jnp.array([0, 1, 3, 0, 1, 3, 2, 2]))._replace(weights=1.0 * (jnp.arange(8) < 6))
    query = example_batch(jnp.asarray(rng.normal(size=(4, 5)), jnp.float32), jnp.zeros(4, jnp.int32))
    params, state = learner.init(key, inputs)

    @jax.jit
    def predict(support, query):
        return learner.predict(learner.adapt(params, state, support, key), query, key)

    outputs = predict(support, query)
    assert np.isfinite(outputs).all() and outputs.shape == (4, 4)
    assert (outputs[:, 2] < outputs.min(1, initial=np.inf, where=jnp.arange(4) != 2) - 1e6).all()
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(predict(unpadded(support, 6), query), outputs, **close)
    other_padding = support._replace(inputs=inputs.at[6:].multiply(20.0), targets=support.targets.at[6:].set(0))
    np.testing.assert_allclose(predict(other_padding, query), outputs, **close)
    order = jnp.array([4, 0, 7, 5, 2, 6, 1, 3])
    np.testing.assert_allclose(predict(jax.tree.map(lambda leaf: leaf[order], support), query), outputs, **close)
    others = query._replace(inputs=query.inputs.at[1:].multiply(-5.0))
    np.testing.assert_allclose(predict(support, others)[0], outputs[0], **close)
    # The support set does count.
    assert np.abs(predict(support._replace(inputs=inputs[::-1]), query) - outputs).max() > 1e-3


@pytest.fixture(scope="module")
def sinusoids():
    source = task_source(load_sinusoid(), "train", EpisodeSpec(1, 5, 10))
    return source.sample(jax.random.key(0), source.pool, source.spec, 8)


def test_cnp_loss_is_the_likelihood_of_what_it_predicts(sinusoids):
    """Padding in both sets counts for nothing."""
    options = {"ways": 1, "width": 8, "criterion": REGRESSION}
    learner, distribution = cnp(mlp(1), **options), cnp_distribution(mlp(1), **options)
    episode, key = jax.tree.map(lambda leaf: leaf[0], sinusoids), jax.random.key(1)
    params, state = learner.init(key, episode.support.inputs)
    support = episode.support._replace(weights=jnp.array([1.0, 1.0, 1.0, 0.0, 0.0]))
    query = episode.query._replace(weights=1.0 * (jnp.arange(10) < 7))
    mean, deviation = distribution(learner.adapt(params, state, unpadded(support, 3), key), query, key)
    adapted = learner.adapt(params, state, support, key)
    np.testing.assert_allclose(learner.predict(adapted, query, key), mean, rtol=1e-5, atol=1e-6)
    scaled = (query.targets - mean) / deviation
    densities = -0.5 * scaled**2 - jnp.log(deviation) - 0.5 * np.log(2 * np.pi)
    loss, (_, metrics) = learner.loss(params, state, episode._replace(support=support, query=query), key, 0)
    np.testing.assert_allclose(loss, -densities[:7].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], jnp.square(query.targets - mean)[:7].mean(), rtol=1e-5)
    assert (deviation > 0.1).all()


def test_cnp_regresses_more_values_than_its_layers_are_wide():
    batch = example_batch(jnp.ones([4, 1]), jnp.ones([4, 3]))
    learner = cnp(mlp(3), ways=3, width=2, criterion=REGRESSION)
    params, state = learner.init(jax.random.key(0), batch.inputs)
    assert learner.predict(learner.adapt(params, state, batch, jax.random.key(0)), batch, jax.random.key(0)).shape == (
        4,
        3,
    )


def test_a_criterion_of_ones_own_says_whether_it_regresses(sinusoids):
    def absolute_error(outputs, targets, weights):
        return weighted_mean(jnp.abs(outputs - targets).mean(-1), weights)

    episode = jax.tree.map(lambda leaf: leaf[0], sinusoids)
    values = Criterion(absolute_error, {"mae": absolute_error}, regresses=True)
    learner = cnp(mlp(1), ways=1, width=8, criterion=values)
    params, state = learner.init(jax.random.key(0), episode.support.inputs)
    loss, (_, metrics) = learner.loss(params, state, episode, jax.random.key(0), 0)
    assert np.isfinite(loss) and metrics["mae"] > 0
    with pytest.raises(ValueError, match="protonet tells classes apart and cannot regress"):
        protonet(mlp(1), ways=1, criterion=values)
    with pytest.raises(ValueError, match="protonet tells classes apart and cannot regress"):
        protonet(mlp(1), ways=1, criterion=Criterion(REGRESSION.loss, {"mae": absolute_error}))
    for factory in (cnp, protonet):
        learner = factory(mlp(1), ways=1, criterion=values._replace(regresses=False))
        params, state = learner.init(jax.random.key(0), episode.support.inputs)
        with pytest.raises(
            ValueError,
            match="as targets, an integer type; given float32. To regress, .* cnp, with a criterion of regresses=True",
        ):
            learner.adapt(params, state, episode.support, jax.random.key(0))


def test_refusals(monkeypatch):
    for factory in (metaoptnet, metaoptnet_ridge):
        with pytest.raises(ValueError, match="cannot regress. Use maml"):
            factory(identity(), ways=1, criterion=REGRESSION)
        with pytest.raises(ValueError, match="positive regularization .* given 0"):
            factory(identity(), ways=3, regularization=0.0)
    with pytest.raises(ValueError, match="heads that divide the width 10; given 4"):
        in_context(identity(), ways=3, width=10)
    with pytest.raises(ValueError, match="given 'batch'"):
        cnp(identity(), ways=3, norm="batch")
    monkeypatch.setitem(sys.modules, "qpax", None)
    with pytest.raises(ImportError, match="pip install qpax"):
        metaoptnet(identity(), ways=3)
