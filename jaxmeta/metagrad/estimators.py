"""How the mean loss over tasks becomes a gradient. The task axis of training lives here."""

import jax
import jax.numpy as jnp
import optax

from jaxmeta.base import Estimator, PyTree
from jaxmeta.metagrad.closures import operations
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
    """Differentiate the mean of the tasks' losses, as the learner's strategy says.

    Not the mean of their gradients, which is the same number: what all tasks compute with the same weights (everything,
    where nothing is adapted) then has one product for the gradient of all. A loss with a `custom_vjp` in it, as that
    of `mixed_mode()`, is differentiated task by task: JAX adds the gradient of shared numbers up once too often where
    an output of such a rule is of all tasks and another of each.

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
        # Compiled for its cache of traces, which the look inside and the gradient share; inlined, it leaves no mark.
        of_task, axes = jax.jit(learner.loss, inline=True), (None, None, 0, 0, None)
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (episodes, keys))
        if "custom_vjp_call" in operations(jax.make_jaxpr(of_task)(meta_params, state, *one, step).jaxpr):
            by_task = jax.vmap(jax.value_and_grad(of_task, has_aux=True), axes)
            value, grads = mean_over_tasks(by_task(meta_params, state, episodes, keys, step))
            return value, grads, estimator_state

        def mean_loss(meta_params):
            return mean_over_tasks(jax.vmap(of_task, axes)(meta_params, state, episodes, keys, step))

        value, grads = jax.value_and_grad(mean_loss, has_aux=True)(meta_params)
        return value, grads, estimator_state

    return Estimator(init, value_and_grad)


def skip_diverged(estimator: Estimator, *, max_norm: float = float("inf")) -> Estimator:
    """Keep a task whose gradient is not finite, or too long, from spoiling the step of all others.

    `grads = mean over tasks of g_i min(1, max_norm / |g_i|)`, and 0 for a `g_i` that is not finite

    Only the gradient is mended. A loss that is not finite stays so, and `fit` refuses it: bound it in the learner.

    Args:
      estimator: What estimates the gradient of each task.
      max_norm: The longest gradient of a single task.

    Returns:
      An `Estimator` with the same state. Its metrics have `skipped` as well, the share of tasks without a finite
      gradient.

    Raises:
      ValueError: for a max_norm that is not positive.

    Example:
      >>> from jaxmeta import Episode, bilevel, inner_loop, inner_sgd
      >>> def objective(phi, theta, state, data, key):
      ...     return jnp.sqrt(theta * data) * phi, ()
      >>> solve = inner_loop(objective, inner_sgd(1.0), 1)
      >>> learner = bilevel(objective, solve, init=lambda key: (jnp.ones(()), ()), start=jnp.zeros_like)
      >>> data = jnp.array([1.0, 0.0])  # the root has no derivative at 0
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> estimator = skip_diverged(exact())
      >>> (_, (_, metrics)), grads, _ = estimator.value_and_grad(learner, 1.0, (), (), Episode(data, data), keys, 0)
      >>> float(grads), float(metrics["skipped"])
      (-0.5, 0.5)
    """
    if not max_norm > 0:
        raise ValueError(f"skip_diverged needs max_norm > 0; given {max_norm}.")

    def value_and_grad(learner, meta_params, state, estimator_state, episodes, keys, step):
        def of_task(estimator_state, episode, key):
            alone = jax.tree.map(lambda leaf: leaf[None], (estimator_state, episode, key))
            kept, *data = alone
            value, grads, kept = estimator.value_and_grad(learner, meta_params, state, kept, *data, step)
            loss, (state_of_task, metrics) = value
            norm = optax.tree.norm(grads)
            finite = jnp.isfinite(norm)
            scale = jnp.where(norm > max_norm, max_norm / norm, 1.0)
            grads = jax.tree.map(lambda leaf: jnp.where(finite, scale * leaf, 0).astype(leaf.dtype), grads)
            metrics = {**metrics, "skipped": 1.0 - finite}
            return ((loss, (state_of_task, metrics)), grads), jax.tree.map(lambda leaf: leaf[0], kept)

        per_task, estimator_state = jax.vmap(of_task)(estimator_state, episodes, keys)
        value, grads = mean_over_tasks(per_task)
        return value, grads, estimator_state

    return Estimator(estimator.init, value_and_grad)
