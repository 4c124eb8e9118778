"""Where episodes come from: the table of datasets, and sources of tasks."""

import jax

from jaxmeta.data.augment import AUGMENTATIONS, augmented
from jaxmeta.data.challenge import challenge_source, load_challenge, load_challenge_drawings
from jaxmeta.data.cifar10 import load_cifar10, load_cifar10_arrays
from jaxmeta.data.cifar100 import load_cifar_fs, load_fc100
from jaxmeta.data.cub import load_cub
from jaxmeta.data.divide import divide_classes
from jaxmeta.data.episodes import (
    EpisodeSpec,
    TaskSource,
    check_spec,
    sample_episode,
    sample_episodes,
    task_keys,
    within_groups,
)
from jaxmeta.data.faces import FoldedPairs, load_faces, load_pairs
from jaxmeta.data.fgvc_aircraft import load_fgvc_aircraft
from jaxmeta.data.folder import load_folder
from jaxmeta.data.glyphs import load_glyphs
from jaxmeta.data.host import on_host
from jaxmeta.data.mini_imagenet import load_mini_imagenet
from jaxmeta.data.mnist import load_mnist
from jaxmeta.data.omniglot import load_omniglot
from jaxmeta.data.pairs import Pairs, sample_pairs
from jaxmeta.data.pools import ClassPool, DataError, Dataset
from jaxmeta.data.quickdraw import load_quickdraw
from jaxmeta.data.sinusoid import load_sinusoid, sample_sinusoids
from jaxmeta.data.sources import fixed_source, number_of_tasks, sample_classification
from jaxmeta.data.tiered_imagenet import load_tiered_imagenet
from jaxmeta.data.varying import check_varying, sample_varying
from jaxmeta.data.vgg_flowers import load_vgg_flowers

DATASETS = {
    "glyphs": load_glyphs,
    "omniglot": load_omniglot,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "cifar_fs": load_cifar_fs,
    "fc100": load_fc100,
    "cub": load_cub,
    "vgg_flowers": load_vgg_flowers,
    "fgvc_aircraft": load_fgvc_aircraft,
    "mini_imagenet": load_mini_imagenet,
    "tiered_imagenet": load_tiered_imagenet,
    "quickdraw": load_quickdraw,
    "faces": load_faces,
    "sinusoid": load_sinusoid,
    # Asked for as folder:PATH.
    "folder": load_folder,
}


# As they are asked for.
DATASET_NAMES = tuple(f"{name}:PATH" if name == "folder" else name for name in DATASETS)


def split_name(name: str) -> tuple[str, str]:
    """Split what a dataset is asked for by into its row of `DATASETS` and the path behind it.

    Args:
      name: "glyphs", "folder:photographs".

    Returns:
      The row, and the path, "" where there is none.

    Example:
      >>> split_name("folder:photographs/2024"), split_name("glyphs")
      (('folder', 'photographs/2024'), ('glyphs', ''))
    """
    row, _, place = name.partition(":")
    return row, place


def task_source(
    dataset: Dataset,
    split: str,
    spec: EpisodeSpec,
    *,
    within_group: bool = False,
    varying: bool = False,
    pool: str = "device",
) -> TaskSource:
    """Make the source of one split's tasks.

    Args:
      dataset: What a loader of `DATASETS` returned.
      split: "train", "validation" or "test".
      spec: Size of the episodes.
      within_group: Draw the classes of a task from one group: one alphabet of omniglot, one script of glyphs.
      varying: Draw tasks whose ways and shots vary, up to the spec's: see `sample_varying`.
      pool: Where the images are kept: "device", the default one, or "host", see `on_host`. The tasks are the same.

    Returns:
      A `TaskSource`.

    Raises:
      ValueError: if the split cannot serve such episodes, or for another pool.

    Example:
      >>> task_source(load_sinusoid(), "train", EpisodeSpec(1, 5, 10)).pool
      ()
    """
    if split not in dataset.splits:
        raise ValueError(f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}.")
    if within_group and dataset.groups is None:
        raise ValueError(f"The classes of {dataset.name} are in no groups: draw those of a task from all.")
    if pool not in ("device", "host"):
        raise ValueError(f"A pool is kept on the 'device' or on the 'host'; given {pool!r}.")
    if varying and (within_group or dataset.kind == "regression"):
        raise ValueError("Tasks of varying ways are drawn from all classes of a dataset for classification.")
    images, name = dataset.splits[split], f"split {split!r} of {dataset.name}"
    if dataset.kind == "regression":
        return TaskSource(sample_sinusoids, images, spec)
    (check_varying if varying else check_spec)(spec, images, name)
    placed = on_host(images) if pool == "host" else jax.device_put(images)
    source = TaskSource(sample_varying if varying else sample_episodes, placed, spec)
    if not within_group or dataset.groups is None:
        return source
    return within_groups(source, dataset.groups[split], name)


__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "DATASET_NAMES",
    "ClassPool",
    "DataError",
    "Dataset",
    "EpisodeSpec",
    "FoldedPairs",
    "Pairs",
    "TaskSource",
    "augmented",
    "challenge_source",
    "check_spec",
    "divide_classes",
    "check_varying",
    "fixed_source",
    "load_challenge",
    "load_challenge_drawings",
    "load_folder",
    "load_cifar10",
    "load_cifar10_arrays",
    "load_cifar_fs",
    "load_cub",
    "load_fc100",
    "load_fgvc_aircraft",
    "load_faces",
    "load_glyphs",
    "load_mini_imagenet",
    "load_mnist",
    "load_omniglot",
    "load_pairs",
    "load_quickdraw",
    "load_sinusoid",
    "load_vgg_flowers",
    "load_tiered_imagenet",
    "number_of_tasks",
    "on_host",
    "sample_classification",
    "sample_episode",
    "sample_episodes",
    "sample_pairs",
    "sample_sinusoids",
    "split_name",
    "sample_varying",
    "task_keys",
    "task_source",
    "within_groups",
]
