"""Estimators of the whole meta-gradient: closed forms, bias, state kept between steps, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import flat_model, slowly
from jaxmeta import (
    CRITERIA,
    ESTIMATORS,
    METAGRADS,
    Episode,
    Estimator,
    bootstrapped,
    evolution,
    exact,
    example_batch,
    fit,
    init_train_state,
    inner_loop,
    inner_sgd,
    make_train_step,
    maml,
    mlp,
    nres,
    pes,
    truncated,
    unrolled,
)
from jaxmeta.check import Problem, learner_of, meta_loss_of, quadratic

KEY = jax.random.key(0)
# Built so that each is cheap; a row without a case fails test_every_estimator_has_a_case.
CASES = {
    "exact": exact(),
    "evolution": evolution(num_pairs=2),
    "pes": pes(num_pairs=2, num_unrolls=2),
    "nres": nres(num_pairs=2, num_unrolls=2),
    "bootstrapped": bootstrapped(),
}


def test_every_estimator_has_a_case():
    assert set(CASES) == set(ESTIMATORS)
    assert all(isinstance(make(), Estimator) for make in ESTIMATORS.values())


def gradient_by(estimator, problem, key=KEY, tasks=1):
    learner = learner_of(problem)
    episodes = jax.tree.map(lambda leaf: jnp.stack([leaf] * tasks), Episode(problem.inner_data, problem.outer_data))
    keys = jax.random.split(key, tasks)
    estimator_state = estimator.init(key, learner, problem.theta, problem.state, episodes)
    return estimator.value_and_grad(learner, problem.theta, problem.state, estimator_state, episodes, keys, 0)


def test_exact_closed_form(x64):
    case = quadratic(KEY)
    _, gradient, _ = gradient_by(exact(), case.problem)
    for name, expected in case.unrolled().items():
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-12)


def regularised(phi, theta, state, data, key):
    """One number of phi has a gradient that is the same for all tasks, the other one of its own, with noise."""
    noise = 0.1 * jax.random.normal(key)
    return theta["pull"] * phi["a"] + 0.5 * (phi["b"] - theta["scale"] * data - noise) ** 2, ()


def of_each(learner, theta, data, keys):
    """The mean of what each task's loss gives by itself."""
    episodes = [Episode(one, one) for one in data]
    grads = [
        jax.grad(lambda theta, one=one, key=key: learner.loss(theta, (), one, key, 0)[0])(theta)
        for one, key in zip(episodes, keys, strict=True)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *grads)


@pytest.mark.parametrize("most", [8192, 0], ids=["written out", "as a scan"])
@pytest.mark.parametrize("name", [name for name in METAGRADS if name not in ("implicit", "truncated")])
def test_exact_is_the_mean_of_the_tasks_gradients(name, most, x64, monkeypatch):
    """Of tasks with other data and noise, through rates too, and where not every number is of a task."""
    monkeypatch.setattr("jaxmeta.metagrad.paths.SMALL_CARRY", most)
    theta = {"pull": jnp.float64(0.7), "scale": jnp.float64(0.4), "rate": jnp.float64(0.1)}
    solve = inner_loop(regularised, inner_sgd(lambda theta: theta["rate"]), 3, METAGRADS[name]())

    def loss(theta, state, episode, key, step):
        phi = solve({"a": jnp.zeros(()), "b": jnp.zeros(())}, theta, (), episode.support, key).phi
        return jnp.sin(phi["a"] * episode.query + phi["b"]), ((), {"count": jnp.int32(3)})

    learner = learner_of(linear_problem())._replace(loss=loss)
    data, keys = jnp.array([1.0, 2.0, -3.0]), jax.random.split(KEY, 3)
    (_, (_, metrics)), grads, _ = exact().value_and_grad(learner, theta, (), (), Episode(data, data), keys, 0)
    wanted = of_each(learner, theta, data, keys)
    assert metrics["count"] == 3
    for leaf in theta:
        np.testing.assert_allclose(grads[leaf], wanted[leaf], rtol=1e-10)
    # By hand, too: a gradient over tasks is one of the strategy's, whoever takes it.
    by_hand = jax.grad(
        lambda theta: jax.vmap(lambda one, key: loss(theta, (), Episode(one, one), key, 0)[0])(data, keys).mean()
    )(theta)
    for leaf in theta:
        np.testing.assert_allclose(by_hand[leaf], wanted[leaf], rtol=1e-10)


