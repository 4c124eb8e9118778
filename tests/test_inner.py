import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import inner_loop


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
    with pytest.raises(ValueError, match="num_steps >= 0; given -1"):
        inner_loop(objective, optax.sgd(0.1), -1)
