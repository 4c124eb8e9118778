"""Small classifiers to train optimisers on: every task draws a size, a start and a view of its data of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.base import Model
from jaxmeta.metagrad import check_count
from jaxmeta.models import from_linen


def varied_mlp(
    outputs: int,
    *,
    width: int = 32,
    least_width: int = 8,
    features: int = 24,
    gains: tuple[float, float] = (0.5, 2.0),
) -> Model:
    """Make a perceptron of one hidden layer that is another in every task.

    `z = W2 (k * relu(W1 (P x) + b1)) + b2`, P a random projection, k one for the units there are and 0 for the others

    Widths differ within arrays of one shape, so that tasks can be computed together: units that a task has not are
    multiplied by 0, and their weights have no gradient.

    Args:
      outputs: Number of classes.
      width: The most units of a hidden layer.
      least_width: The fewest; a task draws one between the two.
      features: Rows of P, drawn from `N(0, 1 / inputs)`.
      gains: The least and the greatest factor of the usual size of the first weights; each layer draws one, on a
        logarithmic scale.

    Returns:
      A `Model` on any `[examples, ...]` inputs. P and k are its state.

    Raises:
      ValueError: for numbers below 1, more units at least than at most, or gains that are not positive and in order.

    Example:
      >>> model = varied_mlp(5, width=8, least_width=2, features=4)
      >>> params, state = model.init(jax.random.key(0), jnp.ones([3, 7, 7, 1]))
      >>> model.apply(params, state, jnp.ones([3, 7, 7, 1]))[0].shape, params["body"]["hidden"]["kernel"].shape
      ((3, 5), (4, 8))

    Source: Metz, Maheswaranathan, Freeman, Poole and Sohl-Dickstein, 2020, arXiv 2009.11243, train on many tasks of
    varied sizes, starts and data; these are much smaller ones.
    """
    for name, number in (("outputs", outputs), ("features", features), ("least_width", least_width)):
        check_count("varied_mlp", name, number, 1)
    check_count("varied_mlp", "width", width, least_width)
    if not 0 < gains[0] <= gains[1] < float("inf"):
        raise ValueError(f"varied_mlp needs gains (least, greatest), positive and in this order; given {gains}.")
    return from_linen(_VariedBody(width, least_width, features, gains), nn.Dense(outputs, kernel_init=_varied(gains)))


class _VariedBody(nn.Module):
    width: int
    least_width: int
    features: int
    gains: tuple[float, float]

    @nn.compact
    def __call__(self, inputs):
        inputs = inputs.reshape(inputs.shape[0], -1)

        def draw_projection():
            drawn = jax.random.normal(self.make_rng("params"), [inputs.shape[1], self.features], inputs.dtype)
            return drawn / jnp.sqrt(inputs.shape[1])

        def draw_units():
            units = jax.random.randint(self.make_rng("params"), (), self.least_width, self.width + 1)
            return (jnp.arange(self.width) < units).astype(inputs.dtype)

        projection = self.variable("task", "projection", draw_projection).value
        units = self.variable("task", "units", draw_units).value
        hidden = nn.Dense(self.width, kernel_init=_varied(self.gains), name="hidden")(inputs @ projection)
        return units * nn.relu(hidden)


def _varied(gains: tuple[float, float]):
    usual = nn.initializers.lecun_normal()

    def init(key, shape, dtype=jnp.float32):
        key_gain, key_weights = jax.random.split(key)
        low, high = jnp.log(jnp.asarray(gains))
        gain = jnp.exp(jax.random.uniform(key_gain, (), dtype, low, high))
        return gain * usual(key_weights, shape, dtype)

    return init
