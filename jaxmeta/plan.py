"""How much is computed at once, and what of an inner loop is kept: by what fits in memory, and by what is fastest."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from jaxmeta.device_memory import mib

# Inputs of a chunk, in numbers: 80 Omniglot images. Measured on two cores, strided conv4, 10 images
# a task: with 64 filters 0.20 s a step for single tasks and 0.15 s for chunks of 2, 4 or 8; with 32
# filters 0.050 s for chunks of 2, 0.037 s for 8 and 0.034 s for 16.
CPU_CHUNK_INPUTS = 65536
# Strategies that give the gradient of `unrolled`, with less and less that is kept.
SAME_GRADIENT = ("unrolled", "mixed_mode", "remat", "remat_group")
# What another way must be below, of the time of the best so far: clocks differ by as much between two measurements.
SHARE_OF_TIME = 0.95


class Candidate(NamedTuple):
    """One way of computing a step.

    Attributes:
      metagrad: A key of `METAGRADS`; None for a learner that takes none.
      task_chunk: Tasks computed at once on a device.
      precision: A key of `PRECISIONS`; None for that of the model.
      members: Runs of a population computed at once on a device; None for a single run.
    """

    metagrad: str | None
    task_chunk: int
    precision: str | None = None
    members: int | None = None


class Measured(NamedTuple):
    """What a candidate needs on each device.

    Attributes:
      candidate: The candidate.
      num_bytes: Of its program, by XLA's memory analysis: arguments, results and temporaries.
      compile_seconds: Tracing and compilation.
      step_seconds: Of one step; None where it was not run.
    """

    candidate: Candidate
    num_bytes: int
    compile_seconds: float
    step_seconds: float | None


class Plan(NamedTuple):
    """What was chosen, and among what.

    Attributes:
      chosen: The candidate to use.
      tried: Every candidate that was compiled, in the order in which they were.
      budget: Bytes that a device may use; None if that is not known.
    """

    chosen: Candidate
    tried: tuple[Measured, ...]
    budget: int | None


class DoesNotFit(ValueError):
    """No way of computing the step fits in the memory that there is."""


def choose_task_chunk(num_tasks: int, inputs_per_task: int, *, backend: str | None = None) -> int:
    """Choose how many tasks of a step are computed at once.

    On a CPU a few tasks whose activations stay in the cache beat all of them at once; an
    accelerator wants all of them.

    Args:
      num_tasks: Tasks in a step.
      inputs_per_task: Numbers in the inputs of a task, support and query: pixels of all images.
      backend: As `jax.default_backend()`, which is the default.

    Returns:
      A divisor of `num_tasks`.

    Example:
      >>> choose_task_chunk(32, 10 * 28 * 28, backend="cpu"), choose_task_chunk(32, 10 * 28 * 28, backend="gpu")
      (8, 32)
    """
    backend = jax.default_backend() if backend is None else backend
    if backend != "cpu":
        return num_tasks
    return max(size for size in divisors(num_tasks) if size == 1 or size * inputs_per_task <= CPU_CHUNK_INPUTS)


def divisors(number: int) -> list[int]:
    """List what divides a number, from 1 to itself."""
    return [size for size in range(1, number + 1) if number % size == 0]


def different_chunks(num_tasks: int, wanted: int, on_device: int) -> list[int]:
    """List the chunks that are programs of their own: those that cut a device's tasks into other numbers of parts.

    Args:
      num_tasks: Tasks in a step.
      wanted: The chunk to begin with, which stands for all that are the same program.
      on_device: Tasks of a step on each device.

    Returns:
      Divisors of `num_tasks`.

    Example:
      >>> different_chunks(32, 32, 32), different_chunks(32, 32, 4), different_chunks(12, 1, 6)
      ([1, 2, 4, 8, 16, 32], [1, 2, 32], [1, 2, 3, 6])
    """
    by_parts = {math.ceil(on_device / size): size for size in (*reversed(divisors(num_tasks)), wanted)}
    return sorted(by_parts.values())


def fit_plan(
    measure: Callable[[Candidate], Measured | None],
    wanted: Candidate,
    *,
    budget: int | None,
    chunks: Sequence[int] | None = None,
    others: Sequence[str] = (),
    precisions: Sequence[str] = (),
) -> Plan:
    """Take what is wanted if it fits in memory, else the next smaller that does.

    First the members of a population at once are halved, or what comes nearest among their divisors, then the
    chunk of tasks, then the strategy changed for one that keeps less, and last the precision, which alone changes
    more than the last digits.

    Args:
      measure: Compiles a candidate; need not run it. None for a strategy that cannot serve the run.
      wanted: What to begin with.
      budget: Bytes that a device may use; None for no limit.
      chunks: What a smaller chunk may be; None: any divisor of the wanted one.
      others: Strategies that may take the place of the wanted one.
      precisions: Precisions that may.

    Returns:
      The `Plan`.

    Raises:
      DoesNotFit: if nothing does; it says by how much, and what would.
      ValueError: if no strategy can serve.

    Example:
      >>> def measure(candidate):
      ...     return Measured(candidate, 100 * candidate.task_chunk, 0.0, None)
      >>> fit_plan(measure, Candidate("unrolled", 16), budget=500).chosen.task_chunk
      4
    """
    tried, queue = [], [wanted]
    for name in ("members", "task_chunk"):
        sizes = halved(getattr(wanted, name) or 1, chunks if name == "task_chunk" else None)
        queue += [queue[-1]._replace(**{name: size}) for size in sizes]
    smallest = queue[-1]
    strategies = (wanted.metagrad, *(metagrad for metagrad in others if metagrad != wanted.metagrad))
    queue += [smallest._replace(metagrad=metagrad) for metagrad in strategies[1:]]
    queue += [smallest._replace(metagrad=way, precision=precision) for precision in precisions for way in strategies]
    for candidate in queue:
        one = measure(candidate)
        if one is None and candidate == wanted:
            if len(strategies) == 1:
                raise ValueError(f"The strategy {wanted.metagrad!r} cannot serve, and there is no other in its place.")
            wanted, others = wanted._replace(metagrad=strategies[1]), strategies[2:]
            return fit_plan(measure, wanted, budget=budget, chunks=chunks, others=others, precisions=precisions)
        if one is None:
            continue
        tried.append(one)
        if budget is None or one.num_bytes <= budget:
            return Plan(candidate, tuple(tried), budget)
    assert budget is not None
    least = min(tried, key=lambda one: one.num_bytes)
    strategy = f" --metagrad {least.candidate.metagrad}" if least.candidate.metagrad else ""
    strategy += f" --precision {least.candidate.precision}" if least.candidate.precision in precisions else ""
    in_turn, fewer = (", run by run", "--seeds, ") if least.candidate.members else ("", "")
    raise DoesNotFit(
        f"A step needs {mib(least.num_bytes)} on each device even with --task-chunk {least.candidate.task_chunk}"
        f"{strategy}{in_turn}, and {mib(budget)} may be used: {mib(least.num_bytes - budget)} too "
        f"much. Use fewer {fewer}queries, filters or inner steps, or a device with that much memory (--memory-mib)."
    )


def fastest_plan(
    measure: Callable[[Candidate], Measured | None],
    wanted: Candidate,
    *,
    chunks: Sequence[int],
    budget: int | None,
    others: Sequence[str] = (),
    precisions: Sequence[str] = (),
) -> Plan:
    """Search for the fastest candidate that fits, from what is wanted on.

    The chunk goes up and down among those given, about by half, while steps become faster by five percent; with
    the best chunk the strategies are tried, and with the best of these the precisions. What does not
    fit is not run.

    Args:
      measure: Compiles a candidate, and runs it if it is within the budget. None for a strategy that cannot
        serve the run.
      wanted: What to begin with.
      chunks: What another chunk may be.
      budget: Bytes that a device may use; None for no limit.
      others: Strategies that may take the place of the wanted one.
      precisions: Precisions that may.

    Returns:
      The `Plan`.

    Raises:
      DoesNotFit: if nothing does.

    Example:
      >>> def measure(candidate):
      ...     return Measured(candidate, 100 * candidate.task_chunk, 0.0, 1.0 / candidate.task_chunk)
      >>> fastest_plan(measure, Candidate("unrolled", 2), chunks=[1, 2, 4, 8], budget=500).chosen
      Candidate(metagrad='unrolled', task_chunk=4, precision=None, members=None)
    """
    first = fit_plan(measure, wanted, budget=budget, chunks=chunks, others=others, precisions=precisions)
    tried = list(first.tried)
    best = tried[-1]

    def better(candidate: Candidate) -> bool:
        nonlocal best
        if any(one.candidate == candidate for one in tried):
            return False
        one = measure(candidate)
        if one is None:
            return False
        tried.append(one)
        too_large = budget is not None and one.num_bytes > budget
        if too_large or one.step_seconds is None or one.step_seconds >= SHARE_OF_TIME * (best.step_seconds or 0.0):
            return False
        best = one
        return True

    for next_chunk in (_twice, _half):
        while (chunk := next_chunk(best.candidate.task_chunk, chunks)) and better(
            best.candidate._replace(task_chunk=chunk)
        ):
            pass
    for metagrad in others:
        better(best.candidate._replace(metagrad=metagrad))
    for precision in precisions:
        better(best.candidate._replace(precision=precision))
    return Plan(best.candidate, tuple(tried), budget)


def halved(size: int, among: Sequence[int] | None = None) -> list[int]:
    """List what comes nearest to a half, and to a half of that and so on, among some sizes or all divisors."""
    sizes = []
    while less := _half(size, divisors(size) if among is None else among):
        sizes.append(size := less)
    return sizes


def _twice(chunk: int, chunks: Sequence[int]) -> int | None:
    return min((size for size in chunks if size >= 2 * chunk), default=None)


def _half(chunk: int, chunks: Sequence[int]) -> int | None:
    return max((size for size in chunks if 2 * size <= chunk), default=None)


def plan_table(plan: Plan) -> str:
    """Write a plan as a Markdown table, with what was chosen and why.

    Args:
      plan: The plan.

    Returns:
      Markdown.

    Example:
      >>> one = Measured(Candidate("unrolled", 8), 3 * 2**20, 1.0, 0.5)
      >>> print(plan_table(Plan(one.candidate, (one,), None)).splitlines()[2])
      | unrolled | 8 | - | 3 | 1.0 | 0.5000 | chosen |
    """
    of_population = any(one.candidate.members for one in plan.tried)
    heads = ["metagrad", "task chunk", "precision", *(["runs at once"] if of_population else [])]
    heads += ["MiB a device", "compile s", "s a step"]
    lines = [f"| {' | '.join(heads)} | |", "| --- " * (len(heads) + 1) + "|"]
    for one in plan.tried:
        step = "-" if one.step_seconds is None else f"{one.step_seconds:.4f}"
        too_large = plan.budget is not None and one.num_bytes > plan.budget
        verdict = "chosen" if one.candidate == plan.chosen else "does not fit" if too_large else "no faster"
        numbers = f"{one.num_bytes / 2**20:.0f} | {one.compile_seconds:.1f} | {step}"
        way = " | ".join(str(value or "-") for value in one.candidate[: len(heads) - 3])
        lines.append(f"| {way} | {numbers} | {verdict} |")
    limit = "what a device may use is not known" if plan.budget is None else f"a device may use {mib(plan.budget)}"
    fastest = "nothing else that fits is five percent faster"
    how = fastest if any(one.step_seconds for one in plan.tried) else "the first that fits"
    return "\n".join([*lines, "", f"Chosen: {how}; {limit}."])
