"""Running means of gradients, and the leaves of a tree as one row: what learned optimisers compute with."""

import jax
import jax.numpy as jnp


def column(decays, like):
    """Make decays a column `[decays, 1, ...]`, to be multiplied with means `[decays, ...]`."""
    return jnp.asarray(decays, like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def flatten_leaves(tree, dtype, axes: int = 0):
    """Join leaves `[..., *shape]` along their parameters, `[..., parameters]`."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([leaf.reshape(*leaf.shape[:axes], -1).astype(dtype) for leaf in leaves], -1)


def accumulate(decays, values, means):
    """Update means of each decay by new values: `(1 - b) x + b m`, trees with leaves `[decays, ...]`."""

    def step(value, mean):
        decay = column(decays, mean)
        return (1 - decay) * value.astype(mean.dtype) + decay * mean

    return jax.tree.map(step, values, means)


def kept_dtype(leaf):
    """Choose the precision of the accumulators: in half of one, a decay of 0.999 would stand still."""
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def widest_dtype(tree):
    """Choose one precision for all leaves, that of the widest."""
    return jnp.result_type(*(kept_dtype(leaf) for leaf in jax.tree.leaves(tree)))
