"""What all learners share: whose statistics normalise a query set, and how its outputs are judged."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.base import Batch, Key, Metrics, PyTree
from jaxmeta.losses import Criterion, mean_squared_error

NORMS = ("transductive", "inductive", "running")


class Adapted(NamedTuple):
    """Parameters after adaptation, and the statistics to predict with."""

    params: PyTree
    state: PyTree


def check_norm(who: str, norm: str, known: tuple[str, ...] = NORMS) -> None:
    """Refuse a normalisation that a learner does not know.

    Raises:
      ValueError: says which there are.
    """
    if norm not in known:
        raise ValueError(f"{who} needs norm={' or '.join(map(repr, known))}; given {norm!r}.")


def regresses(criterion: Criterion | None) -> bool:
    """Tell whether a criterion is that of regression."""
    return criterion is not None and (criterion.regresses or criterion.loss is mean_squared_error)


def check_classifies(who: str, criterion: Criterion | None) -> None:
    """Refuse regression, for a learner that has a score for each class.

    Raises:
      ValueError: says who can do it.
    """
    if regresses(criterion):
        raise ValueError(
            f"{who} tells classes apart and cannot regress. Use maml and its kin, r2d2, in-context or cnp."
        )


def metrics_of(criterion: Criterion, outputs, batch: Batch) -> Metrics:
    """Compute every metric of a criterion on a batch."""
    return {name: metric(outputs, batch.targets, batch.weights) for name, metric in criterion.metrics.items()}


def mini_batch(key: Key, batch: Batch, size: int) -> Batch:
    """Draw `size` examples without replacement, real ones first; all, if there are no more."""
    if batch.weights.shape[0] <= size:
        return batch
    scores = jnp.where(batch.weights > 0, jax.random.uniform(key, batch.weights.shape), -1.0)
    _, chosen = jax.lax.top_k(scores, size)
    return jax.tree.map(lambda leaf: leaf[chosen], batch)


def cycled_batch(key: Key, batch: Batch, size: int, index: jax.Array) -> Batch:
    """Give the examples of step `index` of walks through the shuffled set, shuffled anew for each; all, if no more."""
    if batch.weights.shape[0] <= size:
        return batch
    # The numbers of the loop's steps are folded into its key too.
    key = jax.random.fold_in(key, 2**31 - 1)
    real = jnp.maximum((batch.weights > 0).sum(), 1)
    places = index * size + jnp.arange(size)
    first_walk = places[0] // real

    def order(walk):
        draws = jax.random.uniform(jax.random.fold_in(key, walk), batch.weights.shape)
        return jnp.argsort(jnp.where(batch.weights > 0, draws, 2.0))

    # A batch is of two walks at most, or of all real examples and padding.
    orders = jax.vmap(order)(first_walk + jnp.arange(2))
    cycled = orders[jnp.minimum(places // real - first_walk, 1), places % real]
    chosen = jnp.where(real <= size, order(0)[:size], cycled)
    return jax.tree.map(lambda leaf: leaf[chosen], batch)


def present_classes(support: Batch, ways: int) -> jax.Array:
    """Tell which classes have an example, `[ways]` bool; all outputs are present in regression."""
    if not jnp.issubdtype(support.targets.dtype, jnp.integer):
        return jnp.ones(support.targets.shape[-1], bool)
    return (values_of(support, ways) * support.weights[:, None]).sum(0) > 0


def class_weights(support: Batch, ways: int) -> jax.Array:
    """Give the weight of every example in its class, `[examples, ways]`: one-hot targets times weights.

    Raises:
      ValueError: for values as targets.
    """
    if not jnp.issubdtype(support.targets.dtype, jnp.integer):
        raise ValueError(
            f"This learner tells classes apart and needs their numbers as targets, an integer type; given "
            f"{support.targets.dtype}. To regress, take maml and its kin, r2d2, in-context or cnp, with a criterion of "
            "regresses=True."
        )
    return jax.nn.one_hot(support.targets, ways) * support.weights[:, None]


def values_of(batch: Batch, ways: int) -> jax.Array:
    """Write targets as values to regress: class numbers one-hot, `[examples, ways]`; others as they are."""
    if not jnp.issubdtype(batch.targets.dtype, jnp.integer):
        return batch.targets
    return jax.nn.one_hot(batch.targets, ways, dtype=batch.inputs.dtype)


def over_steps(
    judged: Callable[..., tuple[jax.Array, PyTree]], phis: PyTree, shares: jax.Array, last: jax.Array
) -> jax.Array:
    """Give the weighted sum of the query losses of the phi after every inner step; that after the last is known."""

    def all_steps():
        indices = jnp.arange(len(shares))
        # A scan: the program, and what is kept for its derivative, do not grow with the steps.
        one = jax.checkpoint(lambda phi, index: judged(phi, index)[0])
        _, losses = jax.lax.scan(lambda carry, step: (carry, one(*step)), (), (phis, indices))
        return jnp.sum(shares * losses)

    # Once only the last counts, the queries are not judged after the others.
    return jax.lax.cond(jnp.any(shares[:-1] != 0), all_steps, lambda: shares[-1] * last)
