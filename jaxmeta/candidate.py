"""A run made ready to be judged: by its own protocol, or by another that fits its head and its data."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmeta import checkpoint
from jaxmeta.algorithms import ALGORITHMS, options_of
from jaxmeta.base import TrainState
from jaxmeta.config import Config, ConfigError, check_name
from jaxmeta.data import DATASETS, DataError, Dataset
from jaxmeta.evaluate import make_evaluator
from jaxmeta.judgement import examine, protocol_of
from jaxmeta.parts import load_dataset, norm_in_use
from jaxmeta.protocols import DRAWN, FIXED, PROTOCOLS, Protocol, ensemble_learner, episodes_of
from jaxmeta.workspace import Workspace, one_task, state_like, with_config


class Candidate(NamedTuple):
    """A run that is ready to be judged.

    Attributes:
      out: Its folder.
      workspace: Its parts, as the protocol wants them.
      protocol: The protocol, with the setting that was measured.
      train_state: Its checkpoint; of an ensemble the best, with the numbers of all in `meta_params` and `state`.
      damaged: Steps of the checkpoints that were passed over.
    """

    out: Path
    workspace: Workspace
    protocol: Protocol
    train_state: TrainState
    damaged: tuple[int, ...]


class Request(NamedTuple):
    """What is asked for beside the run's own protocol; None leaves it as it is.

    Attributes:
      preset: A row of `PROTOCOLS`.
      part: "test", "validation" or "train".
      episodes: Number of tasks.
      inner_steps: Inner steps.
      ensemble: How many checkpoints predict together.
      dataset: Another dataset to judge on.
      data_dir: Where that is, or where the run's own is now.
      latest: The latest checkpoint, not the best.
    """

    preset: str | None = None
    part: str = "test"
    episodes: int | None = None
    inner_steps: int | None = None
    ensemble: int | None = None
    dataset: str | None = None
    data_dir: Path | None = None
    latest: bool = False


def own_config(config: Config, request: Request) -> Config:
    """Give the configuration that a run is opened with: its data may lie elsewhere now."""
    # The folder of fixed episodes is not that of the data that the run was trained on.
    elsewhere = request.data_dir is not None and request.dataset in (None, config.dataset)
    elsewhere = elsewhere and request.preset not in FIXED
    return dataclasses.replace(config, data_dir=request.data_dir) if elsewhere else config


def make_ready(own: Workspace, out: Path, request: Request, mesh: Mesh | None = None) -> Candidate:
    """Make a run ready to be judged: its checkpoint, and its parts as the protocol wants them.

    Args:
      own: The run's workspace, as it was trained.
      out: Its folder.
      request: How it is to be judged.
      mesh: Devices that share the tasks.

    Returns:
      The `Candidate`.

    Raises:
      ConfigError: for a protocol that does not fit the run's head, its data or its checkpoints.
      DataError: if data is missing or damaged.
      CheckpointError: if no checkpoint can be read.
    """
    protocol = requested(protocol_of(own, request.part), own.config, request)
    workspace = with_protocol(own, protocol, data_dir=request.data_dir, mesh=mesh)
    protocol = dataclasses.replace(protocol, norm=workspace.norm)
    restored = _restored(own, out, protocol)
    train_state = restored[0].train_state
    if protocol.ensemble > 1:
        trees = [(one.train_state.meta_params, one.train_state.state) for one in restored]
        meta_params, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        train_state = train_state._replace(meta_params=meta_params, state=state)
    return Candidate(out, workspace, examine(workspace, train_state, protocol), train_state, restored[0].damaged)


def requested(own: Protocol, config: Config, request: Request) -> Protocol:
    """Change a run's own protocol as is asked for: by the preset, and then by what is said of single fields.

    Raises:
      ConfigError: for an unknown preset, or a number that nothing can be judged by.
    """
    protocol = own
    if request.preset is not None:
        check_name("protocol", request.preset, PROTOCOLS)
        protocol = PROTOCOLS[request.preset](protocol)
    if "num_steps" not in options_of(ALGORITHMS[config.algorithm]):
        protocol = dataclasses.replace(protocol, eval_inner_steps=0)
    changes: dict[str, Any] = {
        "episodes": request.episodes,
        "eval_inner_steps": request.inner_steps,
        "ensemble": request.ensemble,
    }
    if request.latest:
        if (request.ensemble or protocol.ensemble) > 1:
            raise ConfigError("--latest judges one checkpoint, and an ensemble the best ones: leave one of them out.")
        changes["checkpoint"] = "latest"
    if request.dataset is not None:
        check_name("dataset", request.dataset, DATASETS)
    if request.dataset is not None and protocol.episodes_from not in DRAWN:
        raise ConfigError(f"--protocol {request.preset} has tasks of its own: leave out --dataset {request.dataset}.")
    if request.dataset not in (None, own.dataset):
        # Only omniglot has more than one split, and its first is what the default names.
        changes |= {"dataset": request.dataset, "split": Config.split, "trained_on": own.dataset}
    try:
        return dataclasses.replace(protocol, **{name: value for name, value in changes.items() if value is not None})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def with_protocol(
    own: Workspace, protocol: Protocol, *, data_dir: Path | None = None, mesh: Mesh | None = None
) -> Workspace:
    """Rebuild a run's workspace to be judged by a protocol; as it is, where nothing differs.

    Args:
      own: The run's workspace.
      protocol: The protocol.
      data_dir: Where the data is, if it is not that of training.
      mesh: Devices that share the tasks.

    Returns:
      A `Workspace` to judge with, not to train with.

    Raises:
      ConfigError: if the protocol does not fit the run's head or the data; says which number does not fit.
      DataError: if data is missing or damaged.
    """
    config = dataclasses.replace(
        own.config,
        ways=protocol.ways,
        shots=protocol.shots,
        eval_queries=protocol.queries,
        eval_inner_steps=protocol.eval_inner_steps,
        eval_episodes=protocol.episodes,
        norm=own.config.norm if protocol.norm == "none" else protocol.norm,
    )
    _check_head(own, protocol)
    dataset = own.dataset
    if protocol.trained_on and protocol.episodes_from in DRAWN:
        config = dataclasses.replace(config, dataset=protocol.dataset, split=protocol.split, data_dir=data_dir)
        dataset = load_dataset(config)
        _check_images(own.dataset, dataset)
    changed = config != own.config
    workspace = own
    if changed:
        # The dataset first: the parts are made for its kind of tasks.
        workspace = with_config(own._replace(dataset=dataset), config, mesh)
    try:
        source = episodes_of(protocol, dataset, data_dir, own.pool)
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(f"The protocol does not fit {protocol.dataset}: {error}") from error
    if changed:
        example = jax.eval_shape(lambda: one_task(source)).support.inputs
        workspace = workspace._replace(norm=norm_in_use(workspace.parts, config, example))
    if protocol.ensemble > 1:
        learner = ensemble_learner(workspace.parts.learner, dataset.kind)
        steps, chunk = config.eval_inner_steps, config.task_chunk or 1
        evaluator = make_evaluator(learner, workspace.parts.criterion, num_steps=steps, task_chunk=chunk, mesh=mesh)
        workspace = workspace._replace(parts=workspace.parts._replace(learner=learner), evaluator=evaluator)
    return workspace._replace(sources={**own.sources, protocol.part: source})


def _check_head(own: Workspace, protocol: Protocol) -> None:
    config = own.config
    if protocol.ways == config.ways:
        return
    if own.dataset.kind != "classification":
        raise ConfigError(f"The protocol asks for {protocol.ways} ways, and the run is regression, without classes.")
    if "ways" not in options_of(ALGORITHMS[config.algorithm]):
        raise ConfigError(
            f"The run's head has {config.ways} outputs, and the protocol asks for {protocol.ways} ways. Judge it by a "
            f"protocol of {config.ways} ways, or train a run with --ways {protocol.ways}."
        )


def _check_images(trained: Dataset, judged: Dataset) -> None:
    if trained.kind != judged.kind:
        raise ConfigError(
            f"--dataset {judged.name} is {judged.kind}, and the run was trained on {trained.kind} ({trained.name})."
        )
    if trained.kind == "regression":
        return
    sizes = [tuple(dataset.splits["train"].images.shape[2:]) for dataset in (judged, trained)]
    if sizes[0] != sizes[1]:
        given, needed = ("x".join(map(str, size)) for size in sizes)
        raise ConfigError(
            f"--dataset {judged.name} has images of {given}, and the run was trained on {needed} ({trained.name}). "
            "Choose a dataset with images of that size."
        )


def _restored(own: Workspace, out: Path, protocol: Protocol) -> list[checkpoint.Restored]:
    directory, count, kept = out / "checkpoints", protocol.ensemble, own.config.keep_best
    if count == 1:
        return [checkpoint.restore(directory, state_like(own), best=protocol.checkpoint == "best")]
    if kept < count:
        raise ConfigError(
            f"An ensemble of {count} checkpoints was asked for, and the run in {out} kept the best {kept} only. "
            f"Ask for --ensemble {kept}, or train a run with --keep-best {count}."
        )
    return checkpoint.restore_best(directory, state_like(own), count)
