"""Algorithms: table of factories `(model, **options) -> MetaLearner`, one file each."""

from jaxmeta.algorithms.maml import NORMS, maml

ALGORITHMS = {
    "maml": maml,
}

__all__ = ["ALGORITHMS", "NORMS", "maml"]
