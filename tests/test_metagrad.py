"""Every strategy against closed forms, finite differences and every other."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from conftest import slowly, times_compiled
from jaxmeta import (
    METAGRADS,
    MixedModeWarning,
    conjugate_gradient,
    first_order,
    forward,
    implicit,
    inner_adam,
    inner_loop,
    inner_momentum,
    inner_sgd,
    meta_grad,
    mixed_mode,
    neumann,
    truncated,
    unrolled,
)
from jaxmeta.check import meta_loss_of, quadratic
from jaxmeta.metagrad.paths import POLICIES, group_size
from problems import OPTIMIZERS, PROBLEMS

KEY = jax.random.key(0)
EXACT = {
    "unrolled": unrolled,
    "remat": METAGRADS["remat"],
    "remat_group": METAGRADS["remat_group"],
    "mixed_mode": mixed_mode,
    "forward": forward,
    **{policy: partial(unrolled, remat=policy) for policy in ("dots_saveable", "nothing_saveable")},
    "a policy": partial(unrolled, remat=jax.checkpoint_policies.everything_saveable),
    "mixed, all kept": partial(mixed_mode, remat=None),
    "mixed, no gradients": partial(mixed_mode, save_gradients=False),
    "mixed, groups": partial(mixed_mode, remat="group"),
    "mixed, policy": partial(mixed_mode, remat="dots_saveable"),
}
# A row that is added to METAGRADS without a closed form here fails test_every_strategy_has_a_closed_form.
CLOSED_FORMS = {
    **dict.fromkeys(EXACT, lambda case: case.unrolled()),
    "first_order": lambda case: case.first_order(),
    "truncated": lambda case: case.truncated(1),
    "implicit": lambda case: case.implicit(),
}


def assert_close(given, expected, tolerance=1e-12):
    """Compare trees relative to the norm of the expected one."""
    difference = optax.tree.norm(optax.tree.sub(given, expected))
    assert difference <= tolerance * optax.tree.norm(expected), f"{difference=}, {given=}, {expected=}"


def gradient_on(case, metagrad):
    return jax.grad(meta_loss_of(case.problem, metagrad))(case.problem.theta)


def test_every_strategy_has_a_closed_form():
    assert set(METAGRADS) <= set(CLOSED_FORMS)


@pytest.mark.parametrize("num_steps", [0, 1, 3, 10])
@pytest.mark.parametrize("proximal", [0.0, 0.7])
@pytest.mark.parametrize("name", EXACT)
def test_exact_strategies_equal_the_closed_form(x64, name, proximal, num_steps):
    case = quadratic(KEY, num_steps=num_steps, proximal=proximal)
    assert_close(gradient_on(case, EXACT[name]()), case.unrolled())


@pytest.mark.parametrize("name", METAGRADS)
def test_every_row_equals_its_closed_form(x64, name):
    case = quadratic(KEY, proximal=2.0, learn_start=name != "truncated")
    assert_close(gradient_on(case, METAGRADS[name]()), CLOSED_FORMS[name](case))


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 9])
def test_truncated_closed_form(x64, steps):
    case = quadratic(KEY, num_steps=5, learn_start=False)
    assert_close(gradient_on(case, truncated(steps)), case.truncated(steps))
    assert_close(gradient_on(case, truncated(steps, remat="step")), case.truncated(steps))


def test_implicit_closed_forms(x64):
    case = quadratic(KEY, proximal=2.0, num_steps=3)
    assert_close(gradient_on(case, implicit(damping=0.3)), case.implicit(0.3))
    series = implicit(solver=neumann(7, 0.05))
    assert_close(gradient_on(case, series), case.neumann(7, 0.05))
    own = implicit(solver=lambda product, vector: jnp.linalg.solve(jax.jacobian(product)(vector), vector))
    assert_close(gradient_on(case, own), case.implicit())
    convex = quadratic(KEY, learn_start=False)
    assert_close(gradient_on(convex, implicit(strongly_convex=True)), convex.implicit())
    early = implicit(solver=conjugate_gradient(max_steps=1))
    assert optax.tree.norm(optax.tree.sub(gradient_on(case, early), case.implicit())) > 1e-3


# By default each optimiser meets mixed mode and one way of rematerialising on one network; -m slow runs the others.
ON_NETWORKS = {
    "sgd": {"policy": unrolled(remat="dots_saveable"), "mixed": mixed_mode()},
    "momentum": {"mixed": mixed_mode()},
    "adam": {"group": unrolled(remat="group"), "mixed": mixed_mode()},
}
ALL_ON_NETWORKS = {name: metagrad for row in ON_NETWORKS.values() for name, metagrad in row.items()}
ALL_ON_NETWORKS |= {"step": unrolled(remat="step"), "mixed, group": mixed_mode(remat="group")}
ALL_ON_NETWORKS |= {"mixed, all kept": mixed_mode(remat=None)}


def assert_agree_on_network(problem, metagrads):
    def gradient_by(metagrad):
        return jax.jit(jax.grad(meta_loss_of(problem, metagrad)))(problem.theta)

    reference = gradient_by(unrolled())
    for metagrad in metagrads:
        gradient = gradient_by(metagrad)
        for part in reference:
            assert_close(gradient[part], reference[part], 1e-10)
    return reference, gradient_by


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        ("block", "sgd"),
        pytest.param("attention", "momentum", marks=pytest.mark.slow),
        pytest.param("block", "adam", marks=pytest.mark.slow),
    ],
)
def test_strategies_agree_on_networks(x64, problem, name):
    """Four inner steps; theta holds the start, the learning rates and the weights of the examples."""
    assert_agree_on_network(PROBLEMS[problem](name, num_steps=4), ON_NETWORKS[name].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_all_strategies_agree_on_networks(x64, problem, name):
    problem = PROBLEMS[problem](name)
    reference, gradient_by = assert_agree_on_network(problem, ALL_ON_NETWORKS.values())
    # The second-order part is there: first order is another gradient, and learns the rates all the same.
    first = gradient_by(first_order())
    assert optax.tree.norm(optax.tree.sub(first["params"], reference["params"])) > 1e-3 * optax.tree.norm(reference)
    assert optax.tree.norm(first["rates"]) > 0


def logistic(num_steps, optimizer, metagrad, *, proximal=0.0, noise=0.01):
    """A meta-loss with every kind of argument: start, rate, weight, state, data."""

    def objective(phi, theta, state, data, key):
        logits = jnp.tanh(data["inputs"] @ phi["w"]) * state + phi["b"]
        losses = jnp.logaddexp(0.0, -data["signs"] * (logits + noise * jax.random.normal(key, logits.shape)))
        return jnp.mean(jnp.exp(theta["weight"]) * losses) + 0.01 * jnp.sum(phi["w"] ** 2), ()

    solve = inner_loop(objective, optimizer, num_steps, metagrad, proximal=proximal)

    def meta_loss(theta, state, data):
        phi = solve(theta["phi"], theta, state, data, KEY).phi
        return objective(phi, {"weight": 0.0}, state, data, KEY)[0]

    theta = {
        "phi": {"w": jnp.linspace(-1, 1, 3), "b": jnp.array(0.1)},
        "rate": jnp.array(0.3),
        "weight": jnp.array(0.2),
    }
    inputs = jax.random.normal(jax.random.key(1), [5, 3])
    return meta_loss, (theta, jnp.array(0.9), {"inputs": inputs, "signs": jnp.array([1, -1, 1, 1, -1])})


@pytest.mark.parametrize(
    ("name", "make"),
    [
        # Every strategy and every optimiser, and the other pairs slowly.
        pytest.param(name, make, marks=() if make is inner_sgd or name == "mixed_mode" else pytest.mark.slow)
        for name in ("unrolled", "remat_group", "mixed_mode", "forward")
        for make in (inner_sgd, inner_momentum, inner_adam)
    ],
)
def test_finite_differences(x64, name, make):
    """With respect to theta, the state and the data: all cotangents are there."""
    meta_loss, (theta, state, data) = logistic(3, make(lambda theta: theta["rate"]), METAGRADS[name]())

    def of_floats(theta, state, inputs):
        return meta_loss(theta, state, {**data, "inputs": inputs})

    check_grads(jax.jit(of_floats), (theta, state, data["inputs"]), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", slowly(["unrolled", "mixed_mode", "forward"], ["mixed_mode"]))
def test_third_order(x64, name):
    """The meta-gradient itself can be differentiated in reverse."""
    meta_loss, (theta, state, data) = logistic(2, inner_sgd(lambda theta: theta["rate"]), METAGRADS[name]())
    exact, _ = logistic(2, inner_sgd(lambda theta: theta["rate"]), unrolled())

    @jax.jit
    def both(rate):
        hessian = jax.jacrev(jax.grad(lambda rate: meta_loss({**theta, "rate": rate}, state, data)))(rate)
        return hessian, jax.hessian(lambda rate: exact({**theta, "rate": rate}, state, data))(rate)

    np.testing.assert_allclose(*both(0.3), rtol=1e-10)


@pytest.mark.parametrize(
    "name",
    slowly(["unrolled", "remat", "remat_group", "mixed_mode", "forward", "implicit"], ["mixed_mode", "implicit"]),
)
def test_closed_over_tracers(x64, name):
    """What is differentiated and what is mapped may be closed over: as if they were given as arguments."""
    metagrad = METAGRADS[name]()
    rates = {} if name == "implicit" else {"rate": jnp.array(0.1)}  # implicit() cannot see a rate.
    theta = {"phi": jnp.ones(2), "weight": jnp.array(0.2), **rates}
    tasks = jnp.array([[0.3, 0.4], [-0.5, 2.0]])

    def objective(phi, theta, state, data, key):
        return jnp.exp(theta["weight"]) * jnp.sum(jnp.cosh(phi - data)), ()

    def explicit(theta, data):
        solve = inner_loop(objective, inner_sgd(lambda theta: theta.get("rate", 0.1)), 3, metagrad, proximal=1.0)
        return jnp.sum(jnp.sin(solve(theta["phi"], theta, (), data, KEY).phi))

    def hidden(theta, data):
        def closed(phi, _, state, nothing, key):
            return objective(phi, theta, state, data, key)

        solve = inner_loop(closed, lambda _: optax.sgd(theta.get("rate", 0.1)), 3, metagrad, proximal=1.0)
        return jnp.sum(jnp.sin(solve(theta["phi"], (), (), (), KEY).phi))

    def gradients(meta_loss, theta=theta, tasks=tasks):
        per_task = jax.vmap(meta_loss, (None, 0))
        yield jax.vmap(jax.grad(meta_loss), (None, 0))(theta, tasks)
        yield jax.grad(lambda theta: per_task(theta, tasks).sum())(theta)
        yield jax.jit(jax.vmap(jax.grad(meta_loss, 1), (None, 0)))(theta, tasks)

    expectations = jax.jit(lambda *of: list(gradients(explicit, *of)))(theta, tasks)
    for gradient, expected in zip(gradients(hidden), expectations, strict=True):
        assert_close(gradient, expected)


def temporary_memory(metagrad, num_steps, optimizer):
    """Bytes that XLA sets aside for the meta-gradient of a small perceptron with two meta-parameters."""
    start = {"hidden": jnp.full([16, 64], 0.1), "out": jnp.full([64, 4], 0.1)}

    def objective(phi, theta, state, data, key):
        outputs = jnp.tanh(data @ phi["hidden"]) @ phi["out"]
        return theta["weight"] * jnp.mean((outputs - 1.0) ** 2) + theta["decay"] * jnp.sum(phi["out"] ** 2), ()

    solve = inner_loop(objective, optimizer, num_steps, metagrad)
    gradient = meta_grad(objective, solve, start=lambda theta: start)
    theta = {"weight": jnp.array(1.0), "decay": jnp.array(0.1)}
    data = jnp.linspace(-1, 1, 64 * 16).reshape(64, 16)
    compiled = jax.jit(gradient).lower(theta, (), data, data, KEY).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_what_is_not_kept_needs_no_memory():
    """Not the speed but the point of each option: XLA's analysis is the same on every run."""
    sgd = optax.sgd(0.1)
    plain, step, group = (temporary_memory(unrolled(remat=remat), 64, sgd) for remat in (None, "step", "group"))
    assert step < plain / 3 and group < step / 2
    assert temporary_memory(forward(), 64, sgd) == temporary_memory(forward(), 16, sgd)
    assert temporary_memory(truncated(4), 64, sgd) < plain / 3
    # Adam needs its gradients on the way back: keeping them costs memory, and is asked for by name.
    adam = inner_adam(0.01)
    kept, again = (temporary_memory(mixed_mode(save_gradients=save), 64, adam) for save in (True, False))
    assert again < 0.9 * kept


