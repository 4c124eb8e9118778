"""Hypergradients against closed forms and finite differences, and what tuning does when training goes wrong."""

import json
from functools import cache, partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import load_experiment
from jaxmeta import METAGRADS, example_batch, implicit
from jaxmeta.tuning import (
    Hypers,
    Network,
    Range,
    average_of_rounds,
    conv_net,
    flip_labels,
    hyper_sgd,
    hypergradient,
    learned_values,
    meta_network,
    reweighting,
    training_features,
    training_objective,
    tune,
    validation_loss_of,
    weight_network,
)

RANGES = {
    "learning_rate": Range(1e-3, 1.0),
    "momentum": Range(0.0, 0.99, "linear"),
    "weight_decay": Range(1e-4, 10.0),
    "label_smoothing": Range(0.0, 0.5, "linear"),
    "dropout": Range(0.0, 1.0, "linear"),
    "augmentation": Range(0.0, 1.0, "linear"),
    "example_weights": Range(0.0, 1.0, "linear"),
}


def slope(given: Range, value: float) -> float:
    """The derivative of a value with respect to the number that stands for it, by hand."""
    if given.scale == "log":
        share = np.log(value / given.low) / np.log(given.high / given.low)
        return value * np.log(given.high / given.low) * share * (1 - share)
    share = (value - given.low) / (given.high - given.low)
    return (given.high - given.low) * share * (1 - share)


def half_square(params, data, key):
    """One half of the squared distance to the data: everything about it can be said in advance."""
    return 0.5 * jnp.sum((params - data) ** 2)


def as_objective(loss):
    return lambda params, hypers, state, data, key: (loss(params, data, key), ())


# Ridge regression: the validation loss by the penalty.


def ridge_problem():
    rng = np.random.default_rng(0)
    inputs, held_out = rng.normal(size=[12, 4]), rng.normal(size=[9, 4])
    weights = rng.normal(size=[4])
    return (inputs, inputs @ weights + rng.normal(size=12)), (held_out, held_out @ weights + rng.normal(size=9))


def ridge_gradient(training, validation, penalty):
    """`dL/dp = -dL/dw (A + p)^-1 w` with `w = (A + p)^-1 b`, in NumPy."""
    (inputs, targets), (held_out, wanted) = training, validation
    curvature = inputs.T @ inputs / len(targets) + penalty * np.eye(inputs.shape[1])
    solution = np.linalg.solve(curvature, inputs.T @ targets / len(targets))
    slope_of_loss = held_out.T @ (held_out @ solution - wanted) / len(wanted)
    return solution, -slope_of_loss @ np.linalg.solve(curvature, solution)


def squares(params, data, key):
    inputs, targets = data
    return 0.5 * jnp.mean((inputs @ params - targets) ** 2)


def penalised(params, hypers, state, data, key):
    """The penalty in the objective, where an implicit gradient sees it."""
    return squares(params, data, key) + 0.5 * hypers.weight_decay * jnp.sum(params**2), ()


@pytest.mark.parametrize("name", ["unrolled", "remat_group", "mixed_mode", "forward", "implicit"])
def test_ridge_penalty_meets_the_closed_form(x64, name):
    training, validation = ridge_problem()
    solution, wanted = ridge_gradient(training, validation, 0.3)
    controller = learned_values({"weight_decay": RANGES["weight_decay"]}, Hypers(0.3, weight_decay=0.3))
    if name == "implicit":
        objective, optimizer = penalised, lambda hypers: hyper_sgd(hypers._replace(weight_decay=0.0))
    else:
        objective, optimizer = as_objective(squares), hyper_sgd
    tuner = hypergradient(
        objective,
        squares,
        controller,
        optax.sgd(1.0),
        num_steps=400,
        metagrad=implicit(strongly_convex=True) if name == "implicit" else METAGRADS[name](),
        optimizer=optimizer,
    )
    state = tuner.init(jax.random.key(0), jnp.zeros(4))
    (_, trained), grads = jax.jit(tuner.gradient)(state, training, validation, jax.random.key(1))
    np.testing.assert_allclose(trained.params, solution, rtol=1e-10)
    np.testing.assert_allclose(grads["raw"]["weight_decay"], wanted * slope(RANGES["weight_decay"], 0.3), rtol=1e-8)


