"""Looking into a function by tracing it: what it closes over, and which operations it is made of."""

from collections.abc import Callable

import jax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, subjaxprs

# Tangents that exist in reverse mode only: of a custom_vjp (JAX's name), and of mixed_mode().
REVERSE_ONLY = {"custom_lin", "reverse_only_tangent"}
NO_FORWARD_DERIVATIVE = (
    "{} takes forward derivatives of the inner gradient, and an operation of the objective has none (it has a "
    "custom_vjp, or is a loop under mixed_mode()). Write it with jax.custom_jvp, or use unrolled(remat='step')."
)


def hoist(function: Callable, *args) -> tuple[Callable, list]:
    """Turn the traced values that a function closes over into arguments.

    A derivative rule of one's own sees only arguments. `jax.closure_convert` does the same
    for values that may be differentiated, and leaves those of an outer `vmap` behind, which
    then cannot be lowered inside of a scan.

    Returns:
      A function of the same arguments followed by the hoisted values, for arguments of these
      shapes; and the values.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    places = [place for place, const in enumerate(closed.consts) if isinstance(const, Tracer)]
    structure, num_args = jax.tree.structure(shapes), len(args)
    values = [closed.consts[place] for place in places]
    # The function is kept longer than the trace: it must not hold on to the traced values.
    jaxpr = closed.jaxpr
    constants = [None if isinstance(const, Tracer) else const for const in closed.consts]
    del closed, args

    def converted(*args_and_hoisted):
        consts = list(constants)
        for place, value in zip(places, args_and_hoisted[num_args:], strict=True):
            consts[place] = value
        outputs = jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*jax.tree.leaves(args_and_hoisted[:num_args]))
        return jax.tree.unflatten(structure, outputs)

    return converted, values


def operations(function: Callable, *args) -> set[str]:
    """Return the names of the primitives that a function is made of, those of its inner programs too."""
    return set(_names(jax.make_jaxpr(function)(*args)))


def _names(program: Jaxpr | ClosedJaxpr):
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    for equation in jaxpr.eqns:
        yield equation.primitive.name
    for inner in subjaxprs(jaxpr):
        yield from _names(inner)
