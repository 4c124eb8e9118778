"""Several runs as one program: seeds times inner learning rates, a folder for each, a table for all."""

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmeta import checkpoint
from jaxmeta.base import Evaluation, TrainState
from jaxmeta.config import Config, ConfigError, refuse_idle_numbers
from jaxmeta.config_json import to_json
from jaxmeta.folder import open_log, refuse_existing, write_atomically
from jaxmeta.judged_tasks import evaluation_key
from jaxmeta.judgement import describe, examine, protocol_of, tasks_hash
from jaxmeta.metrics import estimate
from jaxmeta.population import fit_population
from jaxmeta.population_evaluator import make_population_evaluator
from jaxmeta.report import Reporter
from jaxmeta.run import Interrupted, score_of, stop_on_signal, validation_row
from jaxmeta.sweep_plan import Runs, judged_at_once, keep_runs, learner_of, list_runs, plan_runs
from jaxmeta.workspace import Workspace, find_lowering, open_workspace, state_like, trace_step, with_config


def train_sweep(
    config: Config,
    out: Path,
    *,
    seeds: int = 1,
    inner_lrs: Sequence[float] = (),
    mesh: Mesh | None = None,
    memory_mib: int | None = None,
) -> dict[str, Any]:
    """Train a population into a folder of run folders, and judge the best checkpoint of each.

    Args:
      config: A checked configuration: the seed is the first, other settings are of all.
      out: The folder of the run folders, each as `train_run` leaves one (without pictures).
      seeds: How many seeds.
      inner_lrs: Inner learning rates, each with every seed; that of the configuration if none.
      mesh: Devices to divide the runs among.
      memory_mib: MiB that a device may use; None for what is at hand. Where all runs at once need more, fewer are
        computed at once, then fewer tasks, and then less is kept of their inner loops.

    Returns:
      The table: for each inner learning rate the mean over seeds with its 95 % interval by
      Student's t, and what every run reached.

    Raises:
      ConfigError: if the folder exists, the numbers do not fit, or nothing fits in memory.
      DataError: if the data is missing or damaged.
      Interrupted: after Ctrl-C, when the states are saved; each run can be resumed by itself.
    """
    _check(config, seeds, inner_lrs)
    refuse_existing(out)
    began = time.monotonic()
    # The members of a population are computed in step: nothing reads ahead of them.
    workspace = open_workspace(config, lowering=find_lowering(), pool="device")
    trace_step(workspace)
    runs = list_runs(workspace.config, out, seeds, inner_lrs)
    with Reporter(config.steps) as reporter, stop_on_signal() as stop:

        def say(text: str) -> None:
            reporter.say(text)
            # Several programs may be compiled before one fits, and there is nothing yet to save.
            if stop["signal"] is not None:
                raise KeyboardInterrupt

        say(f"{len(runs.folders)} runs as one program")
        (workspace, program, plan), states = plan_runs(workspace, runs, mesh, memory_mib, say)
        # As planned: each of them goes on by itself as it was computed here.
        runs = list_runs(workspace.config, out, seeds, inner_lrs)
        keep_runs(out, workspace, runs, plan)
        evaluator = make_population_evaluator(
            partial(learner_of, workspace),
            workspace.parts.criterion,
            num_steps=config.eval_inner_steps,
            task_chunk=workspace.config.task_chunk or 1,
            member_chunk=judged_at_once(runs, plan),
            memory_mib=memory_mib,
        )
        states = _train(workspace, runs, states, program, evaluator, mesh, began, reporter, stop)
    results = _judge(workspace, runs, evaluator, states)
    table = _table(workspace, runs, results)
    table["run"], table["seconds"] = str(out), round(time.monotonic() - began, 1)
    write_atomically(out / "summary.json", json.dumps(table, indent=2) + "\n")
    return table


def _check(config: Config, seeds: int, inner_lrs: Sequence[float]) -> None:
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1; given {seeds}.")
    if config.seed + seeds > 2**32:
        raise ConfigError(f"--seed + --seeds must stay below 2**32; given {config.seed} + {seeds}.")
    refuse_idle_numbers(config, {"inner_lr"} if inner_lrs else ())
    for rate in inner_lrs:
        if not 0 < rate < float("inf"):
            raise ConfigError(f"--inner-lrs must be positive numbers; given {rate}.")
    if len({f"{rate:g}" for rate in inner_lrs}) < len(inner_lrs):
        given = " ".join(map(str, inner_lrs))
        raise ConfigError(f"--inner-lrs must differ in their first six digits; given {given}.")
    if config.tensorboard:
        raise ConfigError("--tensorboard is for a single run: leave it out, or --seeds and --inner-lrs.")
    if jax.process_count() > 1:
        raise ConfigError("--seeds and --inner-lrs train in one process, on all of its devices: start one only.")