def test_implicit_refuses_what_acts_in_the_step():
    controller = learned_values({"weight_decay": RANGES["weight_decay"]}, Hypers(0.3, weight_decay=0.3))
    tuner = hypergradient(
        as_objective(half_square), half_square, controller, optax.sgd(1.0), metagrad=implicit(strongly_convex=True)
    )
    state = tuner.init(jax.random.key(0), jnp.zeros(4))
    with pytest.raises(ValueError, match="cannot see the meta-parameter theta.weight_decay"):
        tuner.gradient(state, 0.0, 0.0, jax.random.key(1))


def two_steps(metagrad):
    """Two steps of momentum on `phi^2 / 2` from 1: phi_2 = 1 - a - a (m + 1 - a)."""
    fields = ("learning_rate", "momentum")
    controller = learned_values({name: RANGES[name] for name in fields}, Hypers(0.2, momentum=0.5))
    tuner = hypergradient(
        as_objective(half_square), half_square, controller, optax.sgd(1.0), num_steps=2, metagrad=metagrad
    )
    state = tuner.init(jax.random.key(0), jnp.ones(()))
    (loss, trained), grads = jax.jit(tuner.gradient)(state, 0.0, 0.0, jax.random.key(1))
    slopes = [slope(RANGES[name], value) for name, value in zip(fields, (0.2, 0.5), strict=True)]
    return loss, trained, [grads["raw"][name] / of_raw for name, of_raw in zip(fields, slopes, strict=True)]


def test_two_steps_by_hand(x64):
    loss, trained, (of_rate, of_momentum) = two_steps(None)
    last = 1 - 0.2 - 0.2 * (0.5 + 1 - 0.2)
    np.testing.assert_allclose(loss, last**2 / 2)
    np.testing.assert_allclose(trained.losses, [0.5, 0.8**2 / 2])
    np.testing.assert_allclose(of_rate, last * (-2 - 0.5 + 2 * 0.2))
    np.testing.assert_allclose(of_momentum, last * -0.2)


@pytest.mark.parametrize(
    ("name", "of_rate"),
    # First order: inner gradients are constants. Truncated: the first step is one.
    [("first_order", -1 - (0.5 + 0.8)), ("truncated", -(0.5 + 0.8)), ("mixed_mode", -2 - 0.5 + 0.4)],
)
def test_two_steps_by_strategy(x64, name, of_rate):
    _, trained, found = two_steps(METAGRADS[name]())
    np.testing.assert_allclose(found, [trained.params * of_rate, trained.params * -0.2])


def tiny_problem(dtype=jnp.float32):
    network = conv_net(3, widths=(2,), hidden=3)
    rng = np.random.default_rng(0)
    data = [example_batch(jnp.asarray(rng.normal(size=[6, 6, 6, 1]), dtype), jnp.arange(6) % 3) for _ in range(2)]
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), network.init(jax.random.key(0), data[0].inputs))
    return network, params, data


def tiny_start(network_params, **changes):
    hypers = Hypers({layer: 0.1 for layer in network_params}, 0.6, 0.05, 0.1, 0.3, 0.2)
    return hypers._replace(**changes)


