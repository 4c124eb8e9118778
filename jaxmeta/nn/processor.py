"""What processor this is, where JAX only says "cpu"."""

import functools
import platform
from pathlib import Path

import jax


def device_name() -> str:
    """Name the default device as JAX does, and a CPU with its processor: which way is fastest depends on it.

    Returns:
      As "NVIDIA H200" or "cpu AMD EPYC 7B13".

    Example:
      >>> len(device_name()) >= 3
      True
    """
    kind = jax.devices()[0].device_kind
    return f"{kind} {processor_name()}".strip() if kind == "cpu" else kind


@functools.cache
def processor_name() -> str:
    """Name the processor, with its 512 bits; its architecture where the system says no more."""
    named = [line.partition(":")[2].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return (named or [platform.machine()])[0] + (" (512 bits)" if has_wide_vectors() else "")


@functools.cache
def has_wide_vectors() -> bool:
    """Tell whether this processor has products of 512 bits (AVX-512); where the system does not say, it has not."""
    return "avx512f" in _cpuinfo()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
