"""What a device may use, and the largest of several programs that needs no more."""

import math
import warnings
from collections.abc import Callable, Iterable

import jax

from jaxmeta import processes
from jaxmeta.base import PyTree
from jaxmeta.device_memory import compile_lean, memory_at_hand, mib, program_bytes


def budget_bytes(memory_mib: int | None, held: PyTree, *, shared: bool) -> int | None:
    """Tell the bytes that a program may need on a device.

    Args:
      memory_mib: MiB that were allowed; None for what is at hand.
      held: What the program is given. What of it is on the device already counts as the program's own: JAX's arrays,
        and shapes that stand for them; not NumPy's.
      shared: Whether all processes compute the program together: then they are told the same, and all must ask.

    Returns:
      Bytes; None if that is not known.

    Example:
      >>> budget_bytes(3, (), shared=False)
      3145728
    """
    budget = None if memory_mib is None else memory_mib * 2**20
    if budget is None and (free := memory_at_hand()) is not None:
        budget = free + sum(map(_bytes_there, jax.tree.leaves(held)))
    return processes.agreed(budget) if shared else budget


def _bytes_there(leaf) -> int:
    """Bytes that a leaf takes on a device now; of a divided one its share."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return 0
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def largest_that_fits(
    sizes: Iterable[tuple[int, ...]],
    lower: Callable[..., jax.stages.Lowered],
    budget: int | None,
    what: str,
    *,
    shared: bool,
) -> tuple[int, ...]:
    """Compile a program of one size after the other until one fits.

    Args:
      sizes: From the one that is wanted to the smallest.
      lower: Lowers the program of a size, given as its arguments. `jax.jit` keeps what was compiled here for the call.
      budget: Bytes that a device may use; None for no limit.
      what: What the program does, for the warning where even the smallest does not fit.
      shared: As for `budget_bytes`: all processes take the same size.

    Returns:
      The first size that fits, or the last one: there is nothing smaller to try.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def lower(size):
      ...     return jax.jit(jnp.cumsum).lower(jnp.zeros(size))
      >>> largest_that_fits([(10_000,), (1000,), (100,)], lower, 20_000, "Summing up", shared=False)
      (1000,)
    """
    size, num_bytes = (), 0
    for size in sizes:
        num_bytes = program_bytes(compile_lean(lower(*size)))
        num_bytes = processes.agreed(num_bytes) if shared else num_bytes
        if budget is None or num_bytes <= budget:
            return size
    assert budget is not None
    warnings.warn(
        f"{what} needs {mib(num_bytes)} on each device even with one task at once, and {mib(budget)} may be used. "
        "Judge with fewer queries or inner steps if it does not fit.",
        stacklevel=2,
    )
    return size
