"""Populations: seeds times hyper-parameters as one more axis of the same compiled program."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxmeta import devices
from jaxmeta.base import Estimator, Evaluation, Key, MetaLearner, Metrics, PyTree, TrainState
from jaxmeta.data import TaskSource, task_keys
from jaxmeta.dispatch import drawn_step
from jaxmeta.evaluate import judge_tasks, summarize
from jaxmeta.losses import Criterion
from jaxmeta.train import init_train_state, make_train_step

MakeLearner = Callable[[PyTree], MetaLearner]


class Members(NamedTuple):
    """Who is in a population.

    Attributes:
      seeds: `[members]` uint32.
      hyper: Hyper-parameters by name, leaves `[members]`.
    """

    seeds: jax.Array
    hyper: dict[str, jax.Array]


def members(seeds: Sequence[int], **hyper: Sequence[float]) -> Members:
    """Combine every seed with every value of every hyper-parameter; the seed changes fastest.

    Args:
      seeds: Whole numbers from 0 to 2**32 - 1.
      hyper: Values by name, each a sequence of numbers.

    Returns:
      The `Members`.

    Raises:
      ValueError: if a sequence is empty.

    Example:
      >>> everyone = members([0, 1, 2], inner_lr=[0.25, 0.5])
      >>> everyone.seeds.tolist(), everyone.hyper["inner_lr"].tolist()
      ([0, 1, 2, 0, 1, 2], [0.25, 0.25, 0.25, 0.5, 0.5, 0.5])
    """
    empty = [name for name, values in {"seeds": seeds, **hyper}.items() if not len(values)]
    if empty:
        raise ValueError(f"A population needs at least one value of each; given none of {', '.join(empty)}.")
    rows = list(product(*hyper.values(), seeds))
    columns = {name: jnp.asarray([row[place] for row in rows], jnp.float32) for place, name in enumerate(hyper)}
    return Members(jnp.asarray([row[-1] for row in rows], jnp.uint32), columns)


def init_population(
    everyone: Members,
    make_learner: MakeLearner,
    optimizer: optax.GradientTransformation,
    source: TaskSource,
    *,
    num_tasks: int,
    estimator: Estimator | None = None,
) -> TrainState:
    """Make the state of every member before the first outer step.

    Args:
      everyone: From `members`.
      make_learner: `(hyper) -> MetaLearner`, where hyper holds one number for each name.
      optimizer: The outer optimiser.
      source: Where tasks come from.
      num_tasks: Tasks in a step.
      estimator: As for `make_train_step`.

    Returns:
      A `TrainState`, leaves `[members, ...]`: that of a seed alone is
      `init_train_state(jax.random.split(jax.random.key(seed))[0], ...)`.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, inner_sgd, load_sinusoid, maml, mlp, task_source
      >>> source = task_source(load_sinusoid(), "train", EpisodeSpec(1, 5, 5))
      >>> learner = maml(mlp(1), inner_optimizer=inner_sgd(0.01), criterion=CRITERIA["regression"])
      >>> states = init_population(members([0, 1]), lambda hyper: learner, optax.adam(1e-3), source, num_tasks=2)
      >>> states.meta_params["head"]["bias"].shape
      (2, 1)
    """

    @jax.jit
    def init(everyone):
        def of_member(seed, hyper):
            key = jax.random.split(jax.random.key(seed))[0]
            learner = make_learner(hyper)
            return init_train_state(key, learner, optimizer, source, num_tasks=num_tasks, estimator=estimator)

        return jax.vmap(of_member)(*everyone)

    return init(everyone)


def fit_population(
    everyone: Members,
    train_states: TrainState,
    make_learner: MakeLearner,
    optimizer: optax.GradientTransformation,
    source: TaskSource,
    *,
    num_tasks: int,
    num_steps: int,
    steps_per_call: int = 10,
    estimator: Estimator | None = None,
    task_chunk: int | None = None,
    callback: Callable[[TrainState, Metrics], bool | None] | None = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """Run outer steps of every member in one program, compiled once.

    A member is what `fit` makes of its seed and its hyper-parameters alone. One whose loss or
    gradient is not finite stays at the state before it, as its `step` tells, and the
    others go on.

    Args:
      everyone: From `members`.
      train_states: From `init_population`; donated.
      make_learner: `(hyper) -> MetaLearner`; the numbers in hyper are traced.
      optimizer: The outer optimiser.
      source: Where tasks come from.
      num_tasks: Tasks in a step of one member.
      num_steps: The step to stop at.
      steps_per_call: Steps in one dispatch.
      estimator: As for `make_train_step`.
      task_chunk: As for `make_train_step`.
      callback: `(train_states, metrics) -> stop`; metrics are `[members, steps]`.
      mesh: From `make_mesh`: the members are divided among its devices.

    Returns:
      The last states, leaves `[members, ...]`.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, inner_sgd, load_sinusoid, maml, mlp, task_source
      >>> def make_learner(hyper):
      ...     return maml(mlp(1), inner_optimizer=inner_sgd(hyper["inner_lr"]), criterion=CRITERIA["regression"])
      >>> source = task_source(load_sinusoid(), "train", EpisodeSpec(1, 5, 5))
      >>> everyone, optimizer = members([0, 1, 2], inner_lr=[0.01, 1e9]), optax.adam(1e-3)
      >>> states = init_population(everyone, make_learner, optimizer, source, num_tasks=4)
      >>> options = {"num_tasks": 4, "num_steps": 20}
      >>> states = fit_population(everyone, states, make_learner, optimizer, source, **options)
      >>> states.step.tolist()  # three have diverged at once
      [20, 20, 20, 0, 0, 0]
    """
    count = len(everyone.seeds)
    groups = 1 if mesh is None else mesh.shape[devices.TASKS]
    places = math.ceil(count / groups) * groups

    def of_member(step, pool, length, seed, hyper, train_state):
        train_step = make_train_step(make_learner(hyper), optimizer, estimator=estimator, task_chunk=task_chunk)
        key = jax.random.split(jax.random.key(seed))[1]

        def body(train_state, step):
            new_state, metrics = drawn_step(train_step, source, num_tasks)(train_state, pool, key)
            # A member that diverged has stopped counting, and stays.
            goes_on = (metrics["nonfinite"] == 0) & (train_state.step == step)
            return jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), new_state, train_state), metrics

        return jax.lax.scan(body, train_state, step + jnp.arange(length))

    @partial(jax.jit, static_argnames="length", donate_argnums=0)
    def run(train_states, everyone, step, pool, length):
        def of_members(train_states, everyone, step, pool):
            def of_one(seed, hyper, train_state):
                return of_member(step, pool, length, seed, hyper, train_state)

            return jax.vmap(of_one)(everyone.seeds, everyone.hyper, train_states)

        if mesh is not None:
            by_member, whole = PartitionSpec(devices.TASKS), PartitionSpec()
            of_members = devices.on_each_device(of_members, mesh, (by_member, by_member, whole, whole), by_member)
        return of_members(train_states, everyone, step, pool)

    placed, train_states = devices.repeat((everyone, train_states), places)
    pool, step = source.pool, int(train_states.step.max())
    if mesh is not None:
        pool = devices.replicate(pool, mesh)
    while step < num_steps:
        length = min(steps_per_call - step % steps_per_call, num_steps - step)
        train_states, metrics = run(train_states, placed, step, pool, length)
        step += length
        if callback is not None and callback(_first(train_states, count, places), _first(metrics, count, places)):
            break
    return _first(train_states, count, places)


def make_population_evaluator(
    make_learner: MakeLearner, criterion: Criterion, *, num_steps: int | None = None, task_chunk: int = 1
) -> Callable[..., list[Evaluation]]:
    """Make an evaluator of whole populations, compiled once: every member meets the same tasks.

    Args:
      make_learner: As for `fit_population`.
      criterion: What tasks are judged by.
      num_steps: Inner steps; None for the number used in training.
      task_chunk: Tasks of each member computed at once.

    Returns:
      `evaluator(everyone, train_states, source, key, num_tasks) -> [Evaluation]`, one for each
      member: that of `make_evaluator` on the member alone.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, inner_sgd, load_sinusoid, maml, mlp, task_source
      >>> criterion = CRITERIA["regression"]
      >>> def make_learner(hyper):
      ...     return maml(mlp(1), inner_optimizer=inner_sgd(hyper["inner_lr"]), criterion=criterion)
      >>> source = task_source(load_sinusoid(), "test", EpisodeSpec(1, 5, 5))
      >>> everyone = members([0, 1, 2], inner_lr=[0.01])
      >>> states = init_population(everyone, make_learner, optax.adam(1e-3), source, num_tasks=4)
      >>> evaluator = make_population_evaluator(make_learner, criterion, task_chunk=5)
      >>> len(evaluator(everyone, states, source, jax.random.key(0), 10))
      3
    """

    @partial(jax.jit, static_argnums=(0, 1))
    def judge_all(sample, spec, everyone, meta_params, state, pool, keys, first):
        episodes = sample(keys[0], pool, spec, task_chunk, first_task=first)
        task_noise = task_keys(keys[1], task_chunk, first_task=first)

        def of_member(hyper, meta_params, state):
            return judge_tasks(make_learner(hyper), criterion, num_steps)(meta_params, state, episodes, task_noise)

        return jax.vmap(of_member, axis_size=len(everyone.seeds))(everyone.hyper, meta_params, state)

    def evaluator(everyone: Members, train_states: TrainState, source: TaskSource, key: Key, num_tasks: int):
        keys = tuple(jax.random.split(key))
        at_hand = everyone, train_states.meta_params, train_states.state, source.pool, keys
        chunks = [judge_all(source.sample, source.spec, *at_hand, first) for first in range(0, num_tasks, task_chunk)]
        chunks = jax.device_get(chunks)
        return [
            summarize([{name: values[place] for name, values in chunk.items()} for chunk in chunks], num_tasks)
            for place in range(len(everyone.seeds))
        ]

    return evaluator


def _first(tree, count: int, places: int):
    """Leave out the members that fill the devices up."""
    return tree if count == places else jax.tree.map(lambda leaf: leaf[:count], tree)
