"""Learned optimisers: what they can be exactly, what they are as transformations, how they are trained."""

import importlib
import json
from functools import cache, partial
from pathlib import Path

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
    bilevel,
    exact,
    example_batch,
    from_function,
    init_train_state,
    inner_loop,
    make_train_step,
    mlp,
    pes,
    truncated,
)
from jaxmeta.metagrad import skip_diverged
from jaxmeta.tuning import lstm_optimizer, mlp_optimizer, optimizer_learner, varied_mlp

KEY = jax.random.key(0)
# Of the features of progress, as documented by what they are tanh of.
TIMES = np.array([1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0])
SLOW = pytest.mark.slow
MAKERS = {"mlp": partial(mlp_optimizer, hidden=(4, 3)), "lstm": partial(lstm_optimizer, hidden=(3, 2))}
# What the weights are set to, and optax's own. The safe root below Adam's is that of inner_adam.
KNOWN = {
    "sgd": (lambda o, theta: o.as_sgd(theta, 0.1), optax.sgd(0.1)),
    "momentum": (lambda o, theta: o.as_sgd(theta, 0.1, momentum=0.9), optax.sgd(0.1, 0.9)),
    "adam": (lambda o, theta: o.as_adam(theta, 3e-3), optax.adam(3e-3, eps_root=1e-16)),
    "rmsprop": (lambda o, theta: o.as_adam(theta, 0.01, b1=0.0, b2=0.9), optax.adam(0.01, 0.0, 0.9, eps_root=1e-16)),
}


def params_of(key=KEY):
    keys = jax.random.split(key, 3)
    return {"a": jax.random.normal(keys[0], [3, 2]), "b": (jax.random.normal(keys[1], []), [jnp.zeros([2])])}


def noisy(theta, key=KEY, size=0.3):
    """Weights of which nothing is zero, as after training."""
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        treedef,
        [leaf + size * jax.random.normal(k, jnp.shape(leaf), leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)],
    )


def path_of(transformation, gradients, params):
    """Step along a given sequence of gradients; the parameters after each step."""

    def step(carry, gradient):
        params, state = carry
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, transformation.init(params)), gradients)[1]


@pytest.mark.parametrize(
    ("maker", "known"),
    [
        pytest.param(maker, known, marks=() if maker == "mlp" or known == "adam" else pytest.mark.slow)
        for maker in MAKERS
        for known in KNOWN
    ],
)
def test_it_can_be_what_is_known(maker, known, x64):
    optimizer = MAKERS[maker](momenta=(0.0, 0.5, 0.9), moments=(0.9, 0.999))
    weights, reference = KNOWN[known]
    # The network in between has weights as after training; only its last layer is silent.
    theta = weights(optimizer, noisy(optimizer.init(KEY)))
    params = params_of()
    gradients = jax.vmap(params_of)(jax.random.split(jax.random.key(1), 300))
    mine, expected = (path_of(each, gradients, params) for each in (optimizer.transform(theta), reference))
    for leaf, other in zip(jax.tree.leaves(mine), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_schedule_is_that_of_optax(maker, x64):
    """Of Adam's steps, by progress alone: it rises, falls, and stands still after the horizon."""
    horizon, steps = 20, 30
    optimizer = MAKERS[maker](step_size=0.01, horizon=horizon)
    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), optimizer.as_adam(optimizer.init(KEY), 0.02))
    weights = 0.6 * jax.random.normal(jax.random.key(5), theta["path"]["schedule"].shape, jnp.float64)
    theta["path"]["schedule"] = weights

    def rate(count):
        age = jnp.minimum(count + 1.0, horizon)
        progress = jnp.tanh(jnp.expand_dims(age, -1) / TIMES - 1)
        return 0.02 * jnp.exp(5 * jnp.tanh((weights[0] + progress @ weights[1:]) / 5))

    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params_of())
    gradients = jax.tree.map(lambda leaf: jax.random.normal(KEY, [steps, *leaf.shape], leaf.dtype), params)
    found = path_of(optimizer.transform(theta), gradients, params)
    expected = path_of(optax.adam(rate, eps_root=1e-16), gradients, params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, expected)
    rates = np.asarray(rate(jnp.arange(steps)))
    assert len(set(rates[: horizon - 1])) == horizon - 1 and len(set(rates[horizon - 1 :])) == 1


