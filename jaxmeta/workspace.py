"""What a configuration stands for, in memory: the data, the learner, and how it is drawn."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmeta import feed, plots, processes
from jaxmeta.algorithms import ALGORITHMS, options_of
from jaxmeta.base import Evaluation, Key, TrainState
from jaxmeta.config import Config, ConfigError
from jaxmeta.data import (
    ClassPool,
    Dataset,
    EpisodeSpec,
    TaskSource,
    augmented,
    sample_classification,
    task_keys,
    task_source,
)
from jaxmeta.data.host import chooser_of
from jaxmeta.evaluate import draw_tasks, judge_tasks, make_evaluator
from jaxmeta.folder import load_lowerings, lowerings_file, read_rows, save_lowerings
from jaxmeta.judged_tasks import evaluation_key
from jaxmeta.nn import Case, LoweringTable, contractions_in, lowerings_used
from jaxmeta.nn.lowering_table import this_platform
from jaxmeta.nn.processor import device_name
from jaxmeta.parts import Parts, build, check_pairs, load_dataset, named_algorithm, norm_in_use
from jaxmeta.plan import choose_task_chunk
from jaxmeta.train import init_train_state

LOWERINGS_NAME = "lowerings.json"


class Workspace(NamedTuple):
    """A configuration with nothing left to choose, and its parts."""

    config: Config
    dataset: Dataset
    parts: Parts
    sources: dict[str, TaskSource]
    evaluator: Callable[..., Evaluation]
    headline: str
    norm: str
    lowering: str | LoweringTable = "auto"
    pool: str = "device"
    memory_mib: int | None = None


def open_workspace(
    config: Config,
    mesh: Mesh | None = None,
    lowering: str | LoweringTable = "auto",
    *,
    dataset: Dataset | None = None,
    pool: str = "auto",
    memory_mib: int | None = None,
) -> Workspace:
    """Load a configuration's data and build its parts; nothing is written.

    Args:
      config: A checked configuration; a `task_chunk` of None is replaced by what suits the machine.
      mesh: Devices to divide the tasks of a step, and of an evaluation, among; None for one.
      lowering: How convolutions are computed, as in `nn.conv2d`.
      dataset: The data, if it is at hand; None to load what the configuration names.
      pool: Where the images are kept, "device" or "host"; "auto": on the device if they fit there. No number that
        comes out depends on it.
      memory_mib: MiB that a device may use; None for what is at hand.

    Returns:
      The `Workspace`.

    Raises:
      ConfigError: if the episodes do not fit the data.
      DataError: if the data is missing or damaged.
    """
    dataset = load_dataset(config) if dataset is None else dataset
    check_pairs(config, dataset)
    pool = feed.choose_pool(dataset, pool, None if memory_mib is None else memory_mib * 2**20)
    train_spec = EpisodeSpec(config.train_ways or config.ways, config.shots, config.queries)
    eval_spec = EpisodeSpec(config.ways, config.shots, config.eval_queries)
    specs = {"train": train_spec, "validation": eval_spec, "test": eval_spec}
    try:
        options = {"within_group": config.within_alphabet, "varying": config.episodes == "varying", "pool": pool}
        sources = {split: task_source(dataset, split, spec, **options) for split, spec in specs.items()}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if dataset.kind == "classification" and "classes" in options_of(ALGORITHMS[config.algorithm]):
        # Trained by classification among all classes, and judged on tasks like everybody.
        sources["train"] = sources["train"]._replace(sample=sample_classification)
    try:
        sources["train"] = augmented(sources["train"], config.augment)
    except ValueError as error:
        raise ConfigError(f"--augment {' '.join(config.augment)}: {error}") from error
    episode = jax.eval_shape(lambda: one_task(sources["train"]))
    if config.task_chunk is None:
        inputs_per_task = episode.support.inputs.size + episode.query.inputs.size
        config = dataclasses.replace(config, task_chunk=choose_task_chunk(config.tasks, inputs_per_task))
    parts, evaluator = _build_both(config, dataset, mesh, lowering, memory_mib)
    headline = next(iter(parts.criterion.metrics))
    try:
        norm = norm_in_use(parts, config, episode.support.inputs)
    except ValueError as error:
        raise ConfigError(f"--model {config.model} does not fit --dataset {config.dataset}: {error}") from error
    return Workspace(config, dataset, parts, sources, evaluator, headline, norm, lowering, pool, memory_mib)


def stand_in(dataset: Dataset, config: Config) -> Dataset:
    """Give black images in the place of a run's data: for shapes, where nothing else is asked of it.

    Args:
      dataset: What the run's learner was built for, with a recipe of its images: from `folder.read_data`.
      config: The run's configuration.

    Returns:
      The dataset with three splits that serve the run's tasks.
    """
    recipe, ways = dataset.recipe, max(config.ways, config.train_ways or 0)
    assert recipe is not None
    per_class = config.shots + max(config.queries, config.eval_queries)
    pool = ClassPool(np.zeros([ways, per_class, *recipe[:3]], np.uint8), np.full(ways, per_class, np.int32))
    parts = ("train", "validation", "test")
    return dataset._replace(splits=dict.fromkeys(parts, pool), groups=dict.fromkeys(parts, ("",) * ways))


def with_config(workspace: Workspace, config: Config, mesh: Mesh | None = None) -> Workspace:
    """Build the parts anew for a configuration that computes the same data differently."""
    parts, evaluator = _build_both(config, workspace.dataset, mesh, workspace.lowering, workspace.memory_mib)
    return workspace._replace(config=config, parts=parts, evaluator=evaluator)


def _build_both(config: Config, dataset: Dataset, mesh: Mesh | None, lowering, memory_mib: int | None):
    parts = build(config, dataset, mesh, lowering)
    options = {"task_chunk": config.task_chunk or 1, "mesh": mesh, "memory_mib": memory_mib}
    return parts, make_evaluator(parts.learner, parts.criterion, num_steps=config.eval_inner_steps, **options)


def make_state(workspace: Workspace, key: Key) -> TrainState:
    """Make the training state to begin with."""
    parts, source = workspace.parts, workspace.sources["train"]
    num_tasks, estimator = workspace.config.tasks, parts.estimator
    return init_train_state(key, parts.learner, parts.optimizer, source, num_tasks=num_tasks, estimator=estimator)


def state_like(workspace: Workspace) -> TrainState:
    """Give the shapes of a training state."""
    return jax.eval_shape(lambda: make_state(workspace, jax.random.key(0)))


def trace_step(workspace: Workspace, members: int | None = None) -> dict[Case, int]:
    """Trace an outer step, before anything is written: some strategies see only then what they are asked for.

    Args:
      workspace: The workspace.
      members: How many members of a population a device computes; None for a single run.

    Returns:
      How often each contraction is in the step.

    Raises:
      ConfigError: if the strategy or the estimator refuses.
    """
    config, source = workspace.config, workspace.sources["train"]

    def step(train_state, key):
        episodes = source.sample(key, source.pool, source.spec, config.tasks)
        return workspace.parts.train_step(train_state, episodes, key)

    try:
        return _traced(workspace, step, members)
    except ValueError as error:
        estimator = "" if config.estimator == Config.estimator else f" --estimator {config.estimator}"
        raise ConfigError(f"{named_algorithm(config)}{estimator}: {error}") from error


def trace_judgement(workspace: Workspace, members: int | None = None) -> dict[Case, int]:
    """Trace the evaluation of as many tasks as a device judges at once, as `trace_step` does the step."""
    config, source, parts = workspace.config, workspace.sources["test"], workspace.parts

    def judgement(train_state, key):
        chunk = config.task_chunk or 1
        episodes, noise = source.sample(key, source.pool, source.spec, chunk), task_keys(key, chunk)
        judge_chunk = judge_tasks(parts.learner, parts.criterion, config.eval_inner_steps, source.spec.ways)
        return judge_chunk(train_state.meta_params, train_state.state, episodes, noise)

    return _traced(workspace, judgement, members)


def _traced(workspace, function, members):
    train_state, key = state_like(workspace), jax.random.key(0)
    if members is None:
        return contractions_in(function, train_state, key)
    of_all = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype), train_state)
    return contractions_in(jax.vmap(function), of_all, jax.random.split(key, members))


def find_lowering(out: Path | None = None) -> str | LoweringTable:
    """Tell what decides how convolutions are computed, the same in every process.

    Args:
      out: The folder of a run that goes on or is judged; None for a new run.

    Returns:
      The table of the run, or for a new one that of this kind of device; "auto" if there is none.

    Raises:
      ConfigError: if the file is damaged.
    """
    path = lowerings_file(device_name()) if out is None else out / LOWERINGS_NAME

    def read() -> str:
        table = load_lowerings(path)
        return "" if table is None else json.dumps(table.to_json())

    text = processes.from_first(read)
    return LoweringTable.from_json(json.loads(text)) if text else "auto"


def keep_lowerings(out: Path, cases: Iterable[Case], lowering: str | LoweringTable) -> None:
    """Write into a run's folder which way each of its contractions takes, beside those that it took before."""
    used = lowerings_used(cases, this_platform(), lowering, device_kind=device_name())
    if used.rows:
        earlier = load_lowerings(out / LOWERINGS_NAME)
        save_lowerings(out / LOWERINGS_NAME, used if earlier is None else earlier.extended(used))


