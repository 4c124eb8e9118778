"""What learning to learn is compared with: against scikit-learn, against its own definition, and its data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import flat_model
from jaxmeta import (
    CRITERIA,
    Batch,
    ClassPool,
    Episode,
    EpisodeSpec,
    baseline,
    baseline_plus_plus,
    example_batch,
    from_function,
    init_train_state,
    inner_momentum,
    make_train_step,
    mlp,
    nearest,
    sample_classification,
    scratch,
)
from jaxmeta.config import ConfigError
from jaxmeta.presets import PRESETS, with_algorithm
from jaxmeta.workspace import open_workspace

# Operation by operation, many small programs would be compiled.
draw = jax.jit(sample_classification, static_argnums=(2, 3))
IDENTITY = from_function(lambda key, x: {}, lambda params, x: x)
PROBE = {"classes": 12, "ways": 3, "inner_optimizer": inner_momentum(0.01)}


def padded(batch, count=2):
    """Add examples of weight 0 which would change everything if they counted."""
    extra = batch._replace(inputs=batch.inputs[:count] + 9.0, targets=batch.targets[:count], weights=jnp.zeros(count))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), batch, extra)


@pytest.fixture(scope="module")
def episode(source):
    return jax.tree.map(lambda leaf: leaf[0], source.sample(jax.random.key(3), source.pool, source.spec, 1))


@pytest.fixture(scope="module")
def batches(source):
    """A pair of batches for classification among the pool's twelve classes."""
    episodes = draw(jax.random.key(4), source.pool, EpisodeSpec(3, 2, 6), 1)
    return jax.tree.map(lambda leaf: leaf[0], episodes)


def test_nearest_is_the_neighbour_of_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(0)
    support, query = rng.normal(size=[20, 3, 3, 2]).astype(np.float32), rng.normal(size=[30, 3, 3, 2])
    targets = rng.integers(0, 4, 20)
    classifier = neighbors.KNeighborsClassifier(1).fit(support.reshape(20, -1), targets)
    learner = nearest(IDENTITY, ways=4)
    adapted = learner.adapt({}, {}, Batch(support, targets, np.ones(20, np.float32)), jax.random.key(0))
    outputs = jax.jit(learner.predict)(adapted, Batch(query.astype(np.float32), np.zeros(30), np.ones(30)), None)
    np.testing.assert_array_equal(outputs.argmax(-1), classifier.predict(query.reshape(30, -1)))
    distances, _ = classifier.kneighbors(query.reshape(30, -1))
    np.testing.assert_allclose(-outputs.max(-1), distances[:, 0], rtol=1e-5)


