"""The two perceptrons of a conditional neural process."""

import flax.linen as nn
import jax

from jaxmeta.models.mlp import MlpBody


class ConditionalNeuralProcess(nn.Module):
    """The encoder h of labelled examples, and the decoder g of queries.

    Attributes:
      outputs: Numbers that g gives for each query.
      width: Width of all layers, and of what h gives for each example.
    """

    outputs: int
    width: int = 128

    def setup(self):
        """Name the layers."""
        self.encoder = nn.Sequential([MlpBody((self.width, self.width)), nn.Dense(self.width)])
        self.decoder = nn.Sequential([MlpBody((self.width, self.width)), nn.Dense(self.outputs)])

    def encode(self, labelled: jax.Array) -> jax.Array:
        """Compute `h(x_n, y_n)`, `[examples, width]`, of features and labels side by side."""
        return self.encoder(labelled)

    def decode(self, conditioned: jax.Array) -> jax.Array:
        """Compute `g(x, r)`, `[examples, outputs]`, of features and representation side by side."""
        return self.decoder(conditioned)

    def __call__(self, labelled: jax.Array, conditioned: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Run both, to make their parameters."""
        return self.encode(labelled), self.decode(conditioned)
