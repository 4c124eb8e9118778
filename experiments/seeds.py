"""Seeds of an experiment one after another, or a few at a time."""

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Give a command the option of `each_seed`."""
    parser.add_argument(
        "--jobs", type=int, default=1, help="seeds at a time, in threads; 2 for two CPU cores, 1 for a GPU (default)"
    )


def each_seed(run_seed: Callable[[int], Result], seeds: int, jobs: int) -> list[Result]:
    """Run each seed, `jobs` of them at a time, and give their results in order.

    JAX compiles and computes without Python's lock, and small programs do not fill two cores: compiling one seed's
    while another's runs is what threads are for here. Figures do not depend on it, seconds do.

    Args:
      run_seed: From a seed to its result; prints what it likes.
      seeds: 0, 1, ...
      jobs: At most so many at a time.

    Returns:
      The results.
    """
    if jobs == 1 or seeds == 1:
        return [run_seed(seed) for seed in range(seeds)]
    pool = ThreadPoolExecutor(jobs)
    try:
        results = list(pool.map(run_seed, range(seeds)))
    except KeyboardInterrupt:
        # Threads that compute cannot be stopped, and Python would wait for them.
        print("Interrupted.", file=sys.stderr, flush=True)
        os._exit(130)
    pool.shutdown()
    return results