def one_task(source: TaskSource, key=None, number: int = 0):
    """Draw one task of a source, the first if no number is given."""
    key = jax.random.key(0) if key is None else key
    return jax.tree.map(lambda leaf: leaf[0], draw_tasks(source.sample, key, source.pool, source.spec, 1, number))


def classes_of_task(workspace: Workspace, split: str, key: Key) -> list[str]:
    """Name the classes of the task that `one_task` draws, in the order of their targets; none where there are none."""
    source, names = workspace.sources[split], workspace.dataset.class_names.get(split, ())
    choose = chooser_of(source.sample)
    if choose is None or not names:
        return []
    support = choose(key, source.pool, source.spec, 1).support
    chosen, targets, real = (np.asarray(leaf)[0] for leaf in (support.inputs, support.targets, support.weights))
    places = {int(target): int(place) for (place, _), target in zip(chosen[real > 0], targets[real > 0], strict=True)}
    return [names[places[target]] for target in sorted(places)]


def draw(workspace: Workspace, out: Path, train_state: TrainState | None = None) -> None:
    """Draw the curves and one test episode; before there is a state, the episode alone, if there is no picture yet."""
    config, learner, picture = workspace.config, workspace.parts.learner, out / "episode.png"
    if train_state is None and picture.exists():
        return
    key, steps = evaluation_key("test"), config.eval_inner_steps
    episode = one_task(workspace.sources["test"], key)

    # Compiled as one: step by step, hundreds of small programs would be compiled. Of arguments, not of constants, which
    # the compiler would compute with.
    @partial(jax.jit, static_argnums=0)
    def predicted(num_steps, meta_params, state, support, batch):
        adapted = learner.adapt(meta_params, state, support, key, num_steps=num_steps)
        return learner.predict(adapted, batch, key)

    def predict(num_steps, batch):
        assert train_state is not None
        return np.asarray(predicted(num_steps, train_state.meta_params, train_state.state, episode.support, batch))

    looped = ""
    if train_state is not None:
        plots.plot_curves(out / "curves.png", read_rows(out / "metrics.jsonl"), workspace.headline)
        looped = f", {_steps(steps)}" if "num_steps" in options_of(ALGORITHMS[config.algorithm]) else ""
    title = f"{workspace.dataset.name}, {config.algorithm}, {config.shots}-shot{looped}, one test task"
    if workspace.dataset.kind == "classification":
        outputs = None if train_state is None else predict(steps, episode.query)
        plots.plot_image_episode(picture, episode, outputs, title, classes_of_task(workspace, "test", key))
        return
    grid = jnp.linspace(-5.0, 5.0, 201)[:, None]
    batch = episode.query._replace(inputs=grid, targets=grid, weights=jnp.ones(201))
    numbers = [] if train_state is None else sorted({0, steps})
    curves = {_steps(number): (np.asarray(grid)[:, 0], predict(number, batch)[:, 0]) for number in numbers}
    plots.plot_regression_episode(picture, episode, curves, title)


def _steps(number: int) -> str:
    return f"{number} inner step{'' if number == 1 else 's'}"
