"""Many devices: a mesh, what lies where on it, and the mean over tasks that are divided among them.

JAX's own partitioner is the whole engine. The `tasks` axis of a mesh is written out for each device (`shard_map`),
since scanning chunks of an axis that the partitioner has sharded makes every device compute every chunk. Its
`model` axis is left to the partitioner, which divides the arithmetic as the parameters are.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmeta.base import PyTree, TrainState
from jaxmeta.data.lookup import ReadImages
from jaxmeta.metagrad.leaves import is_float

TASKS, MODEL = "tasks", "model"
# Images read ahead are `[steps, tasks, ...]`.
OF_READ_IMAGES = PartitionSpec(None, TASKS)


def make_mesh(num_devices: int | None = None, *, model_devices: int = 1) -> Mesh:
    """Arrange devices so that tasks, and the arrays of large models, can be divided among them.

    Args:
      num_devices: How many of the devices that JAX sees, those of all processes together;
        all of them if None.
      model_devices: How many of them share one copy of the model; the tasks are divided
        among `num_devices / model_devices` groups.

    Returns:
      A mesh with the axis `tasks`, and with the axis `model` if `model_devices` is not 1.

    Raises:
      ValueError: for more devices than there are, or a number that does not divide them.

    Example:
      >>> make_mesh(1).shape["tasks"]
      1
    """
    devices = jax.devices()
    num_devices = len(devices) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(devices):
        raise ValueError(
            f"{num_devices} devices were asked for; JAX sees {len(devices)} ({devices[0].platform}). Ask for 1 to "
            f"{len(devices)}; for more on a CPU set XLA_FLAGS=--xla_force_host_platform_device_count={num_devices}."
        )
    if model_devices < 1 or num_devices % model_devices:
        raise ValueError(
            f"{model_devices} devices for a model do not divide the {num_devices} devices. Use a divisor of "
            f"{num_devices}."
        )
    shape, names = (num_devices // model_devices,), (TASKS,)
    if model_devices > 1:
        shape, names = (*shape, model_devices), (TASKS, MODEL)
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices[:num_devices])


def state_shardings(train_state: TrainState, mesh: Mesh) -> TrainState:
    """Tell where each array of a training state belongs on a mesh.

    Without a `model` axis everything is on every device. With one, an array is divided
    along the last of its axes that can be divided evenly. What an estimator keeps for
    each task is with the task.

    Args:
      train_state: A state, of arrays or of `jax.ShapeDtypeStruct`.
      mesh: From `make_mesh`.

    Returns:
      A `TrainState` of `NamedSharding`.

    Example:
      >>> state = TrainState(jnp.int32(0), jnp.ones([4, 4]), (), (), ())
      >>> state_shardings(state, make_mesh(1)).meta_params.is_fully_replicated
      True
    """

    def by_model(leaf):
        size = mesh.shape.get(MODEL, 1)
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not axes:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * axes[-1], MODEL))

    def by_task(leaf):
        # A number of tasks that cannot be divided evenly is kept whole, and divided in each step.
        even = leaf.shape[0] % mesh.shape[TASKS] == 0
        return NamedSharding(mesh, PartitionSpec(TASKS) if even else PartitionSpec())

    by_leaf = jax.tree.map(by_model, train_state._replace(estimator_state=()))
    return by_leaf._replace(estimator_state=jax.tree.map(by_task, train_state.estimator_state))


def place(train_state: TrainState, mesh: Mesh) -> TrainState:
    """Put a training state onto a mesh, as `state_shardings` says.

    Args:
      train_state: The state, the same in every process.
      mesh: From `make_mesh`.

    Returns:
      The state. An array that lies on this mesh already stays as it is: a sharding of
      one's own is kept.

    Example:
      >>> state = TrainState(jnp.int32(0), jnp.ones([4, 4]), (), (), ())
      >>> place(state, make_mesh(1)).meta_params.sharding.mesh.shape["tasks"]
      1
    """
    return jax.tree.map(_put, train_state, state_shardings(train_state, mesh))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a tree whole onto every device of a mesh; what lies on the mesh already stays as it is."""
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def _put(leaf, sharding: NamedSharding):
    there = getattr(leaf, "sharding", None)
    if isinstance(there, NamedSharding) and there.mesh == sharding.mesh:
        return leaf
    # Of several processes each has the whole: without a detour by the host it would be sent from one to the others.
    return jax.device_put(leaf if jax.process_count() == 1 else jax.device_get(leaf), sharding)


