"""From published archives to class pools: archive -> tensorflow-datasets -> `ClassPool` -> one cached file."""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmeta.data.archives import ArchiveSource, find_file, find_source
from jaxmeta.data.cache import cache_dir, cached_dataset, is_full_disk
from jaxmeta.data.memory import free_memory
from jaxmeta.data.pool_file import read_dataset
from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe
from jaxmeta.data.prepared import cache_file, find_prepared

_LOG = logging.getLogger(__name__)
VERSION = 1  # Part of the name of the cached file: raise it when the images or their order change.
Splits = Callable[[Sequence[str]], Mapping[str, Sequence[str]]]


class PoolPlan(NamedTuple):
    """How the archives of a data set become a `Dataset`.

    Attributes:
      name: The name it is asked for by.
      sources: The packings that are known, the one to be downloaded first.
      recipe: What the images are made into.
      splits: `(all class names) -> {split: class names}`.
      parts: Of a split, which of the source's parts its images are from; all of them where it is None.
      stock: Names under which tensorflow-datasets itself prepares the same images.
      edit: What is done to an image file before it is read, such as cutting off a margin.
      by_key: Keep the order of the archive, which the keys of its images tell, rather than sort them by their pixels;
        the images of a stock copy, which have none, are sorted all the same.
    """

    name: str
    sources: tuple[ArchiveSource, ...]
    recipe: ImageRecipe
    splits: Splits
    parts: Mapping[str, Sequence[str]] | None = None
    stock: tuple[str, ...] = ()
    edit: Callable[[bytes], bytes] | None = None
    by_key: bool = False


def photographs(image_size: int | None, default: int) -> ImageRecipe:
    """Make the recipe of square colour photographs, cut to their middle.

    Args:
      image_size: Pixels a side, as asked for; None for the default.
      default: What is usual for the data set.

    Returns:
      The recipe.

    Raises:
      DataError: a size that is none.
    """
    size = default if image_size is None else image_size
    if type(size) is not int or size < 1:
        raise DataError(f"image_size is a number of pixels a side, 1 or more; given {size!r}.")
    return ImageRecipe(size, size, 3)