def test_every_hyper_parameter_by_finite_differences(x64):
    network, params, (training, validation) = tiny_problem(jnp.float64)
    start = tiny_start(params, example_weights=jnp.linspace(0.2, 0.8, 6))
    tuner = hypergradient(
        training_objective(network, 4),
        validation_loss_of(network, 5),
        learned_values(RANGES, start),
        optax.sgd(1.0),
        num_steps=2,
    )
    first = tuner.init(jax.random.key(0), params)
    flat, shape = jax.flatten_util.ravel_pytree(first.theta)

    @jax.jit
    def gradient(flat):
        state = first._replace(theta=shape(flat))
        (loss, _), grads = tuner.gradient(state, training, validation, jax.random.key(1))
        return loss, jax.flatten_util.ravel_pytree(grads)[0]

    found, step = gradient(flat)[1], 1e-5
    assert len(flat) == 3 + 5 + 6  # rates of layers, five of all, weights of examples
    moved = [
        (gradient(flat + step * way)[0] - gradient(flat - step * way)[0]) / (2 * step) for way in np.eye(len(flat))
    ]
    np.testing.assert_allclose(found, moved, rtol=1e-5, atol=1e-9)
    for name, of_name in shape(found)["raw"].items():  # Nothing is cut off, but what was not drawn.
        assert any(float(jnp.abs(leaf).max()) > 1e-7 for leaf in jax.tree.leaves(of_name)), name


def test_the_meta_network_by_finite_differences(x64):
    """Along a direction of all its weights, with features that it sees."""
    tuner = quadratic_tuner(meta_network, num_steps=1)
    state = tuner.init(jax.random.key(0), {"steep": jnp.zeros(()), "flat": jnp.full((), 0.2)})
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, state)
    arguments = (1.0, 1.0, jax.random.key(1), 0.5)
    flat, shape = jax.flatten_util.ravel_pytree(state.theta)
    flat += 0.3 * jnp.cos(jnp.arange(len(flat)))  # Away from the start, where the last layer is 0.
    way = np.random.default_rng(0).normal(size=flat.shape)
    gradient = jax.jit(lambda flat: tuner.gradient(state._replace(theta=shape(flat)), *arguments))
    (_, trained), grads = gradient(flat)
    slope_along = (gradient(flat + 1e-5 * way)[0][0] - gradient(flat - 1e-5 * way)[0][0]) / 2e-5
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(grads)[0] @ way, slope_along, rtol=1e-6)
    assert trained.hypers.learning_rate["steep"] != trained.hypers.learning_rate["flat"]  # It tells layers apart.
    assert float(jnp.abs(grads["network"]["hidden"]["kernel"]).sum()) > 0


def test_features_are_those_of_numpy():
    params = {"conv": {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([6.0])}, "head": jnp.array([2.0])}

    def squared(params):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(params))

    features = jax.jit(lambda params: training_features(squared, params, 0.25))(params)
    values = np.array([1.0, 2.0, 6.0])
    assert float(features.progress) == 0.25 and float(features.loss) == 45.0
    np.testing.assert_allclose(features.gradient_norms["conv"], np.linalg.norm(2 * values), rtol=1e-6)
    np.testing.assert_allclose(features.means["conv"], values.mean(), rtol=1e-6)
    np.testing.assert_allclose(features.deviations["conv"], values.std(), rtol=1e-6)
    assert training_features(lambda params: params.sum(), jnp.ones(3), 0).means.keys() == {"all"}


# The online loop.


def quadratic_tuner(make=learned_values, *, meta_optimizer=None, rate=0.05, **options):
    ranges = {"learning_rate": Range(1e-4, 10.0), "momentum": RANGES["momentum"]}
    controller = make(ranges, Hypers({"steep": rate, "flat": rate}, momentum=0.3))
    options = {"num_steps": 2, "max_loss": 20.0} | options
    return hypergradient(as_objective(valley), valley, controller, meta_optimizer or optax.adam(0.1), **options)


def valley(params, data, key):
    """A noisy valley: curvatures 1 and 0.1, and a gradient that is never quite right."""
    noise = 0.02 * jax.random.normal(key, [2])
    squared = jnp.square(params["steep"] - data - noise[0]) + 0.1 * jnp.square(params["flat"] - data - noise[1])
    return 0.5 * squared