def test_exact_with_a_rule_that_jax_batches_wrongly(x64):
    """Of a custom_vjp with an output of all tasks and one of each, JAX adds the gradient up once too often."""

    @jax.custom_vjp
    def both(scale, data):
        return 2.0 * scale, scale * data

    both.defvjp(
        lambda scale, data: (both(scale, data), (scale, data)),
        lambda kept, given: (2.0 * given[0] + kept[1] * given[1], kept[0] * given[1]),
    )

    def loss(theta, state, episode, key, step):
        first, second = both(theta, episode.query)
        return first * episode.query + second, ((), {})

    learner = learner_of(linear_problem())._replace(loss=loss)
    data, keys = jnp.array([1.0, 2.0, 3.0]), jax.random.split(KEY, 3)
    _, grads, _ = exact().value_and_grad(learner, 1.5, (), (), Episode(data, data), keys, 0)
    np.testing.assert_allclose(grads, of_each(learner, 1.5, data, keys), rtol=1e-12)
    np.testing.assert_allclose(grads, 6.0, rtol=1e-12)


def test_exact_gives_the_gradient_of_shared_numbers_by_one_product():
    """All examples of all tasks in it, and none for each task."""

    def loss(theta, state, episode, key, step):
        return jnp.sum((episode.query @ theta) ** 2), ((), {})

    learner, data = learner_of(linear_problem())._replace(loss=loss), jnp.ones((7, 5, 3))
    keys = jax.random.split(KEY, 7)

    def gradient(theta):
        return exact().value_and_grad(learner, theta, (), (), Episode(data, data), keys, 0)[1]

    equations = jax.make_jaxpr(gradient)(jnp.ones((3, 2))).eqns
    shapes = [one.outvars[0].aval.shape for one in equations if one.primitive.name == "dot_general"]
    assert {(3, 2), (2, 3)} & set(shapes) and not {(7, 3, 2), (7, 2, 3)} & set(shapes)


@pytest.mark.parametrize(("num_steps", "rate"), [(1, 0.0), (4, 0.0), (0, 0.5), (3, 0.5)])
@pytest.mark.parametrize("proximal", [0.0, 2.0])
def test_bootstrapped_closed_form(x64, proximal, num_steps, rate):
    case = quadratic(KEY, proximal=proximal)
    estimator = bootstrapped(num_steps=num_steps, rate=rate, match="parameters")
    (loss, (_, metrics)), gradient, _ = gradient_by(estimator, case.problem)
    for name, expected in case.bootstrapped(num_steps, rate).items():
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-12)
    np.testing.assert_allclose(loss, meta_loss_of(case.problem)(case.problem.theta), rtol=1e-12)
    assert metrics["matching"] > 0


def linear_problem(num_steps=3, num_unrolls=1) -> Problem:
    """An inner loop that is linear in theta: the meta-loss is quadratic, so smoothing it adds a constant only."""
    matrix = jax.random.normal(jax.random.key(5), [3, 2])

    def objective(phi, theta, state, data, key):
        return 0.5 * jnp.sum((phi - matrix @ theta) ** 2 * jnp.array([0.2, 0.5, 1.0])), ()

    def outer_loss(phi, theta, state, data, key):
        return 0.5 * jnp.sum((phi - data) ** 2), ()

    return Problem(
        objective,
        outer_loss,
        jnp.array([0.5, -0.3]),
        inner_sgd(0.3),
        num_steps,
        start=lambda theta: jnp.ones(3),
        outer_data=jnp.array([1.0, -1.0, 0.5]),
        num_unrolls=num_unrolls,
    )


def standard_errors(samples, exact_gradient):
    """How many standard errors the mean of samples `[n, ...]` is away, in each component."""
    noise = samples.std(0, ddof=1) / np.sqrt(len(samples))
    return np.abs(samples.mean(0) - exact_gradient) / noise


def test_evolution_is_unbiased(x64):
    problem = linear_problem()
    expected = jax.grad(meta_loss_of(problem))(problem.theta)
    samples = jax.vmap(lambda key: gradient_by(evolution(std=0.3, num_pairs=2), problem, key)[1])(
        jax.random.split(KEY, 4000)
    )
    assert (standard_errors(samples, expected) < 4).all()
    # With one pair the noise is of the size that theory gives: the test has power.
    assert np.linalg.norm(samples.std(0)) / np.sqrt(4000) < 0.05 * np.linalg.norm(expected)