@pytest.mark.parametrize("name", METAGRADS)
def test_under_jit_vmap_and_scan(x64, name):
    case = quadratic(KEY, proximal=2.0, learn_start=name != "truncated")
    expected = CLOSED_FORMS[name](case)
    gradient = jax.grad(meta_loss_of(case.problem, METAGRADS[name]()))
    theta = case.problem.theta
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), theta)
    for both in (jax.vmap(gradient)(stacked), jax.jit(jax.vmap(gradient))(stacked)):
        assert_close(jax.tree.map(lambda leaf: leaf[1], both), expected)
    _, scanned = jax.lax.scan(lambda carry, theta: (carry, gradient(theta)), 0, stacked)
    assert_close(jax.tree.map(lambda leaf: leaf[1], scanned), expected)
    total = jax.grad(lambda theta: jax.vmap(meta_loss_of(case.problem, METAGRADS[name]()))(theta).sum())(stacked)
    assert_close(jax.tree.map(lambda leaf: leaf[0], total), expected)


@pytest.mark.parametrize("name", METAGRADS)
def test_no_recompilation(name, caplog):
    case = quadratic(KEY, proximal=2.0, learn_start=name != "truncated")
    traces = []

    @jax.jit
    def gradient(theta):
        traces.append(name)
        return jax.grad(meta_loss_of(case.problem, METAGRADS[name]()))(theta)

    for scale in (1.0, 2.0, 3.0):
        with jax.log_compiles():
            gradient(jax.tree.map(lambda leaf, scale=scale: scale * leaf, case.problem.theta))
    assert len(traces) == 1 and times_compiled("gradient", caplog) == 1


