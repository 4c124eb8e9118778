"""Deep Q-learning: the replay, the softmax policy, and values against what is known of a chain and a bandit."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from jaxmeta.models import mlp
from jaxmeta.tuning import (
    Transition,
    add_to_replay,
    bandit,
    chain,
    dqn,
    empty_replay,
    n_step_transition,
    q_target,
    sample_replay,
    sample_runs,
    softmax_policy,
)

# Operation by operation, many small programs would be compiled.
put, draw = jax.jit(add_to_replay), jax.jit(sample_replay, static_argnums=2)


def train_dqn(learner, iterations, seed=0):
    @jax.jit
    def run(key):
        return jax.lax.scan(lambda state, _: learner.iterate(state, ()), learner.init(key, ()), length=iterations)

    return run(jax.random.key(seed))


def values_of_model(model, state, observations):
    return np.asarray(model.apply(*state.params, observations, train=False)[0])


@pytest.mark.parametrize("sizes", [[1] * 9, [3, 2, 4], [4, 4, 4], [2]])
def test_the_replay_is_a_deque(sizes):
    replay, kept, number = empty_replay({"n": jnp.int32(0), "x": jnp.zeros(2)}, 4), deque(maxlen=4), 0
    for size in sizes:
        new = np.arange(number, number + size)
        replay = put(replay, {"n": jnp.asarray(new, jnp.int32), "x": jnp.asarray(np.stack([new, -new], 1))})
        kept.extend(new.tolist())
        number += size
    drawn = draw(jax.random.key(0), replay, 200)
    assert int(replay.count) == number
    # All of what is still there is drawn, and nothing else: no slot that was never written, none that was overwritten.
    assert set(drawn["n"].tolist()) == set(kept)
    np.testing.assert_array_equal(drawn["x"], np.stack([drawn["n"], -drawn["n"]], 1))


def test_draws_from_the_replay_are_uniform():
    replay = add_to_replay(empty_replay(jnp.int32(0), 8), jnp.arange(5))
    counts = np.bincount(draw(jax.random.key(1), replay, 5000), minlength=5)
    # Five standard deviations of a binomial count.
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(5000 * 0.2 * 0.8)


@pytest.mark.parametrize("number", [6, 9, 17, 40])
def test_runs_from_the_replay_are_of_one_stream_and_uniform(number):
    """Two streams by turns in a circle of 17: also where it has gone round, and where runs straddle its end."""
    length, stride, capacity = 3, 2, 17
    replay = empty_replay(jnp.int32(0), capacity)
    for item in range(number):
        replay = put(replay, jnp.array([item], jnp.int32))
    drawn = np.asarray(jax.jit(lambda key: sample_runs(key, replay, 8000, length, stride=stride))(jax.random.key(2)))
    np.testing.assert_array_equal(np.diff(drawn, axis=1), stride)
    firsts = np.arange(max(0, number - capacity), number - stride * (length - 1))
    counts = np.bincount(drawn[:, 0], minlength=number)
    assert counts.sum() == counts[firsts].sum()
    expected = 8000 / len(firsts)
    assert np.abs(counts[firsts] - expected).max() < 5 * np.sqrt(expected)


def test_several_steps_by_hand():
    rewards = jnp.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    done = jnp.array([[False, False, False], [False, True, False], [False, False, True]])
    observations = jnp.arange(18.0).reshape(3, 3, 2)
    run = Transition(observations, jnp.arange(9).reshape(3, 3), rewards, done, observations + 100)
    one = n_step_transition(run, 0.5)
    # What comes after the end of an episode is another's.
    np.testing.assert_allclose(one.reward, [3.0, 2.0, 3.0])
    assert one.done.tolist() == [False, True, True] and one.action.tolist() == [0, 3, 6]
    np.testing.assert_array_equal(one.observation, observations[:, 0])
    np.testing.assert_array_equal(one.next_observation, observations[:, 2] + 100)


def test_refuses_more_than_the_replay_holds():
    with pytest.raises(ValueError, match="cannot take 5 items"):
        add_to_replay(empty_replay(jnp.int32(0), 4), jnp.arange(5))
    with pytest.raises(ValueError, match="capacity"):
        empty_replay(jnp.int32(0), 0)
    with pytest.raises(ValueError, match="capacity 4 never holds a run of 3 items, 2 apart"):
        sample_runs(jax.random.key(0), empty_replay(jnp.int32(0), 4), 1, 3, stride=2)


@pytest.mark.parametrize("temperature", [0.03, 1.0, 20.0])
def test_the_policy_is_boltzmanns(temperature):
    values = np.random.default_rng(0).normal(0, 1, [5, 27])
    found = softmax_policy(jnp.asarray(values, jnp.float32), temperature)
    np.testing.assert_allclose(found, softmax(values / temperature, -1), rtol=2e-4, atol=1e-7)


def test_the_policy_is_greedy_when_cold_and_uniform_when_hot():
    values = jnp.array([1.0, 3.0, 3.0, -1e9])
    for cold in (0.0, 1e-8):
        np.testing.assert_allclose(softmax_policy(values, cold), [0, 0.5, 0.5, 0])
    np.testing.assert_allclose(softmax_policy(values, float("inf")), [0.25] * 4)
    # The same under jit, where the temperature is not known; nothing is NaN.
    np.testing.assert_allclose(jax.jit(softmax_policy)(values, 0.0), [0, 0.5, 0.5, 0])
    with pytest.raises(ValueError, match="temperature of 0 or more"):
        softmax_policy(values, -1.0)


def test_the_double_target_by_hand():
    reward, done = jnp.array([1.0, 1.0, -2.0]), jnp.array([False, True, False])
    target = jnp.array([[5.0, 2.0], [7.0, 7.0], [0.0, 4.0]])
    online = jnp.array([[0.0, 1.0], [0.0, 1.0], [3.0, 2.0]])
    # The online network chooses actions 1, 1 and 0, the target network says what they are worth: 2, nothing, 0.
    np.testing.assert_allclose(q_target(reward, done, target, online, discount=0.5), [2.0, 1.0, -2.0])
    np.testing.assert_allclose(q_target(reward, done, target, discount=0.5), [3.5, 1.0, 0.0])


def exact_chain_values(length, slip, near, far, discount, steps_ahead=1):
    """Value iteration on the chain's table until it stands still; between the first and the last action, uniform."""

    def worth(after):
        """Values of both actions where what comes after each place is worth so much."""
        after, places = np.append(after, 0.0), np.arange(length)
        right = np.where(places == length - 1, far, 0.0) + discount * after[places + 1]
        left = np.where(places == 0, near, 0.0) + discount * after[np.maximum(places - 1, 0)]
        return np.stack([(1 - slip) * left + slip * right, (1 - slip) * right + slip * left], 1)

    values = np.zeros([length, 2])
    for _ in range(2000):
        after = values.max(1)
        for _ in range(steps_ahead - 1):
            after = worth(after).mean(1)
        values = worth(after)
    return values


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"slip": 0.2, "near": 0.05}, {}),
        ({"slip": 0.2, "near": 0.05}, {"steps_ahead": 3, "temperature": 1e6}),
        pytest.param(
            {"slip": 0.0, "near": 0.1},
            {"target_rate": 1.0, "target_every": 20, "double": False},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_q_learning_finds_the_values_of_a_chain(options, changed):
    ahead = changed.get("steps_ahead", 1)
    discount, exact = 0.9, exact_chain_values(5, **{"far": 1.0, **options}, discount=0.9, steps_ahead=ahead)
    model = mlp(2, hidden=())
    learner = dqn(
        chain(5, **options),
        model,
        optax.sgd(optax.exponential_decay(1.0, 1000, 0.5)),
        discount=discount,
        capacity=20000,
        batch_size=128,
        updates=4,
        **{"target_rate": 0.05, "temperature": 1.0, **changed},
    )
    state, metrics = train_dqn(learner, 1000)
    found = values_of_model(model, state, jnp.eye(5))
    np.testing.assert_allclose(found, exact, atol=0.05)
    # Two ways may be worth all but the same.
    assert (exact[np.arange(5), found.argmax(1)] > exact.max(1) - 0.05).all()
    assert not np.asarray(metrics["failed"]).any() and np.isfinite(metrics["loss"]).all()


def test_a_bandits_values_and_how_often_each_arm_is_pulled():
    means, temperature = np.array([0.1, 0.9, 0.5]), 0.4
    model = mlp(3, hidden=())
    options = {"temperature": temperature, "batch_size": 256, "updates": 2, "num_environments": 16, "capacity": 8000}
    learner = dqn(bandit(means.tolist(), noise=0.3), model, optax.sgd(0.3), **options)
    state, metrics = train_dqn(learner, 500)
    found = values_of_model(model, state, jnp.ones([1, 1]))[0]
    np.testing.assert_allclose(found, means, atol=0.06)
    assert np.asarray(metrics["done"]).all()
    # The second half of the replay was drawn by the policy of values that were found by then.
    pulled = np.bincount(np.asarray(state.replay.items.action[4000:]), minlength=3) / 4000
    np.testing.assert_allclose(pulled, softmax(means / temperature), atol=0.05)


def test_a_seed_decides_what_is_lived_through_and_learned():
    options = {"temperature": 0.4, "batch_size": 8, "num_environments": 4, "capacity": 40}
    learner = dqn(bandit([0.1, 0.9], noise=0.3), mlp(2, hidden=(4,)), optax.sgd(0.3), **options)
    states = (train_dqn(learner, 12, seed)[0] for seed in (0, 0, 1))
    first, again, other = (jax.tree.leaves((state.params, state.replay.items)) for state in states)
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert any((one != another).any() for one, another in zip(first, other, strict=True))


def test_a_policy_draws_with_its_probabilities():
    learner = dqn(bandit([0.0] * 4), mlp(4, hidden=()), optax.sgd(0.1))
    state = jax.jit(learner.init)(jax.random.key(0), ())
    values = values_of_model(mlp(4, hidden=()), state, jnp.ones([1, 1]))[0]
    draw = jax.jit(jax.vmap(lambda key: learner.policy(state.params, 0.5)(jnp.ones(1), key)))
    shares = np.bincount(draw(jax.random.split(jax.random.key(1), 20000)), minlength=4) / 20000
    np.testing.assert_allclose(shares, softmax(values / 0.5), atol=0.02)


def test_the_target_network_waits_or_follows():
    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    def lived(iterations, **options):
        learner = dqn(bandit([1.0]), mlp(1, hidden=()), optax.sgd(0.1), **options)
        iterate, states = jax.jit(learner.iterate), [jax.jit(learner.init)(jax.random.key(0), ())]
        for _ in range(iterations):
            states.append(iterate(states[-1], ())[0])
        return [(flat(state.params), flat(state.target)) for state in states]

    (begin, _), _, (params, target), (copied, target_after) = lived(3, target_rate=1.0, target_every=3)
    np.testing.assert_array_equal(target, begin)
    assert (params != begin).all()
    np.testing.assert_array_equal(target_after, copied)
    (begin, _), (params, target) = lived(1, target_rate=0.25)
    np.testing.assert_allclose(target, 0.75 * begin + 0.25 * params, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"discount": 1.1}, "discount"),
        ({"target_rate": -0.1}, "target_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"steps_ahead": 0}, "steps_ahead"),
        ({"capacity": 20, "num_environments": 8, "steps_ahead": 3}, "capacity"),
        ({"capacity": 4}, "capacity"),
        ({"capacity": 20, "learn_after": 30}, "capacity"),
    ],
)
def test_refuses_q_learning_that_cannot_be(changed, message):
    with pytest.raises(ValueError, match=message):
        dqn(bandit([0.0]), mlp(1), optax.sgd(0.1), **changed)


def test_refuses_a_model_of_other_actions():
    with pytest.raises(ValueError, match="each of the 2 actions"):
        dqn(bandit([0.0, 1.0]), mlp(3, hidden=()), optax.sgd(0.1)).init(jax.random.key(0), ())
