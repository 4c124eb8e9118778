"""Strategies against closed forms, finite differences and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from conftest import tiny_model
from jaxmeta import METAGRADS, cross_entropy, first_order, inner_loop, mlp, unrolled

EXACT = ["unrolled", "remat"]
# A row that is added to METAGRADS without a case here fails test_every_strategy_has_a_case.
CASES = {*EXACT, "first_order"}


def quadratic(size=4):
    """An objective 0.5 phi' H phi - b' phi with H positive definite."""
    root = jax.random.normal(jax.random.key(0), [size, size])
    hessian = root @ root.T / size + jnp.eye(size)
    offset = jnp.arange(1.0, size + 1)

    def objective(phi, theta, state, data, key):
        return 0.5 * phi @ hessian @ phi - offset @ phi, ()

    return objective, hessian


def test_every_strategy_has_a_case():
    assert set(METAGRADS) == CASES


@pytest.mark.parametrize("num_steps", [0, 1, 3, 7])
@pytest.mark.parametrize("name", EXACT)
def test_quadratic_closed_form(x64, name, num_steps):
    objective, hessian = quadratic()
    solve = inner_loop(objective, optax.sgd(0.1), num_steps, METAGRADS[name]())
    jacobian = jax.jacrev(lambda theta: solve(theta, theta, (), (), jax.random.key(0)).phi)(jnp.ones(4))
    expected = jnp.linalg.matrix_power(jnp.eye(4) - 0.1 * hessian, num_steps)
    np.testing.assert_allclose(jacobian, expected, rtol=0, atol=1e-12)


def test_first_order_is_the_identity(x64):
    objective, _ = quadratic()
    solve = inner_loop(objective, optax.sgd(0.1), 5, first_order())
    jacobian = jax.jacrev(lambda theta: solve(theta, theta, (), (), jax.random.key(0)).phi)(jnp.ones(4))
    np.testing.assert_array_equal(jacobian, jnp.eye(4))


def test_first_order_still_learns_a_learning_rate(x64):
    """phi_1 = phi_0 - a g: the derivative with respect to a is -g, also when g is held constant."""
    objective, hessian = quadratic()

    def adapted(rate):
        solve = inner_loop(objective, lambda theta: optax.sgd(theta["rate"]), 1, first_order())
        return solve(jnp.ones(4), {"rate": rate}, (), (), jax.random.key(0)).phi

    gradient = jax.grad(lambda phi: objective(phi, (), (), (), None)[0])(jnp.ones(4))
    np.testing.assert_allclose(jax.jacfwd(adapted)(0.1), -gradient, atol=1e-12)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.adam(0.01, eps_root=1e-8)])
@pytest.mark.parametrize("name", EXACT)
def test_finite_differences(x64, name, optimizer):
    model = mlp(3, hidden=(7,))
    inputs = jax.random.normal(jax.random.key(1), [6, 5])
    targets, weights = jnp.arange(6) % 3, jnp.ones(6)
    theta, state = model.init(jax.random.key(2), inputs)
    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), theta)

    def objective(phi, theta, state, data, key):
        outputs, state = model.apply(phi, state, inputs)
        return cross_entropy(outputs, targets, weights), state

    solve = inner_loop(objective, optimizer, 3, METAGRADS[name]())

    def meta_loss(theta):
        phi = solve(theta, theta, state, (), jax.random.key(0)).phi
        return cross_entropy(model.apply(phi, state, 0.5 * inputs)[0], targets, weights)

    check_grads(meta_loss, (theta,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_remat_equals_unrolled_on_a_convolutional_classifier(x64):
    model = tiny_model()
    inputs = jax.random.normal(jax.random.key(1), [6, 16, 16, 1])
    targets, weights = jnp.arange(6) % 3, jnp.ones(6)
    theta, state = model.init(jax.random.key(2), inputs)

    def objective(phi, theta, state, data, key):
        outputs, state = model.apply(phi, state, inputs, train=True, weights=weights)
        return cross_entropy(outputs, targets, weights), state

    def meta_gradient(metagrad):
        solve = inner_loop(objective, optax.sgd(0.1), 2, metagrad)

        def meta_loss(theta):
            return objective(solve(theta, theta, state, (), jax.random.key(0)).phi, 0, state, 0, 0)[0]

        return jax.jit(jax.grad(meta_loss))(theta)

    plain, remat, first = (meta_gradient(metagrad) for metagrad in (unrolled(), unrolled(remat="step"), first_order()))
    difference = optax.tree.norm(optax.tree.sub(plain, remat)) / optax.tree.norm(plain)
    assert difference < 1e-10
    # The second-order part is there: first order is another gradient.
    assert optax.tree.norm(optax.tree.sub(plain, first)) / optax.tree.norm(plain) > 1e-2
