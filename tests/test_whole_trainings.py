"""Hypergradients through whole trainings against closed forms, what follows a step too far, and one-step weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import example_batch, inner_loop
from jaxmeta.tuning import (
    Hypers,
    Network,
    Range,
    flip_labels,
    hyper_sgd,
    hypergradient,
    learn_over_trainings,
    learned_values,
    meta_network,
    one_step_weights,
    reweighted_objective,
    training_features,
    training_losses,
    tune,
    value_of,
    whole_training,
)

RATE, KEY = Range(1e-3, 8.0), jax.random.key(0)


def half_square(params, data, key):
    """One half of the squared distance to the data; a step of rate r leaves (1 - r) of it."""
    return 0.5 * sum(jnp.sum((leaf - data) ** 2) for leaf in jax.tree.leaves(params))


def noisy_square(params, data, key):
    return half_square(params, data + 0.1 * jax.random.normal(key), key)


def as_objective(loss):
    return lambda params, hypers, state, data, key: (loss(params, data, key), ())


def trained_by(controller, **options):
    return whole_training(as_objective(half_square), half_square, controller, **options)


def learn(rate, meta_optimizer, *, trainings, validation_loss=half_square, **bounds):
    """Learn the rate of a training of two steps from 0 to 1; the states and reports of each training."""
    controller = learned_values({"learning_rate": RATE}, Hypers(rate))
    train = trained_by(controller, num_rounds=2, num_steps=1, averaged_rounds=0)
    init, step = learn_over_trainings(train, validation_loss, controller, meta_optimizer, **bounds)
    step, states, reports = jax.jit(step), [init(controller.init(jax.random.key(0)))], []
    for _ in range(trainings):
        state, report = step(states[-1], jnp.zeros(1), 1.0, 1.0, jax.random.key(0))
        states.append(state)
        reports.append(report)
    return controller, states, reports


@pytest.mark.parametrize(("rounds", "steps"), [(1, 6), (3, 2)])
def test_the_gradient_is_that_of_all_steps(x64, rounds, steps):
    """`L = (1 - r)^12 / 2`, so that `dL/dr = -6 (1 - r)^11`, however the steps are divided into rounds."""
    controller = learned_values({"learning_rate": RATE}, Hypers(0.2))
    train = trained_by(controller, num_rounds=rounds, num_steps=steps, averaged_rounds=0)

    def loss(theta):
        return half_square(train(theta, jnp.zeros(()), 1.0, jax.random.key(0)).params, 1.0, None)

    theta = controller.init(jax.random.key(0))
    share = np.log(0.2 / RATE.low) / np.log(RATE.high / RATE.low)
    slope = 0.2 * np.log(RATE.high / RATE.low) * share * (1 - share)
    value, grads = jax.jit(jax.value_and_grad(loss))(theta)
    np.testing.assert_allclose(value, 0.8**12 / 2, rtol=1e-6)
    np.testing.assert_allclose(grads["raw"]["learning_rate"], -6 * 0.8**11 * slope, rtol=1e-6)


@pytest.mark.parametrize("averaged_rounds", [0, 2])
def test_it_takes_the_steps_of_tune(averaged_rounds):
    """With the noise of the same keys, and a network that sees another training in every round."""
    ranges, params = {"learning_rate": RATE}, {"flat": jnp.zeros(()), "steep": jnp.ones(2)}
    controller = meta_network(ranges, Hypers({"flat": 0.2, "steep": 0.1}), hidden=3)
    theta = jax.tree.map(lambda leaf: leaf + 0.3, controller.init(jax.random.key(1)))
    sizes = {"num_steps": 2, "averaged_rounds": averaged_rounds}
    tuner = hypergradient(as_objective(noisy_square), noisy_square, controller, optax.set_to_zero(), **sizes)
    state = tuner.init(jax.random.key(0), params)._replace(theta=theta)
    state, rounds = jax.jit(lambda state: tune(tuner, state, 1.0, 1.0, jax.random.key(2), num_rounds=3))(state)
    train = whole_training(as_objective(noisy_square), noisy_square, controller, num_rounds=3, **sizes)
    result = jax.jit(train)(theta, params, 1.0, jax.random.key(2))
    for ours, theirs in ((result.params, state.average), (result.hypers, rounds.hypers)):
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), ours, theirs)
    assert result.losses.shape == (3, 2) and np.ptp(result.hypers.learning_rate["flat"]) > 1e-3


def test_progress_has_a_path_of_its_own_through_the_meta_network():
    """Its weight alone moves a raw value by -w at the beginning of a training, and by w at the end."""
    controller = meta_network({"learning_rate": RATE}, Hypers({"flat": 0.2}), hidden=3)
    theta = controller.init(KEY)
    raw, kernel = theta["raw"]["learning_rate"]["flat"], theta["network"]["by_layer"]["kernel"]
    assert kernel.shape == (4, 1) and not kernel.any()
    theta["network"]["by_layer"]["kernel"] = kernel.at[-1].set(0.5)
    for progress, moved in ((0.0, -0.5), (0.5, 0.0), (1.0, 0.5)):
        features = training_features(lambda params: params["flat"] ** 2, {"flat": jnp.ones(())}, progress)
        rate = controller.hypers(theta, features).learning_rate["flat"]
        np.testing.assert_allclose(rate, value_of(RATE, raw + moved), rtol=1e-5)


def test_a_rate_is_found_from_far_away():
    for rate in (0.01, 1.9):
        controller, states, reports = learn(rate, optax.adam(0.3), trainings=30)
        found = controller.hypers(states[-1].best_theta, None).learning_rate
        assert float(states[-1].best_loss) == min(float(report.loss) for report in reports) < 1e-3
        assert 0.7 < found < 1.3


@pytest.mark.parametrize("max_norm", [np.inf, 0.1])
def test_a_step_follows_the_mean_of_what_the_starts_say_each_cut(max_norm):
    """Of a start p the loss is `(1 - r)^4 (1 - p)^2 / 2`, so that gradients are as `(1 - p)^2`."""
    controller = learned_values({"learning_rate": RATE}, Hypers(0.2))
    train = trained_by(controller, num_rounds=2, num_steps=1, averaged_rounds=0)
    bounds, theta = {"max_norm": max_norm}, controller.init(KEY)
    init, step = learn_over_trainings(train, half_square, controller, optax.sgd(1.0), **bounds)
    starts = jnp.array([0.0, -1.0, 0.5])
    moves, norms = [], []
    for params in (starts, *starts[:, None]):
        state, report = jax.jit(step)(init(theta), params, 1.0, 1.0, KEY)
        moves.append(float(state.theta["raw"]["learning_rate"] - theta["raw"]["learning_rate"]))
        norms.append(report.grad_norms)
    together, *alone = moves
    np.testing.assert_allclose(together, np.mean(alone), rtol=1e-5)
    np.testing.assert_allclose(norms[0], np.concatenate(norms[1:]), rtol=1e-5)
    np.testing.assert_allclose(norms[0] / norms[0][0], [1.0, 4.0, 0.25], rtol=1e-5)
    np.testing.assert_allclose(alone, np.minimum(norms[0], max_norm), rtol=1e-5)
    assert np.ptp(norms[0]) > 0.3 and state.steps == 1


def test_a_key_decides_what_is_learned():
    controller = learned_values({"learning_rate": RATE}, Hypers(0.2))
    train = whole_training(
        as_objective(noisy_square), noisy_square, controller, num_rounds=2, num_steps=2, averaged_rounds=0
    )
    init, step = learn_over_trainings(train, noisy_square, controller, optax.sgd(0.1))
    step, begin = jax.jit(step), init(controller.init(KEY))
    first, again, other = (
        float(step(begin, jnp.zeros(1), 1.0, 1.0, jax.random.key(seed))[0].theta["raw"]["learning_rate"])
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_start_that_diverges_stops_the_step_and_is_counted():
    controller = learned_values({"learning_rate": RATE}, Hypers(0.2))
    train = trained_by(controller, num_rounds=2, num_steps=1, averaged_rounds=0)
    init, step = learn_over_trainings(train, half_square, controller, optax.sgd(1.0), max_loss=100.0)
    state, report = jax.jit(step)(init(controller.init(KEY)), jnp.array([0.0, 1e3, jnp.nan]), 1.0, 1.0, KEY)
    assert report.diverged.tolist() == [False, True, True] and np.isinf(report.loss) and report.grad_norm == 0
    assert (state.steps, state.diverged, state.skipped) == (1, 2, 1) and np.isinf(state.best_loss)


def test_a_step_too_far_is_taken_back_and_the_next_are_smaller():
    # From 0.5 the first step leads to a rate near 8, with a loss of (1 - r)^4 / 2.
    controller, states, reports = learn(0.5, optax.sgd(1e3), trainings=2, max_loss=100.0)
    first, far, back = (state.theta["raw"]["learning_rate"] for state in states)
    assert far - first > 10 and bool(reports[1].diverged) and np.isinf(reports[1].loss)
    # Half way, and from there half a retreat, to a smaller rate.
    half_way = {"raw": {"learning_rate": (first + far) / 2}}
    lower = controller.retreat(half_way)["raw"]["learning_rate"]
    assert lower < half_way["raw"]["learning_rate"] - 0.4
    np.testing.assert_allclose(back, (half_way["raw"]["learning_rate"] + lower) / 2, rtol=1e-6)
    assert (states[2].shrunk, states[2].diverged, states[2].skipped) == (0.5, 1, 1)
    assert states[2].best_theta == states[0].theta and states[2].best_loss == reports[0].loss
    np.testing.assert_allclose(controller.hypers(states[2].best_theta, None).learning_rate, 0.5, rtol=1e-5)
    # What momentum says is forgotten with it.
    _, states, reports = learn(0.5, optax.sgd(1e3, momentum=0.9), trainings=2, max_loss=100.0)
    traces = [state.meta_opt_state[0].trace["raw"]["learning_rate"] for state in states]
    assert reports[1].diverged and traces[0] == 0 and traces[1] != 0 and traces[2] == 0
    # A rise that is no divergence is one all the same where it is more than chance.
    _, states, reports = learn(0.5, optax.sgd(10.0), trainings=2, max_rise=1e-3)
    assert not reports[1].diverged and reports[1].loss > reports[0].loss + 1e-3
    first, far, back = (state.theta["raw"]["learning_rate"] for state in states)
    lower = controller.retreat({"raw": {"learning_rate": (first + far) / 2}})["raw"]["learning_rate"]
    np.testing.assert_allclose(back, ((first + far) / 2 + lower) / 2, rtol=1e-5)
    assert (states[2].shrunk, states[2].diverged, states[2].skipped) == (0.5, 0, 1)


def test_a_best_loss_that_was_luck_does_not_hold_learning_back_for_ever():
    """The first loss is 1 lower than any that can follow; what is too far is half as far each time."""
    controller = learned_values({"learning_rate": RATE}, Hypers(0.05))
    train = trained_by(controller, num_rounds=2, num_steps=1, averaged_rounds=0)

    def shifted(params, data, key):
        return half_square(params, 1.0, key) + data

    init, step = learn_over_trainings(train, shifted, controller, optax.adam(0.3), max_rise=0.2)
    step, state, skipped = jax.jit(step), init(controller.init(jax.random.key(0))), []
    for luck in (-1.0, *[0.0] * 24):
        state, _ = step(state, jnp.zeros(1), 1.0, luck, jax.random.key(0))
        skipped.append(int(state.skipped))
    assert 2 <= skipped[-1] == skipped[5] <= 4
    assert controller.hypers(state.theta, None).learning_rate > 0.3


def test_steps_are_as_large_as_their_schedule_says():
    """It goes by the number of all steps, whatever became of them."""
    _, states, reports = learn(0.5, optax.sgd(1.0), trainings=3, schedule=lambda step: jnp.array([1.0, 0.0, 0.5])[step])
    raws = [float(state.theta["raw"]["learning_rate"]) for state in states]
    norms = [float(report.grad_norm) for report in reports]
    np.testing.assert_allclose(np.abs(np.diff(raws)), [norms[0], 0.0, 0.5 * norms[2]], rtol=1e-5)
    assert min(norms) > 0


def test_while_no_training_ends_well_the_rates_retreat():
    _, states, reports = learn(7.0, optax.sgd(1.0), trainings=3, max_loss=10.0)
    raws = [float(state.theta["raw"]["learning_rate"]) for state in states]
    assert all(bool(report.diverged) for report in reports) and raws[0] > raws[1] > raws[2] > raws[3]
    assert states[3].diverged == 3 and np.isinf(states[3].best_loss)
    # It began too far off; no step of its own went too far.
    assert states[3].shrunk == 1


def test_of_a_gradient_that_is_no_number_nothing_is_learned():
    def rooted(params, data, key):
        return jnp.sqrt(0.0 * params)  # 0, and without a derivative there.

    _, states, reports = learn(0.5, optax.sgd(1.0), trainings=1, validation_loss=rooted)
    assert np.isfinite(reports[0].loss) and not reports[0].diverged
    assert (states[1].skipped, states[1].diverged) == (1, 0) and states[1].theta == states[0].theta


def test_what_cannot_be_is_refused():
    controller = learned_values({}, Hypers(0.1))
    for name, given in (("num_rounds", 0), ("num_steps", 0), ("averaged_rounds", -1)):
        with pytest.raises(ValueError, match=name):
            trained_by(controller, **{"num_rounds": 1, "num_steps": 1, name: given})
    init, step = learn_over_trainings(trained_by(controller, num_rounds=1), half_square, controller, optax.sgd(1.0))
    for params in (jnp.zeros(()), {"a": jnp.zeros([2, 3]), "b": jnp.zeros(3)}, jnp.zeros([0, 2]), {}):
        with pytest.raises(ValueError, match=r"leaves \[starts, ...\]"):
            step(init(controller.init(KEY)), params, 1.0, 1.0, KEY)
    for bound in ("max_norm", "max_rise", "max_loss"):
        with pytest.raises(ValueError, match="max_norm > 0, max_rise > 0 and max_loss > 0; given"):
            learn_over_trainings(lambda: None, half_square, controller, optax.sgd(1.0), **{bound: 0.0})


# Weights of examples by what a step on them does.


def linear_network():
    return Network(
        lambda key, inputs: {"head": jnp.zeros([inputs.shape[1], 2])},
        lambda params, inputs, *, key=None, dropout=0.0: inputs @ params["head"],
    )


def flipped_problem():
    """Two clouds of points, of which 40 % bear the other's label; and twenty that do not."""
    rng, targets = np.random.default_rng(0), jnp.arange(80) % 2
    inputs = jnp.asarray(rng.normal(size=[80, 2]) + 3 * np.asarray(targets)[:, None] - 1.5, jnp.float32)
    labels, wrong = flip_labels(jax.random.key(3), targets, 0.4, 2)
    return example_batch(inputs, labels), example_batch(inputs[:20], targets[:20]), wrong


