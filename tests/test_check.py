"""The correctness kit finds what is wrong, and says where."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import flat_model
from jaxmeta import (
    METAGRADS,
    Episode,
    bootstrapped,
    evolution,
    exact,
    example_batch,
    first_order,
    forward,
    inner_adam,
    inner_loop,
    inner_sgd,
    maml,
    mixed_mode,
    nres,
    pes,
    truncated,
    unrolled,
)
from jaxmeta.check import (
    Problem,
    assert_meta_grad_correct,
    compare_estimators,
    comparison_table,
    find_nonfinite,
    quadratic,
)

KEY = jax.random.key(0)


def small_problem(**options) -> Problem:
    def objective(phi, theta, state, data, key):
        return jnp.mean(jnp.exp(theta["weights"]) * jnp.logaddexp(0.0, -data @ phi)), ()

    def outer_loss(phi, theta, state, data, key):
        return jnp.mean(jnp.logaddexp(0.0, -data @ phi)), ()

    data = jax.random.normal(jax.random.key(1), [6, 3]) + jnp.array([0.5, 0.0, -0.5])
    theta = {"rate": jnp.array(0.2), "weights": jnp.linspace(-1, 1, 6)}
    problem = Problem(
        objective,
        outer_loss,
        theta,
        inner_adam(lambda theta: theta["rate"]),
        4,
        start=lambda theta: jnp.zeros(3),
        inner_data=data,
        outer_data=data[::-1] + 0.1,
    )
    return problem._replace(**options)


@pytest.mark.parametrize("metagrad", [unrolled(), mixed_mode(), forward()])
def test_right_gradients_pass_at_order_two(metagrad):
    checks = assert_meta_grad_correct(small_problem(), metagrad)
    assert [check.leaf for check in checks] == ["theta['rate']", "theta['weights']"]
    for check in checks:
        assert check.relative_error < 1e-8 and check.order > 1.9
    assert not jax.config.jax_enable_x64, "double precision leaked out of the check"


def test_wrong_gradients_are_named():
    with pytest.raises(AssertionError, match=r"1 of 2 leaves(.|\n)*theta\['weights'\]: derivative 0, finite"):
        assert_meta_grad_correct(quadratic_with_noise_leaf(), first_order())
    with pytest.raises(AssertionError, match=r"theta\['rate'\]: derivative .*relative error"):
        assert_meta_grad_correct(small_problem(), truncated(2))


def quadratic_with_noise_leaf() -> Problem:
    """First order is exact for the rate of a single step, and misses the weights."""
    return small_problem(num_steps=1, optimizer=inner_sgd(lambda theta: theta["rate"]))


def test_an_error_far_below_the_tolerance_is_found_by_its_order():
    """A gradient wrong by one part in ten million stays wrong when the difference is refined."""

    @jax.custom_vjp
    def almost(theta):
        return theta

    almost.defvjp(lambda theta: (theta, None), lambda _, ct: (jax.tree.map(lambda leaf: leaf * (1 + 1e-7), ct),))
    problem = small_problem()

    def outer_loss(phi, theta, state, data, key):
        return problem.outer_loss(almost(phi), theta, state, data, key)

    with pytest.raises(AssertionError, match="order"):
        assert_meta_grad_correct(problem._replace(outer_loss=outer_loss))


def test_a_gradient_that_is_not_finite_is_wrong():
    """NaN compares false with everything: it must not slip through."""
    problem = Problem(
        lambda phi, theta, *rest: (jnp.sum((phi - theta["goal"]) ** 2 * jnp.array([1.0, 0.0])), ()),
        lambda phi, *rest: (jnp.sum(phi**2), ()),
        {"goal": jnp.ones(2)},
        optax.adam(0.1),
        3,
        start=lambda theta: jnp.zeros(2),
    )
    with pytest.raises(AssertionError, match=r"theta\['goal'\]: derivative nan"):
        assert_meta_grad_correct(problem)
    assert_meta_grad_correct(problem._replace(optimizer=inner_adam(0.1)))
    with pytest.raises(AssertionError, match="nan"):
        assert_meta_grad_correct(problem._replace(outer_loss=lambda phi, *rest: (jnp.sum(jnp.log(phi - 9.0)), ())))


@pytest.mark.parametrize("offset", [0.0, 1e8, 1e10])
def test_a_wrong_gradient_does_not_hide_behind_a_large_loss(offset):
    problem = small_problem()

    @jax.custom_vjp
    def off_by_a_percent(phi):
        return phi

    off_by_a_percent.defvjp(lambda phi: (phi, None), lambda _, ct: (1.01 * ct,))

    def outer_loss(phi, *rest):
        value, aux = problem.outer_loss(off_by_a_percent(phi), *rest)
        return value + offset, aux

    with pytest.raises(AssertionError, match="meta-gradient is wrong"):
        assert_meta_grad_correct(problem._replace(outer_loss=outer_loss))


def test_a_leaf_without_influence_is_right():
    problem = small_problem()
    theta = {**problem.theta, "unused": jnp.ones(2)}
    checks = assert_meta_grad_correct(problem._replace(theta=theta))
    assert [check.derivative for check in checks if check.leaf == "theta['unused']"] == [0.0]


def test_a_comparison_survives_a_strategy_that_fails():
    """Bootstrapping compares the outputs of a Batch, which this problem has not."""
    rows = compare_estimators(small_problem(), {"bmg": bootstrapped(), "exact": exact()}, num_samples=2, rounds=1)
    assert "match='parameters'" in rows[0].refused and rows[1].cosine > 0.999
    with pytest.raises(ValueError, match="norm 0.0: nothing can be compared"):
        compare_estimators(small_problem(outer_loss=lambda *args: (jnp.float32(1.0), ())))


def test_comparison_of_strategies():
    rows = {row.name: row for row in compare_estimators(small_problem(), rounds=1)}
    assert set(rows) == set(METAGRADS)
    for name in ("unrolled", "remat", "remat_group", "mixed_mode", "forward"):
        row = rows[name]
        assert row.cosine > 0.99999 and row.relative_error < 1e-4 and row.bias is None
        assert row.seconds > 0 and row.compile_seconds > 0 and row.bytes > 0
    assert rows["truncated"].relative_error > 0.05 and rows["first_order"].relative_error > 0.05
    assert "without a proximal term" in rows["implicit"].refused
    table = comparison_table(list(rows.values()))
    assert "| implicit | refused |" in table and "implicit: implicit() differentiates a solution" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_comparison_of_estimators():
    """ES is unbiased within its noise and noisy; with a state it is compared over whole rounds."""
    candidates = {
        "exact": exact(),
        "es": evolution(std=0.02, num_pairs=4),
        "pes": pes(std=0.02, num_pairs=4, num_unrolls=2),
        "nres": nres(std=0.02, num_pairs=4, num_unrolls=2),
        "forgetful": evolution(std=0.02, num_pairs=4, num_unrolls=2),
    }
    problem = small_problem(num_steps=2, num_unrolls=2, optimizer=inner_sgd(lambda theta: theta["rate"]))
    rows = {row.name: row for row in compare_estimators(problem, candidates, num_samples=200, rounds=1)}
    assert rows["exact"].variance < 1e-10 and rows["exact"].bias < 1e-4
    for name in ("es", "pes", "nres"):
        assert rows[name].bias < 2 * rows[name].bias_noise and rows[name].variance > 0.05
    assert rows["forgetful"].bias > 4 * rows["forgetful"].bias_noise


def problem_with_dead_units(optimizer):
    def objective(phi, theta, state, data, key):
        return jnp.sum(phi["alive"] ** 2 + 0.0 * phi["dead"] ** 2) * data, ()

    def run(metagrad, data=1.0):
        def meta_loss(theta, data):
            phi = inner_loop(objective, optimizer, 3, metagrad)(theta, (), (), data, KEY).phi
            return objective(phi, (), (), 1.0, None)[0]

        tasks = jnp.array([1.0, data])
        return jax.jit(jax.vmap(jax.grad(meta_loss), (None, 0)))({"alive": jnp.ones(2), "dead": jnp.ones(2)}, tasks)

    return run


@pytest.mark.parametrize("name", ["unrolled", "remat", "remat_group", "mixed_mode"])
def test_the_origin_of_a_backward_nan(name):
    """Adam at eps_root=0: all values are finite, the meta-gradient is not."""
    run = problem_with_dead_units(optax.adam(0.1))
    assert np.isnan(run(METAGRADS[name]())["dead"]).all() and not np.isnan(run(METAGRADS[name]())["alive"]).any()
    finding = find_nonfinite(run, METAGRADS[name]())
    assert finding == (True, 2, "gradient", "['dead']")
    assert "on the way back" in str(finding) and "inner step 2 (the first is 0)" in str(finding)


def test_the_origin_of_a_forward_nan():
    def objective(phi, theta, state, data, key):
        return jnp.sum(jnp.log(phi["body"] - 0.5)), ()

    def run(metagrad):
        solve = inner_loop(objective, inner_sgd(0.3), 5, metagrad)
        return solve({"body": jnp.ones(2)}, (), (), (), KEY).phi

    # 1 - 0.3/0.5 = 0.4 after the first step: the logarithm of a negative number in the second.
    assert find_nonfinite(run) == (False, 1, "loss", "")


def test_the_origin_of_bad_data_and_of_nothing():
    run = problem_with_dead_units(inner_adam(0.1))
    assert find_nonfinite(run) is None
    assert find_nonfinite(lambda metagrad: run(metagrad, data=jnp.nan)) == (False, None, "input", "['data']")


def test_a_whole_learner_is_searched():
    images = example_batch(jnp.zeros([6, 16, 16, 1]), jnp.arange(6) % 3)

    def run(metagrad):
        learner = maml(flat_model(), inner_optimizer=optax.sgd(1e30), num_steps=2, metagrad=metagrad)
        theta, state = learner.init(KEY, images.inputs)
        return jax.jit(jax.grad(learner.loss, has_aux=True))(theta, state, Episode(images, images), KEY, 0)

    finding = find_nonfinite(run)
    assert finding is not None and finding.step in (0, 1) and finding.quantity in ("loss", "gradient")


def test_grad_norms_are_a_metric():
    images = example_batch(jax.random.normal(KEY, [6, 16, 16, 1]), jnp.arange(6) % 3)
    learner = maml(flat_model(), inner_optimizer=optax.sgd(0.1), num_steps=2, log_grad_norms=True)
    theta, state = learner.init(KEY, images.inputs)
    _, (_, metrics) = jax.jit(learner.loss)(theta, state, Episode(images, images), KEY, 0)
    assert {"inner_grad_norm_1", "inner_grad_norm_2"} <= set(metrics)
    still = maml(flat_model(), inner_optimizer=optax.sgd(0.0))
    gradient, _ = jax.jit(jax.grad(still.loss, has_aux=True))(theta, state, Episode(images, images), KEY, 0)
    np.testing.assert_allclose(metrics["inner_grad_norm_1"], optax.tree.norm(gradient), rtol=1e-4)


def test_quadratic_can_fail():
    """The closed forms differ from each other: agreement with one says something."""
    case = quadratic(KEY, learn_start=False, proximal=1.0)
    forms = [case.unrolled(), case.truncated(2), case.implicit(), case.neumann(3, 0.05), case.bootstrapped(2, 0.0)]
    norms = [float(optax.tree.norm(form)) for form in forms]
    assert len({round(norm, 3) for norm in norms}) == len(norms)
