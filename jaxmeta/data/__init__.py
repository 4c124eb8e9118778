"""Where episodes come from: the table of datasets, and sources of tasks."""

import jax

from jaxmeta.data.episodes import (
    EpisodeSpec,
    TaskSource,
    check_spec,
    sample_classification,
    sample_episode,
    sample_episodes,
    task_keys,
)
from jaxmeta.data.glyphs import load_glyphs
from jaxmeta.data.omniglot import load_omniglot
from jaxmeta.data.pools import ClassPool, DataError, Dataset
from jaxmeta.data.sinusoid import load_sinusoid, sample_sinusoids

DATASETS = {
    "glyphs": load_glyphs,
    "omniglot": load_omniglot,
    "sinusoid": load_sinusoid,
}


def task_source(dataset: Dataset, split: str, spec: EpisodeSpec) -> TaskSource:
    """Make the source of one split's tasks, its pool on the default device.

    Args:
      dataset: What a loader of `DATASETS` returned.
      split: "train", "validation" or "test".
      spec: Size of the episodes.

    Returns:
      A `TaskSource`.

    Raises:
      ValueError: if the split cannot serve such episodes.

    Example:
      >>> task_source(load_sinusoid(), "train", EpisodeSpec(1, 5, 10)).pool
      ()
    """
    if split not in dataset.splits:
        raise ValueError(f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}.")
    pool = dataset.splits[split]
    if dataset.kind == "regression":
        return TaskSource(sample_sinusoids, pool, spec)
    check_spec(spec, pool, f"split {split!r} of {dataset.name}")
    return TaskSource(sample_episodes, jax.device_put(pool), spec)


__all__ = [
    "DATASETS",
    "ClassPool",
    "DataError",
    "Dataset",
    "EpisodeSpec",
    "TaskSource",
    "check_spec",
    "load_glyphs",
    "load_omniglot",
    "load_sinusoid",
    "sample_classification",
    "sample_episode",
    "sample_episodes",
    "sample_sinusoids",
    "task_keys",
    "task_source",
]
