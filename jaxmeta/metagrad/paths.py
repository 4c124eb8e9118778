"""How a `Loop` is run and what of it is kept: the scans that every strategy shares."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmeta.base import Loop, PyTree

Remat = str | Callable | None

# A loop over so few numbers spends its time on starting operations, not on arithmetic: on two cores load A5 of the
# benchmark, five steps of a perceptron with 1761 parameters, took 4.6 ms as a loop and 3.8 ms written out.
SMALL_CARRY, STEPS_WRITTEN_OUT = 8192, 5


def run_loop(loop: Loop) -> tuple[PyTree, PyTree]:
    """Run a `Loop` by one `jax.lax.scan`.

    Args:
      loop: The loop; `num_steps=0` returns its first carry.

    Returns:
      The last carry, and the per-step records stacked along a new first axis.
    """
    return run_steps(loop, loop.inputs, loop.init(loop.inputs), 0, loop.num_steps)


def run_steps(loop: Loop, inputs, carry, first: int, last: int) -> tuple[PyTree, PyTree]:
    """Run the steps `first <= index < last` of a loop from a given carry."""

    def body(carry, index):
        return loop.step(inputs, carry, index)

    small = sum(jnp.size(leaf) for leaf in jax.tree.leaves(carry)) <= SMALL_CARRY
    # The scan keeps compilation time and program size independent of the number of steps.
    indices = loop.first_step + jnp.arange(first, last)
    return jax.lax.scan(body, carry, indices, unroll=min(STEPS_WRITTEN_OUT, max(last - first, 1)) if small else 1)


def run_groups(loop: Loop) -> tuple[PyTree, PyTree]:
    """Run a `Loop` in about sqrt(num_steps) groups, of which only the first carry is kept."""
    size = group_size(loop.num_steps)
    num_groups = loop.num_steps // size
    starts = jnp.arange(num_groups) * size

    def group(carry, start):
        def body(carry, index):
            return loop.step(loop.inputs, carry, index)

        return jax.lax.scan(body, carry, loop.first_step + start + jnp.arange(size))

    carry, records = jax.lax.scan(jax.checkpoint(group, prevent_cse=False), loop.init(loop.inputs), starts)
    records = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), records)
    if num_groups * size == loop.num_steps:
        return carry, records
    carry, rest = run_steps(loop, loop.inputs, carry, num_groups * size, loop.num_steps)
    return carry, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), records, rest)


def group_size(num_steps: int) -> int:
    """Choose the number of steps in a group: near the square root, and a divisor where one is near."""
    root = max(1, math.isqrt(num_steps))
    # A remainder is a second program to compile: a divisor that is up to a half off is better.
    near = [size for size in range(max(1, root // 2), 2 * root + 1) if num_steps % size == 0]
    near = [size for size in near if root / 1.5 <= size <= root * 1.5]
    return min(near, key=lambda size: abs(size - root), default=root)


def rematerialise(remat: Remat, policy: Callable | None = None) -> tuple[Callable, Callable]:
    """Make the `step` and `solve` hooks that keep less of a loop and compute it again on the way back.

    Args:
      remat: None keeps everything; "step" the carry of each step; "group" the carry of
        each of about sqrt(num_steps) groups of steps (and of the steps of the group in
        hand); the name of a `jax.checkpoint_policies` member, or such a policy, what it says.
      policy: What of a step to keep in addition with "step" and "group".

    Returns:
      `step, solve`.

    Raises:
      ValueError: for an unknown name.
    """
    if remat is None:
        return _identity, run_loop
    if callable(remat):
        policy = remat
    elif remat in POLICIES:
        policy = getattr(jax.checkpoint_policies, remat)
    elif remat not in ("step", "group"):
        raise ValueError(f"remat must be None, 'step', 'group', a policy or one of {POLICIES}; given {remat!r}.")

    def step(step_fn):
        # prevent_cse is for code outside of a scan; inside it only costs time.
        return jax.checkpoint(step_fn, policy=policy, prevent_cse=False)

    return step, run_groups if remat == "group" else run_loop


# Those policies that need no argument.
POLICIES = [
    name
    for name in dir(jax.checkpoint_policies)
    if name.endswith("saveable") or name in ("checkpoint_dots", "checkpoint_dots_with_no_batch_dims")
]


def _identity(step):
    return step
