"""Primitives that know about tasks, and their Flax modules."""

from jaxmeta.nn.conv import Conv, conv2d
from jaxmeta.nn.lowerings import LOWERINGS
from jaxmeta.nn.norm import BatchNorm, batch_statistics
from jaxmeta.nn.pool import max_pool_2x2

__all__ = ["LOWERINGS", "BatchNorm", "Conv", "batch_statistics", "conv2d", "max_pool_2x2"]
