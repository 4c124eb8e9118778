"""Temperatures and calibration errors, against closed forms and a minimiser that knows no slope."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from jaxmeta import calibrate, expected_calibration_error, fit_temperature
from jaxmeta.calibration import COLDEST, HOTTEST


def drawn(scale, size=20000, classes=4):
    """Logits of which the targets are drawn, times a scale: the temperature that undoes it is the scale."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=[size, classes])
    targets = (softmax(logits, axis=1).cumsum(1) > rng.random([size, 1])).argmax(1)
    return scale * logits, targets


def likelihood(temperature, logits, targets):
    return -np.take_along_axis(log_softmax(logits / temperature, axis=1), targets[:, None], 1).mean()


def test_a_scale_is_undone():
    logits, targets = drawn(1.0)
    own = fit_temperature(logits, targets)
    assert own == pytest.approx(1.0, abs=0.03)
    assert fit_temperature(3 * logits, targets) == pytest.approx(3 * own, rel=1e-6)


def test_a_minimiser_agrees():
    logits, targets = drawn(2.5, size=500)
    best = minimize_scalar(likelihood, (0.5, 5.0), args=(logits, targets), options={"xtol": 1e-10}).x
    assert fit_temperature(logits, targets) == pytest.approx(best, rel=1e-5)


def test_a_class_that_is_not_there_changes_nothing():
    logits, targets = drawn(2.0, size=200)
    more = np.pad(logits, [(0, 0), (0, 1)], constant_values=-1e9)
    assert fit_temperature(more, targets) == pytest.approx(fit_temperature(logits, targets), rel=1e-9)


def test_weights_leave_padding_out():
    logits, targets = drawn(2.0, size=200)
    padded, zeros = np.concatenate([logits, 50 + 0 * logits]), np.concatenate([targets, 0 * targets])
    weights = np.repeat([1.0, 0.0], 200)
    assert fit_temperature(padded, zeros, weights) == pytest.approx(fit_temperature(logits, targets), rel=1e-9)
    error = expected_calibration_error(softmax(padded, 1), zeros, weights)
    assert error == pytest.approx(expected_calibration_error(softmax(logits, 1), targets))


def test_where_the_likelihood_has_no_maximum():
    right = np.array([[5.0, 0.0], [0.0, 5.0]])
    assert fit_temperature(right, np.array([0, 1])) == COLDEST
    assert fit_temperature(right, np.array([1, 0])) == HOTTEST


def test_calibration_error_by_hand():
    """Bins of a half: one prediction of 0.5, wrong; of 0.9, 0.8 and 0.7 two right."""
    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    error = expected_calibration_error(probabilities, np.array([1, 0, 1, 1]), bins=2)
    assert error == pytest.approx(0.25 * 0.5 + 0.75 * (0.8 - 2 / 3))
    logits, targets = drawn(1.0)
    assert expected_calibration_error(softmax(logits, 1), targets) < 0.02
    assert expected_calibration_error(softmax(3 * logits, 1), targets) > 0.2


def test_calibrate_measures_both():
    logits, targets = drawn(3.0)
    tasks = calibrate(logits.reshape(100, 200, 4), targets.reshape(100, 200))
    assert tasks is not None and tasks.tasks == 100 and tasks.temperature == pytest.approx(3, rel=0.05)
    assert tasks.error_after < 0.02 < 0.2 < tasks.error_before
    assert calibrate(np.full([2, 3, 4], np.nan), np.zeros([2, 3], int)) is None


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (np.zeros([3, 2]), np.zeros(2, int), r"given shapes \[3, 2\], \[2\]"),
        (np.zeros([2, 2]), np.zeros(2), "whole class numbers"),
        (np.full([2, 2], np.inf), np.zeros(2, int), "finite"),
    ],
)
def test_bad_input_is_refused(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, targets)
    with pytest.raises(ValueError, match="bins"):
        expected_calibration_error(np.ones([1, 1]), np.zeros(1, int), bins=0)
