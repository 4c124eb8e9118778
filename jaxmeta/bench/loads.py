"""The standard loads: what is computed in one meta-step, on which data, and how much arithmetic that is.

All are MAML with plain gradient descent inside, exact second order, and Adam outside. Data and weights are
drawn by NumPy from a seed: the same numbers go to whoever is compared (`benchmarks/speed.py`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta.algorithms import maml
from jaxmeta.base import Batch, Episode, MetaLearner, Model, PyTree
from jaxmeta.bench.transformer import transformer
from jaxmeta.losses import CRITERIA
from jaxmeta.models import conv4, in_precision, mlp, resnet12
from jaxmeta.models.resnet12 import block_filters

OUTER_RATE = 1e-3


class Load(NamedTuple):
    """One problem of fixed size.

    Attributes:
      name: Short, as on the command line.
      description: One line for a person.
      network: A row of `NETWORKS`.
      size: Width of the hidden layers, or filters of the first block.
      depth: Layers of a transformer; nothing else looks at it.
      input_shape: Of one example.
      outputs: Classes, or 1 for regression.
      tasks: Tasks in a meta-step.
      support: Support examples of a task.
      query: Query examples of a task.
      num_steps: Inner steps.
      inner_rate: Learning rate of the inner loop.
    """

    name: str
    description: str
    network: str
    size: int
    depth: int
    input_shape: tuple[int, ...]
    outputs: int
    tasks: int
    support: int
    query: int
    num_steps: int
    inner_rate: float


_SINUSOID = Load("A1", "sinusoid, MLP 1-40-40-1, 10 shots, 1 step", "mlp", 40, 2, (1,), 1, 25, 10, 10, 1, 0.01)
_OMNIGLOT = Load("B", "conv4, 28x28, 5-way 1-shot, 1 step", "conv4", 64, 4, (28, 28, 1), 5, 32, 5, 75, 1, 0.4)

LOADS = {
    load.name: load
    for load in (
        _SINUSOID,
        _SINUSOID._replace(name="A5", description="sinusoid, MLP 1-40-40-1, 10 shots, 5 steps", num_steps=5),
        _OMNIGLOT,
        _OMNIGLOT._replace(
            name="C", description="conv4, 28x28, 5-way 5-shot, 5 steps", tasks=16, support=25, num_steps=5
        ),
        Load("D", "conv4, 84x84, 5-way 5-shot, 5 steps", "conv4", 32, 4, (84, 84, 3), 5, 4, 25, 75, 5, 0.01),
        # Five queries a class, or two CPU cores would need a minute and 8 GB for a step.
        Load("E", "ResNet-12, 84x84, 5-way 1-shot, 1 step", "resnet12", 64, 4, (84, 84, 3), 5, 2, 5, 25, 1, 0.01),
        Load(
            "F", "transformer, 6 layers, 64 tokens, 5-way 5-shot", "transformer", 128, 6, (64, 32), 5, 4, 25, 75, 1, 0.1
        ),
    )
}

NETWORKS = {
    "mlp": lambda load: mlp(load.outputs, hidden=(load.size, load.size)),
    # With biases, as the PyTorch libraries have it: nothing is left out of a comparison.
    "conv4": lambda load: conv4(load.outputs, filters=load.size, conv_bias=True),
    "resnet12": lambda load: resnet12(load.outputs, width=load.size),
    "transformer": lambda load: transformer(load.outputs, width=load.size, depth=load.depth),
}


def tiny(load: Load) -> Load:
    """Shrink a load until it takes no time: for tests, for `--quick`, and to compare gradients in float64.

    Args:
      load: The load.

    Returns:
      The same network on a few small examples, narrow, with at most two inner steps.

    Example:
      >>> tiny(LOADS["D"]).input_shape, tiny(LOADS["D"]).num_steps
      ((16, 16, 3), 2)
    """
    load = load._replace(description=f"{load.description}, tiny", num_steps=min(load.num_steps, 2))
    if load.network == "mlp":
        return load._replace(tasks=4, support=5, query=6)
    small = load._replace(tasks=2, outputs=3, support=3, query=6)
    if load.network == "transformer":
        return small._replace(size=8, depth=2, input_shape=(6, 4))
    return small._replace(size=4, input_shape=(16, 16, load.input_shape[-1]))


def worth_dividing(load: Load) -> bool:
    """Tell whether a task is enough work for a core of its own: a step of sinusoids is not."""
    return load.network != "mlp"


def make_model(load: Load, precision: str = "float32") -> Model:
    """Make a load's network, that computes in a precision of `PRECISIONS`."""
    return in_precision(NETWORKS[load.network](load), precision)