def test_adam_in_an_inner_loop_is_that_of_optax():
    def objective(phi, theta, state, data, key):
        return jnp.mean((data @ phi["w"] + phi["b"] - jnp.sin(data).sum(1)) ** 2), ()

    optimizer = mlp_optimizer(hidden=(4,))
    phi, data = {"w": jnp.ones([3]), "b": jnp.zeros([])}, jax.random.normal(KEY, [20, 3])
    theta = optimizer.as_adam(optimizer.init(KEY), 0.01)
    mine = inner_loop(objective, optimizer.transform, 200)(phi, theta, (), data, KEY).phi
    expected = inner_loop(objective, optax.adam(0.01), 200)(phi, (), (), data, KEY).phi
    for name in phi:
        np.testing.assert_allclose(mine[name], expected[name], rtol=2e-4)


@pytest.mark.parametrize("maker", ["mlp", pytest.param("lstm", marks=SLOW)])
def test_it_is_a_transformation_like_others(maker):
    optimizer = MAKERS[maker]()
    transformation = optax.chain(optax.clip(0.5), optimizer.transform(noisy(optimizer.init(KEY))), optax.scale(2.0))
    many = jax.vmap(params_of)(jax.random.split(jax.random.key(2), 3))

    @jax.jit
    def two_steps(params):
        state = transformation.init(params)
        _, state = transformation.update(params, state, params)
        return transformation.update(jax.tree.map(jnp.cos, params), state, params)

    mapped, _ = jax.jit(jax.vmap(two_steps))(many)
    for number in range(2):
        alone, state = two_steps(jax.tree.map(lambda leaf, n=number: leaf[n], many))
        jax.tree.map(lambda a, b, n=number: np.testing.assert_allclose(a[n], b, rtol=2e-5, atol=1e-7), mapped, alone)
    assert int(state[1].count) == 2
    assert jax.tree.structure(mapped) == jax.tree.structure(many)


@pytest.mark.parametrize("maker", ["mlp", pytest.param("lstm", marks=SLOW)])
def test_a_parameter_without_gradients_stays_where_it_is(maker):
    """Exactly; one whose gradients have ended comes to rest."""
    optimizer = MAKERS[maker](step_size=1.0, eps=1e-3)
    transformation = optimizer.transform(noisy(optimizer.init(KEY)))
    none = jnp.zeros(1500)
    gradients = jnp.stack([none, none.at[:40].set(jax.random.normal(KEY, [40]))], 1)
    params = np.asarray(jax.jit(partial(path_of, transformation))(gradients, jnp.ones([2])))
    assert (params[:, 0] == 1).all()
    steps = np.abs(np.diff(params[:, 1]))
    assert steps[:39].mean() > 0.2 and steps[-10:].max() < 1e-3


def test_the_precision_of_the_parameters_stays():
    optimizer = MAKERS["lstm"]()
    params = {"half": jnp.ones([2], jnp.bfloat16), "single": jnp.ones([3])}
    transformation = optimizer.transform(noisy(optimizer.init(KEY)))
    updates, state = jax.jit(transformation.update)(params, transformation.init(params), params)
    assert updates["half"].dtype == jnp.bfloat16 and updates["single"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state.moments)} == {jnp.dtype("float32")}


def test_every_parameter_is_stepped_by_the_same_rule():
    """A permutation of the parameters of a leaf permutes their steps."""
    optimizer = MAKERS["mlp"]()
    transformation = optimizer.transform(noisy(optimizer.init(KEY)))
    params, gradients = jax.random.normal(KEY, [2, 6])
    order = jnp.array([3, 1, 5, 0, 2, 4])
    update = jax.jit(transformation.update)
    updates, _ = update(gradients, transformation.init(params), params)
    permuted, _ = update(gradients[order], transformation.init(params), params[order])
    np.testing.assert_allclose(permuted, updates[order], rtol=1e-5)
    assert len(np.unique(np.asarray(updates))) == 6


