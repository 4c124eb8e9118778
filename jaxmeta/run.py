"""A run: train into a folder, resume it, evaluate it."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmeta import checkpoint, folder, processes
from jaxmeta.base import Evaluation, TrainState
from jaxmeta.candidate import Request, make_ready, open_run, result_of
from jaxmeta.config import Config, ConfigError
from jaxmeta.config_json import to_json
from jaxmeta.folder import open_log, refuse_existing, truncate_rows, write_atomically, write_config
from jaxmeta.judged_tasks import evaluation_key
from jaxmeta.judgement import calibrate_run, judge, judged
from jaxmeta.plan import Plan, plan_table
from jaxmeta.planning import plan_run
from jaxmeta.report import Reporter
from jaxmeta.train import fit
from jaxmeta.workspace import (
    Workspace,
    draw,
    find_lowering,
    keep_lowerings,
    make_state,
    open_workspace,
    state_like,
    trace_judgement,
    trace_step,
)


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state."""


def train_run(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    mesh: Mesh | None = None,
    search: bool = False,
    memory_mib: int | None = None,
    precisions: Sequence[str] = (),
    pool: str = "auto",
) -> dict[str, Any]:
    """Train into a folder, or go on where a run there stopped; then judge the best checkpoint.

    Convolutions are computed as the table says that was measured on this kind of device, if there is one; the ways that
    the run takes are kept in its folder, and hold when it is resumed or evaluated.

    Args:
      config: A checked configuration.
      out: The run's folder.
      resume: Continue the run that is there.
      mesh: Devices to divide the tasks among, of all processes that call this; None for one.
      search: Time the ways of computing a step first and take the fastest; a resumed run keeps its own.
      memory_mib: MiB that a device may use, at the price of smaller chunks of tasks; None for what is at hand.
      precisions: Those that may take the place of the run's own, where they are faster or fit; not on resuming.
      pool: Where the images are kept: "device", "host", or "auto": on the device if they fit there.

    Returns:
      The result, as `jaxmeta train` prints it.

    Raises:
      ConfigError: if the folder exists (or, to resume, does not), the numbers do not fit the data, or a table of
        lowerings is damaged.
      DataError: if the data is missing or damaged.
      FloatingPointError: if the loss is not finite; the last good checkpoint stays.
      CheckpointError: if a checkpoint cannot be written.
      Interrupted: after Ctrl-C, when the state is saved.
    """
    if not resume:
        processes.on_first(partial(refuse_existing, out))
    began, lowering = time.monotonic(), find_lowering(out if resume else None)
    workspace = open_workspace(config, mesh, lowering, pool=pool, memory_mib=memory_mib)
    folder.check_classes(out, workspace.dataset, unchanged=True)
    config = workspace.config
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    begin = partial(make_state, workspace, key_init)
    trace_step(workspace)
    train_state, spent, said = _first_state(out, begin, config, resume)
    began -= spent
    if finished := _finished(out, train_state, config):
        processes.on_first(partial(write_config, out, config, workspace.dataset))
        processes.on_first(partial(print, "the run is finished: nothing was left to do", file=sys.stderr))
        return finished
    reporting = Reporter(config.steps, int(train_state.step), silent=not processes.is_first())
    with reporting as reporter, stop_on_signal() as stop:
        for line in said:
            reporter.say(line)
        search = search and not resume

        def say(text: str) -> None:
            reporter.say(text)
            # A search is long, and there is nothing yet to save.
            if search and processes.any_process(stop["signal"] is not None):
                raise KeyboardInterrupt

        how = {"mesh": mesh, "search": search, "memory_mib": memory_mib, "say": say}
        how["precisions"] = () if resume else precisions
        workspace, program, plan = plan_run(workspace, begin, key_train, **how)
        processes.on_first(partial(_keep, out, workspace, plan))
        try:
            train_state = _train(out, workspace, train_state, key_train, reporter, stop, began, mesh, program)
        except FloatingPointError as error:
            kept = f"There was no checkpoint yet: delete {out} or choose another --out."
            if good := checkpoint.checkpoint_steps(out / "checkpoints"):
                kept = f"The last good checkpoint is that of step {good[-1]}."
            raise FloatingPointError(f"{error} {kept}") from error
        if processes.any_process(stop["signal"] is not None):
            raise Interrupted(f"Stopped at step {int(train_state.step)}; the state is saved. Go on with --resume.")
    restored = checkpoint.restore(out / "checkpoints", state_like(workspace), best=True)
    result = judge(workspace, restored.train_state, out, split="test")
    processes.on_first(partial(draw, workspace, out, restored.train_state))
    calibrate_run(workspace, restored.train_state, out)
    result["seconds"] = round(time.monotonic() - began, 1)
    processes.on_first(lambda: write_atomically(out / "result.json", json.dumps(result, indent=2) + "\n"))
    return result


