"""Training examples that count as much as they help: what to do about labels that are wrong."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.base import Batch, Key, PyTree
from jaxmeta.tuning.meta_network import HyperController
from jaxmeta.tuning.networks import Network
from jaxmeta.tuning.training import Hypers, training_losses, validation_loss_of

TINY = 1e-12


class Weighting(NamedTuple):
    """How much a training example counts by its loss.

    Attributes:
      init: `(key) -> weight_params`.
      weigh: `(weight_params, chosen, losses) -> weights [examples]` in (0, 1), as `training_objective` takes it.
    """

    init: Callable[[Key], PyTree]
    weigh: Callable[[PyTree, jax.Array, jax.Array], jax.Array]


class _WeightNetwork(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, losses):
        # Steps at many places of the range that losses are in, of which the head makes any curve.
        places, steepness = nn.initializers.normal(2.0), nn.initializers.normal(3.0)
        layer = nn.Dense(self.hidden, kernel_init=steepness, bias_init=places, name="hidden")
        hidden = nn.tanh(layer(losses[:, None]))
        # All alike at the beginning. A mean over the hidden units: a step of all weights does not saturate it.
        return nn.sigmoid(nn.Dense(1, kernel_init=nn.initializers.zeros, name="head")(hidden / self.hidden))[:, 0]


def weight_network(hidden: int = 32) -> Weighting:
    """Make a network of one hidden layer that says what an example counts: `w_n = sigmoid(f(log(1 + loss_n) - 1))`.

    Args:
      hidden: Width of the hidden layer.

    Returns:
      A `Weighting`; all weights are 1/2 at the beginning.

    Example:
      >>> weighting = weight_network(8)
      >>> weighting.weigh(weighting.init(jax.random.key(0)), jnp.arange(2), jnp.array([0.1, 3.0])).tolist()
      [0.5, 0.5]

    Source: Shu et al., 2019, "Meta-Weight-Net", arXiv 1902.07379.
    """
    module = _WeightNetwork(hidden)

    def init(key):
        return module.init(key, jnp.zeros([1]))["params"]

    def weigh(weight_params, chosen, losses) -> Any:
        del chosen
        return module.apply({"params": weight_params}, jnp.log1p(losses) - 1)

    return Weighting(init, weigh)


def reweighting(controller: HyperController, weighting: Weighting) -> HyperController:
    """Learn what training examples count along with the hyper-parameters.

    For `training_objective(network, batch_size, weigh=weighting.weigh)`. Labels are told to be wrong by what the
    validation data says: it needs right ones, but not many.

    Args:
      controller: Of the other hyper-parameters: `learned_values({}, start)` for fixed ones.
      weighting: From `weight_network`.

    Returns:
      A `HyperController`; its theta is `{"hypers": that of the controller, "weighting": parameters}`.

    Example:
      >>> from jaxmeta.tuning import Hypers, learned_values
      >>> controller = reweighting(learned_values({}, Hypers(0.1)), weight_network(8))
      >>> theta = controller.init(jax.random.key(0))
      >>> sorted(controller.hypers(theta, None).example_weights)
      ['head', 'hidden']

    Source: Ren, Zeng, Yang and Urtasun, 2018, arXiv 1803.09050; Shu et al., 2019, arXiv 1902.07379.
    """

    def init(key):
        key_hypers, key_weighting = jax.random.split(key)
        return {"hypers": controller.init(key_hypers), "weighting": weighting.init(key_weighting)}

    def hypers(theta, features):
        return controller.hypers(theta["hypers"], features)._replace(example_weights=theta["weighting"])

    def retreat(theta):
        return {**theta, "hypers": controller.retreat(theta["hypers"])}

    return HyperController(init, hypers, retreat)


def one_step_weights(losses_of: Callable[[PyTree], jax.Array], validation_loss, params: PyTree) -> jax.Array:
    """Ask of each example of a mini-batch whether a step on it would help: what it counts then.

    `w_n = max(0, u_n) / sum_m max(0, u_m)`, `u_n = -d/de_n L_validation(phi - sum_m e_m grad l_m(phi))` at e = 0

    u_n is the product of the gradients of the example and of validation, so that no step is taken: one gradient and one
    directional derivative give those of all examples exactly.

    Args:
      losses_of: `(params) -> losses [examples]` of the mini-batch.
      validation_loss: `(params) -> scalar`, on examples whose labels are right.
      params: phi.

    Returns:
      `[examples]`, summing to 1; all 0 where no example helps. No derivative goes through them.

    Example:
      >>> wanted = jnp.array([1.0, 2.0, -1.0])  # the last label is wrong
      >>> weights = one_step_weights(lambda phi: (phi - wanted) ** 2, lambda phi: (phi - 1.0) ** 2, jnp.zeros(()))
      >>> [round(float(weight), 3) for weight in weights]
      [0.333, 0.667, 0.0]

    Source: Ren, Zeng, Yang and Urtasun, 2018, arXiv 1803.09050, algorithm 1.
    """
    direction = jax.grad(validation_loss)(params)
    _, helps = jax.jvp(losses_of, (params,), (direction,))
    helps = jnp.maximum(jax.lax.stop_gradient(helps), 0.0)
    return helps / jnp.maximum(helps.sum(), TINY)


def reweighted_objective(network: Network, batch_size: int, judged: int) -> Callable:
    """Make the objective of a training in which an example counts as much as a step on it helps on validation data.

    `sum_n w_n b_n CE(z(x'_n), (1 - s) y_n + s / classes)`, w by `one_step_weights` in every step anew, b of the batch

    Args:
      network: The classifier.
      batch_size: Examples in a mini-batch, drawn with replacement.
      judged: Validation examples that weigh them, drawn as well.

    Returns:
      `(params, hypers, state, data, key) -> scalar, ()`, as `training_objective` gives; but data is a pair of `Batch`,
      training and validation.

    Raises:
      ValueError: less than one example of either kind.

    Example:
      >>> from jaxmeta.base import Batch
      >>> from jaxmeta.tuning import Hypers, conv_net
      >>> network = conv_net(3, widths=(2,), hidden=4)
      >>> data = Batch(jnp.ones([6, 4, 4, 1]), jnp.zeros([6], jnp.int32), jnp.ones([6]))
      >>> params = network.init(jax.random.key(0), data.inputs)
      >>> objective = reweighted_objective(network, 2, 3)
      >>> jax.jit(objective)(params, Hypers(0.1), (), (data, data), jax.random.key(1))[0].shape
      ()

    Source: Ren, Zeng, Yang and Urtasun, 2018, arXiv 1803.09050.
    """
    losses_of = training_losses(network, batch_size)
    validation_loss = validation_loss_of(network, judged)

    def objective(params, hypers: Hypers, state, data: tuple[Batch, Batch], key: Key):
        del state
        training, validation = data
        key_training, key_validation = jax.random.split(key)

        def losses(params):
            each, counts, _ = losses_of(params, hypers, training, key_training)
            return counts * each  # Padding neither helps nor counts.

        weights = one_step_weights(losses, lambda params: validation_loss(params, validation, key_validation), params)
        return jnp.sum(weights * losses(params)), ()

    return objective


def flip_labels(key: Key, targets: jax.Array, share: float, classes: int) -> tuple[jax.Array, jax.Array]:
    """Make labels wrong, each with the same probability, and each wrong class as likely as the others.

    Args:
      key: Source of randomness.
      targets: `[examples]` int32.
      share: Probability of a wrong label, in [0, 1].
      classes: Number of classes, at least 2.

    Returns:
      The labels, and which are wrong, boolean, both `[examples]`.

    Raises:
      ValueError: a share that is none, or fewer than two classes.

    Example:
      >>> labels, wrong = flip_labels(jax.random.key(0), jnp.zeros([100], jnp.int32), 1.0, 3)
      >>> int(labels.min()), int(labels.max()), bool(wrong.all())
      (1, 2, True)
    """
    if not 0 <= share <= 1 or classes < 2:
        raise ValueError(f"flip_labels needs a share in [0, 1] and 2 classes or more; given {share} and {classes}.")
    key_which, key_class = jax.random.split(key)
    wrong = jax.random.bernoulli(key_which, share, targets.shape)
    other = (targets + jax.random.randint(key_class, targets.shape, 1, classes, targets.dtype)) % classes
    return jnp.where(wrong, other, targets), wrong
