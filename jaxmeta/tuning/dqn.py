"""Deep Q-networks: the value of every action learned from what was lived through, and a softmax policy over it.

    Q(s, a)  ->  r + discount Q'(s', argmax_a' Q(s', a'))        Q' the target network, its Q averaged over time
    Q(s, a)  ->  sum_{i<n} discount^i r_i + discount^n Q'(s_n, argmax_a' Q(s_n, a'))            n steps ahead
    pi(a | s) = exp(Q(s, a) / T) / sum_a' exp(Q(s, a') / T)      T the temperature

Mnih et al., 2015, "Human-level control through deep reinforcement learning", Nature 518; van Hasselt, Guez and Silver,
2016, "Deep Reinforcement Learning with Double Q-learning", arXiv 1509.06461; several steps: Hessel et al., 2017,
"Rainbow", arXiv 1710.02298.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxmeta.base import Key, Metrics, Model, PyTree
from jaxmeta.metagrad import check_count
from jaxmeta.tuning.environment import Environment, Outcome, Policy
from jaxmeta.tuning.q_targets import Transition, n_step_transition, q_target
from jaxmeta.tuning.replay import Replay, add_to_replay, empty_replay, sample_runs
from jaxmeta.tuning.trees import all_finite, choose


class QState(NamedTuple):
    """Everything the next iteration needs: arrays only.

    Attributes:
      step: Iterations so far, int32 scalar.
      params: Of the Q-network, with its state, which is empty.
      target: Parameters of the target network.
      opt_state: State of the optimiser.
      replay: Of `Transition`s.
      environments: States of the environments, leaves `[environments, ...]`.
      returns: Rewards of each environment's episode so far, not discounted.
      key: The source of all randomness; iteration t uses `fold_in(key, t)`.
    """

    step: jax.Array
    params: PyTree
    target: PyTree
    opt_state: PyTree
    replay: Replay
    environments: PyTree
    returns: jax.Array
    key: Key


class QLearner(NamedTuple):
    """Q-learning in many environments at once, as pure functions.

    Attributes:
      init: `(key, data) -> QState`.
      iterate: `(q_state, data) -> q_state, metrics`: one step of every environment, then updates of the network. Made
        for `jax.lax.scan`. Metrics: `loss`, `skipped` (updates left out because they were not finite), and for each
        environment `reward`, `done`, `failed`, and `return`, which is that of the episode where done.
      policy: `(params, temperature=0.0) -> Policy`.
    """

    init: Callable[..., QState]
    iterate: Callable[..., tuple[QState, Metrics]]
    policy: Callable[..., Policy]


def softmax_policy(values: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Compute the Boltzmann policy: `pi(a | s) = exp(Q(s, a) / T) / sum_a' exp(Q(s, a') / T)`.

    Args:
      values: Q, `[..., actions]`.
      temperature: T, at least 0. At 0 the best actions share all the probability; at infinity all are alike.

    Returns:
      Probabilities `[..., actions]`; a value that is no number counts as the worst.

    Raises:
      ValueError: a negative temperature (looked into outside `jit`).

    Example:
      >>> import jax.numpy as jnp
      >>> softmax_policy(jnp.array([1.0, 3.0]), 0.0).tolist()
      [0.0, 1.0]
    """
    if not isinstance(temperature, Tracer) and not float(temperature) >= 0:
        raise ValueError(f"softmax_policy needs a temperature of 0 or more; given {temperature}.")
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    highest = values.max(-1, keepdims=True)
    # Not the difference where it is 0: of infinite values it would not be a number.
    behind = jnp.where(values == highest, 0.0, values - highest)
    best = (behind == 0).astype(values.dtype)
    warm = jax.nn.softmax(behind / jnp.where(temperature > 0, temperature, 1.0))
    return jnp.where(temperature > 0, warm, best / best.sum(-1, keepdims=True))