def on_each_device(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """Write a function out for each device along the `tasks` axis; `model` is left to the partitioner.

    Without `check_vma`: with it, the gradient by what all devices share is summed over
    them by itself, inside the gradient of a device's tasks, and every scan whose carry begins as
    a constant (an inner loop's counters) would have to say that it differs by device.
    """
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={TASKS}, check_vma=False
    )


def sample_on_each_device(sample: Callable, spec: Any, num_tasks: int, mesh: Mesh) -> Callable:
    """Let each device draw its own tasks of a batch.

    Args:
      sample: As in a `TaskSource`.
      spec: Size of the episodes.
      num_tasks: Tasks in the batch.
      mesh: From `make_mesh`.

    Returns:
      `(key, pool) -> episodes`, divided along `tasks`; their number is rounded up to a multiple
      of the devices.
    """
    count = math.ceil(num_tasks / mesh.shape[TASKS])

    def draw(key, pool):
        return sample(key, pool, spec, count, first_task=jax.lax.axis_index(TASKS) * count)

    def draw_all(key, pool):
        specs = PartitionSpec(), pool_specs(pool)
        return on_each_device(draw, mesh, in_specs=specs, out_specs=PartitionSpec(TASKS))(key, pool)

    return draw_all


def pool_specs(pool: Any) -> Any:
    """Tell how a pool lies on the `tasks` axis: every device has the whole, but of images read ahead its own tasks'."""
    images = getattr(pool, "images", None)
    if not isinstance(images, ReadImages):
        return PartitionSpec()
    of_images = ReadImages(OF_READ_IMAGES, OF_READ_IMAGES, PartitionSpec(), images.shape)
    return pool._replace(**dict.fromkeys(pool._fields, PartitionSpec()))._replace(images=of_images)


def task_mean(function, shared, per_task, *, num_tasks: int, present: int, task_chunk: int | None, mesh: Mesh | None):
    """Average a function over tasks: in chunks, divided among devices, with tasks that count for nothing.

    Args:
      function: `(shared, per_task) -> mean, kept`: means over the leading axis of per_task,
        and what is kept of each task.
      shared: What every task is given.
      per_task: Leaves `[present, ...]`, or `[num_tasks, ...]` for what padding has none of.
      num_tasks: Tasks that count: the first of those present.
      present: Tasks in per_task.
      task_chunk: Tasks computed at once on a device; all of the device's if None.
      mesh: Devices along whose `tasks` axis the tasks are divided; None for one device.

    Returns:
      The means over the first num_tasks tasks (of whole numbers the first task's), and
      what is kept, leaves `[num_tasks, ...]`.

    Raises:
      ValueError: without a mesh, for a chunk that does not divide the tasks.
    """
    devices = 1 if mesh is None else mesh.shape[TASKS]
    on_device = math.ceil(present / devices)
    chunk = on_device if task_chunk is None else task_chunk
    if chunk < 1 or mesh is None and present % chunk:
        raise ValueError(
            f"task_chunk={chunk} does not divide the {present} tasks of a step. Use a divisor of {present}."
        )
    num_chunks = math.ceil(on_device / chunk)
    chunk = math.ceil(on_device / num_chunks)
    # Known before tracing: where every place holds a task that counts, no task needs a weight.
    full = num_tasks == present == devices * num_chunks * chunk
    of_chunk = _mean_of_all(function) if full else _sum_of_real(function)

    def of_device(index, shared, per_task):
        real = index * on_device + jnp.arange(on_device) < num_tasks
        real = jnp.pad(real, (0, num_chunks * chunk - on_device))
        chunks = jax.tree.map(
            lambda leaf: leaf.reshape(num_chunks, chunk, *leaf.shape[1:]),
            (repeat(per_task, num_chunks * chunk), real),
        )
        total, kept = _over_chunks(lambda each: of_chunk(shared, *each), chunks, num_chunks)
        kept = jax.tree.map(lambda leaf: leaf.reshape(num_chunks * chunk, *leaf.shape[2:])[:on_device], kept)
        return (total if mesh is None else _over_devices(total, index)), kept

    per_task = repeat(per_task, devices * on_device)
    if mesh is None:
        total, kept = of_device(0, shared, per_task)
    else:
        specs = PartitionSpec(), PartitionSpec(TASKS)
        mapped = on_each_device(
            lambda *args: of_device(jax.lax.axis_index(TASKS), *args), mesh, in_specs=specs, out_specs=specs
        )
        total, kept = mapped(shared, per_task)
    terms = devices * num_chunks if full else num_tasks
    mean = jax.tree.map(lambda leaf: leaf / terms if is_float(leaf) and terms > 1 else leaf, total)
    return mean, jax.tree.map(lambda leaf: leaf if leaf.shape[0] == num_tasks else leaf[:num_tasks], kept)


