"""Start and optimiser learned together: against MAML where both are the same, and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import (
    METAGRADS,
    Episode,
    EpisodeSpec,
    TaskSource,
    example_batch,
    fit,
    init_train_state,
    inner_adam,
    inner_sgd,
    make_train_step,
    maml,
    mlp,
)
from jaxmeta.losses import CRITERIA
from jaxmeta.tuning import learned_maml, lstm_optimizer, mlp_optimizer

KEY = jax.random.key(3)
MODEL = mlp(1, hidden=(3,))
REGRESSION = CRITERIA["regression"]


def lines(key):
    """A task: the slope of a line from four points, judged by four others."""
    key_slope, key_inputs = jax.random.split(key)
    slope, inputs = jax.random.normal(key_slope), jax.random.normal(key_inputs, [8, 1])
    support, query = (example_batch(part, slope * part) for part in (inputs[:4], inputs[4:]))
    return Episode(support, query)


def sample_lines(key, pool, spec, num_tasks, *, first_task=0):
    del pool, spec
    numbers = first_task + jnp.arange(num_tasks)
    return jax.vmap(lambda number: lines(jax.random.fold_in(key, number)))(numbers)


def learners(make, known, **more):
    """The same rule, as a learned optimiser set to it and as the inner optimiser of MAML."""
    optimizer = make(hidden=(3,), step_size=0.05)
    begin, inner = {
        "sgd": (lambda w: optimizer.as_sgd(w, 0.1), inner_sgd(0.1)),
        "adam": (lambda w: optimizer.as_adam(w, 0.05), inner_adam(0.05)),
    }[known]
    options = {"num_steps": 3, "criterion": REGRESSION, **more}
    return learned_maml(MODEL, optimizer, begin=begin, **options), maml(MODEL, inner_optimizer=inner, **options)


@pytest.mark.parametrize("make", [mlp_optimizer, pytest.param(lstm_optimizer, marks=pytest.mark.slow)])
@pytest.mark.parametrize("known", ["sgd", pytest.param("adam", marks=pytest.mark.slow)])
def test_it_is_maml_where_the_optimiser_is_mamls(make, known):
    learned, plain = learners(make, known)
    episode = lines(KEY)
    theta, state = learned.init(KEY, episode.support.inputs[0])
    with jax.enable_x64(True):
        theta, episode = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (theta, episode))

        def of(learner, theta):
            return jax.value_and_grad(lambda theta: learner.loss(theta, state, episode, KEY, 0)[0])(theta)

        loss, gradient = of(learned, theta)
        expected_loss, expected = of(plain, theta["params"])
        loss, expected_loss, gradient, expected = jax.tree.map(np.asarray, (loss, expected_loss, gradient, expected))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10), gradient["params"], expected)
    # And what MAML has not: where the optimiser should go.
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient["optimizer"])) > 1e-4
    # The initialisation does not depend on the optimiser.
    begun = plain.init(KEY, lines(KEY).support.inputs[0])[0]
    drawn = learned.init(KEY, lines(KEY).support.inputs[0])[0]["params"]
    jax.tree.map(np.testing.assert_array_equal, drawn, begun)


def test_the_gradient_of_the_optimiser_is_that_of_finite_differences():
    learned, _ = learners(mlp_optimizer, "sgd")
    episode = lines(KEY)
    theta, state = learned.init(KEY, episode.support.inputs[0])
    with jax.enable_x64(True):
        theta, episode = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (theta, episode))
        keys = jax.random.split(KEY, len(jax.tree.leaves(theta)))
        leaves = zip(jax.tree.leaves(theta), keys, strict=True)
        way = jax.tree.unflatten(
            jax.tree.structure(theta), [jax.random.normal(key, leaf.shape, leaf.dtype) for leaf, key in leaves]
        )
        # Nothing of the network is zero, so that all of it is reached.
        theta = jax.tree.map(lambda leaf, step: leaf + 0.1 * step, theta, way)

        @jax.jit
        def loss(size):
            moved = jax.tree.map(lambda leaf, step: leaf + size * step, theta, way)
            return learned.loss(moved, state, episode, KEY, 0)[0]

        slope = jax.grad(loss)(0.0)
        measured = (loss(1e-5) - loss(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, measured, rtol=1e-6)


@pytest.mark.parametrize("name", ["mixed_mode", "remat"])
def test_strategies_agree(name):
    unrolled, _ = learners(mlp_optimizer, "sgd")
    other, _ = learners(mlp_optimizer, "sgd", metagrad=METAGRADS[name]())
    episode = lines(KEY)
    theta, state = unrolled.init(KEY, episode.support.inputs[0])
    with jax.enable_x64(True):
        theta, episode = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (theta, episode))
        grads = [
            jax.grad(lambda theta, of=of: of.loss(theta, state, episode, KEY, 0)[0])(theta) for of in (unrolled, other)
        ]
        grads = jax.tree.map(np.asarray, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), *grads)


def test_its_weights_serve_a_network_of_another_size():
    optimizer = mlp_optimizer(hidden=(3,), horizon=3)
    small, large = (
        learned_maml(mlp(1, hidden=hidden), optimizer, num_steps=3, criterion=REGRESSION) for hidden in ((3,), (8, 5))
    )
    episode = lines(KEY)
    theta, _ = small.init(KEY, episode.support.inputs[0])
    other, state = large.init(KEY, episode.support.inputs[0])
    handed_on = {"params": other["params"], "optimizer": theta["optimizer"]}
    # Longer than the horizon too.
    adapted = large.adapt(handed_on, state, episode.support, KEY, num_steps=20)
    before = REGRESSION.loss(
        large.predict(large.adapt(handed_on, state, episode.support, KEY, num_steps=0), episode.support, KEY),
        episode.support.targets,
        episode.support.weights,
    )
    after = REGRESSION.loss(
        large.predict(adapted, episode.support, KEY), episode.support.targets, episode.support.weights
    )
    assert float(after) < float(before)
    with pytest.raises(ValueError, match="lstm_optimizer"):
        wrong = learned_maml(MODEL, lstm_optimizer(hidden=(3,)), num_steps=1, criterion=REGRESSION)
        wrong.loss(theta, state, episode, KEY, 0)


def test_it_adapts_better_than_maml_of_as_many_steps():
    optimizer = mlp_optimizer(hidden=(4,), horizon=5)
    options = {"num_steps": 5, "criterion": REGRESSION}
    learner = learned_maml(MODEL, optimizer, begin=lambda w: optimizer.as_sgd(w, 0.01), **options)
    source = TaskSource(sample_lines, (), EpisodeSpec(1, 4, 4))
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))

    def learned(learner):
        state = init_train_state(KEY, learner, outer, source, num_tasks=8)
        theta = fit(make_train_step(learner, outer), state, source, KEY, num_tasks=8, num_steps=150).meta_params
        tasks = sample_lines(jax.random.key(9), (), None, 64)
        losses = jax.vmap(lambda task: learner.loss(theta, state.state, task, KEY, 0)[0])(tasks)
        return theta, float(losses.mean())

    theta, loss = learned(learner)
    again, _ = learned(learner)
    jax.tree.map(np.testing.assert_array_equal, theta, again)
    # Begun at the same rate, which MAML keeps.
    _, of_maml = learned(maml(MODEL, inner_optimizer=inner_sgd(0.01), **options))
    assert loss < 0.7 * of_maml


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="num_steps"):
        learned_maml(MODEL, mlp_optimizer(), num_steps=-1)
