"""How far a probability can be believed: one temperature for all logits, and how far off they are.

    p(y = k | x) = softmax_k(z_k / T),   T = argmin_T -sum_n log softmax(z_n / T)[y_n]

Dividing all logits of an image by one number changes no prediction, only how sure it is said to be.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

# Where every prediction is right (or none better than chance) the likelihood has no maximum: it is sought in between.
COLDEST, HOTTEST = 1e-2, 1e2
BINS = 15


class Calibration(NamedTuple):
    """How sure a learner's predictions are, as measured on tasks that it was not trained on.

    Attributes:
      temperature: What its logits are divided by.
      error_before: Expected calibration error of the logits as they are.
      error_after: The same after dividing.
      tasks: Number of tasks.
    """

    temperature: float
    error_before: float
    error_after: float
    tasks: int


def fit_temperature(logits, targets, weights=None) -> float:
    """Fit one temperature by maximum likelihood: `argmin_T -sum_n w_n log softmax(z_n / T)[y_n]`.

    In 1 / T the problem is convex: the slope, mean logit under the softmax less logit of the true class, has one root.

    Args:
      logits: `[..., classes]`; those of classes that are not in a task are very small, as learners give them.
      targets: Class numbers `[...]`.
      weights: `[...]`, 0 for padding; None: all count alike.

    Returns:
      The temperature, between 0.01 and 100: at the ends where the likelihood has no maximum.

    Raises:
      ValueError: if shapes do not fit, nothing has weight, or a logit is not finite.

    Example:
      >>> logits = np.log([[0.75, 0.25]] * 4)
      >>> round(fit_temperature(3 * logits, np.array([0, 0, 0, 1])), 4)
      3.0

    Source: Guo, Pleiss, Sun and Weinberger, 2017, arXiv 1706.04599, section 4.2.
    """
    from scipy.optimize import brentq

    logits, targets, weights = _flat("fit_temperature", logits, targets, weights)
    chosen = np.take_along_axis(logits, targets[:, None], 1)[:, 0]

    def slope(log_inverse: float) -> float:
        probabilities = softmax(np.exp(log_inverse) * logits, axis=1)
        return float(weights @ ((probabilities * logits).sum(1) - chosen))

    low, high = -np.log(HOTTEST), -np.log(COLDEST)
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    return float(np.exp(-np.asarray(brentq(slope, low, high, xtol=1e-10))))


def expected_calibration_error(probabilities, targets, weights=None, *, bins: int = BINS) -> float:
    """Compute by how much confidence and accuracy differ: `sum_b (n_b / n) |accuracy_b - confidence_b|`.

    Predictions are sorted by their confidence, the largest probability, into bins of one width.

    Args:
      probabilities: `[..., classes]`.
      targets: Class numbers `[...]`.
      weights: `[...]`, 0 for padding; None: all count alike.
      bins: Number of bins between 0 and 1.

    Returns:
      The error, in [0, 1]; 0 if of predictions made with 70 % confidence 70 % are right, and so on.

    Raises:
      ValueError: if shapes do not fit, nothing has weight, a probability is not finite, or there are no bins.

    Example:
      >>> expected_calibration_error(np.array([[0.75, 0.25]] * 2), np.array([0, 1]))  # half are right
      0.25

    Source: Guo, Pleiss, Sun and Weinberger, 2017, arXiv 1706.04599, section 2.
    """
    if bins < 1:
        raise ValueError(f"expected_calibration_error needs bins of at least 1; given {bins}.")
    probabilities, targets, weights = _flat("expected_calibration_error", probabilities, targets, weights)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    # A confidence at the border of two bins belongs to the lower one.
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)
    excess = np.bincount(place, weights * (right - confidence), bins)
    return float(np.abs(excess).sum() / weights.sum())


def calibrate(logits, targets, weights=None) -> Calibration | None:
    """Fit a temperature to the logits of many tasks, and measure what it is worth.

    Args:
      logits: `[tasks, examples, classes]`.
      targets: `[tasks, examples]`.
      weights: `[tasks, examples]`; None: all count alike.

    Returns:
      The `Calibration`; None if a logit is not finite, as where the adaptation diverged.

    Example:
      >>> logits = np.log([[[0.75, 0.25]] * 4])
      >>> calibrate(3 * logits, np.array([[0, 0, 0, 1]])).tasks
      1
    """
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits).all():
        return None
    temperature = fit_temperature(logits, targets, weights)
    before, after = (
        expected_calibration_error(calibrated(logits, divisor), targets, weights) for divisor in (1.0, temperature)
    )
    return Calibration(temperature, before, after, len(logits))


def calibrated(logits, temperature: float = 1.0) -> np.ndarray:
    """Turn logits into probabilities: `softmax(z / T)`, in float64.

    Args:
      logits: `[..., classes]`.
      temperature: T.

    Returns:
      Probabilities `[..., classes]`.

    Example:
      >>> calibrated(np.log([3.0, 1.0])).round(2).tolist()
      [0.75, 0.25]
    """
    return softmax(np.asarray(logits, np.float64) / temperature, axis=-1)


def _flat(who: str, scores, targets, weights):
    """Check what was given, and make one axis of all but the classes."""
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets)
    weights = np.ones(targets.shape) if weights is None else np.asarray(weights, np.float64)
    if scores.ndim < 2 or scores.shape[:-1] != targets.shape or weights.shape != targets.shape:
        raise ValueError(
            f"{who} needs [..., classes], with targets and weights [...]; given shapes {list(scores.shape)}, "
            f"{list(targets.shape)} and {list(weights.shape)}."
        )
    if not np.issubdtype(targets.dtype, np.integer) or not np.isfinite(scores).all() or not weights.sum() > 0:
        raise ValueError(f"{who} needs finite numbers, whole class numbers as targets, and some weight.")
    return scores.reshape(-1, scores.shape[-1]), targets.reshape(-1).astype(int), weights.reshape(-1)
