"""All networks of a space as one, in which every choice is a mixture that can be differentiated.

A mixture of kernel sizes is a single convolution with the mixture of the kernels, padded with zeros to one size; one of
widths is a mask on the channels. With all of the weight on one choice it is that network: the mixture costs nothing
but the unused size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.nn import conv2d, max_pool_2x2
from jaxmeta.tuning.architecture import (
    Architecture,
    Cell,
    Space,
    check_architecture,
    check_size,
    check_space,
    normalise,
    possible_skips,
    shrink,
    weights,
)

CHOICES = ("kernels", "widths", "norms", "pools")


class Supernet(NamedTuple):
    """All networks of a space.

    Attributes:
      init: `(key, inputs) -> params`.
      apply: `(params, mixture, inputs) -> logits [examples, outputs]`; a mixture is a dict with the shares of each
        choice, "kernels" `[cells, kernels]` and so on, whose rows sum to 1, and "skips" `[skips]` in [0, 1].
      init_scores: `() -> scores`, real numbers of the same shapes: nothing is preferred.
      mixture: `(scores) -> mixture`: softmax by row, sigmoid of each edge.
    """

    init: Callable[..., Any]
    apply: Callable[..., jax.Array]
    init_scores: Callable[[], dict[str, jax.Array]]
    mixture: Callable[[dict[str, jax.Array]], dict[str, jax.Array]]


def supernet(space: Space, outputs: int) -> Supernet:
    """Make the network that holds all networks of a space; its stem has as many channels as the widest cell.

    Args:
      space: What can be chosen.
      outputs: Number of classes.

    Returns:
      A `Supernet` on images as those of `network_of`, whose `init` refuses the same.

    Raises:
      ValueError: an empty choice.

    Example:
      >>> every = supernet(Space(cells=2, widths=(2, 4)), 10)
      >>> params, mixture = every.init(jax.random.key(0), jnp.zeros([1, 8, 8, 3])), every.mixture(every.init_scores())
      >>> every.apply(params, mixture, jnp.zeros([1, 8, 8, 3])).shape, mixture["widths"].tolist()
      ((1, 10), [[0.5, 0.5], [0.5, 0.5]])

    Source: Liu, Simonyan and Yang, 2019, "DARTS", arXiv 1806.09055; sharing one convolution among kernel sizes and
    widths as in Stamoulis et al., 2019, "Single-Path NAS", arXiv 1904.02877.
    """
    check_space(space)
    skips, channels, largest = possible_skips(space), space.widths[-1], max(space.kernels)
    masks = jnp.asarray(np.arange(channels) < np.array(space.widths)[:, None], jnp.float32)

    def init(key, inputs):
        check_size(inputs, space.cells)
        keys = jax.random.split(key, 2 + space.cells * len(space.kernels))
        params = {"stem": weights(keys[0], 3, inputs.shape[-1], channels)}
        for place in range(space.cells):
            of_cell = keys[2 + place * len(space.kernels) :]
            sizes = {
                f"kernel{size}": weights(one, size, channels, channels)["kernel"]
                for size, one in zip(space.kernels, of_cell, strict=False)
            }
            params[f"cell{place + 1}"] = sizes | {"bias": jnp.zeros(channels)}
        kernel = jax.random.normal(keys[1], [channels, outputs]) / jnp.sqrt(channels)
        return params | {"head": {"kernel": kernel, "bias": jnp.zeros(outputs)}}

    def cell(params, shares, inputs):
        margins = {size: [((largest - size) // 2,) * 2] * 2 + [(0, 0)] * 2 for size in space.kernels}
        kernels = [jnp.pad(params[f"kernel{size}"], margin) for size, margin in margins.items()]
        kernel = jnp.tensordot(shares["kernels"], jnp.stack(kernels), 1)
        hidden = conv2d(inputs, kernel) + params["bias"]
        hidden = _mixed(shares["norms"], space.norms, {"none": lambda x: x, "instance": normalise}, hidden)
        hidden = jax.nn.relu(hidden)
        hidden = _mixed(shares["pools"], space.pools, {"max": max_pool_2x2, "mean": lambda x: shrink(x, 1)}, hidden)
        return hidden * (shares["widths"] @ masks)

    def arriving(node, found, mixture):
        total = found[node - 1]
        for gate, (start, end) in zip(mixture["skips"], skips, strict=True):
            if end == node:
                total = total + gate * shrink(found[start], node - 1 - start)
        return total

    def apply(params, mixture, inputs):
        found = [conv2d(inputs, params["stem"]["kernel"]) + params["stem"]["bias"]]
        for place in range(space.cells):
            shares = {name: mixture[name][place] for name in CHOICES}
            found.append(cell(params[f"cell{place + 1}"], shares, arriving(place + 1, found, mixture)))
        features = arriving(space.cells + 1, found, mixture).mean((1, 2))
        return features @ params["head"]["kernel"] + params["head"]["bias"]

    def init_scores():
        scores = {name: jnp.zeros([space.cells, len(getattr(space, name))]) for name in CHOICES}
        return scores | {"skips": jnp.zeros(len(skips))}

    def mixture(scores):
        shares = {name: jax.nn.softmax(scores[name], -1) for name in CHOICES}
        return shares | {"skips": jax.nn.sigmoid(scores["skips"])}

    return Supernet(init, apply, init_scores, mixture)


def _mixed(shares: jax.Array, names: tuple[str, ...], ways: dict[str, Callable], inputs: jax.Array) -> jax.Array:
    return jnp.tensordot(shares, jnp.stack([ways[name](inputs) for name in names]), 1)


def mixture_of(architecture: Architecture, space: Space) -> dict[str, jax.Array]:
    """Make the mixture with all of the weight on one network.

    Args:
      architecture: A network of the space.
      space: The space.

    Returns:
      A mixture, as `Supernet.apply` takes it.

    Raises:
      ValueError: a choice that the space does not have.

    Example:
      >>> cells = (Cell(3, 8, "none", "max"),)
      >>> mixture_of(Architecture(cells, ((0, 2),)), Space(cells=1))["kernels"].tolist()
      [[0.0, 1.0, 0.0]]
    """
    check_architecture(architecture)
    found = {}
    for name, chosen in zip(CHOICES, zip(*architecture.cells, strict=True), strict=True):
        values = getattr(space, name)
        unknown = [value for value in chosen if value not in values]
        if unknown or len(architecture.cells) != space.cells:
            raise ValueError(
                f"The space has {space.cells} cells, and {name} {values}; given {len(architecture.cells)} cells with "
                f"{chosen}."
            )
        found[name] = jnp.eye(len(values))[jnp.array([values.index(value) for value in chosen])]
    return found | {"skips": jnp.array([float(skip in architecture.skips) for skip in possible_skips(space)])}


def read_off(scores: dict[str, jax.Array], space: Space) -> Architecture:
    """Read the network off that scores prefer: the largest of each choice, and the edges that are more open than shut.

    Args:
      scores: As `Supernet.init_scores` makes them; of equal ones the first counts, and an edge of 0 is shut.
      space: The space.

    Returns:
      An `Architecture`.

    Raises:
      ValueError: scores that are not numbers.

    Example:
      >>> space = Space(cells=1, widths=(4, 8))
      >>> scores = supernet(space, 2).init_scores() | {"widths": jnp.array([[0.0, 1.0]])}
      >>> read_off(scores, space)
      Architecture(cells=(Cell(kernel=1, width=8, norm='none', pool='max'),), skips=())
    """
    given = {name: np.asarray(leaf) for name, leaf in scores.items()}
    bad = [name for name, leaf in given.items() if not np.isfinite(leaf).all()]
    if bad:
        raise ValueError(
            f"The scores of {', '.join(bad)} are not finite: the search has diverged. Search again with smaller rates."
        )
    best = {name: given[name].argmax(-1) for name in CHOICES}
    cells = tuple(Cell(*(getattr(space, name)[best[name][place]] for name in CHOICES)) for place in range(space.cells))
    opened = zip(possible_skips(space), given["skips"], strict=True)
    return Architecture(cells, tuple(skip for skip, score in opened if score > 0))
