"""What a configuration stands for: the dataset, the learner, the optimiser and the train step."""

import inspect
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxmeta.algorithms import ALGORITHMS, NEEDS_PAIRS, options_of
from jaxmeta.base import Estimator, MetaLearner, Model
from jaxmeta.config import OPTIONAL, Config, ConfigError
from jaxmeta.data import DATASETS, Dataset, split_name
from jaxmeta.data.pools import ImageRecipe
from jaxmeta.dispatch import TrainStep
from jaxmeta.inner import INNER_OPTIMIZERS
from jaxmeta.losses import CRITERIA, Criterion
from jaxmeta.metagrad import ESTIMATORS, METAGRADS
from jaxmeta.models import MODELS, PRECISIONS, in_precision
from jaxmeta.nn import LoweringTable
from jaxmeta.train import make_train_step


def is_convolutional(config: Config) -> bool:
    """Tell whether the model convolves: a task is then enough work for a core of its own."""
    return "filters" in inspect.signature(MODELS[config.model]).parameters


class Parts(NamedTuple):
    """What a configuration stands for."""

    learner: MetaLearner
    criterion: Criterion
    optimizer: optax.GradientTransformation
    estimator: Estimator
    train_step: TrainStep


def build(config: Config, dataset: Dataset, mesh: Mesh | None = None, lowering: str | LoweringTable = "auto") -> Parts:
    """Build the learner, the outer optimiser and the train step.

    Args:
      config: A checked configuration with a `task_chunk`.
      dataset: The dataset that it names.
      mesh: Devices to divide the tasks among.
      lowering: How convolutions are computed, as in `nn.conv2d`; nothing to a model without them.

    Returns:
      The `Parts`.

    Raises:
      ConfigError: for an inner loop that the strategy cannot serve.
    """
    factory = MODELS[config.model]
    takes = inspect.signature(factory).parameters
    options = {"filters": config.filters, "context": config.context, "lowering": lowering}
    outputs = config.ways if dataset.kind == "classification" else 1
    model = factory(outputs, **{name: value for name, value in options.items() if name in takes})
    model = in_precision(model, config.precision)
    criterion = CRITERIA[dataset.kind]
    learner = _learner(config, model, criterion, classes=len(dataset.class_names["train"]))
    learner = _in_precision(learner, config.precision)
    rate = config.outer_lr
    if config.outer_schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.outer_lr, config.steps)
    elif config.outer_schedule == "linear":
        rate = optax.linear_schedule(config.outer_lr, 0.0, config.steps)
    optimizer = optax.adam(rate) if config.outer_optimizer == "adam" else optax.sgd(rate)
    estimator = ESTIMATORS[config.estimator]()
    train_step = make_train_step(learner, optimizer, estimator=estimator, task_chunk=config.task_chunk, mesh=mesh)
    # Traced once for all that asks for its shapes, its contractions or its program. Inlined, it leaves no mark on that.
    train_step = jax.jit(train_step, static_argnames="num_tasks", inline=True)
    return Parts(learner, criterion, optimizer, estimator, train_step)


def _learner(config: Config, model: Model, criterion: Criterion, classes: int) -> MetaLearner:
    """Make the learner, of what its factory takes."""
    factory = ALGORITHMS[config.algorithm]
    options = {
        "inner_optimizer": INNER_OPTIMIZERS[config.inner_optimizer](config.inner_lr),
        "inner_lr": config.inner_lr,
        "num_steps": config.inner_steps,
        "metagrad": METAGRADS[config.metagrad](),
        "proximal": config.proximal,
        "criterion": criterion,
        "norm": config.norm,
        "log_grad_norms": config.log_grad_norms,
        "classes": classes,
        "ways": max(config.ways, config.train_ways or 0),
        # The shares of a training that the paper of MAML++ gives them.
        "multi_step_until": config.steps // 10,
        "first_order_until": config.steps // 2,
    }
    options |= {option: value for name, option in OPTIONAL.items() if (value := getattr(config, name)) is not None}
    takes = options_of(factory)
    try:
        return factory(model, **{name: value for name, value in options.items() if name in takes})
    except ValueError as error:
        raise ConfigError(f"{named_algorithm(config)}: {error}") from error


