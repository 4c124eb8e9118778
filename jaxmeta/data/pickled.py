"""Pickle files of arrays from elsewhere, read without running what is in them.

A pickle is a program: `pickle.load` does whatever its author wrote. Here only its instructions for plain containers and
numbers run. In place of the functions of NumPy that a pickle of arrays calls stand small ones, which take bytes, a type
of numbers and a shape, and check them: NumPy's own believe what they are told, up to addresses of memory. Anything else
is refused before it is done.
"""

import io
import pickle
from typing import Any

import numpy as np

from jaxmeta.data.pools import DataError

_NUMBERS = frozenset("uif")


class _Type:
    """In place of `numpy.dtype`, which a pickle makes and then tells its byte order."""

    def __init__(self, code: str, *_):
        self.value = np.dtype(code)
        if self.value.kind not in _NUMBERS:
            raise DataError(f"it holds arrays of {self.value}")

    def __setstate__(self, state: tuple):
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """In place of `numpy.ndarray`, which a pickle makes empty and then fills."""

    value: np.ndarray

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, contents = state
        self.value = _numbers(contents, dtype, shape, "F" if fortran else "C")


def _numbers(contents: bytes | str, dtype: _Type, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    if not isinstance(dtype, _Type):
        raise DataError("it holds an array of no type of numbers")
    # Python 2 had no bytes: they are read as text.
    contents = contents.encode("latin1") if isinstance(contents, str) else contents
    return np.frombuffer(contents, dtype.value).reshape(shape, order="F" if order == "F" else "C")


def _filled(contents: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.value = _numbers(contents, dtype, shape, order)
    return array


def _single(dtype: _Type, contents: bytes | str) -> Any:
    return _numbers(contents, dtype, ()).item()


def _latin(text: str, encoding: str) -> bytes:
    """Make bytes of what the older protocols write in place of them."""
    if encoding != "latin1":
        raise DataError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


# Where NumPy, old and new, says its arrays are made, and what is done instead.
_INSTEAD = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _latin,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _single for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _filled for core in ("core", "_core")},
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _INSTEAD:
            raise DataError(f"it asks to run {module_name}.{global_name}")
        return _INSTEAD[module_name, global_name]


def read_pickle(contents: bytes, name: object) -> Any:
    """Read a pickle of numbers, texts, lists, dictionaries and arrays of numbers, and of nothing else.

    Args:
      contents: The file's.
      name: What to call it.

    Returns:
      What was pickled, tuples as lists; texts written by Python 2 as text.

    Raises:
      DataError: it is damaged, or asks for anything else: a pickle can run any program.

    Example:
      >>> read_pickle(pickle.dumps({"labels": [3, 8]}), "batch")
      {'labels': [3, 8]}
      >>> read_pickle(pickle.dumps(print), "batch")
      Traceback (most recent call last):
      ...
      jaxmeta.data.pools.DataError: batch is not read: it asks to run builtins.print. ...
    """
    try:
        return _plain(_ArraysOnly(io.BytesIO(contents), encoding="latin1").load())
    except DataError as error:
        raise DataError(f"{name} is not read: {error}. Fetch it again from where it is published.") from error
    except MemoryError:
        raise
    except Exception as error:  # A damaged pickle fails in a dozen ways.
        raise DataError(f"{name} is damaged ({type(error).__name__}: {error}). Fetch it again.") from error


def _plain(value: Any) -> Any:
    """Exchange the stand-ins for the arrays that they hold."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise DataError(f"it holds a {type(value).__name__.lstrip('_')}")