def quartic(phi, theta, state, data, key):
    del theta, state, key
    return jnp.sum((phi["w"] - data) ** 2 * (1 + 0.1 * phi["w"] ** 2)) + jnp.sum(jnp.sin(phi["b"])), ()


@pytest.mark.parametrize(
    ("maker", "strategy"),
    [
        ("mlp", "mixed_mode"),
        pytest.param("lstm", "remat_group", marks=SLOW),
        pytest.param("mlp", "unrolled", marks=SLOW),
    ],
)
def test_second_order_gradients_through_it(maker, strategy, x64):
    """With respect to the weights and the start, against central differences."""
    optimizer = MAKERS[maker](step_size=0.02)
    solve = inner_loop(quartic, optimizer.transform, 2, METAGRADS[strategy]())
    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), noisy(optimizer.init(KEY)))
    start = {"w": jnp.array([0.3, -1.0]), "b": jnp.array([0.2])}

    @jax.jit
    def after(both):
        phi = solve(both[1], both[0], (), jnp.array([2.0, 1.0]), KEY).phi
        return jnp.sum(phi["w"] ** 3) + jnp.sum(phi["b"])

    grads = jax.jit(jax.grad(after))((theta, start))
    for seed in range(3):
        direction = noisy(jax.tree.map(jnp.zeros_like, (theta, start)), jax.random.key(seed), 1.0)

        def along(step, direction=direction):
            return after(jax.tree.map(lambda leaf, way: leaf + step * way, (theta, start), direction))

        expected = (along(1e-6) - along(-1e-6)) / 2e-6
        np.testing.assert_allclose(optax.tree.vdot(grads, direction), expected, rtol=1e-5)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads[0]["network"]["output"]))


def test_a_gradient_of_zero_has_a_finite_meta_gradient():
    """A dead unit: its gradient is 0 in every step, where logarithms and roots have no derivative."""
    optimizer = MAKERS["mlp"]()

    def objective(phi, theta, state, data, key):
        return jnp.sum(phi * jnp.array([1.0, 0.0])), ()

    solve = inner_loop(objective, optimizer.transform, 3)
    theta = noisy(optimizer.init(KEY))
    gradient = jax.jit(jax.grad(lambda theta, phi: solve(phi, theta, (), (), KEY).phi.sum(), argnums=(0, 1)))
    grads = gradient(theta, jnp.zeros(2))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


# Training. Two classes of points, divided by a line that is another in every task.


def sample_lines(key, pool, spec, num_tasks, *, first_task=0):
    del pool, first_task
    number = spec.ways * (spec.shots + spec.queries)

    def of_task(key):
        key_points, key_line = jax.random.split(key)
        points = jax.random.normal(key_points, [number, 2])
        batch = example_batch(points, (points @ jax.random.normal(key_line, [2]) > 0).astype(jnp.int32))
        cut = spec.ways * spec.shots
        return Episode(*(jax.tree.map(lambda leaf, s=part: leaf[s], batch) for part in (slice(cut), slice(cut, None))))

    return jax.vmap(of_task)(jax.random.split(key, num_tasks))


SOURCE = TaskSource(sample_lines, (), EpisodeSpec(2, 8, 4))
TASKS = sample_lines(jax.random.key(5), (), SOURCE.spec, 8)
TASK = jax.tree.map(lambda leaf: leaf[0], TASKS)
# From zero weights and on all points at once: little to compile.
LINE = from_function(lambda key, inputs: jnp.zeros([2, 2]), lambda weights, inputs: inputs @ weights)
OPTIMIZER = mlp_optimizer(hidden=(3,), momenta=(0.9,), step_size=0.01)


GROUPS = METAGRADS["remat_group"]()


def begin(key):
    """SGD at a rate that is far too small."""
    return OPTIMIZER.as_sgd(OPTIMIZER.init(key), 0.01)


