"""The relation module: a small network that compares two images' features."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxmeta.base import Key, PyTree
from jaxmeta.nn import Conv, max_pool_2x2


class RelationModule(nn.Module):
    """Two blocks of convolution, normalisation, ReLU and pooling on both maps, and two Dense layers.

    Attributes:
      filters: Channels of the blocks.
      hidden: Width of the first Dense layer.
    """

    filters: int = 64
    hidden: int = 8

    @nn.compact
    def __call__(self, classes: jax.Array, queries: jax.Array) -> jax.Array:
        """Compare `[ways, ...]` with `[queries, ...]`: logits `[queries, ways]`."""
        maps = queries.ndim == 4
        if maps and min(queries.shape[1:3]) < 4:
            raise ValueError(
                "The relation module halves feature maps twice and needs 4x4 or more; given "
                f"{list(queries.shape[1:3])}. Use larger images, conv4(..., maps=True, halvings=2), or an "
                "embedding that gives vectors."
            )
        layer = Conv if maps else nn.Dense
        # A layer of two maps laid over each other is the sum of a layer of each, so that the widest one
        # is computed for each class and each query, and not for each pair of them.
        of_classes = layer(self.filters, use_bias=False, name="first_of_class")(classes)
        of_queries = layer(self.filters, name="first_of_query")(queries)
        pairs = of_queries[:, None] + of_classes
        hidden = pairs.reshape(-1, *pairs.shape[2:])
        hidden = _finish(hidden, maps)
        hidden = _finish(layer(self.filters, name="second")(hidden), maps)
        hidden = nn.relu(nn.Dense(self.hidden)(hidden.reshape(hidden.shape[0], -1)))
        return nn.Dense(1)(hidden).reshape(pairs.shape[:2])


def _finish(hidden: jax.Array, maps: bool) -> jax.Array:
    # One group: the statistics are those of one pair, over positions and channels.
    hidden = nn.relu(nn.GroupNorm(num_groups=1, epsilon=1e-5, use_fast_variance=False)(hidden))
    return max_pool_2x2(hidden) if maps else hidden


def relation_module(
    *, filters: int = 64, hidden: int = 8
) -> tuple[Callable[[Key, jax.Array], PyTree], Callable[[PyTree, jax.Array, jax.Array], jax.Array]]:
    """Make the relation module as two plain functions.

    On feature maps: twice conv 3x3 - normalisation - ReLU - 2x2 maximum on the two maps laid over each
    other, then Dense to `hidden`, ReLU, Dense to 1. On vectors the convolutions are Dense layers and
    nothing is pooled. The paper normalises by batch, over all pairs of a task, so that a query image
    is judged by what the others are; here each pair is normalised by itself (over positions and
    channels), so that nothing leaks from one query image to another.

    Args:
      filters: Channels of the two blocks.
      hidden: Width of the first Dense layer.

    Returns:
      `init(key, features [examples, ...]) -> params`, and
      `apply(params, classes [ways, ...], queries [queries, ...]) -> logits [queries, ways]`.

    Raises:
      ValueError: from the functions, for maps smaller than 4x4.

    Example:
      >>> import jax.numpy as jnp
      >>> init, apply = relation_module(filters=4)
      >>> maps = jnp.ones([3, 7, 7, 2])
      >>> apply(init(jax.random.key(0), maps), maps[:2], maps).shape
      (3, 2)

    Source: Sung et al., 2018, arXiv 1711.06025; Ba, Kiros and Hinton, 2016, arXiv 1607.06450.
    """
    module = RelationModule(filters, hidden)

    def init(key, features):
        return module.init(key, features[:1], features[:1])["params"]

    def apply(params, classes, queries) -> Any:
        return module.apply({"params": params}, classes, queries)

    return init, apply
