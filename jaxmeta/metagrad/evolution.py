"""Evolution strategies: a gradient from values alone, for long or non-differentiable inner loops."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.base import Episode, Estimator, MetaLearner, PyTree
from jaxmeta.metagrad.estimators import mean_over_tasks
from jaxmeta.metagrad.leaves import check_count, check_floats, is_float


class Particles(NamedTuple):
    """What is kept between two unrolls of one task.

    Attributes:
      episode: The task that is being solved; a new one is taken when it is finished.
      inner: Inner states, leaves `[pairs, 2, ...]`: with `+noise` and with `-noise`.
      noise: What losses are weighed by, leaves `[pairs, ...]`: the noise since the beginning.
      unrolls: How many unrolls it has had, int32.
    """

    episode: Episode
    inner: PyTree
    noise: PyTree
    unrolls: jax.Array


class ReusedParticles(NamedTuple):
    """As `Particles`, of `nres`: a type of its own, so that noise that was summed is not taken for what perturbs.

    Attributes:
      episode: As there, as is `inner`.
      inner: See there.
      noise: What theta is perturbed by through all of the task, and what losses are weighed by.
      unrolls: As there.
    """

    episode: Episode
    inner: PyTree
    noise: PyTree
    unrolls: jax.Array


def evolution(*, std: float = 0.01, num_pairs: int = 4, num_unrolls: int | None = None) -> Estimator:
    """Estimate the gradient of the smoothed meta-loss by antithetic evolution strategies.

    `grad E_e[L(theta + e)] ~ mean_i e_i (L(theta + e_i) - L(theta - e_i)) / (2 std^2)`, `e ~ N(0, std^2 I)`

    Unbiased for the loss smoothed by a Gaussian of width std; its variance grows with the
    number of meta-parameters. Nothing is differentiated.

    Args:
      std: Width of the perturbations, in the units of the meta-parameters.
      num_pairs: Pairs of perturbations for each task and step.
      num_unrolls: None evaluates the learner's loss. A number cuts the inner loop into as
        many unrolls of the learner's inner steps, one in each outer step, and keeps the
        inner states between them: the loss is that at the end of each unroll. Biased, as what
        theta did in earlier unrolls is not seen; `pes` and `nres` correct that.

    Returns:
      An `Estimator`; with `num_unrolls` it has a state, and needs a learner with `unroll`.

    Raises:
      ValueError: for a std, or numbers, that are not positive.

    Example:
      >>> evolution(std=0.1).init(None, None, None, None, None)
      ()

    Source: Salimans, Ho, Chen, Sidor and Sutskever, 2017, arXiv 1703.03864.
    """
    _check("evolution", std, num_pairs, 1 if num_unrolls is None else num_unrolls)
    if num_unrolls is not None:
        return _in_unrolls("evolution(num_unrolls=...)", std, num_pairs, num_unrolls, stagger=True, keep=_forget)

    def init(key, learner, meta_params, state, episodes):
        return ()

    def value_and_grad(learner: MetaLearner, meta_params, state, estimator_state, episodes, keys, step):
        check_floats(meta_params, "meta_params")

        def of_task(episode, key):
            key_noise, key_loss = jax.random.split(key)
            noise = _draw(key_noise, meta_params, std, num_pairs)

            def of_pair(noise):
                return jax.vmap(lambda theta: learner.loss(theta, state, episode, key_loss, step))(
                    _both(meta_params, noise)
                )

            values = jax.vmap(of_pair)(noise)
            return _mean_of_pairs(values), _estimate(noise, values[0], std)

        value, grads = mean_over_tasks(jax.vmap(of_task)(episodes, keys))
        return value, grads, estimator_state

    return Estimator(init, value_and_grad)


def pes(*, std: float = 0.01, num_pairs: int = 4, num_unrolls: int = 4, stagger: bool = True) -> Estimator:
    """Estimate the gradient of a long inner loop from short unrolls, without bias: persistent evolution strategies.

    `grad ~ mean_i n_i (L+ - L-) / (2 std^2)`, `n_i = sum of a particle's noise since its beginning`

    Each outer step continues the inner states of the step before by one unroll, under new noise;
    after `num_unrolls` a task is finished and another is taken. What is estimated is the mean,
    over the unrolls, of the smoothed loss at the end of each.

    Args:
      std: Width of the perturbations, in the units of the meta-parameters.
      num_pairs: Antithetic pairs of particles for each task.
      num_unrolls: Unrolls (each of the learner's number of inner steps) until a task is finished.
      stagger: Begin the tasks of a batch at different unrolls, so that a step sees all ages.
        The first round of each is cut short.

    Returns:
      An `Estimator` with a state. It needs a learner with `unroll`.

    Raises:
      ValueError: for a std, or numbers, that are not positive; at trace time for a learner
        without an inner loop.

    Example:
      >>> pes(num_unrolls=0)
      Traceback (most recent call last):
      ...
      ValueError: pes needs num_unrolls >= 1, a whole number known before tracing; given 0.

    Source: Vicol, Metz and Sohl-Dickstein, 2021, arXiv 2112.13835.
    """
    _check("pes", std, num_pairs, num_unrolls)
    return _in_unrolls("pes", std, num_pairs, num_unrolls, stagger=stagger, keep=_add)


def nres(*, std: float = 0.01, num_pairs: int = 4, num_unrolls: int = 4, stagger: bool = True) -> Estimator:
    """Estimate the gradient of a long inner loop from short unrolls, under one noise for all of a task.

    `grad ~ mean_i e_i (L+ - L-) / (2 std^2)`, `e_i` a particle's noise, drawn when its task begins

    Noise-reuse evolution strategies: as `pes`, but what each unroll is perturbed by is not drawn anew, so that the
    noise of all unrolls does not add up in the weight of the last. Unbiased too, as `pes` for a theta that stands
    still. Where what theta does in one unroll has nothing to do with what it does in another, the variance of the n-th
    estimate is n times smaller; where it is the same in all, the two are alike.

    Args:
      std: Width of the perturbations, in the units of the meta-parameters.
      num_pairs: Antithetic pairs of particles for each task.
      num_unrolls: Unrolls (each of the learner's number of inner steps) until a task is finished.
      stagger: Begin the tasks of a batch at different unrolls, so that a step sees all ages.
        The first round of each is cut short.

    Returns:
      An `Estimator` with a state. It needs a learner with `unroll`.

    Raises:
      ValueError: for a std, or numbers, that are not positive; at trace time for a learner
        without an inner loop.

    Example:
      >>> nres(num_pairs=0)
      Traceback (most recent call last):
      ...
      ValueError: nres needs num_pairs >= 1, a whole number known before tracing; given 0.

    Source: Li, Harrison, Sohl-Dickstein, Smith and Metz, 2023, arXiv 2304.12180.
    """
    _check("nres", std, num_pairs, num_unrolls)
    return _in_unrolls("nres", std, num_pairs, num_unrolls, stagger=stagger, keep=_reuse)


# Each gives the noise of an unroll, and what its losses are weighed by, of the noise kept and noise drawn anew.
def _forget(begins, kept, drawn):
    return drawn, drawn


def _add(begins, kept, drawn):
    return drawn, jax.tree.map(lambda kept, drawn: jnp.where(begins, 0, kept) + drawn, kept, drawn)


def _reuse(begins, kept, drawn):
    noise = _where(begins, drawn, kept)
    return noise, noise


def _in_unrolls(name, std, num_pairs, num_unrolls, *, stagger, keep):
    kind = ReusedParticles if keep is _reuse else Particles

    def init(key, learner, meta_params, state, episodes):
        unroll = unroll_of(learner, name)
        check_floats(meta_params, "meta_params")
        leaves = jax.tree.leaves(episodes)
        if not leaves:
            raise ValueError(f"{name} counts tasks by their data; give the episodes at least one array.")
        num_tasks = leaves[0].shape[0]

        def of_task(episode, key):
            key_noise, key_start, key_age = jax.random.split(key, 3)
            # As if drawn in the unrolls before, which a task that does not begin with the first did not have.
            noise = _draw(key_noise, meta_params, std if keep is _reuse else 0.0, num_pairs)
            inner = jax.vmap(lambda noise: _start(unroll, meta_params, noise, state, episode, key_start))(noise)
            age = jax.random.randint(key_age, (), 0, num_unrolls) if stagger else jnp.int32(0)
            return kind(episode, inner, noise, age)

        return jax.vmap(of_task)(episodes, jax.random.split(key, num_tasks))

    def value_and_grad(learner, meta_params, state, estimator_state, episodes, keys, step):
        unroll = unroll_of(learner, name)
        check_floats(meta_params, "meta_params")
        _check_state(name, kind, estimator_state, num_pairs)

        def of_task(particles: Particles | ReusedParticles, episode, key):
            key_noise, key_loss = jax.random.split(key)
            begins = particles.unrolls == 0
            # Before its first unroll a task is the one at hand, at the start that theta now has.
            episode = _where(begins, episode, particles.episode)
            noise, total = keep(begins, particles.noise, _draw(key_noise, meta_params, std, num_pairs))

            def of_pair(noise, inner):
                start = _start(unroll, meta_params, noise, state, episode, key_loss)
                return jax.vmap(lambda theta, inner: unroll(theta, state, inner, episode, key_loss, step))(
                    _both(meta_params, noise), _where(begins, start, inner)
                )

            losses, (inner, _, outputs) = jax.vmap(of_pair)(noise, particles.inner)
            kept = kind(episode, inner, total, (particles.unrolls + 1) % num_unrolls)
            return (_mean_of_pairs((losses, outputs)), _estimate(total, losses, std)), kept

        per_task, estimator_state = jax.vmap(of_task)(estimator_state, episodes, keys)
        value, grads = mean_over_tasks(per_task)
        return value, grads, estimator_state

    return Estimator(init, value_and_grad)


def _check_state(name, kind, estimator_state, num_pairs) -> None:
    pairs = jax.tree.leaves(getattr(estimator_state, "noise", ()))
    if not isinstance(estimator_state, kind) or any(leaf.shape[1] != num_pairs for leaf in pairs):
        raise ValueError(
            f"The estimator's state is not that of {name} with num_pairs={num_pairs}. Give init_train_state and "
            "make_train_step the same estimator."
        )


def unroll_of(learner: MetaLearner, who: str) -> Callable:
    """Return the `unroll` of a learner; refuse one whose inner loop cannot be continued."""
    if learner.unroll is None:
        raise ValueError(f"{who} has to continue an inner loop; this learner has none (unroll=None). Use exact().")
    return learner.unroll


def _start(unroll, meta_params, noise, state, episode, key):
    def start(theta):
        return unroll(theta, state, None, episode, key, 0, num_steps=0)[1][0]

    return jax.vmap(start)(_both(meta_params, noise))


def _draw(key, tree, std, num_pairs):
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    draws = [
        std * jax.random.normal(key, (num_pairs, *jnp.shape(leaf)), jnp.result_type(leaf))
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, draws)


def _both(meta_params, noise):
    return jax.tree.map(lambda leaf, noise: jnp.stack([leaf + noise, leaf - noise]), meta_params, noise)


def _estimate(noise, losses, std):
    weights = (losses[:, 0] - losses[:, 1]) / (2 * std**2 * losses.shape[0])
    # In the precision of the loss, and back to that of the leaf, as a gradient has it.
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1, precision="highest").astype(leaf.dtype), noise)


def _mean_of_pairs(tree: Any):
    def mean(leaf):
        return leaf.mean((0, 1)) if is_float(leaf) else leaf[0, 0]

    return jax.tree.map(mean, tree)


def _where(condition, chosen, other):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


def _check(name, std, num_pairs, num_unrolls):
    if not 0 < std < float("inf"):
        raise ValueError(f"{name} needs std > 0; given {std}.")
    check_count(name, "num_pairs", num_pairs, 1)
    check_count(name, "num_unrolls", num_unrolls, 1)
