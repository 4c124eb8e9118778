"""Pickled files of NumPy arrays, read without running what is in them.

A pickle is a program: reading one with `pickle.load` does whatever its author wrote. Here only the instructions for
plain containers and numbers run, and in place of NumPy's functions, which a pickle of arrays calls, stand small ones
that take bytes, a type of numbers and a shape, and check them. Anything else is refused before it is done.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from jaxmeta.data.pools import DataError

_NUMBERS = frozenset("uif")


class _Type:
    """In place of `numpy.dtype`, which a pickle makes and then tells its byte order."""

    def __init__(self, code, *_):
        dtype = np.dtype(_text(code))
        if dtype.kind not in _NUMBERS:
            raise pickle.UnpicklingError(f"arrays of {dtype} are not read")
        self.value = dtype

    def __setstate__(self, state):
        order = _text(state[1])
        if order in "<>":
            self.value = self.value.newbyteorder(order)


class _Array:
    """In place of `numpy.ndarray`, which a pickle makes empty and then fills."""

    value: np.ndarray

    def __setstate__(self, state):
        _, shape, dtype, fortran, contents = state
        self.value = _from_buffer(contents, dtype, shape, "F" if fortran else "C")


def _empty_array(*_):
    return _Array()


def _array(contents, dtype, shape, order):
    array = _Array()
    array.value = _from_buffer(contents, dtype, shape, _text(order))
    return array


def _from_buffer(contents, dtype, shape, order) -> np.ndarray:
    if not isinstance(dtype, _Type) or not isinstance(contents, (bytes, bytearray)):
        raise pickle.UnpicklingError("an array is not of numbers")
    return np.frombuffer(contents, dtype.value).reshape(shape, order=order)


def _latin(text, encoding):
    # How bytes are written by the older protocols.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not read")
    return text.encode("latin1")


_KNOWN = {
    "dtype": ("numpy", _Type),
    "ndarray": ("numpy", _Array),
    "_reconstruct": ("multiarray", _empty_array),
    "_frombuffer": ("numeric", _array),
    "encode": ("_codecs", _latin),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """Give what stands for a function of NumPy's; refuse all others."""
        module, known = _KNOWN.get(global_name, ("", None))
        # NumPy 2 has moved its modules to numpy._core.
        places = {f"numpy.core.{module}", f"numpy._core.{module}"} if module in ("multiarray", "numeric") else {module}
        if known is None or module_name not in places:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is not run")
        return known


def read_array_pickle(path: Path) -> Any:
    """Read a pickled file of dictionaries, lists, texts, numbers and NumPy arrays, and of nothing else.

    Args:
      path: The file, of any protocol, written by Python 2 or 3.

    Returns:
      What is in it. Texts that Python 2 wrote are read as UTF-8 text where they are keys.

    Raises:
      DataError: the file is damaged, or holds something else, which is not run.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "arrays.pkl"
      ...     _ = path.write_bytes(pickle.dumps({"a": np.arange(3)}))
      ...     read_array_pickle(path)
      {'a': array([0, 1, 2])}
    """
    try:
        with open(path, "rb") as file:
            return _plain(_Reader(file, encoding="bytes").load())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # A damaged pickle fails in a dozen ways.
        if isinstance(error, MemoryError):
            raise
        raise DataError(
            f"{path} is damaged, or holds more than arrays ({error or type(error).__name__}), and is not read: a "
            "pickle can run any program. Give the images themselves instead."
        ) from error


def _plain(value: Any) -> Any:
    """Exchange the stand-ins for the arrays that they hold."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise pickle.UnpicklingError(f"a {type(value).__name__.lstrip('_')} is not read")


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
