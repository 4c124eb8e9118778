"""Several processes that train one run: what only the first of them does, and what all must agree on.

Every process runs the same program on the same numbers, and reads what it needs from the run's folder, which all must
see. Only the first writes. With one process each function here is what it would be without it.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxmeta.base import PyTree


def join_processes(coordinator: str, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the processes of a run; before anything else is asked of JAX.

    Args:
      coordinator: "HOST:PORT" of the first process; "auto" where JAX can find out by itself
        (SLURM, Open MPI, Kubernetes, TPU pods).
      num_processes: How many there are.
      process_id: Which this is, from 0.

    Raises:
      OSError: if they do not meet.
    """
    try:
        # The processors of several processes exchange numbers by gloo, JAX's default since 0.5.
        jax.distributed.initialize(None if coordinator == "auto" else coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise OSError(f"The processes did not meet at --coordinator {coordinator}: {str(error).strip()}") from error


def is_joined() -> bool:
    """Tell whether this is one of several processes."""
    return jax.distributed.is_initialized()


def leave(code: int) -> None:
    """End this process at once if it is one of several: an orderly exit waits for the others, which wait for it."""
    if is_joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def is_shared(mesh: Mesh | None) -> bool:
    """Tell whether processes compute on a mesh together, and must agree on what they compute."""
    return mesh is not None and mesh.is_multi_process


def is_first() -> bool:
    """Tell whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def on_first(action: Callable[[], Any]) -> None:
    """Do something in the first process only; the others wait for it, and stop where it failed.

    Args:
      action: What to do.

    Raises:
      OSError: in the others, if it failed; in the first, what the action raised.
    """
    if jax.process_count() == 1:
        action()
        return
    failure = None
    if is_first():
        try:
            action()
        # Whatever it is, the others must not wait for a process that is gone.
        except Exception as error:
            failure = error
    failed = multihost_utils.broadcast_one_to_all(np.int32(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise OSError("The first process could not go on; its message says why.")


def from_first(make: Callable[[], str]) -> str:
    """Make a text in the first process only, and give it to all.

    Args:
      make: Makes the text.

    Returns:
      What it returned in the first process.

    Raises:
      OSError: in the others, if it failed; in the first, what it raised.
    """
    made: list[bytes] = []
    on_first(lambda: made.append(make().encode()))
    if jax.process_count() == 1:
        return made[0].decode()
    # The others need the length to receive the rest.
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(made[0]) if made else 0)))
    text = np.frombuffer(made[0], np.uint8) if made else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(text)).astype(np.uint8).tobytes().decode()


def agreed(value: Any) -> Any:
    """Give what the first process has, of plain values: all must decide alike.

    Example:
      >>> agreed(3)
      3
    """
    return json.loads(from_first(lambda: json.dumps(value)))


def any_process(flag: bool) -> bool:
    """Tell whether a flag is set in any process, to all of them."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.int32(flag)).any())


def fetch(tree: PyTree) -> PyTree:
    """Copy a tree to the host, whole, in every process: all must call it."""
    return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)
