"""Search for an architecture by gradients: weights learn from training data, the mixture from validation data."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.base import Batch, Key, MetaGrad, Metrics, PyTree
from jaxmeta.inner import inner_loop, meta_grad
from jaxmeta.metagrad import unrolled
from jaxmeta.tuning.networks import Network
from jaxmeta.tuning.supernet import Supernet
from jaxmeta.tuning.training import Hypers, check_hypers, hyper_sgd, training_objective
from jaxmeta.tuning.trees import all_finite, choose


class SearchState(NamedTuple):
    """A search between two of its steps: arrays only.

    Attributes:
      params: The weights of all networks.
      opt_state: State of their optimiser.
      scores: What the mixture is made of.
      scores_state: State of its optimiser.
      step: Steps taken, int32.
      skipped: Steps of which an update was left out, of the scores or of the weights, since it was not finite; int32.
    """

    params: PyTree
    opt_state: PyTree
    scores: PyTree
    scores_state: PyTree
    step: jax.Array
    skipped: jax.Array


class Search(NamedTuple):
    """A search for an architecture as pure functions.

    Attributes:
      init: `(key, inputs) -> SearchState`.
      step: `(state, training, validation, key) -> state, metrics`: the scores follow their gradient on validation
        data, then the weights theirs on training data; both are a `Batch`, of which mini-batches are drawn.
    """

    init: Callable[..., SearchState]
    step: Callable[[SearchState, Batch, Batch, Key], tuple[SearchState, Metrics]]


def architecture_search(
    every: Supernet,
    hypers: Hypers,
    *,
    batch_size: int,
    scores_optimizer: optax.GradientTransformation | None = None,
    lookahead: int = 1,
    metagrad: MetaGrad | None = None,
) -> Search:
    """Make a search: `min_a L_validation(w - steps of grad_w L_training(w, a), a)`, w going on as it is.

    With a lookahead of 0 the weights are taken as if they did not depend on the mixture: first order. With 1 or more
    the gradient goes through so many training steps, exactly, second derivatives included; not by the difference of
    two gradients, as in the paper. What is not finite, a gradient of the scores or weights after a step, is left out
    and counted: a search of which most steps are skipped has found nothing.

    Args:
      every: All networks.
      hypers: How the weights are trained; label smoothing, augmentation and weights of examples are of training alone,
        the loss on validation data is the plain cross-entropy. There is no dropout in networks that are searched.
      batch_size: Examples in a mini-batch, of training and of validation.
      scores_optimizer: An optax transformation; Adam with 0.01 and the decays 0.5 and 0.999 if None.
      lookahead: Training steps that the gradient of the scores goes through.
      metagrad: How; `unrolled()` if None.

    Returns:
      A `Search`. Its metrics are "loss" (validation), "entropy" of the mixture in nats (0 if all is decided, the mean
      over its rows), and "skipped".

    Raises:
      ValueError: a lookahead below 0, a dropout, and as `check_hypers` and `inner_loop`.

    Example:
      >>> from jaxmeta.tuning import Space, supernet
      >>> every = supernet(Space(cells=1, widths=(2, 4)), 3)
      >>> search = architecture_search(every, Hypers(0.1, momentum=0.9), batch_size=4)
      >>> data = Batch(jnp.ones([8, 4, 4, 1]), jnp.zeros([8], jnp.int32), jnp.ones([8]))
      >>> state = search.init(jax.random.key(0), data.inputs)
      >>> state, metrics = jax.jit(search.step)(state, data, data, jax.random.key(1))
      >>> int(state.step), round(float(metrics["entropy"]), 2)
      (1, 0.77)

    Source: Liu, Simonyan and Yang, 2019, "DARTS: Differentiable Architecture Search", arXiv 1806.09055.
    """
    if lookahead < 0:
        raise ValueError(f"architecture_search needs a lookahead of 0 or more; given {lookahead}.")
    check_hypers(hypers)
    if isinstance(hypers.dropout, int | float) and hypers.dropout != 0:
        raise ValueError(
            f"architecture_search has no dropout to set; given hypers with {hypers.dropout}. Leave it at 0."
        )
    scores_optimizer = optax.adam(0.01, b1=0.5, b2=0.999) if scores_optimizer is None else scores_optimizer

    def objective(params, scores, state, data, key, hypers=hypers):
        mixture = every.mixture(scores)
        mixed = Network(every.init, lambda params, inputs, **_: every.apply(params, mixture, inputs))
        return training_objective(mixed, batch_size)(params, hypers, state, data, key)

    # What is asked of a network is that it is right, not that it is smooth or sees other light.
    validation_loss = partial(objective, hypers=Hypers(hypers.learning_rate))

    train = inner_loop(objective, hyper_sgd(hypers), 1)
    look = inner_loop(objective, hyper_sgd(hypers), lookahead, unrolled() if metagrad is None else metagrad)

    def init(key, inputs):
        params, scores = every.init(key, inputs), every.init_scores()
        states = hyper_sgd(hypers).init(params), scores_optimizer.init(scores)
        return SearchState(params, states[0], scores, states[1], jnp.int32(0), jnp.int32(0))

    def step(state: SearchState, training: Batch, validation: Batch, key: Key):
        key_scores, key_weights = jax.random.split(key)
        # The weights and their momentum are where the look ahead begins, whatever the scores.
        ahead = partial(look, opt_state=state.opt_state)
        gradient = meta_grad(validation_loss, ahead, start=lambda scores: state.params)
        (loss, _), grads = gradient(state.scores, (), training, validation, key_scores)
        updates, scores_state = scores_optimizer.update(grads, state.scores_state, state.scores)
        moved = optax.apply_updates(state.scores, updates), scores_state
        finite = all_finite((grads, loss))
        scores, scores_state = choose(finite, moved, (state.scores, state.scores_state))
        result = train(state.params, scores, (), training, key_weights, opt_state=state.opt_state)
        trained = result.phi, result.opt_state
        # Weights that are lost would make every later gradient of the scores one that is left out.
        sound = all_finite(trained)
        params, opt_state = choose(sound, trained, (state.params, state.opt_state))
        skipped = state.skipped + (~(finite & sound)).astype(jnp.int32)
        state = SearchState(params, opt_state, scores, scores_state, state.step + 1, skipped)
        return state, {"loss": loss, "entropy": _entropy(every.mixture(scores)), "skipped": skipped}

    return Search(init, step)


def _entropy(mixture: dict[str, jax.Array]) -> jax.Array:
    rows = {name: shares for name, shares in mixture.items() if name != "skips"}
    gates = mixture["skips"]
    rows["skips"] = jnp.stack([gates, 1 - gates], -1)
    each = [-jnp.sum(shares * jnp.log(shares + 1e-12), -1) for shares in rows.values()]
    return jnp.concatenate(each).mean()