VALLEY = {"steep": jnp.zeros(()), "flat": jnp.zeros(())}


@cache
def valley_program(make, jumps=False):
    """A program `(state, training, validation, key) -> state, rounds`, compiled once for several tests."""
    tuner = quadratic_tuner(make, meta_optimizer=optax.adam(30.0) if jumps else None)
    return jax.jit(partial(tune, tuner, num_rounds=60))


def valley_start(make=learned_values, params=VALLEY, **options):
    return quadratic_tuner(make, **options).init(jax.random.key(0), params)


@pytest.mark.parametrize("make", [learned_values, pytest.param(meta_network, marks=pytest.mark.slow)])
def test_no_value_leaves_its_range(make):
    """Whatever the meta-optimiser does: here it jumps about by a thousand times the hypergradient."""
    state, rounds = valley_program(make, jumps=True)(valley_start(make), 1.0, 1.0, jax.random.key(0))
    for values, (low, high, _) in [
        *((rounds.hypers.learning_rate[layer], Range(1e-4, 10.0)) for layer in ("steep", "flat")),
        (rounds.hypers.momentum, RANGES["momentum"]),
    ]:
        assert jnp.isfinite(values).all() and (values >= low).all() and (values <= high).all()
    assert (rounds.hypers.momentum < 0.01).any() or (rounds.hypers.momentum > 0.98).any()  # It was tried.
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_seed_decides_everything():
    run, start = valley_program(learned_values), valley_start()
    first, again, other = (run(start, 1.0, 1.0, jax.random.key(seed)) for seed in (0, 0, 1))
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, two)
    assert float(first[1].loss[-1]) != float(other[1].loss[-1])


@pytest.mark.parametrize("make", [learned_values, meta_network])
def test_rounds_go_on_where_they_stopped_and_map_over_seeds(make):
    """A meta-network sees the progress, which is that of the whole run."""
    tuner, start = quadratic_tuner(make, averaged_rounds=2), valley_start(make)
    run = partial(tune, tuner, start, 1.0, 1.0)
    part = jax.jit(partial(tune, tuner, num_rounds=3, total_rounds=6))
    keys = jax.random.split(jax.random.key(1), 3)
    state = part(part(start, 1.0, 1.0, keys[1])[0], 1.0, 1.0, keys[1])[0]
    mapped, _ = jax.jit(jax.vmap(partial(run, num_rounds=6)))(keys)
    for of_all, alone in zip(jax.tree.leaves(mapped), jax.tree.leaves(state), strict=True):
        # As a whole: six rounds make much of the rounding of single numbers.
        distance = np.linalg.norm(np.asarray(of_all[1] - alone, np.float64))
        assert distance <= 1e-5 * np.linalg.norm(np.asarray(alone, np.float64)) + 1e-6


def test_more_rounds_than_there_are_in_all_are_refused():
    tuner = quadratic_tuner()
    start = valley_start()._replace(round=jnp.int32(4))
    with pytest.raises(ValueError, match="3 rounds after 4, more than total_rounds=6"):
        tune(tuner, start, 1.0, 1.0, jax.random.key(0), num_rounds=3, total_rounds=6)


