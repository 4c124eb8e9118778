"""Pools on the host feed the device: the images of the next dispatches are read while this one computes.

A worker thread chooses the tasks (a small program on the host's own processor, so that it does not queue behind the
step that the device computes), copies their bytes out of the pool by NumPy, and sends them to the device. What a
dispatch is given is the pool, with the images of its tasks in the place of all (`ReadImages`).
"""

import contextlib
import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxmeta import devices, processes
from jaxmeta.base import Episode, Key
from jaxmeta.data import Dataset, TaskSource
from jaxmeta.data.host import chooser_of
from jaxmeta.data.lookup import HostImages, ReadImages
from jaxmeta.device_memory import memory_at_hand

POOLS = ("auto", "device", "host")
# Of the memory that is at hand, what the images may take on a device; the rest is for training.
POOL_SHARE = 0.5
# Dispatches that are read ahead, each by a thread of its own, and the most bytes of one.
DEPTH = 2
MOST_BYTES = 64 * 2**20

Given = TypeVar("Given")
Made = TypeVar("Made")


def choose_pool(dataset: Dataset, asked: str = "auto", memory: int | None = None) -> str:
    """Tell where the images of a dataset are kept, the same in every process.

    Args:
      dataset: The dataset.
      asked: "device", "host", or "auto": on the device if all splits fit into half of its free memory.
      memory: Bytes that a device may use; None for what is at hand. A CPU's memory is divided among its devices.

    Returns:
      "device" or "host".

    Example:
      >>> from jaxmeta import load_sinusoid
      >>> choose_pool(load_sinusoid())
      'device'
    """
    if asked != "auto" or dataset.kind == "regression":
        return "host" if asked == "host" and dataset.kind != "regression" else "device"
    wanted = sum(math.prod(pool.images.shape) * pool.images.dtype.itemsize for pool in dataset.splits.values())

    def choose() -> str:
        free = memory_at_hand() if memory is None else memory
        return "device" if free is None or wanted <= POOL_SHARE * free else "host"

    return processes.from_first(choose)


def is_fed(source: TaskSource) -> bool:
    """Tell whether a source is read ahead: its images are on the host, and what its sampler chooses can be told."""
    return isinstance(getattr(source.pool, "images", None), HostImages) and chooser_of(source.sample) is not None


