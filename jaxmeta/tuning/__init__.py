"""Learning to tune: how a classifier should be trained, as something that is itself learned."""

from jaxmeta.tuning.hypergradient import (
    Tuner,
    TuneRound,
    TuneState,
    average_of_rounds,
    hypergradient,
    tune,
)
from jaxmeta.tuning.meta_network import (
    HyperController,
    TrainingFeatures,
    learned_values,
    meta_network,
    training_features,
)
from jaxmeta.tuning.networks import Network, conv_net
from jaxmeta.tuning.ranges import Range, check_range, raw_of, raws_of, value_of, values_of
from jaxmeta.tuning.reweighting import Weighting, flip_labels, reweighting, weight_network
from jaxmeta.tuning.training import Hypers, change_light, hyper_sgd, training_objective, validation_loss_of

__all__ = [
    "HyperController",
    "Hypers",
    "Network",
    "Range",
    "TrainingFeatures",
    "TuneRound",
    "TuneState",
    "Tuner",
    "Weighting",
    "average_of_rounds",
    "change_light",
    "check_range",
    "conv_net",
    "flip_labels",
    "hyper_sgd",
    "hypergradient",
    "learned_values",
    "meta_network",
    "raw_of",
    "raws_of",
    "reweighting",
    "training_features",
    "training_objective",
    "tune",
    "validation_loss_of",
    "value_of",
    "values_of",
    "weight_network",
]
