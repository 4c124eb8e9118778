"""What every contender of `speed.py` shares: how it is given its problem, asked, and timed. NumPy only.

    python CONTENDER.py [NAME] PROBLEM.npz [--device cpu] [--precision float32]

A contender stays alive and does nothing between two requests, so that rounds can be interleaved. It reads one request
a line from standard input and answers with one line of JSON, the first unasked:

    (started)      {"ready": ..., "versions": ..., ...} or {"missing": NAME} or {"error": TEXT}
    gradient FILE  writes the meta-gradient in jaxmeta's names and layouts; {"loss": ...}
    prepare        compiles; {"compile_seconds": ..., "temp_bytes": ...} where there is something to compile
    go N           takes N meta-steps; {"seconds": [...], "loss": ..., ...}
    matmul         {"gflops": ...}: 2048x2048 in the precision that was asked for, the best of eight

The problem file holds everything in the dtype in which it is to be solved; in bfloat16 a contender rounds float32
where its network computes, and nothing that is float64.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

OUTER_RATE = 1e-3
MATMUL_SIZE = 2048


class Problem(NamedTuple):
    """`load` has the fields of `jaxmeta.bench.Load`; weights by name, as "body/Conv_0/kernel"."""

    load: SimpleNamespace
    weights: dict[str, np.ndarray]
    support: tuple[np.ndarray, np.ndarray]
    query: tuple[np.ndarray, np.ndarray]


class Contender(NamedTuple):
    """What a contender can do; `about` is added to its first answer, `device_peak` is in bytes where that is known."""

    gradient: Callable[[], tuple[float, dict[str, np.ndarray]]]
    prepare: Callable[[], dict]
    step: Callable[[], float]
    matmul: Callable[[], Any]
    about: dict
    device_peak: Callable[[], int | None] = lambda: None


def flatten(tree, prefix=""):
    """Nested dicts to `{"body/Conv_0/kernel": leaf, ...}`."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        path: leaf
        for name, inner in tree.items()
        for path, leaf in flatten(inner, f"{prefix}/{name}" if prefix else name).items()
    }


def unflatten(flat):
    tree = {}
    for path, leaf in flat.items():
        *outer, name = path.split("/")
        inner = tree
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[name] = leaf
    return tree


def write_problem(path, load: dict, weights, support, query):
    """Write a problem; support and query are `(inputs, targets)` with a leading task axis."""
    arrays = {f"weights/{name}": leaf for name, leaf in flatten(weights).items()}
    for part, (inputs, targets) in (("support", support), ("query", query)):
        arrays |= {f"{part}/inputs": inputs, f"{part}/targets": targets}
    np.savez(path, load=json.dumps(load), **arrays)


def read_problem(path) -> Problem:
    with np.load(path) as file:
        arrays = dict(file)
    weights = {name.split("/", 1)[1]: leaf for name, leaf in arrays.items() if name.startswith("weights/")}
    parts = [(arrays[f"{part}/inputs"], arrays[f"{part}/targets"]) for part in ("support", "query")]
    return Problem(SimpleNamespace(**json.loads(str(arrays["load"]))), weights, *parts)


def memory(field):
    """VmRSS or VmHWM, in bytes. Not getrusage, whose peak may be that of the process which started this one."""
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def machine_seconds():
    """CPU seconds that everybody on this machine has used so far; None where it does not say."""
    if not os.path.exists("/proc/stat"):
        return None
    with open("/proc/stat") as status:
        ticks = [int(value) for value in status.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def versions_of(*packages):
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def go(contender, steps):
    """Take steps and time each; also the CPU time of this process and of all others meanwhile."""
    everybody, own, begin = machine_seconds(), time.process_time(), time.perf_counter()
    seconds, loss = [], None
    for _ in range(steps):
        start = time.perf_counter()
        loss = contender.step()
        seconds.append(time.perf_counter() - start)
    wall, own = time.perf_counter() - begin, time.process_time() - own
    others = None if everybody is None else max(0.0, (machine_seconds() - everybody - own) / wall)
    peaks = {"peak_rss": memory("VmHWM"), "device_peak": contender.device_peak()}
    return {"seconds": seconds, "loss": loss, "cores_used": own / wall, "others_used": others, **peaks}


def best_matmul(product):
    product()
    best = float("inf")
    for _ in range(8):
        begin = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - begin)
    return {"gflops": 2 * MATMUL_SIZE**3 / 1e9 / best}


def answer(contender, request):
    verb, *rest = request.split(maxsplit=1)
    if verb == "gradient":
        loss, gradient = contender.gradient()
        np.savez(rest[0], **gradient)
        return {"loss": loss}
    if verb == "prepare":
        # Compilers take memory of their own: the peak so far is told apart from that of the steps.
        return {**contender.prepare(), "compiled_rss": memory("VmHWM")}
    if verb == "go":
        return go(contender, int(rest[0]))
    if verb == "matmul":
        return best_matmul(contender.matmul)
    raise ValueError(f"unknown request {request!r}")


def serve(make, names=()):
    """Build a contender by `make(problem, options) -> Contender` and answer requests until there are no more."""
    # Libraries print; the answers go where standard output was, and nothing else does.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(value):
        print(json.dumps(value), file=answers, flush=True)

    parser = argparse.ArgumentParser()
    if names:
        parser.add_argument("name", choices=names)
    parser.add_argument("problem")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--chunk", type=int, help="tasks at once, where a contender has a choice")
    parser.add_argument("--precision", choices=["float32", "tf32", "bfloat16"], default="float32")
    options = parser.parse_args()
    try:
        problem = read_problem(options.problem)
        contender = make(problem, options)
    except ImportError as error:
        say({"missing": error.name or str(error)})
        return
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"[:300]})
        raise
    say({"ready": True, "rss_before": memory("VmRSS"), **contender.about})
    idle_since = time.process_time()
    for request in sys.stdin:
        # What was burnt between two requests: threads that spin would slow the others.
        idle = time.process_time() - idle_since
        say({"idle_cpu": idle, **answer(contender, request.strip())})
        idle_since = time.process_time()