def _mean_of_all(function):
    return lambda shared, per_task, real: function(shared, per_task)


def _sum_of_real(function):
    """Sum over the tasks that count, one by one.

    The others are chosen away and not multiplied by zero, which would leave what is not finite.
    """

    def of_chunk(shared, per_task, real):
        def of_task(task):
            return function(shared, jax.tree.map(lambda leaf: leaf[None], task))

        def total(leaf):
            if not is_float(leaf):
                return leaf[0]
            counted = jnp.where(real.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)
            return jnp.tensordot(real.astype(leaf.dtype), counted, 1, precision="highest")

        means, kept = jax.vmap(of_task)(per_task)
        return jax.tree.map(total, means), jax.tree.map(lambda leaf: leaf[:, 0], kept)

    return of_chunk


def _over_chunks(of_chunk, chunks, num_chunks):
    """Scan a function over chunks of tasks and add what it returns; of whole numbers the first chunk's.

    The gradient is taken inside of the scan: differentiating the scan would keep
    the activations of every chunk.
    """
    first = jax.tree.map(lambda leaf: leaf[0], chunks)
    if num_chunks == 1:
        total, kept = of_chunk(first)
        return total, jax.tree.map(lambda leaf: leaf[None], kept)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(of_chunk, first)[0])

    def body(carry, chunk):
        index, total = carry
        value, kept = of_chunk(chunk)
        total = jax.tree.map(lambda a, b: a + b if is_float(b) else jnp.where(index == 0, b, a), total, value)
        return (index + 1, total), kept

    (_, total), kept = jax.lax.scan(body, (jnp.int32(0), zeros), chunks)
    return total, kept


def _over_devices(total, index):
    """Add what the devices have, in one exchange; of whole numbers take the first device's."""
    counted = jax.tree.map(lambda leaf: leaf if is_float(leaf) else jnp.where(index == 0, leaf, 0), total)
    return jax.tree.map(lambda leaf, whole: whole.astype(leaf.dtype), total, jax.lax.psum(counted, TASKS))


def repeat(tree: PyTree, size: int) -> PyTree:
    """Lengthen the leading axis of every leaf by beginning again: padding must be what can be computed with."""

    def lengthen(leaf):
        return leaf if leaf.shape[0] == size else leaf[jnp.arange(size) % leaf.shape[0]]

    return jax.tree.map(lengthen, tree)
