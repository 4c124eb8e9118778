"""Pickle files of arrays from elsewhere, read without running what they may ask for."""

import io
import pickle
from typing import Any

from jaxmeta.data.pools import DataError

# Where NumPy, old and new, says its arrays are made. A pickle may name any function to be called; these are harmless.
_ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _ARRAYS:
            raise DataError(f"it asks to run {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def read_pickle(contents: bytes, name: object) -> Any:
    """Read a pickle of numbers, texts, lists, dictionaries and NumPy arrays, and of nothing else.

    Args:
      contents: The file's.
      name: What to call it.

    Returns:
      What was pickled; texts written by Python 2 as text.

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
        return _ArraysOnly(io.BytesIO(contents), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{name} is not read: {error}. Fetch it again from where it is published.") from error
    except MemoryError:
        raise
    except Exception as error:  # A damaged pickle fails in a dozen ways.
        raise DataError(f"{name} is damaged ({type(error).__name__}: {error}). Fetch it again.") from error
