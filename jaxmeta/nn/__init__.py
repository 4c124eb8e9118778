"""Primitives that know about tasks, and their Flax modules."""

from jaxmeta.nn.conv import Conv, conv2d, extract_patches
from jaxmeta.nn.norm import BatchNorm, batch_statistics
from jaxmeta.nn.pool import max_pool_2x2

__all__ = ["BatchNorm", "Conv", "batch_statistics", "conv2d", "extract_patches", "max_pool_2x2"]
