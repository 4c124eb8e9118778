"""The options that learners have in common, written down once; a factory takes them as `**options`."""

import inspect
from collections.abc import Callable
from typing import Required, TypedDict, get_args, get_type_hints

from jaxmeta.base import MetaGrad
from jaxmeta.inner import InnerOptimizer
from jaxmeta.losses import Criterion


class StepOptions(TypedDict, total=False):
    """Options of every learner that adapts by gradient steps.

    Attributes:
      num_steps: Inner steps in training (1, where the algorithm has no number of its own); `adapt`
        takes another number.
      criterion: Loss of both loops, and metrics; that of classification if left out.
      norm: "transductive" (if left out) normalises the query set by its own statistics, as
        in the papers; "inductive" by those of the support set under the adapted parameters,
        so that no query example is seen through another.
      log_grad_norms: Add the norm of the gradient at every inner step to the metrics, as
        "inner_grad_norm_1" and so on.
    """

    num_steps: int
    criterion: Criterion
    norm: str
    log_grad_norms: bool


class LoopOptions(StepOptions, total=False):
    """And of those that leave open the inner optimiser.

    Attributes:
      inner_optimizer: Any optax transformation, or a function of the meta-parameters that gives one.
    """

    inner_optimizer: Required[InnerOptimizer]


class StrategyOptions(StepOptions, total=False):
    """And of those that leave open how the inner loop is differentiated.

    Attributes:
      metagrad: How the inner loop is differentiated; exact second order if left out.
      proximal: Strength of the pull of the adapted numbers towards where they began (0).
    """

    metagrad: MetaGrad | None
    proximal: float


class GradientOptions(LoopOptions, StrategyOptions, total=False):
    """And of those that leave open both."""


class HeadOptions(TypedDict, total=False):
    """Options of every learner that embeds its images and puts a head on the support set.

    Attributes:
      criterion: Metrics, and the loss of heads that have none of their own; that of
        classification if left out.
      norm: Whose statistics normalise the embedding of the query set: "inductive" (if left out),
        those of the support set; "running", averages over the training tasks; "transductive",
        those of the query set itself.
    """

    criterion: Criterion
    norm: str


class ProbeOptions(HeadOptions, total=False):
    """And of those that classify among all training classes, and fit a new head to a task's frozen features.

    Attributes:
      classes: Number of training classes.
      ways: Most classes in a task; one without a support example is never predicted.
      inner_optimizer: Of the head of a task: any optax transformation, or what `inner_sgd` and its kin give.
      num_steps: Its steps (100), each on the whole support set.
    """

    classes: Required[int]
    ways: Required[int]
    inner_optimizer: Required[InnerOptimizer]
    num_steps: int


def options_of(factory: Callable) -> frozenset[str]:
    """Tell which options a factory of learners takes.

    Args:
      factory: A row of `ALGORITHMS`.

    Returns:
      Their names.

    Example:
      >>> from jaxmeta import fomaml
      >>> "metagrad" in options_of(fomaml), "norm" in options_of(fomaml)
      (False, True)
    """
    parameters = inspect.signature(factory).parameters.values()
    named = {one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        function = inspect.unwrap(getattr(factory, "func", factory))
        (shared,) = get_args(get_type_hints(function)["options"])
        named |= set(get_type_hints(shared))
    return frozenset(named)
