"""What benchmarks of meta-gradients share: options, the machine described, compilation and interleaved timing."""

import argparse
import os
import platform
import time
from pathlib import Path

import jax
import numpy as np


def parse(documentation, script, rounds, quick):
    """Return the options; `--json` is by default beside the script, and nowhere with `--quick`."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(script).with_suffix(".json")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--json", type=Path, help=f"file for the figures; {beside.name} beside this script if not --quick"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    elif options.json is None:
        options.json = beside
    return options


def machine():
    """Describe and print where this runs."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{device.device_kind}, {platform.machine()}, {cores} cores, jax {jax.__version__}")
    return {"device": device.device_kind, "platform": platform.machine(), "cores": cores, "jax": jax.__version__}


def compile_meta_gradient(function, args, expected=None):
    """Compile `args -> value, grads`; return a row of figures, the compiled function and its flat gradient.

    The row says how far the gradient is from the expected one, in the 2-norm and relative to it.
    """
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - begin
    grads = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(compiled(*args)[1])])
    expected = grads if expected is None else expected
    row = {
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": seconds,
        "gradient_difference": float(np.linalg.norm(grads - expected) / np.linalg.norm(expected)),
        "seconds": [],
    }
    return row, compiled, grads


def time_in_turn(rows, compiled, args, rounds):
    """Append the seconds of every round to every row: interleaved, so that a busy moment hits all alike."""
    for _ in range(rounds):
        for row, call in zip(rows, compiled, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(call(*args))
            row["seconds"].append(time.perf_counter() - begin)