def lines_learner(**options):
    # Groups of steps compile to the smallest program.
    options = {"model": LINE, "init": begin, "num_steps": 3, "num_unrolls": 3, "metagrad": GROUPS} | options
    return optimizer_learner(transform=OPTIMIZER.transform, **options)


WAYS = {
    "full unrolls": ({}, exact()),
    "truncated": ({"truncate": True}, skip_diverged(exact(), max_norm=1.0)),
    "the last steps": ({"num_steps": 9, "num_unrolls": 1, "metagrad": truncated(3)}, exact()),
    "pes": ({}, pes(std=0.05, num_pairs=4, num_unrolls=3)),
}


@cache
def meta_training(way):
    """One program: theta after 60 outer steps from a key, and the mean loss on other tasks before and after."""
    options, estimator = WAYS[way]
    learner, optimizer = lines_learner(**options), optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05))
    train_step = make_train_step(learner, optimizer, estimator=estimator)

    def mean_loss(theta):
        return jax.vmap(lambda task: learner.loss(theta, (), task, KEY, 0)[0])(TASKS).mean()

    @jax.jit
    def run(key):
        train_state = init_train_state(key, learner, optimizer, SOURCE, num_tasks=4, estimator=estimator)

        def body(train_state, key):
            return train_step(train_state, sample_lines(key, (), SOURCE.spec, 4), key)

        last, metrics = jax.lax.scan(body, train_state, jax.random.split(key, 60))
        return last.meta_params, mean_loss(train_state.meta_params), mean_loss(last.meta_params), metrics["nonfinite"]

    return run


@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way == "full unrolls" else SLOW) for way in WAYS])
def test_training_lowers_the_meta_loss(way):
    _, before, after, nonfinite = meta_training(way)(KEY)
    assert after < 0.8 * before and not nonfinite.any()


def test_training_is_the_same_for_the_same_seed():
    first, again, other = (meta_training("full unrolls")(jax.random.key(seed))[0] for seed in (1, 1, 2))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, again)))
    assert not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, other)))


def test_unrolls_go_on_where_the_one_before_stopped():
    learner = lines_learner(model=mlp(2, hidden=(4,)), judged_on="validation", log_above=0.1)
    theta = noisy(begin(KEY))

    @jax.jit
    def both(theta):
        _, (inner, _, _) = learner.unroll(theta, (), None, TASK, KEY, 0)
        after_two = learner.unroll(theta, (), inner, TASK, jax.random.key(9), 0)
        return after_two, learner.adapt(theta, (), TASK.support, KEY, num_steps=6)

    (value, (inner, adapted, (_, metrics))), expected = both(theta)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), adapted.params, expected.params)
    outputs = learner.predict(expected, TASK.query, KEY)
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, TASK.query.targets)
    np.testing.assert_allclose(value, np.log(losses.mean() + 0.1), rtol=1e-5)
    np.testing.assert_allclose(metrics["validation_loss"], losses.mean(), rtol=1e-5)
    assert int(inner.loop.steps) == 6


@pytest.mark.slow
def test_truncation_is_the_sum_of_what_each_unroll_sees():
    learner = lines_learner(num_unrolls=2, truncate=True)
    theta = noisy(begin(KEY))

    # The start is drawn from the first half of a key, by `loss` as by `unroll`.
    def of_unroll(theta, inner):
        return learner.unroll(theta, (), inner, TASK, KEY, 0)[:2]

    @jax.jit
    def each(theta):
        (first, (inner, _, _)), grads = jax.value_and_grad(of_unroll, has_aux=True)(theta, None)
        (second, _), more = jax.value_and_grad(of_unroll, has_aux=True)(theta, inner)
        return first, second, grads, more

    first, second, grads, more = each(theta)
    whole = jax.jit(jax.value_and_grad(lambda theta: learner.loss(theta, (), TASK, KEY, 0), has_aux=True))
    (value, _), total = whole(theta)
    np.testing.assert_allclose(value, (first + second) / 2, rtol=1e-6)
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, rtol=1e-4, atol=1e-7), total, grads, more)


