"""A classifier's training as an inner loop whose hyper-parameters are its theta.

`inner_loop(training_objective(network, batch_size), hyper_sgd, num_steps, metagrad)` trains, and every hyper-parameter
has a gradient through it: what `hypergradient` follows, and what the environment of `controller` runs.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.core import Tracer

from jaxmeta.base import Batch, Key, PyTree
from jaxmeta.inner import scale_by_rates
from jaxmeta.losses import cross_entropy, weighted_mean
from jaxmeta.metagrad import check_count
from jaxmeta.tuning.networks import Network
from jaxmeta.tuning.ranges import Range, check_range


class Hypers(NamedTuple):
    """How a classifier is trained, as values within their ranges.

    Attributes:
      learning_rate: A number, or a tree that is a prefix of the parameters: one for each layer, for example.
      momentum: How much of the last step's direction is kept, in [0, 1).
      weight_decay: Strength of the pull of all parameters towards 0.
      label_smoothing: Share of the target that goes to all classes alike, in [0, 1).
      dropout: Standard deviation of the noise that hidden features are multiplied by.
      augmentation: Standard deviation of the noise in each image's brightness and contrast.
      example_weights: What each training example counts, `[examples]`, or what the `weigh` of `training_objective`
        takes in its place; None for all alike.
    """

    learning_rate: PyTree
    momentum: jax.Array | float = 0.0
    weight_decay: jax.Array | float = 0.0
    label_smoothing: jax.Array | float = 0.0
    dropout: jax.Array | float = 0.0
    augmentation: jax.Array | float = 0.0
    example_weights: PyTree | None = None


# Beyond these a value means nothing; of the others, which are positive, any size does.
GREATEST = {"momentum": 1.0, "label_smoothing": 1.0}


def check_domains(ranges: Mapping[str, Range]) -> None:
    """Refuse ranges that reach beyond what a hyper-parameter can be: a momentum of 1.5, a negative dropout.

    Args:
      ranges: By the names of `Hypers`.

    Raises:
      ValueError: also where `check_range` does.

    Example:
      >>> check_domains({"momentum": Range(0.0, 0.99, "linear")})
    """
    for name, given in ranges.items():
        check_range(name, given)
        greatest = GREATEST.get(name, float("inf"))
        if not 0 <= given.low < given.high <= greatest:
            raise ValueError(f"The range of {name} must lie in [0, {greatest:g}]; given {given.low} to {given.high}.")


def check_hypers(hypers: Hypers) -> None:
    """Refuse hyper-parameters that cannot be: a negative rate, a momentum of 1.5, what is not a number.

    Args:
      hypers: Numbers, or trees of them; what is traced is not looked into, nor what `example_weights` are.

    Raises:
      ValueError: says which, and what it may be.

    Example:
      >>> check_hypers(Hypers(0.1, momentum=0.9))
    """
    for name, tree in hypers._replace(example_weights=None)._asdict().items():
        greatest = GREATEST.get(name, float("inf"))
        for leaf in jax.tree.leaves(tree):
            if not isinstance(leaf, Tracer) and not ((np.asarray(leaf) >= 0) & (np.asarray(leaf) < greatest)).all():
                raise ValueError(f"Hyper-parameter {name} must be in [0, {greatest:g}); given {leaf}.")


def weights_of_examples(example_weights: jax.Array, chosen: jax.Array, losses: jax.Array) -> jax.Array:
    """Look up what the examples of a mini-batch count.

    Args:
      example_weights: `[training examples]`.
      chosen: Which were drawn, `[examples]` int32.
      losses: Not read.

    Returns:
      `[examples]`.

    Example:
      >>> import jax.numpy as jnp
      >>> weights_of_examples(jnp.array([0.5, 1.0]), jnp.array([1, 1, 0]), jnp.zeros(3)).tolist()
      [1.0, 1.0, 0.5]
    """
    del losses
    return example_weights[chosen]


def training_objective(network: Network, batch_size: int, *, weigh: Callable = weights_of_examples) -> Callable:
    """Make the objective of a training: the loss of a mini-batch that is drawn from the key of its step.

    `weighted mean of CE(z(x'), (1 - s) y + s / classes)`, x' the augmented image, z with dropout noise

    Weight decay and the learning rates belong to the step, not to the loss: see `hyper_sgd`.

    Args:
      network: The classifier.
      batch_size: Examples in a mini-batch, drawn with replacement.
      weigh: `(hypers.example_weights, chosen, losses) -> weights`, all `[examples]` but the first; not called for
        weights of None. No derivative goes through the losses.

    Returns:
      `(params, hypers, state, data, key) -> scalar, ()`, as `inner_loop` takes it; data is a `Batch`, the whole
      training set.

    Raises:
      ValueError: fewer than one example in a mini-batch; at trace time, another number of example weights than of
        examples.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmeta.tuning import conv_net
      >>> network = conv_net(3, widths=(2,), hidden=4)
      >>> data = Batch(jnp.ones([6, 4, 4, 1]), jnp.zeros([6], jnp.int32), jnp.ones([6]))
      >>> params = network.init(jax.random.key(0), data.inputs)
      >>> loss, _ = training_objective(network, 2)(params, Hypers(0.1), (), data, jax.random.key(1))
      >>> loss.shape
      ()
    """
    losses_of = training_losses(network, batch_size)

    def objective(params, hypers: Hypers, state, data: Batch, key: Key):
        del state
        given = hypers.example_weights
        if weigh is weights_of_examples and given is not None and given.shape != data.targets.shape:
            raise ValueError(
                f"There are {data.targets.shape[0]} training examples and example_weights of shape {given.shape}; give "
                "one weight for each example."
            )
        losses, weights, chosen = losses_of(params, hypers, data, key)
        if hypers.example_weights is not None:
            weights = weights * weigh(hypers.example_weights, chosen, jax.lax.stop_gradient(losses))
        return weighted_mean(losses, weights), ()

    return objective


def training_losses(network: Network, batch_size: int) -> Callable:
    """Make the losses of a mini-batch, one by one, that is drawn from a key, with all noise: `training_objective`'s.

    Args:
      network: The classifier.
      batch_size: Examples in a mini-batch, drawn with replacement.

    Returns:
      `(params, hypers, data, key) -> losses, weights, chosen`, all `[examples]`: the weights of the data, and which
      examples were drawn.

    Raises:
      ValueError: fewer than one example.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmeta.tuning import conv_net
      >>> network = conv_net(3, widths=(2,), hidden=4)
      >>> data = Batch(jnp.ones([6, 4, 4, 1]), jnp.zeros([6], jnp.int32), jnp.ones([6]))
      >>> params = network.init(jax.random.key(0), data.inputs)
      >>> [leaf.shape for leaf in training_losses(network, 2)(params, Hypers(0.1), data, jax.random.key(1))]
      [(2,), (2,), (2,)]
    """
    check_count("training_losses", "batch_size", batch_size, 1)

    def losses_of(params, hypers: Hypers, data: Batch, key: Key):
        key_batch, key_images, key_noise = jax.random.split(key, 3)
        chosen = jax.random.randint(key_batch, [batch_size], 0, data.targets.shape[0])
        inputs, targets, weights = (leaf[chosen] for leaf in data)
        inputs = change_light(key_images, inputs, hypers.augmentation)
        outputs = network.apply(params, inputs, key=key_noise, dropout=hypers.dropout)
        soft = optax.smooth_labels(jax.nn.one_hot(targets, outputs.shape[-1]), hypers.label_smoothing)
        return optax.softmax_cross_entropy(outputs, soft), weights, chosen

    return losses_of


def validation_loss_of(network: Network, batch_size: int) -> Callable[[PyTree, PyTree, Key], jax.Array]:
    """Make the loss that hyper-parameters are judged by: cross-entropy of a mini-batch, without noise.

    Args:
      network: The classifier.
      batch_size: Examples, drawn with replacement.

    Returns:
      `(params, data, key) -> scalar`; data is a `Batch`.

    Raises:
      ValueError: fewer than one example.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmeta.tuning import conv_net
      >>> network = conv_net(3, widths=(2,), hidden=4)
      >>> data = Batch(jnp.ones([6, 4, 4, 1]), jnp.zeros([6], jnp.int32), jnp.ones([6]))
      >>> params = network.init(jax.random.key(0), data.inputs)
      >>> validation_loss_of(network, 2)(params, data, jax.random.key(1)).shape
      ()
    """
    check_count("validation_loss_of", "batch_size", batch_size, 1)

    def validation_loss(params, data: Batch, key):
        chosen = jax.random.randint(key, [batch_size], 0, data.targets.shape[0])
        inputs, targets, weights = (leaf[chosen] for leaf in data)
        return cross_entropy(network.apply(params, inputs), targets, weights)

    return validation_loss


def change_light(key: Key, images: jax.Array, strength: jax.Array | float) -> jax.Array:
    """Change brightness and contrast of each image: `m + (1 + s a) (x - m) + s b`, m its mean, a and b from N(0, 1).

    Args:
      key: Source of randomness.
      images: `[examples, height, width, channels]`.
      strength: s; the derivative with respect to it goes through.

    Returns:
      Images of the same shape, not clipped.

    Example:
      >>> import jax.numpy as jnp
      >>> images = jnp.ones([2, 4, 4, 1])
      >>> bool((change_light(jax.random.key(0), images, 0.0) == images).all())
      True
    """
    contrast, brightness = jax.random.normal(key, [2, images.shape[0]] + [1] * (images.ndim - 1), images.dtype)
    mean = images.mean(tuple(range(1, images.ndim)), keepdims=True)
    return images + strength * (contrast * (images - mean) + brightness)


def hyper_sgd(hypers: Hypers) -> optax.GradientTransformation:
    """Make gradient descent with momentum and weight decay of values that may be learned.

    `m <- momentum m + (g + weight_decay phi)`, `phi <- phi - learning_rate m`

    Args:
      hypers: The values; an inner loop's theta.

    Returns:
      An optax transformation.

    Example:
      >>> import jax.numpy as jnp
      >>> step = hyper_sgd(Hypers(0.1, momentum=0.5, weight_decay=1.0))
      >>> updates, _ = step.update(jnp.ones(()), step.init(jnp.ones(())), jnp.ones(()))
      >>> round(float(updates), 6)
      -0.2
    """
    return optax.chain(
        optax.add_decayed_weights(hypers.weight_decay),
        optax.trace(hypers.momentum),
        scale_by_rates(hypers.learning_rate),
    )
