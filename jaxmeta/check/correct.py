"""Is a meta-gradient right? Finite differences in float64, with a check of their order."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta.base import MetaGrad
from jaxmeta.check.problem import Problem, in_float64, meta_loss_of
from jaxmeta.metagrad.leaves import check_floats, name_of


class LeafCheck(NamedTuple):
    """What was found for one leaf of theta along one random direction of unit length.

    Attributes:
      leaf: Its name.
      derivative: That of the strategy along the direction.
      difference: The central difference at the smallest step, extrapolated.
      relative_error: Of the derivative, relative to the larger of the two.
      order: At which power of the step the difference approaches the derivative: 2 for a
        right one, 0 for a wrong one; infinite where rounding is all that is left.
    """

    leaf: str
    derivative: float
    difference: float
    relative_error: float
    order: float


def assert_meta_grad_correct(
    problem: Problem,
    metagrad: MetaGrad | None = None,
    *,
    tolerance: float = 1e-6,
    step: float = 1e-3,
    seed: int = 0,
) -> list[LeafCheck]:
    """Assert that a strategy returns the derivative of the meta-loss, leaf by leaf, in float64.

    `|(L(theta + h v) - L(theta - h v)) / 2h - g.v| = O(h^2)` at `h, h/2, h/4, h/8`

    The size of the error and its order are both asserted: an error of the gradient, however
    small, stays when h shrinks. Computes in double precision whatever the settings.

    Args:
      problem: The problem; its floats are converted.
      metagrad: The strategy; `unrolled()` if None. Biased ones fail, as they should.
      tolerance: The largest relative error.
      step: The largest h, in units of `1 + root mean square of the leaf`. Smaller for
        objectives with kinks (ReLU, max), which a large step crosses.
      seed: Of the directions.

    Returns:
      One `LeafCheck` for each leaf of theta.

    Raises:
      AssertionError: names the leaves that are wrong, with both derivatives.
      ValueError: for a theta with leaves that have no gradient.

    Example:
      >>> import jax
      >>> from jaxmeta import check, first_order
      >>> problem = check.quadratic(jax.random.key(0)).problem
      >>> [row.leaf for row in assert_meta_grad_correct(problem)]
      ["theta['offset']", "theta['start']"]
      >>> assert_meta_grad_correct(problem, first_order())
      Traceback (most recent call last):
      ...
      AssertionError: The meta-gradient is wrong: ...
    """
    check_floats(problem.theta, "theta")
    with jax.enable_x64(True):
        problem = in_float64(problem)
        meta_loss = jax.jit(meta_loss_of(problem, metagrad))
        gradient = jax.jit(jax.grad(meta_loss_of(problem, metagrad)))(problem.theta)
        paths, treedef = jax.tree_util.tree_flatten_with_path(problem.theta)
        leaves = [leaf for _, leaf in paths]
        total_norm = float(optax.tree.norm(gradient))
        random = np.random.default_rng(seed)
        checks = []
        for place, ((path, leaf), slope) in enumerate(zip(paths, jax.tree.leaves(gradient), strict=True)):
            direction = random.standard_normal(leaf.shape)
            direction = direction / np.linalg.norm(direction)

            def along(offset, place=place, leaf=leaf, direction=direction):
                moved = [*leaves[:place], leaf + offset * direction, *leaves[place + 1 :]]
                return float(meta_loss(jax.tree.unflatten(treedef, moved)))

            scale = step * (1 + float(jnp.sqrt(jnp.mean(leaf**2))))
            derivative = float(jnp.vdot(slope, direction))
            norm, name = float(jnp.linalg.norm(slope)), "theta" + name_of(path)
            checks.append(_check_leaf(name, along, derivative, scale, norm, total_norm))
    # Written so that a NaN is wrong, not right.
    wrong = [check for check in checks if not (check.relative_error <= tolerance and check.order > 1.5)]
    if wrong:
        lines = [
            f"  {check.leaf}: derivative {check.derivative:.10g}, finite difference {check.difference:.10g}, "
            f"relative error {check.relative_error:.2g}, order {check.order:.2g}"
            for check in wrong
        ]
        raise AssertionError(
            f"The meta-gradient is wrong: {len(wrong)} of {len(checks)} leaves miss a relative error of {tolerance:g} "
            "or the order 2 of a central difference, or are not finite. Where the objective has kinks or a leaf is "
            "tiny, try a smaller step=; float32 within the problem (a start that is cast), or a loss whose size hides "
            "its changes, leave no difference to compare with.\n" + "\n".join(lines)
        )
    return checks


def _check_leaf(name, along, derivative, scale, norm, total_norm) -> LeafCheck:
    steps = [scale / 2**power for power in range(4)]
    ends = [(along(step), along(-step)) for step in steps]
    differences = [(up - down) / (2 * step) for step, (up, down) in zip(steps, ends, strict=True)]
    errors = [abs(difference - derivative) for difference in differences]
    # What rounding does to a difference: no order is left below that.
    largest = max(abs(value) for pair in ends for value in pair)
    floors = [max(64 * np.finfo(np.float64).eps * largest / step, 1e-11 * norm) for step in steps]
    orders = [
        np.log2(errors[i] / errors[i + 1])
        for i in range(len(steps) - 1)
        if errors[i] > floors[i] and errors[i + 1] > floors[i + 1]
    ]
    if not all(map(np.isfinite, [derivative, norm, *differences])):
        return LeafCheck(name, derivative, differences[-1], float("nan"), float("nan"))
    order = float(np.median(orders)) if orders else float("inf")
    # Richardson: the error of order 2 cancels.
    extrapolated = (4 * differences[-1] - differences[-2]) / 3
    # A direction nearly at right angles to the gradient has a derivative of no size of its own.
    size = max(abs(derivative), abs(extrapolated), 1e-3 * norm)
    error = abs(extrapolated - derivative)
    # Nothing there and nothing found is right, where the other leaves show that something would be found.
    if error > 0 and not (size <= floors[-1] <= 1e-3 * total_norm):
        error /= size
    else:
        error = 0.0
    return LeafCheck(name, derivative, extrapolated, error, order)
