"""The configuration of a run, its presets, and what is built from it."""

import dataclasses
import difflib
import inspect
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import optax
import tyro
from jax.sharding import Mesh

from jaxmeta.algorithms import ALGORITHMS, NORMS
from jaxmeta.base import Estimator, MetaLearner
from jaxmeta.data import DATASETS, Dataset
from jaxmeta.inner import INNER_OPTIMIZERS
from jaxmeta.losses import CRITERIA, Criterion
from jaxmeta.metagrad import ESTIMATORS, METAGRADS
from jaxmeta.models import MODELS
from jaxmeta.nn import LoweringTable
from jaxmeta.train import TrainStep, make_train_step

SCHEDULES = ("constant", "cosine")
# The least value of a whole number, where it is not 1. An interval needs two tasks.
LEAST = {"seed": 0, "inner_steps": 0, "eval_inner_steps": 0, "validation_episodes": 2, "eval_episodes": 2}
# Other numbers than whole ones are positive, but for these.
MAY_BE_ZERO = {"proximal"}


class ConfigError(ValueError):
    """The caller asked for something that is not there or does not fit together."""


def _choice(table, help: str):
    return tyro.conf.arg(help=f"{help} One of: {', '.join(table)}.")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome of a run. Defaults: glyphs, 5-way 1-shot, second-order MAML."""

    dataset: Annotated[str, _choice(DATASETS, "Where tasks come from.")] = "glyphs"
    split: Annotated[str, tyro.conf.arg(help="Class split of omniglot: vinyals or random (MAML's).")] = "vinyals"
    data_dir: Annotated[Path | None, tyro.conf.arg(help="Folder with the data; None: the cache, or a download.")] = None
    algorithm: Annotated[str, _choice(ALGORITHMS, "How to learn to learn.")] = "maml"
    metagrad: Annotated[str, _choice(METAGRADS, "How the inner loop is differentiated.")] = "unrolled"
    estimator: Annotated[str, _choice(ESTIMATORS, "How the meta-loss becomes a gradient.")] = "exact"
    model: Annotated[str, _choice(MODELS, "The network.")] = "conv4-stride"
    filters: Annotated[int, tyro.conf.arg(help="Channels of each block of a convolutional model.")] = 32
    norm: Annotated[str, _choice(NORMS, "Whose statistics normalise the query set: its own, or the support set's.")] = (
        "inductive"
    )
    ways: Annotated[int, tyro.conf.arg(help="Classes in a task.")] = 5
    shots: Annotated[int, tyro.conf.arg(help="Support examples of each class.")] = 1
    queries: Annotated[int, tyro.conf.arg(help="Query examples of each class in training.")] = 1
    eval_queries: Annotated[int, tyro.conf.arg(help="Query examples of each class in evaluation.")] = 15
    inner_steps: Annotated[int, tyro.conf.arg(help="Gradient steps of the inner loop in training.")] = 1
    eval_inner_steps: Annotated[int, tyro.conf.arg(help="Gradient steps of the inner loop in evaluation.")] = 3
    inner_lr: Annotated[float, tyro.conf.arg(help="Learning rate of the inner loop.")] = 0.4
    inner_optimizer: Annotated[str, _choice(INNER_OPTIMIZERS, "Optimiser of the inner loop.")] = "sgd"
    proximal: Annotated[float, tyro.conf.arg(help="Pull of the adapted parameters to where they began.")] = 0.0
    log_grad_norms: Annotated[bool, tyro.conf.arg(help="Log the norm of the gradient at every inner step.")] = False
    outer_lr: Annotated[float, tyro.conf.arg(help="Learning rate of the outer loop (Adam).")] = 3e-3
    outer_schedule: Annotated[str, _choice(SCHEDULES, "Course of the outer rate; cosine ends at 0.")] = "cosine"
    tasks: Annotated[int, tyro.conf.arg(help="Tasks in an outer step.")] = 16
    steps: Annotated[int, tyro.conf.arg(help="Outer steps.")] = 2000
    seed: Annotated[int, tyro.conf.arg(help="Seed of the initialisation and of the training tasks.")] = 0
    task_chunk: Annotated[
        int | None, tyro.conf.arg(help="Tasks computed at once; None: chosen for the machine and kept with the run.")
    ] = None
    log_every: Annotated[int, tyro.conf.arg(help="Outer steps in one dispatch, and between two logged rows.")] = 10
    checkpoint_every: Annotated[int, tyro.conf.arg(help="Outer steps between two checkpoints, each validated.")] = 200
    validation_episodes: Annotated[int, tyro.conf.arg(help="Validation tasks behind the choice of checkpoint.")] = 200
    eval_episodes: Annotated[int, tyro.conf.arg(help="Test tasks, met once, at the end.")] = 1000
    tensorboard: Annotated[bool, tyro.conf.arg(help="Also write TensorBoard files (needs jaxmeta[tensorboard]).")] = (
        False
    )


# The query set as in MAML's code: as many images of a class as shots, in training and in evaluation.
_OMNIGLOT = Config(
    dataset="omniglot",
    norm="transductive",
    filters=64,
    queries=1,
    eval_queries=1,
    tasks=32,
    steps=4500,
    checkpoint_every=250,
)
_TWENTY_WAY = {"ways": 20, "inner_steps": 5, "eval_inner_steps": 5, "inner_lr": 0.1, "tasks": 16}
_FIVE_SHOT = {"shots": 5, "queries": 5, "eval_queries": 5}

PRESETS = {
    "glyphs-maml-5w1s": Config(),
    "omniglot-maml-5w1s": _OMNIGLOT,
    "omniglot-maml-5w5s": dataclasses.replace(_OMNIGLOT, **_FIVE_SHOT),
    "omniglot-maml-20w1s": dataclasses.replace(_OMNIGLOT, **_TWENTY_WAY),
    "omniglot-maml-20w5s": dataclasses.replace(_OMNIGLOT, **_TWENTY_WAY, **_FIVE_SHOT),
    "sinusoid-maml": Config(
        dataset="sinusoid",
        model="mlp",
        ways=1,
        shots=5,
        queries=10,
        eval_queries=100,
        inner_lr=0.01,
        eval_inner_steps=1,
        outer_lr=1e-3,
        tasks=25,
        steps=70000,
        log_every=500,
        checkpoint_every=5000,
    ),
}

# What `--dataset NAME` alone starts from.
DEFAULT_PRESETS = {
    "glyphs": "glyphs-maml-5w1s",
    "omniglot": "omniglot-maml-5w1s",
    "sinusoid": "sinusoid-maml",
}


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
      jaxmeta.config.ConfigError: Unknown algorithm 'mamml'. Did you mean 'maml'? Known: maml.
    """
    tables = {
        "dataset": DATASETS,
        "algorithm": ALGORITHMS,
        "metagrad": METAGRADS,
        "estimator": ESTIMATORS,
        "inner_optimizer": INNER_OPTIMIZERS,
        "model": MODELS,
        "norm": NORMS,
        "outer_schedule": SCHEDULES,
    }
    for field, table in tables.items():
        check_name(field.replace("_", " "), getattr(config, field), table)
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
    # An option that would do nothing is a mistake of the caller's.
    if config.dataset != "omniglot" and config.split != Config.split:
        raise ConfigError(f"--split {config.split} is for --dataset omniglot; {config.dataset} has one split only.")
    if config.dataset == "sinusoid" and config.data_dir is not None:
        raise ConfigError(f"--dataset sinusoid reads no data: leave out --data-dir; given {config.data_dir}.")
    if config.estimator in ("evolution", "pes") and config.metagrad != Config.metagrad:
        raise ConfigError(f"--estimator {config.estimator} differentiates nothing: leave out --metagrad.")
    if config.seed >= 2**32:
        raise ConfigError(f"--seed must be below 2**32; given {config.seed}.")
    if config.dataset != "sinusoid" and config.ways < 2:
        raise ConfigError(f"--ways must be at least 2 to tell classes apart; given {config.ways}.")
    if config.dataset == "sinusoid" and config.ways != 1:
        raise ConfigError(f"--dataset sinusoid is regression and has no classes: use --ways 1; given {config.ways}.")


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


