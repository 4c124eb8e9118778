"""Making explicit what a function closes over."""

from collections.abc import Callable

import jax
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun


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
