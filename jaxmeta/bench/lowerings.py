"""Measure every way of computing the convolutions of a program, and make the table of the fastest."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from jaxmeta.bench.table import duration
from jaxmeta.nn.contraction import Static, contract
from jaxmeta.nn.lowering_table import Case, LoweringTable, covering, this_platform
from jaxmeta.nn.processor import device_name

# Seconds that a round of one way should take, and the most calls in it.
ROUND_SECONDS, ROUND_CALLS = 0.05, 100
# A way that takes so many times as long as the best is not run again.
HOPELESS = 5.0
# Another way than the rule's must save a tenth: less is noise.
WORTHWHILE = 0.9


class Timing(NamedTuple):
    """What was measured of one case.

    Attributes:
      case: The case.
      count: How often it is in the program.
      seconds: Of one contraction, by each way that covers it, the rule's first: the median of the rounds; of a way that
        was given up the one time that it took, or would have taken. A way that failed is left out.
      chosen: The way of the table.
    """

    case: Case
    count: int
    seconds: dict[str, float]
    chosen: str


def measure_lowerings(
    cases: Mapping[Case, int], *, rounds: int = 3, say: Callable[[str], None] | None = None
) -> tuple[LoweringTable, list[Timing]]:
    """Measure cases on the default device, each way compiled alone, on random numbers.

    Args:
      cases: From `contractions_in`.
      rounds: Stretches of 0.05 s or one call, in turn for all ways; their median counts.
      say: Called with a line on each case when it is measured.

    Returns:
      The table, and what was measured in the order of the cases. The rule's way stays where no other is a tenth
      faster. A case that no way could compute here, for want of memory, is in neither.

    Raises:
      ValueError: for fewer rounds than one, or numbers that JAX does not have here.

    Example:
      >>> from jaxmeta.nn.lowerings import Geometry
      >>> case = Case("output", Geometry((4, 4), (3, 3)), (1, 4, 4, 2), (3, 3, 2, 2))
      >>> table, timings = measure_lowerings({case: 1}, rounds=1)
      >>> table.lookup(this_platform(), case) in timings[0].seconds
      True
    """
    if rounds < 1:
        raise ValueError(f"measure_lowerings needs one round or more; given {rounds}.")
    platform, timings = this_platform(), []
    for number, (case, count) in enumerate(cases.items(), 1):
        seconds = _measure(case, platform, rounds)
        if not seconds:
            continue
        timings.append(Timing(case, count, seconds, _choose(seconds)))
        if say is not None:
            say(f"{number} of {len(cases)}: {describe(timings[-1])}")
    rows = tuple((platform, timing.case, timing.chosen) for timing in timings)
    return LoweringTable(device_name(), rows), timings


def describe(timing: Timing) -> str:
    """Write a timing as one line.

    Args:
      timing: From `measure_lowerings`.

    Returns:
      What is computed, how long each way took, what was chosen.

    Example:
      >>> from jaxmeta.nn.lowerings import Geometry
      >>> case = Case("output", Geometry((8, 8), (3, 3)), (4, 8, 8, 3), (3, 3, 3, 5))
      >>> describe(Timing(case, 2, {"patches": 0.001, "xla": 0.0005}, "xla"))
      'output of [4, 8, 8, 3] [3, 3, 3, 5] twice: patches 1.00 ms, xla 0.500 ms: xla'
    """
    case, times = timing.case, {1: "once", 2: "twice"}.get(timing.count, f"{timing.count} times")
    took = ", ".join(f"{name} {duration(seconds)}" for name, seconds in timing.seconds.items())
    return f"{case.missing} of {list(case.first)} {list(case.second)} {times}: {took}: {timing.chosen}"


def _choose(seconds: dict[str, float]) -> str:
    """Choose the first, which is the rule's, unless another is clearly faster."""
    first, best = next(iter(seconds)), min(seconds, key=lambda name: seconds[name])
    return best if seconds[best] <= WORTHWHILE * seconds[first] else first


def _measure(case: Case, platform: str, rounds: int) -> dict[str, float]:
    """Give the seconds of each way: once for all, then in rounds for those that can still win."""
    operands = _random_operands(case)
    seconds, ways = {}, {}
    for name in covering(case, platform):
        best = min(seconds.values(), default=float("inf"))
        if name == "xla" and platform == "cpu" and case.per_task and case.first[0] > 2:
            # A grouped convolution may take a thousand times as long. Two tasks are the fewest that make one.
            pair = _first_call(name, case, [operand[:2] for operand in operands])[1]
            if pair * case.first[0] / 2 > HOPELESS * best:
                seconds[name] = pair * case.first[0] / 2
                continue
        try:
            ways[name], seconds[name] = _first_call(name, case, operands)
        except jax.errors.JaxRuntimeError:
            # What does not fit the device cannot be chosen for it.
            continue
    best = min(seconds.values(), default=0.0)
    hopeful = {name: way for name, way in ways.items() if seconds[name] <= HOPELESS * best}
    calls = {name: max(1, min(ROUND_CALLS, round(ROUND_SECONDS / seconds[name]))) for name in hopeful}
    taken = {name: [] for name in hopeful}
    for _ in range(rounds):
        for name, way in hopeful.items():
            taken[name].append(_timed(way, operands, calls[name], in_turn=platform == "cpu"))
    return seconds | {name: statistics.median(of_way) for name, of_way in taken.items()}


def _random_operands(case: Case) -> list[jax.Array]:
    keys, given = jax.random.split(jax.random.key(0)), jax.dtypes.canonicalize_dtype(case.dtype).name
    if given != case.dtype:
        raise ValueError(f"A case needs {case.dtype} and JAX makes {given} of it. Set JAX_ENABLE_X64 for float64.")
    shapes = zip(keys, (case.first, case.second), strict=True)
    return [jax.random.normal(key, shape).astype(case.dtype) for key, shape in shapes]


def _first_call(name: str, case: Case, operands) -> tuple[Callable, float]:
    """Compile a way and warm it up; give it with the seconds of its next call."""
    static = Static(case.missing, case.geometry, name, case.precision)
    way = jax.jit(lambda first, second: contract(first, second, static))
    way(*operands).block_until_ready()
    return way, _timed(way, operands, 1)


def _timed(way: Callable, operands, calls: int, *, in_turn: bool = True) -> float:
    """Give the seconds of one call, as the mean of several, each waited for or only the last."""
    begin, result = time.perf_counter(), None
    for _ in range(calls):
        result = way(*operands)
        # A CPU would compute several at once; an accelerator works through a queue, which hides the starting.
        if in_turn:
            result.block_until_ready()
    jax.block_until_ready(result)
    return (time.perf_counter() - begin) / calls
