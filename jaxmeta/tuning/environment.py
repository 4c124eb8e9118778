"""Markov decision processes as pure functions, how one is lived through, and two small ones whose values are known.

    state_0 = reset(key, data),   (state_{t+1}, r_t, done_t) = step(state_t, a_t, data),   o_t = observe(state_t)

A state carries the key of its own randomness, so that an episode is a function of the key of its reset and the
actions. What all episodes share (the images of `training_environment`) is handed in as data: under `vmap` over many
environments it stays one copy.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.base import Key, PyTree
from jaxmeta.metagrad import check_count
from jaxmeta.tuning.trees import choose


class Outcome(NamedTuple):
    """What a step of an environment leads to, beside the next state.

    Attributes:
      reward: A finite number.
      done: Whether the episode has ended.
      failed: Whether it ended because what is controlled broke down: a training that diverged.
    """

    reward: jax.Array
    done: jax.Array
    failed: jax.Array


class Environment(NamedTuple):
    """A Markov decision process as pure functions of ONE episode; `vmap` runs many.

    Attributes:
      reset: `(key, data) -> state`, the first of an episode.
      step: `(state, action, data) -> state, Outcome`; the action is an int32 in [0, num_actions). After `done` it is
        not called again.
      observe: `(state) -> [features]`, what a policy sees.
      num_actions: How many there are.
    """

    reset: Callable[[Key, Any], PyTree]
    step: Callable[[PyTree, jax.Array, Any], tuple[PyTree, Outcome]]
    observe: Callable[[PyTree], jax.Array]
    num_actions: int


class Trace(NamedTuple):
    """An episode step by step, `[num_steps, ...]`; after its end `real` is False and rewards are 0."""

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    failed: jax.Array
    real: jax.Array


Policy = Callable[[jax.Array, Key], jax.Array]


def rollout(
    environment: Environment, policy: Policy, state: PyTree, data: PyTree, key: Key, num_steps: int
) -> tuple[PyTree, Trace]:
    """Live through an episode, from a state to its end: `a_t ~ policy(observe(state_t))`.

    Args:
      environment: The environment.
      policy: `(observation, key) -> action`.
      state: Where to begin; from `environment.reset`.
      data: As for the environment.
      key: Of the policy's randomness.
      num_steps: Steps at most.

    Returns:
      The last state, and a `Trace`.

    Example:
      >>> import jax
      >>> arms = bandit([0.0, 1.0])
      >>> state = arms.reset(jax.random.key(0), ())
      >>> _, trace = rollout(arms, lambda observation, key: jnp.int32(1), state, (), jax.random.key(1), 3)
      >>> trace.reward.tolist(), trace.real.tolist()
      ([1.0, 0.0, 0.0], [True, False, False])
    """

    def one(carry, index):
        state, ended = carry
        observation = environment.observe(state)
        action = policy(observation, jax.random.fold_in(key, index))
        new, (reward, done, failed) = environment.step(state, action, data)
        state = choose(ended, state, new)
        trace = Trace(observation, action, jnp.where(ended, 0.0, reward), ~ended & failed, ~ended)
        return (state, ended | done), trace

    (state, _), trace = jax.lax.scan(one, (state, jnp.bool_(False)), jnp.arange(num_steps))
    return state, trace


class BanditState(NamedTuple):
    """Whether the one pull is still to come says nothing: there is no state but the key."""

    key: Key


def bandit(means: Sequence[float], *, noise: float = 0.0) -> Environment:
    """Make a bandit: one pull an episode, `r = means[a] + noise N(0, 1)`, so that `Q(a) = means[a]`.

    Args:
      means: The mean reward of each arm.
      noise: Standard deviation of rewards.

    Returns:
      An `Environment` without data; every observation is `[1.0]`.

    Raises:
      ValueError: no arm.

    Example:
      >>> import jax
      >>> arms = bandit([0.0, 0.5])
      >>> _, outcome = arms.step(arms.reset(jax.random.key(0), ()), 1, ())
      >>> float(outcome.reward), bool(outcome.done)
      (0.5, True)
    """
    check_count("bandit", "number of arms", len(means), 1)
    arms = jnp.asarray(means, float)

    def step(state: BanditState, action, data):
        del data
        reward = arms[action] + noise * jax.random.normal(state.key)
        return state, Outcome(reward, jnp.bool_(True), jnp.bool_(False))

    return Environment(lambda key, data: BanditState(key), step, lambda state: jnp.ones([1]), len(means))


class ChainState(NamedTuple):
    """Where one stands, how many steps ago it began, and the episode's key."""

    place: jax.Array
    time: jax.Array
    key: Key


def chain(length: int = 5, *, slip: float = 0.0, near: float = 0.0, far: float = 1.0) -> Environment:
    """Make a chain of places, of which a step to the right of the last one ends the episode.

    Action 1 goes right, action 0 left; with probability `slip` a step goes the other way. Going right from the last
    place pays `far`; going left at the first pays `near` and stays there. All else pays nothing. Episodes begin
    anywhere.

    Args:
      length: Number of places.
      slip: Probability of going the other way, in [0, 1).
      near: The small reward at the beginning.
      far: The reward at the end.

    Returns:
      An `Environment` without data; the observation is the place, one-hot `[length]`.

    Raises:
      ValueError: no place, or a slip that is no probability below 1.

    Example:
      >>> import jax
      >>> places = chain(3)
      >>> state = ChainState(jnp.int32(2), jnp.int32(0), jax.random.key(0))
      >>> _, outcome = places.step(state, 1, ())
      >>> float(outcome.reward), bool(outcome.done)
      (1.0, True)

    Source: Strens, 2000, "A Bayesian Framework for Reinforcement Learning", has the chain that this is a variant of.
    """
    check_count("chain", "length", length, 1)
    if not 0 <= slip < 1:
        raise ValueError(f"chain needs a slip in [0, 1), a probability; given {slip}.")

    def reset(key, data):
        del data
        key_place, key = jax.random.split(key)
        return ChainState(jax.random.randint(key_place, [], 0, length), jnp.int32(0), key)

    def step(state: ChainState, action, data):
        del data
        slipped = jax.random.bernoulli(jax.random.fold_in(state.key, state.time), slip)
        right = (action == 1) != slipped
        done = right & (state.place == length - 1)
        reward = jnp.where(done, far, jnp.where(~right & (state.place == 0), near, 0.0))
        place = jnp.clip(state.place + jnp.where(right, 1, -1), 0, length - 1)
        return ChainState(place, state.time + 1, state.key), Outcome(reward, done, jnp.bool_(False))

    return Environment(reset, step, lambda state: jax.nn.one_hot(state.place, length), 2)
