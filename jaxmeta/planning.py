"""A run's plan: its candidates compiled, those that fit timed, and the best put in place."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxmeta import devices, processes
from jaxmeta.algorithms import ALGORITHMS, options_of
from jaxmeta.base import Key, PyTree, TrainState
from jaxmeta.bench.lowerings import describe, measure_lowerings
from jaxmeta.budget import budget_bytes
from jaxmeta.config import Config, ConfigError
from jaxmeta.device_memory import program_bytes
from jaxmeta.dispatch import compile_steps
from jaxmeta.folder import load_lowerings, lowerings_file, save_lowerings
from jaxmeta.nn.processor import device_name
from jaxmeta.plan import (
    SAME_GRADIENT,
    Candidate,
    DoesNotFit,
    Measured,
    Plan,
    different_chunks,
    fastest_plan,
    fit_plan,
    plan_table,
)
from jaxmeta.step_plan import time_steps
from jaxmeta.workspace import (
    Workspace,
    find_lowering,
    make_state,
    open_workspace,
    trace_judgement,
    trace_step,
    with_config,
)


class Planned(NamedTuple):
    """A workspace whose step fits, and the program that `fit` runs in it."""

    workspace: Workspace
    program: jax.stages.Compiled
    plan: Plan


def plan_run(
    workspace: Workspace,
    begin: Callable[[], TrainState],
    key: Key,
    *,
    mesh: Mesh | None = None,
    search: bool = False,
    memory_mib: int | None = None,
    precisions: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Planned:
    """Compile a run's step, smaller until it fits in memory; or search for the fastest way that fits.

    What is computed stays the same but for rounding: the chunk of tasks changes, `unrolled` may
    become another strategy that gives the same gradient, and the precision one of those allowed.

    Args:
      workspace: As the run was configured.
      begin: Makes the state to begin with.
      key: Of the run.
      mesh: Devices that share the tasks.
      search: Time the candidates, rather than take the first that fits.
      memory_mib: MiB that a device may use; None for what is at hand.
      precisions: Precisions that may take the place of the run's own.
      say: Told what is tried.

    Returns:
      The `Planned`; in several processes the same in each.

    Raises:
      ConfigError: if nothing fits.
    """
    config, source = workspace.config, workspace.sources["train"]
    if mesh is not None:
        # Once for all candidates, and for the run.
        source = source._replace(pool=devices.replicate(source.pool, mesh))
        workspace = workspace._replace(sources=workspace.sources | {"train": source})
    state = jax.eval_shape(begin)
    budget = budget_bytes(memory_mib, (state, source.pool), shared=True)
    programs: dict[Candidate, jax.stages.Compiled] = {}

    def compile_candidate(planned: Workspace, candidate: Candidate) -> jax.stages.Compiled:
        options = {"num_tasks": config.tasks, "steps_per_call": config.log_every, "mesh": mesh}
        program = programs[candidate] = compile_steps(planned.parts.train_step, state, source, key, **options)
        return program

    def seconds_of(candidate: Candidate) -> float:
        options = {"num_tasks": config.tasks, "steps_per_call": config.log_every, "mesh": mesh}
        return time_steps(programs[candidate], begin(), source, key, **options)

    wanted, others = _wanted(config)
    timed = seconds_of if search else None
    measure = _measurer(workspace, wanted, compile_candidate, budget=budget, say=say, mesh=mesh, seconds_of=timed)
    # On a CPU TF32 is float32.
    same = (config.precision, "tf32") if jax.default_backend() == "cpu" else (config.precision,)
    on_device = config.tasks if mesh is None else math.ceil(config.tasks / mesh.shape[devices.TASKS])
    chunks = different_chunks(config.tasks, wanted.task_chunk, on_device)
    limits = {"budget": budget, "precisions": [name for name in precisions if name not in same]}
    try:
        plan = (fastest_plan if search else fit_plan)(measure, wanted, chunks=chunks, others=others, **limits)
    except DoesNotFit as error:
        raise ConfigError(str(error)) from error
    return Planned(_computed_by(workspace, plan.chosen, mesh), programs[plan.chosen], plan)


def plan_population(
    workspace: Workspace,
    compile_candidate: Callable[[Workspace, Candidate], jax.stages.Compiled],
    held: PyTree,
    members: int,
    *,
    memory_mib: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Planned:
    """Compile the step of several runs, smaller until it fits in memory: fewer runs at once, then as `plan_run`.

    Args:
      workspace: As the runs were configured.
      compile_candidate: Compiles the step of all, `candidate.members` at once on a device.
      held: What is on each device already, and counts as the program's own.
      members: Runs on each device.
      memory_mib: MiB that a device may use; None for what is at hand.
      say: Told what is tried.

    Returns:
      The `Planned`; `plan.chosen.members` are computed at once.

    Raises:
      ConfigError: if nothing fits.
    """
    programs: dict[Candidate, jax.stages.Compiled] = {}

    def compile_and_keep(planned: Workspace, candidate: Candidate) -> jax.stages.Compiled:
        program = programs[candidate] = compile_candidate(planned, candidate)
        return program

    budget, (wanted, others) = budget_bytes(memory_mib, held, shared=True), _wanted(workspace.config)
    wanted = wanted._replace(members=members)
    measure = _measurer(workspace, wanted, compile_and_keep, budget=budget, say=say)
    try:
        plan = fit_plan(measure, wanted, budget=budget, others=others)
    except DoesNotFit as error:
        raise ConfigError(str(error)) from error
    return Planned(_computed_by(workspace, plan.chosen), programs[plan.chosen], plan)


def _wanted(config: Config) -> tuple[Candidate, Sequence[str]]:
    """Give what a configuration asks for, and the strategies that may take the place of its own."""
    # A learner that takes no strategy has no inner loop, or always the same one: others would be the same program.
    metagrad = config.metagrad if "metagrad" in options_of(ALGORITHMS[config.algorithm]) else None
    others = SAME_GRADIENT if metagrad in SAME_GRADIENT and config.estimator == "exact" else ()
    return Candidate(metagrad, config.task_chunk or 1, config.precision), others


def _computed_by(workspace: Workspace, candidate: Candidate, mesh: Mesh | None = None) -> Workspace:
    # What is wanted is built, and traced, already.
    config = workspace.config
    of_config = {name: value for name, value in candidate._asdict().items() if value and name != "members"}
    changed = dataclasses.replace(config, **of_config)
    return workspace if changed == config else with_config(workspace, changed, mesh)


def _measurer(
    workspace: Workspace,
    wanted: Candidate,
    compile_candidate: Callable[[Workspace, Candidate], jax.stages.Compiled],
    *,
    budget: int | None,
    say: Callable[[str], None],
    mesh: Mesh | None = None,
    seconds_of: Callable[[Candidate], float] | None = None,
) -> Callable[[Candidate], Measured | None]:
    """Make what compiles a candidate, and times it if it fits and that is wanted."""

    def measure(candidate: Candidate) -> Measured | None:
        try:
            planned = _computed_by(workspace, candidate, mesh)
            if candidate.metagrad != wanted.metagrad:
                trace_step(planned)
        except ConfigError as error:
            say(f"{candidate.metagrad} cannot serve this run: {error}")
            return None
        clock = time.perf_counter()
        num_bytes = processes.agreed(program_bytes(compile_candidate(planned, candidate)))
        compile_seconds, seconds = time.perf_counter() - clock, None
        if seconds_of is not None and (budget is None or num_bytes <= budget):
            seconds = seconds_of(candidate)
        said = "" if seconds is None else f", {seconds:.4f} s a step"
        way = [candidate.metagrad, f"{candidate.task_chunk} task{'' if candidate.task_chunk == 1 else 's'} at once"]
        way.append(None if candidate.precision == wanted.precision else candidate.precision)
        way.append(f"{candidate.members} of the runs at once" if candidate.members else None)
        say(
            f"{', '.join(filter(None, way))}: compiled in {compile_seconds:.1f} s, "
            f"{num_bytes / 2**20:.0f} MiB a device{said}"
        )
        return Measured(candidate, num_bytes, compile_seconds, seconds)

    return measure


def show_plan(
    config: Config,
    *,
    mesh: Mesh | None = None,
    search: bool = True,
    memory_mib: int | None = None,
    precisions: Sequence[str] = (),
    lowerings: bool = False,
    pool: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Plan a run without training, and show what was tried.

    Args:
      config: A checked configuration.
      mesh: Devices that share the tasks.
      search: Time the candidates, rather than take the first that fits.
      memory_mib: MiB that a device may use; None for what is at hand.
      precisions: Precisions that may take the place of the run's own.
      lowerings: Also measure how each convolution of the step is computed best, as configured and as
        planned, and keep that for all runs on this kind of device.
      pool: Where the images are kept: "device", "host", or "auto": on the device if they fit there.
      say: Told what goes on.

    Returns:
      Markdown.

    Raises:
      ConfigError: if nothing fits.
    """
    workspace = open_workspace(config, mesh, find_lowering(), pool=pool, memory_mib=memory_mib)
    trace_step(workspace)
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    limits = {"mesh": mesh, "search": search, "memory_mib": memory_mib, "precisions": precisions, "say": say}
    planned = plan_run(workspace, partial(make_state, workspace, key_init), key_train, **limits)
    if not lowerings:
        return plan_table(planned.plan)
    cases = {**trace_step(workspace), **trace_step(planned.workspace), **trace_judgement(planned.workspace)}
    table, timings = measure_lowerings(cases, say=say)
    path = lowerings_file(device_name())
    earlier = load_lowerings(path)
    processes.on_first(lambda: save_lowerings(path, table if earlier is None else table.extended(earlier)))
    return "\n".join([plan_table(planned.plan), "", *map(describe, timings), "", f"Written: {path}"])
