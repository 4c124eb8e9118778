import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import (
    inner_adam,
    inner_loop,
    inner_momentum,
    inner_sgd,
    learning_rates,
    meta_grad,
    truncated,
    unrolled,
)


def objective(phi, theta, state, data, key):
    return 0.5 * jnp.sum((phi - data) ** 2) + jnp.sum(phi * jax.random.normal(key, phi.shape)), ()


def test_scan_equals_python_loop(x64):
    key, data, optimizer = jax.random.key(0), jnp.arange(3.0), optax.adam(0.1)
    result = inner_loop(objective, optimizer, 4)(jnp.zeros(3), (), (), data, key)
    phi, opt_state = jnp.zeros(3), optimizer.init(jnp.zeros(3))
    for index in range(4):
        grads = jax.grad(objective, has_aux=True)(phi, (), (), data, jax.random.fold_in(key, index))[0]
        updates, opt_state = optimizer.update(grads, opt_state, phi)
        phi = optax.apply_updates(phi, updates)
    np.testing.assert_allclose(result.phi, phi, rtol=1e-12)
    assert int(result.opt_state[0].count) == 4


@pytest.mark.parametrize(
    ("size", "num_steps", "remat", "scans"),
    [
        (10, 3, None, []),
        (10, 12, None, [(12, 5)]),
        (10_000, 3, None, [(3, 1)]),
        # Outside of a scan XLA's CPU backend would keep what is to be computed again.
        (10, 3, "step", [(3, 1)]),
    ],
)
def test_steps_over_few_numbers_are_written_out(size, num_steps, remat, scans):
    """So much at once, and no more with more steps; where the arithmetic counts it stays a loop."""

    def solve(start):
        loop = inner_loop(objective, optax.sgd(0.1), num_steps, unrolled(remat=remat))
        return loop(start, (), (), 0.0, jax.random.key(0)).phi

    found = [one for one in jax.make_jaxpr(solve)(jnp.ones(size)).eqns if one.primitive.name == "scan"]
    assert [(one.params["length"], one.params["unroll"]) for one in found] == scans


