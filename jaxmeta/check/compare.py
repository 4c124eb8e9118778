"""Every way of taking a meta-gradient on one's own problem: how wrong, how noisy, how dear."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.base import Estimator, MetaGrad
from jaxmeta.check.problem import Problem, episode_of, in_float64, key_of, learner_of, meta_loss_of
from jaxmeta.metagrad import METAGRADS, unrolled
from jaxmeta.metagrad.leaves import check_count, check_floats


class Comparison(NamedTuple):
    """One row: a strategy or an estimator against the exact gradient in float64.

    Errors are relative to the norm of the exact gradient. What does not apply is None.

    Attributes:
      name: As given.
      refused: Why it cannot serve this problem, or None.
      cosine: Between its gradient (the mean of the samples) and the exact one.
      relative_error: Norm of the difference; for a stochastic one the root mean square over samples.
      bias: Of a stochastic one: norm of (mean - exact).
      bias_noise: What the bias would be by chance if there were none: root of variance / samples.
      variance: Of a stochastic one: mean squared distance of a sample from the mean.
      seconds: Median time of one gradient.
      compile_seconds: Time to trace and compile it.
      bytes: Temporary memory of the compiled program, from XLA's analysis.
    """

    name: str
    refused: str | None = None
    cosine: float | None = None
    relative_error: float | None = None
    bias: float | None = None
    bias_noise: float | None = None
    variance: float | None = None
    seconds: float | None = None
    compile_seconds: float | None = None
    bytes: int | None = None


def compare_estimators(
    problem: Problem,
    strategies: dict[str, MetaGrad | Estimator] | None = None,
    *,
    num_samples: int = 32,
    rounds: int = 5,
) -> list[Comparison]:
    """Compare strategies and estimators on a problem, against its exact gradient in float64.

    The exact gradient is `unrolled(remat="step")` in double precision; the others compute in the
    precision of the problem. Noise that an objective draws without naming a dtype differs
    between the two precisions, and then counts as an error.

    Args:
      problem: The problem.
      strategies: By name; every row of `METAGRADS` if None.
      num_samples: Gradients drawn from a stochastic estimator. One that goes on from step to
        step is averaged over `problem.num_unrolls` steps for each.
      rounds: Timed gradients, interleaved over the strategies.

    Returns:
      One `Comparison` each, in the order given; one that refuses the problem says why.

    Raises:
      ValueError: for a theta with leaves that have no gradient, or none; for an exact gradient
        of zero, or that is not finite.

    Example:
      >>> import jax
      >>> from jaxmeta import check
      >>> rows = compare_estimators(check.quadratic(jax.random.key(0)).problem, rounds=1)
      >>> [row.name for row in rows if row.refused]
      ['truncated', 'implicit']
      >>> next(row.cosine for row in rows if row.name == "mixed_mode") > 0.999
      True
    """
    check_floats(problem.theta, "theta")
    check_count("compare_estimators", "num_samples", num_samples, 2)
    check_count("compare_estimators", "rounds", rounds, 1)
    if not jax.tree.leaves(problem.theta):
        raise ValueError("compare_estimators needs a theta with at least one leaf.")
    if strategies is None:
        strategies = {name: factory() for name, factory in METAGRADS.items()}
    with jax.enable_x64(True):
        wide = in_float64(problem)
        exact = _flat(jax.jit(jax.grad(meta_loss_of(wide, unrolled(remat="step"))))(wide.theta))
    if not 0 < np.linalg.norm(exact) < np.inf:
        raise ValueError(
            f"The exact meta-gradient has the norm {np.linalg.norm(exact)}: nothing can be compared with it. For one "
            "that is not finite, find_nonfinite tells where that begins."
        )
    rows, programs = [], {}
    for name, strategy in strategies.items():
        try:
            sample, run, compile_seconds, memory = _compile(problem, strategy)
        except Exception as error:  # One that fails, however, must not take the others' rows with it.
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append(Comparison(name, refused=reason.removeprefix("ValueError: ")))
            continue
        programs[name] = run
        rows.append(
            Comparison(
                name,
                compile_seconds=compile_seconds,
                bytes=memory,
                **_errors(exact, sample, num_samples if isinstance(strategy, Estimator) else 1),
            )
        )
    seconds = _time(programs, rounds)
    return [row if row.refused else row._replace(seconds=seconds[row.name]) for row in rows]


def comparison_table(rows: list[Comparison]) -> str:
    """Lay out comparisons as a Markdown table.

    Args:
      rows: From `compare_estimators`.

    Returns:
      The table; reasons of refusals stand below it.

    Example:
      >>> print(comparison_table([Comparison("exact", cosine=1.0, relative_error=1e-7, seconds=0.002, bytes=2048)]))
      | | cosine | rel. error | bias (noise) | variance | ms | compile s | MiB |
      | --- | --- | --- | --- | --- | --- | --- | --- |
      | exact | 1.0000 | 1.0e-07 | | | 2 | | 0.00195 |
    """
    lines = [
        "| | cosine | rel. error | bias (noise) | variance | ms | compile s | MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        bias = "" if row.bias is None else f"{row.bias:.1e} ({row.bias_noise:.1e})"
        cells = [
            row.name,
            "refused" if row.refused else _number(row.cosine, ".4f"),
            _number(row.relative_error, ".1e"),
            bias,
            _number(row.variance, ".1e"),
            _number(row.seconds, ".3g", 1e3),
            _number(row.compile_seconds, ".2g"),
            _number(row.bytes, ".3g", 2**-20),
        ]
        lines.append("| " + " | ".join(cells).replace("|  |", "| |").replace("|  |", "| |") + " |")
    notes = [f"{row.name}: {row.refused}" for row in rows if row.refused]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _number(value, form, factor=1.0) -> str:
    return "" if value is None else format(value * factor, form)


def _compile(problem: Problem, strategy) -> tuple[Callable, Callable, float, int | None]:
    """Return `(index) -> flat gradient`, a function to time, the seconds to compile and the memory."""
    if isinstance(strategy, Estimator):
        return _compile_estimator(problem, strategy)
    compiled, seconds, memory = _ahead_of_time(jax.grad(meta_loss_of(problem, strategy)), problem.theta)
    return lambda index: _flat(compiled(problem.theta)), lambda: compiled(problem.theta), seconds, memory


def _compile_estimator(problem: Problem, estimator: Estimator):
    learner = learner_of(problem)
    episodes = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], episode_of(problem))

    def init(key):
        return estimator.init(key, learner, problem.theta, problem.state, episodes)

    def gradient(theta, estimator_state, key):
        _, grads, estimator_state = estimator.value_and_grad(
            learner, theta, problem.state, estimator_state, episodes, key[None], jnp.int32(0)
        )
        return grads, estimator_state

    key = key_of(problem)
    first = jax.jit(init)(key)
    compiled, seconds, memory = _ahead_of_time(gradient, problem.theta, first, key)
    kept = {"state": first, "step": 0}

    def advance():
        key_step = jax.random.fold_in(key, kept["step"])
        grads, kept["state"] = compiled(problem.theta, kept["state"], key_step)
        kept["step"] += 1
        return grads

    def sample(index):
        # One that keeps inner states may begin in the middle of a task: let that one finish.
        if index == 0 and jax.tree.leaves(first):
            for _ in range(problem.num_unrolls):
                advance()
        rounds = problem.num_unrolls if jax.tree.leaves(first) else 1
        return np.mean([_flat(advance()) for _ in range(rounds)], axis=0)

    return sample, lambda: compiled(problem.theta, first, key), seconds, memory


def _ahead_of_time(function, *args):
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - begin
    analysis = compiled.memory_analysis()
    return compiled, seconds, None if analysis is None else int(analysis.temp_size_in_bytes)


def _errors(exact, sample, num_samples) -> dict[str, Any]:
    samples = np.stack([sample(index) for index in range(num_samples)]).astype(np.float64)
    mean, size = samples.mean(0), np.linalg.norm(exact)
    cosine = float(mean @ exact / max(np.linalg.norm(mean) * size, 1e-300))
    error = float(np.sqrt(np.mean(np.sum((samples - exact) ** 2, 1))) / size)
    if num_samples == 1:
        return {"cosine": cosine, "relative_error": error}
    variance = float(np.sum(samples.var(0, ddof=1)) / size**2)
    return {
        "cosine": cosine,
        "relative_error": error,
        "bias": float(np.linalg.norm(mean - exact) / size),
        "bias_noise": float(np.sqrt(variance / num_samples)),
        "variance": variance,
    }


def _time(programs, rounds) -> dict[str, float]:
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