def to_json(config: Config) -> dict[str, Any]:
    """Turn a configuration into plain values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()}


def from_json(values: dict[str, Any]) -> Config:
    """Rebuild a configuration from plain values.

    Args:
      values: From `to_json`.

    Returns:
      The configuration.

    Raises:
      ConfigError: if it is damaged or of another version.
    """
    defaults = vars(Config())
    if set(values) != set(defaults):
        odd = sorted(set(values) ^ set(defaults))
        raise ConfigError(f"The stored configuration is damaged or of another version: see {', '.join(odd)}.")
    for name, default in defaults.items():
        optional = {"task_chunk": (int, type(None)), "data_dir": (str, type(None))}
        kinds = optional.get(name, (float, int) if isinstance(default, float) else (type(default),))
        if type(values[name]) not in kinds:
            raise ConfigError(f"The stored configuration is damaged: it has {name}={values[name]!r}.")
    data_dir = values.get("data_dir")
    config = Config(**{**values, "data_dir": None if data_dir is None else Path(data_dir)})
    check_config(config)
    return config


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
    options = {"filters": config.filters, "lowering": lowering}
    outputs = config.ways if dataset.kind == "classification" else 1
    model = factory(outputs, **{name: value for name, value in options.items() if name in takes})
    criterion = CRITERIA[dataset.kind]
    try:
        learner = ALGORITHMS[config.algorithm](
            model,
            inner_optimizer=INNER_OPTIMIZERS[config.inner_optimizer](config.inner_lr),
            num_steps=config.inner_steps,
            metagrad=METAGRADS[config.metagrad](),
            proximal=config.proximal,
            criterion=criterion,
            norm=config.norm,
            log_grad_norms=config.log_grad_norms,
        )
    except ValueError as error:
        raise ConfigError(f"--metagrad {config.metagrad}: {error}") from error
    rate = config.outer_lr
    if config.outer_schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.outer_lr, config.steps)
    optimizer = optax.adam(rate)
    estimator = ESTIMATORS[config.estimator]()
    train_step = make_train_step(learner, optimizer, estimator=estimator, task_chunk=config.task_chunk, mesh=mesh)
    return Parts(learner, criterion, optimizer, estimator, train_step)


def load_dataset(config: Config) -> Dataset:
    """Load the dataset that a configuration names."""
    loader = DATASETS[config.dataset]
    takes_split = "split" in inspect.signature(loader).parameters
    return loader(data_dir=config.data_dir, **({"split": config.split} if takes_split else {}))


def norm_in_use(parts: Parts, config: Config, example_inputs: jax.Array) -> str:
    """Tell which normalisation a result must report: "none" for a model without statistics."""
    _, state = jax.eval_shape(parts.learner.init, jax.random.key(0), example_inputs)
    return config.norm if jax.tree.leaves(state) else "none"
