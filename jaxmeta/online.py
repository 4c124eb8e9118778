"""Online meta-learning: tasks arrive one after the other, and each is to be learned faster than the last.

    round t:  judge  U_t(theta_t) on the new task, as its data grows      (its loss is what the learner regrets)
              store  the task's data among those seen
              learn  theta_{t+1} = theta_t - b grad_theta mean_{tasks seen} L_query(U(theta)),  k times

where `U(theta)` is `adapt`. This is "follow the meta-leader": theta_t is what would have been best so far.

Finn, Rajeswaran, Kakade and Levine, "Online Meta-Learning", 2019, arXiv 1902.08438.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta.base import Batch, Episode, Estimator, Key, MetaLearner, Metrics, TrainState
from jaxmeta.data import EpisodeSpec, TaskSource, task_keys
from jaxmeta.dispatch import drawn_step
from jaxmeta.evaluate import judge_tasks
from jaxmeta.losses import Criterion
from jaxmeta.metagrad import check_count
from jaxmeta.train import init_train_state, make_train_step


class TaskBuffer(NamedTuple):
    """The data of the last tasks: arrays of one size, written in a circle.

    Attributes:
      data: A `Batch` with leaves `[capacity, examples, ...]`.
      count: Tasks stored so far, int32 scalar; the next goes to slot `count % capacity`.
    """

    data: Batch
    count: jax.Array


class OnlineState(NamedTuple):
    """Everything the next round needs: arrays only."""

    train_state: TrainState
    buffer: TaskBuffer


class OnlineLearner(NamedTuple):
    """A learner that tasks arrive at, as pure functions. A task is an `Episode`: its data, and its test set.

    Attributes:
      init: `(key, task) -> OnlineState`; the task is an example, for its shapes.
      judge: `(online_state, task, key) -> metrics`, leaves `[sizes]`: after adapting to so many examples.
      learn: `(online_state, task, key) -> OnlineState`: stores the task's data, and learns from the buffer.
    """

    init: Callable[[Key, Episode], OnlineState]
    judge: Callable[[OnlineState, Episode, Key], Metrics]
    learn: Callable[[OnlineState, Episode, Key], OnlineState]


def follow_the_meta_leader(
    learner: MetaLearner,
    optimizer: optax.GradientTransformation,
    *,
    criterion: Criterion,
    spec: EpisodeSpec,
    sizes: Sequence[int],
    capacity: int = 64,
    meta_updates: int = 10,
    num_tasks: int = 8,
    num_steps: int | None = None,
    estimator: Estimator | None = None,
    task_chunk: int | None = None,
) -> OnlineLearner:
    """Make follow-the-meta-leader: `theta_{t+1}` is trained on all tasks seen, from `theta_t` on, k steps a round.

    The data of a task is its support set, in the order of its arrival; its query set is for judgement
    alone. Learning splits the data anew each time. A `task_source` of classes gives them one class after the
    other: shuffle such a support set before, or the first to arrive are all of one class.

    Args:
      learner: Any algorithm.
      optimizer: The outer optimiser.
      criterion: What tasks are judged by.
      spec: How stored data is split: ways * shots examples to adapt to, and ways * queries to be judged
        on. Class numbers are kept, and the examples of a class divided as evenly as they allow.
      sizes: How many examples have arrived at each judgement, 0 for before the first.
      capacity: Tasks kept; the oldest is overwritten.
      meta_updates: k, outer steps in a round; 0 learns nothing.
      num_tasks: Stored tasks in an outer step, drawn with replacement.
      num_steps: Inner steps in judgement; None for the number used in training.
      estimator: As for `make_train_step`.
      task_chunk: As for `make_train_step`.

    Returns:
      An `OnlineLearner`; `fit_online` runs it.

    Raises:
      ValueError: for numbers that are none; at trace time, for a task with less data than spec and sizes ask for.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, inner_sgd, load_sinusoid, maml, mlp, task_source
      >>> criterion = CRITERIA["regression"]
      >>> learner = maml(mlp(1), inner_optimizer=inner_sgd(0.01), criterion=criterion)
      >>> options = {"criterion": criterion, "spec": EpisodeSpec(1, 5, 5), "sizes": [0, 10]}
      >>> online = follow_the_meta_leader(learner, optax.adam(1e-3), **options)
      >>> source = task_source(load_sinusoid(), "train", EpisodeSpec(1, 10, 20))
      >>> task = jax.tree.map(lambda leaf: leaf[0], source.sample(jax.random.key(0), (), source.spec, 1))
      >>> online_state = online.init(jax.random.key(1), task)
      >>> jax.jit(online.judge)(online_state, task, jax.random.key(2))["mse"].shape
      (2,)

    Source: Finn, Rajeswaran, Kakade and Levine, 2019, arXiv 1902.08438.
    """
    for name, number, least in (
        ("capacity", capacity, 1),
        ("meta_updates", meta_updates, 0),
        ("num_tasks", num_tasks, 1),
    ):
        check_count("follow_the_meta_leader", name, number, least)
    if not sizes or min(sizes) < 0:
        raise ValueError(f"follow_the_meta_leader needs sizes of at least 0, one or more; given {list(sizes)}.")
    train_step = make_train_step(learner, optimizer, estimator=estimator, task_chunk=task_chunk)
    source = TaskSource(sample_buffer, None, spec)

    def init(key, task: Episode):
        _check_task(task, spec, sizes)
        data = jax.tree.map(lambda leaf: jnp.zeros((capacity, *jnp.shape(leaf)), leaf.dtype), task.support)
        buffer = TaskBuffer(data, jnp.int32(0))
        stored = source._replace(pool=buffer)
        train_state = init_train_state(key, learner, optimizer, stored, num_tasks=num_tasks, estimator=estimator)
        return OnlineState(train_state, buffer)

    def judge(online_state: OnlineState, task: Episode, key):
        _check_task(task, spec, sizes)
        arrived = jnp.arange(task.support.weights.shape[0]) < jnp.asarray(sizes)[:, None]
        grown = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(sizes), *jnp.shape(leaf))), task)
        grown = grown._replace(support=grown.support._replace(weights=grown.support.weights * arrived))
        _, meta_params, state, _, _ = online_state.train_state
        judge_grown = judge_tasks(learner, criterion, num_steps, spec.ways)
        return judge_grown(meta_params, state, grown, task_keys(key, len(sizes)))

    def learn(online_state: OnlineState, task: Episode, key):
        buffer = store(online_state.buffer, task.support)
        step = drawn_step(train_step, source, num_tasks)
        # Each update draws from the key and the number of updates so far.
        train_state = jax.lax.fori_loop(
            0, meta_updates, lambda _, train_state: step(train_state, buffer, key)[0], online_state.train_state
        )
        return OnlineState(train_state, buffer)

    return OnlineLearner(init, judge, learn)


def fit_online(
    online: OnlineLearner, online_state: OnlineState, tasks: Iterable[Episode], key: Key
) -> tuple[OnlineState, dict[str, np.ndarray]]:
    """Run a round for every task: judge, then learn. Compiled once for all rounds.

    Round t draws from `fold_in(key, t)`, t counted from the very first task: a state that was kept goes on
    exactly as if it had never stopped. The state handed in is donated: do not use it again.

    Args:
      online: From `follow_the_meta_leader`.
      online_state: Where to begin, from `online.init`.
      tasks: Episodes of one size, as they arrive: a list, a generator, `map(function, range(rounds))`.
      key: Source of all randomness.

    Returns:
      The last state, and the metrics `[rounds, sizes]`. Their sum over rounds is the cumulative loss;
      less that of a comparator, the regret. Where learning broke down they are not numbers from then on.

    Raises:
      ValueError: if no task arrives.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, inner_sgd, load_sinusoid, maml, mlp, task_source
      >>> criterion = CRITERIA["regression"]
      >>> learner = maml(mlp(1), inner_optimizer=inner_sgd(0.01), criterion=criterion)
      >>> options = {"criterion": criterion, "spec": EpisodeSpec(1, 5, 5), "sizes": [0, 10]}
      >>> online = follow_the_meta_leader(learner, optax.adam(1e-3), **options)
      >>> source = task_source(load_sinusoid(), "train", EpisodeSpec(1, 10, 20))
      >>> episodes = source.sample(jax.random.key(0), (), source.spec, 3)
      >>> tasks = [jax.tree.map(lambda leaf: leaf[t], episodes) for t in range(3)]
      >>> online_state = online.init(jax.random.key(1), tasks[0])
      >>> online_state, metrics = fit_online(online, online_state, tasks, jax.random.key(2))
      >>> metrics["mse"].shape, int(online_state.train_state.step)
      ((3, 2), 30)
    """

    def one_round(online_state, task, key):
        key_judge, key_learn = jax.random.split(jax.random.fold_in(key, online_state.buffer.count))
        metrics = online.judge(online_state, task, key_judge)
        return online.learn(online_state, task, key_learn), metrics

    compiled, rows = jax.jit(one_round, donate_argnums=0), []
    for task in tasks:
        online_state, row = compiled(online_state, task, key)
        rows.append(row)
    if not rows:
        raise ValueError("fit_online needs at least one task; tasks is empty.")
    return online_state, jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(rows))


def store(buffer: TaskBuffer, data: Batch) -> TaskBuffer:
    """Write a task's data over the oldest: `slot = count % capacity`."""
    slot = buffer.count % buffer.data.weights.shape[0]
    return TaskBuffer(jax.tree.map(lambda kept, new: kept.at[slot].set(new), buffer.data, data), buffer.count + 1)


