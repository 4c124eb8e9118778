"""The nouns: every value that one part of the library hands to another.

All are NamedTuples. Those that hold arrays (`Batch`, `Episode`, `InnerResult`,
`TrainState`) are pytrees and cross `jit`, `vmap` and `grad`; those that hold
functions (`Model`, `MetaLearner`, `MetaGrad`, `Estimator`, `Loop`) are built once,
outside, and are closed over. An empty slot is `()` or `None`.

Shapes are those of ONE task: `[examples, ...]`. A batch of tasks has one more
leading axis on every leaf. `theta` stands for what is learned across tasks,
`phi` for what is adapted to one of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

PyTree = Any
Key = jax.Array
Metrics = dict[str, jax.Array]


class Batch(NamedTuple):
    """Examples of one task.

    Attributes:
      inputs: Images `[examples, height, width, channels]` or any `[examples, ...]`.
      targets: Class numbers `[examples]` int32, or values `[examples, outputs]`.
      weights: `[examples]` float, 1 for a real example and 0 for padding. Every
        loss, mean, normalisation statistic and accuracy respects them.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array


class Episode(NamedTuple):
    """One task: a labelled support set to adapt to, and a query set to be judged on."""

    support: Batch
    query: Batch


class Model(NamedTuple):
    """A network as pure functions.

    Attributes:
      init: `(key, inputs) -> params, state`; params is `{"body": ..., "head": ...}`.
      embed: `(params, state, inputs, *, key, train, weights) -> features, state`.
      apply: As `embed`, but returns outputs: the head of the features.
      head: As `apply`, but of the features instead of the inputs, for a learner that embeds once what
        the head meets many times; None for a network that is not made of the two.

    `train=True` normalises by the statistics of `inputs` (weighted by `weights`)
    and returns them in the state; `train=False` uses those of the state. Noise (dropout)
    is drawn from `key` when training; without a key there is none.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    embed: Callable[..., tuple[jax.Array, PyTree]]
    apply: Callable[..., tuple[jax.Array, PyTree]]
    head: Callable[..., tuple[jax.Array, PyTree]] | None = None


class MetaLearner(NamedTuple):
    """A meta-learning algorithm as pure functions, each for ONE task.

    Attributes:
      init: `(key, example_inputs) -> meta_params, state`.
      adapt: `(meta_params, state, support, key, *, num_steps=None) -> adapted`;
        None stands for the number of inner steps used in training.
      predict: `(adapted, batch, key) -> outputs [examples, ...]`. Targets are not read.
      loss: `(meta_params, state, episode, key, step) -> scalar, (state, metrics)`;
        `step` is the outer step, for what is annealed over training.
      unroll: `(meta_params, state, inner, episode, key, step, *, num_steps=None) ->
        scalar, (inner, adapted, (state, metrics))`: as `loss`, but it goes on from where
        an earlier call stopped; inner=None is the beginning. None for a learner without
        an inner loop. Estimators that look beyond one loss need it.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    adapt: Callable[..., PyTree]
    predict: Callable[[PyTree, Batch, Key], jax.Array]
    loss: Callable[..., tuple[jax.Array, tuple[PyTree, Metrics]]]
    unroll: Callable[..., tuple[jax.Array, tuple[PyTree, PyTree, Any]]] | None = None


class LoopInputs(NamedTuple):
    """Everything that an inner loop depends on: the arguments of its objective, phi being the start.

    The anchor is the centre of the proximal term, `()` without one.
    """

    phi: PyTree
    theta: PyTree
    state: PyTree
    data: PyTree
    key: Key
    anchor: PyTree


class Loop(NamedTuple):
    """An inner loop as data, for a `MetaGrad` to run and to differentiate.

    The inputs are explicit, so that a strategy with a derivative rule of its own sees
    them, and can name a meta-parameter that it cannot differentiate.

    Attributes:
      inputs: The `LoopInputs`.
      init: `(inputs) -> carry`, the first pair `(phi, opt_state)`.
      step: `(inputs, carry, index) -> carry, per_step`; per_step is `()` unless a record
        of every step was asked for.
      first_step: Index of the first step, 0 unless an earlier loop is continued.
      num_steps: Number of steps, a Python int.
      optimality: `(phi, inputs) -> tree like phi` that is zero at a solution, for
        strategies that differentiate the solution and not the path.
    """

    inputs: LoopInputs
    init: Callable[[LoopInputs], PyTree]
    step: Callable[[LoopInputs, PyTree, jax.Array], tuple[PyTree, PyTree]]
    first_step: int | jax.Array
    num_steps: int
    optimality: Callable[[PyTree, LoopInputs], PyTree]


def _serves_every_loop(num_steps: int, proximal: float) -> None:
    """Refuse nothing."""


class MetaGrad(NamedTuple):
    """How ONE inner loop is differentiated, with one hook for each time scale.

    Attributes:
      grad: Turns `objective(phi, *others) -> scalar, aux` into a function of the same
        arguments that returns `grads like phi, aux`.
      step: Wraps the `step` of a `Loop` (rematerialisation belongs here).
      solve: Runs a `Loop` and returns `carry, per_step`.
      check: `(num_steps, proximal) -> None`, called when a loop is made: raises
        ValueError for one that the strategy cannot serve.
    """

    grad: Callable[[Callable], Callable]
    step: Callable[[Callable], Callable]
    solve: Callable[[Loop], tuple[PyTree, PyTree]]
    check: Callable[[int, float], None] = _serves_every_loop


