"""The configuration of a run."""

import dataclasses
import difflib
import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

import tyro

from jaxmeta.algorithms import ALGORITHMS, NORMS, options_of
from jaxmeta.data import AUGMENTATIONS, DATASET_NAMES, DATASETS, split_name
from jaxmeta.inner import INNER_OPTIMIZERS
from jaxmeta.metagrad import ESTIMATORS, METAGRADS
from jaxmeta.models import MODELS, PRECISIONS

SCHEDULES = ("constant", "cosine", "linear")
OUTER_OPTIMIZERS = ("adam", "sgd")
EPISODES = ("fixed", "varying")
# The least value of a whole number, where it is not 1. An interval needs two tasks.
LEAST = {"seed": 0, "context": 0, "inner_steps": 0, "eval_inner_steps": 0, "validation_episodes": 2, "eval_episodes": 2}
LEAST |= {"image_size": 8}
# Options of an algorithm that are its own where they are None, and what its factory calls them.
OPTIONAL = {"inner_batch": "batch_size", "eval_inner_batch": "eval_batch_size", "scale": "scale", "damping": "damping"}
# Other numbers than whole ones are positive, but for these.
MAY_BE_ZERO = {"proximal", "damping"}


class ConfigError(ValueError):
    """The caller asked for something that is not there or does not fit together."""


