"""How a learned optimiser is trained: classifiers that it trains are the tasks, their losses the meta-loss.

What is made here is a `MetaLearner`, so that every estimator (`exact`, `pes`, ...) and the train step serve.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.algorithms.adapted import Adapted, mini_batch
from jaxmeta.base import Batch, Episode, Key, MetaGrad, MetaLearner, Model, PyTree
from jaxmeta.inner import inner_loop
from jaxmeta.inner.loop import Unfinished, continue_loop
from jaxmeta.losses import CRITERIA, Criterion
from jaxmeta.metagrad import check_count

JUDGED_ON = ("training", "validation")


class Trained(NamedTuple):
    """A training between two of its steps.

    Attributes:
      loop: The parameters, the optimiser's state and the number of steps so far.
      fixed: The network's state, drawn with its parameters: what of a task is not trained.
    """

    loop: Unfinished
    fixed: PyTree


def optimizer_learner(
    model: Model,
    transform: Callable[[PyTree], optax.GradientTransformation],
    *,
    init: Callable[[Key], PyTree],
    num_steps: int,
    num_unrolls: int = 1,
    truncate: bool = False,
    batch_size: int | None = None,
    metagrad: MetaGrad | None = None,
    judged_on: str = "training",
    ceiling: float = 10.0,
    log_above: float | None = None,
    criterion: Criterion = CRITERIA["classification"],
) -> MetaLearner:
    """Make the learner whose meta-parameters are an optimiser, and whose tasks are trainings.

    `min over theta of E_task [mean over unrolls of L]`, `phi_{t+1} = phi_t + update(grad L_batch(phi_t); theta)`, L
    being either the mean of the training losses met in an unroll or the validation loss at its end.

    phi begins anew in each task, drawn by the model from the key. A training of T steps is divided into unrolls of
    num_steps: all in one, `exact()` differentiates it to the end; in several with `truncate=True` it forgets in each
    what was before (truncated back-propagation through time); `pes(num_unrolls=...)` takes one in each outer step.
    A `metagrad` such as `truncated(k)` works within each unroll.

    Losses above the ceiling, and those that are no numbers, count as the ceiling: a training that diverges is the worst
    of outcomes and not a NaN. Its gradient may still be one: `skip_diverged(exact())` leaves that task out.

    Args:
      model: The network that is trained; its state is drawn with its parameters and stays, see `varied_mlp`.
      transform: `theta -> optimiser`: `transform` of a `LearnedOptimizer`, or `lambda rate: optax.adam(rate)`.
      init: `(key) -> theta`.
      num_steps: Training steps of an unroll.
      num_unrolls: Unrolls of a training, in `loss` and `adapt`; `unroll` takes one.
      truncate: Whether the gradient stops between two unrolls.
      batch_size: Support examples of a training step, drawn anew in each; all if None.
      metagrad: How an unroll is differentiated; `unrolled()` if None.
      judged_on: "training": the mean loss of the mini-batches before each step; "validation": the loss of the query set
        at the end of an unroll.
      ceiling: The greatest loss that counts.
      log_above: None for the losses themselves, of which those of the first steps are most of the mean. A number c for
        `log(L + c)`: halving a loss counts alike, early and late, down to losses of about c.
      criterion: What a training minimises.

    Returns:
      A `MetaLearner`. Its metrics: `training_loss` and `validation_loss` (bounded as the meta-loss is) and `diverged`,
      1 where either was at the ceiling at the end. `adapt` trains num_steps x num_unrolls steps if no number is given.

    Raises:
      ValueError: for numbers of steps or unrolls below 1, another judged_on, a ceiling that is not positive, and where
        `inner_loop` refuses.

    Example:
      >>> from jaxmeta.base import example_batch
      >>> from jaxmeta.models import mlp
      >>> from jaxmeta.tuning import mlp_optimizer
      >>> optimizer = mlp_optimizer(hidden=(4,))
      >>> learner = optimizer_learner(mlp(2, hidden=(3,)), optimizer.transform, init=optimizer.init, num_steps=5)
      >>> data = example_batch(jnp.array([[0.0], [1.0]]), jnp.array([0, 1]))
      >>> theta, state = learner.init(jax.random.key(0), data.inputs)
      >>> loss, (_, metrics) = learner.loss(theta, state, Episode(data, data), jax.random.key(1), 0)
      >>> loss.shape, sorted(metrics)
      ((), ['diverged', 'training_loss', 'validation_loss'])

    Source: Andrychowicz et al., 2016, arXiv 1606.04474 (the sum of the losses along the way); Metz, Maheswaranathan,
    Nixon, Freeman and Sohl-Dickstein, 2019, arXiv 1810.10180 (validation losses, and what long unrolls do).
    """
    check_count("optimizer_learner", "num_steps", num_steps, 1)
    check_count("optimizer_learner", "num_unrolls", num_unrolls, 1)
    if judged_on not in JUDGED_ON:
        raise ValueError(f"optimizer_learner needs judged_on={' or '.join(map(repr, JUDGED_ON))}; given {judged_on!r}.")
    if not 0 < ceiling < float("inf"):
        raise ValueError(f"optimizer_learner needs a ceiling above 0 and finite; given {ceiling}.")

    def loss_of(phi, fixed, batch: Batch, key):
        outputs, _ = model.apply(phi, fixed, batch.inputs, key=key, train=True, weights=batch.weights)
        return criterion.loss(outputs, batch.targets, batch.weights)

    def objective(phi, theta, fixed, support: Batch, key):
        key_batch, key_noise = jax.random.split(key)
        batch = support if batch_size is None else mini_batch(key_batch, support, batch_size)
        return loss_of(phi, fixed, batch, key_noise), ()

    if log_above is not None and not 0 < log_above < float("inf"):
        raise ValueError(f"optimizer_learner needs log_above > 0, or None; given {log_above}.")
    num_steps_in_all = num_steps * num_unrolls
    solve = inner_loop(objective, transform, num_steps, metagrad, record=("loss",))

    def bounded(loss):
        # Chosen, not the minimum: a NaN is not below anything.
        return jnp.where(loss < ceiling, loss, ceiling)

    def counted(losses):
        return losses.mean() if log_above is None else jnp.log(losses + log_above).mean()

    def begin(theta, support: Batch, key):
        phi, fixed = model.init(key, support.inputs)
        return Trained(Unfinished(phi, transform(theta).init(phi), jnp.int32(0)), fixed)

    def go_on(theta, trained: Trained, support: Batch, key, num_steps):
        loop, result = continue_loop(
            solve, trained.loop, trained.loop.phi, theta, trained.fixed, support, key, num_steps
        )
        return Trained(loop, trained.fixed), (result.per_step or {})["loss"]

    def unroll(theta, state, inner, episode: Episode, key, step, *, num_steps=None):
        del step
        key_begin, key_loop = jax.random.split(key)
        support, query = episode
        inner = begin(theta, support, key_begin) if inner is None else inner
        inner, losses = go_on(theta, inner, support, key_loop, num_steps)
        phi, fixed = inner.loop.phi, inner.fixed
        validation = bounded(loss_of(phi, fixed, query, None))[None]
        # Without a step there is no training loss to speak of.
        training = bounded(losses) if losses.size else validation
        value = counted(training if judged_on == "training" else validation)
        diverged = jnp.asarray(jnp.maximum(training[-1], validation[0]) >= ceiling, value.dtype)
        metrics = {"training_loss": training.mean(), "validation_loss": validation[0], "diverged": diverged}
        return value, (inner, Adapted(phi, fixed), (state, metrics))

    def loss(theta, state, episode: Episode, key, step):
        key_begin, key_unrolls = jax.random.split(key)

        def body(inner, key):
            inner = jax.lax.stop_gradient(inner) if truncate else inner
            value, (inner, _, (_, metrics)) = unroll(theta, state, inner, episode, key, step)
            return inner, (value, metrics)

        inner, keys = begin(theta, episode.support, key_begin), jax.random.split(key_unrolls, num_unrolls)
        if num_unrolls == 1:
            # In a scan the start would look as if it depended on theta, which `truncated` refuses.
            value, metrics = body(inner, keys[0])[1]
            return value, (state, metrics)
        _, (values, metrics) = jax.lax.scan(body, inner, keys)
        metrics = {name: leaf.mean() if name == "training_loss" else leaf[-1] for name, leaf in metrics.items()}
        return values.mean(), (state, metrics)

    def adapt(theta, state, support: Batch, key, *, num_steps=None):
        del state
        key_begin, key_loop = jax.random.split(key)
        total = num_steps_in_all if num_steps is None else num_steps
        trained, _ = go_on(theta, begin(theta, support, key_begin), support, key_loop, total)
        return Adapted(trained.loop.phi, trained.fixed)

    def predict(adapted: Adapted, batch: Batch, key):
        del key  # A prediction has no noise.
        outputs, _ = model.apply(
            adapted.params, adapted.state, batch.inputs, key=None, train=True, weights=batch.weights
        )
        return outputs

    return MetaLearner(lambda key, example_inputs: (init(key), ()), adapt, predict, loss, unroll)
