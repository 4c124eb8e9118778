"""What was lived through, kept on the device: a circle of arrays that is written and drawn from inside `jit`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.base import Key, PyTree
from jaxmeta.metagrad import check_count


class Replay(NamedTuple):
    """The last items of a stream.

    Attributes:
      items: A tree with leaves `[capacity, ...]`.
      count: Items stored so far, int32 scalar; the next goes to slot `count % capacity`.
    """

    items: PyTree
    count: jax.Array


def empty_replay(example: PyTree, capacity: int) -> Replay:
    """Make room for items.

    Args:
      example: One item; its shapes and dtypes count.
      capacity: Items kept; the oldest is overwritten.

    Returns:
      A `Replay` of zeros without an item.

    Raises:
      ValueError: a capacity below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> empty_replay({"reward": jnp.zeros(())}, 4).items["reward"].shape
      (4,)
    """
    check_count("empty_replay", "capacity", capacity, 1)
    return Replay(
        jax.tree.map(lambda leaf: jnp.zeros((capacity, *jnp.shape(leaf)), jnp.result_type(leaf)), example),
        jnp.int32(0),
    )


def add_to_replay(replay: Replay, items: PyTree) -> Replay:
    """Store items in their order; each goes to slot `count % capacity`.

    Args:
      replay: Where to.
      items: Leaves `[items, ...]`; no more than the capacity.

    Returns:
      The new `Replay`.

    Raises:
      ValueError: more items than there is room for, which would be written over each other in no order.

    Example:
      >>> import jax.numpy as jnp
      >>> replay = add_to_replay(empty_replay(jnp.float32(0), 4), jnp.arange(3.0))
      >>> add_to_replay(replay, jnp.arange(3.0, 6.0)).items.tolist()
      [4.0, 5.0, 2.0, 3.0]
    """
    capacity, number = (jax.tree.leaves(tree)[0].shape[0] for tree in (replay.items, items))
    if number > capacity:
        raise ValueError(f"A replay of capacity {capacity} cannot take {number} items at once; make it larger.")
    slots = (replay.count + jnp.arange(number)) % capacity
    return Replay(jax.tree.map(lambda kept, new: kept.at[slots].set(new), replay.items, items), replay.count + number)


def sample_replay(key: Key, replay: Replay, number: int) -> PyTree:
    """Draw items with replacement, uniformly from those that were stored and are still there.

    Args:
      key: Source of randomness.
      replay: With at least one item.
      number: How many to draw.

    Returns:
      Items, leaves `[number, ...]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> replay = add_to_replay(empty_replay(jnp.float32(0), 4), jnp.array([7.0]))
      >>> sample_replay(jax.random.key(0), replay, 3).tolist()
      [7.0, 7.0, 7.0]
    """
    return jax.tree.map(lambda drawn: drawn[:, 0], sample_runs(key, replay, number, 1))


def sample_runs(key: Key, replay: Replay, number: int, length: int, *, stride: int = 1) -> PyTree:
    """Draw runs of items with replacement: so many, each stored `stride` items after the one before.

    Args:
      key: Source of randomness.
      replay: With `(length - 1) * stride + 1` items at least, which cannot be looked into under `jit`.
      number: How many runs to draw.
      length: Items in a run.
      stride: Where the items of several streams are stored by turns, their number; then a run is of one stream.

    Returns:
      Items, leaves `[number, length, ...]`, the oldest first. No run goes beyond what was stored last.

    Raises:
      ValueError: runs that are longer than the capacity.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> replay = add_to_replay(empty_replay(jnp.float32(0), 4), jnp.array([1.0, 10.0, 2.0, 20.0]))
      >>> sorted(set(map(tuple, sample_runs(jax.random.key(0), replay, 20, 2, stride=2).tolist())))
      [(1.0, 2.0), (10.0, 20.0)]
    """
    capacity = jax.tree.leaves(replay.items)[0].shape[0]
    reach = stride * (length - 1)
    if reach >= capacity:
        raise ValueError(
            f"A replay of capacity {capacity} never holds a run of {length} items, {stride} apart; make it larger."
        )
    ahead = stride * jnp.arange(length)
    oldest = jnp.maximum(replay.count - capacity, 0)
    # By when they were stored, not by slot: a run may go on at the beginning of the circle.
    first = jax.random.randint(key, [number], oldest, replay.count - reach)
    return jax.tree.map(lambda kept: kept[(first[:, None] + ahead) % capacity], replay.items)