def test_the_mean_of_rounds_is_what_is_judged(x64):
    """Two rounds of two steps on `phi^2 / 2` with rate 0.5: from 1 to 1/2, 1/4, 1/8, 1/16."""
    controller = learned_values({"learning_rate": RANGES["learning_rate"]}, Hypers(0.5))
    tuner = hypergradient(
        as_objective(half_square), half_square, controller, optax.sgd(0.0), num_steps=2, averaged_rounds=10
    )
    state, rounds = tune(tuner, tuner.init(jax.random.key(0), jnp.ones(())), 0.0, 0.0, jax.random.key(1), num_rounds=2)
    means = np.array([(1 / 2 + 1 / 4) / 2, (1 / 2 + 1 / 4 + 1 / 8 + 1 / 16) / 4])
    np.testing.assert_allclose(rounds.loss, means**2 / 2)
    np.testing.assert_allclose(state.average, means[-1])
    np.testing.assert_allclose(state.params, 1 / 16)
    # The second round by hand: phi_3 = (1 - a) / 4, phi_4 = (1 - a)^2 / 4, of which the mean takes a fourth each.
    wanted = means[-1] * (-1 - 2 * 0.5) / 4 / 4
    np.testing.assert_allclose(rounds.grad_norm[1], abs(wanted) * slope(RANGES["learning_rate"], 0.5))
    mean = average_of_rounds(jnp.zeros(2), jnp.ones([3, 2]), jnp.int32(100), 4)
    np.testing.assert_allclose(mean, 0.25)


@pytest.mark.parametrize("make", [learned_values, pytest.param(meta_network, marks=pytest.mark.slow)])
@pytest.mark.parametrize("factor", [1 / 30, 30.0])
def test_a_start_far_from_the_best_rate_recovers(make, factor):
    """Of fixed rates 0.3 is about best; 9 is beyond what converges at all, and 0.01 gets half of the way."""
    start = valley_start(make, rate=0.3 * factor)
    state, rounds = valley_program(make)(start, 1.0, 1.0, jax.random.key(1))
    left = abs(state.params["steep"] - 1) + abs(state.params["flat"] - 1)
    assert left < 0.2
    assert (state.diverged > 0) == (factor > 1) and rounds.diverged.sum() == state.diverged
    # What a fixed rate leaves: (1 - 0.01 / (1 - 0.3) * curvature) to the power of 120 steps; or everything.
    fixed = np.exp(-120 * 0.01 / 0.7 * np.array([1.0, 0.1])).sum() if factor < 1 else 2.0
    assert fixed > 3 * left


def test_divergence_is_undone_counted_and_answered():
    """One round of a rate that is far too large: the parameters stay, the rates fall, the count says so."""
    tuner = quadratic_tuner(rate=9.0)
    first = tuner.init(jax.random.key(0), VALLEY)
    state, report = jax.jit(tuner.step)(first, 1.0, 1.0, jax.random.key(1))
    assert bool(report.diverged) and bool(report.skipped) and int(state.diverged) == int(state.skipped) == 1
    assert float(report.loss) == float("inf") and float(report.grad_norm) == 0
    for name in ("params", "opt_state", "meta_opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(first, name))
    for layer, raw in first.theta["raw"]["learning_rate"].items():
        assert state.theta["raw"]["learning_rate"][layer] < raw
    assert state.theta["raw"]["momentum"] == first.theta["raw"]["momentum"]


def test_a_rise_of_the_validation_loss_is_a_divergence():
    """A network that dies falls back to guessing: every loss is finite, and it is over. Here 2 steps double phi."""
    controller = learned_values({"learning_rate": RANGES["learning_rate"]}, Hypers(0.5))
    for bound, diverged in ((0.5, [0, 1]), (2.0, [0, 0])):
        tuner = hypergradient(
            as_objective(lambda params, data, key: -half_square(params, data, key)),
            half_square,
            controller,
            optax.set_to_zero(),
            num_steps=1,
            max_rise=bound,
        )
        _, rounds = tune(tuner, tuner.init(jax.random.key(0), jnp.ones(())), 0.0, 0.0, jax.random.key(1), num_rounds=2)
        np.testing.assert_array_equal(rounds.diverged, diverged)  # From 1 to 1.5 and 2.25: a loss of 1.125, then 2.53


def test_what_is_not_finite_never_gets_out():
    broken, run = jnp.float32(jnp.nan), valley_program(learned_values)
    for params, training, validation in [
        ({**VALLEY, "steep": broken}, 1.0, 1.0),
        (VALLEY, broken, 1.0),
        (VALLEY, 1.0, broken),
        (VALLEY, jnp.float32(jnp.inf), 1.0),
    ]:
        state, rounds = run(valley_start(params=params), training, validation, jax.random.key(1))
        assert int(state.diverged) == 60 and rounds.diverged.all() and jnp.isinf(rounds.loss).all()
        for kept in (state.params, state.average):
            jax.tree.map(np.testing.assert_array_equal, kept, params)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((state.theta, state.meta_opt_state)))


