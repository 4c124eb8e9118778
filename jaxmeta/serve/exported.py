"""A classifier as a program that needs jax alone: StableHLO with the adapted numbers inside."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxmeta.serve.classifier import Classifier
from jaxmeta.serve.files import shown
from jaxmeta.serve.kept import write_whole

PLATFORMS = ("cpu", "cuda", "tpu")


def export_classifier(classifier: Classifier, path: Path) -> dict[str, Any]:
    """Write the function `pixels [batch, height, width, channels] uint8 -> probabilities [batch, classes]` to a file.

    The batch may be of any size. The file is read by `jax.export.deserialize(file.read_bytes()).call(pixels)`, which
    needs jax and flatbuffers, and not this package. Beside it, a file of the same name with `.json` at its end says
    what the classes are, and how an image becomes pixels.

    Args:
      classifier: From `adapt_run`.
      path: The file.

    Returns:
      What the second file says.

    Raises:
      OSError: if a file cannot be written.

    Example:
      >>> export_classifier(classifier, Path("letters.jax"))["platforms"]  # doctest: +SKIP
      ['cpu', 'cuda', 'tpu']
    """
    temperature, adapted = np.float32(classifier.temperature or 1.0), classifier.adapted

    def probabilities(pixels):
        logits = classifier.forward(adapted, pixels, jnp.ones(pixels.shape[:1]))
        return jax.nn.softmax(logits.astype(jnp.float32) / temperature)

    (batch,) = export.symbolic_shape("batch")
    pixels = jax.ShapeDtypeStruct((batch, *classifier.recipe[:3]), jnp.uint8)
    exported = export.export(jax.jit(probabilities), platforms=PLATFORMS)(pixels)
    described = {
        "classes": [shown(name) for name in classifier.class_names],
        "recipe": classifier.recipe._asdict(),
        "temperature": classifier.temperature,
        "pixels": ["batch", *classifier.recipe[:3], "uint8"],
        "probabilities": ["batch", len(classifier.class_names), "float32"],
        # Then an image is judged beside the others of its batch, and one alone is judged badly.
        "normalises_by_the_batch": classifier.origin["norm"] == "transductive",
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
        "call": "jax.export.deserialize(file.read_bytes()).call(pixels)",
    }
    write_whole(path, bytes(exported.serialize()))
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    write_whole(path.with_name(path.name + ".json"), text.encode())
    return described
