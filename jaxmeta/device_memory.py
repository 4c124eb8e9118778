"""How much memory a device has left, and how much a program needs, compiled or while it is compiled."""

import ctypes
import sys

import jax

from jaxmeta.data.memory import free_memory

# Of the memory at hand; the rest is for what is not in a program: data on its way, the runtime itself.
SHARE_OF_MEMORY = 0.85


def program_bytes(program: jax.stages.Compiled) -> int:
    """Tell the bytes that a compiled program needs on each device: arguments, results and temporaries.

    Args:
      program: Compiled, as by `compile_steps`.

    Returns:
      Bytes, by XLA's memory analysis; what is donated counts once. 0 where a backend has no analysis.

    Example:
      >>> program_bytes(jax.jit(lambda x: x + 1).lower(jax.numpy.ones(256)).compile()) >= 2048
      True
    """
    memory = program.memory_analysis()
    if memory is None:
        return 0
    whole = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return whole - memory.alias_size_in_bytes


def compile_lean(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile, and give the system back what only tracing and compiling took: for a meta-step on a CPU 300 to 500 MiB.

    Both free it, in many small pieces, which the C library of Linux keeps. Elsewhere nothing is done.

    Args:
      lowered: From `jax.jit(function).lower(...)`.

    Returns:
      What `lowered.compile()` gives.

    Example:
      >>> compile_lean(jax.jit(lambda x: x + 1).lower(1.0))(2.0).item()
      3.0
    """
    _give_back()
    program = lowered.compile()
    _give_back()
    return program


def _give_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def memory_at_hand() -> int | None:
    """Tell how many bytes a program may use on each device now.

    Returns:
      On an accelerator what its allocator may still hand out; on a CPU what the system, and the
      container's limit, leave to each of the devices it stands for. None where neither says.

    Example:
      >>> memory_at_hand() is None or memory_at_hand() > 0
      True
    """
    device = jax.local_devices()[0]
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        free = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    elif device.platform == "cpu" and (available := free_memory()) is not None:
        free = available // len(jax.local_devices())
    else:
        return None
    return int(SHARE_OF_MEMORY * free)


def mib(num_bytes: float) -> str:
    """Write bytes as whole MiB, rounded up: what is short by a byte is short."""
    return f"{-(-num_bytes // 2**20):.0f} MiB"
