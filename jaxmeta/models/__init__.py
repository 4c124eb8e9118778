"""Models: table of factories `(outputs, **options) -> Model`, and adapters for your own networks."""

from functools import partial

from jaxmeta.models.adapters import from_function, from_linen, from_nnx, with_flat_features
from jaxmeta.models.context import FullContext, full_context
from jaxmeta.models.conv4 import conv4
from jaxmeta.models.mlp import linear, mlp
from jaxmeta.models.precision import PRECISIONS, in_precision
from jaxmeta.models.relation import relation_module
from jaxmeta.models.resnet12 import resnet12

MODELS = {
    "conv4": conv4,
    "conv4-maps": partial(conv4, halvings=2, maps=True),
    "conv4-stride": partial(conv4, downsample="stride"),
    "linear": linear,
    "mlp": mlp,
    "resnet12": resnet12,
}

__all__ = [
    "MODELS",
    "PRECISIONS",
    "FullContext",
    "conv4",
    "from_function",
    "from_linen",
    "from_nnx",
    "full_context",
    "in_precision",
    "linear",
    "mlp",
    "relation_module",
    "resnet12",
    "with_flat_features",
]
