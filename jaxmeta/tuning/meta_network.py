"""What decides on the hyper-parameters of a training: plain learned values, or a network that sees how it goes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxmeta.base import Key, PyTree
from jaxmeta.tuning.ranges import Range, raws_of, values_of
from jaxmeta.tuning.training import Hypers, check_domains, check_hypers

# A training that diverged goes on with smaller learning rates: in the middle of a range that spans a factor of 10^5
# this is a fourth of them.
RETREAT = 0.5


class HyperController(NamedTuple):
    """Who decides on the hyper-parameters, as pure functions.

    Attributes:
      init: `(key) -> theta`, what is learned.
      hypers: `(theta, features) -> Hypers`, whatever theta is within their ranges.
      retreat: `(theta) -> theta` with smaller learning rates, for a training that diverged.
    """

    init: Callable[[Key], PyTree]
    hypers: Callable[[PyTree, "TrainingFeatures"], Hypers]
    retreat: Callable[[PyTree], PyTree]


class TrainingFeatures(NamedTuple):
    """What a meta-network sees of a training, scalars.

    Attributes:
      loss: On a mini-batch of training data, without noise.
      progress: Share of the training that is over, in [0, 1].
      gradient_norms: By layer, of the gradient of that loss.
      means: By layer, of the parameters.
      deviations: By layer, their standard deviations.
    """

    loss: jax.Array
    progress: jax.Array
    gradient_norms: dict[str, jax.Array]
    means: dict[str, jax.Array]
    deviations: dict[str, jax.Array]


def training_features(
    loss: Callable[[PyTree], jax.Array], params: PyTree, progress: jax.Array | float
) -> TrainingFeatures:
    """Look at a training: its loss, and of each layer the norm of the gradient and the spread of the parameters.

    Args:
      loss: `(params) -> scalar`.
      params: A dict with one entry for each layer; anything else counts as one layer, "all".
      progress: Share of the training that is over.

    Returns:
      The `TrainingFeatures`, through which no derivative goes.

    Example:
      >>> params = {"head": jnp.array([3.0, -4.0])}
      >>> features = training_features(lambda params: (params["head"] ** 2).sum(), params, 0.5)
      >>> float(features.loss), float(features.gradient_norms["head"]), float(features.means["head"])
      (25.0, 10.0, -0.5)
    """
    value, grads = jax.value_and_grad(loss)(params)
    moments = {name: _moments(layer) for name, layer in _layers(params).items()}
    features = TrainingFeatures(
        value,
        jnp.asarray(progress, value.dtype),
        {name: optax.tree.norm(layer) for name, layer in _layers(grads).items()},
        {name: mean for name, (mean, _) in moments.items()},
        {name: deviation for name, (_, deviation) in moments.items()},
    )
    return jax.lax.stop_gradient(features)


def learned_values(ranges: Mapping[str, Range], start: Hypers) -> HyperController:
    """Learn the hyper-parameters themselves: a real number for each, which its range maps to a value.

    Args:
      ranges: Of each field of `Hypers` that is learned.
      start: Where to begin; fields without a range stay so.

    Returns:
      A `HyperController`; its theta is `{"raw": {field: tree of real numbers}}`.

    Raises:
      ValueError: a range of what is no field or beyond what that can be, or a start not strictly within its range.

    Example:
      >>> controller = learned_values({"momentum": Range(0.0, 0.99, "linear")}, Hypers(0.1, momentum=0.9))
      >>> hypers = controller.hypers(controller.init(jax.random.key(0)), None)
      >>> hypers.learning_rate, round(float(hypers.momentum), 6)
      (0.1, 0.9)

    Source: Maclaurin, Duvenaud and Adams, 2015, arXiv 1502.03492; Luketina et al., 2016, arXiv 1511.06727.
    """
    first = _first_raw(ranges, start)

    def init(key):
        del key
        return {"raw": first}

    def hypers(theta, features):
        del features
        return start._replace(**values_of(ranges, theta["raw"]))

    return HyperController(init, hypers, _retreat)


def meta_network(ranges: Mapping[str, Range], start: Hypers, *, hidden: int = 16) -> HyperController:
    """Let a network decide on the hyper-parameters by what it sees of the training.

    `raw = raw_0 + f(features)`: f sees each layer alike (its gradient norm, mean and standard deviation, with the loss
    and the progress), says what the layer gets, and from the mean over the layers what all get. f begins at 0, so that
    the first hyper-parameters are those of the start; raw_0 is learned with it. The progress has a path of its own
    past the hidden units, so that a schedule is learned as fast as a level.

    Args:
      ranges: Of each field of `Hypers` that is learned; not of `example_weights`.
      start: Where to begin: single numbers, or for the learning rate a dict with one for each layer of the network;
        fields without a range stay so.
      hidden: Width of the hidden layer.

    Returns:
      A `HyperController`; its theta is `{"raw": as of learned_values, "network": parameters}`.

    Raises:
      ValueError: as of `learned_values`; a start by example; at trace time, layers that the network does not have.

    Example:
      >>> ranges = {"learning_rate": Range(1e-4, 1.0), "dropout": Range(0.0, 1.0, "linear")}
      >>> controller = meta_network(ranges, Hypers({"conv": 0.1, "head": 0.1}, dropout=0.2))
      >>> layers = {"conv": jnp.ones(()), "head": jnp.ones(())}
      >>> features = TrainingFeatures(jnp.ones(()), jnp.zeros(()), layers, layers, layers)
      >>> hypers = controller.hypers(controller.init(jax.random.key(0)), features)
      >>> round(float(hypers.learning_rate["conv"]), 6), round(float(hypers.dropout), 6)
      (0.1, 0.2)

    Source: the features are in the manner of Daniel, Taylor and Nowozin, 2016, "Learning step size controllers for
    robust neural network training", AAAI.
    """
    first = _first_raw(ranges, start)
    by_layer = tuple(name for name, raw in first.items() if isinstance(raw, Mapping))
    overall = tuple(name for name in first if name not in by_layer)
    for name in overall:
        if jnp.ndim(first[name]):
            raise ValueError(
                f"meta_network decides on single numbers, and those of layers; {name} begins with an array "
                f"{list(jnp.shape(first[name]))}. Use learned_values for it, or reweighting(...)."
            )
    layers = sorted({layer for name in by_layer for layer in first[name]})
    module = _MetaNetwork(len(by_layer), len(overall), hidden)

    def init(key):
        rows = jnp.zeros([max(len(layers), 1), NUM_FEATURES])
        return {"raw": first, "network": module.init(key, rows)["params"]}

    def hypers(theta, features):
        seen = sorted(features.gradient_norms)
        if layers and layers != seen:
            raise ValueError(
                f"The start has values for the layers {', '.join(layers)}; the parameters have {', '.join(seen)}. "
                "Give one for each."
            )
        emitted: Any = module.apply({"params": theta["network"]}, _rows(features, seen))
        of_layers, of_all = emitted
        offsets: dict[str, Any] = {name: of_all[place] for place, name in enumerate(overall)}
        for place, name in enumerate(by_layer):
            offsets[name] = {layer: of_layers[row, place] for row, layer in enumerate(seen) if layer in first[name]}
        moved = {name: jax.tree.map(jnp.add, raw, offsets[name]) for name, raw in theta["raw"].items()}
        return start._replace(**values_of(ranges, moved))

    return HyperController(init, hypers, _retreat)


# How many a layer has, and which of them is the progress.
NUM_FEATURES, PROGRESS = 5, 1


class _MetaNetwork(nn.Module):
    """Rows of features `[layers, NUM_FEATURES]` to offsets of each layer and of all."""

    by_layer: int
    overall: int
    hidden: int

    @nn.compact
    def __call__(self, rows):
        # Means over the hidden units, so that a step of all weights moves the offsets about as far as it moves a number
        # that is learned itself; so does one of the weight of the progress, from -1 to 1, alone.
        hidden = nn.tanh(nn.Dense(self.hidden, name="hidden")(rows)) / self.hidden
        seen = jnp.concatenate([hidden, rows[:, PROGRESS : PROGRESS + 1]], -1)
        # At 0 in the beginning: the start decides until something has been learned.
        of_layers = nn.Dense(self.by_layer, kernel_init=nn.initializers.zeros, name="by_layer")(seen)
        return of_layers, nn.Dense(self.overall, kernel_init=nn.initializers.zeros, name="overall")(seen.mean(0))


def _rows(features: TrainingFeatures, layers) -> jax.Array:
    """Put features on comparable scales: logarithms of what is positive, all within a few units."""

    def of_layer(layer):
        values = [
            jnp.log(features.loss + 1e-3),
            2 * features.progress - 1,
            jnp.log(features.gradient_norms[layer] + 1e-6) / 3,
            10 * features.means[layer],
            jnp.log(features.deviations[layer] + 1e-6) / 3,
        ]
        return jnp.stack([jnp.asarray(value, jnp.result_type(float)) for value in values])

    return jnp.clip(jnp.nan_to_num(jnp.stack([of_layer(layer) for layer in layers])), -5.0, 5.0)


def _first_raw(ranges: Mapping[str, Range], start: Hypers):
    unknown = set(ranges) - set(Hypers._fields)
    if unknown:
        raise ValueError(
            f"There is no hyper-parameter {', '.join(sorted(unknown))}. Those there are: {', '.join(Hypers._fields)}."
        )
    check_domains(ranges)
    check_hypers(start)
    for name in ranges:
        if isinstance(getattr(start, name), Mapping) and name not in ("learning_rate", "example_weights"):
            raise ValueError(
                f"Only learning rates differ by layer; {name} begins with one for each of "
                f"{', '.join(sorted(getattr(start, name)))}. Give a single number."
            )
    return raws_of(ranges, {name: getattr(start, name) for name in ranges})


def _retreat(theta):
    raw = theta["raw"]
    if "learning_rate" not in raw:
        return theta
    lower = jax.tree.map(lambda leaf: leaf - RETREAT, raw["learning_rate"])
    return {**theta, "raw": {**raw, "learning_rate": lower}}


def _layers(params: PyTree) -> dict[str, PyTree]:
    return dict(params) if isinstance(params, Mapping) else {"all": params}


def _moments(layer: PyTree):
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(layer)]
    flat = jnp.concatenate(leaves) if leaves else jnp.zeros(1)
    return flat.mean(), flat.std()
