"""What learning to tune refuses, and what it makes of numbers that are not finite or too large."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import Batch, Episode, from_function
from jaxmeta.tuning import (
    Architecture,
    Cell,
    Experience,
    Hypers,
    Range,
    Space,
    architecture_search,
    average_of_rounds,
    bandit,
    check_hypers,
    conv_net,
    dqn,
    fit_pca,
    landmark_features,
    learned_values,
    lstm_optimizer,
    mixture_of,
    mlp_optimizer,
    network_of,
    random_extractor,
    raw_of,
    softmax_policy,
    statistical_features,
    supernet,
    training_environment,
    training_objective,
    value_of,
    warm_start,
)

RATES = {"learning_rate": Range(1e-3, 1.0)}
CELL = Cell(3, 8, "none", "max")


@pytest.mark.parametrize("make", [mlp_optimizer, lstm_optimizer])
@pytest.mark.parametrize("size", [1e17, 1e20, 3e38])
def test_gradients_too_large_to_be_squared_give_the_steps_of_adam(make, size):
    optimizer = make(hidden=(3,))
    learned = optimizer.transform(optimizer.as_adam(optimizer.init(jax.random.key(0)), 0.01))
    params = {"small": jnp.ones(3), "large": jnp.full([2], 1e20)}
    gradients = {"small": jnp.array([1.0, size, -size]), "large": jnp.array([1.0, size])}
    found, _ = learned.update(gradients, learned.init(params), params)
    adam = optax.adam(0.01)
    expected, _ = adam.update(gradients, adam.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9), found, expected)


def test_no_value_leaves_its_range_by_rounding():
    rng = np.random.default_rng(0)
    for scale in ("linear", "log"):
        for low, factor in zip(rng.uniform(1e-5, 1, 60), rng.uniform(1.001, 1e5, 60), strict=True):
            given = Range(float(low), float(low * factor), scale)
            values = value_of(given, jnp.array([-200.0, -17.0, 0.0, 17.0, 200.0]))
            # In the precision of the values.
            assert np.float32(given.low) <= values.min() and values.max() <= np.float32(given.high)


def test_what_could_never_move_is_refused():
    with pytest.raises(ValueError, match="never move"):
        raw_of(Range(1e-3, 1.0), np.nextafter(np.float32(1), np.float32(0)))
    for bad in (Range(1.0, 0.5), Range(-1.0, 1.0), Range(0.0, 1.0)):
        with pytest.raises(ValueError, match="The range of a value"):
            value_of(bad, jnp.zeros(()))
        with pytest.raises(ValueError, match="The range of a value"):
            raw_of(bad, 0.5)


@pytest.mark.parametrize(
    "hypers",
    [
        Hypers(-0.1),
        Hypers({"conv": 0.1, "head": float("nan")}),
        Hypers(float("inf")),
        Hypers(0.1, momentum=1.0),
        Hypers(0.1, weight_decay=-3.0),
        Hypers(0.1, label_smoothing=1.5),
        Hypers(0.1, dropout=-1.0),
        Hypers(0.1, augmentation=np.array([0.1, -0.1])),
    ],
)
def test_hyper_parameters_that_cannot_be_are_refused(hypers):
    with pytest.raises(ValueError, match="must be in"):
        check_hypers(hypers)
    with pytest.raises(ValueError, match="must be in"):
        learned_values({}, hypers)
    with pytest.raises(ValueError, match="must be in"):
        training_environment(conv_net(3, widths=(2,), hidden=4), RATES, fixed=hypers)
    with pytest.raises(ValueError, match="must be in"):
        architecture_search(supernet(Space(cells=1), 3), hypers, batch_size=2)


def test_hyper_parameters_that_are_traced_are_not_looked_into():
    jax.jit(lambda rate: check_hypers(Hypers(rate)))(jnp.float32(-1))
    check_hypers(Hypers(0.0, 0.99, 5.0, 0.5, 2.0, 1.0, jnp.array([-1.0])))


@pytest.mark.parametrize(
    ("cells", "skips", "message"),
    [
        ((), (), "a cell or more"),
        ((Cell(3, 8, "batch", "max"),), (), "Unknown norms 'batch'"),
        ((Cell(3, 8, "none", "min"),), (), "Unknown pools 'min'"),
        ((Cell(2, 8, "none", "max"),), (), "kernels must be odd"),
        ((Cell(3, 0, "none", "max"),), (), "widths must be 1 or more"),
        ((CELL, CELL), ((2, 1),), "The edges of 2 cells"),
        ((CELL, CELL), ((0, 1),), "The edges of 2 cells"),
        ((CELL, CELL), ((0, 2), (0, 2)), "each once"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(cells, skips, message):
    with pytest.raises(ValueError, match=message):
        network_of(Architecture(cells, skips), 4, 10)
    with pytest.raises(ValueError, match=message):
        mixture_of(Architecture(cells, skips), Space(cells=max(1, len(cells))))


def test_what_else_cannot_be_is_refused():
    data = Batch(jnp.ones([6, 4, 4, 1]), jnp.zeros([6], jnp.int32), jnp.ones(6))
    network = conv_net(3, widths=(2,), hidden=4)
    params = network.init(jax.random.key(0), data.inputs)
    with pytest.raises(ValueError, match="6 training examples and example_weights of shape"):
        objective = training_objective(network, 2)
        objective(params, Hypers(0.1, example_weights=jnp.ones(3)), (), data, jax.random.key(0))
    with pytest.raises(ValueError, match="halves images 2 times; given 2x9"):
        conv_net(3).init(jax.random.key(0), jnp.ones([1, 2, 9, 3]))
    for options in ({"features": 0}, {"features": 4, "width": 0.0}, {"features": 4, "width": float("nan")}):
        with pytest.raises(ValueError, match="random_extractor needs"):
            random_extractor(**options)
    with pytest.raises(ValueError, match="finite inputs"):
        fit_pca(jnp.array([[0.0, 1.0], [jnp.nan, 2.0], [1.0, 1.0]]), 1)
    for features in (statistical_features, landmark_features):
        with pytest.raises(ValueError, match="targets from 0 to 1"):
            features(data._replace(targets=jnp.arange(6) % 3), 2)
    with pytest.raises(ValueError, match="rounds >= 1"):
        average_of_rounds(jnp.zeros(()), jnp.ones(2), 0, 0)
    with pytest.raises(ValueError, match="every score given is NaN"):
        warm_start(Experience(jnp.ones([2, 3]), jnp.full([2, 4], jnp.nan)), jnp.ones(3))


def test_images_that_are_no_numbers_end_the_episode_and_are_not_seen():
    environment = training_environment(conv_net(3, widths=(2,), hidden=4), RATES, num_decisions=3, steps_between=2)
    images = jnp.ones([8, 4, 4, 1]).at[0, 0, 0, 0].set(jnp.nan)
    data = Episode(*[Batch(images, jnp.arange(8) % 3, jnp.ones(8))] * 2)
    state = environment.reset(jax.random.key(0), data)
    assert np.isfinite(environment.observe(state)).all()
    state, outcome = jax.jit(environment.step)(state, jnp.int32(1), data)
    assert np.isfinite(environment.observe(state)).all()
    assert bool(outcome.done) and bool(outcome.failed) and np.isfinite(outcome.reward)


def test_q_values_survive_a_reward_that_is_no_number():
    """Updates on it are left out and counted, and what is learned is what the others say."""
    sound = bandit([0.0, 1.0])

    def step(state, action, data):
        state, outcome = sound.step(state, action, data)
        # One in 50, in one environment or another.
        lost = jax.random.uniform(jax.random.fold_in(jax.random.key(7), data)) < 0.02
        return state, outcome._replace(reward=jnp.where(lost, jnp.nan, outcome.reward))

    model = from_function(lambda key, inputs: jnp.zeros(2), lambda params, inputs: params + 0 * inputs.sum(-1)[:, None])
    learner = dqn(sound._replace(step=step), model, optax.sgd(0.3), batch_size=4, num_environments=1, capacity=400)

    @jax.jit
    def run(state):
        return jax.lax.scan(learner.iterate, state, jnp.arange(400))

    state, metrics = run(learner.init(jax.random.key(0), jnp.int32(0)))
    values = np.asarray(model.apply(*state.params, jnp.zeros([1, 1]), train=False)[0])[0]
    assert np.isnan(metrics["reward"]).sum() >= 2 and 0 < int(metrics["skipped"].sum()) < 200
    assert np.isfinite(metrics["loss"]).all()
    np.testing.assert_allclose(values, [0.0, 1.0], atol=0.1)


def test_the_softmax_policy_of_values_that_are_not_finite():
    inf, nan = jnp.inf, jnp.nan
    for values, expected in (
        ([0.0, nan, 0.0], [0.5, 0.0, 0.5]),
        ([nan, nan], [0.5, 0.5]),
        ([inf, 1.0, inf], [0.5, 0.0, 0.5]),
        ([-inf, 1.0], [0.0, 1.0]),
    ):
        for temperature in (0.0, 1.0):
            np.testing.assert_allclose(softmax_policy(jnp.array(values), temperature), expected, atol=1e-6)
