"""Hyper-parameters that are learned over whole trainings, by the gradient of the loss at the end of each.

Online tuning (`hypergradient`) looks a few steps ahead, and over a few steps the surest gain is to stop the noise of
mini-batches by a rate that is far too small for what is to come. Through a whole training the gradient knows better.
It costs as much as a few trainings, and a few steps of it are enough: what is learned is shared by all rounds.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.base import MetaGrad, PyTree
from jaxmeta.inner import inner_loop
from jaxmeta.metagrad import check_count
from jaxmeta.tuning.hypergradient import ValidationLoss
from jaxmeta.tuning.meta_network import HyperController, training_features
from jaxmeta.tuning.training import Hypers, hyper_sgd
from jaxmeta.tuning.trees import all_finite, average_of_rounds, choose


class WholeTraining(NamedTuple):
    """What a training leads to.

    Attributes:
      params: The parameters that are meant to be used: the mean over the last rounds, or those of the last step.
      hypers: What was used, leaves `[rounds, ...]`; without the weights of examples.
      losses: Before every step, on its mini-batch, `[rounds, steps]`.
    """

    params: PyTree
    hypers: Hypers
    losses: jax.Array


class MetaTrainState(NamedTuple):
    """What is learned over trainings, between two of them.

    Attributes:
      steps: How many so far, int32 scalar; each is of one training from each start.
      theta: What decides on the hyper-parameters of the next.
      best_theta: What did in the trainings with the lowest loss so far: the one to use.
      best_loss: That loss, on validation data; infinite before the first.
      meta_opt_state: Of the optimiser of theta.
      shrunk: What steps of theta are multiplied by: halved whenever one went too far, and a third more after others.
      diverged: Trainings that diverged, int32 scalar.
      skipped: Steps that were not taken, int32 scalar, for that reason or another.
    """

    steps: jax.Array
    theta: PyTree
    best_theta: PyTree
    best_loss: jax.Array
    meta_opt_state: PyTree
    shrunk: jax.Array
    diverged: jax.Array
    skipped: jax.Array


class MetaTrainReport(NamedTuple):
    """What came of the trainings of a step.

    Attributes:
      loss: Their mean loss on validation data, scalar; infinite where one diverged.
      grad_norm: Norm of the gradient that was followed, scalar; 0 where no step was taken.
      losses: Of each start, `[starts]`.
      grad_norms: Of each start, before it is cut to `max_norm`, `[starts]`.
      diverged: Whether each diverged, `[starts]`.
    """

    loss: jax.Array
    grad_norm: jax.Array
    losses: jax.Array
    grad_norms: jax.Array
    diverged: jax.Array


def whole_training(
    objective: Callable,
    features_loss: ValidationLoss,
    controller: HyperController,
    *,
    num_rounds: int,
    num_steps: int = 10,
    averaged_rounds: int = 1,
    optimizer: Callable[[Hypers], optax.GradientTransformation] = hyper_sgd,
    metagrad: MetaGrad | None = None,
) -> Callable[..., WholeTraining]:
    """Make a training in rounds, for each of which the controller sets the hyper-parameters.

    `phi_{t+1} = step(phi_t, hypers(theta, features of the round))`, the same steps as `tune` takes with that theta

    It is differentiable in theta and in the first parameters, to the end and exactly but for one thing: features are
    taken as they are, as observations. Only the beginnings of rounds are kept, the rest is computed again.

    Args:
      objective: `(params, hypers, (), training, key) -> scalar, aux`, as `training_objective` makes it.
      features_loss: `(params, data, key) -> scalar`, the loss that features look at, on training data.
      controller: From `learned_values`, `meta_network` or `reweighting`.
      num_rounds: Rounds of a training.
      num_steps: Steps of a round.
      averaged_rounds: As of `hypergradient`; 0 for the parameters of the last step.
      optimizer: `hypers -> optax transformation`.
      metagrad: How a round is differentiated; `unrolled()` if None.

    Returns:
      `train(theta, params, training, key) -> WholeTraining`.

    Raises:
      ValueError: less than one round or step.

    Example:
      >>> from jaxmeta.tuning import learned_values
      >>> def loss(params, data, key):
      ...     return 0.5 * (params - data) ** 2
      >>> controller = learned_values({}, Hypers(0.5))
      >>> objective = lambda params, hypers, state, data, key: (loss(params, data, key), ())
      >>> train = whole_training(objective, loss, controller, num_rounds=2, num_steps=3, averaged_rounds=0)
      >>> float(train(controller.init(jax.random.key(0)), jnp.zeros(()), 64.0, jax.random.key(1)).params)
      63.0

    Source: Maclaurin, Duvenaud and Adams, 2015, arXiv 1502.03492 (through whole trainings); Micaelli and Storkey, 2021,
    arXiv 2007.07869 (hyper-parameters shared by many steps, few trainings).
    """
    check_count("whole_training", "num_rounds", num_rounds, 1)
    check_count("whole_training", "num_steps", num_steps, 1)
    check_count("whole_training", "averaged_rounds", averaged_rounds, 0)
    record = ("loss", "phi") if averaged_rounds else ("loss",)
    solve = inner_loop(objective, optimizer, num_steps, metagrad, record=record)

    def train(theta, params, training, key):
        @jax.checkpoint
        def one_round(carry, index):
            phi, opt_state, average = carry
            key_features, key_round = jax.random.split(jax.random.fold_in(key, index))
            # As the gradient of a round divides it, so that steps are those of `tune`.
            key_steps, _ = jax.random.split(key_round)

            def loss_now(phi):
                return features_loss(phi, training, key_features)

            hypers = controller.hypers(theta, training_features(loss_now, phi, index / num_rounds))
            first = index * num_steps
            result = solve(phi, hypers, (), training, key_steps, opt_state=opt_state, first_step=first)
            recorded = result.per_step or {}
            average = average_of_rounds(average, recorded["phi"], index, averaged_rounds) if averaged_rounds else ()
            kept = hypers._replace(example_weights=None)
            return (result.phi, result.opt_state, average), (kept, recorded["loss"])

        features = training_features(lambda params: jnp.zeros(()), params, 0.0)
        opt_state = optimizer(controller.hypers(theta, features)).init(params)
        first = (params, opt_state, params if averaged_rounds else ())
        (phi, _, average), (hypers, losses) = jax.lax.scan(one_round, first, jnp.arange(num_rounds))
        return WholeTraining(average if averaged_rounds else phi, hypers, losses)

    return train


def learn_over_trainings(
    train: Callable[..., WholeTraining],
    validation_loss: ValidationLoss,
    controller: HyperController,
    meta_optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule | None = None,
    max_norm: float = float("inf"),
    max_rise: float = float("inf"),
    max_loss: float = float("inf"),
) -> tuple[Callable, Callable]:
    """Learn what decides on the hyper-parameters: a step of theta after a training from each of some starts.

    `theta <- theta - meta_rate mean over starts of cut(d/dtheta L_validation(phi_T(theta)))`

    From one start to another the gradient differs by more than its mean, and near where training blows up that of some
    starts is many times larger than of others: so each is cut to `max_norm` before the mean is taken.

    The best learning rates lie close to those where training blows up, and there a gradient says nothing. So trainings
    whose mean loss is above the best one so far by more than `max_rise` are not followed: theta goes half way back to
    the best, and from there half of the controller's retreat to smaller learning rates, since the best itself may lie
    at the edge; its next steps are smaller, and the optimiser begins anew, for momentum would lead too far again. So it
    is where one of them diverged: its loss on validation data, one on the way or a parameter is not finite, or one of
    those losses is above `max_loss`; before any have ended well, theta retreats twice. From a gradient that is not
    finite nothing is learned. The best loss may have been luck that does not come again: it is taken to be half way to
    each that was too far.

    Args:
      train: From `whole_training`.
      validation_loss: `(params, validation, key) -> scalar`, of the parameters at the end.
      controller: The same as in `train`.
      meta_optimizer: Of theta; one that bounds its steps, such as `optax.adam`. It begins anew after a step too far.
      schedule: What its steps are multiplied by, by their number; 1 if None. One of the optimiser's own would begin
        anew with it.
      max_norm: What the gradient of each start is scaled down to where its global norm is above.
      max_rise: More than chance makes of the mean loss, from some starts to others.
      max_loss: A loss above it counts as diverged.

    Returns:
      `init(theta) -> MetaTrainState` and `step(state, params, training, validation, key) -> MetaTrainState,
      MetaTrainReport`, pure; leaves of params are `[starts, ...]`, trained one after another on the same data. Give
      each step other first parameters and another key: what is learned then serves any.

    Raises:
      ValueError: a bound that is not above 0; at trace time, parameters without starts.

    Example:
      >>> from jaxmeta.tuning import Range, learned_values
      >>> def loss(params, data, key):
      ...     return 0.5 * (params - data) ** 2
      >>> controller = learned_values({"learning_rate": Range(1e-3, 1.0)}, Hypers(0.01))
      >>> objective = lambda params, hypers, state, data, key: (loss(params, data, key), ())
      >>> train = whole_training(objective, loss, controller, num_rounds=2, num_steps=2)
      >>> init, step = learn_over_trainings(train, loss, controller, optax.adam(0.1))
      >>> state = init(controller.init(jax.random.key(0)))
      >>> losses = []
      >>> for trial in range(3):
      ...     state, report = step(state, jnp.array([0.0, -0.5]), 1.0, 1.0, jax.random.key(trial))
      ...     losses.append(float(report.loss))
      >>> losses[0] > losses[1] > losses[2]
      True
    """
    if not (max_norm > 0 and max_rise > 0 and max_loss > 0):
        raise ValueError(
            f"learn_over_trainings needs max_norm > 0, max_rise > 0 and max_loss > 0; given {max_norm}, {max_rise} and "
            f"{max_loss}. Leave them out for no bound."
        )

    def init(theta):
        none, one = jnp.int32(0), jnp.ones(())
        return MetaTrainState(none, theta, theta, jnp.inf * one, meta_optimizer.init(theta), one, none, none)

    def one_start(theta, params, training, validation, key):
        key_training, key_validation = jax.random.split(key)

        def loss_of(theta):
            trained = train(theta, params, training, key_training)
            return validation_loss(trained.params, validation, key_validation), trained

        (loss, trained), grads = jax.value_and_grad(loss_of, has_aux=True)(theta)
        highest = jnp.maximum(loss, trained.losses.max())
        # Of what is not a number, no comparison holds.
        diverged = ~(highest <= max_loss) | ~all_finite((highest, trained.params))
        norm = optax.tree.norm(grads)
        # Without a bound it is 1, and not infinity by infinity where the norm is.
        cut = jnp.where(norm > max_norm, max_norm / norm, 1.0)
        return loss, jax.tree.map(lambda leaf: leaf * cut.astype(leaf.dtype), grads), norm, diverged

    def step(state: MetaTrainState, params, training, validation, key):
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
        starts = {shape[:1] for shape in shapes}
        if len(starts) != 1 or starts & {(), (0,)}:
            raise ValueError(
                f"Parameters are needed from one start or more, leaves [starts, ...]; given leaves of shapes {shapes}. "
                "For one start, add an axis in front: jax.tree.map(lambda leaf: leaf[None], params)."
            )
        keys = jax.random.split(key, starts.pop()[0])
        losses, grads, norms, diverged = jax.lax.map(
            lambda start: one_start(state.theta, start[0], training, validation, start[1]), (params, keys)
        )
        loss = jnp.where(diverged.any(), jnp.inf, losses.mean())
        too_far = diverged.any() | (loss - state.best_loss > max_rise)
        usable = ~too_far & jnp.isfinite(norms).all()
        grads = jax.tree.map(lambda leaf: leaf.mean(0), grads)
        best_theta = choose(loss < state.best_loss, state.theta, state.best_theta)
        half_as_far = jnp.where(too_far & jnp.isfinite(loss), (state.best_loss + loss) / 2, state.best_loss)
        best_loss = jnp.minimum(loss, half_as_far)
        updates, meta_opt_state = meta_optimizer.update(grads, state.meta_opt_state, state.theta)
        half_way = jax.tree.map(lambda now, best: (now + best) / 2, state.theta, best_theta)
        known = jnp.isfinite(best_loss)
        # To smaller rates: from there the gradient leads back, from the edge of what is stable it does not.
        lower = jax.tree.map(lambda now, less: (now + less) / 2, half_way, controller.retreat(half_way))
        back = choose(known, lower, controller.retreat(controller.retreat(state.theta)))
        size = state.shrunk * (1.0 if schedule is None else schedule(state.steps))
        moved = jax.tree.map(lambda now, update: now + size.astype(now.dtype) * update, state.theta, updates)
        theta = choose(usable, moved, choose(too_far, back, state.theta))
        anew = meta_optimizer.init(state.theta)
        meta_opt_state = choose(usable, meta_opt_state, choose(too_far, anew, state.meta_opt_state))
        # While no trainings have ended well, none of its steps was the cause.
        shrunk = jnp.where(too_far & known, state.shrunk / 2, jnp.minimum(4 / 3 * state.shrunk, 1.0))
        counts = state.diverged + diverged.sum(dtype=jnp.int32), state.skipped + ~usable
        report = MetaTrainReport(loss, jnp.where(usable, optax.tree.norm(grads), 0.0), losses, norms, diverged)
        return MetaTrainState(state.steps + 1, theta, best_theta, best_loss, meta_opt_state, shrunk, *counts), report

    return init, step
