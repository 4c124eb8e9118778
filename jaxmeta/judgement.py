"""What a judgement says: the number, the setting that was measured, the protocol and the tasks behind it."""

import dataclasses
import inspect
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta import checkpoint, processes
from jaxmeta.algorithms import ALGORITHMS, options_of
from jaxmeta.base import Evaluation, MetaLearner, TrainState
from jaxmeta.calibration import calibrate
from jaxmeta.check import leak_test
from jaxmeta.check.leak import TOLERANCE
from jaxmeta.config import ConfigError
from jaxmeta.data import DATASETS, EpisodeSpec, TaskSource, check_spec, check_varying, sample_classification
from jaxmeta.folder import write_calibration
from jaxmeta.judged_tasks import episodes_hash, evaluation_key
from jaxmeta.parts import unusual_size
from jaxmeta.protocols import (
    CHALLENGE,
    DRAWN,
    SAMPLED,
    TURNED_CLASSES,
    VARYING,
    Protocol,
    fingerprint,
    protocol_hash,
)
from jaxmeta.workspace import Workspace, one_task

# What rounding in another order changes: more, where products are rounded to 10 bits or to 7.
TOLERANCES = {"float32": TOLERANCE, "tf32": 1e-2, "bfloat16": 5e-2}
# Tasks that the leak test looks at: an image that is told apart easily may be so among any others.
LEAK_TASKS = 3


def protocol_of(workspace: Workspace, part: str = "test") -> Protocol:
    """Give a run's own protocol, as its configuration says."""
    config = workspace.config
    episodes_from = VARYING if config.episodes == "varying" else SAMPLED
    # Trained by classification among all classes.
    classified = "classes" in options_of(ALGORITHMS[config.algorithm])
    return Protocol(
        dataset=workspace.dataset.name,
        split=config.split,
        part=part,
        ways=config.ways,
        shots=config.shots,
        queries=config.eval_queries,
        train_inner_steps=config.inner_steps,
        eval_inner_steps=config.eval_inner_steps,
        within_alphabet=config.within_alphabet,
        norm=workspace.norm,
        episodes=config.eval_episodes,
        precision=config.precision,
        episodes_from=episodes_from,
        image_size=unusual_size(config, workspace.dataset.recipe),
        train_norm=workspace.norm,
        train_ways=config.train_ways or config.ways,
        train_shots=config.shots,
        train_queries=config.queries,
        train_within_alphabet=config.within_alphabet,
        train_episodes_from="classification" if classified else episodes_from,
        augment=config.augment,
    )


def examine(workspace: Workspace, train_state: TrainState, protocol: Protocol) -> Protocol:
    """Measure the setting: does a prediction see the other query images of its task?

    Args:
      workspace: As the protocol wants it.
      train_state: What is judged.
      protocol: The protocol.

    Returns:
      The protocol with what the leak test found; as it was, if the predictions are numbers in no task.
    """
    key = evaluation_key(protocol.part, protocol.seed)
    config, source = workspace.config, source_of(workspace, protocol)
    test = _leak_tester(workspace.parts.learner, config.eval_inner_steps, TOLERANCES[config.precision])
    changes = []
    for number in range(min(LEAK_TASKS, protocol.episodes)):
        episode = one_task(source, jax.random.split(key)[0], number)
        leak = test(train_state.meta_params, train_state.state, episode, key)
        if leak.transductive and not np.isnan(leak.change):
            return dataclasses.replace(protocol, measured="transductive")
        changes.append(leak.change)
    return protocol if np.isnan(changes).all() else dataclasses.replace(protocol, measured="inductive")


@lru_cache(maxsize=8)
def _leak_tester(learner: MetaLearner, num_steps: int, tolerance: float):
    # It runs on a few tasks: most of its time is compilation, which takes half as long without optimisation.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    test = partial(leak_test, learner, num_steps=num_steps, tolerance=tolerance)
    return jax.jit(test, compiler_options=options)


def source_of(workspace: Workspace, protocol: Protocol) -> TaskSource:
    """Give the source of a protocol's tasks.

    Raises:
      ConfigError: if the data cannot serve them.
    """
    if protocol.episodes_from not in DRAWN:
        return workspace.sources[protocol.part]
    spec = EpisodeSpec(protocol.ways, protocol.shots, protocol.queries)
    source = workspace.sources[protocol.part]
    pool = source.pool
    if source.sample is sample_classification:
        # Tasks as for the test, of training classes that the learner met in another way.
        source = workspace.sources["test"]
    if workspace.dataset.kind == "classification":
        try:
            check = check_varying if protocol.episodes_from == VARYING else check_spec
            check(spec, pool, f"split {protocol.part!r} of {protocol.dataset}")
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return source._replace(pool=pool, spec=spec)


def judge(workspace: Workspace, train_state: TrainState, out: Path, *, split: str) -> dict[str, Any]:
    """Judge a run by its own protocol, on the tasks of a split, and describe the setting beside the number."""
    protocol = examine(workspace, train_state, protocol_of(workspace, split))
    return describe(workspace, judged(workspace, train_state, protocol), train_state, out, protocol=protocol)


