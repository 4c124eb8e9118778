"""What a learned optimiser sees of a parameter, and the networks that turn it into a step."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

# The steps at which each of the features of progress is half way, as long as training may be.
TIMESCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
# Gradients below exp(-10) are fed linearly, those above by their logarithm (Andrychowicz et al., appendix A).
LOG_RANGE = 10.0


class Perceptron(nn.Module):
    """Dense and ReLU for each width, then a direction and a size; it has no memory.

    Attributes:
      hidden: Widths of the hidden layers.
    """

    hidden: Sequence[int]

    @nn.compact
    def __call__(self, carry, features, shared, sizes):
        """Map features `[parameters, features]` and `[leaves, features]` to `carry, [parameters, 2]`."""
        # What the parameters of a leaf share is multiplied once and added to each.
        of_leaves = nn.Dense(self.hidden[0], use_bias=False)(shared)
        hidden = nn.Dense(self.hidden[0])(features) + spread(of_leaves, sizes)
        for width in self.hidden[1:]:
            hidden = nn.Dense(width)(nn.relu(hidden))
        return carry, nn.Dense(2, kernel_init=nn.initializers.zeros, name="output")(nn.relu(hidden))

    def first_carry(self, parameters: int, dtype):
        """Return no memory."""
        del parameters, dtype
        return ()


class Recurrent(nn.Module):
    """Dense, then LSTM cells, then a direction and a size; each parameter has its own hidden state.

    Attributes:
      hidden: Units of each layer of cells.
    """

    hidden: Sequence[int]

    @nn.compact
    def __call__(self, carry, features, shared, sizes):
        """Map features `[parameters, features]` and `[leaves, features]` to `carry, [parameters, 2]`."""
        of_leaves = nn.Dense(self.hidden[0], use_bias=False)(shared)
        output = nn.Dense(self.hidden[0])(features) + spread(of_leaves, sizes)
        kept = []
        for width, of_layer in zip(self.hidden, carry, strict=True):
            of_layer, output = nn.OptimizedLSTMCell(width)(of_layer, output)
            kept.append(of_layer)
        return tuple(kept), nn.Dense(2, kernel_init=nn.initializers.zeros, name="output")(output)

    def first_carry(self, parameters: int, dtype):
        """Make the memory of so many parameters before their first step."""
        return tuple((jnp.zeros([parameters, width], dtype),) * 2 for width in self.hidden)


def count_features(momenta: Sequence[float], moments: Sequence[float]) -> tuple[int, int]:
    """Count the features of a parameter and those that a leaf shares."""
    return 3 + 2 * len(moments) + len(momenta) * len(moments), len(TIMESCALES) + 1


def spread(values: jnp.ndarray, sizes: tuple[int, ...]):
    """Give every parameter the value of its leaf: `[leaves, ...]` to `[parameters, ...]`."""
    repeated = (jnp.broadcast_to(values[leaf], (size, *values.shape[1:])) for leaf, size in enumerate(sizes))
    return jnp.concatenate(list(repeated))


def root_mean_square(leaf):
    """Measure the parameters of a leaf; those of a fresh bias count as 0.01, or their ratios would be noise."""
    return jnp.sqrt(jnp.sum(jnp.square(leaf)) / max(leaf.size, 1) + 1e-4)


def features_of(gradient, param, root, adam):
    """Describe each parameter, `[parameters, features]`.

    Args:
      gradient: `[parameters]`.
      param: The parameters over the root mean square of their leaf.
      root: Roots of the second moments, `[moments, parameters]`.
      adam: Momenta over them, `[momenta, moments, parameters]`.
    """
    columns = [*_log_and_sign(gradient), param, *_log_and_sign(root)[0], *(gradient / root)]
    return jnp.stack([*columns, *adam.reshape(-1, *gradient.shape)], -1)


def shared_features(scales, count):
    """Describe each leaf, `[leaves, features]`: its root mean square, and the number of steps taken."""
    progress = progress_of(count)
    # Of what is too large to be squared the logarithm is infinite, and infinity times a weight of 0 is not a number.
    sizes = jnp.minimum(jnp.log(scales), _log_of_largest(scales))[:, None]
    return jnp.concatenate([jnp.broadcast_to(progress, (*scales.shape, *progress.shape)), sizes], 1)


def progress_of(count):
    """Describe how far training is by the number of steps taken, `[timescales]` in (-1, 1)."""
    return jnp.tanh(count / jnp.asarray(TIMESCALES, count.dtype) - 1)


def _log_and_sign(values):
    """Write numbers of any size as two near 1: `(log |x| / p, sign x)` above e^-p and `(-1, e^p x)` below."""
    large = jnp.abs(values) >= math.exp(-LOG_RANGE)
    # The logarithm of 0 has no derivative, not even where it is not chosen.
    logarithm = jnp.log(jnp.where(large, jnp.abs(values), 1.0))
    logarithm = jnp.minimum(logarithm, _log_of_largest(values)) / LOG_RANGE
    return jnp.where(large, logarithm, -1.0), jnp.where(large, jnp.sign(values), math.exp(LOG_RANGE) * values)


def _log_of_largest(values) -> float:
    return math.log(float(jnp.finfo(values.dtype).max))
