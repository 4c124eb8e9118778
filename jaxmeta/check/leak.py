"""Does a prediction depend on the other query images, or on any label? What tells a transductive learner."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.base import Batch, Episode, Key, MetaLearner, PyTree

# Of the scale of the outputs, in float32: what rounding in another order may change, and normalisation far exceeds.
TOLERANCE = 1e-5
# Outputs as large, and nearly the same for all images, mask a class, as -1e9 does; beside them all else is small.
MASK = 1e8
# Images that are looked at among copies of themselves: each costs as much as the whole query set.
AMONG_COPIES = 4


class Leak(NamedTuple):
    """What `leak_test` found.

    Attributes:
      transductive: Whether the outputs for any query image depend on the others, or on the labels.
      change: The largest change of the outputs for one, relative to their scale; not a number where the outputs
        are none, of which nothing can be said.
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
    """Test whether the outputs for any query image change with the others, or with the labels.

        change = max_x |outputs(x | other queries) - outputs(x | other queries, changed)| / max |outputs|

    Adapt once, then predict while the images are in reverse order, one place further, and with other labels; while
    every second image is noise, or has no weight, and the other way round; while all are copies of one, of four in
    turn; and one in the middle alone. A learner that is normalised by its query set, standardises its outputs over
    it, gives each class to one image only, or reads a label, is told by what it does: not by an option of its
    factory.

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

    def predict(batch: Batch):
        return learner.predict(adapted, batch, key_predict)

    batches, orders, kept = zip(*_variants(query, key_noise), strict=True)
    # One program for all that have one shape.
    outputs = jax.lax.map(predict, jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches))
    reference, real = outputs[0], query.weights > 0
    changed = jnp.take_along_axis(outputs[1:], _like(jnp.stack(orders[1:]), outputs), 1)
    change = _change(changed, reference, real, jnp.stack(kept[1:]) & real)
    middle = jnp.argmin(jnp.abs(jnp.arange(count) - count // 2) + count * ~real)
    alone = predict(jax.tree.map(lambda leaf: leaf[middle][None], query))
    change = jnp.maximum(change, _change(alone, reference, real, real & (jnp.arange(count) == middle)))
    # Of outputs that are no numbers nothing can be said; those that become so with the others do depend on them.
    change = jnp.where(jnp.isfinite(change), change, jnp.inf)
    change = jnp.where(jnp.isfinite(jnp.where(_like(real, reference), reference, 0.0)).all(), change, jnp.nan)
    return Leak(~(change <= tolerance), change)


def _variants(query: Batch, key) -> list[tuple[Batch, jax.Array, jax.Array]]:
    """Give the query set and its changed forms: each with where every image is in it, and which are themselves."""
    places = jnp.arange(query.weights.shape[0])
    everyone = places >= 0
    low, high = query.inputs.min(), query.inputs.max()
    noise = jax.random.uniform(key, query.inputs.shape, query.inputs.dtype)
    noise = low + jnp.where(high > low, high - low, 1.0) * noise
    variants = [
        (query, places, everyone),
        (jax.tree.map(lambda leaf: leaf[::-1], query), places[::-1], everyone),
        (jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), query), jnp.roll(places, -1), everyone),
        (query._replace(targets=query.targets + jnp.ones((), query.targets.dtype)), places, everyone),
    ]
    for kept in (places % 2 == 0, places % 2 == 1):
        replaced = jnp.where(_like(kept, query.inputs), query.inputs, noise)
        variants.append((query._replace(inputs=replaced), places, kept))
        variants.append((query._replace(weights=jnp.where(kept, query.weights, 0.0)), places, kept))
    real = query.weights > 0
    real_first = jnp.argsort(~real)
    for share in np.linspace(0.0, 1.0, AMONG_COPIES):
        one = real_first[jnp.round(share * jnp.maximum(real.sum() - 1, 0)).astype(int)]
        copies = jnp.broadcast_to(query.inputs[one], query.inputs.shape)
        variants.append((query._replace(inputs=copies), places, places == one))
    return variants


def _change(changed, reference, real, kept):
    """Compute the largest change of what is kept, relative to the scale of the outputs."""
    change = jnp.abs(changed - reference) / _scale(reference, real)
    return jnp.max(jnp.where(_like(kept, change), change, 0.0))


def _scale(outputs, real):
    """Compute the largest output, of those that differ between images; for each that masks a class its own size."""
    real = _like(real, outputs)
    largest = jnp.max(jnp.where(real, jnp.abs(outputs), 0.0), 0)
    spread = jnp.max(jnp.where(real, outputs, -jnp.inf), 0) - jnp.min(jnp.where(real, outputs, jnp.inf), 0)
    masks = (largest >= MASK) & (spread <= 0.01 * largest)
    scale = jnp.max(jnp.where((spread > 0) & ~masks, largest, 0.0))
    scale = jnp.where(scale > 0, scale, jnp.max(jnp.where(masks, 0.0, largest)))
    return jnp.where(masks, largest, jnp.where(scale > 0, scale, 1.0))


def _like(values, leaf):
    """Give an array new axes at its end, to stand beside one with more."""
    return values.reshape(*values.shape, *[1] * (leaf.ndim - values.ndim))