def judged(workspace: Workspace, train_state: TrainState, protocol: Protocol) -> Evaluation:
    """Evaluate on the tasks of a protocol."""
    source, key = source_of(workspace, protocol), evaluation_key(protocol.part, protocol.seed)
    return workspace.evaluator(train_state.meta_params, train_state.state, source, key, protocol.episodes)


def calibrate_run(workspace: Workspace, train_state: TrainState, out: Path) -> None:
    """Write down how sure the predictions are on the validation tasks: one more validation, and no new program."""
    if workspace.dataset.kind != "classification":
        return
    source, key = workspace.sources["validation"], evaluation_key("validation")
    tasks = workspace.config.validation_episodes
    predicted = workspace.evaluator(train_state.meta_params, train_state.state, source, key, tasks).predicted
    calibration = None if predicted is None else calibrate(*predicted)
    if calibration is not None:
        processes.on_first(partial(write_calibration, out, calibration))


def tasks_hash(workspace: Workspace, protocol: Protocol) -> str:
    """Hash the tasks of a protocol."""
    key = evaluation_key(protocol.part, protocol.seed)
    return episodes_hash(source_of(workspace, protocol), key, protocol.episodes)


def describe(
    workspace: Workspace,
    evaluation: Evaluation,
    train_state: TrainState,
    out: Path,
    *,
    protocol: Protocol,
    tasks: str | None = None,
) -> dict[str, Any]:
    """Describe the setting beside the number.

    Args:
      workspace: The workspace that it was judged in.
      evaluation: What came out.
      train_state: What was judged.
      out: The run's folder.
      protocol: The protocol, examined.
      tasks: The hash of its tasks, if it is known already.

    Returns:
      The result, as the command line prints it.
    """
    config, estimate = workspace.config, evaluation.metrics[workspace.headline]
    described = ("dataset", "algorithm", "metagrad", "estimator", "model", "ways", "shots", "inner_steps")
    described += ("within_alphabet",) if config.within_alphabet else ()
    described += ("augment",) if config.augment else ()
    # JSON knows no infinity: a diverged adaptation is null.
    mean, ci95 = (value if np.isfinite(value) else None for value in (estimate.mean, estimate.ci95))
    lost = int((~np.isfinite(estimate.per_task)).sum())
    # What the challenge is told by.
    error = {"error": 1 - mean} if protocol.episodes_from == CHALLENGE and mean is not None else {}
    return {
        workspace.headline: mean,
        **error,
        "ci95": ci95,
        "episodes": evaluation.num_tasks,
        **({"diverged_episodes": lost} if lost else {}),
        "split": protocol.part,
        **{name: getattr(config, name) for name in described},
        "dataset": protocol.dataset,
        "metagrad": config.metagrad if "metagrad" in options_of(ALGORITHMS[config.algorithm]) else None,
        "eval_inner_steps": config.eval_inner_steps,
        "queries": config.eval_queries,
        **({"episodes_from": VARYING} if protocol.episodes_from == VARYING else {}),
        **({"turns": protocol.turns} if protocol.turns != TURNED_CLASSES else {}),
        **({"image_size": protocol.image_size} if protocol.image_size is not None else {}),
        "norm": workspace.norm,
        "train_norm": protocol.train_norm or workspace.norm,
        "train_ways": protocol.train_ways or config.ways,
        "train_shots": protocol.train_shots or config.shots,
        "train_queries": protocol.train_queries or config.eval_queries,
        "setting": protocol.measured,
        "ensemble": protocol.ensemble,
        "precision": protocol.precision,
        "trained_on": protocol.trained_on or protocol.dataset,
        "trained_split": _trained_split(protocol),
        "seen_classes": seen_classes(workspace, protocol),
        "protocol": protocol_hash(protocol),
        "fingerprint": fingerprint(protocol),
        "episodes_hash": tasks_hash(workspace, protocol) if tasks is None else tasks,
        "steps": checkpoint.checkpoint_steps(out / "checkpoints")[-1],
        "checkpoint_step": int(train_state.step),
        "seed": config.seed,
        "run": str(out),
    }


def seen_classes(workspace: Workspace, protocol: Protocol) -> bool | None:
    """Tell whether a learner was trained on classes that it is judged on.

    Args:
      workspace: The workspace that it is judged in.
      protocol: The protocol.

    Returns:
      Whether the names of the judged classes meet those of training, which tells nothing between datasets: None there,
      and in regression. The challenge is refused to runs that have seen its alphabets.
    """
    if protocol.episodes_from == CHALLENGE and protocol.trained_on == "omniglot":
        return False
    if protocol.trained_on or workspace.dataset.kind == "regression":
        return None
    names = workspace.dataset.class_names
    return not set(names["train"]).isdisjoint(names[protocol.part])


def _trained_split(protocol: Protocol) -> str | None:
    """Name the division of classes that was trained on; None for a dataset that has one only."""
    loader = DATASETS.get(protocol.trained_on or protocol.dataset)
    divided = loader is not None and "split" in inspect.signature(loader).parameters
    return protocol.trained_split or protocol.split if divided else None