def make_learner(load: Load, precision: str = "float32") -> MetaLearner:
    """Make a load's learner: MAML, and the query set normalised by its own statistics."""
    criterion = CRITERIA["regression" if load.network == "mlp" else "classification"]
    optimizer = optax.sgd(load.inner_rate)
    return maml(make_model(load, precision), inner_optimizer=optimizer, num_steps=load.num_steps, criterion=criterion)


def draw_weights(load: Load, dtype: Any = np.float32, seed: int = 0) -> PyTree:
    """Draw every parameter; scales and biases too, whose errors would hide at their usual 1 and 0.

    Args:
      load: The load.
      dtype: Of all numbers.
      seed: Of the draw.

    Returns:
      The parameters of `make_model(load)`, as NumPy arrays.

    Example:
      >>> draw_weights(LOADS["A1"])["body"]["Dense_0"]["kernel"].shape
      (1, 40)
    """
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        noise = rng.standard_normal(shape.shape)
        if path[-1].key in ("scale", "bias"):
            return (0.05 * noise + (path[-1].key == "scale")).astype(dtype)
        is_conv = noise.ndim == 4
        fan_in = np.prod(noise.shape[:-1]) if is_conv else noise.shape[-2]
        return (noise * np.sqrt((2.0 if is_conv else 1.0) / fan_in)).astype(dtype)

    shapes, _ = jax.eval_shape(make_model(load).init, jax.random.key(0), jnp.zeros([1, *load.input_shape]))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def draw_episodes(load: Load, dtype: Any = np.float32, seed: int = 1) -> Episode:
    """Draw the tasks of one meta-step: sinusoids, or random inputs of every class alike.

    Args:
      load: The load.
      dtype: Of all numbers but class numbers.
      seed: Of the draw.

    Returns:
      An `Episode` of NumPy arrays with a leading task axis.

    Example:
      >>> draw_episodes(tiny(LOADS["B"])).query.inputs.shape
      (2, 6, 16, 16, 1)
    """
    rng = np.random.default_rng(seed)
    amplitude, phase = rng.uniform(0.1, 5, [load.tasks, 1, 1]), rng.uniform(0, np.pi, [load.tasks, 1, 1])

    def draw(examples: int) -> Batch:
        shape = (load.tasks, examples, *load.input_shape)
        inputs: Any  # NumPy's: what is measured must not begin with work on the device.
        targets: Any
        weights: Any = np.ones(shape[:2], dtype)
        if load.network == "mlp":
            inputs = rng.uniform(-5, 5, shape)
            targets = (amplitude * np.sin(inputs - phase)).astype(dtype)
        else:
            inputs = rng.uniform(0, 1, shape)
            labels = np.arange(examples) * load.outputs // examples
            targets = np.broadcast_to(labels, shape[:2]).astype(np.int32)
        return Batch(inputs.astype(dtype), targets, weights)

    return Episode(draw(load.support), draw(load.query))


def count_flops(load: Load) -> int:
    """Count the arithmetic of one meta-step from first principles: matrix products and convolutions, 2 a product.

    Nothing is computed twice. On the query set every layer needs three products: forward, the gradient
    of its weights and that of its inputs. An inner step on the support set needs the same three, each bilinear
    and with two derivatives of its own: nine. A layer that sees the data needs no gradient of its
    inputs: two, and four.

    Args:
      load: The load.

    Returns:
      Floating point operations.

    Example:
      >>> round(count_flops(LOADS["B"]) / 1e9, 1)
      166.7
    """
    total = 0
    for products, sees_data in _layers(load):
        of_query, of_support = (2, 4) if sees_data else (3, 9)
        total += products * (load.query * of_query + load.num_steps * load.support * of_support)
    return 2 * load.tasks * total


def _layers(load: Load) -> list[tuple[int, bool]]:
    """List every layer: products for one example, and whether its inputs are the data."""
    size, outputs = load.size, load.outputs
    if load.network == "mlp":
        return [(load.input_shape[0] * size, True), (size * size, False), (size * outputs, False)]
    if load.network == "transformer":
        length, features = load.input_shape
        # Projections (3 + 1), the dense layers (4 + 4); scores and their use.
        layer = 12 * length * size**2 + 2 * length**2 * size
        return [(length * features * size, True), (load.depth * layer + size * outputs, False)]
    side, _, channels = load.input_shape
    layers = []
    for number, filters in enumerate(block_filters(size) if load.network == "resnet12" else [size] * 4):
        layers.append((9 * side**2 * channels * filters, number == 0))
        if load.network == "resnet12":
            layers.append((side**2 * channels * filters, number == 0))
            layers.append((2 * 9 * side**2 * filters**2, False))
        side, channels = side // 2, filters
    features = channels if load.network == "resnet12" else channels * side**2
    return [*layers, (features * outputs, False)]