def samples_over_time(estimator, problem, num_tasks, rounds):
    """Average the estimates of each whole round of unrolls: `[rounds, ...]`."""
    learner = learner_of(problem)
    data = jnp.stack([problem.outer_data] * num_tasks)
    episodes = Episode((), data)
    estimator_state = estimator.init(KEY, learner, problem.theta, (), episodes)

    def step(estimator_state, key):
        keys = jax.random.split(key, num_tasks)
        _, gradient, estimator_state = estimator.value_and_grad(
            learner, problem.theta, (), estimator_state, episodes, keys, 0
        )
        return estimator_state, gradient

    _, gradients = jax.lax.scan(step, estimator_state, jax.random.split(KEY, rounds * problem.num_unrolls))
    return np.asarray(gradients).reshape(rounds, problem.num_unrolls, -1).mean(1)


@pytest.mark.parametrize("persist", [pes, nres])
def test_persistent_is_unbiased_where_truncation_is_not(x64, persist):
    """Four unrolls of one step each; truncated estimates see one step only."""
    problem = linear_problem(num_steps=1, num_unrolls=4)
    expected = np.asarray(jax.grad(meta_loss_of(problem))(problem.theta))
    persistent = persist(std=0.3, num_pairs=2, num_unrolls=4, stagger=False)
    samples = samples_over_time(persistent, problem, 50, 400)
    assert (standard_errors(samples, expected) < 4).all()
    forgetful = samples_over_time(evolution(std=0.3, num_pairs=2, num_unrolls=4), problem, 50, 400)
    assert (standard_errors(forgetful, expected) > 20).any()
    # The same bias by truncated backpropagation: the last step of four.
    full, short = (
        jax.grad(meta_loss_of(linear_problem(num_steps=4), metagrad))(problem.theta)
        for metagrad in (unrolled(), truncated(1))
    )
    assert np.linalg.norm(short - full) > 0.3 * np.linalg.norm(full)


@pytest.mark.parametrize("persist", [pes, nres])
def test_staggered_is_unbiased_after_its_first_round(x64, persist):
    problem = linear_problem(num_steps=1, num_unrolls=4)
    expected = np.asarray(jax.grad(meta_loss_of(problem))(problem.theta))
    samples = samples_over_time(persist(std=0.3, num_pairs=2, num_unrolls=4), problem, 50, 401)[1:]
    assert (standard_errors(samples, expected) < 4).all()


def test_one_noise_for_a_task_varies_less(x64):
    """Each step adds a theta of its own: that of the n-th unroll's estimate is n times larger where noises add up."""

    def objective(phi, theta, state, data, key):
        # A step of rate 1 counts on, and adds the theta of that step.
        place = jax.lax.stop_gradient(phi["place"]).astype(jnp.int32)
        return -phi["place"] - phi["sum"] * theta[place], ()

    problem = Problem(
        objective,
        lambda phi, theta, state, data, key: (phi["sum"], ()),
        jnp.zeros(8),
        inner_sgd(1.0),
        1,
        start=lambda theta: {"place": jnp.zeros(()), "sum": jnp.zeros(())},
        outer_data=jnp.zeros(1),
        num_unrolls=8,
    )
    expected = np.arange(8, 0, -1) / 8
    variances = []
    for kind in (pes, nres):
        samples = samples_over_time(kind(std=0.1, num_pairs=1, num_unrolls=8, stagger=False), problem, 20, 400)
        assert (standard_errors(samples, expected) < 4).all()
        variances.append(samples.var(0).sum())
    assert variances[1] < variances[0] / 3


def test_a_task_that_begins_in_the_middle_has_its_noise_at_once():
    """All begin with an age of their own; none of the first estimates is 0, as it would be without a noise."""
    problem = linear_problem(num_steps=1, num_unrolls=4)
    learner, estimator = learner_of(problem), nres(std=0.3, num_unrolls=4)
    episodes = Episode((), jnp.stack([problem.outer_data]))
    for key in jax.random.split(KEY, 8):
        state = estimator.init(key, learner, problem.theta, (), episodes)
        _, gradient, kept = estimator.value_and_grad(learner, problem.theta, (), state, episodes, key[None], 0)
        assert (gradient != 0).all()
        if state.unrolls[0] > 0:
            np.testing.assert_array_equal(kept.noise, state.noise)