class Estimator(NamedTuple):
    """How the mean loss over tasks becomes a gradient; it may keep a state of its own.

    Attributes:
      init: `(key, learner, meta_params, state, episodes) -> estimator_state`; every
        leaf has a leading task axis, `()` when there is nothing to keep.
      value_and_grad: `(learner, meta_params, state, estimator_state, episodes, keys,
        step) -> (loss, (state, metrics)), grads, estimator_state`. Episodes and keys
        have a leading task axis; what is returned is the mean over it.
    """

    init: Callable[..., PyTree]
    value_and_grad: Callable[..., tuple[Any, PyTree, PyTree]]


class InnerResult(NamedTuple):
    """What an inner loop leaves behind.

    Attributes:
      phi: The adapted parameters.
      opt_state: The state of the inner optimiser after the last step.
      per_step: None, or (where asked for) a dict of records with a leading axis
        `[num_steps, ...]`: `phi` after each step, `loss` and `grad_norm` before it.
      next_step: Index of the step that would come next.
    """

    phi: PyTree
    opt_state: PyTree
    per_step: PyTree | None
    next_step: int | jax.Array


class TrainState(NamedTuple):
    """Everything the next outer step needs: arrays only.

    Attributes:
      step: Outer steps taken so far, int32 scalar.
      meta_params: What is learned by gradients.
      state: What is not (normalisation statistics above all).
      opt_state: State of the outer optimiser.
      estimator_state: State of the `Estimator`.
    """

    step: jax.Array
    meta_params: PyTree
    state: PyTree
    opt_state: PyTree
    estimator_state: PyTree


class Estimate(NamedTuple):
    """A mean over tasks, half the width of its 95 % interval, and every task's value."""

    mean: float
    ci95: float
    per_task: Any


class Evaluation(NamedTuple):
    """Metrics by name, each an `Estimate` over the same `num_tasks` tasks.

    `predicted` holds what was said of every query, a `Predicted` of arrays `[tasks, examples, ...]`; None where it was
    not kept.
    """

    metrics: dict[str, Estimate]
    num_tasks: int
    predicted: "Predicted | None" = None


class Predicted(NamedTuple):
    """The outputs of a learner on query sets `[tasks, examples, outputs]`, with their targets and weights."""

    outputs: Any
    targets: Any
    weights: Any


def example_batch(inputs: jax.Array, targets: jax.Array) -> Batch:
    """Make a `Batch` in which every example is real (weight 1).

    Args:
      inputs: `[examples, ...]`.
      targets: `[examples]` int32, or `[examples, outputs]`.

    Returns:
      The `Batch`.

    Example:
      >>> import jax.numpy as jnp
      >>> example_batch(jnp.zeros([2, 3]), jnp.array([0, 1])).weights.tolist()
      [1.0, 1.0]
    """
    return Batch(inputs, targets, jnp.ones(jnp.shape(inputs)[:1], jnp.float32))


def check_episode(episode: Episode, *, num_task_axes: int = 0) -> None:
    """Refuse an episode whose shapes or dtypes do not fit together, at trace time.

    Args:
      episode: The episode, or a batch of them.
      num_task_axes: Leading axes before the example axis: 0 for one task, 1 for a batch.

    Raises:
      ValueError: names the set, the field, what it is and what it should be.

    Example:
      >>> import jax.numpy as jnp
      >>> images = example_batch(jnp.zeros([2, 8, 8, 1], jnp.uint8), jnp.array([0, 1]))
      >>> check_episode(Episode(images, images))
      Traceback (most recent call last):
      ...
      ValueError: support: inputs must be floating point; divide uint8 images by 255. ...
    """
    axes = num_task_axes
    for name, batch in zip(Episode._fields, episode, strict=True):
        inputs, targets, weights = batch
        lead = jnp.shape(inputs)[: axes + 1]
        problem = None
        if jnp.ndim(inputs) <= axes + 1:
            problem = f"inputs need a feature axis after {axes + 1} leading ones"
        elif not jnp.issubdtype(jnp.result_type(inputs), jnp.floating):
            problem = "inputs must be floating point; divide uint8 images by 255"
        elif jnp.shape(targets)[: axes + 1] != lead:
            problem = "targets must have as many examples as the inputs"
        elif jnp.issubdtype(jnp.result_type(targets), jnp.integer) and jnp.ndim(targets) != axes + 1:
            problem = "integer targets are class numbers, one for each example, not one-hot"
        elif jnp.shape(weights) != lead:
            problem = "weights must be one float for each example"
        if problem:
            shapes = ", ".join(
                f"{field} {jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
                for field, leaf in zip(Batch._fields, batch, strict=True)
            )
            raise ValueError(f"{name}: {problem}. Given: {shapes}.")
    support, query = episode
    try:
        chex.assert_equal_shape_suffix((support.inputs, query.inputs), jnp.ndim(support.inputs) - axes - 1)
        chex.assert_trees_all_equal_dtypes(support.targets, query.targets)
        if axes:
            chex.assert_equal_shape_prefix((support.inputs, query.inputs), axes)
    except AssertionError as error:
        raise ValueError(
            "support and query must hold inputs of one shape and targets of one dtype: "
            f"support inputs {list(jnp.shape(support.inputs))}, targets {support.targets.dtype}; "
            f"query inputs {list(jnp.shape(query.inputs))}, targets {query.targets.dtype}."
        ) from error
