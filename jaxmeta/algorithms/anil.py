"""ANIL and BOIL: adapt only the head, or only the body.

    ANIL:  head' = head - a grad_head L_support(body, head),  body as it is
    BOIL:  body' = body - a grad_body L_support(body, head),  head as it is

Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse?", 2020, arXiv 1909.09157;
Oh, Yoo, Kim and Yun, "BOIL: Towards Representation Change for Few-shot Learning", 2021,
arXiv 2008.08882.
"""

from typing import Unpack

import jax

from jaxmeta.algorithms.gradient import Adaptation, gradient_learner
from jaxmeta.algorithms.options import GradientOptions
from jaxmeta.base import MetaLearner, Model


def anil(model: Model, **options: Unpack[GradientOptions]) -> MetaLearner:
    """Make ANIL, "almost no inner loop": MAML whose inner loop moves the head alone.

    Args:
      model: A network with a head.
      **options: See `GradientOptions`; inner_optimizer is needed, and num_steps is 5 if left out.

    Returns:
      A `MetaLearner`; both parts of the network are learned by the outer loop.

    Raises:
      ValueError: as `maml`; at `init`, for a model without a head.

    Example:
      >>> import optax
      >>> from jaxmeta import conv4
      >>> learner = anil(conv4(5), inner_optimizer=optax.sgd(0.1), num_steps=5)

    Source: Raghu, Raghu, Bengio and Vinyals, 2020, arXiv 1909.09157.
    """
    options.setdefault("num_steps", 5)
    return gradient_learner(model, _only("head", model, "anil")._replace(embeds_once=True), **options)


def boil(model: Model, **options: Unpack[GradientOptions]) -> MetaLearner:
    """Make BOIL, "body only in the inner loop": MAML whose inner loop leaves the head.

    Args:
      model: A network with a body and a head.
      **options: See `GradientOptions`; inner_optimizer is needed.

    Returns:
      A `MetaLearner`; both parts of the network are learned by the outer loop.

    Raises:
      ValueError: as `maml`; at `init`, for a model without one of them.

    Example:
      >>> import optax
      >>> from jaxmeta import conv4
      >>> learner = boil(conv4(5), inner_optimizer=optax.sgd(0.5))

    Source: Oh, Yoo, Kim and Yun, 2021, arXiv 2008.08882.
    """
    return gradient_learner(model, _only("body", model, "boil"), **options)


def _only(part: str, model: Model, who: str) -> Adaptation:
    def init(key, inputs):
        theta, state = model.init(key, inputs)
        if not (jax.tree.leaves(theta["head"]) and jax.tree.leaves(theta[part])):
            raise ValueError(f"{who} needs a model with a body and a head: from_linen(body, head); given one part.")
        return theta, state

    return Adaptation(init, lambda theta: theta[part], lambda phi, theta, index: {**theta, part: phi})
