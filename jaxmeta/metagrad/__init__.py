"""Strategies (how one inner loop is differentiated) and estimators (how the whole meta-loss is)."""

from functools import partial

from jaxmeta.metagrad.estimators import exact, mean_over_tasks
from jaxmeta.metagrad.strategies import first_order, run_loop, unrolled

METAGRADS = {
    "unrolled": unrolled,
    "remat": partial(unrolled, remat=True),
    "first_order": first_order,
}

ESTIMATORS = {
    "exact": exact,
}

__all__ = ["ESTIMATORS", "METAGRADS", "exact", "first_order", "mean_over_tasks", "run_loop", "unrolled"]
