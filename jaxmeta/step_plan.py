"""Outer steps of one's own that fit in memory, or are the fastest that do: what `jaxmeta train --plan` is for a run."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmeta import devices, feed, processes
from jaxmeta.base import Key, TrainState
from jaxmeta.budget import budget_bytes
from jaxmeta.data import TaskSource
from jaxmeta.device_memory import program_bytes
from jaxmeta.dispatch import TrainStep, compile_steps
from jaxmeta.plan import (
    Candidate,
    Measured,
    Plan,
    choose_task_chunk,
    different_chunks,
    fastest_plan,
    fit_plan,
)

# Seconds that a candidate is run for, after a first step.
RUN_SECONDS = 1.0


class PlannedSteps(NamedTuple):
    """A train step that fits, and its program, as `fit` takes them.

    Attributes:
      train_step: Made for the candidate that was chosen.
      program: Compiled, for `fit(..., program=)`.
      plan: What was chosen, and among what; `plan_table` shows it.
    """

    train_step: TrainStep
    program: jax.stages.Compiled
    plan: Plan


def plan_steps(
    make_step: Callable[[Candidate], TrainStep | None],
    train_state: TrainState,
    source: TaskSource,
    key: Key,
    *,
    num_tasks: int,
    steps_per_call: int = 10,
    metagrads: Sequence[str] = (),
    task_chunk: int | None = None,
    mesh: Mesh | None = None,
    memory_mib: int | None = None,
    search: bool = False,
) -> PlannedSteps:
    """Compile outer steps, smaller until they fit in memory; or search for what is clearly the fastest that fits.

    More tasks than fit are a slower step, and not an error: fewer are computed at once, then another strategy
    keeps less.

    Args:
      make_step: Makes the train step of a candidate, for its `task_chunk` and, where metagrads are given, its
        `metagrad`; None if that cannot serve.
      train_state: The state to train, which is left as it is; without a search its shapes will do.
      source: Where tasks come from.
      key: As for `fit`.
      num_tasks: Tasks in a step.
      steps_per_call: As for `fit`.
      metagrads: Names of strategies, what is wanted first; they should give the same gradient. Empty where there is
        no choice.
      task_chunk: Tasks computed at once to begin with; None: what suits the machine.
      mesh: As given to `make_train_step` in `make_step`, and to `fit`.
      memory_mib: MiB that a device may use; None for what is at hand.
      search: Time the candidates, rather than take the first that fits.

    Returns:
      The `PlannedSteps`; the same in every process of a mesh.

    Raises:
      ValueError: if nothing fits; it says by how much, and what would.

    Example:
      >>> import jax, optax
      >>> from jaxmeta import CRITERIA, METAGRADS, EpisodeSpec, load_sinusoid, maml, mlp, task_source
      >>> from jaxmeta import fit, init_train_state, make_train_step
      >>> criterion, optimizer = CRITERIA["regression"], optax.adam(1e-3)
      >>> def make_step(way):
      ...     strategy = METAGRADS[way.metagrad]()
      ...     learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), metagrad=strategy, criterion=criterion)
      ...     return make_train_step(learner, optimizer, task_chunk=way.task_chunk)
      >>> source, key = task_source(load_sinusoid(), "train", EpisodeSpec(1, 10, 10)), jax.random.key(0)
      >>> learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=criterion)
      >>> state = init_train_state(key, learner, optimizer, source, num_tasks=4)
      >>> step, program, plan = plan_steps(make_step, state, source, key, num_tasks=4, metagrads=["unrolled"])
      >>> plan.chosen.metagrad, plan.chosen.task_chunk
      ('unrolled', 4)
      >>> int(fit(step, state, source, key, num_tasks=4, num_steps=30, program=program).step)
      30
    """
    if task_chunk is None:
        tasks = jax.eval_shape(lambda: source.sample(key, source.pool, source.spec, 1))
        task_chunk = choose_task_chunk(num_tasks, tasks.support.inputs.size + tasks.query.inputs.size)
    if mesh is not None:
        # Once for all candidates.
        source = source._replace(pool=devices.replicate(source.pool, mesh))
    made, shared = {}, processes.is_shared(mesh)
    budget = budget_bytes(memory_mib, (train_state, source.pool), shared=shared)
    options = {"num_tasks": num_tasks, "steps_per_call": steps_per_call, "mesh": mesh}

    def measure(candidate: Candidate) -> Measured | None:
        clock = time.perf_counter()
        if (train_step := make_step(candidate)) is None:
            return None
        program = compile_steps(train_step, train_state, source, key, **options)
        made[candidate] = train_step, program
        compile_seconds, num_bytes = time.perf_counter() - clock, program_bytes(program)
        num_bytes = processes.agreed(num_bytes) if shared else num_bytes
        if not search or budget is not None and num_bytes > budget:
            return Measured(candidate, num_bytes, compile_seconds, None)
        # The state handed in is donated.
        seconds = time_steps(program, jax.tree.map(jnp.copy, train_state), source, key, **options)
        return Measured(candidate, num_bytes, compile_seconds, seconds)

    wanted = Candidate(metagrads[0] if metagrads else None, task_chunk)
    on_device = num_tasks if mesh is None else math.ceil(num_tasks / mesh.shape[devices.TASKS])
    chunks = different_chunks(num_tasks, task_chunk, on_device)
    plan = (fastest_plan if search else fit_plan)(measure, wanted, chunks=chunks, others=metagrads, budget=budget)
    train_step, program = made[plan.chosen]
    return PlannedSteps(train_step, program, plan)


def time_steps(
    program: jax.stages.Compiled,
    train_state: TrainState,
    source: TaskSource,
    key: Key,
    *,
    num_tasks: int,
    steps_per_call: int,
    mesh: Mesh | None,
) -> float:
    """Give the seconds of an outer step, the same in every process that shares it; the state is donated."""
    at_once = feed.steps_at_once(source, num_tasks, steps_per_call)
    with feed.pools_of_steps(source, key, [0], num_tasks=num_tasks, at_once=at_once, mesh=mesh) as pools:
        pool = next(pools)
    if mesh is not None:
        train_state = devices.place(train_state, mesh)
    length, seconds = 1, 0.0
    for _ in range(3):
        clock = time.perf_counter()
        train_state, metrics = program(train_state, pool, key, np.int32(length))
        jax.block_until_ready(metrics)
        seconds = time.perf_counter() - clock
        seconds = (processes.agreed(seconds) if processes.is_shared(mesh) else seconds) / length
        length = max(1, min(at_once, round(RUN_SECONDS / seconds)))
    return seconds
