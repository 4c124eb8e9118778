"""A classifier in one file: its numbers, its labelled images, and in plain values how to build its learner again."""

import hashlib
import io
import json
import os
import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta.config import ConfigError
from jaxmeta.config_json import from_json
from jaxmeta.data import DataError
from jaxmeta.folder import data_from_json
from jaxmeta.nn import LoweringTable
from jaxmeta.serve.adapting import learner_maker
from jaxmeta.serve.classifier import Classifier, make_adapt, make_forward, padded_support
from jaxmeta.serve.files import Images, Support, shown

FORMAT_VERSION = 1
NAME = "classifier.npz"


def write_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier to one file, all of it or nothing.

    Args:
      path: The file; its folder is made if need be.
      classifier: From `adapt_run`.

    Raises:
      OSError: the file could not be written; what was there before is untouched.
    """
    support = classifier.support
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(classifier.adapted)]
    arrays: dict[str, Any] = {f"leaf{number:04d}": leaf for number, leaf in enumerate(leaves)}
    arrays |= {"pixels": support.images.pixels, "targets": support.targets}
    header = {
        "format": FORMAT_VERSION,
        "class_names": [shown(name) for name in classifier.class_names],
        "files": [shown(file) for file in support.images.files],
        "temperature": classifier.temperature,
        "origin": classifier.origin,
        "sha256": _digest(arrays),
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def read_classifier(path: Path) -> Classifier:
    """Read what `write_classifier` wrote.

    Args:
      path: The file, or the folder that it is in under the name `classifier.npz`.

    Returns:
      The `Classifier`.

    Raises:
      DataError: if there is none, or it is damaged or of another version.
    """
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"There is no classifier {path}. Make one with `jaxmeta adapt RUN ... --save`.")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        header = json.loads(arrays.pop("header").tobytes())
        version, whole = header["format"], header["sha256"] == _digest(arrays)
    except Exception as error:  # A damaged file fails in a dozen ways.
        raise _unusable(path, str(error)) from error
    if version != FORMAT_VERSION:
        raise _unusable(path, f"it has format {version}; this version reads {FORMAT_VERSION}")
    if not whole:
        raise _unusable(path, "its contents do not match its checksum")
    try:
        return _rebuilt(header, arrays)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise _unusable(path, str(error)) from error


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file under another name and move it into place; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        draft.write_bytes(contents)
        os.replace(draft, path)
    finally:
        # Gone already where all went well.
        draft.unlink(missing_ok=True)


def _rebuilt(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Classifier:
    """Build the learner again, and put the numbers where its adaptation would leave them."""
    origin = header["origin"]
    config, dataset = from_json(origin["config"]), data_from_json(origin["data"])
    assert dataset.recipe is not None
    lowering = origin["lowering"]
    lowering = lowering if isinstance(lowering, str) else LoweringTable.from_json(lowering)
    learner = learner_maker(config, dataset, lowering)(origin["outputs"])
    images = Images(arrays.pop("pixels"), tuple(map(Path, header["files"])), ())
    support = Support(images, arrays.pop("targets"), tuple(header["class_names"]))

    def adapted_again():
        pixels, targets, weights = padded_support(support)
        numbers = learner.init(jax.random.key(0), np.zeros(pixels.shape, np.float32))
        return make_adapt(learner, origin["inner_steps"])(*numbers, pixels, targets, weights)

    shapes, structure = jax.tree.flatten(jax.eval_shape(adapted_again))
    leaves = [_as(arrays[name], like.dtype) for name, like in zip(sorted(arrays), shapes, strict=True)]
    for leaf, like in zip(leaves, shapes, strict=True):
        if leaf.shape != like.shape:
            raise ValueError(f"a leaf has shape {list(leaf.shape)}; needed is {list(like.shape)}")
    adapted = jax.device_put(jax.tree.unflatten(structure, leaves))
    forward = jax.jit(make_forward(learner, len(support.class_names)))
    known = adapted, forward, header["temperature"], support, origin
    return Classifier(support.class_names, dataset.recipe, *known)


def _as(array: np.ndarray, dtype) -> np.ndarray:
    """NumPy's files know bfloat16 only as two bytes."""
    return array.view(dtype) if array.dtype.kind == "V" else array.astype(dtype, copy=False)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _unusable(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged, or no classifier of this version ({why}). Make it again: `jaxmeta adapt`.")
