"""Learning to tune: how a classifier should be trained, as something that is itself learned."""

from jaxmeta.tuning.learned_optimizer import LearnedOptimizer, lstm_optimizer, mlp_optimizer
from jaxmeta.tuning.networks import Network, conv_net
from jaxmeta.tuning.optimizer_tasks import varied_mlp
from jaxmeta.tuning.optimizer_training import optimizer_learner
from jaxmeta.tuning.ranges import Range, check_range, raw_of, raws_of, value_of, values_of
from jaxmeta.tuning.training import Hypers, change_light, hyper_sgd, training_objective

__all__ = [
    "Hypers",
    "LearnedOptimizer",
    "Network",
    "Range",
    "change_light",
    "check_range",
    "conv_net",
    "hyper_sgd",
    "lstm_optimizer",
    "mlp_optimizer",
    "optimizer_learner",
    "raw_of",
    "raws_of",
    "training_objective",
    "value_of",
    "values_of",
    "varied_mlp",
]
