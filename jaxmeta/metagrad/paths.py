"""How a `Loop` is run and what of it is kept: the ways that every strategy shares."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxmeta.base import Loop, PyTree
from jaxmeta.metagrad.leaves import map_floats

Remat = str | Callable | None

# A loop over so few numbers spends its time on starting operations, not on arithmetic: on two cores load A5 of the
# benchmark, five steps of a perceptron with 1761 parameters, took 4.6 ms as a scan and 3.8 ms written out in one.
SMALL_CARRY, STEPS_WRITTEN_OUT = 8192, 5


def run_loop(loop: Loop, *, remat: bool = False) -> tuple[PyTree, PyTree]:
    """Run a `Loop`.

    Args:
      loop: The loop; `num_steps=0` returns its first carry.
      remat: Whether its steps are computed again on the way back.

    Returns:
      The last carry, and the per-step records stacked along a new first axis.
    """
    carry = jax.tree.map(jnp.asarray, loop.init(loop.inputs))
    if loop.num_steps and not _written_out(carry, loop.num_steps, remat):
        carry = _own(carry, loop.inputs.key)
    return run_steps(loop, loop.inputs, carry, 0, loop.num_steps, remat=remat)


def run_steps(loop: Loop, inputs, carry, first: int, last: int, *, remat: bool = False) -> tuple[PyTree, PyTree]:
    """Run the steps `first <= index < last` of a loop from a given carry.

    By a scan, which keeps compilation time and program size independent of the number of steps; a few steps over few
    numbers are written out. What is computed again stays in a scan: outside of one XLA's CPU backend undoes it.
    """

    def body(carry, index):
        return loop.step(inputs, carry, index)

    indices = loop.first_step + jnp.arange(first, last)
    if not _written_out(carry, last - first, remat):
        small = not remat and is_small(carry) and last > first
        return jax.lax.scan(body, carry, indices, unroll=STEPS_WRITTEN_OUT if small else 1)
    # Not a scan written out: in one each task has a carry of its own from the start. What all tasks begin with is one
    # here, and the first step is computed with products of all their examples at once. Compiled for its cache of
    # traces; inlined, it leaves no mark.
    traced_once, records = jax.jit(body, inline=True), []
    for index in indices:
        carry, record = traced_once(carry, index)
        records.append(record)
    return carry, jax.tree.map(lambda *steps: jnp.stack(steps), *records)


def is_small(carry: PyTree) -> bool:
    """Tell whether the numbers are so few that what is done with them costs by the operation."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(carry)) <= SMALL_CARRY


def _written_out(carry: PyTree, num_steps: int, remat: bool) -> bool:
    return not remat and 0 < num_steps <= STEPS_WRITTEN_OUT and is_small(carry)


def _own(carry: PyTree, key: jax.Array) -> PyTree:
    """Give every task a copy of what all begin with, as a product with 1.

    A scan's carry is of each task under `vmap`. JAX makes the copies by itself too, and adds their gradients up by a
    sum over the leading axis, which XLA does slowly on a CPU; those of a product are added by a product. MAML on the
    strided conv4, chunks of 8 tasks, two cores: 231 to 240 tasks a second by JAX's copies, 245 to 251 by these.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # Of a divided model the shards that change places would be those of every task's copy.
    if any(mesh.shape[axis] > 1 for axis in mesh.auto_axes):
        return carry
    # Of the task's key, so that it is of the task.
    bits = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    one = 1 + 0 * bits.ravel()[:1]
    return map_floats(lambda leaf: jnp.tensordot(one.astype(leaf.dtype), leaf[None], 1, precision="highest"), carry)


def run_groups(loop: Loop) -> tuple[PyTree, PyTree]:
    """Run a `Loop` in about sqrt(num_steps) groups, of which only the first carry is kept."""
    size = group_size(loop.num_steps)
    num_groups = loop.num_steps // size
    starts = jnp.arange(num_groups) * size

    def group(carry, start):
        def body(carry, index):
            return loop.step(loop.inputs, carry, index)

        return jax.lax.scan(body, carry, loop.first_step + start + jnp.arange(size))

    carry = _own(jax.tree.map(jnp.asarray, loop.init(loop.inputs)), loop.inputs.key)
    carry, records = jax.lax.scan(jax.checkpoint(group, prevent_cse=False), carry, starts)
    records = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), records)
    if num_groups * size == loop.num_steps:
        return carry, records
    carry, rest = run_steps(loop, loop.inputs, carry, num_groups * size, loop.num_steps, remat=True)
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
        # prevent_cse is for code outside of a scan, where no step that is computed again is; inside it only costs time.
        return jax.checkpoint(step_fn, policy=policy, prevent_cse=False)

    return step, run_groups if remat == "group" else partial(run_loop, remat=True)


# Those policies that need no argument.
POLICIES = [
    name
    for name in dir(jax.checkpoint_policies)
    if name.endswith("saveable") or name in ("checkpoint_dots", "checkpoint_dots_with_no_batch_dims")
]


def _identity(step):
    return step
