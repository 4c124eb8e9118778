"""What a meta-step costs here: standard loads, each measured in a process of its own."""

from jaxmeta.bench.loads import LOADS, Load, count_flops, tiny

__all__ = ["LOADS", "Load", "count_flops", "tiny"]
