"""A bilevel problem whose meta-gradients are known in closed form.

inner:  1/2 phi' H phi - b' phi + proximal/2 |phi - phi_0|^2,   phi_{t+1} = phi_t - a gradient
outer:  1/2 |phi_T - target|^2
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.base import Key, PyTree
from jaxmeta.check.problem import Problem
from jaxmeta.inner import inner_sgd


class Quadratic(NamedTuple):
    """The problem, and its meta-gradient as each strategy ought to return it, trees like theta.

    Attributes:
      problem: The `Problem`; theta is `{"start": phi_0, "offset": b}`, or `{"offset": b}`.
      unrolled: `() -> gradient`, for every exact strategy.
      first_order: `() -> gradient`.
      truncated: `(k) -> gradient` of `truncated(k)`; for a fixed start.
      implicit: `(damping=0) -> gradient` of `implicit(damping=...)`, at the phi that was reached.
      neumann: `(num_terms, rate) -> gradient` of `implicit(solver=neumann(...))`.
      bootstrapped: `(num_steps, rate) -> gradient` of `bootstrapped(..., match="parameters")`.
    """

    problem: Problem
    unrolled: Callable[[], PyTree]
    first_order: Callable[[], PyTree]
    truncated: Callable[[int], PyTree]
    implicit: Callable[..., PyTree]
    neumann: Callable[[int, float], PyTree]
    bootstrapped: Callable[[int, float], PyTree]


def quadratic(
    key: Key,
    *,
    size: int = 4,
    num_steps: int = 5,
    rate: float = 0.1,
    proximal: float = 0.0,
    learn_start: bool = True,
) -> Quadratic:
    """Make a quadratic bilevel problem together with its closed forms.

    With `A = H + proximal I`, `M = I - a A` and `r = phi_T - target`, the exact meta-gradient is
    `a sum_{t < T} M^t r` for the offset b, and `M^T r + a proximal sum_{t < T} M^t r` for the start.

    Args:
      key: Source of H (eigenvalues between 1 and about 5), b, phi_0 and the target.
      size: Number of inner parameters.
      num_steps: Inner steps, T.
      rate: Inner learning rate, a.
      proximal: Strength of the proximal term.
      learn_start: Whether phi_0 is a meta-parameter beside b.

    Returns:
      A `Quadratic`. In double precision under `jax.enable_x64(True)`.

    Example:
      >>> import jax, numpy as np
      >>> from jaxmeta import check
      >>> case = quadratic(jax.random.key(0))
      >>> gradient = jax.grad(check.meta_loss_of(case.problem))(case.problem.theta)
      >>> np.testing.assert_allclose(gradient["start"], case.unrolled()["start"], rtol=1e-4)
    """
    keys = jax.random.split(key, 4)
    root = jax.random.normal(keys[0], [size, size])
    hessian = root @ root.T / size + jnp.eye(size)
    offset, start, target = (jax.random.normal(key, [size]) for key in keys[1:])
    curvature = hessian + proximal * jnp.eye(size)
    contraction = jnp.eye(size) - rate * curvature

    def objective(phi, theta, state, data, key):
        return 0.5 * phi @ hessian @ phi - theta["offset"] @ phi, ()

    def outer_loss(phi, theta, state, data, key):
        return 0.5 * jnp.sum((phi - data) ** 2), ()

    theta = {"offset": offset, **({"start": start} if learn_start else {})}
    problem = Problem(
        objective,
        outer_loss,
        theta,
        inner_sgd(rate),
        num_steps,
        start=lambda theta: theta["start"] if learn_start else start,
        outer_data=target,
        proximal=proximal,
    )

    def after(steps):
        phi = start
        for _ in range(steps):
            phi = phi - rate * (curvature @ phi - offset - proximal * start)
        return phi

    def along(of_offset, of_start):
        return {"offset": of_offset, **({"start": of_start} if learn_start else {})}

    def through_steps(steps, residual):
        power, total = residual, jnp.zeros_like(residual)
        for _ in range(steps):
            power, total = contraction @ power, total + rate * power
        return along(total, power + proximal * total)

    def through_solution(solve):
        of_offset = solve(after(num_steps) - target)
        return along(of_offset, proximal * of_offset)

    def series(num_terms, step):
        def solve(residual):
            term, total = residual, residual
            for _ in range(num_terms):
                term = term - step * curvature @ term
                total = total + term
            return step * total

        return through_solution(solve)

    def bootstrapped(num_further, outer_rate):
        goal = after(num_steps + num_further)
        goal = goal - outer_rate * (goal - target)
        return through_steps(num_steps, after(num_steps) - goal)

    residual = after(num_steps) - target
    return Quadratic(
        problem,
        unrolled=lambda: through_steps(num_steps, residual),
        first_order=lambda: along(jnp.zeros(size), residual),
        truncated=lambda steps: through_steps(min(steps, num_steps), residual),
        implicit=lambda damping=0.0: through_solution(
            lambda vector: jnp.linalg.solve(curvature + damping * jnp.eye(size), vector)
        ),
        neumann=series,
        bootstrapped=bootstrapped,
    )
