"""Pools of labelled images, and how images are made into their pixels."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FITS = ("crop", "pad", "stretch")
# What a class that is turned counter-clockwise is called, after its name.
_TURNS = tuple(f"/rot{90 * quarters:03d}" for quarters in range(4))


class DataError(ValueError):
    """What the caller got wrong about data: what was given, what is needed, what to change."""


class ClassPool(NamedTuple):
    """Images sorted by class, as a rectangle.

    Attributes:
      images: `[classes, per_class, height, width, channels]` uint8.
      counts: `[classes]` int32, how many images of each class are real; the others,
        at the end, are zeros. So classes may have different numbers of images.
    """

    images: Any
    counts: Any


class ImageRecipe(NamedTuple):
    """How an image becomes the pixels of a dataset; kept with a run, so that new images are treated alike.

    Attributes:
      height: Pixels.
      width: Pixels.
      channels: 1 for grey, 3 for colour.
      fit: What is done to another aspect ratio: "crop" the middle, "pad" with what surrounds the image, "stretch".
      bright_ink: Drawings, whose ink is to be bright on black: an image whose border is bright is inverted.
    """

    height: int
    width: int
    channels: int
    fit: str = "crop"
    bright_ink: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ImageRecipe":
        """Rebuild a recipe from `_asdict()`; raises DataError if it is damaged or of another version."""
        try:
            recipe = cls(**values)
        except TypeError as error:
            raise DataError(f"A recipe of images is damaged or of another version: {error}.") from error
        sizes = recipe[:3]
        whole = all(type(size) is int and size > 0 for size in sizes) and recipe.channels in (1, 3)
        if not whole or recipe.fit not in FITS or type(recipe.bright_ink) is not bool:
            raise DataError(f"A recipe of images is damaged: {recipe}. Sizes are positive, channels 1 or 3.")
        return recipe


class Dataset(NamedTuple):
    """Everything the library knows of one source of tasks.

    Attributes:
      name: The name it is asked for by.
      kind: "classification" or "regression".
      splits: "train", "validation" and "test", each a `ClassPool` of NumPy arrays.
      class_names: With the same keys, one name for each class.
      groups: With the same keys, the group of each class: its alphabet. None where classes have none.
      recipe: How the images were made of files, so that others can be made alike. None where there are no images.
      origin: What it was prepared from: names of files or data sets, and the SHA-256 of each where it has one.
    """

    name: str
    kind: str
    splits: dict[str, Any]
    class_names: dict[str, tuple[str, ...]]
    groups: dict[str, tuple[str, ...]] | None = None
    recipe: ImageRecipe | None = None
    origin: dict[str, str | None] | None = None


def with_rotations(pool: ClassPool, names: Sequence[str]) -> tuple[ClassPool, tuple[str, ...]]:
    """Make every class at 0, 90, 180 and 270 degrees a class of its own.

    Vinyals et al. 2016 (arXiv 1606.04080) and Finn et al. 2017 (arXiv 1703.03400) multiply
    the characters of Omniglot in this way. Turns are counter-clockwise.

    Args:
      pool: Square images `[classes, per_class, size, size, channels]`.
      names: `[classes]` names.

    Returns:
      The pool `[4 * classes, per_class, size, size, channels]`, all classes upright first,
      then all at 90 degrees and so on, and its names with the suffix "/rot000" to "/rot270".

    Raises:
      DataError: the images are not square.

    Example:
      >>> pool = ClassPool(np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2, 1), np.array([1, 1], np.int32))
      >>> turned, names = with_rotations(pool, ["a", "b"])
      >>> turned.images[2, 0, :, :, 0].tolist(), names[2]
      ([[1, 3], [0, 2]], 'a/rot090')
    """
    images = np.asarray(pool.images)
    if images.ndim != 5 or images.shape[2] != images.shape[3]:
        raise DataError(
            f"with_rotations was given images {list(images.shape)}; it needs square ones, "
            "[classes, per_class, size, size, channels]. Crop or resize them first."
        )
    turned = np.concatenate([np.rot90(images, quarters, axes=(2, 3)) for quarters in range(4)])
    turned_names = tuple(f"{name}{suffix}" for suffix in _TURNS for name in names)
    return ClassPool(turned, np.tile(np.asarray(pool.counts), 4)), turned_names


def is_turned(names: Sequence[str]) -> bool:
    """Tell whether classes are those of `with_rotations`, by their names."""
    return any(name.endswith(_TURNS[1:]) for name in names)


def only_upright(dataset: Dataset) -> Dataset:
    """Leave out the turned classes of `with_rotations`, in every split that has them.

    Args:
      dataset: The dataset.

    Returns:
      The dataset; as it is, if no class is turned.

    Example:
      >>> pool = ClassPool(np.zeros([2, 1, 2, 2, 1], np.uint8), np.array([1, 1], np.int32))
      >>> turned, names = with_rotations(pool, ["a", "b"])
      >>> only_upright(Dataset("letters", "classification", {"test": turned}, {"test": names})).class_names
      {'test': ('a/rot000', 'b/rot000')}
    """
    if dataset.kind == "regression":
        return dataset
    splits, class_names, groups = dict(dataset.splits), dict(dataset.class_names), dict(dataset.groups or {})
    for split, names in class_names.items():
        if is_turned(names):
            upright = np.array([index for index, name in enumerate(names) if name.endswith(_TURNS[0])])
            images, counts = splits[split]
            splits[split] = ClassPool(images[upright], np.asarray(counts)[upright])
            class_names[split] = tuple(names[index] for index in upright)
            if groups:
                groups[split] = tuple(groups[split][index] for index in upright)
    return dataset._replace(splits=splits, class_names=class_names, groups=groups or None)
