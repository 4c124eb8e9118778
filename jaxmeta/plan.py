"""How much is computed at once."""

import jax

# Inputs of a chunk, in numbers: 80 Omniglot images. Measured on two cores, strided conv4, 10 images
# a task: with 64 filters 0.20 s a step for single tasks and 0.15 s for chunks of 2, 4 or 8; with 32
# filters 0.050 s for chunks of 2, 0.037 s for 8 and 0.034 s for 16.
CPU_CHUNK_INPUTS = 65536


def choose_task_chunk(num_tasks: int, inputs_per_task: int, *, backend: str | None = None) -> int:
    """Choose how many tasks of a step are computed at once.

    On a CPU a few tasks whose activations stay in the cache beat all of them at once; an
    accelerator wants all of them.

    Args:
      num_tasks: Tasks in a step.
      inputs_per_task: Numbers in the inputs of a task, support and query: pixels of all images.
      backend: As `jax.default_backend()`, which is the default.

    Returns:
      A divisor of `num_tasks`.

    Example:
      >>> choose_task_chunk(32, 10 * 28 * 28, backend="cpu"), choose_task_chunk(32, 10 * 28 * 28, backend="gpu")
      (8, 32)
    """
    backend = jax.default_backend() if backend is None else backend
    if backend != "cpu":
        return num_tasks
    divisors = (size for size in range(1, num_tasks + 1) if num_tasks % size == 0)
    return max(size for size in divisors if size == 1 or size * inputs_per_task <= CPU_CHUNK_INPUTS)
