"""Two runs judged on the same tasks: both numbers, and the difference with its own interval."""

from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxmeta.candidate import Candidate, Request, make_ready, open_run, result_of
from jaxmeta.checkpoint import CheckpointError
from jaxmeta.config import ConfigError, check_name
from jaxmeta.judgement import judged
from jaxmeta.metrics import paired_difference
from jaxmeta.paper_protocols import PROTOCOLS
from jaxmeta.protocols import differences, everything_of


def compare_runs(
    first: Path,
    second: Path,
    *,
    protocol: str | None = None,
    anyway: bool = False,
    episodes: int | None = None,
    mesh: Mesh | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Judge the best checkpoints of two runs on the same tasks.

    Args:
      first: The folder of a run.
      second: That of another.
      protocol: A row of `PROTOCOLS` for both; None for the own protocol of each.
      anyway: Also compare what has different fingerprints: other learners, or another judging.
      episodes: Number of tasks; None for that of the protocol.
      mesh: Devices that share the tasks; None for one.
      dataset: Judge both on this one; None for the own of each.
      data_dir: Where the data that is judged is now; None for the own of each.

    Returns:
      The two results, and the mean of `first - second` over tasks with its 95 % interval: that of the paired t
      test. It is null if the two did not meet the same tasks, which `anyway` allows. "differs" is all in which their
      protocols differ, with both values: also what is of the learners (steps, data of training, precision).

    Raises:
      ConfigError: if a run is missing or damaged, the protocol does not fit it, or the two have different
        fingerprints: says in what they differ.
      DataError: if data is missing or damaged.
    """
    if protocol is not None:
        check_name("protocol", protocol, PROTOCOLS)
    request = Request(preset=protocol, episodes=episodes, dataset=dataset, data_dir=data_dir)
    both = [_ready(out, request, mesh) for out in (first, second)]
    one, other = (ready.protocol for ready in both)
    differing = differences(one, other, everything_of)
    if differing and not anyway:
        listed = ", ".join(f"{name} {mine} and {theirs}" for name, (mine, theirs) in differing.items())
        if differences(one, other):
            raise ConfigError(
                f"{first} and {second} are judged differently ({listed}). Judge both by one --protocol, or compare "
                "them --anyway."
            )
        raise ConfigError(
            f"{first} and {second} are judged alike, on the same tasks, but the learners are not of one kind "
            f"({listed}). If that is what is to be compared, do it --anyway."
        )
    evaluations = [judged(ready.workspace, ready.train_state, ready.protocol) for ready in both]
    results = [result_of(ready, evaluation) for ready, evaluation in zip(both, evaluations, strict=True)]
    headline = both[0].workspace.headline
    compared = {"metric": headline, "first": results[0], "second": results[1]}
    mean = ci95 = None
    if paired := results[0]["episodes_hash"] == results[1]["episodes_hash"]:
        difference = paired_difference(*(evaluation.metrics[headline].per_task for evaluation in evaluations))
        # JSON knows no infinity: where an adaptation diverged there is no difference.
        mean, ci95 = (value if np.isfinite(value) else None for value in (difference.mean, difference.ci95))
    return {
        **compared,
        "difference": mean,
        "difference_ci95": ci95,
        "paired": paired,
        "differs": {name: list(values) for name, values in differing.items()},
    }


def _ready(out: Path, request: Request, mesh: Mesh | None) -> Candidate:
    workspace = open_run(out, request, mesh)
    try:
        return make_ready(workspace, out, request, mesh)
    except CheckpointError as error:
        # Nothing went wrong on the way: the caller chose a run that cannot be compared.
        raise ConfigError(str(error)) from error
    except ConfigError as error:
        # Of two runs, this one.
        raise ConfigError(f"{out}: {error}") from error
