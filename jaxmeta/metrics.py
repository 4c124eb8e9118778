"""Means over tasks with their intervals, and differences on the same tasks."""

import numpy as np
from scipy.special import stdtrit

from jaxmeta.base import Estimate


def estimate(per_task) -> Estimate:
    """Estimate a mean over tasks: `mean +- t_{0.975, n - 1} s / sqrt(n)`.

    Tasks are drawn independently and their examples are not, so that the interval is
    over tasks, never over images.

    Args:
      per_task: One value for each task, `[tasks]`.

    Returns:
      An `Estimate`; with a single task the interval is infinite, and with a value that is not finite
      mean and interval are.

    Raises:
      ValueError: if there are no tasks.

    Example:
      >>> estimate([0.0, 1.0, 1.0, 1.0]).mean
      0.75
    """
    values = np.asarray(per_task, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"estimate needs one value for each task, [tasks]; given shape {list(values.shape)}.")
    if values.size == 1:
        return Estimate(float(values[0]), float("inf"), values)
    if not np.isfinite(values).all():
        # A task on which the adaptation diverged has no mean with the others.
        return Estimate(float("inf"), float("inf"), values)
    standard_error = values.std(ddof=1) / np.sqrt(values.size)
    return Estimate(float(values.mean()), float(stdtrit(values.size - 1, 0.975) * standard_error), values)


def paired_difference(first, second) -> Estimate:
    """Estimate by how much one learner is ahead of another on the same tasks: `estimate(first - second)`.

    Tasks differ far more than learners do. Since both met the same ones, what a task adds to both drops out, and
    the interval is that of the paired t test.

    Args:
      first: One value for each task, `[tasks]`.
      second: Those of the other learner on the same tasks, in the same order.

    Returns:
      An `Estimate` of the mean of `first - second`.

    Raises:
      ValueError: if they are not of as many tasks.

    Example:
      >>> paired_difference([0.5, 0.75, 1.0], [0.25, 0.5, 0.75]).mean
      0.25

    Source: "Student", 1908, The Probable Error of a Mean, Biometrika 6.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(
            "paired_difference needs the values of two learners on the same tasks, [tasks] each; given shapes "
            f"{list(first.shape)} and {list(second.shape)}."
        )
    return estimate(first - second)