def test_implicit_matches_a_long_unrolled_proximal_loop(x64):
    """iMAML's claim: at the solution, the path does not matter."""
    network = {"phi": {"w": jnp.linspace(-1, 1, 3), "b": jnp.array(0.1)}, "weight": jnp.array(0.2)}
    gradients = []
    for metagrad in (unrolled(remat="group"), implicit(solver=conjugate_gradient(50, 1e-14))):
        meta_loss, (_, state, data) = logistic(400, inner_sgd(0.2), metagrad, proximal=0.5, noise=0.0)
        gradients.append(jax.jit(jax.grad(meta_loss))(network, state, data))
    assert_close(gradients[1], gradients[0], 1e-6)


tree_shapes = st.recursive(
    st.lists(st.integers(1, 3), max_size=2).map(tuple),
    lambda children: (
        st.lists(children, min_size=1, max_size=2).map(tuple) | st.dictionaries(st.sampled_from("ab"), children)
    ),
    max_leaves=4,
)


@settings(max_examples=4, deadline=None)
@given(shapes=tree_shapes)
def test_any_tree_of_theta(shapes):
    """Strategies agree whatever the structure of theta, empty branches and scalars included."""
    with jax.enable_x64(True):
        is_shape = lambda node: isinstance(node, tuple) and all(isinstance(size, int) for size in node)  # noqa: E731
        theta = jax.tree.map(lambda shape: jnp.full(shape, 0.3), {"root": shapes, "rate": ()}, is_leaf=is_shape)

        def objective(phi, theta, state, data, key):
            return sum(jnp.sum(jnp.sin(leaf) ** 2) for leaf in jax.tree.leaves(phi)) * theta["rate"], ()

        def meta_loss(theta, metagrad):
            phi = inner_loop(objective, inner_sgd(0.2), 2, metagrad)(theta, theta, (), (), KEY).phi
            return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(phi))

        metagrads = unrolled(), unrolled(remat="group"), mixed_mode(), forward()
        expected, *others = jax.jit(lambda theta: [jax.grad(meta_loss)(theta, metagrad) for metagrad in metagrads])(
            theta
        )
        for gradient in others:
            assert_close(gradient, expected)


