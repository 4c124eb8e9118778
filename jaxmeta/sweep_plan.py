"""The runs of a sweep before their first step: who they are, and how their common step fits in memory."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxmeta.base import TrainState
from jaxmeta.config import Config
from jaxmeta.devices import TASKS
from jaxmeta.folder import write_atomically, write_config
from jaxmeta.parts import build
from jaxmeta.plan import Candidate, Plan, divisors, plan_table
from jaxmeta.planning import Planned, plan_population
from jaxmeta.population import Members, compile_population, init_population, members
from jaxmeta.workspace import Workspace, keep_lowerings, trace_judgement, trace_step


class Runs(NamedTuple):
    """The runs of a sweep: who they are, what each is configured to, and where it goes."""

    everyone: Members
    configs: list[Config]
    folders: list[Path]


def list_runs(config: Config, out: Path, seeds: int, inner_lrs: Sequence[float]) -> Runs:
    """List the runs of so many seeds, each with every inner learning rate."""
    numbers, rates = range(config.seed, config.seed + seeds), tuple(inner_lrs) or (config.inner_lr,)
    # In the order of `members`: the seed changes fastest.
    configs = [dataclasses.replace(config, seed=seed, inner_lr=rate) for rate in rates for seed in numbers]
    folders = [out / f"seed{one.seed}{f'-inner-lr{one.inner_lr:g}' if inner_lrs else ''}" for one in configs]
    return Runs(members(numbers, inner_lr=rates), configs, folders)


def learner_of(workspace: Workspace, hyper):
    """Build the learner of a run from the numbers in which it differs."""
    config = dataclasses.replace(workspace.config, **hyper)
    return build(config, workspace.dataset, lowering=workspace.lowering).learner


def plan_runs(
    workspace: Workspace, runs: Runs, mesh: Mesh | None, memory_mib: int | None, say: Callable[[str], None]
) -> tuple[Planned, TrainState]:
    """Begin every run, and compile the step of all so that it fits in memory."""
    config, source, parts = workspace.config, workspace.sources["train"], workspace.parts
    options: dict[str, Any] = {"num_tasks": config.tasks, "estimator": parts.estimator}
    # On the host until training begins: what a device holds then is its share of them.
    states = jax.device_get(
        init_population(runs.everyone, partial(learner_of, workspace), parts.optimizer, source, **options)
    )

    def compile_candidate(planned: Workspace, candidate: Candidate) -> jax.stages.Compiled:
        return compile_population(
            runs.everyone,
            states,
            partial(learner_of, planned),
            planned.parts.optimizer,
            source,
            num_tasks=config.tasks,
            steps_per_call=config.log_every,
            estimator=planned.parts.estimator,
            task_chunk=candidate.task_chunk,
            member_chunk=candidate.members,
            mesh=mesh,
        )

    on_device = math.ceil(len(runs.folders) / (1 if mesh is None else mesh.shape[TASKS]))
    planned = plan_population(workspace, compile_candidate, source.pool, on_device, memory_mib=memory_mib, say=say)
    return planned, states


def keep_runs(out: Path, workspace: Workspace, runs: Runs, plan: Plan) -> None:
    """Write the folder of every run, how its convolutions are computed, and the plan if the first did not fit."""
    at_once, judged = plan.chosen.members, judged_at_once(runs, plan)
    # A run that goes on does so by itself.
    cases = {**trace_step(workspace), **trace_judgement(workspace)}
    cases |= {**trace_step(workspace, at_once), **trace_judgement(workspace, judged)}
    for one, folder in zip(runs.configs, runs.folders, strict=True):
        write_config(folder, one, workspace.dataset)
        keep_lowerings(folder, cases, workspace.lowering)
    if len(plan.tried) > 1:
        write_atomically(out / "plan.md", plan_table(plan) + "\n")


def judged_at_once(runs: Runs, plan: Plan) -> int:
    """Tell how many runs are judged at once, by one device: all of them, unless what was wanted did not fit."""
    count, at_once = len(runs.folders), plan.chosen.members or 1
    return count if len(plan.tried) == 1 else max(size for size in divisors(count) if size <= at_once)