@pytest.mark.slow
def test_a_training_that_diverges_is_counted_and_spoils_nothing():
    theta, keys = OPTIMIZER.as_sgd(OPTIMIZER.init(KEY), 1e30), jax.random.split(KEY, 8)
    # Particles that diverge have the loss of the ceiling on both sides, and say nothing.
    for judged_on, estimator in (("training", skip_diverged(exact())), ("validation", pes(num_pairs=1, num_unrolls=1))):
        learner = lines_learner(num_unrolls=1, ceiling=5.0, judged_on=judged_on)

        @jax.jit
        def gradient(theta, learner=learner, estimator=estimator):
            state = estimator.init(KEY, learner, theta, (), TASKS)
            return estimator.value_and_grad(learner, theta, (), state, TASKS, keys, 0)[:2]

        (loss, (_, metrics)), grads = gradient(theta)
        assert 0 < float(loss) <= 5.0 and float(metrics["diverged"]) == 1.0
        assert all(jnp.isfinite(leaf).all() for leaf in (*metrics.values(), *jax.tree.leaves(grads)))
        assert metrics.get("skipped", 1.0) > 0


@pytest.mark.parametrize(("max_norm", "expected"), [(float("inf"), (1 + 0 + 0.5) / 3), (0.75, (0.75 + 0 + 0.5) / 3)])
def test_skipping_leaves_the_other_tasks_as_they_were(max_norm, expected):
    def outer(phi, theta, state, data, key):
        return jnp.sqrt(theta * data) + 0 * phi, ()  # Its derivative is sqrt(data / theta) / 2, and NaN at 0.

    solve = inner_loop(outer, optax.sgd(0.1), 0)
    learner = bilevel(outer, solve, init=lambda key: (jnp.ones(()), ()), start=jnp.zeros_like)
    data, keys = jnp.array([4.0, 0.0, 1.0]), jax.random.split(KEY, 3)
    estimator = skip_diverged(exact(), max_norm=max_norm)
    (loss, (_, metrics)), grads, _ = estimator.value_and_grad(learner, 1.0, (), (), Episode(data, data), keys, 0)
    np.testing.assert_allclose((loss, grads, metrics["skipped"]), (1.0, expected, 1 / 3), rtol=1e-6)


@pytest.mark.slow
def test_tasks_differ_in_width_start_and_view():
    model = varied_mlp(3, width=8, least_width=3, features=4)
    inputs = jax.random.normal(KEY, [5, 6])
    params, state = jax.vmap(lambda key: model.init(key, inputs))(jax.random.split(KEY, 64))
    units = np.asarray(state["body"]["task"]["units"]).sum(1)
    assert set(units) == set(range(3, 9))
    sizes = np.asarray(params["body"]["hidden"]["kernel"]).std((1, 2))
    assert sizes.max() > 2 * sizes.min()
    one = jax.tree.map(lambda leaf: leaf[int(units.argmin())], (params, state))

    def loss(params):
        return jnp.sum(model.apply(params, one[1], inputs, key=None, train=True, weights=None)[0] ** 2)

    grads = jax.grad(loss)(one[0])
    assert not grads["body"]["hidden"]["kernel"][:, 3:].any() and not grads["head"]["kernel"][3:].any()
    assert grads["body"]["hidden"]["kernel"][:, :3].any()


