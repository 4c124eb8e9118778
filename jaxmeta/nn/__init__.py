"""Primitives that know about tasks, and their Flax modules."""

from jaxmeta.nn.contraction import contractions_in
from jaxmeta.nn.conv import Conv, conv2d, conv_general_dilated
from jaxmeta.nn.dense import dense
from jaxmeta.nn.lowering_table import Case, LoweringTable, lowerings_used
from jaxmeta.nn.lowerings import LOWERINGS
from jaxmeta.nn.norm import BatchNorm, batch_statistics
from jaxmeta.nn.pointwise import pointwise
from jaxmeta.nn.pool import max_pool_2x2

__all__ = [
    "LOWERINGS",
    "BatchNorm",
    "Case",
    "Conv",
    "LoweringTable",
    "batch_statistics",
    "contractions_in",
    "conv2d",
    "conv_general_dilated",
    "dense",
    "lowerings_used",
    "max_pool_2x2",
    "pointwise",
]