def _choice(table, help: str):
    return tyro.conf.arg(help=f"{help} One of: {', '.join(table)}.")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome of a run. Defaults: glyphs, 5-way 1-shot, second-order MAML."""

    dataset: Annotated[str, _choice(DATASET_NAMES, "Where tasks come from.")] = "glyphs"
    split: Annotated[
        str,
        tyro.conf.arg(
            help="Class split of omniglot: vinyals, random (MAML's), or the challenge's: background, small1, small2."
        ),
    ] = "vinyals"
    within_alphabet: Annotated[bool, tyro.conf.arg(help="Draw the classes of a task from one alphabet.")] = False
    image_size: Annotated[
        int | None, tyro.conf.arg(help="Side of the images, for datasets that are resized; None: as usual for each.")
    ] = None
    data_dir: Annotated[Path | None, tyro.conf.arg(help="Folder with the data; None: the cache, or a download.")] = None
    algorithm: Annotated[str, _choice(ALGORITHMS, "How to learn to learn.")] = "maml"
    metagrad: Annotated[str, _choice(METAGRADS, "How the inner loop is differentiated.")] = "unrolled"
    estimator: Annotated[str, _choice(ESTIMATORS, "How the meta-loss becomes a gradient.")] = "exact"
    model: Annotated[str, _choice(MODELS, "The network.")] = "conv4-stride"
    precision: Annotated[str, _choice(PRECISIONS, "How exactly the network computes.")] = "float32"
    filters: Annotated[int, tyro.conf.arg(help="Channels of each block of a convolutional model.")] = 32
    context: Annotated[int, tyro.conf.arg(help="Context parameters of the model, which cavia adapts.")] = 0
    norm: Annotated[
        str,
        _choice(NORMS, "Whose statistics normalise the query set: its own, the support set's, or those of training."),
    ] = "inductive"
    ways: Annotated[int, tyro.conf.arg(help="Classes in a task.")] = 5
    train_ways: Annotated[
        int | None, tyro.conf.arg(help="Classes in a task of training; None: --ways. For learners without outputs.")
    ] = None
    shots: Annotated[int, tyro.conf.arg(help="Support examples of each class.")] = 1
    queries: Annotated[int, tyro.conf.arg(help="Query examples of each class in training.")] = 1
    eval_queries: Annotated[int, tyro.conf.arg(help="Query examples of each class in evaluation.")] = 15
    episodes: Annotated[
        str,
        tyro.conf.arg(
            help="Whether all tasks have one size (fixed), or ways and shots vary as in Meta-Dataset (varying): then "
            "--ways and the queries are the most there may be, and ways * shots the most support examples together."
        ),
    ] = "fixed"
    augment: Annotated[
        tuple[str, ...], _choice(AUGMENTATIONS, "Changes of the training tasks, made in this order.")
    ] = ()
    inner_steps: Annotated[int, tyro.conf.arg(help="Gradient steps of the inner loop in training.")] = 1
    eval_inner_steps: Annotated[int, tyro.conf.arg(help="Gradient steps of the inner loop in evaluation.")] = 3
    inner_lr: Annotated[float, tyro.conf.arg(help="Learning rate of the inner loop.")] = 0.4
    inner_optimizer: Annotated[str, _choice(INNER_OPTIMIZERS, "Optimiser of the inner loop.")] = "sgd"
    inner_batch: Annotated[
        int | None, tyro.conf.arg(help="Support examples of an inner step, for reptile; None: as many as usual there.")
    ] = None
    eval_inner_batch: Annotated[int | None, tyro.conf.arg(help="And in evaluation; None: as in training.")] = None
    scale: Annotated[
        float | None,
        tyro.conf.arg(help="Factor of the cosines of matching, matching-fce and baseline++; None: as usual there."),
    ] = None
    proximal: Annotated[float, tyro.conf.arg(help="Pull of the adapted parameters to where they began.")] = 0.0
    damping: Annotated[
        float | None,
        tyro.conf.arg(
            help="Added to the diagonal of the linear systems of imaml, for stability; None: as usual there."
        ),
    ] = None
    log_grad_norms: Annotated[bool, tyro.conf.arg(help="Log the norm of the gradient at every inner step.")] = False
    outer_optimizer: Annotated[str, _choice(OUTER_OPTIMIZERS, "Optimiser of the outer loop.")] = "adam"
    outer_lr: Annotated[float, tyro.conf.arg(help="Learning rate of the outer loop.")] = 3e-3
    outer_schedule: Annotated[str, _choice(SCHEDULES, "Course of the outer rate; cosine and linear end at 0.")] = (
        "cosine"
    )
    tasks: Annotated[int, tyro.conf.arg(help="Tasks in an outer step.")] = 16
    steps: Annotated[int, tyro.conf.arg(help="Outer steps.")] = 2000
    seed: Annotated[int, tyro.conf.arg(help="Seed of the initialisation and of the training tasks.")] = 0
    task_chunk: Annotated[
        int | None, tyro.conf.arg(help="Tasks computed at once; None: chosen for the machine and kept with the run.")
    ] = None
    log_every: Annotated[int, tyro.conf.arg(help="Outer steps in one dispatch, and between two logged rows.")] = 10
    checkpoint_every: Annotated[int, tyro.conf.arg(help="Outer steps between two checkpoints, each validated.")] = 200
    keep_best: Annotated[
        int, tyro.conf.arg(help="Best checkpoints to keep; more than one is for judging their ensemble.")
    ] = 1
    validation_episodes: Annotated[int, tyro.conf.arg(help="Validation tasks behind the choice of checkpoint.")] = 200
    eval_episodes: Annotated[int, tyro.conf.arg(help="Test tasks, met once, at the end.")] = 1000
    tensorboard: Annotated[bool, tyro.conf.arg(help="Also write TensorBoard files (needs jaxmeta[tensorboard]).")] = (
        False
    )


def check_config(config: Config) -> None:
    """Refuse a configuration before anything is read or written.

    Args:
      config: The configuration.

    Raises:
      ConfigError: what was given, what is needed, the closest valid name.

    Example:
      >>> check_config(Config(algorithm="mamml"))
      Traceback (most recent call last):
      ...
      jaxmeta.config.ConfigError: Unknown algorithm 'mamml'. Did you mean 'maml'? Known: maml, ...
    """
    tables = {
        "algorithm": ALGORITHMS,
        "metagrad": METAGRADS,
        "estimator": ESTIMATORS,
        "inner_optimizer": INNER_OPTIMIZERS,
        "model": MODELS,
        "precision": PRECISIONS,
        "norm": NORMS,
        "outer_optimizer": OUTER_OPTIMIZERS,
        "outer_schedule": SCHEDULES,
        "episodes": EPISODES,
    }
    check_dataset(config.dataset)
    for field, table in tables.items():
        check_name(field.replace("_", " "), getattr(config, field), table)
    for name in config.augment:
        check_name("augmentation", name, AUGMENTATIONS)
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), "--" + field.name.replace("_", "-")
        least = LEAST.get(field.name, 1)
        if isinstance(value, int) and not isinstance(value, bool) and value < least:
            raise ConfigError(f"{name} must be at least {least}; given {value}.")
        if isinstance(value, float) and not (0 < value < float("inf") or value == 0 and field.name in MAY_BE_ZERO):
            least = "0 or more" if field.name in MAY_BE_ZERO else "a positive number"
            raise ConfigError(f"{name} must be {least}; given {value}.")
    if config.task_chunk and config.tasks % config.task_chunk:
        raise ConfigError(f"--task-chunk must divide --tasks {config.tasks}; given {config.task_chunk}.")
    if config.checkpoint_every % config.log_every:
        raise ConfigError(
            f"--checkpoint-every must be a multiple of --log-every {config.log_every}; given {config.checkpoint_every}."
        )
    _refuse_idle(config)
    if config.seed >= 2**32:
        raise ConfigError(f"--seed must be below 2**32; given {config.seed}.")
    if config.dataset != "sinusoid" and config.ways < 2:
        raise ConfigError(f"--ways must be at least 2 to tell classes apart; given {config.ways}.")
    if config.dataset == "sinusoid" and config.ways != 1:
        raise ConfigError(f"--dataset sinusoid is regression and has no classes: use --ways 1; given {config.ways}.")


def _refuse_idle(config: Config) -> None:
    """Refuse an option that would do nothing: it is a mistake of the caller's."""
    if config.dataset != "omniglot" and config.split != Config.split:
        raise ConfigError(f"--split {config.split} is for --dataset omniglot; {config.dataset} has one split only.")
    if config.image_size is not None and "image_size" not in options_of_dataset(config):
        raise ConfigError(
            f"--image-size {config.image_size} is nothing to --dataset {config.dataset}: its size is fixed."
        )
    if config.dataset == "sinusoid" and config.data_dir is not None:
        raise ConfigError(f"--dataset sinusoid reads no data: leave out --data-dir; given {config.data_dir}.")
    if config.estimator in ("evolution", "pes", "nres") and config.metagrad != Config.metagrad:
        raise ConfigError(f"--estimator {config.estimator} differentiates nothing: leave out --metagrad.")
    if config.dataset == "sinusoid" and (config.augment or config.episodes != Config.episodes):
        raise ConfigError("--augment and --episodes varying are for images: leave them out with --dataset sinusoid.")
    if config.within_alphabet and config.episodes == "varying":
        raise ConfigError("--episodes varying draws the classes of a task from all: leave out --within-alphabet.")
    takes = options_of(ALGORITHMS[config.algorithm])
    if "turn" in config.augment and "classes" in takes:
        raise ConfigError(
            f"--augment turn makes other classes of the images, and --algorithm {config.algorithm} learns those of the "
            "dataset: leave it out."
        )
    for name in ("metagrad", "inner_optimizer", "proximal", "log_grad_norms"):
        value = getattr(config, name)
        if name not in takes and value != getattr(Config, name):
            raise ConfigError(f"--{name.replace('_', '-')} {value} is nothing to --algorithm {config.algorithm}.")
    for name, option in OPTIONAL.items():
        value = getattr(config, name)
        if value is not None and option not in takes:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is nothing to --algorithm {config.algorithm}.")
    if "num_steps" not in takes and (config.inner_steps or config.eval_inner_steps):
        raise ConfigError(
            f"--algorithm {config.algorithm} has no inner loop: use --inner-steps 0 --eval-inner-steps 0; given "
            f"{config.inner_steps} and {config.eval_inner_steps}."
        )
    if "ways" not in takes and config.train_ways not in (None, config.ways):
        raise ConfigError(
            f"--algorithm {config.algorithm} has an output for each class and trains with as many as it tests: leave "
            f"out --train-ways; given {config.train_ways}."
        )