def test_a_hypergradient_that_is_not_finite_is_skipped_and_training_goes_on():
    """The derivative of a root at 0 is infinite, its value is not."""

    def objective(params, hypers, state, data, key):
        return half_square(params, data, key) * (1 + jnp.sqrt(0 * hypers.dropout)), ()

    controller = learned_values({"dropout": RANGES["dropout"]}, Hypers(0.1, dropout=0.5))
    tuner = hypergradient(objective, half_square, controller, optax.adam(0.1), num_steps=2)
    first = tuner.init(jax.random.key(0), jnp.zeros(()))
    state, report = jax.jit(tuner.step)(first, 1.0, 1.0, jax.random.key(1))
    assert bool(report.skipped) and not bool(report.diverged) and float(state.params) > 0
    assert state.theta == first.theta and int(state.skipped) == 1 and int(state.diverged) == 0


# Labels that are wrong.


def flipped_problem():
    """Two clouds, 40 % of the labels wrong, and a few right ones to validate with."""
    rng = np.random.default_rng(0)
    targets = jnp.arange(80) % 2
    inputs = jnp.asarray(rng.normal(size=[80, 2]) + 3 * np.asarray(targets)[:, None] - 1.5, jnp.float32)
    labels, wrong = flip_labels(jax.random.key(3), targets, 0.4, 2)
    return example_batch(inputs, labels), example_batch(inputs[:20], targets[:20]), wrong


def linear_network():

    def init(key, inputs):
        return {"head": jnp.zeros([inputs.shape[1], 2])}

    return Network(init, lambda params, inputs, *, key=None, dropout=0.0: inputs @ params["head"])


@pytest.mark.slow
def test_wrong_labels_lose_weight():
    """By a weight of each example, and by a network that sees their losses."""
    training, validation, wrong = flipped_problem()
    network, weighting = linear_network(), weight_network(8)
    each = learned_values(
        {"example_weights": Range(0.0, 1.0, "linear")}, Hypers(0.3, example_weights=jnp.full(80, 0.5))
    )
    by_loss = reweighting(learned_values({}, Hypers(0.3)), weighting)
    for controller, options in ((each, {}), (by_loss, {"weigh": weighting.weigh})):
        tuner = hypergradient(
            training_objective(network, 40, **options),
            validation_loss_of(network, 20),
            controller,
            optax.adam(0.1),
            num_steps=1,
        )
        state = tuner.init(jax.random.key(0), network.init(jax.random.key(0), training.inputs))
        run = jax.jit(
            lambda state, tuner=tuner: tune(tuner, state, training, validation, jax.random.key(1), num_rounds=80)
        )
        state, _ = run(state)
        weights = controller.hypers(state.theta, None).example_weights
        if options:
            losses = optax.softmax_cross_entropy_with_integer_labels(
                network.apply(state.params, training.inputs), training.targets
            )
            weights = weighting.weigh(weights, jnp.arange(80), losses)
        assert weights[wrong].mean() < 0.5 * weights[~wrong].mean()


