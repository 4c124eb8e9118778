"""The correctness kit: closed forms, finite differences, comparisons, the origin of a NaN, and what leaks."""

from jaxmeta.check.compare import Comparison, compare_estimators, comparison_table
from jaxmeta.check.correct import LeafCheck, assert_meta_grad_correct
from jaxmeta.check.leak import Leak, leak_test
from jaxmeta.check.nonfinite import NonFinite, find_nonfinite
from jaxmeta.check.problem import Problem, episode_of, learner_of, meta_loss_of
from jaxmeta.check.quadratic import Quadratic, quadratic

__all__ = [
    "Comparison",
    "Leak",
    "LeafCheck",
    "NonFinite",
    "Problem",
    "Quadratic",
    "assert_meta_grad_correct",
    "compare_estimators",
    "comparison_table",
    "episode_of",
    "find_nonfinite",
    "leak_test",
    "learner_of",
    "meta_loss_of",
    "quadratic",
]
