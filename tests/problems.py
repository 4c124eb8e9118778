"""Two real networks as bilevel problems: theta holds the start, a rate for each leaf and weights of the loss."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from conftest import tiny_model
from jaxmeta import conv4, from_linen, inner_adam, inner_momentum, inner_sgd, learning_rates
from jaxmeta.check import Problem

OPTIMIZERS = {"sgd": inner_sgd, "momentum": inner_momentum, "adam": inner_adam}


class Transformer(nn.Module):
    """Pre-normalised self-attention on sequences of vectors; the mean token is the feature."""

    width: int = 8
    layers: int = 2
    feed_forward: bool = True

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.Dense(self.width)(inputs)
        for _ in range(self.layers):
            hidden = hidden + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(hidden))
            if self.feed_forward:
                hidden = hidden + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(hidden))))
        return hidden.mean(1)


def problem_of(model, inputs, optimizer: str, num_steps: int = 5) -> Problem:
    """Classify by a network whose start, learning rates and example weights are all learned."""
    params, state = jax.jit(model.init)(jax.random.key(2), inputs)
    targets = jnp.arange(inputs.shape[0]) % 3

    def cross_entropy(params, weights, inputs):
        outputs, _ = model.apply(params, state, inputs, key=None, train=True, weights=jnp.ones(inputs.shape[0]))
        losses = -jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], 1)[:, 0]
        return jnp.mean(weights * losses)

    def objective(phi, theta, state, data, key):
        return cross_entropy(phi, jnp.exp(theta["weights"]), data), ()

    def outer_loss(phi, theta, state, data, key):
        return cross_entropy(phi, 1.0, data), ()

    theta = {
        "params": params,
        "rates": learning_rates(params, 0.05 if optimizer != "adam" else 0.01),
        "weights": jnp.linspace(-0.5, 0.5, inputs.shape[0]),
    }
    return Problem(
        objective,
        outer_loss,
        jax.tree.map(lambda leaf: leaf.astype(jnp.float64), theta),
        OPTIMIZERS[optimizer](lambda theta: theta["rates"]),
        num_steps,
        start=lambda theta: theta["params"],
        inner_data=inputs,
        outer_data=inputs[::-1] * 0.9,
    )


def conv4_problem(optimizer: str, **options) -> Problem:
    """The four-block network on six 16x16 images, wide enough for statistics from patches."""
    return problem_of(conv4(3, filters=9), jax.random.normal(jax.random.key(1), [6, 16, 16, 1]), optimizer, **options)


def block_problem(optimizer: str, **options) -> Problem:
    """One block of it: everything that it is made of, at a quarter of the compilation."""
    return problem_of(tiny_model(), jax.random.normal(jax.random.key(1), [6, 16, 16, 1]), optimizer, **options)


def transformer_problem(optimizer: str, layers: int = 2, feed_forward: bool = True, **options) -> Problem:
    """The transformer on six sequences of five tokens."""
    model = from_linen(Transformer(layers=layers, feed_forward=feed_forward), nn.Dense(3))
    return problem_of(model, jax.random.normal(jax.random.key(1), [6, 5, 4]), optimizer, **options)


PROBLEMS = {
    "conv4": conv4_problem,
    "block": block_problem,
    "transformer": transformer_problem,
    "attention": partial(transformer_problem, layers=1, feed_forward=False),
}
