"""Learners that adapt by gradient steps: which numbers move is a value, and all else is shared.

phi_0 = start(theta);  phi_{t+1} = phi_t - a grad_phi L_support(params(phi_t, theta))
theta <- theta - b grad_theta mean_tasks L_query(params(phi_T, theta))
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.algorithms.adapted import Adapted, check_norm, cycled_batch, metrics_of, over_steps
from jaxmeta.base import Batch, Episode, MetaGrad, MetaLearner, Model, PyTree
from jaxmeta.inner import InnerOptimizer, inner_loop
from jaxmeta.inner.loop import continue_loop
from jaxmeta.losses import CRITERIA, Criterion


class Adaptation(NamedTuple):
    """Which numbers an inner loop moves, and the network that they make.

    Attributes:
      init: `(key, inputs) -> theta, state`.
      start: `theta -> phi`, what the inner loop begins with.
      params: `(phi, theta, index) -> params` of the model, at inner step `index`.
      embeds_once: Whether theta are the model's parameters and no inner step changes its features.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    start: Callable[[PyTree], PyTree]
    params: Callable[[PyTree, PyTree, jax.Array], PyTree]
    embeds_once: bool = False


def gradient_learner(
    model: Model,
    adaptation: Adaptation,
    *,
    inner_optimizer: InnerOptimizer,
    num_steps: int = 1,
    metagrad: MetaGrad | None = None,
    proximal: float = 0.0,
    criterion: Criterion = CRITERIA["classification"],
    norm: str = "transductive",
    log_grad_norms: bool = False,
    batch_size: int | None = None,
    step_weights: Callable[[jax.Array], jax.Array] | None = None,
) -> MetaLearner:
    """Make a learner from an adaptation.

    Args:
      model: The network.
      adaptation: What the inner loop moves.
      inner_optimizer: See `options.GradientOptions`, as for all that follow but the last two.
      num_steps: See there.
      metagrad: See there.
      proximal: See there.
      criterion: See there.
      norm: See there.
      log_grad_norms: See there.
      batch_size: Support examples of an inner step, in a shuffled order over and over; all if None.
      step_weights: `outer step -> [num_steps]`, the share that the query loss after each inner
        step has in the meta-loss; None for the last alone.

    Returns:
      A `MetaLearner`.

    Raises:
      ValueError: for an unknown norm, or an inner loop that the strategy cannot serve.

    Example:
      >>> import optax  # MAML that adapts only the body
      >>> from jaxmeta import conv4
      >>> model = conv4(5)
      >>> body = lambda phi, theta, index: {"body": phi, "head": theta["head"]}
      >>> adaptation = Adaptation(model.init, start=lambda theta: theta["body"], params=body)
      >>> learner = gradient_learner(model, adaptation, inner_optimizer=optax.sgd(0.1))
    """
    check_norm("A learner that adapts by gradients", norm, ("transductive", "inductive"))

    # Mini-batches have statistics of their own.
    head = model.head if adaptation.embeds_once and batch_size is None else None
    apply = model.apply if head is None else head

    def objective(phi, theta, state, data, key):
        support, key_loop, index = data
        batch = support if batch_size is None else cycled_batch(key_loop, support, batch_size, index)
        params = adaptation.params(phi, theta, index)
        outputs, state = apply(params, state, batch.inputs, key=key, train=True, weights=batch.weights)
        return criterion.loss(outputs, batch.targets, batch.weights), state

    def embedded(theta, state, support, key):
        """Give what the loop reads of the support set: its features, if no step changes them."""
        if head is None:
            return support
        # The numbers of the loop's steps are folded into its key too.
        key = jax.random.fold_in(key, 2**31 - 1)
        features, _ = model.embed(theta, state, support.inputs, key=key, train=True, weights=support.weights)
        return support._replace(inputs=features)

    record = ["grad_norm"] * log_grad_norms + ["phi"] * (step_weights is not None)
    options = {"proximal": proximal, "data_at": lambda data, index: (*data, index)}
    solve = inner_loop(objective, inner_optimizer, num_steps, metagrad, record=record, **options)

    def finish(phi, theta, state, support, key, index):
        params = adaptation.params(phi, theta, index)
        if norm == "inductive":
            _, state = model.apply(params, state, support.inputs, key=key, train=True, weights=support.weights)
        return Adapted(params, state)

    def adapt(theta, state, support: Batch, key, *, num_steps=None):
        key_loop, key_statistics = jax.random.split(key)
        data = embedded(theta, state, support, key_loop), key_loop
        result = solve(adaptation.start(theta), theta, state, data, key_loop, num_steps=num_steps)
        return finish(result.phi, theta, state, support, key_statistics, jnp.asarray(result.next_step) - 1)

    def predict(adapted: Adapted, batch: Batch, key):
        del key  # A prediction has no noise: whatever the statistics are, dropout is off.
        options = {"key": None, "train": norm == "transductive", "weights": batch.weights}
        return model.apply(adapted.params, adapted.state, batch.inputs, **options)[0]

    def unroll(theta, state, inner, episode: Episode, key, step, *, num_steps=None):
        support, query = episode
        # One key for `adapt` and one for `predict`, which needs none.
        key_adapt, _ = jax.random.split(key)
        key_loop, key_statistics = jax.random.split(key_adapt)
        start, data = adaptation.start(theta), (embedded(theta, state, support, key_loop), key_loop)
        inner, result = continue_loop(solve, inner, start, theta, state, data, key_loop, num_steps)

        def judged(phi, index):
            adapted = finish(phi, theta, state, support, key_statistics, index)
            outputs = predict(adapted, query, None)
            return criterion.loss(outputs, query.targets, query.weights), (adapted, outputs)

        value, (adapted, outputs) = judged(result.phi, jnp.asarray(result.next_step) - 1)
        metrics, records = metrics_of(criterion, outputs, query), result.per_step or {}
        metrics |= {f"inner_grad_norm_{number}": norm for number, norm in enumerate(records.get("grad_norm", ()), 1)}
        if step_weights is not None:
            value = over_steps(judged, records["phi"], step_weights(step), value)
        return value, (inner, adapted, (adapted.state, metrics))

    def loss(theta, state, episode, key, step):
        value, (_, _, outputs) = unroll(theta, state, None, episode, key, step)
        return value, outputs

    # A part of a loop has not the steps that the weights are for.
    return MetaLearner(adaptation.init, adapt, predict, loss, unroll if step_weights is None else None)
