"""A run made ready to be judged: by its own protocol, or by another that fits its head and its data."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmeta import checkpoint
from jaxmeta.algorithms import ALGORITHMS, options_of
from jaxmeta.base import Evaluation, TrainState
from jaxmeta.config import Config, ConfigError
from jaxmeta.data import DataError, Dataset
from jaxmeta.data.challenge import ARCHIVE as CHALLENGE_ARCHIVE
from jaxmeta.ensemble import ensemble_learner
from jaxmeta.evaluate import make_evaluator
from jaxmeta.folder import check_classes, read_config, read_data
from jaxmeta.judged_tasks import episodes_of
from jaxmeta.judgement import describe, examine, protocol_of
from jaxmeta.parts import load_dataset, norm_in_use, unusual_size
from jaxmeta.protocols import CHALLENGE, DRAWN, Protocol
from jaxmeta.request import Request, is_elsewhere, own_config, requested
from jaxmeta.workspace import Workspace, find_lowering, one_task, open_workspace, stand_in, state_like, with_config


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


def open_run(out: Path, request: Request, mesh: Mesh | None = None) -> Workspace:
    """Open a run to be judged: with its data, or without where it is judged on other data than its own.

    Args:
      out: The run's folder.
      request: How it is to be judged.
      mesh: Devices that share the tasks.

    Returns:
      The run's workspace, as it was trained; black images stand for data that is not needed.

    Raises:
      ConfigError: if there is no run in the folder, or it is damaged.
      DataError: if data that is needed is missing or damaged.
    """
    config, lowering = own_config(read_config(out), request), find_lowering(out)
    dataset = None
    if is_elsewhere(config, request):
        built_for = read_data(out, config)
        # Sinusoids are computed, and other pools without a recipe cannot be imitated.
        dataset = None if built_for.recipe is None else stand_in(built_for, config)
    return open_workspace(config, mesh, lowering, dataset=dataset)


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
    check_classes(out, own.dataset)
    protocol = requested(protocol_of(own, request.part), own.config, request)
    data_dir = request.data_dir or _fixed_beside(own.config, protocol)
    workspace = with_protocol(own, protocol, data_dir=data_dir, mesh=mesh)
    protocol = dataclasses.replace(protocol, norm=workspace.norm)
    if protocol.trained_on and protocol.episodes_from in DRAWN:
        # A folder is asked for by its path, and told by what is in it; its images are made as those of training.
        size = unusual_size(workspace.config, workspace.dataset.recipe)
        protocol = dataclasses.replace(protocol, dataset=workspace.dataset.name, image_size=size)
    restored = _restored(own, out, protocol)
    train_state = restored[0].train_state
    if protocol.ensemble > 1:
        trees = [(one.train_state.meta_params, one.train_state.state) for one in restored]
        meta_params, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        train_state = train_state._replace(meta_params=meta_params, state=state)
    return Candidate(out, workspace, examine(workspace, train_state, protocol), train_state, restored[0].damaged)


def result_of(ready: Candidate, evaluation: Evaluation) -> dict[str, Any]:
    """Describe what came out, as the command line prints it."""
    return describe(ready.workspace, evaluation, ready.train_state, ready.out, protocol=ready.protocol)


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
        within_alphabet=protocol.within_alphabet,
        norm=own.config.norm if protocol.norm == "none" else protocol.norm,
    )
    _check_head(own, protocol)
    dataset = judged = own.dataset
    if protocol.trained_on and protocol.episodes_from in DRAWN:
        config = dataclasses.replace(config, dataset=protocol.dataset, split=protocol.split, data_dir=data_dir)
        dataset = load_dataset(config, like=own.dataset.recipe)
        _check_kind(own.dataset, dataset)
        # The learner is built for the classes that it was trained on; tasks are drawn of those that are judged.
        judged, dataset = dataset, dataset._replace(class_names=own.dataset.class_names)
    if protocol.ways != own.config.ways:
        # Some learners are networks of a size that depends on the most classes in a task: that stays as it was.
        config = dataclasses.replace(config, train_ways=max(own.config.ways, own.config.train_ways or 0))
    changed = config != own.config
    workspace = own
    if changed:
        # The dataset first: the parts are made for its kind of tasks.
        workspace = with_config(own._replace(dataset=dataset), config, mesh)
    try:
        source = episodes_of(protocol, judged, data_dir, own.pool)
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(f"The protocol does not fit {protocol.dataset}: {error}") from error
    if changed:
        example = jax.eval_shape(lambda: one_task(source)).support.inputs
        _check_images(own.dataset, protocol.dataset, example.shape[1:])
        _check_network(own, workspace, example)
        workspace = workspace._replace(norm=norm_in_use(workspace.parts, config, example))
    if protocol.ensemble > 1:
        learner = ensemble_learner(workspace.parts.learner, dataset.kind)
        options = {"task_chunk": config.task_chunk or 1, "mesh": mesh, "memory_mib": workspace.memory_mib}
        evaluator = make_evaluator(learner, workspace.parts.criterion, num_steps=config.eval_inner_steps, **options)
        workspace = workspace._replace(parts=workspace.parts._replace(learner=learner), evaluator=evaluator)
    return workspace._replace(sources={**own.sources, protocol.part: source})


def _fixed_beside(config: Config, protocol: Protocol) -> Path | None:
    """Give the folder that a run was trained from if the archive of fixed tasks lies there too."""
    if protocol.episodes_from != CHALLENGE or config.data_dir is None:
        return None
    return config.data_dir if (config.data_dir.expanduser() / CHALLENGE_ARCHIVE).exists() else None


def _check_head(own: Workspace, protocol: Protocol) -> None:
    config = own.config
    if protocol.ways == config.ways:
        return
    if own.dataset.kind == "classification" and protocol.ways < 2:
        raise ConfigError(f"--ways must be at least 2 to tell classes apart; given {protocol.ways}.")
    if own.dataset.kind != "classification":
        raise ConfigError(f"The protocol asks for {protocol.ways} ways, and the run is regression, without classes.")
    if "ways" not in options_of(ALGORITHMS[config.algorithm]):
        raise ConfigError(
            f"The run's head has {config.ways} outputs, and the protocol asks for {protocol.ways} ways. Judge it by a "
            f"protocol of {config.ways} ways, or train a run with --ways {protocol.ways}."
        )


def _check_network(own: Workspace, workspace: Workspace, example: jax.ShapeDtypeStruct) -> None:
    """Refuse more classes than a network was made for, where its shape depends on their number."""
    key = jax.random.key(0)
    trained, judged = (jax.eval_shape(one.parts.learner.init, key, example)[0] for one in (own, workspace))
    if trained != judged:
        most = max(own.config.ways, own.config.train_ways or 0)
        raise ConfigError(
            f"The network of --algorithm {own.config.algorithm} was made for {most} ways at most, and "
            f"{workspace.config.ways} are asked for. Ask for fewer, or train a run with --ways {workspace.config.ways}."
        )


def _check_kind(trained: Dataset, judged: Dataset) -> None:
    if trained.kind != judged.kind:
        raise ConfigError(
            f"--dataset {judged.name} is {judged.kind}, and the run was trained on {trained.kind} ({trained.name})."
        )


def _check_images(trained: Dataset, judged: str, shape: tuple[int, ...]) -> None:
    if trained.kind == "regression":
        return
    needed = tuple(trained.splits["train"].images.shape[2:])
    if shape != needed:
        given, sizes = ("x".join(map(str, size)) for size in (shape, needed))
        raise ConfigError(
            f"{judged} has images of {given}, and the run was trained on {sizes} ({trained.name}). Choose a dataset "
            "with images of that size."
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
