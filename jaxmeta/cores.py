"""The cores of a CPU as devices."""

import contextlib
import os

import jax


def split_cpu(most: int) -> None:
    """Let each core of a CPU be a device with tasks of its own: XLA runs much of a step on one core only.

    To be called before JAX has begun to work; later it is in vain, as where the number of devices was said in
    the environment, by `JAX_NUM_CPU_DEVICES` or in `XLA_FLAGS`.

    Args:
      most: The devices wanted: no more, and not more than there are cores.

    Example:
      >>> split_cpu(1)
    """
    by_flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if by_flag or jax.config.values["jax_num_cpu_devices"] > 0:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(1, min(most, cores)))
