"""Normalisation by the statistics of a weighted batch, or by statistics kept from one."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.nn.pool import max_pool_2x2


def batch_statistics(inputs: jax.Array, weights: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Compute mean and variance of each channel over examples and positions.

    `mean = sum_n w_n x_n / sum_n w_n`, `variance = sum_n w_n (x_n - mean)^2 / sum_n w_n`

    Args:
      inputs: `[examples, ..., channels]`.
      weights: `[examples]`, 0 for padding; None counts every example.

    Returns:
      mean `[channels]`, variance `[channels]`, in float32 if the inputs are in less.

    Example:
      >>> import jax.numpy as jnp
      >>> mean, variance = batch_statistics(jnp.array([[1.0], [3.0], [99.0]]), jnp.array([1.0, 1.0, 0.0]))
      >>> float(mean[0]), float(variance[0])
      (2.0, 1.0)
    """
    axes = tuple(range(inputs.ndim - 1))
    # A sum of many bfloat16 numbers would not be one.
    inputs = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    if weights is None:
        mean = jnp.mean(inputs, axes)
        return mean, jnp.mean(jnp.square(inputs - mean), axes)
    # Shares of the total: a set of padding alone gives zeros, not a division by zero. They are taken of the sums of
    # each example: a share for every position would be an array as large as the inputs.
    weights = jnp.asarray(weights, inputs.dtype)
    positions = max(1, inputs[0, ..., 0].size)
    share = (weights / (jnp.maximum(jnp.sum(weights), 1e-6) * positions))[:, None]
    mean = jnp.sum(share * jnp.sum(inputs, axes[1:]), 0)
    return mean, jnp.sum(share * jnp.sum(jnp.square(inputs - mean), axes[1:]), 0)


class BatchNorm(nn.Module):
    """Batch normalisation whose kept statistics are those of one batch, not a running average.

    In training it normalises by the (weighted) statistics of its inputs and
    stores them in the collection `batch_stats`; otherwise it uses the stored ones. An
    inner loop thus leaves the statistics of the support set behind. A batch of padding alone leaves them as they were.

    Source: Ioffe and Szegedy, 2015, arXiv 1502.03167.

    Attributes:
      epsilon: Added to the variance.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        train: bool,
        weights: jax.Array | None = None,
        pool: bool = False,
        offset: jax.Array | None = None,
        statistics: Callable[[], tuple[jax.Array, jax.Array]] | None = None,
    ) -> jax.Array:
        """Normalise `[examples, ..., channels]`; with `pool`, give the 2x2 maximum of the result.

        The maximum is then taken first, of the inputs, or of their negatives where the scale is
        negative: the same numbers for a quarter of the work, since normalising keeps their order.
        An `offset [channels]` is as if added to the inputs; it moves their mean, and need not be added to all of them.
        `statistics` computes mean and variance of the inputs, without the offset, where there is a better way than to
        go through them: `Conv.before_norm` gives it.
        """
        shape = inputs.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        kept = jnp.promote_types(inputs.dtype, jnp.float32)
        kept_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, kept)
        kept_variance = self.variable("batch_stats", "variance", jnp.ones, shape, kept)
        if train:
            mean, variance = batch_statistics(inputs, weights) if statistics is None else statistics()
            mean = mean if offset is None else mean + offset.astype(kept)
            if weights is not None:
                # Of no examples there are no statistics: those that are kept stay.
                some = jnp.sum(weights) > 0
                mean, variance = jnp.where(some, mean, kept_mean.value), jnp.where(some, variance, kept_variance.value)
            if not self.is_initializing():
                kept_mean.value, kept_variance.value = mean, variance
        else:
            mean, variance = kept_mean.value, kept_variance.value
        if pool:
            sign = jax.lax.stop_gradient(jnp.where(scale < 0, -1, 1).astype(inputs.dtype))
            inputs = sign * max_pool_2x2(sign * inputs)
        factor = jax.lax.rsqrt(variance + self.epsilon) * scale
        centre = mean if offset is None else mean - offset.astype(kept)
        return ((inputs - centre) * factor + bias).astype(inputs.dtype)
