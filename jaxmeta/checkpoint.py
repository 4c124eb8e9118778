"""Checkpoints of a training run, through orbax: atomic, checked, latest and best kept."""

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxmeta.base import TrainState

# The score of a checkpoint that was not validated, or whose validation diverged: never the best.
NOT_VALIDATED = -1e30


class CheckpointError(OSError):
    """A checkpoint could not be written, or none could be read."""


class Restored(NamedTuple):
    """What `restore` found.

    Attributes:
      train_state: The state.
      step: Its outer step.
      meta: What was saved beside it.
      damaged: Steps of newer (or better) checkpoints that were passed over because they are damaged.
    """

    train_state: TrainState
    step: int
    meta: dict[str, Any]
    damaged: tuple[int, ...]


def save(directory: Path, train_state: TrainState, *, score: float, meta: dict[str, Any], keep_best: int = 1) -> None:
    """Write a checkpoint; the two latest and the best are kept.

    It appears under its own name only when it is complete: a process killed while
    writing leaves the checkpoints before it as they were.

    Args:
      directory: Folder of the run's checkpoints.
      train_state: What to save; its step names the checkpoint.
      score: What "best" means, larger is better.
      meta: Plain values to keep beside it (the configuration and the like).
      keep_best: How many of the best are kept.

    Raises:
      CheckpointError: if it could not be written, a full disk above all.
    """
    step = int(train_state.step)
    arrays = jax.device_get(train_state)
    described = {**meta, "digest": _digest(arrays)}
    _check_space(directory, step, sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
    try:
        with _manager(directory, clean=True, keep_best=keep_best) as manager:
            if step in manager.all_steps():
                # It was damaged, or the run would not have come to this step again.
                manager.delete(step)
            manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(described)),
                metrics={"score": float(score)},
                force=True,
            )
    # orbax reports a full disk by several types of its own and of its storage layer.
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {directory}: {_first_line(error)}. "
            "Earlier checkpoints are untouched. Free some space and continue with --resume."
        ) from error


def restore(directory: Path, like: TrainState, *, best: bool = False) -> Restored:
    """Read the latest checkpoint, or the best, that is whole.

    Args:
      directory: Folder of the run's checkpoints.
      like: A state of the same structure (arrays or `jax.ShapeDtypeStruct`).
      best: Take that of the highest score; else the latest.

    Returns:
      A `Restored`, which tells what was passed over.

    Raises:
      CheckpointError: if there is none, or none that is whole.
    """
    steps = checkpoint_steps(directory)
    if not steps:
        raise CheckpointError(f"There is no checkpoint in {directory}. Train the run first.")
    damaged = []
    with _manager(directory) as manager:
        order = sorted(steps, reverse=True)
        if best:
            scores = {step: _score(manager, step) for step in order}
            order.sort(key=lambda step: (scores[step], step), reverse=True)
        for step in order:
            try:
                train_state, meta = _read(manager, step, like)
            # Whatever a damaged file makes the storage layers raise.
            except Exception:
                damaged.append(step)
                continue
            return Restored(train_state, step, meta, tuple(damaged))
    raise CheckpointError(
        f"No checkpoint in {directory} can be read: those of steps {sorted(damaged)} are damaged, or belong "
        "to a run of another configuration. Start the run again under another name."
    )


def restore_best(directory: Path, like: TrainState, count: int) -> list[Restored]:
    """Read the checkpoints of the highest scores, the best first.

    Args:
      directory: Folder of the run's checkpoints.
      like: A state of the same structure (arrays or `jax.ShapeDtypeStruct`).
      count: How many; the run must have kept as many of the best (`save(keep_best=...)`), since of those that it
        did not keep nobody knows.

    Returns:
      As many `Restored`, each of which tells all that were passed over.

    Raises:
      CheckpointError: if there are not as many that were validated and are whole.
    """
    found, damaged = [], []
    steps = checkpoint_steps(directory)
    if steps:
        with _manager(directory) as manager:
            scores = {step: _score(manager, step) for step in steps}
            validated = [step for step in steps if scores[step] > NOT_VALIDATED]
            for step in sorted(validated, key=lambda step: (scores[step], step), reverse=True):
                try:
                    train_state, meta = _read(manager, step, like)
                # As in `restore`.
                except Exception:
                    damaged.append(step)
                    continue
                found.append(Restored(train_state, step, meta, ()))
                if len(found) == count:
                    return [one._replace(damaged=tuple(damaged)) for one in found]
    raise CheckpointError(
        f"{count} validated checkpoints were asked for, and in {directory} there are {len(found)} that can be read. "
        "Ask for fewer, or train with more steps, or a smaller --checkpoint-every."
    )


def checkpoint_steps(directory: Path) -> list[int]:
    """List the outer steps of the checkpoints in a folder, in order; none if it is missing."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit())


def _check_space(directory: Path, step: int, num_bytes: int) -> None:
    """Refuse early on a full disk: half-way through, the storage layer prints what nobody can use."""
    existing = Path(directory).absolute()
    while not existing.exists():
        existing = existing.parent
    needed, free = num_bytes + 2**17, shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"The checkpoint of step {step} needs {needed / 2**20:.1f} MB in {directory}, where {free / 2**20:.1f} MB "
            "are free. Earlier checkpoints are untouched. Free some space and continue with --resume."
        )


def _manager(directory: Path, *, clean: bool = False, keep_best: int = 1) -> ocp.CheckpointManager:
    alone = jax.process_count() == 1
    # Of several processes one saves and each reads for itself: none waits for another here.
    processes = ocp.options.MultiprocessingOptions()
    if not alone:
        processes.primary_host, processes.active_processes = jax.process_index(), {jax.process_index()}
        if clean:
            Path(directory).mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(2), BestN(get_metric_fn=_get_score, n=keep_best)]),
        # Scores are written only where best_fn is given; what is kept, the policy says.
        best_fn=_get_score,
        cleanup_tmp_directories=clean,
        create=clean and alone,
        enable_async_checkpointing=False,
        multiprocessing_options=processes,
    )
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def _get_score(metrics) -> float:
    return metrics["score"]


def _score(manager: ocp.CheckpointManager, step: int) -> float:
    try:
        metrics = manager.metrics(step)
    # A damaged score must not hide the checkpoint, only rank it last.
    except Exception:
        metrics = None
    return float((metrics or {}).get("score", "-inf"))


def _read(manager: ocp.CheckpointManager, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
    items = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
    )
    meta = dict(items["meta"])
    if meta.pop("digest") != _digest(jax.device_get(items["state"])):
        raise CheckpointError(f"The arrays of step {step} are not those that were saved.")
    return items["state"], meta


def _digest(tree) -> str:
    """Hash every leaf with its place, type and shape: orbax does not notice every changed byte."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
