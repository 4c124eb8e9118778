"""What `jaxmeta bench` runs: a checked request, load after load."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxmeta.bench.loads import LOADS, tiny
from jaxmeta.bench.process import measure_in_own_process
from jaxmeta.config import ConfigError, check_name
from jaxmeta.models import PRECISIONS


def check_request(names: Sequence[str], rounds: int, quick: bool, task_chunk: int | None, precision: str) -> None:
    """Refuse a request that cannot be met, before anything is measured.

    Args:
      names: Of loads.
      rounds: Figures for each load.
      quick: Whether the tiny forms are meant.
      task_chunk: Tasks computed at once, or None.
      precision: How exactly the network computes.

    Raises:
      ConfigError: what was given, what is needed, the closest valid name.

    Example:
      >>> check_request(["BB"], 5, False, None, "float32")
      Traceback (most recent call last):
      ...
      jaxmeta.config.ConfigError: Unknown load 'BB'. Did you mean 'B'? Known: A1, A5, B, C, D, E, F.
    """
    for name in names:
        check_name("load", name, LOADS)
    check_name("precision", precision, PRECISIONS)
    if rounds < 1:
        raise ConfigError(f"--rounds must be at least 1; given {rounds}.")
    for name in names:
        load = tiny(LOADS[name]) if quick else LOADS[name]
        if task_chunk is not None and (task_chunk < 1 or load.tasks % task_chunk):
            raise ConfigError(f"--chunk must divide the {load.tasks} tasks of load {name}; given {task_chunk}.")


def run_loads(
    names: Sequence[str],
    *,
    rounds: int,
    quick: bool = False,
    task_chunk: int | None = None,
    precision: str = "float32",
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Measure loads one after the other.

    Args:
      names: Of loads, in `LOADS`.
      rounds: Figures for each load.
      quick: The tiny form of each load: does it run?
      task_chunk: Tasks computed at once; None lets `plan` choose.
      precision: How exactly the network computes, a key of `PRECISIONS`.
      say: Told what goes on.

    Yields:
      A row for each load as soon as it is measured, for a load that failed with an "error".
    """
    for name in names:
        say(f"{name}: {(tiny(LOADS[name]) if quick else LOADS[name]).description}")
        row = measure_in_own_process(load=name, rounds=rounds, quick=quick, task_chunk=task_chunk, precision=precision)
        if "error" in row:
            say(f"{name}: {row['error']}")
        yield row
