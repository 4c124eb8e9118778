"""Implicit differentiation: the derivative of a solution, whatever path led to it."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxmeta.base import Loop, MetaGrad, PyTree
from jaxmeta.metagrad.closures import NO_FORWARD_DERIVATIVE, REVERSE_ONLY, hoist, operations, trace, used
from jaxmeta.metagrad.guards import no_derivative
from jaxmeta.metagrad.leaves import check_count, name_of
from jaxmeta.metagrad.paths import rematerialise, run_loop
from jaxmeta.metagrad.strategies import inner_gradient

Solver = Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]


def conjugate_gradient(max_steps: int = 20, tolerance: float = 1e-10) -> Solver:
    """Solve `A x = b` with A symmetric and positive definite by conjugate gradients.

    Args:
      max_steps: Products with A at most. In exact arithmetic as many as A has distinct
        eigenvalues are enough.
      tolerance: Stop when `|A x - b| <= tolerance |b|`.

    Returns:
      `(product, b) -> x`, where `product(x)` is `A x`.

    Example:
      >>> import jax.numpy as jnp
      >>> conjugate_gradient()(lambda x: jnp.array([1.0, 2.0]) * x, jnp.array([1.0, 1.0])).tolist()
      [1.0, 0.5]
    """
    check_count("conjugate_gradient", "max_steps", max_steps, 1)
    return partial(_solution, partial(jax.scipy.sparse.linalg.cg, tol=tolerance, maxiter=max_steps))


def _solution(solve, product, vector):
    return solve(product, vector)[0]


def neumann(num_terms: int = 20, rate: float = 0.1) -> Solver:
    """Solve `A x = b` by a truncated Neumann series, `x = a sum_{j <= n} (I - a A)^j b`.

    As many terms as inner steps of rate a give the gradient of those steps, unrolled at the
    solution. Converges for `a < 2 / (largest eigenvalue of A)`; each term costs one product.

    Args:
      num_terms: Number of terms after the first.
      rate: The factor a.

    Returns:
      `(product, b) -> x`, where `product(x)` is `A x`.

    Example:
      >>> import jax.numpy as jnp
      >>> float(neumann(2, 0.5)(lambda x: x, jnp.array(1.0)))  # 0.5 (1 + 0.5 + 0.25)
      0.875

    Source: Lorraine, Vicol and Duvenaud, 2020, arXiv 1911.02590.
    """
    check_count("neumann", "num_terms", num_terms, 0)
    if not 0 < rate < float("inf"):
        raise ValueError(f"neumann needs rate > 0; given {rate}.")

    def solve(product, vector):
        def add_term(carry, _):
            term, total = carry
            term = jax.tree.map(lambda v, av: v - rate * av, term, product(term))
            return (term, jax.tree.map(jnp.add, total, term)), None

        (_, total), _ = jax.lax.scan(add_term, (vector, vector), length=num_terms)
        return jax.tree.map(lambda leaf: rate * leaf, total)

    return solve


def implicit(*, solver: Solver | None = None, damping: float = 0.0, strongly_convex: bool = False) -> MetaGrad:
    """Differentiate the solution of the inner problem, not the path to it.

    Where `g(phi, theta) = 0` is the gradient of the objective with its proximal term,

        d phi / d theta = - (dg/dphi + damping I)^-1 dg/dtheta

    Memory, and the time of the way back, do not depend on the number of inner steps, which
    should come close to the solution: what is missing is an error of the meta-gradient.

    Args:
      solver: How the linear system is solved: `conjugate_gradient()` if None,
        `neumann()`, or any `(product, vector) -> solution` for a symmetric product.
      damping: Added to the diagonal, at least 0.
      strongly_convex: True says that the objective has one minimum without a
        proximal term (weight decay of its own, ridge regression).

    Returns:
      A `MetaGrad`. The state of the inner optimiser and the records are constants to it.
      It raises ValueError, where the loop is made, without `proximal` or `strongly_convex`;
      and at trace time for meta-parameters that change the path and not the solution
      (learning rates, a start without a proximal term): their gradient would be zero. It tells leaves
      apart, not the numbers within one: keep rates in a leaf of their own.

    Raises:
      ValueError: for a negative damping.

    Example:
      >>> from jaxmeta import inner_loop
      >>> import jax, jax.numpy as jnp, optax
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum((phi - data)**2), ()
      >>> solve = inner_loop(objective, optax.sgd(0.5), 50, implicit(), proximal=1.0)
      >>> adapted = lambda theta: solve(theta, (), (), 3.0, jax.random.key(0)).phi
      >>> round(float(jax.grad(adapted)(1.0)), 6)  # phi = (3 + theta) / 2
      0.5

    Source: Rajeswaran, Finn, Kakade and Levine, 2019, arXiv 1909.04630.
    """
    if not 0 <= damping < float("inf"):
        raise ValueError(f"implicit needs damping >= 0; given {damping}.")
    linear_solver = conjugate_gradient() if solver is None else solver

    def check(num_steps, proximal):
        if proximal == 0 and not strongly_convex:
            raise ValueError(
                "implicit() differentiates a solution, and without a proximal term a loss of a network has no "
                "isolated one. Give the loop proximal=..., say strongly_convex=True "
                "if the objective is, or use unrolled(remat='step') or mixed_mode()."
            )

    def solve(loop: Loop):
        _refuse_missing_derivative(loop)
        solution, rest = jax.lax.stop_gradient(_run_guarded(loop))

        def tangent_solve(linear, vector):
            def damped(tree):
                return jax.tree.map(lambda image, leaf: image + damping * leaf, linear(tree), tree)

            # The Hessian is symmetric: solving with its transpose is solving with it.
            return jax.lax.custom_linear_solve(damped, vector, linear_solver, symmetric=True)

        def optimality(phi):
            return loop.optimality(phi, loop.inputs)

        phi = jax.lax.custom_root(optimality, solution, lambda _, phi: phi, tangent_solve)
        opt_state, per_step = rest
        return (phi, opt_state), per_step

    step, _ = rematerialise(None)
    return MetaGrad(inner_gradient, step, solve, check)


def _refuse_missing_derivative(loop: Loop) -> None:
    def along(phi):
        return jax.jvp(lambda phi: loop.optimality(phi, loop.inputs), (phi,), (phi,))

    if REVERSE_ONLY & operations(trace(along, loop.inputs.phi)):
        raise TypeError(NO_FORWARD_DERIVATIVE.format("implicit()"))


def _run_guarded(loop: Loop):
    """Run the loop; refuse the derivative of what changes the path and not the solution, which would be a zero."""

    def path(inputs):
        (phi, opt_state), per_step = run_loop(loop._replace(inputs=inputs))
        return phi, (opt_state, per_step)

    program = trace(path, loop.inputs)
    optimality = trace(loop.optimality, loop.inputs.phi, loop.inputs)
    converted, hoisted = hoist(program, 1)
    # Only what the optimality closes over itself counts as seen there, so it is traced apart.
    hoisted = [
        value
        if any(value is other for other in optimality.consts)
        else no_derivative(value, _unseen("that the loop closes over"))
        for value in hoisted
    ]
    size = len(jax.tree.leaves(loop.inputs.phi))
    on_path, at_solution = used(program, size), used(optimality, size)[size:]
    # Where the start is the anchor too, the solution depends on it.
    start, anchor = (jax.tree.leaves(tree) for tree in (loop.inputs.phi, loop.inputs.anchor))
    anchored = len(start) == len(anchor) and all(a is b for a, b in zip(start, anchor, strict=True))
    paths, structure = jax.tree_util.tree_flatten_with_path(loop.inputs)
    guarded = []
    for (leaf_path, leaf), path_uses, solution_uses in zip(paths, on_path, at_solution, strict=True):
        name = name_of(leaf_path)
        seen = solution_uses or (anchored and _is_start(name))
        guarded.append(no_derivative(leaf, _unseen(name)) if path_uses and not seen else leaf)
    return converted(jax.tree.unflatten(structure, guarded), *hoisted)


def _is_start(name: str) -> bool:
    return name.startswith("phi")


def _unseen(name: str) -> str:
    start = ", or give the loop proximal=..." if _is_start(name) else ""
    return (
        f"implicit() cannot see the meta-parameter {name}: it changes the path of the inner loop and not its solution, "
        "and its gradient would be zero. Say that this is meant by jax.lax.stop_gradient, or use "
        f"unrolled(remat='group') or mixed_mode(){start}."
    )