def _train(
    workspace: Workspace, runs: Runs, states: TrainState, program, evaluator, mesh, began: float, reporter, stop
) -> TrainState:
    """Run `fit_population`; log, validate and save every run."""
    config, source = workspace.config, workspace.sources["train"]
    parts, everyone, folders = workspace.parts, runs.everyone, runs.folders

    def log(place, row):
        with open_log(folders[place], False) as write:
            write({name: value for name, value in row.items() if np.isfinite(value)})

    def save(states: TrainState, scores) -> None:
        states = jax.device_get(states)
        for place, (folder, score) in enumerate(zip(folders, scores, strict=True)):
            state, steps = _member(states, place), checkpoint.checkpoint_steps(folder / "checkpoints")
            # A run that has diverged stays where it is, and its checkpoint was written.
            if int(state.step) not in (0, *steps):
                meta = {"config": to_json(runs.configs[place]), "seconds": time.monotonic() - began}
                checkpoint.save(folder / "checkpoints", state, score=score, meta=meta, keep_best=config.keep_best)

    def validate(states: TrainState) -> list[float]:
        key, tasks = evaluation_key("validation"), config.validation_episodes
        # By one device, whichever they were trained on.
        evaluations = evaluator(everyone, jax.device_get(states), workspace.sources["validation"], key, tasks)
        for place, evaluation in enumerate(evaluations):
            log(place, validation_row(evaluation, int(states.step[place])))
        means = [evaluation.metrics[workspace.headline].mean for evaluation in evaluations]
        reporter.say(f"validation {workspace.headline}  " + "  ".join(f"{mean:.4f}" for mean in means))
        return [score_of(evaluation, workspace.headline) for evaluation in evaluations]

    def callback(states: TrainState, metrics) -> bool:
        metrics = jax.device_get(metrics)
        length = metrics["loss"].shape[1]
        reached["step"] += length
        step, good = reached["step"], metrics["nonfinite"].sum(1) == 0
        for place in np.flatnonzero(good):
            row = {name: float(values[place].mean()) for name, values in metrics.items() if name != "nonfinite"}
            log(place, {"step": step, **row})
        loss = metrics["loss"][good].mean() if good.any() else float("nan")
        reporter.update(step, f"{good.sum()} of {len(good)} runs go on  loss {loss:.4f}")
        if not good.any():
            raise FloatingPointError(
                f"Every run has diverged by step {step}. Try smaller learning rates, and --inner-optimizer adam."
            )
        stopping = stop["signal"] is not None
        if step // config.checkpoint_every > (step - length) // config.checkpoint_every or step == config.steps:
            save(states, validate(states))
        elif stopping:
            save(states, [checkpoint.NOT_VALIDATED] * len(folders))
        return stopping

    reached = {"step": 0}
    states = fit_population(
        everyone,
        states,
        partial(learner_of, workspace),
        parts.optimizer,
        source,
        num_tasks=config.tasks,
        num_steps=config.steps,
        steps_per_call=config.log_every,
        callback=callback,
        mesh=mesh,
        program=program,
    )
    if stop["signal"]:
        raise Interrupted(f"Stopped at step {reached['step']}; each run can go on by itself: --resume --out RUN.")
    return states


def _judge(workspace: Workspace, runs: Runs, evaluator, states: TrainState) -> list[dict[str, Any]]:
    """Judge the best checkpoint of every run on the same test tasks; write each result."""
    like = state_like(workspace)
    best = [
        checkpoint.restore(folder / "checkpoints", like, best=True).train_state
        if checkpoint.checkpoint_steps(folder / "checkpoints")
        else None
        for folder in runs.folders
    ]
    # A run that has diverged before its first checkpoint has none: judged as it stopped, and called null below.
    filled = [_member(states, place) if state is None else state for place, state in enumerate(best)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *filled)
    key, tasks = evaluation_key("test"), workspace.config.eval_episodes
    evaluations: list[Evaluation] = evaluator(runs.everyone, stacked, workspace.sources["test"], key, tasks)
    own, results = protocol_of(workspace), []
    hashed = tasks_hash(workspace, own)
    # The leak test adapts by a run's own inner rate; it is compiled once for each.
    built = {one.inner_lr: one for one in runs.configs}
    built = {rate: with_config(workspace, one) for rate, one in built.items()}
    for place, (one, folder) in enumerate(zip(runs.configs, runs.folders, strict=True)):
        chosen = best[place]
        if chosen is None:
            results.append({workspace.headline: None, "seed": one.seed, "inner_lr": one.inner_lr, "run": str(folder)})
            continue
        mine = built[one.inner_lr]._replace(config=one)
        protocol = examine(mine, chosen, own)
        result = describe(mine, evaluations[place], chosen, folder, protocol=protocol, tasks=hashed)
        write_atomically(folder / "result.json", json.dumps(result, indent=2) + "\n")
        results.append(result | {"inner_lr": one.inner_lr})
    return results


def _table(workspace: Workspace, runs: Runs, results) -> dict[str, Any]:
    """Summarise over seeds, for each inner learning rate: runs that diverged are counted, not averaged."""
    headline, config = workspace.headline, workspace.config
    rows = []
    for rate in dict.fromkeys(one.inner_lr for one in runs.configs):
        mine = [result for result in results if result["inner_lr"] == rate]
        values = [result[headline] for result in mine if result[headline] is not None]
        over_seeds = estimate(values) if values else None
        row = {"inner_lr": rate, headline: None, "ci95": None, "seeds": len(mine), "judged": len(values)}
        if over_seeds is not None:
            row[headline] = over_seeds.mean
            row["ci95"] = over_seeds.ci95 if np.isfinite(over_seeds.ci95) else None
        rows.append({**row, "values": [result[headline] for result in mine]})
    diverged = [result["run"] for result in results if result.get("steps", 0) < config.steps]
    for run in diverged:
        print(f"{run}: the loss or its gradient was not finite, and the run stopped there", file=sys.stderr)
    described = ("dataset", "algorithm", "metagrad", "estimator", "model", "ways", "shots", "inner_steps", "steps")
    return {
        "over": "seeds",
        "rows": rows,
        "diverged": diverged,
        "episodes": config.eval_episodes,
        **{name: _common(results, name) for name in ("setting", "protocol", "fingerprint", "episodes_hash")},
        **{name: getattr(config, name) for name in described},
        "runs": [str(folder) for folder in runs.folders],
    }


def _common(results, name: str) -> Any:
    """Give what the judged runs agree on; None where they do not, which their own results then tell."""
    values = {result[name] for result in results if name in result}
    return values.pop() if len(values) == 1 else None


def _member(states, place: int):
    return jax.tree.map(lambda leaf: leaf[place], states)