def evaluate_run(
    out: Path,
    *,
    episodes: int | None = None,
    inner_steps: int | None = None,
    split: str = "test",
    latest: bool = False,
    data_dir: Path | None = None,
    mesh: Mesh | None = None,
    protocol: str | None = None,
    ensemble: int | None = None,
    dataset: str | None = None,
    ways: int | None = None,
    shots: int | None = None,
) -> dict[str, Any]:
    """Judge a run's best checkpoint on held-out tasks.

    Args:
      out: The run's folder.
      episodes: Number of tasks; None for the run's own.
      inner_steps: Inner steps; None for the run's own.
      split: "test", "validation" or "train".
      latest: Judge the latest checkpoint instead.
      data_dir: Where the data that is judged is now; None for the run's own.
      mesh: Devices that share the tasks.
      protocol: A row of `PROTOCOLS`; None for the run's own.
      ensemble: How many of the best checkpoints predict together.
      dataset: Judge on this one, which the run was not trained on; the data of training is not needed then.
      ways: Classes in a task, for learners without an output for each.
      shots: Support examples of each class.

    Returns:
      The result, as `jaxmeta evaluate` prints it.

    Raises:
      ConfigError: if there is no run in the folder, or the protocol does not fit it.
      DataError: if the data is missing or damaged.
      CheckpointError: if no checkpoint can be read.
    """
    request = Request(protocol, split, episodes, inner_steps, ensemble, dataset, data_dir, latest, ways, shots)
    ready = make_ready(open_run(out, request, mesh), out, request, mesh)
    result = result_of(ready, judged(ready.workspace, ready.train_state, ready.protocol))
    return result | {"damaged_checkpoints": list(ready.damaged)}


def _first_state(out: Path, begin, config: Config, resume: bool) -> tuple[TrainState, float, list[str]]:
    """Make the state to begin from; tell the seconds already spent on the run, and where it comes from."""
    if not resume or not checkpoint.checkpoint_steps(out / "checkpoints"):
        processes.on_first(partial(truncate_rows, out, 0))
        return begin(), 0.0, ["resumed from step 0: there was no checkpoint yet"] if resume else []
    restored = checkpoint.restore(out / "checkpoints", jax.eval_shape(begin))
    if restored.step > config.steps:
        raise ConfigError(f"The run in {out} is at step {restored.step} already; --steps {config.steps} is behind it.")
    said = [f"checkpoint of step {step} is damaged and was passed over" for step in restored.damaged]
    processes.on_first(partial(truncate_rows, out, restored.step))
    return restored.train_state, restored.meta["seconds"], [*said, f"resumed from step {restored.step}"]


def _finished(out: Path, train_state: TrainState, config: Config) -> dict[str, Any] | None:
    """Give the result of a run that has no step left: the test tasks are met once."""
    if int(train_state.step) < config.steps or not (out / "result.json").is_file():
        return None
    with contextlib.suppress(ValueError):
        result = json.loads((out / "result.json").read_text())
        return result if isinstance(result, dict) and result.get("steps") == config.steps else None
    return None


