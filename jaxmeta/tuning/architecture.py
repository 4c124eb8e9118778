"""A small space of convolutional networks, and the network of each of its architectures.

A network is a stem, cells one after the other, and a linear head. Each cell convolves, normalises, applies ReLU and
halves the image; its kernel size, width, normalisation and pooling are chosen. Beside the chain, the output of a cell
may also be added to the input of a later one: those edges are chosen too.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.nn import conv2d, max_pool_2x2
from jaxmeta.tuning.networks import Network

NORMS, POOLS = ("none", "instance"), ("max", "mean")


class Space(NamedTuple):
    """What can be chosen.

    Attributes:
      cells: Number of cells; each halves the image.
      kernels: Odd sides of a cell's kernel.
      widths: Channels of a cell, in increasing order.
      norms: Of "none" and "instance" (each channel of each image by its own mean and variance).
      pools: Of "max" and "mean".
    """

    cells: int = 3
    kernels: tuple[int, ...] = (1, 3, 5)
    widths: tuple[int, ...] = (8, 16, 32)
    norms: tuple[str, ...] = NORMS
    pools: tuple[str, ...] = POOLS


class Cell(NamedTuple):
    """What was chosen for a cell: see `Space`."""

    kernel: int
    width: int
    norm: str
    pool: str


class Architecture(NamedTuple):
    """A network of a space.

    Attributes:
      cells: The `Cell`s.
      skips: Pairs (from, to): the output of cell `from` (0 is the stem) is added to the input of cell `to` (the last
        number is the head).
    """

    cells: tuple[Cell, ...]
    skips: tuple[tuple[int, int], ...]


def check_space(space: Space) -> None:
    """Refuse a space with nothing to choose from.

    Args:
      space: The space.

    Raises:
      ValueError: an empty choice, a value twice, or one that cannot be; says which.

    Example:
      >>> check_space(Space())
    """
    if space.cells < 1:
        raise ValueError(f"A space of networks needs cells of 1 or more; given {space.cells}.")
    for name in ("kernels", "widths", "norms", "pools"):
        values = getattr(space, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"A space of networks needs different {name} to choose from; given {values!r}.")
    for name, known in (("norms", NORMS), ("pools", POOLS)):
        unknown = [value for value in getattr(space, name) if value not in known]
        if unknown:
            raise ValueError(f"Unknown {name} {', '.join(map(repr, unknown))}; there are {', '.join(known)}.")
    if any(kernel < 1 or kernel % 2 == 0 for kernel in space.kernels):
        raise ValueError(f"kernels must be odd, 1 or more; given {space.kernels}.")
    if list(space.widths) != sorted(space.widths) or space.widths[0] < 1:
        raise ValueError(f"widths must be 1 or more, in increasing order; given {space.widths}.")


def check_architecture(architecture: Architecture) -> None:
    """Refuse a network that cannot be built.

    Args:
      architecture: Its cells and edges.

    Raises:
      ValueError: no cells, an unknown normalisation or pooling, a kernel or width that cannot be, or an edge that does
        not lead past the next cell; says which.

    Example:
      >>> check_architecture(Architecture((Cell(3, 8, "none", "max"),), ((0, 2),)))
    """
    cells, skips = architecture
    if not cells:
        raise ValueError("An architecture needs a cell or more; given none.")
    check_space(Space(len(cells), *(tuple(sorted(set(values))) for values in zip(*cells, strict=True))))
    possible = possible_skips(Space(len(cells)))
    unknown = [skip for skip in skips if tuple(skip) not in possible]
    if unknown or len(set(skips)) < len(skips):
        raise ValueError(f"The edges of {len(cells)} cells are some of {possible}, each once; given {skips}.")


def possible_skips(space: Space) -> tuple[tuple[int, int], ...]:
    """List the edges that can be chosen: from each output past the next cell, the head being the last.

    Args:
      space: The space.

    Returns:
      Pairs (from, to), in order.

    Example:
      >>> possible_skips(Space(cells=2))
      ((0, 2), (0, 3), (1, 3))
    """
    last = space.cells + 1
    return tuple((start, end) for start in range(last) for end in range(start + 2, last + 1))


def number_of_architectures(space: Space) -> int:
    """Count the networks of a space: `(kernels widths norms pools)^cells 2^skips`.

    Args:
      space: The space.

    Returns:
      The number.

    Example:
      >>> number_of_architectures(Space())
      2985984
    """
    of_cell = math.prod(map(len, (space.kernels, space.widths, space.norms, space.pools)))
    return of_cell**space.cells * 2 ** len(possible_skips(space))


def random_architecture(rng: np.random.Generator, space: Space) -> Architecture:
    """Draw a network, every one with the same probability.

    Args:
      rng: Source of randomness.
      space: The space.

    Returns:
      An `Architecture`.

    Raises:
      ValueError: an empty choice.

    Example:
      >>> random_architecture(np.random.default_rng(0), Space(cells=1, widths=(8,), norms=("none",))).cells[0].width
      8
    """
    check_space(space)

    def one_of(values: tuple[Any, ...]):
        return values[rng.integers(len(values))]

    choices = space.kernels, space.widths, space.norms, space.pools
    cells = tuple(Cell(*map(one_of, choices)) for _ in range(space.cells))
    return Architecture(cells, tuple(skip for skip in possible_skips(space) if rng.random() < 0.5))


def network_of(architecture: Architecture, stem: int, outputs: int) -> Network:
    """Make the network of an architecture, to be trained from the beginning.

    Args:
      architecture: What was chosen.
      stem: Channels of the stem.
      outputs: Number of classes.

    Returns:
      A `Network` on `[examples, height, width, channels]`, height and width divisible by `2^cells`, or a row and a
      column are left out where they are halved. It has no dropout. Its `init` raises ValueError for images smaller
      than `2^cells`.

    Raises:
      ValueError: as `check_architecture`.

    Example:
      >>> architecture = Architecture((Cell(3, 8, "none", "max"), Cell(1, 4, "instance", "mean")), ((0, 2),))
      >>> network = network_of(architecture, 4, 10)
      >>> params = network.init(jax.random.key(0), jnp.zeros([1, 8, 8, 3]))
      >>> params["cell2"]["kernel"].shape, network.apply(params, jnp.zeros([1, 8, 8, 3])).shape
      ((1, 1, 8, 4), (1, 10))
    """
    check_architecture(architecture)
    widths = [stem, *(cell.width for cell in architecture.cells)]
    last = len(architecture.cells) + 1

    def reach(node: int) -> int:
        """Channels that arrive at a cell: of the one before it, and of the edges."""
        starts = [start for start, end in architecture.skips if end == node]
        return max([widths[node - 1], *(widths[start] for start in starts)])

    def init(key, inputs):
        check_size(inputs, len(architecture.cells))
        keys = jax.random.split(key, last + 1)
        params = {"stem": weights(keys[0], 3, inputs.shape[-1], stem)}
        for place, cell in enumerate(architecture.cells, start=1):
            params[f"cell{place}"] = weights(keys[place], cell.kernel, reach(place), cell.width)
        scale = 1 / math.sqrt(reach(last))
        kernel = scale * jax.random.normal(keys[last], [reach(last), outputs])
        return params | {"head": {"kernel": kernel, "bias": jnp.zeros(outputs)}}

    def arriving(node: int, found: list[jax.Array]) -> jax.Array:
        total = with_channels(found[node - 1], reach(node))
        for start, end in architecture.skips:
            if end == node:
                total = total + with_channels(shrink(found[start], node - 1 - start), reach(node))
        return total

    def apply(params, inputs, *, key=None, dropout=0.0):
        del key, dropout
        found = [convolve(inputs, params["stem"])]
        for place, cell in enumerate(architecture.cells, start=1):
            hidden = convolve(arriving(place, found), params[f"cell{place}"])
            hidden = jax.nn.relu(normalise(hidden) if cell.norm == "instance" else hidden)
            found.append(max_pool_2x2(hidden) if cell.pool == "max" else shrink(hidden, 1))
        features = arriving(last, found).mean((1, 2))
        return features @ params["head"]["kernel"] + params["head"]["bias"]

    return Network(init, apply)


def check_size(inputs: jax.Array, cells: int) -> None:
    """Refuse images of which so many cells, each of which halves them, would leave nothing."""
    _, height, width, _ = inputs.shape
    if min(height, width) < 2**cells:
        raise ValueError(
            f"{cells} cells halve images as often and need {2**cells}x{2**cells} or more; given {height}x{width}. Take "
            "fewer cells or larger images."
        )


def weights(key: jax.Array, size: int, channels: int, features: int) -> dict[str, jax.Array]:
    """Draw a convolution's weights, of variance 2 / (channels size^2) (He et al., 2015), and a bias of 0."""
    scale = math.sqrt(2 / (channels * size * size))
    return {"kernel": scale * jax.random.normal(key, [size, size, channels, features]), "bias": jnp.zeros(features)}


def convolve(inputs: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
    """Convolve and add the bias."""
    return conv2d(inputs, params["kernel"]) + params["bias"]


def normalise(images: jax.Array) -> jax.Array:
    """Normalise each channel of each image by its own mean and variance: no image sees another."""
    mean = images.mean((1, 2), keepdims=True)
    variance = jnp.mean((images - mean) ** 2, (1, 2), keepdims=True)
    return (images - mean) * jax.lax.rsqrt(variance + 1e-5)


def shrink(images: jax.Array, times: int) -> jax.Array:
    """Halve height and width so many times, by the mean of each square."""
    examples, height, width, channels = images.shape
    side = 2**times
    parts = images[:, : height // side * side, : width // side * side]
    return parts.reshape(examples, height // side, side, width // side, side, channels).mean((2, 4))


def with_channels(images: jax.Array, channels: int) -> jax.Array:
    """Append channels of zeros."""
    return jnp.pad(images, [(0, 0)] * 3 + [(0, channels - images.shape[-1])])
