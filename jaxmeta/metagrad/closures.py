"""Looking into a function by tracing it: what it closes over, what it uses, which operations it is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, subjaxprs
from jax.interpreters import partial_eval

# Tangents that exist in reverse mode only: of a custom_vjp (JAX's name), and of mixed_mode().
REVERSE_ONLY = {"custom_lin", "reverse_only_tangent"}
NO_FORWARD_DERIVATIVE = (
    "{} takes forward derivatives of the inner gradient, and an operation of the objective has none (it has a "
    "custom_vjp, or is a loop under mixed_mode()). Write it with jax.custom_jvp, or use unrolled(remat='step')."
)


class Program(NamedTuple):
    """A function that was traced once, for arguments of certain shapes."""

    jaxpr: Jaxpr
    consts: list
    structure: Any


def trace(function: Callable, *args) -> Program:
    """Trace a function."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    return Program(closed.jaxpr, list(closed.consts), jax.tree.structure(shapes))


def run(program: Program, *args):
    """Run a traced function: cheaper than to trace it again."""
    outputs = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, program.consts))(*jax.tree.leaves(args))
    return jax.tree.unflatten(program.structure, outputs)


def hoist(program: Program, num_args: int) -> tuple[Callable, list]:
    """Turn the traced values that a function closes over into arguments.

    A derivative rule of one's own sees only arguments. `jax.closure_convert` does the same
    for values that may be differentiated, and leaves those of an outer `vmap` behind, which
    then cannot be lowered inside of a scan.

    Returns:
      A function of the same arguments, `num_args` of them, followed by the hoisted values;
      and the values.
    """
    places = [place for place, const in enumerate(program.consts) if isinstance(const, Tracer)]
    values = [program.consts[place] for place in places]
    # The function is kept longer than the trace: it must not hold on to the traced values.
    emptied = program._replace(consts=[None if isinstance(const, Tracer) else const for const in program.consts])

    def converted(*args_and_hoisted):
        consts = list(emptied.consts)
        for place, value in zip(places, args_and_hoisted[num_args:], strict=True):
            consts[place] = value
        return run(emptied._replace(consts=consts), *args_and_hoisted[:num_args])

    return converted, values


def used(program: Program, num_outputs: int) -> list[bool]:
    """Tell on which leaves of its arguments the first leaves of a function's outputs depend."""
    needed = [place < num_outputs for place in range(len(program.jaxpr.outvars))]
    return partial_eval.dce_jaxpr(program.jaxpr, needed)[1]


def operations(program: Program | Jaxpr) -> set[str]:
    """Return the names of the primitives that a function is made of, those of its inner programs too."""
    jaxpr = program.jaxpr if isinstance(program, Program) else program
    names = {equation.primitive.name for equation in jaxpr.eqns}
    return names.union(*map(operations, subjaxprs(jaxpr)))