def dqn(
    environment: Environment,
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    discount: float = 0.99,
    temperature: float | Callable = 0.1,
    num_environments: int = 8,
    capacity: int = 10000,
    batch_size: int = 64,
    updates: int = 1,
    learn_after: int = 1,
    target_rate: float = 0.01,
    target_every: int = 1,
    double: bool = True,
    steps_ahead: int = 1,
) -> QLearner:
    """Make a deep Q-network that learns while many environments run.

    `params <- optimizer of mean Huber(Q(s, a) - y)`, y from `q_target`; every `target_every` updates
    `target <- (1 - target_rate) target + target_rate params`

    Args:
      environment: What is lived through.
      model: Observations `[examples, features]` to values `[examples, actions]`, without a state: `mlp(num_actions)`.
      optimizer: Of the Q-network.
      discount: In [0, 1].
      temperature: Of the policy while learning; or a function of the iteration, any optax schedule.
      num_environments: Run side by side.
      capacity: Of the replay, in transitions.
      batch_size: Transitions in an update.
      updates: Of the network in an iteration.
      learn_after: Transitions to be had before the first update; `steps_ahead` of every environment at least.
      target_rate: 1 with a `target_every` above 1 copies now and then, as Mnih et al. do; small, it averages.
      target_every: See target_rate.
      double: Whether the online network chooses the next action.
      steps_ahead: n, rewards that are lived through before a value is believed: what is gained late is known sooner.

    Returns:
      A `QLearner`.

    Raises:
      ValueError: a discount or target rate outside [0, 1], a count below 1, a replay smaller than what `steps_ahead`
        iterations or `learn_after` bring; in `init`, a model with a state or with other outputs than there are actions.

    Example:
      >>> from jaxmeta.models import mlp
      >>> from jaxmeta.tuning import bandit
      >>> learner = dqn(bandit([0.0, 1.0]), mlp(2, hidden=()), optax.sgd(0.1), capacity=64)
      >>> start = learner.init(jax.random.key(0), ())
      >>> _, metrics = jax.jit(lambda state: jax.lax.scan(lambda s, _: learner.iterate(s, ()), state, length=5))(start)
      >>> metrics["return"].shape
      (5, 8)

    Source: Mnih et al., 2015, Nature 518; van Hasselt, Guez and Silver, 2016, arXiv 1509.06461.
    """
    for name, share in (("discount", discount), ("target_rate", target_rate)):
        if not 0 <= share <= 1:
            raise ValueError(f"dqn needs a {name} in [0, 1]; given {share}.")
    counts = {"num_environments": num_environments, "batch_size": batch_size, "updates": updates}
    counts |= {"learn_after": learn_after, "target_every": target_every, "steps_ahead": steps_ahead}
    for name, number in counts.items():
        check_count("dqn", name, number, 1)
    # Before there is a run of n in one environment there is nothing to draw.
    learn_after = max(learn_after, steps_ahead * num_environments)
    check_count("dqn", "capacity", capacity, learn_after)
    temperature_at = temperature if callable(temperature) else lambda step: temperature
    observe, reset = jax.vmap(environment.observe), jax.vmap(environment.reset, (0, None))

    def q_values(params, observations):
        return model.apply(*params, observations, train=False)[0]

    def init(key, data):
        key_params, key_reset, key = jax.random.split(key, 3)
        states = reset(jax.random.split(key_reset, num_environments), data)
        observations = observe(states)
        params = model.init(key_params, observations)
        _check_model(params, jax.eval_shape(q_values, params, observations), environment.num_actions)
        example = Transition(observations[0], jnp.int32(0), jnp.float32(0), jnp.bool_(False), observations[0])
        replay, returns = empty_replay(example, capacity), jnp.zeros([num_environments])
        return QState(jnp.int32(0), params, params, optimizer.init(params), replay, states, returns, key)

    def td_loss(params, target, batch: Transition):
        online = q_values(params, batch.next_observation) if double else None
        believed = q_values(target, batch.next_observation)
        goal = q_target(batch.reward, batch.done, believed, online, discount=discount**steps_ahead)
        values = q_values(params, batch.observation)
        chosen = jnp.take_along_axis(values, batch.action[:, None], 1)[:, 0]
        return optax.huber_loss(chosen, jax.lax.stop_gradient(goal)).mean()

    def update(carry, index, replay: Replay, key):
        params, target, opt_state = carry
        key = jax.random.fold_in(key, index)
        # Every iteration stores one transition of each environment.
        batch = n_step_transition(sample_runs(key, replay, batch_size, steps_ahead, stride=num_environments), discount)
        loss, grads = jax.value_and_grad(td_loss)(params, target, batch)
        changes, new_state = optimizer.update(grads, opt_state, params)
        moved = optax.apply_updates(params, changes)
        # One reward that is no number, drawn from the replay, would be the end of the network.
        sound = all_finite((loss, moved, new_state))
        params, opt_state = choose(sound, (moved, new_state), (params, opt_state))
        nearer = optax.incremental_update(params, target, target_rate)
        carry = params, optax.periodic_update(nearer, target, index + 1, target_every), opt_state
        return carry, (jnp.where(sound, loss, 0.0), ~sound)

    def learn(carry, step, replay, key):
        indices = step * updates + jnp.arange(updates)
        carry, (losses, skipped) = jax.lax.scan(lambda c, index: update(c, index, replay, key), carry, indices)
        return carry, losses.mean(), skipped.sum(dtype=jnp.int32)

    def live(state: QState, data, key_act, key_reset):
        """Take one step in every environment; those that end begin anew."""
        observations = observe(state.environments)
        actions = jax.vmap(policy(state.params, temperature_at(state.step)))(
            observations, jax.random.split(key_act, num_environments)
        )
        environments, outcome = jax.vmap(environment.step, (0, 0, None))(state.environments, actions, data)
        seen = Transition(observations, actions, outcome.reward, outcome.done, observe(environments))
        fresh = reset(jax.random.split(key_reset, num_environments), data)
        return jax.vmap(choose)(outcome.done, fresh, environments), outcome, add_to_replay(state.replay, seen)

    def iterate(state: QState, data):
        key_act, key_reset, key_learn = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        outcome: Outcome
        environments, outcome, replay = live(state, data, key_act, key_reset)
        learned = state.params, state.target, state.opt_state
        (params, target, opt_state), loss, skipped = jax.lax.cond(
            replay.count >= learn_after,
            lambda: learn(learned, state.step, replay, key_learn),
            lambda: (learned, jnp.zeros(()), jnp.int32(0)),
        )
        returns = state.returns + outcome.reward
        metrics = {"loss": loss, "skipped": skipped, "return": returns, **outcome._asdict()}
        returns = jnp.where(outcome.done, 0.0, returns)
        return QState(state.step + 1, params, target, opt_state, replay, environments, returns, state.key), metrics

    def policy(params, temperature=0.0) -> Policy:
        def act(observation, key):
            probabilities = softmax_policy(q_values(params, observation[None])[0], temperature)
            return jax.random.categorical(key, jnp.log(probabilities))

        return act

    return QLearner(init, iterate, policy)


def _check_model(params, values, num_actions: int) -> None:
    if jax.tree.leaves(params[1]):
        raise ValueError("dqn needs a model without a state, as mlp is; given one with normalisation statistics.")
    if values.shape[1:] != (num_actions,):
        raise ValueError(
            f"dqn needs one output for each of the {num_actions} actions; the model's are {list(values.shape[1:])}."
        )
