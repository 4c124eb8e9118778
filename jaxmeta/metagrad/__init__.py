"""Strategies (how one inner loop is differentiated) and estimators (how the whole meta-loss is)."""

from functools import partial

from jaxmeta.metagrad.bootstrapped import bootstrapped
from jaxmeta.metagrad.estimators import exact, mean_over_tasks, skip_diverged
from jaxmeta.metagrad.evolution import evolution, nres, pes
from jaxmeta.metagrad.forward import forward
from jaxmeta.metagrad.implicit import conjugate_gradient, implicit, neumann
from jaxmeta.metagrad.leaves import check_count, check_floats
from jaxmeta.metagrad.mixed import MixedModeWarning, mixed_mode
from jaxmeta.metagrad.strategies import first_order, truncated, unrolled

METAGRADS = {
    "unrolled": unrolled,
    "remat": partial(unrolled, remat="step"),
    "remat_group": partial(unrolled, remat="group"),
    "mixed_mode": mixed_mode,
    "first_order": first_order,
    "truncated": truncated,
    "implicit": implicit,
    "forward": forward,
}

ESTIMATORS = {
    "exact": exact,
    "evolution": evolution,
    "pes": pes,
    "nres": nres,
    "bootstrapped": bootstrapped,
}

__all__ = [
    "ESTIMATORS",
    "METAGRADS",
    "MixedModeWarning",
    "bootstrapped",
    "check_count",
    "check_floats",
    "conjugate_gradient",
    "evolution",
    "exact",
    "first_order",
    "forward",
    "implicit",
    "mean_over_tasks",
    "mixed_mode",
    "neumann",
    "nres",
    "pes",
    "skip_diverged",
    "truncated",
    "unrolled",
]
