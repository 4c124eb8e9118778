"""iMAML: learn an initialisation through the solution of the inner problem, not through the path to it.

    phi* = argmin_phi L_support(phi) + lambda/2 |phi - theta|^2
    d L_query / d theta = (I + Hessian(phi*) / lambda)^-1 grad L_query(phi*)    (by conjugate gradients)

Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients", 2019,
arXiv 1909.04630.
"""

from typing import Unpack

from jaxmeta.algorithms.maml import maml
from jaxmeta.algorithms.options import LoopOptions
from jaxmeta.base import MetaLearner, Model
from jaxmeta.metagrad import conjugate_gradient, implicit


def imaml(
    model: Model,
    *,
    proximal: float = 2.0,
    solver_steps: int = 5,
    damping: float = 0.0,
    **options: Unpack[LoopOptions],
) -> MetaLearner:
    """Make iMAML: `d phi* / d theta = (I + H / lambda)^-1`, whatever the number of inner steps.

    Args:
      model: The network; all its parameters are adapted.
      proximal: lambda, the strength of the pull towards the initialisation; 2 in the paper.
      solver_steps: Steps of conjugate gradients; 5 in the paper.
      damping: Added to the diagonal of what they solve, for Hessians that are not positive.
      **options: See `LoopOptions`; inner_optimizer is needed, and num_steps is 16 if left out (in the paper 25 for
        the tasks of 20 ways).

    Returns:
      A `MetaLearner` whose meta-parameters are the initialisation.

    Raises:
      ValueError: for a proximal strength that is not positive, a negative damping, an unknown norm.

    Example:
      >>> import optax
      >>> from jaxmeta import conv4
      >>> learner = imaml(conv4(5), inner_optimizer=optax.sgd(0.1), num_steps=16)

    Source: Rajeswaran, Finn, Kakade and Levine, 2019, arXiv 1909.04630.
    """
    options.setdefault("num_steps", 16)
    metagrad = implicit(solver=conjugate_gradient(max_steps=solver_steps), damping=damping)
    return maml(model, metagrad=metagrad, proximal=proximal, **options)
