"""Looking into a function by tracing it: what it closes over, and which operations it is made of."""

from collections.abc import Callable

import jax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, subjaxprs


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
    structure = jax.tree.structure(shapes)

    def converted(*args_and_hoisted):
        consts = list(closed.consts)
        given, hoisted = args_and_hoisted[: len(args)], args_and_hoisted[len(args) :]
        for place, value in zip(places, hoisted, strict=True):
            consts[place] = value
        outputs = jaxpr_as_fun(closed.replace(consts=consts))(*jax.tree.leaves(given))
        return jax.tree.unflatten(structure, outputs)

    return converted, [closed.consts[place] for place in places]


def operations(function: Callable, *args) -> set[str]:
    """Return the names of the primitives that a function is made of, those of its inner programs too."""
    return set(_names(jax.make_jaxpr(function)(*args)))


def _names(program: Jaxpr | ClosedJaxpr):
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    for equation in jaxpr.eqns:
        yield equation.primitive.name
    for inner in subjaxprs(jaxpr):
        yield from _names(inner)