@pytest.mark.parametrize("persist", [pes, nres])
def test_persistent_follows_a_theta_that_moves(x64, persist):
    """Descending between unrolls, as they are used, to where the exact gradient of the meta-loss is 0."""
    problem = linear_problem(num_steps=1, num_unrolls=4)
    learner, estimator = learner_of(problem), persist(std=0.1, num_pairs=4, num_unrolls=4)
    loss = meta_loss_of(problem)
    best = problem.theta - jnp.linalg.solve(jax.hessian(loss)(problem.theta), jax.grad(loss)(problem.theta))
    episodes = Episode((), jnp.stack([problem.outer_data] * 20))

    def step(carry, index):
        theta, state = carry
        keys = jax.random.split(jax.random.fold_in(KEY, index), 20)
        _, gradient, state = estimator.value_and_grad(learner, theta, (), state, episodes, keys, 0)
        return (theta - 0.2 * gradient, state), theta

    first = problem.theta, estimator.init(KEY, learner, problem.theta, (), episodes)
    _, thetas = jax.lax.scan(step, first, jnp.arange(1000))
    assert jnp.linalg.norm(problem.theta - best) > 0.3
    np.testing.assert_allclose(thetas[500:].mean(0), best, atol=0.05)


def test_pes_begins_its_tasks_at_different_unrolls():
    problem, episodes = linear_problem(num_steps=1, num_unrolls=4), Episode((), jnp.ones([64, 3]))
    ages = {
        stagger: pes(num_unrolls=4, stagger=stagger).init(KEY, learner_of(problem), problem.theta, (), episodes).unrolls
        for stagger in (True, False)
    }
    assert set(ages[True].tolist()) == {0, 1, 2, 3} and set(ages[False].tolist()) == {0}


@pytest.mark.slow
def test_bootstrapping_a_classifier_is_a_divergence(source, x64):
    """KL(target || adapted) over the query set, the target held constant."""
    learner = maml(flat_model(), inner_optimizer=optax.sgd(0.1))
    episodes = source.sample(KEY, source.pool, source.spec, 1)
    episode = jax.tree.map(lambda leaf: leaf[0], episodes)
    theta, state = learner.init(KEY, episode.support.inputs)
    (_, (_, metrics)), _, _ = bootstrapped(num_steps=4).value_and_grad(
        learner, theta, state, (), episodes, KEY[None], 0
    )
    adapted, target = (
        jax.nn.log_softmax(
            learner.predict(learner.adapt(theta, state, episode.support, KEY, num_steps=steps), episode.query, KEY)
        )
        for steps in (1, 5)
    )
    expected = jnp.mean(jnp.sum(jnp.exp(target) * (target - adapted), axis=-1))
    np.testing.assert_allclose(metrics["matching"], expected, rtol=1e-4)


def test_pes_keeps_its_task_until_it_is_finished():
    problem = linear_problem(num_steps=1, num_unrolls=2)
    learner, estimator = learner_of(problem), pes(num_unrolls=2, stagger=False)
    first, second = (Episode((), jnp.full([1, 3], value)) for value in (1.0, 2.0))
    state = estimator.init(KEY, learner, problem.theta, (), first)
    keys = KEY[None]
    seen, counts = [], []
    for episodes in (first, second, second):
        _, _, state = estimator.value_and_grad(learner, problem.theta, (), state, episodes, keys, 0)
        seen.append(float(state.episode.query[0, 0]))
        counts.append(int(state.inner.steps[0, 0, 0]))
    assert seen == [1.0, 1.0, 2.0] and counts == [1, 2, 1]


def test_evolution_serves_a_loop_that_cannot_be_differentiated():
    """The loss counts: its gradient is zero wherever there is one; that of the smoothed loss is not."""

    def objective(phi, theta, state, data, key):
        return jnp.sum(jnp.floor(phi - theta)), ()

    def outer_loss(phi, theta, state, data, key):
        return jnp.floor(10 * jnp.sum(theta**2)), ()

    problem = Problem(objective, outer_loss, jnp.array([0.7, 0.4]), inner_sgd(0.1), 1)
    assert not jax.grad(meta_loss_of(problem))(problem.theta).any()
    _, gradient, _ = gradient_by(evolution(std=0.2, num_pairs=4000), problem)
    np.testing.assert_allclose(gradient, 20 * problem.theta, rtol=0.15)


