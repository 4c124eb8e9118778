"""Evaluation: adapt to held-out tasks, predict their query sets, report a mean and its interval."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmeta import devices, feed, processes
from jaxmeta.base import Evaluation, Key, MetaLearner, Predicted, PyTree, TrainState
from jaxmeta.budget import budget_bytes, largest_that_fits
from jaxmeta.data import TaskSource, number_of_tasks, task_keys
from jaxmeta.losses import Criterion, accuracy
from jaxmeta.metrics import estimate
from jaxmeta.plan import halved


def make_evaluator(
    learner: MetaLearner,
    criterion: Criterion,
    *,
    num_steps: int | None = None,
    task_chunk: int = 1,
    mesh: Mesh | None = None,
    memory_mib: int | None = None,
) -> Callable[..., Evaluation]:
    """Make an evaluator that compiles once for episodes of one size, whichever split they are from.

    Tasks have more queries here than in training, and more inner steps: where so many at once need more memory than
    there is, fewer are computed at once. No number that comes out depends on that but for rounding.

    Args:
      learner: The algorithm.
      criterion: What tasks are judged by.
      num_steps: Inner steps; None for the number used in training.
      task_chunk: Tasks computed at once, on each device; fewer where they do not fit.
      mesh: From `make_mesh`: each device draws and judges its own tasks.
      memory_mib: MiB that a device may use; None for what is at hand.

    Returns:
      `evaluator(meta_params, state, source, key, num_tasks) -> Evaluation`. Task i is a
      function of the key and i alone, so that two learners meet the same tasks. It raises ValueError for more tasks
      than a fixed source has, and where accuracy is asked for, for tasks of more classes than the learner has outputs.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, load_sinusoid, maml, mlp, task_source
      >>> learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
      >>> source = task_source(load_sinusoid(), "test", EpisodeSpec(1, 5, 10))
      >>> meta_params, state = learner.init(jax.random.key(0), jax.numpy.ones([5, 1]))
      >>> evaluator = make_evaluator(learner, CRITERIA["regression"], num_steps=10, task_chunk=25)
      >>> evaluator(meta_params, state, source, jax.random.key(1), 600).num_tasks
      600
    """
    tasks = _judged_tasks(learner, criterion, num_steps)
    num_devices, fitting = 1 if mesh is None else mesh.shape[devices.TASKS], {}

    @cache
    def judge_of(chunk: int) -> _Judge:
        return _on_one_device(tasks, chunk) if mesh is None else _on_each_device(tasks, chunk, mesh)

    def fit_chunk(meta_params, state, source, keys) -> int:
        """Compile for a chunk that fits."""

        def lower(chunk):
            with feed.pools_of_tasks(source, keys[0], [0], num_tasks=chunk * num_devices, mesh=mesh) as pools:
                return judge_of(chunk).lower(meta_params, state, source._replace(pool=next(pools)), keys, 0)

        # On one device tasks are drawn by a program of their own, and what is fed comes for each chunk anew.
        held = (meta_params, state, () if mesh is None or feed.is_fed(source) else source.pool)
        sizes = ((size,) for size in (task_chunk, *halved(task_chunk)))
        shared = processes.is_shared(mesh)
        budget = budget_bytes(memory_mib, held, shared=shared)
        return largest_that_fits(sizes, lower, budget, "Judging", shared=shared)[0]

    def evaluator(meta_params: PyTree, state: PyTree, source: TaskSource, key: Key, num_tasks: int) -> Evaluation:
        most = number_of_tasks(source)
        if most is not None and num_tasks > most:
            raise ValueError(f"{num_tasks} tasks were asked for, and there are {most}: judge {most} at most.")
        if mesh is not None:
            placed = devices.place(TrainState((), meta_params, state, (), ()), mesh)  # pyright: ignore
            meta_params, state = placed.meta_params, placed.state
            source = source._replace(pool=devices.replicate(source.pool, mesh))
        keys, fed, chunks = tuple(jax.random.split(key)), feed.is_fed(source), []
        size = source.sample, source.spec, fed
        if size not in fitting:
            fitting[size] = fit_chunk(meta_params, state, source, keys)
        judge_chunk, at_once = judge_of(fitting[size]).run, fitting[size] * num_devices
        starts = range(0, num_tasks, at_once)
        with feed.pools_of_tasks(source, keys[0], starts, num_tasks=at_once, mesh=mesh) as pools:
            for first, pool in zip(starts, pools, strict=False):
                chunk = judge_chunk(meta_params, state, source._replace(pool=pool), keys, first)
                # Programs of many devices wait for one another in the middle: on a busy CPU, several of them queued at
                # once were seen to wait for ever, each holding the thread that another needed.
                chunks.append(chunk if mesh is None else jax.device_get(chunk))
                check_outputs(chunk[1], criterion, source.spec.ways)
                if fed and len(chunks) > 1:
                    # What is queued holds its images on the device: one chunk at work, one behind it.
                    jax.block_until_ready(chunks[-2])
        leaves = zip(*(predicted for _, predicted in chunks), strict=True)
        predicted = Predicted(*(np.concatenate(parts)[:num_tasks] for parts in leaves))
        return summarize([metrics for metrics, _ in chunks], num_tasks)._replace(predicted=predicted)

    return evaluator


def evaluate(
    learner: MetaLearner,
    meta_params: PyTree,
    state: PyTree,
    source: TaskSource,
    key: Key,
    *,
    criterion: Criterion,
    num_tasks: int = 600,
    num_steps: int | None = None,
    task_chunk: int = 1,
) -> Evaluation:
    """Evaluate once; see `make_evaluator` for doing it again without compiling again.

    Args:
      learner: The algorithm.
      meta_params: Its meta-parameters.
      state: Its state.
      source: Where tasks come from.
      key: Source of all randomness.
      criterion: What tasks are judged by.
      num_tasks: Number of tasks; papers use 600 or more.
      num_steps: Inner steps; None for the number used in training.
      task_chunk: Tasks computed at once.

    Returns:
      An `Evaluation`: for each metric the mean over tasks, half its 95 % interval, every task's value; and
      what was predicted.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, load_sinusoid, maml, mlp, task_source
      >>> criterion = CRITERIA["regression"]
      >>> learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=criterion)
      >>> source = task_source(load_sinusoid(), "test", EpisodeSpec(1, 5, 10))
      >>> key = jax.random.key(0)
      >>> meta_params, state = learner.init(key, jax.numpy.ones([5, 1]))
      >>> result = evaluate(learner, meta_params, state, source, key, criterion=criterion, num_tasks=100)
      >>> result.metrics["mse"].per_task.shape
      (100,)
    """
    evaluator = make_evaluator(learner, criterion, num_steps=num_steps, task_chunk=task_chunk)
    return evaluator(meta_params, state, source, key, num_tasks)


def judge_tasks(learner: MetaLearner, criterion: Criterion, num_steps: int | None, ways: int):
    """Make `(meta_params, state, episodes, keys) -> metrics`, of every task of so many ways for itself."""
    tasks = _judged_tasks(learner, criterion, num_steps)

    def judge(meta_params, state, episodes, keys):
        metrics, predicted = tasks(meta_params, state, episodes, keys)
        check_outputs(predicted, criterion, ways)
        return metrics

    return judge


def _judged_tasks(learner: MetaLearner, criterion: Criterion, num_steps: int | None):
    """Make a function as `judge_tasks` does, that also gives the predictions behind the metrics."""

    def judge(meta_params, state, episode, key):
        key_adapt, key_predict = jax.random.split(key)
        adapted = learner.adapt(meta_params, state, episode.support, key_adapt, num_steps=num_steps)
        # Who is judged does not see the labels.
        unlabelled = episode.query._replace(targets=jnp.zeros_like(episode.query.targets))
        outputs = learner.predict(adapted, unlabelled, key_predict)
        targets, weights = episode.query.targets, episode.query.weights
        metrics = {name: metric(outputs, targets, weights) for name, metric in criterion.metrics.items()}
        return metrics, Predicted(outputs, targets, weights)

    return jax.vmap(judge, in_axes=(None, None, 0, 0))


def summarize(chunks: list[dict], num_tasks: int) -> Evaluation:
    """Put chunks of metrics together; what the last one has beyond num_tasks is cut off."""
    per_task = {name: np.concatenate([chunk[name] for chunk in chunks])[:num_tasks] for name in chunks[0]}
    return Evaluation({name: estimate(values) for name, values in per_task.items()}, num_tasks)


def check_outputs(predicted: Predicted, criterion: Criterion, ways: int) -> None:
    """Refuse logits of fewer classes than the tasks have: what is true could never be predicted."""
    outputs = predicted.outputs
    # Another criterion may read its outputs otherwise.
    if accuracy in criterion.metrics.values() and outputs.shape[-1] < ways:
        raise ValueError(
            f"Tasks have {ways} classes, and the learner predicts {outputs.shape[-1]}: make it, and its network, for "
            f"{ways} classes."
        )


@partial(jax.jit, static_argnums=(0, 3, 4))
def draw_tasks(sample, key, pool, spec, num_tasks, first_task):
    """Draw tasks from `first_task` on, compiled once for each number of them."""
    return sample(key, pool, spec, num_tasks, first_task=first_task)


class _Judge(NamedTuple):
    """How so many tasks are judged: `(meta_params, state, source, keys, first_task)` to results, or to the program."""

    run: Callable[..., Any]
    lower: Callable[..., jax.stages.Lowered]


def _on_one_device(tasks, task_chunk) -> _Judge:
    tasks = jax.jit(tasks)

    def drawn(meta_params, state, source, keys, first):
        episodes = draw_tasks(source.sample, keys[0], source.pool, source.spec, task_chunk, first)
        return meta_params, state, episodes, task_keys(keys[1], task_chunk, first_task=first)

    return _Judge(lambda *given: tasks(*drawn(*given)), lambda *given: tasks.lower(*drawn(*given)))


def _on_each_device(tasks, task_chunk, mesh) -> _Judge:
    # What comes back is whole on every device, so that every process can read it.
    @partial(jax.jit, static_argnums=(0, 1), out_shardings=NamedSharding(mesh, PartitionSpec()))
    def judge_all(sample, spec, meta_params, state, pool, keys, first):
        def of_device(meta_params, state, pool, keys, first):
            first = first + jax.lax.axis_index(devices.TASKS) * task_chunk
            episodes = sample(keys[0], pool, spec, task_chunk, first_task=first)
            return tasks(meta_params, state, episodes, task_keys(keys[1], task_chunk, first_task=first))

        by_task, whole = PartitionSpec(devices.TASKS), PartitionSpec()
        in_specs = whole, whole, devices.pool_specs(pool), whole, whole
        judge = devices.on_each_device(of_device, mesh, in_specs=in_specs, out_specs=by_task)
        return judge(meta_params, state, pool, keys, first)

    def given(meta_params, state, source, keys, first):
        return source.sample, source.spec, meta_params, state, source.pool, keys, first

    return _Judge(lambda *of: judge_all(*given(*of)), lambda *of: judge_all.lower(*given(*of)))
