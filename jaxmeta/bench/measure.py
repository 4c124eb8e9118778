"""Measure one load in this process: time, memory, compilation, and what the machine could do at best."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmeta.base import Episode, PyTree, TrainState
from jaxmeta.bench.loads import OUTER_RATE, Load, count_flops, draw_episodes, draw_weights, make_learner
from jaxmeta.device_memory import compile_lean
from jaxmeta.devices import make_mesh, place
from jaxmeta.plan import choose_task_chunk
from jaxmeta.train import make_train_step

# The two sides of every product that stands for the machine's peak.
MATMUL_SIZE = 2048
# Seconds that a round should take, and the most steps in it.
ROUND_SECONDS, ROUND_STEPS = 1.0, 200


class Prepared(NamedTuple):
    """A compiled meta-step with its state.

    Attributes:
      step: `() -> loss`: one outer step, waited for.
      params: `() -> meta-parameters` now.
      task_chunk: Tasks computed at once.
      compile_seconds: Tracing, lowering and compilation.
      temp_bytes: What XLA sets aside on each device beside arguments and results.
    """

    step: Callable[[], float]
    params: Callable[[], PyTree]
    task_chunk: int
    compile_seconds: float
    temp_bytes: int


def prepare(
    load: Load,
    weights: PyTree,
    episodes: Episode,
    *,
    task_chunk: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    precision: str = "float32",
    devices: int | None = None,
) -> Prepared:
    """Compile the meta-step of a load as a user of the library writes it.

    Args:
      load: The load.
      weights: The meta-parameters to begin with.
      episodes: The tasks of every step.
      task_chunk: Tasks computed at once; what `plan` chooses if None.
      optimizer: The outer optimiser; Adam if None.
      precision: How exactly the network computes, a key of `PRECISIONS`.
      devices: How many share the tasks at most; all there are if None, as `jaxmeta train` has it.

    Returns:
      The `Prepared` step; its state is donated from step to step.

    Raises:
      ValueError: if the chunk does not divide the tasks.
    """
    learner = make_learner(load, precision)
    optimizer = optax.adam(OUTER_RATE) if optimizer is None else optimizer
    if task_chunk is None:
        task_chunk = choose_task_chunk(load.tasks, (load.support + load.query) * _size(load.input_shape))
    key = jax.random.key(0)
    _, state = jax.jit(learner.init)(key, jnp.asarray(episodes.support.inputs[0]))
    # Copies: the state is donated, and the caller may want its weights again.
    weights, episodes = jax.tree.map(jnp.array, (weights, episodes))
    train_state = TrainState(jnp.int32(0), weights, state, optimizer.init(weights), ())
    devices = _sharing(load, devices)
    mesh = make_mesh(devices) if devices > 1 else None
    if mesh is not None:
        # A number of tasks that cannot be divided evenly lies whole on every device, and is padded in the step.
        by_task = P() if load.tasks % devices else P("tasks")
        train_state, episodes = place(train_state, mesh), jax.device_put(episodes, NamedSharding(mesh, by_task))
    train_step = make_train_step(learner, optimizer, task_chunk=task_chunk, mesh=mesh)
    begin = time.perf_counter()
    compiled = compile_lean(jax.jit(train_step, donate_argnums=0).lower(train_state, episodes, key))
    compile_seconds = time.perf_counter() - begin

    def step() -> float:
        nonlocal train_state
        train_state, metrics = compiled(train_state, episodes, key)
        jax.block_until_ready(train_state)
        return float(metrics["loss"])

    memory = compiled.memory_analysis()
    temp_bytes = memory.temp_size_in_bytes if memory else 0
    return Prepared(step, lambda: train_state.meta_params, task_chunk, compile_seconds, temp_bytes)


def measure(
    load: Load,
    *,
    rounds: int,
    task_chunk: int | None = None,
    precision: str = "float32",
    devices: int | None = None,
) -> dict[str, Any]:
    """Measure a load in this process, which should have done nothing else.

    Args:
      load: The load.
      rounds: Stretches of a second or so, of a step at least; each gives one figure.
      task_chunk: Tasks computed at once; what `plan` chooses if None.
      precision: How exactly the network computes, a key of `PRECISIONS`.
      devices: How many share the tasks at most; all there are if None.

    Returns:
      Plain values by name: a row of the table.
    """
    before = resident_bytes("VmRSS")
    how = {"task_chunk": task_chunk, "precision": precision, "devices": devices}
    prepared = prepare(load, draw_weights(load), draw_episodes(load), **how)
    # The first step warms up; the second tells how many fit into a round.
    loss = prepared.step()
    steps = steps_of_round(timed(prepared.step, 1))
    seconds = [timed(prepared.step, steps) for _ in range(rounds)]
    peak, device_peak = resident_bytes("VmHWM"), device_peak_bytes()
    best = matmul_gflops(jnp.bfloat16 if precision == "bfloat16" else jnp.float32)
    median = statistics.median(seconds)
    gflop = count_flops(load) / 1e9
    return {
        "load": load.name,
        "description": load.description,
        "seconds": seconds,
        "steps_of_round": steps,
        "tasks_per_second": load.tasks / median,
        "gflop": gflop,
        "gflops": gflop / median,
        "matmul_gflops": best,
        "compile_seconds": prepared.compile_seconds,
        "temp_bytes": prepared.temp_bytes,
        "rss_before_bytes": before,
        "peak_rss_bytes": peak,
        "device_peak_bytes": device_peak,
        "task_chunk": prepared.task_chunk,
        "loss": loss,
        "precision": precision,
        **describe_machine(),
        "devices": _sharing(load, devices),
    }


def _sharing(load: Load, devices: int | None) -> int:
    """Tell how many devices share the tasks: no more than there are, and than there are tasks."""
    at_hand = len(jax.devices())
    return min(at_hand if devices is None else devices, at_hand, load.tasks)


def timed(step: Callable[[], Any], steps: int) -> float:
    """Seconds of one step, as the mean of several."""
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def steps_of_round(seconds: float) -> int:
    """Tell how many steps of that length make a round."""
    return max(1, min(ROUND_STEPS, round(ROUND_SECONDS / seconds)))


def matmul_gflops(dtype: Any = jnp.float32) -> float:
    """Measure the rate of a product of two 2048x2048 matrices: the best of eight, in GFLOP/s."""
    matrix = jax.random.normal(jax.random.key(0), [MATMUL_SIZE, MATMUL_SIZE]).astype(dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    best = min(timed(lambda: product(matrix, matrix).block_until_ready(), 1) for _ in range(8))
    return 2 * MATMUL_SIZE**3 / 1e9 / best


def resident_bytes(field: str) -> int:
    """Read a memory figure of this process: "VmRSS", what it holds now, or "VmHWM", the most it held.

    Not `getrusage`: its figure survives the start of a new program, and so would be the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field + ":"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak_bytes() -> int | None:
    """Read the most that was held on the device, where it says."""
    statistics_of_device = jax.local_devices()[0].memory_stats()
    return None if statistics_of_device is None else statistics_of_device.get("peak_bytes_in_use")


def describe_machine() -> dict[str, Any]:
    """Say what this runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "cores": cores,
        "jax": jax.__version__,
    }


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
