"""A learner that was adapted to some classes, as a value: images in, labels and probabilities out."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.base import Batch, Key, MetaLearner, PyTree
from jaxmeta.calibration import calibrated
from jaxmeta.data import DataError
from jaxmeta.data.images import read_image
from jaxmeta.data.lookup import as_floats
from jaxmeta.data.pools import ImageRecipe
from jaxmeta.serve.files import Support

# Images that go through the network at once. Fewer are filled up: one size is one compilation.
AT_ONCE = 64


class Classifier(NamedTuple):
    """What can label images of some classes.

    Attributes:
      class_names: Name of each class.
      recipe: How an image becomes pixels.
      adapted: The adapted numbers.
      forward: `(adapted, pixels [64, ...] uint8, weights [64]) -> logits [64, classes]`, compiled.
      temperature: What logits are divided by; None if it is not known how sure they are.
      support: The labelled images that it was adapted to.
      origin: The run that it came from, in plain values: what it takes to make it again.
    """

    class_names: tuple[str, ...]
    recipe: ImageRecipe
    adapted: PyTree
    forward: Callable[..., jax.Array]
    temperature: float | None
    support: Support
    origin: dict[str, Any]

    def predict(self, images: Sequence[Path | str] | np.ndarray) -> tuple[list[str], np.ndarray]:
        """Label images: the most probable class of each, and `p(y = k | x) = softmax_k(z / temperature)`.

        Args:
          images: Image files of any size and kind; or pixels `[images, height, width, channels]` uint8 as the recipe
            has them, which are taken as they are.

        Returns:
          The names `[images]`, and probabilities `[images, classes]` in the order of `class_names`.

        Raises:
          ImageError: if a file is no image that can be read.
          DataError: if pixels have another size or type.
        """
        probabilities = calibrated(self.logits(images), self.temperature or 1.0)
        return [self.class_names[number] for number in probabilities.argmax(1)], probabilities

    def logits(self, images: Sequence[Path | str] | np.ndarray) -> np.ndarray:
        """Give the logits `[images, classes]` as the learner does, before the temperature; see `predict`."""
        pixels = _pixels(images, self.recipe)
        logits = np.zeros([len(pixels), len(self.class_names)], np.float32)
        batches = -(-len(pixels) // AT_ONCE)
        # Every so-manieth image, so that a learner that normalises its queries together meets mixed ones: those of a
        # folder are often sorted.
        for first in range(batches):
            chosen = pixels[first::batches]
            padded = np.zeros([AT_ONCE, *pixels.shape[1:]], np.uint8)
            padded[: len(chosen)] = chosen
            weights = np.arange(AT_ONCE) < len(chosen)
            logits[first::batches] = np.asarray(self.forward(self.adapted, padded, weights))[: len(chosen)]
        return logits


def make_forward(learner: MetaLearner, classes: int) -> Callable[..., jax.Array]:
    """Make `(adapted, pixels uint8, weights) -> logits [images, classes]`; the first outputs, if there are more."""
    return partial(_forward, learner, classes)


def _forward(learner: MetaLearner, classes: int, adapted: PyTree, pixels: jax.Array, weights: jax.Array) -> jax.Array:
    batch = Batch(as_floats(pixels), jnp.zeros(pixels.shape[:1], jnp.int32), weights.astype(jnp.float32))
    return learner.predict(adapted, batch, serving_keys()[1])[:, :classes]


def make_adapt(learner: MetaLearner, num_steps: int) -> Callable[..., PyTree]:
    """Make `(meta_params, state, pixels uint8, targets, weights) -> adapted`."""

    def adapt(meta_params, state, pixels, targets, weights):
        support = Batch(as_floats(pixels), targets, weights.astype(jnp.float32))
        return learner.adapt(meta_params, state, support, serving_keys()[0], num_steps=num_steps)

    return adapt


def serving_keys() -> tuple[Key, Key]:
    """Give the keys to adapt and to predict with, always the same: the same images get the same labels."""
    key_adapt, key_predict = jax.random.split(jax.random.key(0))
    return key_adapt, key_predict


def padded_support(support: Support) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give pixels, targets and weights of a support set, ragged ones filled up.

    Args:
      support: The labelled images.

    Returns:
      `[examples, ...]` each. As many of each class are left as they are; else the examples are filled up to a multiple
      of 16 by some of weight 0, so that not every number of them is compiled anew.
    """
    pixels, targets = support.images.pixels, support.targets
    counts = np.bincount(targets)
    extra = 0 if (counts == counts[0]).all() else -len(targets) % 16
    weights = np.pad(np.ones(len(targets), np.float32), (0, extra))
    return np.pad(pixels, [(0, extra), *[(0, 0)] * 3]), np.pad(targets, (0, extra)), weights


def _pixels(images, recipe: ImageRecipe) -> np.ndarray:
    """Read files; take arrays as they are."""
    shape = recipe[:3]
    if isinstance(images, str | Path):
        raise DataError(f"predict needs a list of images; given one, {images}. Put it into a list.")
    if len(images) == 0:
        return np.zeros([0, *shape], np.uint8)
    if isinstance(images[0], str | Path):
        return np.stack([read_image(Path(one), recipe) for one in images])
    pixels = [np.asarray(one) for one in images]
    odd = next((one for one in pixels if one.dtype != np.uint8 or one.shape != shape), None)
    if odd is not None:
        raise DataError(
            f"predict needs files, or pixels of {list(shape)} uint8; given {list(odd.shape)} {odd.dtype}. "
            "`read_image(file, classifier.recipe)` makes them of a file."
        )
    return np.stack(pixels)