@pytest.mark.parametrize("name", slowly(CASES, ["exact", "pes"]))
def test_trains_a_classifier_in_chunks(source, name):
    """Each estimator, through the train step, jitted and in two chunks of tasks, with its state carried on."""
    learner = maml(flat_model(), inner_optimizer=optax.sgd(0.1))
    optimizer, estimator = optax.sgd(1e-3), CASES[name]
    state = init_train_state(KEY, learner, optimizer, source, num_tasks=4, estimator=estimator)
    before = jax.tree.map(jnp.copy, state.meta_params)
    train_step = make_train_step(learner, optimizer, estimator=estimator, task_chunk=2)
    norms = []
    options = {"num_steps": 3, "steps_per_call": 3, "callback": lambda _, rows: norms.extend(rows["grad_norm"])}
    state = fit(train_step, state, source, KEY, num_tasks=4, **options)
    assert int(state.step) == 3 and len(norms) == 3 and all(0 < norm < jnp.inf for norm in norms)
    assert optax.tree.norm(optax.tree.sub(before, state.meta_params)) > 0


def test_bootstrapping_matches_outputs(x64):
    """At its own target nothing is left to match; for values the distance is half a square."""
    learner = maml(mlp(1, hidden=(4,)), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
    points = example_batch(jnp.linspace(-1, 1, 5)[:, None], jnp.linspace(0, 1, 5)[:, None])
    theta, state = learner.init(KEY, points.inputs)
    episodes = jax.tree.map(lambda leaf: leaf[None], Episode(points, points))
    (_, (_, metrics)), gradient, _ = bootstrapped(num_steps=3).value_and_grad(
        learner, theta, state, (), episodes, KEY[None], 0
    )

    def outputs(num_steps, theta):
        return learner.predict(learner.adapt(theta, state, points, KEY, num_steps=num_steps), points, KEY)

    target = outputs(4, theta)
    distance, expected = jax.value_and_grad(lambda theta: 0.5 * jnp.mean((outputs(1, theta) - target) ** 2))(theta)
    np.testing.assert_allclose(metrics["matching"], distance, rtol=1e-10)
    for given, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("estimator", [pes(), bootstrapped(), evolution(num_unrolls=3)])
def test_learners_without_an_inner_loop_are_refused(estimator):
    learner = learner_of(linear_problem())._replace(unroll=None)
    with pytest.raises(ValueError, match=r"has to continue an inner loop.*Use exact\(\)"):
        estimator.init(KEY, learner, jnp.ones(2), (), Episode((), jnp.ones([1, 3])))


@pytest.mark.parametrize("estimator", [evolution(), pes()])
def test_gradients_have_the_precision_of_theta(estimator):
    problem = linear_problem()
    problem = problem._replace(theta=problem.theta.astype(jnp.bfloat16))
    _, gradient, _ = gradient_by(estimator, problem)
    assert gradient.dtype == jnp.bfloat16


def test_a_state_of_another_estimator_is_refused():
    problem, episodes = linear_problem(), Episode((), jnp.ones([1, 3]))
    learner = learner_of(problem)
    state = pes(num_pairs=2).init(KEY, learner, problem.theta, (), episodes)
    for estimator_state, estimator in (
        (state, pes(num_pairs=3)),
        ((), pes(num_pairs=3)),
        (state, nres(num_pairs=2)),
    ):
        with pytest.raises(ValueError, match="state is not that of (pes with num_pairs=3|nres with num_pairs=2)"):
            estimator.value_and_grad(learner, problem.theta, (), estimator_state, episodes, KEY[None], 0)
    with pytest.raises(ValueError, match=r"Estimator, as exact\(\)"):
        make_train_step(learner, optax.sgd(0.1), estimator="pes")
    with pytest.raises(ValueError, match="at least one array"):
        pes().init(KEY, learner, problem.theta, (), Episode((), ()))


@pytest.mark.parametrize("name", CASES)
def test_integers_among_the_meta_params_are_refused(name):
    problem = linear_problem()._replace(theta={"goal": jnp.ones(2), "count": jnp.int32(3)})
    problem = problem._replace(objective=lambda phi, *rest: (jnp.sum(phi**2), ()))
    with pytest.raises(ValueError, match=r"\['count'\] is int32.*floating-point"):
        gradient_by(CASES[name], problem)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: evolution(std=0.0), "std > 0; given 0.0"),
        (lambda: evolution(num_pairs=0), "num_pairs >= 1.*given 0"),
        (lambda: pes(num_unrolls=0), "num_unrolls >= 1.*given 0"),
        (lambda: bootstrapped(num_steps=-1), "num_steps >= 0.*given -1"),
        (lambda: pes(num_pairs=2.5), "whole number known before tracing; given 2.5"),
        (lambda: bootstrapped(rate=float("nan")), "rate >= 0; given nan"),
        (lambda: bootstrapped(num_steps=0), "beyond the horizon"),
        (lambda: bootstrapped(match="weights"), "given 'weights'"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