def _in_precision(learner: MetaLearner, precision: str) -> MetaLearner:
    """Let a learner's products beside its model, of a head or of what compares, be as exact as those of the model.

    Beside a model in bfloat16 they stay of float32 numbers, computed as JAX has it by default.
    """
    if precision == "bfloat16":
        return learner

    def computed(function):
        def compute(*args, **options):
            with jax.default_matmul_precision(PRECISIONS[precision]):
                return function(*args, **options)

        return compute

    return MetaLearner._make(None if function is None else computed(function) for function in learner)


def named_algorithm(config: Config) -> str:
    """Name the algorithm as the command line does, and its strategy if it takes one: what an error begins with."""
    takes = options_of(ALGORITHMS[config.algorithm])
    return f"--algorithm {config.algorithm}" + (f" --metagrad {config.metagrad}" if "metagrad" in takes else "")


def load_dataset(config: Config, like: ImageRecipe | None = None) -> Dataset:
    """Load the dataset that a configuration names.

    Args:
      config: The configuration. A folder is where `data_dir` says, if it says something: it may lie elsewhere now.
      like: Make the images as those of another dataset, where a loader can.

    Returns:
      The dataset.

    Raises:
      DataError: if the data is missing or damaged.
    """
    row, place = split_name(config.dataset)
    loader = DATASETS[row]
    takes = inspect.signature(loader).parameters
    options = {
        "data_dir": config.data_dir or (Path(place) if place else None),
        "split": config.split,
        "image_size": config.image_size,
        # What a division of the classes by chance must leave for the tasks.
        "ways": config.ways,
        "train_ways": config.train_ways,
        "least_images": config.shots + max(config.queries, config.eval_queries),
    }
    if like is not None:
        options |= {"recipe": like, "image_size": None} if "recipe" in takes else {"image_size": like.height}
    return loader(**{name: value for name, value in options.items() if name in takes})


def unusual_size(config: Config, recipe: ImageRecipe | None) -> int | None:
    """Tell the side of the images, where it is not what it always is for the dataset that a configuration names."""
    loader = DATASETS[split_name(config.dataset)[0]]
    takes = inspect.signature(loader).parameters
    if recipe is None or {"image_size", "recipe"}.isdisjoint(takes):
        return None
    # Of a folder, what is usual depends on what is in it.
    usual = getattr(inspect.getmodule(loader), "SIZE", None)
    return None if recipe.height == usual else recipe.height


def is_own_dataset(config: Config, name: str) -> bool:
    """Tell whether a name is that of a configuration's own dataset, in whatever way a path is written."""
    own_place, place = split_name(config.dataset)[1], split_name(name)[1]
    if name == config.dataset or not (own_place and place):
        return name == config.dataset
    return Path(place).expanduser().resolve() == Path(config.data_dir or own_place).expanduser().resolve()


def check_pairs(config: Config, dataset: Dataset) -> None:
    """Refuse classes of one image, for an algorithm that learns from two images of a class.

    Raises:
      ConfigError: names the classes, and what to do.
    """
    if config.algorithm not in NEEDS_PAIRS or dataset.kind != "classification":
        return
    for split, pool in dataset.splits.items():
        short = np.flatnonzero(np.asarray(pool.counts) < 2)
        if short.size:
            raise ConfigError(
                f"--algorithm {config.algorithm} learns from pairs of one class and needs two images of each; given "
                f"{short.size} of {len(pool.counts)} classes with fewer in split {split!r} of {dataset.name}, the "
                f"first is {dataset.class_names[split][short[0]]!r}. {NEEDS_PAIRS[config.algorithm]}"
            )


def norm_in_use(parts: Parts, config: Config, example_inputs: jax.Array) -> str:
    """Tell which normalisation a result must report: "none" for a model without statistics."""
    _, state = jax.eval_shape(parts.learner.init, jax.random.key(0), example_inputs)
    return config.norm if jax.tree.leaves(state) else "none"