def steps_at_once(source: TaskSource, num_tasks: int, steps_per_call: int) -> int:
    """Tell how many outer steps a dispatch computes: of a fed source as many as its images may take memory."""
    if not is_fed(source):
        return steps_per_call
    choose = _chooser(source)
    chosen = jax.eval_shape(lambda key: choose(key, source.pool, source.spec, num_tasks), jax.random.key(0))
    images = sum(batch.weights.size for batch in chosen)
    return max(1, min(steps_per_call, MOST_BYTES // (images * math.prod(source.pool.images.shape[2:]))))


def step_keys(key: Key, step: int | jax.Array) -> tuple[Key, Key]:
    """Give the keys of an outer step: that of its tasks, and that of its noise."""
    key_sample, key_step = jax.random.split(jax.random.fold_in(key, step))
    return key_sample, key_step


@contextlib.contextmanager
def pools_of_steps(
    source: TaskSource, key: Key, first_steps: Iterable[int], *, num_tasks: int, at_once: int, mesh: Mesh | None
) -> Iterator[Iterator[Any]]:
    """Give what each dispatch of outer steps draws its tasks from.

    Args:
      source: Where tasks come from.
      key: As for `fit`.
      first_steps: The first step of each dispatch.
      num_tasks: Tasks in a step.
      at_once: Steps in a dispatch.
      mesh: Devices that the tasks are divided among.

    Yields:
      An iterator: the pool of the source again and again, or of a fed source one with the images of each
      dispatch, leaves `[at_once, tasks, ...]`, of which DEPTH are read ahead. What a reader raised is raised here.
    """
    if not is_fed(source):
        yield itertools.repeat(source.pool)
        return
    images, (key, pool) = source.pool.images, _for_choosing(key, source.pool)
    tasks = num_tasks if mesh is None else math.ceil(num_tasks / mesh.shape[devices.TASKS]) * mesh.shape[devices.TASKS]

    def read(step: int):
        chosen = _choose_steps(_chooser(source), source.spec, tasks, at_once, key, pool, np.int32(step))
        return source.pool._replace(images=_send(chosen, images, mesh))

    with read_ahead(read, first_steps) as pools:
        yield pools


@contextlib.contextmanager
def pools_of_tasks(
    source: TaskSource, key: Key, first_tasks: Iterable[int], *, num_tasks: int, mesh: Mesh | None
) -> Iterator[Iterator[Any]]:
    """Give what each chunk of an evaluation draws its tasks from; see `pools_of_steps`."""
    if not is_fed(source):
        yield itertools.repeat(source.pool)
        return
    images, (key, pool) = source.pool.images, _for_choosing(key, source.pool)

    def read(first_task: int):
        chosen = _choose_tasks(_chooser(source), source.spec, num_tasks, key, pool, np.int32(first_task))
        return source.pool._replace(images=_send(chosen, images, mesh))

    with read_ahead(read, first_tasks) as pools:
        yield pools


@contextlib.contextmanager
def read_ahead(
    read: Callable[[Given], Made], requests: Iterable[Given], depth: int = DEPTH
) -> Iterator[Iterator[Made]]:
    """Read in threads what will be asked for next, in order.

    Args:
      read: Makes what is asked for; called in `depth` threads.
      requests: What will be asked for.
      depth: How many are read ahead.

    Yields:
      An iterator over what was made; what `read` raised is raised when its turn comes. At the end of the
      context, however it ends, no request is begun any more, and the threads have ended.

    Example:
      >>> with read_ahead(lambda number: number**2, range(4)) as squares:
      ...     list(squares)
      [0, 1, 4, 9]
    """
    remaining, begun = iter(requests), deque[Future]()
    executor = ThreadPoolExecutor(depth, thread_name_prefix="jaxmeta-read")

    def begin() -> None:
        for request in itertools.islice(remaining, 1):
            begun.append(executor.submit(read, request))

    def made() -> Iterator[Made]:
        while begun:
            result = begun.popleft().result()
            begin()
            yield result

    try:
        for _ in range(depth):
            begin()
        yield made()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _chooser(source: TaskSource) -> Callable[..., Episode]:
    choose = chooser_of(source.sample)
    assert choose is not None, "asked of a source that is not fed"
    return choose


def _for_choosing(key: Key, pool):
    """Put what tasks are chosen from onto the host's own processor, where JAX has it."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = jax.local_devices()[0]
    # Through NumPy: what lies on a mesh of several processes cannot be put onto one device directly.
    data, pool = jax.device_put(jax.device_get((jax.random.key_data(key), pool)), device)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key)), pool


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _choose_steps(choose, spec, num_tasks, at_once, key, pool, first_step):
    def of_step(step):
        return _places(choose(step_keys(key, step)[0], pool, spec, num_tasks))

    return jax.vmap(of_step)(first_step + jnp.arange(at_once))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _choose_tasks(choose, spec, num_tasks, key, pool, first_task):
    chosen = choose(key, pool, spec, num_tasks, first_task=first_task)
    return jax.tree.map(lambda leaf: leaf[None], _places(chosen))


def _places(chosen: Episode) -> tuple[jax.Array, jax.Array]:
    """Leave out targets and weights: the program computes them itself, from the same key."""
    return chosen.support.inputs, chosen.query.inputs


def _send(places: tuple[jax.Array, jax.Array], images: HostImages, mesh: Mesh | None) -> ReadImages:
    """Look images up and send them to the device, or to each of a mesh those of its tasks."""

    def send(chosen: np.ndarray) -> jax.Array:
        if mesh is None:
            return jax.device_put(images.read(chosen))
        shape, sharding = (*chosen.shape[:-1], *images.shape[2:]), NamedSharding(mesh, devices.OF_READ_IMAGES)

        def of_device(index: Any) -> np.ndarray:
            return images.read(chosen[index[:2]])

        # Each process reads the tasks of its own devices only.
        return jax.make_array_from_callback(shape, sharding, of_device)

    support, query = jax.device_get(places)
    return ReadImages(send(support), send(query), np.int32(0), images.shape)


def at_step(pool: Any, index: jax.Array | int) -> Any:
    """Give the pool of one step of a dispatch: of images that were read ahead its own, else as it is."""
    images = getattr(pool, "images", None)
    if not isinstance(images, ReadImages):
        return pool
    return pool._replace(images=dataclasses.replace(images, step=index))
