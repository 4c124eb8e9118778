"""The correctness kit: closed forms, finite differences, comparisons and the origin of a NaN."""

from jaxmeta.check.compare import Comparison, compare_estimators, comparison_table
from jaxmeta.check.correct import LeafCheck, assert_meta_grad_correct
from jaxmeta.check.nonfinite import NonFinite, find_nonfinite
from jaxmeta.check.problem import Problem, episode_of, learner_of, meta_loss_of
from jaxmeta.check.quadratic import Quadratic, quadratic

__all__ = [
    "Comparison",
    "LeafCheck",
    "NonFinite",
    "Problem",
    "Quadratic",
    "assert_meta_grad_correct",
    "compare_estimators",
    "comparison_table",
    "episode_of",
    "find_nonfinite",
    "learner_of",
    "meta_loss_of",
    "quadratic",
]