def test_labels_flip_as_often_as_asked():
    targets = jnp.arange(5000) % 5
    labels, wrong = flip_labels(jax.random.key(0), targets, 0.4, 5)
    np.testing.assert_array_equal(labels != targets, wrong)
    assert abs(float(wrong.mean()) - 0.4) < 0.03
    counts = np.bincount((labels - targets)[wrong] % 5, minlength=5)
    assert counts[0] == 0 and counts[1:].min() > 400  # 500 of each are expected
    for share, classes in ((1.5, 5), (-0.1, 5), (0.4, 1)):
        with pytest.raises(ValueError, match="share in"):
            flip_labels(jax.random.key(0), targets, share, classes)


# What is refused.


def test_what_cannot_be_tuned_is_refused():
    rate = {"learning_rate": Range(1e-3, 1.0)}
    for name, given in (("momentum", (0.0, 1.5)), ("label_smoothing", (0.0, 2.0)), ("dropout", (-0.1, 1.0))):
        for controller in (learned_values, meta_network):
            with pytest.raises(ValueError, match=f"range of {name} must lie in .0, (1|inf).; given"):
                controller({name: Range(*given, "linear")}, Hypers({"flat": 0.1}, 0.9, 0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="no hyper-parameter speed"):
        learned_values({"speed": Range(0.1, 1.0)}, Hypers(0.1))
    with pytest.raises(ValueError, match="learning_rate: .*strictly between"):
        learned_values(rate, Hypers(2.0))
    with pytest.raises(ValueError, match="low < high"):
        meta_network({"momentum": Range(1.0, 0.0, "linear")}, Hypers(0.1))
    with pytest.raises(ValueError, match="example_weights begins with an array"):
        meta_network({"example_weights": Range(0.0, 1.0, "linear")}, Hypers(0.1, example_weights=jnp.full(3, 0.5)))
    with pytest.raises(ValueError, match="num_steps >= 1"):
        hypergradient(
            as_objective(half_square), half_square, learned_values(rate, Hypers(0.1)), optax.sgd(1.0), num_steps=0
        )
    for bound in ({"max_loss": 0.0}, {"max_loss": float("nan")}, {"max_rise": -1.0}):
        with pytest.raises(ValueError, match="max_loss > 0 and max_rise > 0"):
            quadratic_tuner(**bound)
    tuner = quadratic_tuner()
    state = tuner.init(jax.random.key(0), VALLEY)
    with pytest.raises(ValueError, match="num_rounds >= 1"):
        tune(tuner, state, 1.0, 1.0, jax.random.key(0), num_rounds=0)
    with pytest.raises(ValueError, match="layers flat, steep; the parameters have other"):
        quadratic_tuner(meta_network).init(jax.random.key(0), {"other": jnp.zeros(())})
    with pytest.raises(ValueError, match="batch_size >= 1"):
        validation_loss_of(conv_net(2), 0)
    for make in (learned_values, meta_network):
        with pytest.raises(ValueError, match="momentum begins with one for each of conv, head"):
            make({"momentum": RANGES["momentum"]}, Hypers(0.1, momentum={"head": 0.5, "conv": 0.5}))
    with pytest.raises(ValueError, match=r"range of example_weights must lie in \[0, inf\]; given -1.0 to 1.0"):
        learned_values({"example_weights": Range(-1.0, 1.0, "linear")}, Hypers(0.1, example_weights=jnp.zeros(3)))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [["weights"], ["tuning", "starts", "weights", "falling", "clean"]])
def test_the_experiment_runs(tmp_path, parts):
    """On noise in place of images."""
    experiment = load_experiment("cifar10_metanet")
    experiment.main(["--smoke", "--seeds", "2", "--out", str(tmp_path), "--parts", *parts])
    report = json.loads((tmp_path / "cifar10_metanet.json").read_text())
    assert (len(report["results"]), len(report["differences"])) == ((18, 11) if len(parts) > 1 else (4, 2))
    for found in report["results"].values():
        assert len(found) == 2 and all(0 <= result["test"] <= 100 for result in found)
    if len(parts) > 1:
        assert set(report["results"]["meta-network"][0]["last"]["learning_rate"]) == set(experiment.LAYERS)
