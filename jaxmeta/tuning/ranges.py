"""Hyper-parameters that cannot leave their range: any real number stands for a value within it."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxmeta.base import PyTree

SCALES = ("log", "linear")


class Range(NamedTuple):
    """What a hyper-parameter may be.

    Attributes:
      low: Its least value, which is met only in the limit.
      high: Its greatest.
      scale: "log", where factors count (a learning rate), or "linear".
    """

    low: float
    high: float
    scale: str = "log"


def check_range(name: str, given: Range) -> None:
    """Refuse a range that holds no numbers.

    Args:
      name: The hyper-parameter.
      given: Its range.

    Raises:
      ValueError: an unknown scale, ends that are no numbers or in the wrong order, or a logarithmic range that does not
        begin above 0.

    Example:
      >>> check_range("momentum", Range(0.0, 0.99, "linear"))
    """
    low, high, scale = given
    if scale not in SCALES:
        raise ValueError(f"The range of {name} needs scale 'log' or 'linear'; given {scale!r}.")
    if not (-float("inf") < low < high < float("inf")):
        raise ValueError(f"The range of {name} needs low < high, both finite; given {low} and {high}.")
    if scale == "log" and low <= 0:
        raise ValueError(f"The range of {name} is logarithmic and needs low > 0; given {low}. Use scale='linear'.")


def value_of(given: Range, raw: jax.Array) -> jax.Array:
    """Map any real number into a range: `low (high / low)^s(x)` or `low + (high - low) s(x)`, s the sigmoid.

    Args:
      given: The range.
      raw: Any shape.

    Returns:
      Values of that shape, increasing in `raw`; its derivative is nowhere 0 but in the limit.

    Raises:
      ValueError: as `check_range`.

    Example:
      >>> float(value_of(Range(0.0, 2.0, "linear"), jnp.zeros(())))
      1.0
    """
    check_range("a value", given)
    share = jax.nn.sigmoid(raw)
    if given.scale == "log":
        value = given.low * (given.high / given.low) ** share
    else:
        value = given.low + (given.high - given.low) * share
    # Rounding may carry what is near an end beyond it.
    return jnp.clip(value, given.low, given.high)


def raw_of(given: Range, value) -> jax.Array:
    """Find the number that stands for a value: the inverse of `value_of`.

    Args:
      given: The range.
      value: Strictly within it; any shape.

    Returns:
      Real numbers of that shape.

    Raises:
      ValueError: a value outside, at an end, or so near that no number stands for it (looked into outside `jit`).

    Example:
      >>> round(float(value_of(Range(1e-4, 1.0), raw_of(Range(1e-4, 1.0), 0.05))), 6)
      0.05
    """
    check_range("a value", given)
    value = jnp.asarray(value, jnp.result_type(float))
    if not isinstance(value, Tracer) and not bool(((value > given.low) & (value < given.high)).all()):
        raise ValueError(f"A value must lie strictly between {given.low} and {given.high}; given {value}.")
    if given.scale == "log":
        share = jnp.log(value / given.low) / jnp.log(given.high / given.low)
    else:
        share = (value - given.low) / (given.high - given.low)
    raw = jnp.log(share) - jnp.log1p(-share)
    if not isinstance(raw, Tracer) and not bool(jnp.isfinite(raw).all()):
        raise ValueError(f"{value} is too near an end of {given.low} to {given.high}: it could never move from there.")
    return raw


def values_of(ranges: Mapping[str, Range], raw: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Map trees of real numbers into their ranges.

    Args:
      ranges: The range of each hyper-parameter.
      raw: For each a tree of real numbers, of one layer each for example.

    Returns:
      The same trees, of values.

    Raises:
      ValueError: the two name different hyper-parameters, or a range is none.

    Example:
      >>> ranges = {"rate": Range(0.01, 1.0), "momentum": Range(0.0, 1.0, "linear")}
      >>> values_of(ranges, {"rate": {"conv": 0.0, "head": 0.0}, "momentum": 0.0})["momentum"].item()
      0.5
    """
    _check_names(ranges, raw)
    return {name: jax.tree.map(partial(value_of, given), raw[name]) for name, given in ranges.items()}


def raws_of(ranges: Mapping[str, Range], values: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Find the trees of real numbers that stand for values: the inverse of `values_of`.

    Args:
      ranges: The range of each hyper-parameter.
      values: For each a tree of values strictly within.

    Returns:
      The same trees, of real numbers.

    Raises:
      ValueError: the two name different hyper-parameters, or a value is not within its range; says which.

    Example:
      >>> raws_of({"momentum": Range(0.0, 1.0, "linear")}, {"momentum": 0.5})["momentum"].item()
      0.0
    """
    _check_names(ranges, values)
    found = {}
    for name, given in ranges.items():
        try:
            found[name] = jax.tree.map(partial(raw_of, given), values[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error} Choose another value, or widen its range.") from error
    return found


def _check_names(ranges: Mapping[str, Range], given: Mapping[str, PyTree]) -> None:
    if set(ranges) != set(given):
        named, found = (", ".join(sorted(names)) for names in (ranges, given))
        raise ValueError(f"There are ranges of {named}; given {found}. Give both for the same hyper-parameters.")
    for name, of_name in ranges.items():
        check_range(name, of_name)
