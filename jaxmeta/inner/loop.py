"""The inner loop: the one place where inner updates happen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.base import InnerResult, Key, Loop, LoopInputs, MetaGrad, PyTree
from jaxmeta.metagrad import check_count, check_floats, unrolled

Objective = Callable[[PyTree, PyTree, PyTree, PyTree, Key], tuple[jax.Array, PyTree]]
InnerOptimizer = optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation]
RECORDS = ("phi", "loss", "grad_norm")


def inner_loop(
    objective: Objective,
    optimizer: InnerOptimizer,
    num_steps: int,
    metagrad: MetaGrad | None = None,
    *,
    proximal: float = 0.0,
    record: Sequence[str] = (),
    data_at: Callable[[PyTree, jax.Array], PyTree] | None = None,
) -> Callable[..., InnerResult]:
    """Make a solver that takes a fixed number of optimiser steps on an objective.

    `phi_{t+1} = phi_t + update(grad_phi [objective(phi_t, theta, state, data, key_t) + proximal/2 |phi_t - phi_0|^2])`

    Args:
      objective: `(phi, theta, state, data, key) -> scalar, aux`. Better that it takes
        what it depends on than closes over it: messages then name it.
      optimizer: Any optax transformation, or a function `theta -> transformation`
        for one with learned parts, as `inner_sgd` and its kin make.
      num_steps: Number of inner steps, at least 0.
      metagrad: How the loop is differentiated; `unrolled()` if None.
      proximal: Strength of the pull towards the start, at least 0. With it, a solution
        depends on the start, and `implicit()` can learn one.
      record: What to keep of every step: any of "phi" (after the step), "loss" and
        "grad_norm" (before it).
      data_at: `(data, index) -> data` of the step `index`, a mini-batch for example; all of
        it in every step if None.

    Returns:
      `solve(phi, theta, state, data, key, *, num_steps=None, opt_state=None, first_step=0,
      anchor=None) -> InnerResult`. phi is the start; step t uses `fold_in(key, t)`. To go on
      from an earlier result, hand in its phi and opt_state, the number of steps it took as
      first_step, and its start as the anchor of the proximal term.

    Raises:
      ValueError: for a negative number of steps or proximal strength, an unknown record, a
        loop that the strategy cannot serve; at trace time, for a phi that is not all floats,
        or a state that is not the optimiser's.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum((phi - data) ** 2), ()
      >>> solve = inner_loop(objective, optax.sgd(0.5), num_steps=3)
      >>> float(solve(jnp.zeros(()), (), (), 8.0, jax.random.key(0)).phi)
      7.0
    """
    if not 0 <= proximal < float("inf"):
        raise ValueError(f"inner_loop needs proximal >= 0; given {proximal}.")
    if isinstance(record, str) or not set(record) <= set(RECORDS):
        raise ValueError(f"inner_loop can record a list of {', '.join(RECORDS)}; given {record!r}.")
    metagrad = unrolled() if metagrad is None else metagrad
    if not isinstance(metagrad, MetaGrad):
        raise ValueError(
            f"metagrad must be a MetaGrad, as unrolled() or METAGRADS['mixed_mode']() return; given {metagrad!r}."
        )
    if not isinstance(optimizer, optax.GradientTransformation) and not callable(optimizer):
        raise ValueError(f"optimizer must be inner_sgd(rate) and the like, or from optax; given {optimizer!r}.")
    _check_num_steps(num_steps, proximal, metagrad)
    training_steps = num_steps
    gradient = metagrad.grad(_with_proximal(objective, proximal))
    data_at = (lambda data, index: data) if data_at is None else data_at

    def transformation(inputs: LoopInputs):
        return optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(inputs.theta)

    def step(inputs: LoopInputs, carry, index):
        phi, opt_state = carry
        key, data = jax.random.fold_in(inputs.key, index), data_at(inputs.data, index)
        grads, value = gradient(*inputs._replace(phi=phi, key=key, data=data))
        updates, new_opt_state = transformation(inputs).update(grads, opt_state, phi)
        new_phi = optax.apply_updates(phi, updates)
        check_same("The inner optimiser changes the shape of its state", opt_state, new_opt_state)
        check_same("The inner optimiser changes the shape of phi", phi, new_phi)
        kept = {"phi": new_phi, "loss": value}
        if "grad_norm" in record:
            kept["grad_norm"] = optax.tree.norm(grads)
        return (new_phi, new_opt_state), {name: kept[name] for name in record}

    def optimality(phi, inputs: LoopInputs):
        # What the last step of training saw: a loop whose data changes is optimal for no other.
        inputs = inputs._replace(phi=phi, data=data_at(inputs.data, jnp.int32(max(training_steps - 1, 0))))
        return jax.grad(_with_proximal(objective, proximal), has_aux=True)(*inputs)[0]

    wrapped_step = metagrad.step(step)

    def solve(phi, theta, state, data, key, *, num_steps=None, opt_state=None, first_step=0, anchor=None):
        num_steps = training_steps if num_steps is None else num_steps
        _check_num_steps(num_steps, proximal, metagrad)
        check_floats(phi, "phi")
        if proximal == 0:
            anchor = ()
        elif anchor is None:
            anchor = phi
        else:
            check_same("The anchor is not like phi", phi, anchor)

        def init(inputs: LoopInputs):
            fresh = transformation(inputs).init(inputs.phi)
            if opt_state is None:
                return inputs.phi, fresh
            check_same("opt_state does not belong to this optimiser and phi", fresh, opt_state)
            return inputs.phi, opt_state

        inputs = LoopInputs(phi, theta, state, data, key, anchor)
        loop = Loop(inputs, init, wrapped_step, first_step, num_steps, optimality)
        (phi, opt_state), per_step = metagrad.solve(loop)
        return InnerResult(phi, opt_state, per_step if record else None, first_step + num_steps)

    return solve


class Unfinished(NamedTuple):
    """An inner loop between two of its steps."""

    phi: PyTree
    opt_state: PyTree
    steps: int | jax.Array


def continue_loop(
    solve: Callable[..., InnerResult], inner: Unfinished | None, start, theta, state, data, key: Key, num_steps=None
) -> tuple[Unfinished, InnerResult]:
    """Run an inner loop on from where it stopped: what the `unroll` of a learner is made of.

    Args:
      solve: From `inner_loop`.
      inner: What an earlier call returned; None begins at the start.
      start: phi at the very beginning, which is the anchor of a proximal term too.
      theta: As for solve; so are state, data and key.
      state: See theta.
      data: See theta.
      key: See theta.
      num_steps: Steps to take; as many as in training if None.

    Returns:
      `inner` for the next call, and the result of this one.
    """
    inner = Unfinished(start, None, jnp.int32(0)) if inner is None else inner
    result = solve(
        inner.phi,
        theta,
        state,
        data,
        key,
        num_steps=num_steps,
        opt_state=inner.opt_state,
        first_step=inner.steps,
        anchor=start,
    )
    return Unfinished(result.phi, result.opt_state, result.next_step), result


def _with_proximal(objective, proximal):
    """Add the proximal term, and return the value in place of what else the objective returns."""

    def total(phi, theta, state, data, key, anchor):
        result = objective(phi, theta, state, data, key)
        if not isinstance(result, tuple) or len(result) != 2 or jnp.shape(result[0]) != ():
            raise ValueError("An objective must return a pair: a scalar, and what else it has to say, or ().")
        value, _ = result
        if proximal:
            value += 0.5 * proximal * optax.tree.norm(optax.tree.sub(phi, anchor), squared=True)
        return value, value

    return total


def _check_num_steps(num_steps, proximal, metagrad: MetaGrad):
    check_count("inner_loop", "num_steps", num_steps, 0)
    metagrad.check(num_steps, proximal)


def check_same(problem: str, expected, given):
    """Refuse a tree of other structure, shapes or dtypes, naming the first leaf; a scan would say it at length."""
    kinds = [
        {jax.tree_util.keystr(path): _kind(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (expected, given)
    ]
    if jax.tree.structure(expected) == jax.tree.structure(given) and kinds[0] == kinds[1]:
        return
    odd = next((name for name in {**kinds[0], **kinds[1]} if kinds[0].get(name) != kinds[1].get(name)), "its structure")
    raise ValueError(
        f"{problem}: at {odd or 'the leaf'} needed {kinds[0].get(odd, 'nothing')}, given "
        f"{kinds[1].get(odd, 'nothing')}."
    )


def _kind(leaf) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
