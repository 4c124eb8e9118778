"""Reptile: move the initialisation towards the parameters that training on a task leads to.

    phi = SGD_k(theta, task);  theta <- theta + eps mean_tasks (phi - theta)

which is a gradient step of size eps on 1/2 |theta - stop(phi)|^2.

Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018, arXiv 1803.02999.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from jaxmeta.algorithms.gradient import gradient_learner
from jaxmeta.algorithms.maml import whole
from jaxmeta.algorithms.options import LoopOptions
from jaxmeta.base import Episode, MetaLearner, Model
from jaxmeta.metagrad import check_count
from jaxmeta.metagrad.evolution import unroll_of


def reptile(
    model: Model, *, batch_size: int = 10, eval_batch_size: int | None = None, **options: Unpack[LoopOptions]
) -> MetaLearner:
    """Make Reptile: `theta <- theta + eps mean_tasks (phi - theta)`; eps is the rate of an outer SGD.

    In training a task is its support and its query set together, as the paper's "train shots":
    the loss does not ask for a held-out set. With outer Adam the difference is Adam's gradient. The
    inner optimiser starts anew in each task: an inner Adam carries no averages from task to task.

    Args:
      model: The network; all its parameters are adapted.
      batch_size: Examples of an inner step: the task is shuffled and walked through, over and over; all of a smaller
        task. 10 in the paper, 20 for 20 ways.
      eval_batch_size: And of a step of `adapt`; as in training if None. 5 in the authors' code, 10 for 20 ways.
      **options: See `LoopOptions`; inner_optimizer is needed, in the paper Adam with b1=0, and num_steps is 5 if left
        out (in the paper 10 for 20 ways).

    Returns:
      A `MetaLearner` whose meta-parameters are the initialisation. Its training metrics are those
      of the adapted network on the query set, which it has trained on.

    Raises:
      ValueError: for an unknown norm, a number of steps or a batch size that is none.

    Example:
      >>> from jaxmeta import conv4, inner_adam
      >>> learner = reptile(conv4(5), inner_optimizer=inner_adam(1e-3, b1=0.0), num_steps=5)

    Source: Nichol, Achiam and Schulman, 2018, arXiv 1803.02999.
    """
    options.setdefault("num_steps", 5)
    check_count("reptile", "batch_size", batch_size, 1)
    judged_by = batch_size if eval_batch_size is None else eval_batch_size
    check_count("reptile", "eval_batch_size", judged_by, 1)
    learner = gradient_learner(model, whole(model), batch_size=batch_size, **options)
    adapt = gradient_learner(model, whole(model), batch_size=judged_by, **options).adapt
    unroll = unroll_of(learner, "reptile")

    def loss(theta, state, episode, key, step):
        task = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *episode)
        # The path to phi is not differentiated.
        start = jax.lax.stop_gradient(theta)
        _, (_, adapted, outputs) = unroll(start, state, None, Episode(task, episode.query), key, step)
        return 0.5 * optax.tree.norm(optax.tree.sub(theta, adapted.params), squared=True), outputs

    return learner._replace(adapt=adapt, loss=loss, unroll=None)