def test_one_step_weights_are_the_derivative_of_a_step(x64):
    """By central differences of the validation loss after a step on the example."""
    training, validation, _ = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), flipped_problem())
    params = {"head": jnp.asarray(np.random.default_rng(1).normal(size=[2, 2]))}

    def losses(params):
        return optax.softmax_cross_entropy_with_integer_labels(training.inputs @ params["head"], training.targets)[:12]

    def validation_loss(params):
        logits = validation.inputs @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, validation.targets).mean()

    @jax.jit
    def after(weights):
        grads = jax.grad(lambda params: weights @ losses(params))(params)
        return validation_loss(jax.tree.map(lambda leaf, grad: leaf - grad, params, grads))

    small = 1e-5 * jnp.eye(12)
    helps = np.array([float(after(-one) - after(one)) / 2e-5 for one in small])
    wanted = np.maximum(helps, 0) / np.maximum(helps, 0).sum()
    assert 0 < (wanted == 0).sum() < 12
    found = jax.jit(lambda params: one_step_weights(losses, validation_loss, params))(params)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_no_example_counts_where_none_helps():
    weights = one_step_weights(lambda phi: (phi + jnp.ones(3)) ** 2, lambda phi: (phi - 1.0) ** 2, jnp.zeros(()))
    assert weights.tolist() == [0.0, 0.0, 0.0]


def test_padding_has_no_weight():
    """Nor has it where it would help."""
    training, validation, _ = flipped_problem()
    network = linear_network()
    params, padding = network.init(jax.random.key(0), training.inputs), training._replace(weights=jnp.zeros(80))
    objective = jax.jit(lambda data: reweighted_objective(network, 40, 20)(params, Hypers(0.3), (), data, KEY)[0])
    assert objective((training, validation)) > 0.1 and objective((padding, validation)) == 0


def test_training_by_one_step_weights_leaves_wrong_labels_aside():
    training, validation, wrong = flipped_problem()
    network, hypers = linear_network(), Hypers(0.3)
    solve = inner_loop(reweighted_objective(network, 40, 20), hyper_sgd, 40)
    params = network.init(jax.random.key(0), training.inputs)
    params = jax.jit(solve)(params, hypers, (), (training, validation), jax.random.key(1)).phi
    losses, _, chosen = jax.jit(training_losses(network, 400))(params, hypers, training, jax.random.key(2))
    assert losses[wrong[chosen]].mean() > 4 * losses[~wrong[chosen]].mean()
