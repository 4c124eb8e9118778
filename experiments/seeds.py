"""Seeds of an experiment one after another, or a few at a time."""

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Give a command the options of `each_seed`."""
    parser.add_argument("--seeds", type=one_or_more, default=3, help="how many; default 3")
    parser.add_argument("--first-seed", type=int, default=0, help="to confirm on others what was chosen on these")
    parser.add_argument(
        "--jobs", type=one_or_more, default=1, help="seeds at a time, in threads: 2 for two CPU cores; default 1"
    )


def one_or_more(text: str) -> int:
    """Read a count for argparse, which says what was wrong."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"1 or more is needed; given {number}")
    return number


def each_seed(run_seed: Callable[[int], Result], options: argparse.Namespace) -> list[Result]:
    """Run each seed, `jobs` of them at a time, and give their results in order.

    JAX compiles and computes without Python's lock, and small programs do not fill two cores: compiling one seed's
    while another's runs is what threads are for here. Figures do not depend on it; seconds do, and what an experiment
    makes of seconds. When a seed fails no further ones begin, and the program ends with those that are running.

    Args:
      run_seed: From a seed to its result; prints what it likes.
      options: With those of `add_seeds`.

    Returns:
      The results.
    """
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if min(options.jobs, options.seeds) == 1:
        return [run_seed(seed) for seed in seeds]
    pool, errors = ThreadPoolExecutor(options.jobs), []

    def guarded(seed: int) -> Result | None:
        # The thread of the one that failed would begin another before it is told not to.
        if errors:
            return None
        try:
            return run_seed(seed)
        except Exception as error:
            errors.append(error)
            raise

    try:
        running = [pool.submit(guarded, seed) for seed in seeds]
        wait(running, return_when=FIRST_EXCEPTION)
    except KeyboardInterrupt:
        # Threads that compute cannot be stopped, and Python would wait for them.
        print("Interrupted.", file=sys.stderr, flush=True)
        os._exit(130)
    pool.shutdown(wait=False, cancel_futures=True)
    if errors:
        raise errors[0]
    return [result for one in running if (result := one.result()) is not None]
