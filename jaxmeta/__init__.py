"""Learning to learn on images, with fast exact second-order meta-gradients."""

from jaxmeta.algorithms import ALGORITHMS, maml
from jaxmeta.base import (
    Batch,
    Episode,
    Estimate,
    Estimator,
    Evaluation,
    InnerResult,
    Loop,
    MetaGrad,
    MetaLearner,
    Model,
    TrainState,
    check_episode,
    example_batch,
)
from jaxmeta.data import (
    DATASETS,
    ClassPool,
    Dataset,
    EpisodeSpec,
    TaskSource,
    load_glyphs,
    load_omniglot,
    load_sinusoid,
    sample_episode,
    sample_episodes,
    task_source,
)
from jaxmeta.evaluate import evaluate, make_evaluator
from jaxmeta.inner import inner_loop
from jaxmeta.losses import CRITERIA, Criterion, accuracy, cross_entropy, mean_squared_error
from jaxmeta.metagrad import ESTIMATORS, METAGRADS, exact, first_order, unrolled
from jaxmeta.metrics import estimate
from jaxmeta.models import MODELS, conv4, from_function, from_linen, from_nnx, linear, mlp
from jaxmeta.train import fit, init_train_state, make_train_step

__version__ = "0.1.0"

__all__ = [
    "ALGORITHMS",
    "CRITERIA",
    "DATASETS",
    "ESTIMATORS",
    "METAGRADS",
    "MODELS",
    "Batch",
    "ClassPool",
    "Criterion",
    "Dataset",
    "Episode",
    "EpisodeSpec",
    "Estimate",
    "Estimator",
    "Evaluation",
    "InnerResult",
    "Loop",
    "MetaGrad",
    "MetaLearner",
    "Model",
    "TaskSource",
    "TrainState",
    "accuracy",
    "check_episode",
    "conv4",
    "cross_entropy",
    "estimate",
    "evaluate",
    "example_batch",
    "exact",
    "first_order",
    "fit",
    "from_function",
    "from_linen",
    "from_nnx",
    "init_train_state",
    "inner_loop",
    "linear",
    "load_glyphs",
    "load_omniglot",
    "load_sinusoid",
    "make_evaluator",
    "make_train_step",
    "maml",
    "mean_squared_error",
    "mlp",
    "sample_episode",
    "sample_episodes",
    "task_source",
    "unrolled",
]
