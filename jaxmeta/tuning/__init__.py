"""Learning to tune: how a classifier should be trained, as something that is itself learned."""

from jaxmeta.tuning.afterstate import afterstate_values
from jaxmeta.tuning.architecture import (
    Architecture,
    Cell,
    Space,
    check_architecture,
    check_space,
    network_of,
    number_of_architectures,
    possible_skips,
    random_architecture,
)
from jaxmeta.tuning.dqn import QLearner, QState, dqn, softmax_policy
from jaxmeta.tuning.environment import Environment, Outcome, Policy, Trace, bandit, chain, rollout
from jaxmeta.tuning.extractors import pca_extractor, random_extractor
from jaxmeta.tuning.hypergradient import Tuner, TuneRound, TuneState, hypergradient, tune
from jaxmeta.tuning.learned_maml import learned_maml
from jaxmeta.tuning.learned_optimizer import LearnedOptimizer, lstm_optimizer, mlp_optimizer
from jaxmeta.tuning.meta_network import (
    HyperController,
    TrainingFeatures,
    learned_values,
    meta_network,
    training_features,
)
from jaxmeta.tuning.metafeatures import (
    Pca,
    fit_pca,
    landmark_features,
    pca_features,
    project,
    statistical_features,
    task_features,
)
from jaxmeta.tuning.networks import Network, conv_net, outputs_in_parts
from jaxmeta.tuning.optimizer_tasks import varied_mlp
from jaxmeta.tuning.optimizer_training import optimizer_learner
from jaxmeta.tuning.q_targets import Transition, n_step_transition, q_target
from jaxmeta.tuning.ranges import Range, check_range, raw_of, raws_of, value_of, values_of
from jaxmeta.tuning.replay import Replay, add_to_replay, empty_replay, sample_replay, sample_runs
from jaxmeta.tuning.reweighting import (
    Weighting,
    flip_labels,
    one_step_weights,
    reweighted_objective,
    reweighting,
    weight_network,
)
from jaxmeta.tuning.search import Search, SearchState, architecture_search
from jaxmeta.tuning.supernet import Supernet, mixture_of, read_off, supernet
from jaxmeta.tuning.switch import Switch, choice_probabilities, fit_switch
from jaxmeta.tuning.training import (
    Hypers,
    change_light,
    check_domains,
    check_hypers,
    hyper_sgd,
    training_losses,
    training_objective,
    validation_loss_of,
)
from jaxmeta.tuning.training_environment import (
    Training,
    keep_action,
    share_moves,
    shares_of,
    training_environment,
    values_at,
)
from jaxmeta.tuning.trees import average_of_rounds
from jaxmeta.tuning.warm_start import Experience, expected_scores, warm_start
from jaxmeta.tuning.whole_trainings import (
    MetaTrainReport,
    MetaTrainState,
    WholeTraining,
    learn_over_trainings,
    whole_training,
)

__all__ = [
    "Architecture",
    "Cell",
    "Environment",
    "Experience",
    "HyperController",
    "one_step_weights",
    "reweighted_objective",
    "training_losses",
    "MetaTrainReport",
    "MetaTrainState",
    "WholeTraining",
    "learn_over_trainings",
    "whole_training",
    "Hypers",
    "LearnedOptimizer",
    "Network",
    "Outcome",
    "Pca",
    "Policy",
    "QLearner",
    "QState",
    "Range",
    "Replay",
    "Search",
    "SearchState",
    "Space",
    "Supernet",
    "Switch",
    "Trace",
    "Training",
    "TrainingFeatures",
    "Transition",
    "TuneRound",
    "TuneState",
    "Tuner",
    "Weighting",
    "add_to_replay",
    "afterstate_values",
    "architecture_search",
    "average_of_rounds",
    "bandit",
    "chain",
    "change_light",
    "check_architecture",
    "check_domains",
    "check_hypers",
    "check_range",
    "check_space",
    "choice_probabilities",
    "conv_net",
    "dqn",
    "empty_replay",
    "expected_scores",
    "fit_pca",
    "fit_switch",
    "flip_labels",
    "hyper_sgd",
    "hypergradient",
    "keep_action",
    "landmark_features",
    "learned_maml",
    "learned_values",
    "lstm_optimizer",
    "meta_network",
    "mixture_of",
    "mlp_optimizer",
    "n_step_transition",
    "network_of",
    "number_of_architectures",
    "optimizer_learner",
    "outputs_in_parts",
    "pca_extractor",
    "pca_features",
    "possible_skips",
    "project",
    "q_target",
    "random_architecture",
    "random_extractor",
    "raw_of",
    "raws_of",
    "read_off",
    "reweighting",
    "rollout",
    "sample_replay",
    "sample_runs",
    "share_moves",
    "shares_of",
    "softmax_policy",
    "statistical_features",
    "supernet",
    "task_features",
    "training_environment",
    "training_features",
    "training_objective",
    "tune",
    "validation_loss_of",
    "value_of",
    "values_at",
    "values_of",
    "varied_mlp",
    "warm_start",
    "weight_network",
]