@pytest.mark.parametrize("num_steps", range(1, 120))
def test_groups_are_about_the_square_root(num_steps):
    size = group_size(num_steps)
    assert num_steps**0.5 / 2.1 <= size <= 1.5 * num_steps**0.5


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_exist(policy):
    unrolled(remat=policy)


# Bad input: what was given, and what would serve.


def grad_of(metagrad, theta=None, **options):
    def objective(phi, theta, state, data, key):
        return jnp.sum((phi - theta["goal"]) ** 2), ()

    def outer_loss(phi, theta, state, data, key):
        return jnp.sum(phi**3), ()

    theta = {"phi": jnp.ones(3), "goal": jnp.zeros(3), "rate": jnp.array(0.1)} if theta is None else theta
    solve = inner_loop(objective, inner_sgd(lambda theta: theta["rate"]), 4, metagrad, **options)
    return lambda: meta_grad(outer_loss, solve, start=lambda theta: theta["phi"])(theta, (), (), (), KEY)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_refusals_at_trace_time(wrap):
    with pytest.raises(ValueError, match=r"truncated\(2\) of 4 steps cannot see the start.*unrolled\(remat='step'\)"):
        wrap(grad_of(truncated(2)))()
    with pytest.raises(ValueError, match=r"cannot see the meta-parameter theta\['rate'\].*unrolled\(remat='group'\)"):
        wrap(grad_of(implicit(), proximal=1.0))()
    with pytest.raises(ValueError, match=r"cannot see the meta-parameter phi.*give the loop proximal"):
        wrap(grad_of(implicit(strongly_convex=True)))()
    with pytest.raises(ValueError, match=r"carry 7 derivatives.*at most 6.*theta\['goal'\] \[3\].*mixed_mode\(\)"):
        wrap(grad_of(forward(max_meta_params=6)))()
    wrap(grad_of(forward(max_meta_params=7)))()