def _keep(out: Path, workspace: Workspace, plan: Plan) -> None:
    """Write what was chosen; a plan that was searched for is kept too."""
    write_config(out, workspace.config, workspace.dataset)
    keep_lowerings(out, {**trace_step(workspace), **trace_judgement(workspace)}, workspace.lowering)
    if len(plan.tried) > 1:
        write_atomically(out / "plan.md", plan_table(plan) + "\n")
    # One that is interrupted has a picture, too.
    draw(workspace, out)


def _train(
    out: Path, workspace: Workspace, train_state, key, reporter: Reporter, stop: dict, began: float, mesh, program
) -> TrainState:
    """Run `fit` with logging, validation and checkpoints in its callback."""
    config, headline, directory = workspace.config, workspace.headline, out / "checkpoints"
    clock = {"last": time.monotonic()}

    def save(train_state, score):
        meta = {"config": to_json(config), "seconds": time.monotonic() - began}
        arrays, best = processes.fetch(train_state), config.keep_best
        processes.on_first(lambda: checkpoint.save(directory, arrays, score=score, meta=meta, keep_best=best))

    def validate(train_state) -> float:
        source, key = workspace.sources["validation"], evaluation_key("validation")
        evaluation = workspace.evaluator(
            train_state.meta_params, train_state.state, source, key, config.validation_episodes
        )
        log(row := validation_row(evaluation, int(train_state.step)))
        value = evaluation.metrics[headline]
        reporter.say(f"step {row['step']}  validation {headline} {value.mean:.4f} +- {value.ci95:.4f}")
        return score_of(evaluation, headline)

    def callback(train_state, metrics):
        now, step = time.monotonic(), int(train_state.step)
        length = len(metrics["loss"])
        rate = length * config.tasks / (now - clock["last"])
        row = {name: float(np.mean(values)) for name, values in jax.device_get(metrics).items() if name != "nonfinite"}
        log({"step": step, **row, "tasks_per_second": round(rate, 2)})
        reporter.update(step, f"{rate:.0f} tasks/s  loss {row['loss']:.4f}  {headline} {row[headline]:.4f}")
        # Read once: a signal that comes later is for the next call, which then saves.
        stopping = processes.any_process(stop["signal"] is not None)
        due = step // config.checkpoint_every > (step - length) // config.checkpoint_every
        if due or step == config.steps:
            save(train_state, validate(train_state))
        elif stopping:
            save(train_state, checkpoint.NOT_VALIDATED)
        clock["last"] = time.monotonic()
        return stopping

    written = open_log(out, config.tensorboard) if processes.is_first() else contextlib.nullcontext(lambda row: None)
    with written as log:
        return fit(
            workspace.parts.train_step,
            train_state,
            workspace.sources["train"],
            key,
            num_tasks=config.tasks,
            num_steps=config.steps,
            steps_per_call=config.log_every,
            callback=callback,
            mesh=mesh,
            program=program,
        )


def validation_row(evaluation: Evaluation, step: int) -> dict[str, Any]:
    """Make the logged row of a validation. JSON knows no infinity: what a diverged adaptation gives is left out."""
    row: dict[str, Any] = {"step": step}
    for name, estimate in evaluation.metrics.items():
        row |= {f"validation_{name}": estimate.mean, f"validation_{name}_ci95": estimate.ci95}
    return {name: value for name, value in row.items() if np.isfinite(value)}


def score_of(evaluation: Evaluation, headline: str) -> float:
    """Give the score that checkpoints are compared by: larger is better."""
    mean = evaluation.metrics[headline].mean
    score = mean if headline == "accuracy" else -mean
    return score if np.isfinite(score) else checkpoint.NOT_VALIDATED


@contextlib.contextmanager
def stop_on_signal():
    """Turn Ctrl-C and SIGTERM into a flag: between two dispatches the state is whole, within one it is not."""
    stop: dict[str, Any] = {"signal": None}

    def handle(number, frame):
        if stop["signal"] is not None:
            raise KeyboardInterrupt
        stop["signal"] = number

    previous = {}
    # Python allows handlers in the main thread only; elsewhere signals stay as they are.
    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
