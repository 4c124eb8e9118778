"""Identities that refuse a derivative which would otherwise be wrong or end in an obscure error.

JAX has no hook that runs only when a value is differentiated, and none that tells
forward from reverse mode. The rules of a primitive do: a JVP rule is called for a
value that depends on what is differentiated; the tangent program that it adds to is
transposed in reverse mode, and evaluated in forward mode only.
"""

from functools import partial

from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxmeta.base import PyTree
from jaxmeta.metagrad.leaves import map_floats


def _identity(name):
    primitive = Primitive(name)
    primitive.def_impl(lambda value, **params: value)
    primitive.def_abstract_eval(lambda aval, **params: aval)
    mlir.register_lowering(primitive, lambda context, value, **params: [value])
    batching.primitive_batchers[primitive] = lambda args, axes, **params: (primitive.bind(*args, **params), axes[0])
    return primitive


def _refuse(*args, error, reason):
    raise error(reason)


_no_derivative = _identity("no_derivative")
ad.primitive_jvps[_no_derivative] = _refuse

_reverse_only = _identity("reverse_only")
_tangent = _identity("reverse_only_tangent")
_tangent.def_impl(_refuse)
mlir.register_lowering(_tangent, _refuse)
batching.primitive_batchers[_tangent] = _refuse
ad.primitive_jvps[_tangent] = _refuse
ad.primitive_transposes[_tangent] = lambda cotangent, value, **params: [cotangent]


def _reverse_only_jvp(primals, tangents, **params):
    return _reverse_only.bind(*primals, **params), _tangent.bind(*tangents, **params)


ad.primitive_jvps[_reverse_only] = _reverse_only_jvp


def no_derivative(tree: PyTree, reason: str) -> PyTree:
    """Return the tree; raise ValueError with the reason when one of its floats is differentiated."""
    return map_floats(partial(_no_derivative.bind, error=ValueError, reason=reason), tree)


def reverse_only(tree: PyTree, reason: str) -> PyTree:
    """Return the tree; raise TypeError with the reason when one of its floats is differentiated forwards."""
    return map_floats(partial(_reverse_only.bind, error=TypeError, reason=reason), tree)
