"""Full context embeddings: what an image's features become once the support set was read."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.base import Key, PyTree

# The attention logit of padding: its share is exactly 0, and it has a derivative.
MASKED = -1e9


class FullContext(NamedTuple):
    """The two embeddings as plain functions, for ONE task.

    Attributes:
      init: `(key, features [examples, size]) -> params`.
      support: `(params, features, weights) -> [examples, size]`, g(x_n, S).
      query: `(params, features, context, weights) -> [queries, size]`, f(x, S); `context` is what `support` gave.
    """

    init: Callable[[Key, jax.Array], PyTree]
    support: Callable[..., jax.Array]
    query: Callable[..., jax.Array]


class Step(nn.Module):
    """One step of an LSTM along the support set; padding leaves the carry as it is."""

    @nn.compact
    def __call__(self, carry, example):
        """Take the carry past `(features [size], weight)`; give the carry and the output `[size]`."""
        features, weight = example
        after, output = nn.OptimizedLSTMCell(features.shape[-1])(carry, features)
        return jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), after, carry), output


class SupportContext(nn.Module):
    """An LSTM in each direction, and the features themselves: `g = forward + backward + g'`."""

    @nn.compact
    def __call__(self, features: jax.Array, weights: jax.Array) -> jax.Array:
        """Embed `[examples, size]` in the order given."""
        outputs = features
        zeros = jnp.zeros_like(features[0])
        for reverse in (False, True):
            shared = {"variable_broadcast": "params", "split_rngs": {"params": False}}
            along = nn.scan(Step, reverse=reverse, **shared)(name="backward" if reverse else "forward")
            outputs = outputs + along((zeros, zeros), (features, weights))[1]
        return outputs


class QueryContext(nn.Module):
    """An LSTM that reads the support set by attention before each step.

    Attributes:
      reads: Steps, K.
    """

    reads: int

    @nn.compact
    def __call__(self, features: jax.Array, context: jax.Array, weights: jax.Array) -> jax.Array:
        """Embed `[queries, size]`, each query for itself."""
        lstm = nn.OptimizedLSTMCell(features.shape[-1])
        cell = hidden = jnp.zeros_like(features)
        for _ in range(self.reads):
            attention = jax.nn.softmax(jnp.where(weights > 0, hidden @ context.T, MASKED))
            # U [h, r] + W x, written as U_h h + [W, U_r] [x, r].
            inputs = jnp.concatenate([features, attention @ context], -1)
            (cell, output), _ = lstm((cell, hidden), inputs)
            hidden = output + features
        return hidden


def full_context(reads: int) -> FullContext:
    """Make the full context embeddings of Matching Networks.

    Support: `g_n = forward_n + backward_n + g'(x_n)`, outputs of LSTMs along the support set.
    Query: `h_0 = 0`, and for k = 1 to K

        r_{k-1} = sum_n softmax_n(h_{k-1} . g_n) g_n
        o_k, c_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1});   h_k = o_k + f'(x)

    so that f(x, S) = h_K. The order of the support set matters; padding in it does not.

    Args:
      reads: K.

    Returns:
      A `FullContext`.

    Example:
      >>> context = full_context(reads=2)
      >>> features, weights = jnp.ones([4, 3]), jnp.ones(4)
      >>> params = context.init(jax.random.key(0), features)
      >>> context.query(params, features[:1], context.support(params, features, weights), weights).shape
      (1, 3)

    Source: Vinyals et al., 2016, arXiv 1606.04080, appendices A.1 and A.2.
    """
    of_support, of_query = SupportContext(), QueryContext(reads)

    def init(key, features):
        key_support, key_query = jax.random.split(key)
        weights = jnp.ones(features.shape[0])
        return {
            "support": of_support.init(key_support, features, weights)["params"],
            "query": of_query.init(key_query, features, features, weights)["params"],
        }

    def support(params, features, weights) -> Any:
        return of_support.apply({"params": params["support"]}, features, weights)

    def query(params, features, context, weights) -> Any:
        return of_query.apply({"params": params["query"]}, features, context, weights)

    return FullContext(init, support, query)
