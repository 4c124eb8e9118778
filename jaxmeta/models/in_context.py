"""The transformer that learns in context: a labelled set of examples in, outputs of queries out."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class InContextTransformer(nn.Module):
    """A pre-norm transformer on sets: support examples see each other, a query sees them and itself.

    A token is a linear map of [features, label, 1] for a support example, of [features, 0, 0] for a
    query: in regression 0 is a label too, so that the last number tells who has one. There are
    no positions: the order of the support set says nothing.

    Attributes:
      outputs: Logits or values of each query; as many as the label has numbers.
      width: Numbers in a token.
      layers: Layers, each of attention and of a perceptron four times as wide.
      heads: Heads of the attention.
    """

    outputs: int
    width: int = 64
    layers: int = 3
    heads: int = 4

    @nn.compact
    def __call__(self, features: jax.Array, labels: jax.Array, weights: jax.Array, queries: jax.Array) -> jax.Array:
        """Answer queries `[m, features]` by examples `[n, features]`, labels `[n, outputs]` and weights `[n]`."""
        size = features.shape[0]
        labelled = jnp.concatenate([features, labels.astype(features.dtype), jnp.ones_like(features[:, :1])], 1)
        unlabelled = jnp.pad(queries, [(0, 0), (0, self.outputs + 1)])
        hidden = nn.Dense(self.width, name="token")(jnp.concatenate([labelled, unlabelled]))
        # Each sees the real examples of the support set, and itself.
        is_context = jnp.pad(weights > 0, (0, queries.shape[0]))
        mask = (is_context[None] | jnp.eye(hidden.shape[0], dtype=bool))[None]
        for _ in range(self.layers):
            hidden = hidden + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(hidden), mask=mask)
            wide = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(hidden)))
            hidden = hidden + nn.Dense(self.width)(wide)
        return nn.Dense(self.outputs, name="output")(nn.LayerNorm()(hidden[size:]))
