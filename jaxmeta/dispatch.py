"""Outer steps as one program: several in a dispatch, compiled once."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmeta import devices, feed
from jaxmeta.base import Key, Metrics, TrainState
from jaxmeta.data import TaskSource
from jaxmeta.device_memory import compile_lean

TrainStep = Callable[..., tuple[TrainState, Metrics]]


def compile_steps(
    train_step: TrainStep,
    train_state: TrainState,
    source: TaskSource,
    key: Key,
    *,
    num_tasks: int,
    steps_per_call: int = 10,
    mesh: Mesh | None = None,
) -> jax.stages.Compiled:
    """Compile what `fit` dispatches, without running it: to see what it needs, or to time it.

    Args:
      train_step: From `make_train_step`.
      train_state: A state like the one to train, of arrays or of `jax.ShapeDtypeStruct`.
      source: As in `fit`.
      key: As in `fit`.
      num_tasks: As in `fit`.
      steps_per_call: As in `fit`.
      mesh: As in `fit`.

    Returns:
      `(train_state, pool, key, length) -> train_state, metrics`, compiled: length steps, up to
      steps_per_call. The state is donated.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, load_sinusoid, maml, mlp, task_source
      >>> from jaxmeta import init_train_state, make_train_step
      >>> learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
      >>> source = task_source(load_sinusoid(), "train", EpisodeSpec(1, 10, 10))
      >>> key, optimizer = jax.random.key(0), optax.adam(1e-3)
      >>> train_state = init_train_state(key, learner, optimizer, source, num_tasks=4)
      >>> program = compile_steps(make_train_step(learner, optimizer), train_state, source, key, num_tasks=4)
      >>> program.memory_analysis().temp_size_in_bytes > 0
      True
    """
    if mesh is not None:
        kept = devices.state_shardings(train_state, mesh)
        train_state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), train_state, kept
        )
        source = source._replace(pool=devices.replicate(source.pool, mesh))
    options = {"num_tasks": num_tasks, "mesh": mesh}
    run = jit_steps(train_step, train_state, source, steps_per_call=steps_per_call, **options)
    at_once = feed.steps_at_once(source, num_tasks, steps_per_call)
    with feed.pools_of_steps(source, key, [0], at_once=at_once, **options) as pools:
        return compile_lean(run.lower(train_state, next(pools), key, np.int32(0)))


def jit_steps(train_step: TrainStep, train_state: TrainState, source: TaskSource, *, num_tasks, steps_per_call, mesh):
    """Make the dispatch of `fit`: how many steps is known only when it runs, so that it is compiled once."""
    place = {}
    if mesh is not None:
        kept = jax.tree.map(lambda leaf: leaf.sharding, train_state)
        place["out_shardings"] = kept, NamedSharding(mesh, PartitionSpec())
    at_once = feed.steps_at_once(source, num_tasks, steps_per_call)
    # Compiled for its cache of traces: the shapes of a row and the loop are of one. Inlined, it leaves no mark.
    step = jax.jit(drawn_step(train_step, source, num_tasks, mesh), inline=True)

    @partial(jax.jit, donate_argnums=0, **place)
    def run(train_state, pool, key, length):
        def body(index, carry):
            train_state, rows = carry
            train_state, row = step(train_state, feed.at_step(pool, index), key)
            return train_state, jax.tree.map(lambda rows, row: rows.at[index].set(row), rows, row)

        row = jax.eval_shape(step, train_state, feed.at_step(pool, 0), key)[1]
        rows = jax.tree.map(lambda leaf: jnp.zeros((at_once, *leaf.shape), leaf.dtype), row)
        return jax.lax.fori_loop(0, length, body, (train_state, rows))

    return run


def split_steps(step: int, num_steps: int, steps_per_call: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Give the first step and the length of every dispatch.

    Calls of the callback come at multiples of steps_per_call, also after a resume from between two.

    Example:
      >>> list(split_steps(7, 20, steps_per_call=10, at_once=4))
      [(7, 3), (10, 4), (14, 4), (18, 2)]
    """
    while step < num_steps:
        length = min(at_once, steps_per_call - step % steps_per_call, num_steps - step)
        yield step, length
        step += length


def put(train_state: TrainState, source: TaskSource, mesh: Mesh | None) -> tuple[TrainState, TaskSource]:
    """Put a state, and the pool that tasks are drawn from, where a mesh wants them."""
    if mesh is None:
        return train_state, source
    return devices.place(train_state, mesh), source._replace(pool=devices.replicate(source.pool, mesh))


def drawn_step(train_step: TrainStep, source: TaskSource, num_tasks: int, mesh: Mesh | None = None):
    """Join the drawing of tasks and the step: `(train_state, pool, key) -> train_state, metrics`.

    Tasks and noise are a function of the key and the state's step.
    """

    def step(train_state: TrainState, pool, key: Key):
        key_sample, key_step = feed.step_keys(key, train_state.step)
        if mesh is None:
            return train_step(train_state, source.sample(key_sample, pool, source.spec, num_tasks), key_step)
        episodes = devices.sample_on_each_device(source.sample, source.spec, num_tasks, mesh)(key_sample, pool)
        return train_step(train_state, episodes, key_step, num_tasks=num_tasks)

    return step
