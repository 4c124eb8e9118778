"""Training from scratch: every task begins with a fresh initialisation, and nothing is learned across tasks.

    phi_0 ~ the network's own initialisation;  phi_{t+1} = phi_t - a grad L_support(phi_t)

The baseline of Finn, Abbeel and Levine, 2017, arXiv 1703.03400, and of Finn et al., "Online
Meta-Learning", 2019, arXiv 1902.08438 ("Train from scratch").
"""

from typing import Unpack

import jax

from jaxmeta.algorithms.gradient import gradient_learner
from jaxmeta.algorithms.maml import whole
from jaxmeta.algorithms.options import LoopOptions
from jaxmeta.base import MetaLearner, Model
from jaxmeta.metagrad import first_order


def scratch(model: Model, **options: Unpack[LoopOptions]) -> MetaLearner:
    """Make training from scratch: `phi_0 = init(key)`, then num_steps inner steps on the support set.

    Args:
      model: The network; all its parameters are trained.
      **options: See `LoopOptions`; inner_optimizer is needed, and more num_steps than MAML takes.

    Returns:
      A `MetaLearner` without meta-parameters: `adapt` draws the start from its key. The state is the
      network's as it begins, for its shapes; no task changes it. The loss has no gradient.

    Raises:
      ValueError: for an unknown norm, or a number of steps that is none.

    Example:
      >>> from jaxmeta import conv4, inner_adam
      >>> learner = scratch(conv4(5), inner_optimizer=inner_adam(1e-2), num_steps=100)

    Source: Finn et al., 2019, arXiv 1902.08438, section 5.
    """
    # Nothing is differentiated through the loop: it need not be kept.
    learner = gradient_learner(model, whole(model), metagrad=first_order(), **options)

    def init(key, inputs):
        return {}, model.init(key, inputs)[1]

    def adapt(theta, state, support, key, *, num_steps=None):
        del theta, state
        key_start, key_train = jax.random.split(key)
        return learner.adapt(*model.init(key_start, support.inputs), support, key_train, num_steps=num_steps)

    def loss(theta, state, episode, key, step):
        del theta
        key_start, key_train = jax.random.split(key)
        start = model.init(key_start, episode.support.inputs)
        value, (_, metrics) = learner.loss(*start, episode, key_train, step)
        return value, (state, metrics)

    return MetaLearner(init, adapt, learner.predict, loss)