def test_padding_and_absent_classes_never_win():
    """One example of class 1 far away, padding of classes 0 and 1 right at the query, none of class 2."""
    support = example_batch(jnp.array([[50.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), jnp.array([1, 0, 1]))
    support = support._replace(weights=jnp.array([1.0, 0.0, 0.0]))
    query = example_batch(jnp.zeros([1, 2]), jnp.array([1]))
    for learner in (
        nearest(IDENTITY, ways=3),
        baseline(IDENTITY, **PROBE, num_steps=1),
        baseline_plus_plus(IDENTITY, **PROBE, num_steps=1),
    ):

        @jax.jit
        def outputs_of(support, query, key, learner=learner):
            theta, state = learner.init(key, support.inputs)
            return learner.predict(learner.adapt(theta, state, support, key), query, key)

        outputs = outputs_of(support, query, jax.random.key(0))
        assert outputs.argmax(-1).tolist() == [1] and np.isfinite(outputs).all()
        assert outputs[0, 0] == outputs[0, 2] == -1e9


def one_step(learner, optimizer, source):
    """The training state before and after a step of two tasks, and its metrics."""

    @jax.jit
    def steps(key, pool):
        tasks = source._replace(pool=pool)
        before = init_train_state(key, learner, optimizer, tasks, num_tasks=2)
        episodes = source.sample(key, pool, source.spec, 2)
        return before, *make_train_step(learner, optimizer, task_chunk=1)(before, episodes, key)

    return steps(jax.random.key(0), source.pool)


def test_nearest_has_nothing_to_learn_and_trains(source):
    learner = nearest(flat_model(), ways=3)
    _, after, metrics = one_step(learner, optax.adam(1e-3), source)
    assert int(after.step) == 1 and not jax.tree.leaves((after.meta_params, after.state))
    assert metrics["grad_norm"] == 0 and metrics["nonfinite"] == 0
    # Images of a class differ by noise: the nearest one tells more than chance.
    assert metrics["accuracy"] > 1 / 3


def test_scratch_learns_nothing_across_tasks_and_begins_where_its_key_says(source, episode):
    learner, key = scratch(flat_model(), inner_optimizer=optax.sgd(0.1), num_steps=3), jax.random.key(0)
    before, after, metrics = one_step(learner, optax.adam(1e-2), source)
    assert jax.tree.leaves(after.meta_params) == [] and metrics["grad_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, before.state, after.state)
    adapt = jax.jit(lambda key: learner.adapt(after.meta_params, after.state, episode.support, key).params)
    one, again, other = adapt(key), adapt(key), adapt(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert optax.tree.norm(optax.tree.sub(one, other)) > 0.1


def test_scratch_fits_its_task():
    """A line through two points: a thousandth of its error after training, in the units of its start."""
    model = from_function(lambda key, x: jax.random.normal(key, [1, 1]), lambda w, x: x @ w)
    learner = scratch(model, inner_optimizer=optax.sgd(0.1), num_steps=50, criterion=CRITERIA["regression"])
    points = example_batch(jnp.array([[1.0], [-2.0]]), jnp.array([[3.0], [-6.0]]))
    params = jax.jit(learner.adapt)({}, {}, points, jax.random.key(0)).params["body"]
    np.testing.assert_allclose(params, 3.0, rtol=1e-5)
    untrained = learner.adapt({}, {}, points, jax.random.key(0), num_steps=0).params["body"]
    assert abs(float(untrained[0, 0]) - 3.0) > 0.1


@pytest.mark.parametrize("norm", ["running", "inductive"])
def test_baseline_learns_to_classify_and_freezes_its_embedding(batches, episode, norm):
    learner, optimizer, key = (
        baseline(flat_model(), **PROBE, num_steps=5, norm=norm),
        optax.adam(0.03),
        jax.random.key(0),
    )
    theta, state = learner.init(key, batches.support.inputs)
    assert theta["head"]["kernel"].shape == (4, 12)

    @jax.jit
    def step(theta, state, opt_state):
        (loss, (state, _)), grads = jax.value_and_grad(learner.loss, has_aux=True)(theta, state, batches, key, 0)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(theta, updates), state, opt_state, loss

    opt_state, losses = optimizer.init(theta), []
    for _ in range(60):
        theta, state, opt_state, loss = step(theta, state, opt_state)
        losses.append(float(loss))
    assert losses[0] > 2.0 and losses[-1] < 0.6 * losses[0]
    adapted = jax.jit(learner.adapt)(theta, state, episode.support, key)
    jax.tree.map(np.testing.assert_array_equal, adapted.params, theta)
    kept = jax.tree.leaves(jax.tree.map(np.array_equal, adapted.state, state))
    assert all(kept) if norm == "running" else not any(kept)
    assert learner.predict(adapted, episode.query, key).shape == (6, 3)


def test_the_probe_is_gradient_descent_on_the_support_features(x64):
    """Baseline on features x: two steps of softmax regression written in NumPy, padding left out."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=[6, 4]), np.array([0, 1, 2, 0, 1, 2])
    learner = baseline(IDENTITY, **PROBE | {"inner_optimizer": optax.sgd(0.5)}, num_steps=2)
    support = padded(example_batch(jnp.asarray(inputs), jnp.asarray(targets)))
    theta, state = learner.init(jax.random.key(0), support.inputs)
    adapt = jax.jit(learner.adapt, static_argnames="num_steps")
    starts, ends = (adapt(theta, state, support, jax.random.key(1), num_steps=n).fitted[0] for n in (0, None))
    kernel, bias = np.array(starts["kernel"]), np.array(starts["bias"])
    assert not bias.any() and kernel.std() > 0.1
    for _ in range(2):
        scores = np.exp(inputs @ kernel + bias)
        errors = (scores / scores.sum(1, keepdims=True) - np.eye(3)[targets]) / 6
        kernel, bias = kernel - 0.5 * inputs.T @ errors, bias - 0.5 * errors.sum(0)
    np.testing.assert_allclose(ends["kernel"], kernel, rtol=1e-6)
    np.testing.assert_allclose(ends["bias"], bias, rtol=1e-6, atol=1e-12)


def test_both_batches_count_in_the_loss_and_padding_does_not(batches):
    learner, key = baseline(flat_model(), **PROBE, norm="running"), jax.random.key(0)
    theta, state = learner.init(key, batches.support.inputs)
    loss = jax.jit(lambda support, query: learner.loss(theta, state, Episode(support, query), key, 0)[0])
    whole = loss(*batches)
    np.testing.assert_allclose(loss(padded(batches.support), padded(batches.query)), whole, rtol=1e-5)
    other = batches.support._replace(targets=(batches.support.targets + 1) % 12)
    assert abs(float(loss(other, batches.query) - whole)) > 1e-3


def test_cosine_head_knows_directions_only():
    """Features of another length give the same outputs, within the scale; zeros give a finite derivative."""
    learner = baseline_plus_plus(IDENTITY, **PROBE, scale=7.0, num_steps=100)
    support = example_batch(jnp.eye(3), jnp.arange(3))
    theta, state = learner.init(jax.random.key(0), support.inputs)
    assert set(theta["head"]) == {"kernel"}
    adapted = jax.jit(learner.adapt)(theta, state, support, jax.random.key(1))
    predict = jax.jit(lambda inputs: learner.predict(adapted, support._replace(inputs=inputs), None))
    near, far = predict(support.inputs), predict(50.0 * support.inputs)
    np.testing.assert_allclose(near, far, rtol=1e-4)
    assert np.abs(near).max() <= 7.0 and near.argmax(-1).tolist() == [0, 1, 2]
    nothing = Episode(*(example_batch(jnp.zeros([3, 3]), jnp.arange(3)),) * 2)
    grads = jax.jit(jax.grad(lambda theta: learner.loss(theta, state, nothing, jax.random.key(0), 0)[0]))(theta)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def traced_pool() -> ClassPool:
    """Images that say their class and their number; classes of three to five, then zeros."""
    counts = np.array([3, 5, 4, 3], np.int32)
    images = np.zeros([4, 5, 1, 2, 1], np.uint8)
    images[..., 0, 0, 0], images[..., 0, 1, 0] = np.arange(4)[:, None], np.arange(5)
    return ClassPool(images, counts)


def test_classification_batches_have_the_right_labels_and_every_image():
    pool = traced_pool()
    episodes = draw(jax.random.key(0), pool, EpisodeSpec(2, 1, 3), 400)
    assert episodes.support.targets.shape == (400, 2) and episodes.query.targets.shape == (400, 6)
    drawn = np.concatenate([np.rint(np.asarray(batch.inputs).reshape(-1, 2) * 255) for batch in episodes]).astype(int)
    targets = np.concatenate([np.asarray(batch.targets).reshape(-1) for batch in episodes])
    np.testing.assert_array_equal(drawn[:, 0], targets)
    assert (drawn[:, 1] < pool.counts[drawn[:, 0]]).all()
    counts = np.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=20)
    # 3200 draws over 15 images: mean 213, standard deviation about 14.
    assert np.abs(counts[counts > 0] - 3200 / 15).max() < 5 * 14 and (counts > 0).sum() == 15


def test_classification_batches_are_a_function_of_key_and_task():
    spec, key = EpisodeSpec(2, 2, 2), jax.random.key(7)
    whole, part = draw(key, traced_pool(), spec, 8), draw(key, traced_pool(), spec, 3, first_task=4)
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one[4:7], other), whole, part)
    other = draw(jax.random.key(8), traced_pool(), spec, 8)
    assert not np.array_equal(whole.query.targets, other.query.targets)


def test_a_run_trains_on_all_classes_and_is_judged_on_tasks():
    config = dataclasses.replace(with_algorithm(PRESETS["glyphs-maml-5w1s"], "baseline"), filters=4)
    workspace = open_workspace(config)
    sources = workspace.sources
    assert [source.sample is sample_classification for source in sources.values()] == [True, False, False]
    shapes = jax.eval_shape(workspace.parts.learner.init, jax.random.key(0), jnp.zeros([2, 28, 28, 1]))[0]
    assert shapes["head"]["kernel"].shape[1] == sources["train"].pool.images.shape[0] > 100


@pytest.mark.parametrize(
    "make", [lambda c: nearest(mlp(1), ways=2, criterion=c), lambda c: baseline(mlp(1), **PROBE, criterion=c)]
)
def test_classifiers_refuse_regression(make):
    with pytest.raises(ValueError, match="cannot regress"):
        make(CRITERIA["regression"])
    with pytest.raises(ConfigError, match="baseline"):
        open_workspace(with_algorithm(PRESETS["sinusoid-maml"], "baseline"))
