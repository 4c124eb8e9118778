"""Meta-training: one pure step, and the loop that runs it."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmeta import devices
from jaxmeta.base import Episode, Estimator, Key, MetaLearner, Metrics, TrainState, check_episode
from jaxmeta.data import TaskSource, task_keys
from jaxmeta.metagrad import exact

TrainStep = Callable[..., tuple[TrainState, Metrics]]


def init_train_state(
    key: Key,
    learner: MetaLearner,
    optimizer: optax.GradientTransformation,
    source: TaskSource,
    *,
    num_tasks: int,
    estimator: Estimator | None = None,
) -> TrainState:
    """Make the state before the first outer step.

    Args:
      key: Source of randomness.
      learner: The algorithm.
      optimizer: The outer optimiser.
      source: Where tasks come from; one batch is drawn for its shapes.
      num_tasks: Tasks in a step.
      estimator: As given to `make_train_step`.

    Returns:
      A `TrainState` at step 0.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, load_sinusoid, maml, mlp, task_source
      >>> learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
      >>> source = task_source(load_sinusoid(), "train", EpisodeSpec(1, 10, 10))
      >>> int(init_train_state(jax.random.key(0), learner, optax.adam(1e-3), source, num_tasks=4).step)
      0
    """
    estimator = exact() if estimator is None else estimator
    key_sample, key_init, key_estimator = jax.random.split(key, 3)
    episodes = source.sample(key_sample, source.pool, source.spec, num_tasks)
    meta_params, state = learner.init(key_init, jax.tree.map(lambda leaf: leaf[0], episodes.support.inputs))
    estimator_state = estimator.init(key_estimator, learner, meta_params, state, episodes)
    return TrainState(jnp.int32(0), meta_params, state, optimizer.init(meta_params), estimator_state)


def make_train_step(
    learner: MetaLearner,
    optimizer: optax.GradientTransformation,
    *,
    estimator: Estimator | None = None,
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> TrainStep:
    """Make one outer step: `theta <- theta + update(mean over tasks of grad_theta loss)`.

    The step is pure and not jitted, so that it can be scanned, mapped over seeds or timed.

    Args:
      learner: The algorithm.
      optimizer: The outer optimiser.
      estimator: How the gradient is taken; `exact()` if None.
      task_chunk: Tasks computed at once, a divisor of the tasks in a step; all if None. The
        chunks are scanned and their gradients added, so that memory is that of one chunk.
      mesh: From `make_mesh`: the tasks are divided among its devices, and one sum over them
        makes the step that of one device, whatever their number. Where they cannot be
        divided evenly (here a chunk need not be a divisor), tasks of zero weight fill up.
        With a `model` axis the step must be jitted, as it is in `fit`.

    Returns:
      `train_step(train_state, episodes, key, *, num_tasks=None) -> train_state, metrics`.
      Episodes have a leading task axis, of which the first num_tasks count (all if None)
      and the rest is padding. Metrics are the learner's averaged over tasks, and `grad_norm`
      and `nonfinite` (1 when the loss or the gradient is not a finite number).

    Raises:
      ValueError: at trace time, for episodes that do not fit or a chunk that does not divide.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, load_sinusoid, maml, mlp, task_source
      >>> learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
      >>> source = task_source(load_sinusoid(), "train", EpisodeSpec(1, 10, 10))
      >>> key, optimizer = jax.random.key(0), optax.adam(1e-3)
      >>> train_state = init_train_state(key, learner, optimizer, source, num_tasks=4)
      >>> train_step = make_train_step(learner, optimizer, task_chunk=2)
      >>> episodes = source.sample(key, source.pool, source.spec, 4)
      >>> train_state, metrics = jax.jit(train_step)(train_state, episodes, key)
      >>> int(train_state.step), sorted(metrics)
      (1, ['grad_norm', 'loss', 'mse', 'nonfinite'])
    """
    estimator = exact() if estimator is None else estimator
    if not isinstance(estimator, Estimator):
        raise ValueError(
            f"estimator must be an Estimator, as exact() or ESTIMATORS['pes']() return; given {estimator!r}."
        )

    def train_step(train_state: TrainState, episodes: Episode, key: Key, *, num_tasks: int | None = None):
        check_episode(episodes, num_task_axes=1)
        step, meta_params, state, opt_state, estimator_state = train_state
        present = episodes.support.inputs.shape[0]

        def of_tasks(shared, per_task):
            meta_params, state, step = shared
            value, grads, estimator_state = estimator.value_and_grad(learner, meta_params, state, *per_task, step)
            return (value, grads), estimator_state

        ((loss, (state, metrics)), grads), estimator_state = devices.task_mean(
            of_tasks,
            (meta_params, state, step),
            (estimator_state, episodes, task_keys(key, present)),
            num_tasks=present if num_tasks is None else num_tasks,
            present=present,
            task_chunk=task_chunk,
            mesh=mesh,
        )
        updates, opt_state = optimizer.update(grads, opt_state, meta_params)
        meta_params = optax.apply_updates(meta_params, updates)
        grad_norm = optax.tree.norm(grads)
        nonfinite = 1.0 - jnp.isfinite(loss + grad_norm)
        metrics = {**metrics, "loss": loss, "grad_norm": grad_norm, "nonfinite": nonfinite}
        return TrainState(step + 1, meta_params, state, opt_state, estimator_state), metrics

    return train_step


def fit(
    train_step: TrainStep,
    train_state: TrainState,
    source: TaskSource,
    key: Key,
    *,
    num_tasks: int,
    num_steps: int,
    steps_per_call: int = 10,
    callback: Callable[[TrainState, Metrics], bool | None] | None = None,
    mesh: Mesh | None = None,
    program: jax.stages.Compiled | None = None,
) -> TrainState:
    """Run outer steps on the device until the state's step is `num_steps`.

    Step t draws its tasks and its noise from `fold_in(key, t)`: a state that was saved and
    restored goes on exactly as if it had never stopped. The state handed in is donated: do
    not use it again.

    Args:
      train_step: From `make_train_step`.
      train_state: Where to begin.
      source: Where tasks come from.
      key: Source of all randomness.
      num_tasks: Tasks in a step.
      num_steps: The step to stop at, counted from the very first one.
      steps_per_call: Steps in one dispatch, between two calls of the callback.
      callback: `(train_state, metrics) -> stop`; metrics are the last dispatch's, leaves
        `[steps]`. Return True to stop. It must not keep the state (copy it instead).
      mesh: As given to `make_train_step`. Each device then draws its own tasks; which they are
        does not depend on the number of devices. The state is put where `place` says.
      program: From `compile_steps`, called with the same arguments; compiled here if None.

    Returns:
      The last `TrainState`.

    Raises:
      FloatingPointError: names the first step whose loss or gradient is not finite; the
        callback has not seen the state it spoilt.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, load_sinusoid, maml, mlp, task_source
      >>> learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
      >>> source = task_source(load_sinusoid(), "train", EpisodeSpec(1, 10, 10))
      >>> key, optimizer = jax.random.key(0), optax.adam(1e-3)
      >>> train_state = init_train_state(key, learner, optimizer, source, num_tasks=4)
      >>> train_step = make_train_step(learner, optimizer)
      >>> int(fit(train_step, train_state, source, key, num_tasks=4, num_steps=30).step)
      30
    """
    train_state, source = _put(train_state, source, mesh)
    run = jit_steps(train_step, train_state, source, num_tasks=num_tasks, steps_per_call=steps_per_call, mesh=mesh)
    run = run if program is None else program
    step = int(train_state.step)
    while step < num_steps:
        # Calls end at multiples of steps_per_call, also after a resume from between two.
        length = min(steps_per_call - step % steps_per_call, num_steps - step)
        train_state, metrics = run(train_state, source.pool, key, np.int32(length))
        metrics = jax.tree.map(itemgetter(slice(length)), jax.device_get(metrics))
        bad = metrics["nonfinite"].argmax()
        if metrics["nonfinite"][bad]:
            raise FloatingPointError(
                f"The loss or its gradient is not a finite number at step {step + int(bad) + 1}. "
                "Try a smaller inner or outer learning rate, and inner_adam for Adam in the inner loop; "
                "jaxmeta.check.find_nonfinite names the inner step and the leaf."
            )
        step += length
        if callback is not None and callback(train_state, metrics):
            break
    return train_state


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
    run = jit_steps(train_step, train_state, source, num_tasks=num_tasks, steps_per_call=steps_per_call, mesh=mesh)
    return run.lower(train_state, source.pool, key, np.int32(0)).compile()


def jit_steps(train_step: TrainStep, train_state: TrainState, source: TaskSource, *, num_tasks, steps_per_call, mesh):
    """Make the dispatch of `fit`: how many steps is known only when it runs, so that it is compiled once."""
    place = {}
    if mesh is not None:
        kept = jax.tree.map(lambda leaf: leaf.sharding, train_state)
        place["out_shardings"] = kept, NamedSharding(mesh, PartitionSpec())

    @partial(jax.jit, donate_argnums=0, **place)
    def run(train_state, pool, key, length):
        step = drawn_step(train_step, source, num_tasks, mesh)

        def body(index, carry):
            train_state, rows = carry
            train_state, row = step(train_state, pool, key)
            return train_state, jax.tree.map(lambda rows, row: rows.at[index].set(row), rows, row)

        row = jax.eval_shape(step, train_state, pool, key)[1]
        rows = jax.tree.map(lambda leaf: jnp.zeros((steps_per_call, *leaf.shape), leaf.dtype), row)
        return jax.lax.fori_loop(0, length, body, (train_state, rows))

    return run


def _put(train_state: TrainState, source: TaskSource, mesh: Mesh | None) -> tuple[TrainState, TaskSource]:
    if mesh is None:
        return train_state, source
    return devices.place(train_state, mesh), source._replace(pool=devices.replicate(source.pool, mesh))


def drawn_step(train_step: TrainStep, source: TaskSource, num_tasks: int, mesh: Mesh | None = None):
    """Join the drawing of tasks and the step: `(train_state, pool, key) -> train_state, metrics`.

    Tasks and noise are a function of the key and the state's step.
    """

    def step(train_state: TrainState, pool, key: Key):
        key_sample, key_step = jax.random.split(jax.random.fold_in(key, train_state.step))
        if mesh is None:
            return train_step(train_state, source.sample(key_sample, pool, source.spec, num_tasks), key_step)
        episodes = devices.sample_on_each_device(source.sample, source.spec, num_tasks, mesh)(key_sample, pool)
        return train_step(train_state, episodes, key_step, num_tasks=num_tasks)

    return step