def test_a_start_that_is_not_the_anchor_is_refused():
    solve = inner_loop(lambda phi, *rest: (jnp.sum((phi - 3.0) ** 2), ()), inner_sgd(0.1), 3, implicit(), proximal=1.0)
    with pytest.raises(ValueError, match="cannot see the meta-parameter phi"):
        jax.grad(lambda phi: solve(phi, (), (), (), KEY, anchor=jnp.zeros(2)).phi.sum())(jnp.ones(2))


def test_truncated_refuses_a_learned_state_and_stops_early_records(x64):
    def objective(phi, theta, state, data, key):
        return jnp.sum((phi - theta) ** 2), ()

    optimizer = inner_momentum(0.1)
    solve = inner_loop(objective, optimizer, 4, truncated(2), record=["loss"])

    def phi_of(momentum):
        opt_state = jax.tree.map(lambda leaf: leaf + momentum, optimizer(()).init(jnp.ones(2)))
        return solve(jnp.ones(2), 0.0, (), (), KEY, opt_state=opt_state).phi.sum()

    with pytest.raises(ValueError, match="cannot see the start"):
        jax.grad(phi_of)(0.5)

    def losses(theta):
        closed_over = inner_loop(
            lambda phi, _, *rest: objective(phi, theta, *rest), optimizer, 4, truncated(2), record=["loss"]
        )
        given = solve(jnp.ones(2), theta, (), (), KEY).per_step["loss"].sum()
        return given, closed_over(jnp.ones(2), (), (), (), KEY).per_step["loss"].sum()

    given, hidden = jax.jacrev(losses)(0.5)
    np.testing.assert_allclose(given, hidden, rtol=1e-12)