def test_bad_input():
    theta = OPTIMIZER.init(KEY)
    transformation = OPTIMIZER.transform(theta)
    params = {"w": jnp.ones([2, 3])}
    state = transformation.init(params)
    with pytest.raises(ValueError, match=r"not of these parameters.*\['w'\] needed.*\[1, 4\]"):
        transformation.update({"w": jnp.ones([4])}, state, {"w": jnp.ones([4])})
    with pytest.raises(ValueError, match="not of these gradients"):
        transformation.update({"v": jnp.ones([2, 3])}, state, params)
    with pytest.raises(ValueError, match="update\\(updates, state, params\\)"):
        transformation.update(params, state)
    with pytest.raises(ValueError, match="theta is not of this mlp_optimizer"):
        mlp_optimizer(hidden=(5,)).transform(theta)
    with pytest.raises(ValueError, match="momenta of decays .*given 0.8.*momenta="):
        OPTIMIZER.as_sgd(theta, 0.1, momentum=0.8)
    for options in ({"hidden": ()}, {"hidden": (0,)}, {"momenta": (1.0,)}, {"moments": ()}, {"eps": 0.0}):
        with pytest.raises(ValueError, match="lstm_optimizer needs"):
            lstm_optimizer(**options)
    for options in ({"num_steps": 0}, {"num_unrolls": 0}, {"judged_on": "test"}, {"log_above": 0.0}):
        with pytest.raises(ValueError, match="optimizer_learner needs"):
            lines_learner(**options)
    for options in ({"width": 4}, {"gains": (2.0, 1.0)}, {"features": 0}):
        with pytest.raises(ValueError, match="varied_mlp needs"):
            varied_mlp(2, **options)
    with pytest.raises(ValueError, match="max_norm"):
        skip_diverged(exact(), max_norm=0.0)


def run_experiment(monkeypatch, folder, *options):
    """The experiment for a few steps, on glyphs because there is no MNIST where it looks."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "experiments")
    experiment = importlib.import_module("learned_optimizer")
    sizes = ["--horizon", "5", "--unroll", "1", "--tasks", "2", "--judged-tasks", "4", "--tuned-tasks", "2"]
    experiment.main([*sizes, "--steps", "3", "--out", str(folder), *options])
    return json.loads((folder / "results.json").read_text())


def check_record(record, contenders, seeds):
    table, rivals = record["tables"]["letters"], {"SGD", "momentum", "Adam", "Adam, falling", "Adam, best rate"}
    assert set(table) == {*rivals, *contenders} and len(record["runs"]) == seeds
    for run in record["runs"]:
        for name in contenders:
            curve = run["curves"][name]
            assert curve["steps"] == list(range(1, 26)) and len(curve["loss"]) == 25
            assert run["loss"]["letters"][name]["25"] == pytest.approx(curve["loss"][24])
        losses = run["loss"]["letters"]
        assert losses["Adam"]["25"] == pytest.approx(run["curves"]["Adam tuned for 25"]["loss"][24])
        # Of all rates, that of tuning is one.
        assert all(losses["Adam, best rate"][steps] <= losses["Adam"][steps] + 1e-6 for steps in ("1", "5"))
    assert table["Adam"]["1"]["minus_adam"] == 0


@pytest.mark.slow
def test_the_experiment_runs(monkeypatch, tmp_path):
    record = run_experiment(monkeypatch, tmp_path, "--seeds", "1", "--only", "MLP, truncated")
    check_record(record, ["MLP, truncated"], 1)


@pytest.mark.slow
def test_the_experiment_runs_with_all_contenders(monkeypatch, tmp_path):
    record = run_experiment(monkeypatch, tmp_path, "--seeds", "2")
    check_record(record, ["MLP, NRES", "LSTM, NRES", "MLP, PES", "MLP, full unrolls", "MLP, truncated"], 2)
    first, second = (run["loss"]["letters"]["MLP, PES"]["25"] for run in record["runs"])
    assert first != second


@pytest.mark.slow
def test_the_experiment_runs_on_digits(monkeypatch, tmp_path, shared):
    """Letters are judged no further than the horizon, and the rate that nobody knows on the digits alone."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "experiments")
    monkeypatch.setattr(importlib.import_module("learned_optimizer"), "MAPS", 2)
    data = "--data-dir", str(shared / "data" / "mnist")
    record = run_experiment(monkeypatch, tmp_path, "--seeds", "1", "--only", "MLP, truncated", *data)
    digits, letters = record["tables"]["digits"], record["tables"]["letters"]
    assert set(digits) - set(letters) == {"Adam, best rate"} and set(letters) <= set(digits)
    assert all(set(row) == {"1", "5", "25"} for name, row in digits.items() if name != "Adam, best rate")
    assert all(set(row) == {"1", "5"} for row in letters.values())
    # Five classes: nothing was learned in a step.
    assert all(1.0 < row["1"]["mean"] < 3.0 for table in (digits, letters) for row in table.values())