@pytest.mark.parametrize("remat", [None, "step", "group"])
@pytest.mark.parametrize("num_steps", [0, 2, 7])
def test_a_loop_begins_with_what_can_become_an_array(num_steps, remat):
    """Python's numbers and NumPy's of twice the precision, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve = inner_loop(objective, inner_sgd(0.1), num_steps, unrolled(remat=remat))
        for start in (1.0, np.float64(1.0), np.ones(())):
            given = solve(start, (), (), 0.0, jax.random.key(0)).phi
            np.testing.assert_allclose(given, solve(jnp.ones(()), (), (), 0.0, jax.random.key(0)).phi)


@pytest.mark.parametrize("metagrad", [unrolled(), truncated(2)], ids=["unrolled", "truncated"])
def test_steps_written_out_are_those_of_the_scan(metagrad, monkeypatch, x64):
    """Gradient, records, data and numbers by index, begun at a traced step; traced once, however often written."""
    traced = []

    def pulled(phi, theta, state, data, key):
        traced.append(1)
        return jnp.sum((phi - theta * data) ** 2) + jnp.sum(phi * jax.random.normal(key, phi.shape)), ()

    def run(theta, first_step):
        options = {"data_at": lambda data, index: data[index], "record": ["loss", "phi"]}
        solve = inner_loop(pulled, inner_momentum(0.1), 4, metagrad, **options)
        result = solve(jnp.ones(3), theta, (), jnp.arange(8.0), jax.random.key(0), first_step=first_step)
        return jnp.sum(result.phi**2), (result.per_step, result.next_step)

    given = []
    for most in (8192, 0):
        monkeypatch.setattr("jaxmeta.metagrad.paths.SMALL_CARRY", most)
        traced.clear()
        given.append(jax.jit(jax.value_and_grad(run, has_aux=True))(2.0, jnp.int32(3)))
        given.append(len(traced))
    written_out, traces, scanned, traces_of_scan = given
    assert traces <= traces_of_scan + 1
    for one, other in zip(jax.tree.leaves(written_out), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_the_first_step_of_all_tasks_is_computed_at_once():
    """All begin with the same numbers: a product with them is one of all examples, not one for each task."""

    def loss(phi, theta, state, data, key):
        return jnp.sum((data @ phi) ** 2), ()

    def adapt(start, data):
        return inner_loop(loss, optax.sgd(0.1), 2)(start, (), (), data, jax.random.key(0)).phi

    jaxpr = jax.make_jaxpr(jax.vmap(adapt, (None, 0)))(jnp.ones((3, 2)), jnp.ones((7, 5, 3)))
    products = [one for one in jaxpr.eqns if one.primitive.name == "dot_general"]
    # The weights of the first product have no axis of tasks; those of the second step's have.
    shapes = [tuple(operand.aval.ndim for operand in one.invars) for one in products]
    assert (3, 2) in shapes or (2, 3) in shapes
    assert (3, 3) in shapes


def test_no_steps_returns_the_start():
    result = inner_loop(objective, optax.sgd(0.1), 0)(jnp.ones(2), (), (), 0.0, jax.random.key(0))
    np.testing.assert_array_equal(result.phi, jnp.ones(2))


def test_record_keeps_every_step():
    result = inner_loop(objective, optax.sgd(0.1), 3, record=["phi", "grad_norm"])(
        jnp.ones(2), (), (), 0.0, jax.random.key(0)
    )
    assert result.per_step["phi"].shape == (3, 2) and result.per_step["grad_norm"].shape == (3,)
    np.testing.assert_array_equal(result.per_step["phi"][-1], result.phi)


def test_optimiser_state_does_not_leak_between_tasks():
    solve = inner_loop(objective, optax.adam(0.1), 3)
    data = jnp.array([[1.0, 2.0], [3.0, -4.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.vmap(lambda data, key: solve(jnp.zeros(2), (), (), data, key).phi)(data, keys)
    alone = solve(jnp.zeros(2), (), (), data[1], keys[1]).phi
    np.testing.assert_allclose(both[1], alone, rtol=1e-6)


def test_refuses_negative_steps():
    with pytest.raises(ValueError, match="num_steps >= 0.*given -1"):
        inner_loop(objective, optax.sgd(0.1), -1)


def bowl(phi, theta, state, data, key):
    return sum(0.5 * jnp.sum(leaf**2) for leaf in jax.tree.leaves(phi)), ()


KEY = jax.random.key(0)
PHI = {"body": {"kernel": jnp.ones([2, 3]), "bias": jnp.ones(3)}, "head": jnp.ones(2)}


@pytest.mark.parametrize(
    ("rate", "per_step", "body", "head"),
    [
        (0.5, False, 0.25, 0.25),
        ({"body": 0.0, "head": 0.5}, False, 1.0, 0.25),
        ({"body": {"kernel": 0.5, "bias": jnp.full(3, 0.5)}, "head": jnp.array([0.5, 0.5])}, False, 0.25, 0.25),
        (jnp.array([0.5, 0.0]), True, 0.5, 0.5),
        ({"body": jnp.array([0.5, 0.0]), "head": jnp.array([0.5])}, True, 0.5, 0.25),
    ],
    ids=["one", "per layer", "per parameter", "per step", "per layer and step, the last held"],
)
def test_learning_rate_specs(rate, per_step, body, head):
    """Two steps of phi <- (1 - rate) phi."""
    for spec in (rate, lambda theta: theta):
        phi = inner_loop(bowl, inner_sgd(spec, per_step=per_step), 2)(PHI, rate, (), (), KEY).phi
        np.testing.assert_allclose(phi["body"]["kernel"], jnp.full([2, 3], body))
        np.testing.assert_allclose(phi["body"]["bias"], jnp.full(3, body))
        np.testing.assert_allclose(phi["head"], jnp.full(2, head))


@pytest.mark.parametrize("per", ["leaf", "parameter"])
@pytest.mark.parametrize("num_steps", [None, 3])
def test_learned_rates_have_a_gradient(per, num_steps):
    theta = learning_rates(PHI, 0.1, per=per, num_steps=num_steps)

    def meta_loss(theta):
        solve = inner_loop(bowl, inner_sgd(lambda theta: theta, per_step=num_steps is not None), 3)
        return bowl(solve(PHI, theta, (), (), KEY).phi, (), (), (), None)[0]

    gradient = jax.grad(meta_loss)(theta)
    # One rate: d/da 1/2 n (1 - a)^6 = -3 n (1 - a)^5 for the n numbers that it stands for.
    numbers = 6 if per == "leaf" else 1
    total = jnp.sum(gradient["body"]["kernel"]) / (1 if per == "leaf" else 6)
    np.testing.assert_allclose(total, -3 * numbers * 0.9**5, rtol=1e-5)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, theta)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (inner_sgd(0.1), optax.sgd(0.1)),
        (inner_momentum(0.1), optax.sgd(0.1, momentum=0.9)),
        (inner_momentum(0.1, decay=0.5, nesterov=True), optax.sgd(0.1, momentum=0.5, nesterov=True)),
        (inner_adam(0.1), optax.adam(0.1)),
        (inner_adam(0.1, b1=0.5, b2=0.9, eps=1e-4), optax.adam(0.1, b1=0.5, b2=0.9, eps=1e-4, eps_root=1e-8)),
    ],
)
def test_inner_optimizers_take_the_steps_of_optax(x64, ours, reference):
    start, data = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.3, 0.2, 0.1])
    given, expected = (
        inner_loop(objective, optimizer, 6)(start, (), (), data, KEY).phi for optimizer in (ours, reference)
    )
    np.testing.assert_allclose(given, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_adam_is_finite_where_plain_adam_is_not(x64, dtype):
    """A parameter whose gradient is exactly zero: its second moment is zero, and sqrt has no derivative there."""

    def masked(phi, theta, state, data, key):
        return jnp.sum(jnp.sin(phi) * data), ()

    def meta_gradient(optimizer):
        solve = inner_loop(masked, optimizer, 2)
        data = jnp.array([1.0, 0.0], dtype)
        return jax.grad(lambda theta: jnp.sum(solve(theta, (), (), data, KEY).phi ** 2))(jnp.array([0.5, 0.5], dtype))

    plain, safe = meta_gradient(optax.adam(0.1)), meta_gradient(inner_adam(0.1))
    assert jnp.isnan(plain[1]) and jnp.isfinite(plain[0])
    assert jnp.isfinite(safe).all() and safe.dtype == dtype
    np.testing.assert_allclose(safe, [plain[0], 1.0], rtol=1e-4)


def test_going_on_equals_one_longer_loop(x64):
    """Also with noise, momentum and a proximal term: step numbers, state and anchor go on."""
    data = jnp.array([0.3, 0.2])
    solve = inner_loop(objective, inner_adam(0.1), 3, proximal=0.5)
    whole = solve(jnp.ones(2), (), (), data, KEY, num_steps=5)
    half = solve(jnp.ones(2), (), (), data, KEY)
    rest = solve(
        half.phi,
        (),
        (),
        data,
        KEY,
        num_steps=2,
        opt_state=half.opt_state,
        first_step=half.next_step,
        anchor=jnp.ones(2),
    )
    assert half.next_step == 3 and rest.next_step == 5
    np.testing.assert_allclose(rest.phi, whole.phi, rtol=1e-12)


def test_the_front_door_equals_grad_of_the_written_out_problem(x64):
    def outer_loss(phi, theta, state, data, key):
        return jnp.sum((phi - data) ** 2) + jnp.sum(theta**2), {"distance": jnp.sum(jnp.abs(phi - data))}

    def inner(phi, theta, state, data, key):
        return jnp.sum(jnp.cosh(phi - theta * data)), ()

    gradient = meta_grad(outer_loss, inner_loop(inner, inner_sgd(0.1), 2), start=lambda theta: jnp.zeros(2))
    theta, data, goal = jnp.array([0.5, -0.5]), jnp.array([1.0, 2.0]), jnp.array([0.1, 0.2])
    (value, aux), grads = jax.jit(gradient)(theta, (), data, goal, KEY)

    def written_out(theta):
        phi = jnp.zeros(2)
        for _ in range(2):
            phi = phi - 0.1 * jnp.sinh(phi - theta * data)
        return jnp.sum((phi - goal) ** 2) + jnp.sum(theta**2)

    expected_value, expected = jax.value_and_grad(written_out)(theta)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    np.testing.assert_allclose(grads, expected, rtol=1e-12)
    assert aux["distance"].shape == ()


def changing_state():
    """An optimiser whose state grows: no loop can carry it."""
    return optax.GradientTransformation(
        lambda params: jnp.zeros(1), lambda updates, state, params=None: (updates, jnp.concatenate([state, state]))
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: inner_loop(bowl, optax.sgd(0.1), 1, proximal=-1.0), "proximal >= 0; given -1.0"),
        (lambda: inner_loop(bowl, optax.sgd(0.1), 1, record="phi"), "list of phi, loss, grad_norm; given 'phi'"),
        (lambda: inner_loop(bowl, optax.sgd(0.1), 1, record=["grads"]), r"given \['grads'\]"),
        (lambda: inner_loop(bowl, changing_state(), 1)(PHI, (), (), (), KEY), r"state: .* needed float32\[1\], given"),
        (
            lambda: inner_loop(bowl, optax.adam(0.1), 1)(PHI, (), (), (), KEY, opt_state=optax.sgd(0.1).init(PHI)),
            "opt_state does not belong to this optimiser",
        ),
        (
            lambda: inner_loop(bowl, optax.adam(0.1), 1)(PHI, (), (), (), KEY, opt_state=optax.adam(0.1).init(0.0)),
            "opt_state does not belong to this optimiser",
        ),
        (lambda: inner_loop(bowl, optax.sgd(0.1), 1)(jnp.arange(3), (), (), (), KEY), "phi is int32.*no gradient"),
        (
            lambda: inner_loop(bowl, inner_sgd({"body": 0.1}), 1)(PHI, (), (), (), KEY),
            "learning rates do not fit the parameters",
        ),
        (
            lambda: inner_loop(bowl, inner_sgd({"body": 0.1, "head": jnp.ones(5)}), 1)(PHI, (), (), (), KEY),
            r"rate of shape \[5\] meets a parameter of \[2\]",
        ),
        (
            lambda: inner_loop(bowl, inner_sgd(0.1, per_step=True), 1)(PHI, (), (), (), KEY),
            "needs a leading axis of steps",
        ),
        (lambda: inner_loop(bowl, optax.sgd(0.1), 2.5), "whole number known before tracing; given 2.5"),
        (lambda: inner_loop(bowl, optax.sgd(0.1), 1)(PHI, (), (), (), KEY, num_steps=True), "given True"),
        (lambda: inner_loop(bowl, 0.1, 1), r"optimizer must be inner_sgd\(rate\).*given 0.1"),
        (lambda: inner_loop(bowl, optax.sgd(0.1), 1, "mixed_mode"), "must be a MetaGrad.*given 'mixed_mode'"),
        (
            lambda: inner_loop(bowl, optax.sgd(0.1), 1, proximal=1.0)(PHI, (), (), (), KEY, anchor=0.0),
            "anchor is not like phi",
        ),
        (
            lambda: inner_loop(lambda phi, *rest: jnp.ones(2), optax.sgd(0.1), 1)(PHI, (), (), (), KEY),
            "must return a pair: a scalar",
        ),
        (lambda: inner_sgd(jnp.ones(0), per_step=True)(()).update(PHI, optax.ScaleByScheduleState(0)), "given none"),
        (lambda: inner_adam(0.1, eps=1e-20)(()).init(jnp.ones(2)), "apart from 0 in float32"),
        (lambda: inner_adam(0.1)(()).init(jnp.ones(2, jnp.float16)), "float32 or bfloat16"),
        (lambda: inner_adam(0.1, eps_root=0.0), "eps_root > 0.*NaN wherever an inner gradient is 0"),
        (lambda: learning_rates(PHI, 0.1, per="layer"), "per='leaf' or 'parameter'; given 'layer'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