def changed(config: Config, start: Config) -> set[str]:
    """Name the options that differ from what a configuration began as: those that were given."""
    return {name for name, value in vars(config).items() if value != getattr(start, name)}


def refuse_idle_numbers(config: Config, given: Collection[str]) -> None:
    """Refuse numbers that were given for an algorithm or a model without them.

    `check_config` cannot: a preset has its rate and its filters whatever the algorithm and the model are.

    Args:
      config: The configuration.
      given: Names of what was asked for, see `changed`.

    Raises:
      ConfigError: if nothing takes one of them.
    """
    if "inner_lr" in given and {"inner_lr", "inner_optimizer"}.isdisjoint(options_of(ALGORITHMS[config.algorithm])):
        raise ConfigError(f"--algorithm {config.algorithm} has no inner learning rate: leave it out.")
    for name in ("filters", "context"):
        if name in given and name not in inspect.signature(MODELS[config.model]).parameters:
            raise ConfigError(f"--{name} {getattr(config, name)} is nothing to --model {config.model}: leave it out.")


def options_of_dataset(config: Config) -> Mapping[str, inspect.Parameter]:
    """Give what the loader of a configuration's dataset can be told, by name."""
    return inspect.signature(DATASETS[split_name(config.dataset)[0]]).parameters


def check_dataset(name: str) -> None:
    """Refuse an unknown dataset, or a path where none belongs.

    Args:
      name: A row of `DATASETS`, or folder:PATH.

    Raises:
      ConfigError: what was given, and the closest valid name.
    """
    row, place = split_name(name)
    if row not in DATASETS and Path(name).expanduser().exists():
        raise ConfigError(f"Unknown dataset {name!r}. It is a path: did you mean 'folder:{name}'?")
    check_name("dataset", row, DATASETS)
    if row != "folder" and name != row:
        raise ConfigError(f"--dataset {row} takes no path; given {name}. Use --data-dir {place or 'PATH'}.")
    if name == "folder:":
        raise ConfigError("--dataset folder: needs the path of a folder or a CSV: --dataset folder:PATH.")


def check_name(kind: str, name: str, known) -> None:
    """Refuse an unknown name and suggest the closest known one.

    Args:
      kind: What is named.
      name: The name given.
      known: The names there are.

    Raises:
      ConfigError: if it is not among them.
    """
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")
