"""Feature extractors to choose from that are not trained by gradients, as models like any other."""

import jax
import jax.numpy as jnp

from jaxmeta.base import Model
from jaxmeta.models import from_function
from jaxmeta.tuning.metafeatures import fit_pca, project


def pca_extractor(components: int) -> Model:
    """Make the extractor of principal components: `init` fits them, `embed` projects and whitens.

    Args:
      components: How many.

    Returns:
      A `Model`; `init(key, inputs)` needs more inputs than components.

    Example:
      >>> model = pca_extractor(2)
      >>> images = jax.random.normal(jax.random.key(0), [9, 4, 4, 1])
      >>> params, state = model.init(jax.random.key(1), images)
      >>> model.embed(params, state, images[:3])[0].shape
      (3, 2)
    """
    return from_function(
        lambda key, inputs: fit_pca(inputs, components), lambda pca, inputs: project(pca, inputs, whiten=True)
    )


def random_extractor(features: int, *, width: float = 1.0) -> Model:
    """Make the extractor of random Fourier features: `sqrt(2 / D) cos(W x / (width s) + b)`.

    Inner products of features approach the kernel `exp(-|x - y|^2 / (2 (width s)^2))`, s the root of the mean squared
    distance of the inputs that `init` is given.

    Args:
      features: How many, D.
      width: Of the kernel, in units of s.

    Returns:
      A `Model`.

    Raises:
      ValueError: no features, or a width that is not above 0.

    Example:
      >>> model = random_extractor(64)
      >>> images = jax.random.normal(jax.random.key(0), [9, 4, 4, 1])
      >>> params, state = model.init(jax.random.key(1), images)
      >>> model.embed(params, state, images[:3])[0].shape
      (3, 64)

    Source: Rahimi and Recht, 2007, "Random Features for Large-Scale Kernel Machines".
    """
    if features < 1 or not width > 0:
        raise ValueError(f"random_extractor needs features >= 1 and a width > 0; given {features} and {width}.")

    def init(key, inputs):
        flat = inputs.reshape(inputs.shape[0], -1)
        key_weights, key_phases = jax.random.split(key)
        # The mean squared distance of two of them.
        spread = jnp.sqrt(2 * jnp.sum(flat.var(0)) + 1e-12)
        directions = jax.random.normal(key_weights, [flat.shape[1], features]) / (width * spread)
        return {"directions": directions, "phases": jax.random.uniform(key_phases, [features], maxval=2 * jnp.pi)}

    def apply(params, inputs):
        flat = inputs.reshape(inputs.shape[0], -1)
        return jnp.sqrt(2 / features) * jnp.cos(flat @ params["directions"] + params["phases"])

    return from_function(init, apply)
