"""Populations: seeds times hyper-parameters as one more axis of the same compiled program."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmeta import devices
from jaxmeta.base import Estimator, MetaLearner, Metrics, PyTree, TrainState
from jaxmeta.data import TaskSource
from jaxmeta.device_memory import compile_lean
from jaxmeta.dispatch import drawn_step
from jaxmeta.plan import divisors
from jaxmeta.train import init_train_state, make_train_step

MakeLearner = Callable[[PyTree], MetaLearner]
BY_MEMBER = PartitionSpec(devices.TASKS)


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
    member_chunk: int | None = None,
    callback: Callable[[TrainState, Metrics], bool | None] | None = None,
    mesh: Mesh | None = None,
    program: jax.stages.Compiled | None = None,
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
      member_chunk: Members computed at once on a device, the others after them; all of the device's if None.
      callback: `(train_states, metrics) -> stop`; metrics are `[members, steps]`.
      mesh: From `make_mesh`: the members are divided among its devices.
      program: What `compile_population` made of the same arguments, steps_per_call too; compiled here if None.

    Returns:
      The last states, leaves `[members, ...]`.

    Raises:
      ValueError: for a member_chunk that does not divide the members of a device.

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
    count, step = len(everyone.seeds), int(train_states.step.max())
    if program is None:
        options = {"task_chunk": task_chunk, "member_chunk": member_chunk, "estimator": estimator, "mesh": mesh}
        options |= {"num_tasks": num_tasks, "steps_per_call": steps_per_call}
        program = compile_population(everyone, train_states, make_learner, optimizer, source, **options)
    train_states, placed = devices.repeat((train_states, everyone), math.ceil(count / _groups(mesh)) * _groups(mesh))
    pool = source.pool
    if mesh is not None:
        train_states, placed = jax.device_put((train_states, placed), NamedSharding(mesh, BY_MEMBER))
        pool = devices.replicate(pool, mesh)
    while step < num_steps:
        length = min(steps_per_call - step % steps_per_call, num_steps - step)
        train_states, metrics = program(train_states, placed, pool, np.int32(step), np.int32(length))
        step += length
        metrics = jax.tree.map(lambda leaf, length=length: leaf[:, :length], metrics)
        if callback is not None and callback(_first(train_states, count), _first(metrics, count)):
            break
    return _first(train_states, count)


def compile_population(
    everyone: Members,
    train_states: TrainState,
    make_learner: MakeLearner,
    optimizer: optax.GradientTransformation,
    source: TaskSource,
    *,
    num_tasks: int,
    steps_per_call: int = 10,
    estimator: Estimator | None = None,
    task_chunk: int | None = None,
    member_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> jax.stages.Compiled:
    """Compile what `fit_population` dispatches, without running it: to see what it needs.

    Args:
      everyone: This and all that follow as in `fit_population`.
      train_states: See there, or shapes of them; not donated.
      make_learner: See there.
      optimizer: See there.
      source: See there.
      num_tasks: See there.
      steps_per_call: See there.
      estimator: See there.
      task_chunk: See there.
      member_chunk: See there.
      mesh: See there.

    Returns:
      `(train_states, everyone, pool, step, length) -> train_states, metrics`, compiled: length steps from step
      on, up to steps_per_call.

    Raises:
      ValueError: for a member_chunk that does not divide the members of a device.

    Example:
      >>> import optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, inner_sgd, load_sinusoid, maml, mlp, task_source
      >>> learner = maml(mlp(1), inner_optimizer=inner_sgd(0.01), criterion=CRITERIA["regression"])
      >>> everyone, source = members([0, 1]), task_source(load_sinusoid(), "train", EpisodeSpec(1, 5, 5))
      >>> arguments, options = (lambda hyper: learner, optax.adam(1e-3), source), {"num_tasks": 2}
      >>> states = init_population(everyone, *arguments, **options)
      >>> program = compile_population(everyone, states, *arguments, **options, member_chunk=1)
      >>> program.memory_analysis().temp_size_in_bytes > 0
      True
    """
    groups = _groups(mesh)
    on_device = math.ceil(len(everyone.seeds) / groups)
    member_chunk = on_device if member_chunk is None else member_chunk
    check_member_chunk(member_chunk, on_device, "of a device")

    def of_member(pool, step, length, seed, hyper, train_state):
        train_step = make_train_step(make_learner(hyper), optimizer, estimator=estimator, task_chunk=task_chunk)
        key = jax.random.split(jax.random.key(seed))[1]
        # Compiled for its cache of traces: the shapes of a row and the loop are of one. Inlined, it leaves no mark.
        take = jax.jit(drawn_step(train_step, source, num_tasks), inline=True)

        def body(index, carry):
            train_state, rows = carry
            new_state, row = take(train_state, pool, key)
            # A member that diverged has stopped counting, and stays.
            goes_on = (row["nonfinite"] == 0) & (train_state.step == step + index)
            train_state = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), new_state, train_state)
            return train_state, jax.tree.map(lambda rows, row: rows.at[index].set(row), rows, row)

        row = jax.eval_shape(take, train_state, pool, key)[1]
        rows = jax.tree.map(lambda leaf: jnp.zeros((steps_per_call, *leaf.shape), leaf.dtype), row)
        return jax.lax.fori_loop(0, length, body, (train_state, rows))

    def of_members(train_states, everyone, pool, step, length):
        def of_one(member):
            return of_member(pool, step, length, *member)

        return in_turn(of_one, (*everyone, train_states), member_chunk)

    def shaped(leaf, places: int, sharding: NamedSharding | None):
        return jax.ShapeDtypeStruct((places, *leaf.shape[1:]), leaf.dtype, sharding=sharding)

    place, divided, whole = {}, None, None
    if mesh is not None:
        divided, whole = NamedSharding(mesh, BY_MEMBER), NamedSharding(mesh, PartitionSpec())
        given = BY_MEMBER, BY_MEMBER, *[PartitionSpec()] * 3
        of_members = devices.on_each_device(of_members, mesh, given, BY_MEMBER)
        place["out_shardings"] = divided
    states, placed = jax.tree.map(lambda leaf: shaped(leaf, on_device * groups, divided), (train_states, everyone))
    pool = jax.tree.map(lambda leaf: shaped(leaf, leaf.shape[0], whole), source.pool)
    run = jax.jit(of_members, donate_argnums=0, **place)
    return compile_lean(run.lower(states, placed, pool, np.int32(0), np.int32(0)))


def in_turn(of_one: Callable[[PyTree], PyTree], everyone: PyTree, at_once: int) -> PyTree:
    """Compute something of every member, so many at once: `vmap` inside, `scan` outside."""
    if jax.tree.leaves(everyone)[0].shape[0] == at_once:
        return jax.vmap(of_one)(everyone)
    return jax.lax.map(of_one, everyone, batch_size=None if at_once == 1 else at_once)


def check_member_chunk(chunk: int, count: int, whose: str = "") -> None:
    """Refuse a chunk that does not divide the members."""
    if chunk < 1 or count % chunk:
        raise ValueError(
            f"member_chunk must divide the {count} members{whose and ' ' + whose}; given {chunk}. "
            f"Use one of {divisors(count)}."
        )


def _groups(mesh: Mesh | None) -> int:
    return 1 if mesh is None else mesh.shape[devices.TASKS]


def _first(tree, count: int):
    """Leave out the members that fill the devices up."""
    return jax.tree.map(lambda leaf: leaf if leaf.shape[0] == count else leaf[:count], tree)
