"""What is asked for when a run is judged, and the protocol that comes of it."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from jaxmeta.algorithms import ALGORITHMS, options_of
from jaxmeta.config import Config, ConfigError, check_dataset, check_name
from jaxmeta.paper_protocols import PROTOCOLS
from jaxmeta.parts import is_own_dataset
from jaxmeta.protocols import DRAWN, FIXED, Protocol


class Request(NamedTuple):
    """What is asked for beside the run's own protocol; None leaves it as it is.

    Attributes:
      preset: A row of `PROTOCOLS`.
      part: "test", "validation" or "train".
      episodes: Number of tasks.
      inner_steps: Inner steps.
      ensemble: How many checkpoints predict together.
      dataset: Another dataset to judge on.
      data_dir: Where the data that is judged is now.
      latest: The latest checkpoint, not the best.
      ways: Classes in a task.
      shots: Support examples of each class.
    """

    preset: str | None = None
    part: str = "test"
    episodes: int | None = None
    inner_steps: int | None = None
    ensemble: int | None = None
    dataset: str | None = None
    data_dir: Path | None = None
    latest: bool = False
    ways: int | None = None
    shots: int | None = None


def is_elsewhere(config: Config, request: Request) -> bool:
    """Tell whether a run is judged on other data than its own, so that its own need not be there."""
    return request.preset in FIXED or (request.dataset is not None and not is_own_dataset(config, request.dataset))


def own_config(config: Config, request: Request) -> Config:
    """Give the configuration that a run is opened with: its data may lie elsewhere now."""
    if request.data_dir is None or is_elsewhere(config, request):
        return config
    return dataclasses.replace(config, data_dir=request.data_dir)


def requested(own: Protocol, config: Config, request: Request) -> Protocol:
    """Change a run's own protocol as is asked for: by the preset, and then by what is said of single fields.

    Args:
      own: The run's own protocol.
      config: Its configuration.
      request: What is asked for.

    Returns:
      The protocol.

    Raises:
      ConfigError: for an unknown preset or dataset, a number that nothing can be judged by or that is nothing to the
        learner or to the preset, or a preset whose classes the run was trained on.
    """
    if request.preset is not None:
        check_name("protocol", request.preset, PROTOCOLS)
    if request.dataset is not None:
        check_dataset(request.dataset)
    looped = "num_steps" in options_of(ALGORITHMS[config.algorithm])
    if request.inner_steps and not looped:
        raise ConfigError(
            f"--algorithm {config.algorithm} has no inner loop: leave out --eval-inner-steps {request.inner_steps}."
        )
    try:
        protocol = _elsewhere(own, config, request)
        if request.preset is not None:
            protocol = PROTOCOLS[request.preset](protocol, config.algorithm)
        if protocol.episodes_from not in DRAWN:
            _check_fixed(protocol, request)
        changes = _changes(protocol, request)
        return dataclasses.replace(protocol, **{name: value for name, value in changes.items() if value is not None})
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _elsewhere(own: Protocol, config: Config, request: Request) -> Protocol:
    """Change the data, before the preset says what becomes of it."""
    if request.dataset is None or is_own_dataset(config, request.dataset):
        return own
    # Only omniglot has more than one split, and its first is what the default names.
    trained = {"trained_on": own.dataset, "trained_split": own.split}
    return dataclasses.replace(own, dataset=request.dataset, split=Config.split, image_size=None, **trained)


def _changes(protocol: Protocol, request: Request) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "episodes": request.episodes,
        "eval_inner_steps": request.inner_steps,
        "ensemble": request.ensemble,
        "ways": request.ways,
        "shots": request.shots,
    }
    if request.latest:
        if (request.ensemble or protocol.ensemble) > 1:
            raise ConfigError("--latest judges one checkpoint, and an ensemble the best ones: leave one of them out.")
        changes["checkpoint"] = "latest"
    return changes


def _check_fixed(protocol: Protocol, request: Request) -> None:
    """Refuse what fixed tasks cannot be: other tasks, or another number of them."""
    asked = {"split": request.part, "dataset": request.dataset}
    asked |= {name: getattr(request, name) for name in ("episodes", "ways", "shots")}
    theirs = {"split": protocol.part, "dataset": None}
    for name, value in asked.items():
        if value is not None and value != theirs.get(name, getattr(protocol, name)):
            raise ConfigError(
                f"--protocol {request.preset} has tasks of its own ({protocol.episodes} of {protocol.ways} ways and "
                f"{protocol.shots} shots): leave out --{name} {value}."
            )
