"""MAML: learn an initialisation from which a few gradient steps solve a new task.

    phi = theta - a grad L_support(theta)                    (one inner step)
    theta <- theta - b grad_theta mean_tasks L_query(phi)    (the outer step)

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
Networks", 2017, arXiv 1703.03400.
"""

from typing import Unpack

from jaxmeta.algorithms.gradient import Adaptation, gradient_learner
from jaxmeta.algorithms.options import GradientOptions, LoopOptions
from jaxmeta.base import MetaLearner, Model
from jaxmeta.metagrad import first_order


def whole(model: Model) -> Adaptation:
    """Adapt every parameter: phi_0 = theta, and phi is the network."""
    return Adaptation(model.init, lambda theta: theta, lambda phi, theta, index: phi)


def maml(model: Model, **options: Unpack[GradientOptions]) -> MetaLearner:
    """Make the MAML learner: `phi = theta - a grad L_support(theta)`, and theta learned through it.

    Args:
      model: The network; all its parameters are adapted.
      **options: See `GradientOptions`; inner_optimizer is needed. With `metagrad=implicit()`
        and a proximal strength this is `imaml`.

    Returns:
      A `MetaLearner` whose meta-parameters are the initialisation.

    Raises:
      ValueError: for an unknown norm, or an inner loop that the strategy cannot serve.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxmeta import CRITERIA, Episode, example_batch, mlp
      >>> learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
      >>> points = example_batch(jnp.ones([10, 1]), jnp.ones([10, 1]))
      >>> key = jax.random.key(0)
      >>> theta, state = learner.init(key, points.inputs)
      >>> loss, (state, metrics) = learner.loss(theta, state, Episode(points, points), key, 0)
      >>> sorted(metrics)
      ['loss', 'mse']

    Source: Finn, Abbeel and Levine, 2017, arXiv 1703.03400.
    """
    return gradient_learner(model, whole(model), **options)


def fomaml(model: Model, **options: Unpack[LoopOptions]) -> MetaLearner:
    """Make first-order MAML: the outer step is `theta <- theta - b mean_tasks grad L_query(phi)`, taken at phi.

    Args:
      model: The network; all its parameters are adapted.
      **options: See `LoopOptions`; inner_optimizer is needed.

    Returns:
      A `MetaLearner` whose meta-parameters are the initialisation.

    Raises:
      ValueError: for an unknown norm.

    Example:
      >>> import optax
      >>> from jaxmeta import conv4
      >>> learner = fomaml(conv4(5), inner_optimizer=optax.sgd(0.4))

    Source: Finn, Abbeel and Levine, 2017, arXiv 1703.03400, section 5.2.
    """
    return maml(model, metagrad=first_order(), **options)
