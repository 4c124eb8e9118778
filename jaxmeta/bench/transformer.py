"""A pre-norm transformer that classifies sequences, of plain functions: the load that has no images."""

import jax
import jax.numpy as jnp

from jaxmeta.base import Model
from jaxmeta.models import from_function
from jaxmeta.nn import dense, pointwise

HEADS = 4
gelu = pointwise(jax.nn.gelu)


def transformer(outputs: int, *, width: int, depth: int) -> Model:
    """Make a transformer whose mean token is classified.

    Args:
      outputs: Number of classes.
      width: Of the tokens, a multiple of 4.
      depth: Number of layers; they are scanned, so that compilation does not grow with them.

    Returns:
      A `Model` on sequences `[examples, length, features]`.

    Example:
      >>> model = transformer(5, width=8, depth=2)
      >>> params, state = model.init(jax.random.key(0), jnp.ones([2, 6, 3]))
      >>> model.apply(params, state, jnp.ones([2, 6, 3]))[0].shape
      (2, 5)
    """

    def init(key, inputs):
        shapes = {
            "embed": (inputs.shape[-1], width),
            "position": (inputs.shape[1], width),
            "project": (depth, width, 3 * width),
            "mix": (depth, width, width),
            "up": (depth, width, 4 * width),
            "down": (depth, 4 * width, width),
            "output": (width, outputs),
        }
        keys = jax.random.split(key, len(shapes))
        return {name: 0.02 * jax.random.normal(one, shapes[name]) for name, one in zip(shapes, keys, strict=True)}

    def apply(params, inputs):
        hidden = inputs @ params["embed"] + params["position"]
        layers = {name: params[name] for name in ("project", "mix", "up", "down")}
        hidden, _ = jax.lax.scan(lambda hidden, layer: (_layer(hidden, layer), None), hidden, layers)
        return _normalise(hidden).mean(1) @ params["output"]

    return from_function(init, apply)


def _layer(hidden: jax.Array, layer: dict[str, jax.Array]) -> jax.Array:
    """Apply self-attention, then two dense layers, each added to what it is given."""
    examples, length, width = hidden.shape
    projected = dense(_normalise(hidden), layer["project"]).reshape(examples, length, HEADS, 3 * width // HEADS)
    query, key, value = jnp.split(projected, 3, axis=-1)
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * (width // HEADS) ** -0.5
    attended = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
    hidden = hidden + dense(attended.reshape(examples, length, width), layer["mix"])
    return hidden + dense(gelu(dense(_normalise(hidden), layer["up"])), layer["down"])


def _normalise(hidden: jax.Array) -> jax.Array:
    hidden = hidden - hidden.mean(-1, keepdims=True)
    return hidden * jax.lax.rsqrt(jnp.square(hidden).mean(-1, keepdims=True) + 1e-5)
