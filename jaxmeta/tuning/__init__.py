"""Learning to tune: how a classifier should be trained, as something that is itself learned."""

from jaxmeta.tuning.dqn import QLearner, QState, Transition, dqn, q_target, softmax_policy
from jaxmeta.tuning.environment import Environment, Outcome, Policy, Trace, bandit, chain, rollout
from jaxmeta.tuning.networks import Network, conv_net
from jaxmeta.tuning.ranges import Range, check_range, raw_of, raws_of, value_of, values_of
from jaxmeta.tuning.replay import Replay, add_to_replay, empty_replay, sample_replay
from jaxmeta.tuning.training import Hypers, change_light, hyper_sgd, training_objective
from jaxmeta.tuning.training_environment import Training, keep_action, shares_of, training_environment, values_at

__all__ = [
    "Environment",
    "Hypers",
    "Network",
    "Outcome",
    "Policy",
    "QLearner",
    "QState",
    "Range",
    "Replay",
    "Trace",
    "Training",
    "Transition",
    "add_to_replay",
    "bandit",
    "chain",
    "change_light",
    "check_range",
    "conv_net",
    "dqn",
    "empty_replay",
    "hyper_sgd",
    "keep_action",
    "q_target",
    "raw_of",
    "raws_of",
    "rollout",
    "sample_replay",
    "shares_of",
    "softmax_policy",
    "training_environment",
    "training_objective",
    "value_of",
    "values_at",
    "values_of",
]