def train_on_the_rest(class_names: Sequence[str], held_out: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Make a class split of what is held out of training; the rest is for training.

    Args:
      class_names: All classes.
      held_out: The classes of "validation" and of "test".

    Returns:
      "train", "validation" and "test", each in the order of `class_names`.

    Example:
      >>> train_on_the_rest("abcd", {"validation": "c", "test": "a"})
      {'train': ('b', 'd'), 'validation': ('c',), 'test': ('a',)}
    """
    taken = {name for names in held_out.values() for name in names}
    chosen = {"train": set(class_names) - taken, **{split: set(names) for split, names in held_out.items()}}
    return {split: tuple(name for name in class_names if name in of_split) for split, of_split in chosen.items()}


def pool_dataset(plan: PoolPlan, data_dir: Path | None = None) -> Dataset:
    """Open the pools of a data set, or prepare and cache them.

    Args:
      plan: What is made of what.
      data_dir: A folder with the archives as published or packed in another way (zip, tar, tar.gz, tar.xz), with a
        copy that tensorflow-datasets prepared in array_record, or with a pool `NAME-*.npz` from another machine's
        cache. None: what was downloaded before, else a download.

    Returns:
      The data set; `origin` tells the SHA-256 of the archives it was made of.

    Raises:
      DataError: data that is missing, damaged, not what it should be, or cannot be downloaded.
    """
    prefix = f"{plan.name}-{plan.recipe.height}-{VERSION}"
    if data_dir is None:
        path = cache_dir() / f"{prefix}.npz"
        first = plan.sources[0]
        return cached_dataset(path, lambda: _from_archives(plan, first, None, "a download"), source=first.homepage)
    folder = Path(data_dir).expanduser()
    pool = _find_pool(plan, folder)
    if pool is not None:
        return pool
    builders = (*(f"jaxmeta_{source.name}" for source in plan.sources), *plan.stock)
    prepared = find_prepared(folder, builders)
    if prepared is not None:
        files = [path for path in sorted(prepared.iterdir()) if path.is_file()]
        return cached_dataset(cache_file(prefix, files), lambda: _from_prepared(plan, prepared), source=str(prepared))
    found = find_source(plan.sources, folder)
    if found is None:
        raise DataError(_missing(plan, folder))
    source, paths = found
    file = cache_file(prefix, list(paths.values()))
    return cached_dataset(file, lambda: _from_archives(plan, source, paths, str(folder)), source=str(folder))


def _missing(plan: PoolPlan, folder: Path) -> str:
    packings = ", or ".join(" and ".join(file.name for file in source.files) for source in plan.sources)
    present = [file.name for source in plan.sources for file in source.files if find_file(folder, file.name)]
    packed = any(file.name.endswith((".zip", ".tgz", ".tar.gz", ".tar.xz")) for file in plan.sources[0].files)
    how = "packed as zip, tar, tar.gz or tar.xz" if packed else "packed or not"
    state = f"only {', '.join(present)}" if present else "none of this" if folder.is_dir() else "no such folder"
    prepared = f", a copy prepared by tensorflow-datasets ({', '.join(plan.stock)})" if plan.stock else ""
    return (
        f"No {plan.name} in data_dir {folder}: {state}. It should hold {packings} ({how}){prepared}, or a prepared "
        f"{plan.name}-*.npz. See {plan.sources[0].homepage}."
    )


def _find_pool(plan: PoolPlan, folder: Path) -> Dataset | None:
    """Open a pool that is already made, of the name and the size that are asked for."""
    found = sorted(folder.glob(f"{plan.name}-{plan.recipe.height}-{VERSION}*.npz"))
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"{folder} holds several prepared pools ({listed}); give a folder with one of them.")
    if not found:
        return None
    dataset = read_dataset(found[0])
    if (dataset.name, dataset.recipe) != (plan.name, plan.recipe):
        raise DataError(f"{found[0]} holds {dataset.name!r} as {dataset.recipe}, not {plan.name!r} as {plan.recipe}.")
    return dataset


def builder_module(name: str) -> Any:
    """Import the builder, which needs tensorflow-datasets.

    Args:
      name: What is to be prepared.

    Returns:
      `jaxmeta.data.archive_builder`.

    Raises:
      DataError: it is not installed.
    """
    try:
        from jaxmeta.data import archive_builder
    except ImportError as error:
        raise DataError(
            f"Preparing {name} needs tensorflow-datasets ({error}). Install it (pip install tensorflow-datasets "
            f"importlib_resources), or give as data_dir a folder with the {name}-*.npz that another machine has in "
            "its cache."
        ) from error
    return archive_builder


def _from_archives(plan: PoolPlan, source: ArchiveSource, paths: Mapping[str, Path] | None, where: str) -> Dataset:
    """Prepare archives, or download them first, with our builder and read the result."""
    builder = builder_module(plan.name)
    _check_memory(plan)
    names = " and ".join(file.name for file in source.files)
    _LOG.info("Preparing %s of %s from %s; it is kept in %s.", plan.name, names, where, cache_dir())
    # Only the pool is kept: the archives, or their source, are there to prepare it again.
    with tempfile.TemporaryDirectory() as scratch:
        try:
            prepared = builder.prepare(source, paths, Path(scratch))
        except Exception as error:  # Damaged archives and networks fail in a dozen ways.
            if isinstance(error, MemoryError | DataError):
                raise
            if is_full_disk(error):
                raise DataError(
                    f"There is no space in {scratch} to prepare {plan.name}: it takes about twice the size of {names}. "
                    "Set TMPDIR to a folder with more."
                ) from error
            if paths is None:
                raise DataError(
                    f"{plan.name} could not be downloaded ({error}). Give as data_dir a folder with {names} from "
                    f"{source.homepage}, or try again with a network."
                ) from error
            raise DataError(
                f"{names} in {where} cannot be prepared ({type(error).__name__}: {error}). Fetch it again from "
                f"{source.homepage}."
            ) from error
        dataset = _from_prepared(plan, prepared)
    num_images = sum(int(pool.counts.sum()) for pool in dataset.splits.values())
    if plan.parts is None and num_images != source.num_images:
        _LOG.warning("This %s has %d images; as published it has %d.", plan.name, num_images, source.num_images)
    return dataset


def _check_memory(plan: PoolPlan) -> None:
    """Refuse images that would not fit in memory, before any is read."""
    needed, free = plan.sources[0].num_images * int(np.prod(plan.recipe[:3])), free_memory()
    if free is not None and needed > free:
        raise DataError(
            f"{plan.name} at {plan.recipe.height}x{plan.recipe.width} needs {needed / 1e9:.1f} GB of memory to be "
            f"prepared; {free / 1e9:.1f} GB are free. Take a smaller image size."
        )


def _from_prepared(plan: PoolPlan, folder: Path) -> Dataset:
    """Read a prepared copy, ours or a stock builder's, into the pools of the splits."""
    builder = builder_module(plan.name)
    _check_memory(plan)
    try:
        class_names, images, origin = builder.read_examples(folder, plan.recipe, plan.edit, by_key=plan.by_key)
    except Exception as error:  # A damaged copy fails in a dozen ways, none of them named.
        if isinstance(error, MemoryError | DataError):
            raise
        raise DataError(
            f"The copy of {plan.name} in {folder} cannot be read ({type(error).__name__}: {error}). Copy it again, or "
            "prepare it again in array_record (tfds.builder(..., file_format='array_record'))."
        ) from error
    splits = {split: tuple(names) for split, names in plan.splits(class_names).items()}
    pools = {}
    for split, names in splits.items():
        parts = tuple(images) if plan.parts is None else tuple(plan.parts[split])
        missing = [name for name in names if not any(images.get(part, {}).get(name) for part in parts)]
        if missing:
            raise DataError(
                f"This {plan.name} has no image of {len(missing)} of the {len(names)} classes of split {split!r}: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Fetch it again from "
                f"{plan.sources[0].homepage}."
            )
        pools[split] = _pool([[images[part].pop(name, []) for part in parts] for name in names], plan.by_key)
    return Dataset(plan.name, "classification", pools, splits, recipe=plan.recipe, origin=origin)


def _pool(classes: list[list[list[np.ndarray]]], by_key: bool) -> ClassPool:
    """Stack images by class and part into a rectangle, giving up what is stacked."""
    counts = np.array([sum(map(len, parts)) for parts in classes], np.int32)
    shape = next(image.shape for parts in classes for images in parts for image in images)
    images = np.zeros([len(classes), counts.max(), *shape], np.uint8)
    for place, count in enumerate(counts):
        of_class = [image for images_of_part in classes[place] for image in images_of_part]
        # By their pixels, so that no packing and no order of records makes another pool.
        images[place, :count] = of_class if by_key else sorted(of_class, key=np.ndarray.tobytes)
        classes[place] = []
    return ClassPool(images, counts)
