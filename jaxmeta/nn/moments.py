"""Mean and variance of a convolution from the moments of its patches, without the convolution.

Every output of a convolution is a patch of the images times the kernel. So its mean and variance over examples and
positions are those of the patches, seen through the kernel: where patches are small, in the first layer of a network,
a matrix of a few numbers stands for maps that derivatives would have to keep and go through again.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from jaxmeta.nn.lowerings import Geometry, patches_of


def are_cheaper(kernel_shape: tuple[int, ...], geometry: Geometry) -> bool:
    """Whether patches have no more numbers than the outputs that they are for, and can be made."""
    padded = min(*geometry.padding[0], *geometry.padding[1]) >= 0
    return geometry.groups == 1 and padded and math.prod(kernel_shape[:3]) <= kernel_shape[3]


def convolution_statistics(
    inputs: jax.Array, kernel: jax.Array, geometry: Geometry, weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Give mean and variance of each channel of `y = p k`, over the patches p of the inputs.

    `mean y = m k, var y = k^T C k` with `m = mean p, C = mean (p - m)^T (p - m)`

    Neighbouring pixels are much alike, and a kernel that compares them would take the small difference of large
    moments. So of a patch the pixel in the middle is taken, and how the others differ from it; the kernel is changed
    to suit: its sum, and the others as they are. The outputs stay the same.

    Args:
      inputs: `[examples, height, width, channels]`.
      kernel: `[window_height, window_width, channels, features]`.
      geometry: Of the convolution, in one group.
      weights: `[examples]`, 0 for padding; None counts every example.

    Returns:
      mean `[features]`, variance `[features]`, in float32 if the operands are in less.
    """
    highest = jax.lax.Precision.HIGHEST
    dtype = jnp.promote_types(jnp.promote_types(inputs.dtype, kernel.dtype), jnp.float32)
    channels, features = kernel.shape[2:]
    places, middle = math.prod(geometry.window), _middle(geometry)
    taps = kernel.astype(dtype).reshape(places, channels, features)
    taps = taps.at[middle].set(taps.sum(0)).reshape(-1, features)

    # On a CPU one image at a time: its patches stay in the cache.
    of_image = partial(_moments, geometry=geometry)
    means, covariances = jax.lax.platform_dependent(
        inputs.astype(dtype), cpu=partial(jax.lax.map, of_image), default=jax.vmap(of_image)
    )
    counted = jnp.ones(means.shape[:1], dtype) if weights is None else jnp.asarray(weights, dtype)
    # Shares of the total: a set of padding alone gives zeros, not a division by zero.
    share = counted / jnp.maximum(counted.sum(), 1e-6)
    mean = jnp.matmul(share, means, precision=highest)
    apart = means - mean
    # Within the images and between them.
    covariance = jnp.einsum("n,nst->st", share, covariances, precision=highest)
    covariance += jnp.einsum("n,ns,nt->st", share, apart, apart, precision=highest)
    seen = jnp.matmul(covariance, taps, precision=highest)
    # By rounding the variance of outputs that are all the same may be a little less than none.
    variance = jnp.maximum(jnp.sum(taps * seen, 0), 0)
    return jnp.matmul(mean, taps, precision=highest), variance


def _middle(geometry):
    """The place in the middle of the window."""
    height, width = geometry.window
    return height // 2 * width + width // 2


def _moments(image, geometry):
    """Mean and covariance of the patches of one image, the middle pixel as it is and the others less that."""
    patches = patches_of(image[None], geometry)
    patches = patches.reshape(-1, math.prod(geometry.window), image.shape[-1])
    middle = _middle(geometry)
    others = (jnp.arange(patches.shape[1]) != middle).astype(image.dtype)[:, None]
    patches = (patches - others * patches[:, middle, None]).reshape(patches.shape[0], -1)
    mean = jnp.mean(patches, 0)
    centred = patches - mean
    return mean, jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST) / patches.shape[0]
