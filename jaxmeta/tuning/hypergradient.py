"""Hyper-parameters that are tuned while a classifier trains, by the gradient of its validation loss.

Training goes on in rounds of a few steps. After each, the validation loss is differentiated through the steps of the
round with respect to what decides on the hyper-parameters, which then takes a step of its own. The parameters are
never set back to the start: one training is all there is.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxmeta.base import Key, MetaGrad, PyTree
from jaxmeta.inner import inner_loop, meta_grad
from jaxmeta.metagrad import check_count
from jaxmeta.tuning.meta_network import HyperController, training_features
from jaxmeta.tuning.training import Hypers, hyper_sgd
from jaxmeta.tuning.trees import all_finite, average_of_rounds, choose

ValidationLoss = Callable[[PyTree, PyTree, Key], jax.Array]


class TuneState(NamedTuple):
    """A training that is being tuned, between two rounds: arrays only.

    Attributes:
      round: Rounds so far, int32 scalar.
      params: Of the classifier.
      average: The parameters that are judged and meant to be used: their mean over the last rounds, or the same again.
      opt_state: Of its optimiser.
      loss: On validation data after the last round that did not diverge; infinite before the first.
      theta: What decides on the hyper-parameters.
      meta_opt_state: Of the optimiser of theta.
      diverged: Rounds that diverged and were undone, int32 scalar.
      skipped: Rounds without a step of theta, those included, int32 scalar.
    """

    round: jax.Array
    params: PyTree
    average: PyTree
    opt_state: PyTree
    loss: jax.Array
    theta: PyTree
    meta_opt_state: PyTree
    diverged: jax.Array
    skipped: jax.Array


class TuneRound(NamedTuple):
    """What happened in a round, scalars.

    Attributes:
      loss: On validation data after it; infinite if it diverged.
      hypers: The values that were used; without those of examples.
      grad_norm: Of the hypergradient; 0 where it could not be used.
      diverged: Whether it was undone.
      skipped: Whether theta took no step by the hypergradient.
    """

    loss: jax.Array
    hypers: Hypers
    grad_norm: jax.Array
    diverged: jax.Array
    skipped: jax.Array


class Tuner(NamedTuple):
    """Tuning of one training, as pure functions.

    Attributes:
      init: `(key, params) -> TuneState`.
      gradient: `(state, training, validation, key, progress) -> (validation loss, TrainedRound), hypergradient`.
      step: `(state, training, validation, key, progress) -> TuneState, TuneRound`.
    """

    init: Callable[[Key, PyTree], TuneState]
    gradient: Callable
    step: Callable


class TrainedRound(NamedTuple):
    """What a round leads to: as in `TuneState`, with the values that were used and the losses `[steps]` in it."""

    params: PyTree
    average: PyTree
    opt_state: PyTree
    hypers: Hypers
    losses: jax.Array


def hypergradient(
    objective: Callable,
    validation_loss: ValidationLoss,
    controller: HyperController,
    meta_optimizer: optax.GradientTransformation,
    *,
    num_steps: int = 10,
    metagrad: MetaGrad | None = None,
    optimizer: Callable[[Hypers], optax.GradientTransformation] = hyper_sgd,
    max_loss: float = float("inf"),
    max_rise: float = float("inf"),
    averaged_rounds: int = 0,
) -> Tuner:
    """Tune hyper-parameters online, by the gradient of the validation loss through the last steps of training.

    `theta <- theta - meta_rate d/dtheta L_validation(phi_k)`, `phi_{t+1} = step(phi_t, hypers(theta, features(phi_0)))`

    Over a few steps the surest way to a lower loss is to stop the noise of mini-batches, by learning rates that are far
    too small for what is still to come. With `averaged_rounds` the loss is that of the mean of the parameters over
    rounds, which has less of that noise: the rates stay as large as makes progress.

    A round diverges when a loss in it, the validation loss, a parameter or a number of the optimiser's state is not
    finite, a loss is above `max_loss`, or the validation loss has risen by more than `max_rise`. Then the parameters
    stay what they were before it, theta takes no step by its gradient but the controller's retreat to smaller learning
    rates, and the round is counted. With a finite loss and a hypergradient that is not finite, training goes on and
    theta stays.

    Args:
      objective: `(params, hypers, (), training, key) -> scalar, aux`, as `training_objective` makes it.
      validation_loss: `(params, data, key) -> scalar`, as `validation_loss_of` makes it. Features of training data are
        taken by it too.
      controller: From `learned_values`, `meta_network` or `reweighting`.
      meta_optimizer: Of theta. Hypergradients are noisy and of very different sizes: `optax.adam`, for one.
      num_steps: Training steps in a round, k.
      metagrad: How they are differentiated; `unrolled()` if None. `truncated(j)` differentiates the last j only, at
        less cost. `implicit()` knows what the objective depends on, and refuses what acts in the step: learning
        rates, momentum and the weight decay of `hyper_sgd`. `first_order()` knows these only.
      optimizer: `hypers -> optax transformation`.
      max_loss: A loss above it counts as diverged. A network of rectified units that has been blown up comes back to
        the loss of guessing and never moves again: one and a half times that loss is a good bound, also in the step
        that blows it up.
      max_rise: So does a validation loss that is higher by more than that than after the round before.
      averaged_rounds: Rounds that count in the mean that is judged, by `average_of_rounds`; 0 judges the parameters as
        they are. Not for `implicit()`, to which there is but one solution.

    Returns:
      A `Tuner`, to be run by `tune`.

    Raises:
      ValueError: less than one step in a round, a bound that is not above 0, a negative number of rounds.

    Example:
      >>> from jaxmeta.tuning import Range, learned_values
      >>> def loss(params, data, key):
      ...     return 0.5 * (params - data) ** 2
      >>> controller = learned_values({"learning_rate": Range(1e-3, 1.0)}, Hypers(0.01))
      >>> tuner = hypergradient(
      ...     lambda params, hypers, state, data, key: (loss(params, data, key), ()),
      ...     loss, controller, optax.adam(0.1), num_steps=2
      ... )
      >>> state = tuner.init(jax.random.key(0), jnp.zeros(()))
      >>> state, rounds = tune(tuner, state, 1.0, 1.0, jax.random.key(1), num_rounds=5)
      >>> bool(rounds.hypers.learning_rate[-1] > rounds.hypers.learning_rate[0])  # it was too small
      True

    Source: Baydin et al., 2018, arXiv 1703.04782 (one step, learning rates); Luketina et al., 2016, arXiv 1511.06727
    (one step, regularisation); Franceschi et al., 2017, arXiv 1703.01785 (k steps); Lorraine, Vicol and Duvenaud, 2020,
    arXiv 1911.02590 (implicit).
    """
    check_count("hypergradient", "num_steps", num_steps, 1)
    if not (max_loss > 0 and max_rise > 0):
        raise ValueError(
            f"hypergradient needs max_loss > 0 and max_rise > 0; given {max_loss} and {max_rise}. "
            "Leave them out for no bound."
        )
    check_count("hypergradient", "averaged_rounds", averaged_rounds, 0)
    record = ("loss", "phi") if averaged_rounds else ("loss",)
    solve = inner_loop(objective, optimizer, num_steps, metagrad, record=record)

    def init(key, params):
        theta = controller.init(key)
        # The state of an optimiser has the same shape for any values: those at no progress will do.
        features = training_features(lambda params: jnp.zeros(()), params, 0.0)
        opt_state = optimizer(controller.hypers(theta, features)).init(params)
        none = jnp.int32(0)
        loss = jnp.full((), jnp.inf, jnp.result_type(*jax.tree.leaves(params)))
        return TuneState(none, params, params, opt_state, loss, theta, meta_optimizer.init(theta), none, none)

    def gradient(state: TuneState, training, validation, key, progress=0.0):
        key_features, key_round = jax.random.split(key)

        def loss_now(params):
            return validation_loss(params, training, key_features)

        features = training_features(loss_now, state.params, progress)

        def train_round(start, theta, empty, data, key):
            hypers = controller.hypers(theta, features)
            first = state.round * num_steps
            result = solve(start, hypers, empty, data, key, opt_state=state.opt_state, first_step=first)
            average, recorded = result.phi, result.per_step or {}
            if averaged_rounds:
                counted = state.round - state.diverged
                average = average_of_rounds(state.average, recorded["phi"], counted, averaged_rounds)
            return result._replace(phi=TrainedRound(result.phi, average, result.opt_state, hypers, recorded["loss"]))

        def outer(trained: TrainedRound, theta, empty, data, key):
            return validation_loss(trained.average, data, key), trained

        through = meta_grad(outer, train_round, start=lambda theta: state.params)
        return through(state.theta, (), training, validation, key_round)

    def step(state: TuneState, training, validation, key, progress=0.0):
        (loss, trained), grads = gradient(state, training, validation, key, progress)
        highest = jnp.maximum(loss, trained.losses.max())
        healthy = all_finite((trained.params, trained.opt_state, highest)) & (highest <= max_loss)
        healthy &= loss - state.loss <= max_rise
        usable = healthy & all_finite(grads)
        updates, meta_opt_state = meta_optimizer.update(grads, state.meta_opt_state, state.theta)
        theta = choose(healthy, state.theta, controller.retreat(state.theta))
        theta = choose(usable, optax.apply_updates(state.theta, updates), theta)
        reached = (*trained[:3], loss.astype(state.loss.dtype))
        params, average, opt_state, loss_now = choose(healthy, reached, state[1:5])
        meta_opt_state = choose(usable, meta_opt_state, state.meta_opt_state)
        counts = state.diverged + ~healthy, state.skipped + ~usable
        new_state = TuneState(state.round + 1, params, average, opt_state, loss_now, theta, meta_opt_state, *counts)
        report = TuneRound(
            jnp.where(healthy, loss, jnp.inf),
            trained.hypers._replace(example_weights=None),
            jnp.where(usable, optax.tree.norm(grads), 0.0),
            ~healthy,
            ~usable,
        )
        return new_state, report

    return Tuner(init, gradient, step)


def tune(
    tuner: Tuner,
    state: TuneState,
    training: PyTree,
    validation: PyTree,
    key: Key,
    *,
    num_rounds: int,
    total_rounds: int | None = None,
) -> tuple[TuneState, TuneRound]:
    """Run rounds of training and tuning as one scan; jit it, and map it over keys and states for several seeds.

    Args:
      tuner: From `hypergradient`.
      state: From `tuner.init`, or where an earlier call stopped.
      training: What the objective takes as its data, a `Batch` of the whole training set.
      validation: What the validation loss takes. Never the test data.
      key: Source of randomness; the same for the parts of a run that is continued.
      num_rounds: Rounds to run.
      total_rounds: Rounds of the whole run, where these are a part of it; the rounds before and these if None. Over
        them goes the progress, which a `meta_network` sees, from 0 to 1: give it where a run will be continued.

    Returns:
      The state after them, and of each round what happened, leaves `[num_rounds]`.

    Raises:
      ValueError: less than one round, or (outside `jit`) fewer in all than there will have been.

    Example:
      >>> from jaxmeta.tuning import learned_values
      >>> def loss(params, data, key):
      ...     return (params - data) ** 2
      >>> objective = lambda params, hypers, state, data, key: (loss(params, data, key), ())
      >>> tuner = hypergradient(objective, loss, learned_values({}, Hypers(9.0)), optax.sgd(1.0), max_loss=100.0)
      >>> state = tuner.init(jax.random.key(0), jnp.ones(()))
      >>> state, rounds = tune(tuner, state, 0.0, 0.0, jax.random.key(1), num_rounds=3)
      >>> int(state.diverged), float(state.params), rounds.loss.tolist()
      (3, 1.0, [inf, inf, inf])
    """
    check_count("tune", "num_rounds", num_rounds, 1)
    end = state.round + num_rounds
    total = end if total_rounds is None else total_rounds
    if not isinstance(end, Tracer) and end > total:
        raise ValueError(
            f"tune was given {num_rounds} rounds after {state.round}, more than total_rounds={total}, of the whole run."
        )

    def body(state: TuneState, _):
        return tuner.step(state, training, validation, jax.random.fold_in(key, state.round), state.round / total)

    return jax.lax.scan(body, state, length=num_rounds)
