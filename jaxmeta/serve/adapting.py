"""A trained run opened without its data, and adapted to labelled images."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmeta import checkpoint
from jaxmeta.algorithms import ALGORITHMS, options_of
from jaxmeta.base import MetaLearner, PyTree
from jaxmeta.calibration import Calibration
from jaxmeta.config import Config, ConfigError
from jaxmeta.config_json import to_json
from jaxmeta.data import Dataset
from jaxmeta.data.pools import ImageRecipe
from jaxmeta.folder import data_to_json, read_calibration, read_config, read_data
from jaxmeta.nn import LoweringTable
from jaxmeta.parts import build
from jaxmeta.serve.classifier import Classifier, make_adapt, make_forward, padded_support
from jaxmeta.serve.files import Support
from jaxmeta.serve.outputs import Served, tells_apart, ways_to_serve
from jaxmeta.workspace import find_lowering, open_workspace, stand_in, state_like


class Opened(NamedTuple):
    """A trained run, opened without its data.

    Attributes:
      run: Its folder.
      config: Its configuration.
      dataset: What its learner was built for, without images.
      recipe: How images become pixels.
      lowering: How convolutions are computed.
      meta_params: Of the best checkpoint.
      state: Of the best checkpoint.
      step: Its outer step.
      norm: Whose statistics normalise the queries; "none" if nothing does.
      calibration: How sure its predictions are, if that is known.
    """

    run: Path
    config: Config
    dataset: Dataset
    recipe: ImageRecipe
    lowering: str | LoweringTable
    meta_params: PyTree
    state: PyTree
    step: int
    norm: str
    calibration: Calibration | None


def open_run(run: Path) -> Opened:
    """Read the best checkpoint of a run, and what its learner was built for; no data is loaded.

    Args:
      run: The run's folder.

    Returns:
      What was `Opened`.

    Raises:
      ConfigError: if there is no run, or it has no classes.
      CheckpointError: if no checkpoint can be read.
    """
    config = read_config(run)
    dataset = read_data(run, config)
    if dataset.kind != "classification":
        raise ConfigError(f"The run in {run} is {dataset.kind}, without classes: train one on a dataset of images.")
    if dataset.recipe is None:
        raise ConfigError(f"The images of {dataset.name}, which {run} was trained on, are not made of image files.")
    lowering = find_lowering(run)
    workspace = open_workspace(config, lowering=lowering, dataset=stand_in(dataset, config))
    restored = checkpoint.restore(run / "checkpoints", state_like(workspace), best=True)
    meta_params, state = restored.train_state.meta_params, restored.train_state.state
    known = dataset.recipe, lowering, meta_params, state, restored.step, workspace.norm, read_calibration(run)
    return Opened(run, config, dataset, *known)


def adapt_to_support(opened: Opened, support: Support, inner_steps: int | None = None) -> Classifier:
    """Adapt a run to labelled images, of any number of classes that its learner can tell apart.

    Args:
      opened: The run.
      support: The labelled images.
      inner_steps: Inner steps; None for as many as the run was evaluated with.

    Returns:
      The `Classifier`.

    Raises:
      ConfigError: for inner steps that a learner does not take, or more classes than it can tell apart.
      FloatingPointError: if the adaptation diverges.
    """
    config, classes = opened.config, len(support.class_names)
    looped = "num_steps" in options_of(ALGORITHMS[config.algorithm])
    if inner_steps is not None and not looped:
        raise ConfigError(f"--algorithm {config.algorithm} has no inner loop: leave out --eval-inner-steps.")
    if inner_steps is not None and inner_steps < 0:
        raise ConfigError(f"--eval-inner-steps must be at least 0; given {inner_steps}.")
    num_steps = config.eval_inner_steps if inner_steps is None else inner_steps
    trained = max(config.ways, config.train_ways or 0)
    for served in _ways(opened, trained, classes):
        adapt = jax.jit(make_adapt(served.learner, num_steps))
        adapted = adapt(served.meta_params, served.state, *padded_support(support))
        forward = jax.jit(make_forward(served.learner, classes))
        calibration, names = opened.calibration, support.class_names
        temperature = None if calibration is None else calibration.temperature
        origin = _origin(opened, served, num_steps)
        classifier = Classifier(names, opened.recipe, adapted, forward, temperature, support, origin)
        outputs = classifier.logits(support.images.pixels)
        if not np.isfinite(outputs).all():
            steps = f": it takes {num_steps} inner steps; ask for fewer by --eval-inner-steps" if looped else ""
            raise FloatingPointError(f"The adaptation to {classes} classes diverged{steps}.")
        if served.made != "mean" or tells_apart(outputs):
            return classifier
    raise ConfigError(
        f"The support folder has {classes} classes, and the learner of {opened.run} ({config.algorithm}, trained with "
        f"{trained} ways) can tell {trained} apart at most. Leave out some classes, or train a run with "
        f"--ways {classes}; protonet, for one, takes any number."
    )


def learner_maker(config: Config, dataset: Dataset, lowering: str | LoweringTable) -> Callable[[int], MetaLearner]:
    """Give the function that makes a run's learner for a number of classes."""

    def make_learner(classes: int) -> MetaLearner:
        return build(dataclasses.replace(config, ways=classes, train_ways=None), dataset, lowering=lowering).learner

    return make_learner


def _ways(opened: Opened, trained: int, classes: int):
    config, recipe = opened.config, opened.recipe
    make_learner = learner_maker(config, opened.dataset, opened.lowering)
    example = jax.ShapeDtypeStruct((config.ways, *recipe[:3]), np.float32)
    reads_labels = "ways" in options_of(ALGORITHMS[config.algorithm])
    numbers = opened.meta_params, opened.state
    return ways_to_serve(make_learner, trained, classes, *numbers, example, reads_labels=reads_labels)


def _origin(opened: Opened, served: Served, num_steps: int) -> dict[str, Any]:
    """Say in plain values where a classifier is from, and all that it takes to build its learner again."""
    config, lowering, calibration = opened.config, opened.lowering, opened.calibration
    return {
        "run": str(opened.run),
        "checkpoint_step": opened.step,
        # Where the data of training lies is nothing to those who get the classifier.
        "config": to_json(dataclasses.replace(config, data_dir=None)),
        "data": data_to_json(opened.dataset),
        "lowering": lowering.to_json() if isinstance(lowering, LoweringTable) else lowering,
        "norm": opened.norm,
        "inner_steps": num_steps,
        "outputs": served.outputs,
        "made": served.made,
        "calibration": None if calibration is None else calibration._asdict(),
    }
