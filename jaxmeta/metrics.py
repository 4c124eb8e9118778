"""Means over tasks with their intervals."""

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
