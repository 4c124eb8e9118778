"""Does a prediction depend on the other query images, or on any label? What tells a transductive learner."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.base import Batch, Episode, Key, MetaLearner, PyTree

# Of the scale of the outputs, in float32: what rounding in another order may change, and normalisation far exceeds.
TOLERANCE = 1e-5


class Leak(NamedTuple):
    """What `leak_test` found.

    Attributes:
      transductive: Whether the outputs for one query image depend on the others, or on the labels.
      change: The largest change of its outputs, relative to their scale; not a number where the outputs are
        none, of which nothing can be said.
    """

    transductive: bool | jax.Array
    change: float | jax.Array


def leak_test(
    learner: MetaLearner,
    meta_params: PyTree,
    state: PyTree,
    episode: Episode,
    key: Key,
    *,
    num_steps: int | None = None,
    tolerance: float = TOLERANCE,
) -> Leak:
    """Test whether the outputs for one query image change with the others, or with the labels.

        change = max |outputs(x | other queries) - outputs(x | other queries, changed)| / max |outputs|

    Adapt once, then predict the image in the middle of the query set while the other images are put into
    another order, the image itself into another place, the others replaced by noise, given no weight, or
    left out, and while all labels are others. A learner that is normalised by its query set, standardises
    its outputs over it, or reads a label, is told by what it does: not by an option of its factory.

    Args:
      learner: The algorithm; nothing of it is trusted.
      meta_params: Its meta-parameters.
      state: Its state.
      episode: One task. With a single query example there are no others, and nothing leaks.
      key: Of the noise, and of the adaptation.
      num_steps: Inner steps; None for the number used in training.
      tolerance: The change that rounding may make; more for a model that computes in less than float32.

    Returns:
      A `Leak`, two scalars. Works under `jit`, which is left to the caller.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmeta import Episode, conv4, example_batch, protonet
      >>> images = jax.random.uniform(jax.random.key(0), [4, 16, 16, 1])
      >>> batch = example_batch(images, jnp.arange(4))
      >>> for norm in ("transductive", "inductive"):
      ...     learner = protonet(conv4(4, filters=4), ways=4, norm=norm)
      ...     theta, state = jax.jit(learner.init)(jax.random.key(1), images)
      ...     test = jax.jit(lambda *numbers: leak_test(learner, *numbers))
      ...     leak = test(theta, state, Episode(batch, batch), jax.random.key(2))
      ...     print(norm, bool(leak.transductive))
      transductive True
      inductive False

    Source: the difference that it makes is discussed by Nichol, Achiam and Schulman, 2018, arXiv 1803.02999,
    and by Bronskill et al., 2020, arXiv 2003.03284.
    """
    key_adapt, key_predict, key_noise = jax.random.split(key, 3)
    query = episode.query
    count = query.weights.shape[0]
    if count < 2:
        return Leak(jnp.bool_(False), jnp.float32(0.0))
    adapted = learner.adapt(meta_params, state, episode.support, key_adapt, num_steps=num_steps)
    places = jnp.arange(count)
    # A real example in the middle: whatever looks only back, or only ahead, meets others there.
    kept = jnp.argmin(jnp.abs(places - count // 2) + count * (query.weights == 0))

    def predict(batch: Batch):
        return learner.predict(adapted, batch, key_predict)

    variants = _variants(query, places, kept, key_noise)
    where = jnp.array([place for _, place in variants])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(batch for batch, _ in variants))
    # One program for all that have one shape.
    outputs = jax.lax.map(predict, stacked)
    alone = predict(jax.tree.map(lambda leaf: leaf[kept][None], query))[0]
    reference = outputs[0, kept]
    changed = jnp.concatenate([outputs[jnp.arange(1, len(variants)), where[1:]], alone[None]])
    change = jnp.max(jnp.abs(changed - reference)) / _scale(outputs[0], query.weights)
    # Of outputs that are no numbers nothing can be said; those that become so with the others do depend on them.
    change = jnp.where(jnp.isfinite(change), change, jnp.inf)
    change = jnp.where(jnp.isfinite(reference).all(), change, jnp.nan)
    return Leak(~(change <= tolerance), change)


def _variants(query: Batch, places, kept, key) -> list[tuple[Batch, jax.Array]]:
    """Give the query set and its changed forms, each with the place of the image that is kept."""
    count = len(places)
    is_kept = places == kept
    others = query.targets + jnp.ones((), query.targets.dtype)
    # The others in reverse order, around it.
    rank = count - 2 - (places - (places > kept))
    permuted = jnp.where(is_kept, kept, rank + (rank >= kept))
    low, high = query.inputs.min(), query.inputs.max()
    noise = jax.random.uniform(key, query.inputs.shape, query.inputs.dtype)
    noise = low + jnp.where(high > low, high - low, 1.0) * noise
    of_kept = is_kept.reshape(-1, *[1] * (query.inputs.ndim - 1))
    return [
        (query, kept),
        (jax.tree.map(lambda leaf: leaf[permuted], query), kept),
        (jax.tree.map(lambda leaf: leaf[::-1], query), count - 1 - kept),
        (query._replace(inputs=jnp.where(of_kept, query.inputs, noise)), kept),
        (query._replace(weights=jnp.where(is_kept, query.weights, 0.0)), kept),
        (query._replace(targets=others), kept),
    ]


def _scale(outputs, weights):
    """Give the largest output, of those that differ between examples: a logit of "never" is the same for all."""
    real = (weights > 0).reshape(-1, *[1] * (outputs.ndim - 1))
    largest = jnp.max(jnp.where(real, jnp.abs(outputs), 0.0), 0)
    differs = jnp.max(jnp.where(real, outputs, -jnp.inf), 0) > jnp.min(jnp.where(real, outputs, jnp.inf), 0)
    scale = jnp.max(jnp.where(differs, largest, 0.0))
    scale = jnp.where(scale > 0, scale, jnp.max(largest))
    return jnp.where(scale > 0, scale, 1.0)