@pytest.mark.parametrize("name", ["forward", "implicit"])
def test_an_operation_without_a_forward_derivative_is_refused(name):
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (square(x), x), lambda x, ct: (2 * ct * square(x) / x,))

    def objective(phi, theta, state, data, key):
        return jnp.sum(square(phi)) * theta, ()

    solve = inner_loop(objective, inner_sgd(0.1), 3, METAGRADS[name](), proximal=1.0)
    with pytest.raises(TypeError, match=rf"{name}\(\) takes forward derivatives.*unrolled\(remat='step'\)"):
        jax.jit(jax.grad(lambda theta: solve(jnp.ones(2), theta, (), (), KEY).phi.sum()))(0.3)


@pytest.mark.parametrize("name", METAGRADS)
def test_nothing_leaks(name):
    case = quadratic(KEY, proximal=2.0, learn_start=name != "truncated")
    with jax.checking_leaks():
        jax.jit(jax.grad(meta_loss_of(case.problem, METAGRADS[name]())))(case.problem.theta)


def test_implicit_refuses_what_the_optimizer_closes_over():
    def meta_loss(rate):
        solve = inner_loop(
            lambda phi, *rest: (jnp.sum(phi**2), ()), lambda _: optax.sgd(rate), 3, implicit(), proximal=1.0
        )
        return jnp.sum(solve(jnp.ones(2), (), (), (), KEY).phi)

    with pytest.raises(ValueError, match="that the loop closes over"):
        jax.grad(meta_loss)(0.1)


def test_what_is_said_to_be_constant_is_not_refused(x64):
    case = quadratic(KEY, learn_start=True)
    problem = case.problem._replace(start=lambda theta: jax.lax.stop_gradient(theta["start"]))
    gradient = jax.grad(meta_loss_of(problem, truncated(2)))(problem.theta)
    assert_close(gradient["offset"], case.truncated(2)["offset"])
    assert not gradient["start"].any()


def test_implicit_refuses_at_construction():
    with pytest.raises(ValueError, match=r"without a proximal term.*proximal=.*strongly_convex=True.*mixed_mode"):
        grad_of(implicit())


@pytest.mark.parametrize("make", [mixed_mode, partial(mixed_mode, remat=None), partial(mixed_mode, remat="group")])
@pytest.mark.parametrize("derivative", [jax.hessian, jax.jacfwd, lambda f: lambda x: jax.jvp(jax.jit(f), (x,), (x,))])
def test_mixed_mode_refuses_forward_derivatives(make, derivative):
    case = quadratic(KEY)
    with pytest.raises(TypeError, match=r"mixed_mode\(\).*cannot be differentiated forwards.*unrolled\(\)"):
        derivative(meta_loss_of(case.problem, make()))(case.problem.theta)


@pytest.mark.parametrize("name", ["unrolled", "forward", "implicit", "first_order"])
def test_others_can_be_differentiated_forwards(x64, name):
    case = quadratic(KEY, proximal=2.0)
    gradient = jax.jacfwd(meta_loss_of(case.problem, METAGRADS[name]()))(case.problem.theta)
    assert_close(gradient, CLOSED_FORMS[name](case))


