"""Learning to tune: how a classifier should be trained, as something that is itself learned."""

from jaxmeta.tuning.metafeatures import (
    Pca,
    fit_pca,
    landmark_features,
    pca_features,
    project,
    statistical_features,
    task_features,
)
from jaxmeta.tuning.networks import Network, conv_net
from jaxmeta.tuning.ranges import Range, check_range, raw_of, raws_of, value_of, values_of
from jaxmeta.tuning.training import Hypers, change_light, hyper_sgd, training_objective
from jaxmeta.tuning.warm_start import Experience, expected_scores, warm_start

__all__ = [
    "Experience",
    "Hypers",
    "Network",
    "Pca",
    "Range",
    "change_light",
    "check_range",
    "conv_net",
    "expected_scores",
    "fit_pca",
    "hyper_sgd",
    "landmark_features",
    "pca_features",
    "project",
    "raw_of",
    "raws_of",
    "statistical_features",
    "task_features",
    "training_objective",
    "value_of",
    "values_of",
    "warm_start",
]
