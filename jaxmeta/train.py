"""Meta-training: one pure step, and the loop that runs it."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxmeta import devices, feed
from jaxmeta.base import Episode, Estimator, Key, MetaLearner, Metrics, PyTree, TrainState, check_episode
from jaxmeta.data import TaskSource, task_keys
from jaxmeta.dispatch import TrainStep, jit_steps, put, split_steps
from jaxmeta.metagrad import exact
from jaxmeta.metagrad.paths import is_small


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
    episodes = _draw(source.sample, key_sample, source.pool, source.spec, num_tasks)
    meta_params, state = learner.init(key_init, jax.tree.map(lambda leaf: leaf[0], episodes.support.inputs))
    estimator_state = estimator.init(key_estimator, learner, meta_params, state, episodes)
    return TrainState(jnp.int32(0), meta_params, state, optimizer.init(meta_params), estimator_state)


@partial(jax.jit, static_argnums=(0, 3, 4))
def _draw(sample, key, pool, spec, num_tasks):
    # One program: operation by operation, a sampler is dozens of them.
    return sample(key, pool, spec, num_tasks)


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
        grad_norm = _norm(grads) if mesh is None else optax.tree.norm(grads)
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
    not use it again. From a pool on the host (`data.on_host`) images are read ahead by threads;
    the numbers are those of a pool on the device.

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
    train_state, source = put(train_state, source, mesh)
    options = {"num_tasks": num_tasks, "mesh": mesh}
    run = jit_steps(train_step, train_state, source, steps_per_call=steps_per_call, **options)
    run = run if program is None else program
    step, rows = int(train_state.step), []
    at_once = feed.steps_at_once(source, num_tasks, steps_per_call)
    dispatches = list(split_steps(step, num_steps, steps_per_call, at_once))
    starts = [first for first, _ in dispatches]
    with feed.pools_of_steps(source, key, starts, at_once=at_once, **options) as pools:
        for (step, length), pool in zip(dispatches, pools, strict=False):
            train_state, metrics = run(train_state, pool, key, np.int32(length))
            metrics = jax.tree.map(itemgetter(slice(length)), jax.device_get(metrics))
            _refuse_nonfinite(metrics["nonfinite"], step)
            rows.append(metrics)
            step += length
            if step % steps_per_call and step < num_steps:
                continue
            metrics, rows = jax.tree.map(lambda *parts: np.concatenate(parts), *rows), []
            if callback is not None and callback(train_state, metrics):
                break
    return train_state


def _norm(grads: PyTree) -> jax.Array:
    leaves = jax.tree.leaves(grads)
    # Leaves that are divided over devices cannot be laid end to end.
    divided = any(axis is not None for leaf in leaves for axis in jax.typeof(leaf).sharding.spec)
    if leaves and is_small(grads) and not divided:
        # One sum, where each leaf would have one of its own.
        return jnp.linalg.norm(jnp.concatenate([leaf.ravel() for leaf in leaves]))
    return optax.tree.norm(grads)


def _refuse_nonfinite(nonfinite: np.ndarray, step: int) -> None:
    bad = nonfinite.argmax()
    if nonfinite[bad]:
        # The loss of a class that has no output is no number, nor is that of pairs of which no two are the same.
        first = " Has the network an output for each class, and a task for siamese two images of a class?"
        raise FloatingPointError(
            f"The loss or its gradient is not a finite number at step {step + int(bad) + 1}. "
            "Try a smaller inner or outer learning rate, and inner_adam for Adam in the inner loop; "
            "jaxmeta.check.find_nonfinite names the inner step and the leaf." + ("" if step + bad else first)
        )
