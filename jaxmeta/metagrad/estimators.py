"""How the mean loss over tasks becomes a gradient. The task axis of training lives here."""

import jax
import jax.numpy as jnp

from jaxmeta.base import Estimator, PyTree
from jaxmeta.metagrad.leaves import check_floats, is_float


def mean_over_tasks(tree: PyTree) -> PyTree:
    """Average every leaf over its leading task axis; of whole numbers (counters) take the first task's.

    Args:
      tree: Leaves `[tasks, ...]`.

    Returns:
      The same tree without the task axis.

    Example:
      >>> import jax.numpy as jnp
      >>> mean_over_tasks(jnp.array([[1.0, 2.0], [3.0, 6.0]])).tolist()
      [2.0, 4.0]
    """

    def mean(leaf):
        if not is_float(leaf):
            return leaf[0]
        # A product with the tasks' shares: XLA's sum over a leading axis was a quarter of a
        # whole meta-step on a CPU. Highest precision, or some accelerators would round.
        share = jnp.full(leaf.shape[:1], 1.0 / leaf.shape[0], leaf.dtype)
        return jnp.tensordot(share, leaf, 1, precision="highest")

    return jax.tree.map(mean, tree)


def exact() -> Estimator:
    """Differentiate each task's loss by `jax.value_and_grad`, as the learner's strategy says, and average.

    Returns:
      An `Estimator` without a state.

    Example:
      >>> exact().init(None, None, None, None, None)
      ()
    """

    def init(key, learner, meta_params, state, episodes):
        return ()

    def value_and_grad(learner, meta_params, state, estimator_state, episodes, keys, step):
        check_floats(meta_params, "meta_params")
        of_task = jax.value_and_grad(learner.loss, has_aux=True)
        per_task = jax.vmap(of_task, in_axes=(None, None, 0, 0, None))(meta_params, state, episodes, keys, step)
        value, grads = mean_over_tasks(per_task)
        return value, grads, estimator_state

    return Estimator(init, value_and_grad)
