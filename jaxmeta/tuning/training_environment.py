"""The training of a classifier as a Markov decision process: actions set hyper-parameters, accuracy is the reward.

    s = (phi, optimiser, hyper-parameters),  a in {lower, keep, raise}^n,  k training steps,  r = A(s') - A(s)

A is the accuracy on validation data, so that the rewards of an episode add up to what the training gained.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta.base import Batch, Episode, Key, PyTree
from jaxmeta.inner import inner_loop
from jaxmeta.losses import accuracy, cross_entropy
from jaxmeta.metagrad import check_count, first_order
from jaxmeta.tuning.environment import Environment, Outcome
from jaxmeta.tuning.networks import Network, outputs_in_parts
from jaxmeta.tuning.ranges import Range, raws_of, value_of
from jaxmeta.tuning.training import Hypers, check_domains, check_hypers, hyper_sgd, training_objective
from jaxmeta.tuning.trees import choose

# Observations are of order 1; what explodes is held at this.
LIMIT = 5.0


class Measured(NamedTuple):
    """What training looked like since the last decision.

    Attributes:
      loss: Mean of the mini-batches' losses.
      loss_spread: Their standard deviation.
      grad_norm: Mean norm of the gradients.
      validation_loss: After the last step.
      accuracy: On validation data, after the last step.
    """

    loss: jax.Array
    loss_spread: jax.Array
    grad_norm: jax.Array
    validation_loss: jax.Array
    accuracy: jax.Array


class Training(NamedTuple):
    """A training between two decisions.

    Attributes:
      params: The classifier's parameters.
      opt_state: State of its optimiser.
      decisions: Made so far, int32 scalar.
      shares: `[hyper-parameters]` in [0, 1]: how far through its range each stands.
      now: What was measured last.
      before: What was measured before that.
      task: Features of the data: mean and spread of the images, and how many examples and classes there are.
      diverged: Whether it broke down.
      key: Of the training's mini-batches and noise.
    """

    params: PyTree
    opt_state: PyTree
    decisions: jax.Array
    shares: jax.Array
    now: Measured
    before: Measured
    task: jax.Array
    diverged: jax.Array
    key: Key


def training_environment(
    network: Network,
    ranges: Mapping[str, Range],
    *,
    start: Mapping[str, float] | None = None,
    fixed: Hypers | None = None,
    num_decisions: int = 50,
    steps_between: int = 10,
    batch_size: int = 32,
    levels: int = 10,
) -> Environment:
    """Make the environment in which a classifier is trained and a policy sets how.

    Action `sum_i d_i 3^(n-1-i)` moves hyper-parameter i by `d_i - 1` of the `levels` steps through its range: on a
    logarithmic one a factor `(high / low)^(1 / levels)`. It stops at the ends. `keep_action` moves none.

    A training diverges when its loss, its parameters or its optimiser's state are no longer finite. Its classifier then
    counts as one that guesses: the accuracy is 1 / classes, the reward what that is away from the last one, and the
    episode ends. The state keeps the last finite parameters.

    Args:
      network: The classifier.
      ranges: Which fields of `Hypers` are set, and their ranges.
      start: What each begins as; None: anywhere in its range, drawn for each episode.
      fixed: The other hyper-parameters; None: a learning rate of 0.05 and no regularisation.
      num_decisions: Decisions in an episode.
      steps_between: k, training steps after each.
      batch_size: Examples in a mini-batch.
      levels: Steps through a range from end to end.

    Returns:
      An `Environment` with `3^n` actions. Its data is an `Episode`: support is trained on, query is the validation
      data. Its states are `Training`; the last n features of an observation are the shares.

    Raises:
      ValueError: no range, a range or a start that is none, a name that `Hypers` does not have, a count below 1.

    Example:
      >>> from jaxmeta.tuning import conv_net
      >>> images = Batch(jnp.ones([6, 4, 4, 1]), jnp.zeros([6], jnp.int32), jnp.ones([6]))
      >>> ranges = {"learning_rate": Range(1e-3, 1.0), "momentum": Range(0.0, 0.95, "linear")}
      >>> environment = training_environment(conv_net(3, widths=(2,), hidden=4), ranges, steps_between=1)
      >>> state = environment.reset(jax.random.key(0), Episode(images, images))
      >>> environment.num_actions, environment.observe(state).shape
      (9, (15,))

    Source: Li and Malik, 2016, "Learning to Optimize", arXiv 1606.01885, and Daniel, Taylor and Nowozin, 2016,
    "Learning Step Size Controllers for Robust Neural Network Training", train by reinforcement learning.
    """
    names, fixed = tuple(ranges), Hypers(0.05) if fixed is None else fixed
    _check(ranges, num_decisions, steps_between, levels)
    check_hypers(fixed)
    first = None if start is None else jnp.asarray(shares_of(ranges, start))
    moves = share_moves(len(names), levels)
    # Nothing is differentiated through the steps: their gradients are all that is needed.
    train = inner_loop(
        training_objective(network, batch_size), hyper_sgd, steps_between, first_order(), record=("loss", "grad_norm")
    )

    def hypers_at(shares) -> Hypers:
        return fixed._replace(**values_at(ranges, shares))

    def reset(key, data: Episode) -> Training:
        key_params, key_start, key = jax.random.split(key, 3)
        params = network.init(key_params, data.support.inputs[:1])
        shares = jax.random.uniform(key_start, [len(names)]) if first is None else first
        classes = jax.eval_shape(network.apply, params, data.support.inputs[:1]).shape[-1]
        guess = Measured(jnp.log(classes), jnp.zeros(()), jnp.ones(()), jnp.log(classes), jnp.float32(1 / classes))
        return Training(
            params,
            hyper_sgd(hypers_at(shares)).init(params),
            jnp.int32(0),
            shares,
            guess,
            guess,
            _task_features(data, classes),
            jnp.bool_(False),
            key,
        )

    def step(state: Training, action, data: Episode):
        shares = jnp.clip(state.shares + moves[action], 0, 1)
        result = train(
            state.params,
            hypers_at(shares),
            (),
            data.support,
            state.key,
            opt_state=state.opt_state,
            first_step=state.decisions * steps_between,
        )
        outputs = outputs_in_parts(network, result.phi, data.query.inputs)
        now = _measure(result.per_step, outputs, data.query)
        whole = jnp.stack([optax.tree.norm(result.phi), optax.tree.norm(result.opt_state), *now])
        diverged = ~jnp.isfinite(whole).all()
        # Its other measures stay what they were, finite.
        broken = state.now._replace(accuracy=jnp.float32(1 / outputs.shape[-1]))
        params, opt_state = choose(diverged, (state.params, state.opt_state), (result.phi, result.opt_state))
        now = choose(diverged, broken, now)
        new = state._replace(
            params=params,
            opt_state=opt_state,
            decisions=state.decisions + 1,
            shares=shares,
            now=now,
            before=state.now,
            diverged=diverged,
        )
        done = diverged | (new.decisions >= num_decisions)
        return new, Outcome(now.accuracy - state.now.accuracy, done, diverged)

    def observe(state: Training) -> jax.Array:
        now, before = state.now, state.before
        features = [
            state.decisions / num_decisions,
            jnp.log1p(now.loss),
            now.loss_spread / (now.loss + 1e-3),
            jnp.log1p(now.loss) - jnp.log1p(before.loss),
            jnp.log10(now.grad_norm + 1e-3),
            jnp.log1p(now.validation_loss),
            jnp.log1p(now.validation_loss) - jnp.log1p(now.loss),
            now.accuracy,
            10 * (now.accuracy - before.accuracy),
        ]
        return jnp.concatenate([jnp.clip(jnp.stack(features), -LIMIT, LIMIT), state.task, state.shares])

    return Environment(reset, step, observe, len(moves))


def share_moves(num_hypers: int, levels: int) -> jax.Array:
    """Give how far every action of a `training_environment` moves each hyper-parameter through its range.

    Args:
      num_hypers: n, hyper-parameters that are set.
      levels: Steps through a range from end to end.

    Returns:
      `[3^n, n]`.

    Example:
      >>> share_moves(1, 10).tolist()
      [[-0.10000000149011612], [0.0], [0.10000000149011612]]
    """
    return jnp.asarray(np.indices([3] * num_hypers).reshape(num_hypers, -1).T - 1.0) / levels


def keep_action(environment: Environment) -> int:
    """Name the action that leaves all hyper-parameters of a `training_environment` as they are: the middle one.

    Args:
      environment: From `training_environment`.

    Returns:
      Its number.

    Example:
      >>> from jaxmeta.tuning import conv_net
      >>> keep_action(training_environment(conv_net(), {"learning_rate": Range(1e-3, 1.0)}))
      1
    """
    return environment.num_actions // 2


def values_at(ranges: Mapping[str, Range], shares: jax.Array) -> dict[str, jax.Array]:
    """Find the values so far through their ranges: `low (high / low)^s`, or `low + (high - low) s`.

    Args:
      ranges: By name.
      shares: `[..., hyper-parameters]` in [0, 1], in the order of the ranges.

    Returns:
      The value of each, `[...]`, in its range with both ends.

    Example:
      >>> round(float(values_at({"learning_rate": Range(0.01, 1.0)}, jnp.array([0.5]))["learning_rate"]), 6)
      0.1
    """
    return {
        name: value_of(given, jax.scipy.special.logit(shares[..., place]))
        for place, (name, given) in enumerate(ranges.items())
    }


def shares_of(ranges: Mapping[str, Range], values: Mapping[str, float]) -> jax.Array:
    """Find how far through their ranges values are: the inverse of `values_at`.

    Args:
      ranges: By name.
      values: One for each, strictly within its range.

    Returns:
      `[hyper-parameters]`, in the order of the ranges.

    Raises:
      ValueError: other names, or a value that is not within.

    Example:
      >>> round(float(shares_of({"learning_rate": Range(0.01, 1.0)}, {"learning_rate": 0.1})[0]), 6)
      0.5
    """
    return jax.nn.sigmoid(jnp.stack([raws_of(ranges, values)[name] for name in ranges]))


def _measure(per_step, outputs: jax.Array, validation: Batch) -> Measured:
    losses, norms = per_step["loss"], per_step["grad_norm"]
    judged = cross_entropy(outputs, *validation[1:]), accuracy(outputs, *validation[1:])
    return Measured(losses.mean(), losses.std(), norms.mean(), *judged)


def _task_features(data: Episode, classes: int) -> jax.Array:
    inputs = data.support.inputs
    examples = jnp.log10(jnp.float32(inputs.shape[0])) / 2
    described = jnp.stack([inputs.mean(), inputs.std(), examples, jnp.log(classes) / 2])
    return jnp.clip(jnp.nan_to_num(described), -LIMIT, LIMIT)


def _check(ranges: Mapping[str, Range], num_decisions: int, steps_between: int, levels: int) -> None:
    settable = [name for name in Hypers._fields if name != "example_weights"]
    if not ranges or not set(ranges) <= set(settable):
        raise ValueError(
            f"training_environment needs ranges of one or more of {', '.join(settable)}; given {list(ranges)}."
        )
    check_domains(ranges)
    for name, number in (("num_decisions", num_decisions), ("steps_between", steps_between), ("levels", levels)):
        check_count("training_environment", name, number, 1)
