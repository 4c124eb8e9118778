"""The judgement of a population: every member meets the same tasks."""

from collections.abc import Callable
from functools import cache, partial

import jax

from jaxmeta.base import Evaluation, Key, TrainState
from jaxmeta.budget import budget_bytes, largest_that_fits
from jaxmeta.data import TaskSource, task_keys
from jaxmeta.evaluate import judge_tasks, summarize
from jaxmeta.losses import Criterion
from jaxmeta.plan import halved
from jaxmeta.population import MakeLearner, Members, check_member_chunk, in_turn


def make_population_evaluator(
    make_learner: MakeLearner,
    criterion: Criterion,
    *,
    num_steps: int | None = None,
    task_chunk: int = 1,
    member_chunk: int | None = None,
    memory_mib: int | None = None,
) -> Callable[..., list[Evaluation]]:
    """Make an evaluator of whole populations, compiled once: every member meets the same tasks.

    Where so many members, or tasks, at once need more memory than there is, fewer are computed at once.

    Args:
      make_learner: As for `fit_population`.
      criterion: What tasks are judged by.
      num_steps: Inner steps; None for the number used in training.
      task_chunk: Tasks of each member computed at once.
      member_chunk: Members computed at once, the others after them; all if None.
      memory_mib: MiB that a device may use; None for what is at hand.

    Returns:
      `evaluator(everyone, train_states, source, key, num_tasks) -> [Evaluation]`, one for each
      member: that of `make_evaluator` on the member alone. It raises ValueError for a member_chunk that does
      not divide the members.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, EpisodeSpec, inner_sgd, load_sinusoid, maml, mlp, task_source
      >>> from jaxmeta import init_population, members
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
    fitting = {}

    @cache
    def judge_of(at_once: int, chunk: int):
        @partial(jax.jit, static_argnums=(0, 1))
        def judge_all(sample, spec, everyone, meta_params, state, pool, keys, first):
            episodes = sample(keys[0], pool, spec, chunk, first_task=first)
            task_noise = task_keys(keys[1], chunk, first_task=first)

            def of_member(member):
                _, hyper, meta_params, state = member
                judge = judge_tasks(make_learner(hyper), criterion, num_steps, spec.ways)
                return judge(meta_params, state, episodes, task_noise)

            return in_turn(of_member, (*everyone, meta_params, state), at_once)

        return judge_all

    def evaluator(everyone: Members, train_states: TrainState, source: TaskSource, key: Key, num_tasks: int):
        count = len(everyone.seeds)
        if member_chunk is not None:
            check_member_chunk(member_chunk, count)
        at_hand = everyone, train_states.meta_params, train_states.state, source.pool, tuple(jax.random.split(key))
        wanted = member_chunk or count
        sizes = [(at_once, task_chunk) for at_once in (wanted, *halved(wanted))]
        sizes += [(1, chunk) for chunk in halved(task_chunk)]
        if (given := (source.sample, source.spec, count)) not in fitting:

            def lower(*size):
                return judge_of(*size).lower(source.sample, source.spec, *at_hand, 0)

            held = at_hand[:-1]
            budget = budget_bytes(memory_mib, held, shared=False)
            fitting[given] = largest_that_fits(sizes, lower, budget, "Judging", shared=False)
        judge_all, chunk = judge_of(*fitting[given]), fitting[given][1]
        chunks = [judge_all(source.sample, source.spec, *at_hand, first) for first in range(0, num_tasks, chunk)]
        chunks = jax.device_get(chunks)
        return [
            summarize([{name: values[place] for name, values in chunk.items()} for chunk in chunks], num_tasks)
            for place in range(count)
        ]

    return evaluator