def sample_buffer(
    key: Key, buffer: TaskBuffer, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Draw tasks from the filled slots, each with its data split anew: a `sample` of `TaskSource`."""
    filled = jnp.clip(buffer.count, 1, buffer.data.weights.shape[0])

    def one_task(key):
        key_slot, key_split = jax.random.split(key)
        slot = jax.random.randint(key_slot, [], 0, filled)
        return _split(key_split, jax.tree.map(lambda leaf: leaf[slot], buffer.data), spec)

    return jax.vmap(one_task)(task_keys(key, num_tasks, first_task=first_task))


def _split(key: Key, data: Batch, spec: EpisodeSpec) -> Episode:
    """Draw a support and a query set: examples in random order, every class's first before any class's second."""
    scores = jnp.where(data.weights > 0, jax.random.uniform(key, data.weights.shape), 2.0)
    rank = jnp.zeros(scores.shape)
    if jnp.issubdtype(data.targets.dtype, jnp.integer):
        before = (data.targets[:, None] == data.targets) & (scores < scores[:, None])
        rank = jnp.sum(before, 1)
    # Padding comes last: no rank is as high.
    order = jnp.argsort(scores + rank + jnp.where(data.weights > 0, 0, 2 * scores.size))
    of_support, of_query = spec.ways * spec.shots, spec.ways * spec.queries
    chosen = order[:of_support], order[of_support : of_support + of_query]
    return Episode(*(jax.tree.map(lambda leaf, part=part: leaf[part], data) for part in chosen))


def _check_task(task: Episode, spec: EpisodeSpec, sizes: Sequence[int]) -> None:
    examples, needed = task.support.weights.shape[0], spec.ways * (spec.shots + spec.queries)
    if examples < max(needed, *sizes):
        raise ValueError(
            f"A task arrives with {examples} examples in its support set, but spec {tuple(spec)} splits {needed} and "
            f"sizes go to {max(sizes)}. Give the tasks more examples, or ask for fewer."
        )