def test_mixed_mode_falls_back_where_there_is_no_forward_derivative(x64):
    """An operation with a custom_vjp whose rules call it again has a second derivative in reverse mode only."""

    @jax.custom_vjp
    def cube(x):
        return x**3

    @jax.custom_vjp
    def triple_square(x):
        return 3 * x**2

    cube.defvjp(lambda x: (cube(x), x), lambda x, ct: (ct * triple_square(x),))
    triple_square.defvjp(lambda x: (triple_square(x), x), lambda x, ct: (ct * 6 * x,))

    def objective(phi, theta, state, data, key):
        return jnp.sum(cube(phi)) * theta["weight"], ()

    def meta_loss(theta, metagrad):
        solve = inner_loop(objective, inner_sgd(0.1), 3, metagrad)
        return jnp.sum(solve(theta["phi"], theta, (), (), KEY).phi)

    theta = {"phi": jnp.array([0.3, 0.5]), "weight": jnp.array(0.7)}
    with pytest.warns(MixedModeWarning, match="no forward derivative.*reverse over reverse"):
        gradient = jax.grad(meta_loss)(theta, mixed_mode())
    assert_close(gradient, jax.grad(meta_loss)(theta, unrolled()))


@pytest.mark.parametrize("name", ["remat", "remat_group", "mixed_mode", "forward"])
@pytest.mark.parametrize("make", [inner_sgd, pytest.param(inner_adam, marks=pytest.mark.slow)])
def test_whole_numbers_and_keys_in_the_data(x64, name, make):
    """They pass through the custom rules as arguments: closed over, they leak."""

    def objective(phi, theta, state, data, key):
        places, noise_key, weights = data
        noise = jax.random.normal(noise_key, (2,)) * jax.random.normal(key, (2,))
        return jnp.sum(weights * jnp.cosh(phi[places]) * (1 + noise)), ()

    def gradient(metagrad):
        solve = inner_loop(objective, make(0.1), 3, metagrad)

        def meta_loss(phi, weights, places, key):
            return jnp.sum(solve(phi, (), (), (places, key, weights), key).phi ** 2)

        of_task = jax.vmap(jax.grad(meta_loss, (0, 1)), (None, None, 0, 0))
        places = jnp.array([[0, 1], [2, 2]])
        return jax.jit(of_task)(jnp.array([0.3, 0.5, 0.7]), jnp.ones(2), places, jax.random.split(KEY, 2))

    assert_close(gradient(METAGRADS[name]()), gradient(unrolled()))


def test_mixed_mode_is_silent_where_all_is_well():
    case = quadratic(KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient_on(case, mixed_mode())


def test_mixed_mode_differentiates_what_the_objective_returns_too(x64):
    """The recorded loss of each step is an output of the rule as well."""

    def gradient(metagrad):
        meta_loss = lambda theta: jnp.sum(  # noqa: E731
            inner_loop(
                lambda phi, theta, *rest: (jnp.sum(jnp.cosh(phi) * theta), ()),
                inner_sgd(0.1),
                3,
                metagrad,
                record=["loss", "grad_norm"],
            )(theta, theta, (), (), KEY).per_step["loss"]
        )
        return jax.grad(meta_loss)(jnp.array([0.3, 0.5]))

    assert_close(gradient(mixed_mode()), gradient(unrolled()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unrolled(remat="steps"), "remat must be None, 'step', 'group'.*given 'steps'"),
        (lambda: unrolled(remat=True), "given True"),
        (lambda: mixed_mode(remat="all"), "given 'all'"),
        (lambda: truncated(0), "num_steps >= 1.*given 0"),
        (lambda: truncated(2.5), "whole number known before tracing; given 2.5"),
        (lambda: implicit(damping=float("nan")), "damping >= 0; given nan"),
        (lambda: neumann(-1), "num_terms >= 0.*given -1"),
        (lambda: neumann(3, float("nan")), "rate > 0; given nan"),
        (lambda: conjugate_gradient(0), "max_steps >= 1.*given 0"),
        (lambda: truncated(3, remat="group"), "'group' is for unrolled"),
        (lambda: implicit(damping=-1.0), "damping >= 0; given -1.0"),
        (lambda: forward(max_meta_params=0), "max_meta_params >= 1.*given 0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_in_theta_are_refused():
    theta = {"phi": jnp.ones(3), "goal": jnp.arange(3), "rate": jnp.array(0.1)}
    with pytest.raises(ValueError, match=r"theta\['goal'\] is int32.*must hold floating-point"):
        grad_of(unrolled(), theta)()
