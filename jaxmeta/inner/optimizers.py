"""Inner optimisers that are safe to differentiate, with learning rates per layer, step or parameter."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxmeta.base import PyTree
from jaxmeta.metagrad import check_count

Rate = PyTree | Callable[[PyTree], PyTree]


def learning_rates(phi: PyTree, rate: float, *, per: str = "leaf", num_steps: int | None = None) -> PyTree:
    """Make a tree of learning rates to put into the meta-parameters and learn.

    Args:
      phi: The parameters that are adapted; only shapes are read.
      rate: The value to begin with.
      per: "leaf" is one rate for each array (a layer's kernel, its bias), "parameter" one
        for each number, as in Meta-SGD.
      num_steps: One rate for each inner step as well; None is the same in all.

    Returns:
      A tree like phi, leaves `[]` or as phi's, with a leading axis `[num_steps]` if given.

    Raises:
      ValueError: for another `per`.

    Example:
      >>> import jax.numpy as jnp
      >>> rates = learning_rates({"kernel": jnp.ones([2, 3])}, 0.1, num_steps=5)
      >>> rates["kernel"].shape
      (5,)

    Source: Li, Zhou, Chen and Li, 2017, arXiv 1707.09835 (per parameter); Antoniou, Edwards
    and Storkey, 2019, arXiv 1810.09502 (per layer and step).
    """
    if num_steps is not None:
        check_count("learning_rates", "num_steps", num_steps, 1)
    if per not in ("leaf", "parameter"):
        raise ValueError(f"learning_rates needs per='leaf' or 'parameter'; given {per!r}.")
    steps = () if num_steps is None else (num_steps,)

    def make(leaf):
        shape = jnp.shape(leaf) if per == "parameter" else ()
        return jnp.full(steps + shape, rate, jnp.result_type(leaf))

    return jax.tree.map(make, phi)


def inner_sgd(rate: Rate, *, per_step: bool = False) -> Callable[[PyTree], optax.GradientTransformation]:
    """Make gradient descent: `phi <- phi - rate * g`.

    Args:
      rate: A number; or a tree of them that is a prefix of phi (`{"body": 0.0, "head": 0.1}`),
        each a scalar or of the shape of its leaf; or a function `theta -> rate` of either
        kind, for rates that are learned.
      per_step: Each rate has a leading axis, one value for each inner step. Later steps
        than it has take the last. This is the way to a schedule too: give its values.

    Returns:
      `theta -> optax transformation`, as `inner_loop` takes it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmeta import inner_loop
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum(phi**2), ()
      >>> solve = inner_loop(objective, inner_sgd(lambda theta: theta["rate"], per_step=True), 2)
      >>> theta = {"rate": jnp.array([0.5, 0.1])}
      >>> round(float(solve(1.0, theta, (), (), jax.random.key(0)).phi), 6)  # (1 - 0.5) (1 - 0.1)
      0.45
    """
    return lambda theta: scale_by_rates(_resolve(rate, theta), per_step=per_step)


def inner_momentum(
    rate: Rate, *, decay: float = 0.9, nesterov: bool = False, per_step: bool = False
) -> Callable[[PyTree], optax.GradientTransformation]:
    """Make gradient descent with momentum: `m <- decay m + g`, `phi <- phi - rate * m`.

    Args:
      rate: As in `inner_sgd`.
      decay: How much of the momentum a step keeps.
      nesterov: Step along `decay m + g` with the new m.
      per_step: As in `inner_sgd`.

    Returns:
      `theta -> optax transformation`.

    Example:
      >>> import jax.numpy as jnp
      >>> transformation = inner_momentum(0.1)(())
      >>> updates, _ = transformation.update(jnp.ones(2), transformation.init(jnp.ones(2)))
      >>> [round(float(update), 6) for update in updates]
      [-0.1, -0.1]
    """
    return lambda theta: optax.chain(
        optax.trace(decay, nesterov), scale_by_rates(_resolve(rate, theta), per_step=per_step)
    )


def inner_adam(
    rate: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float | None = None,
    per_step: bool = False,
) -> Callable[[PyTree], optax.GradientTransformation]:
    """Make Adam with a finite derivative where the second moment is zero.

    `phi <- phi - rate * m / (sqrt(v + eps_root) + eps)`

    Plain Adam (eps_root = 0) has the derivative of sqrt at 0 in its meta-gradient: NaN for
    every parameter whose gradient is exactly 0, a dead unit for one. With `eps_root = eps^2`
    its steps are the same but for gradients as small as eps.

    Args:
      rate: As in `inner_sgd`.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root. The derivative of a first step at gradient 0 is `rate / (2 eps)`:
        raise it when meta-gradients explode.
      eps_root: Added below the root; `eps**2` if None.
      per_step: As in `inner_sgd`.

    Returns:
      `theta -> optax transformation`.

    Raises:
      ValueError: if eps or eps_root is not positive; at trace time, for parameters in float16, or
        in a precision in which eps_root is zero.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmeta import inner_loop
      >>> def objective(phi, theta, state, data, key):
      ...     return jnp.sum(phi * jnp.array([1.0, 0.0])), ()
      >>> solve = inner_loop(objective, inner_adam(0.1), 2)
      >>> adapted = lambda theta: solve(theta, theta, (), (), jax.random.key(0)).phi.sum()
      >>> jax.grad(adapted)(jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    eps_root = eps**2 if eps_root is None else eps_root
    if not (eps > 0 and eps_root > 0):
        raise ValueError(
            f"inner_adam needs eps > 0 and eps_root > 0; given {eps} and {eps_root}. At eps_root=0 the meta-gradient "
            "is NaN wherever an inner gradient is 0."
        )
    return lambda theta: optax.chain(
        _refuse_underflow(eps_root),
        optax.scale_by_adam(b1, b2, eps, eps_root),
        scale_by_rates(_resolve(rate, theta), per_step=per_step),
    )


def _refuse_underflow(eps_root: float) -> optax.GradientTransformation:
    """Pass updates on; refuse parameters in whose precision eps_root is zero, which brings the NaN back."""

    def init(params):
        for leaf in jax.tree.leaves(params):
            dtype = jnp.result_type(leaf)
            if dtype == jnp.float16 or eps_root < jnp.finfo(dtype).tiny:
                raise ValueError(
                    f"inner_adam cannot keep eps_root={eps_root:g} apart from 0 in {dtype}: the meta-gradient would be "
                    "NaN. Keep phi in float32 or bfloat16, or raise eps."
                )
        return optax.EmptyState()

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


def scale_by_rates(rates: PyTree, *, per_step: bool = False) -> optax.GradientTransformation:
    """Multiply updates by `-rate`, leaf by leaf.

    Args:
      rates: A prefix of the tree of updates: each leaf a scalar, or of the shape of its update.
      per_step: Each rate has a leading axis of steps; the last is held.

    Returns:
      An optax transformation. It raises ValueError for rates that do not fit the updates.

    Example:
      >>> import jax.numpy as jnp
      >>> transformation = scale_by_rates({"body": 0.0, "head": 0.5})
      >>> gradient = {"body": jnp.ones(1), "head": jnp.ones(1)}
      >>> updates, _ = transformation.update(gradient, transformation.init(gradient))
      >>> updates["head"].tolist()
      [-0.5]
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.int32(0)) if per_step else optax.EmptyState()

    def update(updates, state, params=None):
        del params
        chosen = rates
        if per_step:
            chosen = jax.tree.map(lambda rate: _at_step(rate, state.count), rates)
            state = optax.ScaleByScheduleState(state.count + 1)
        try:
            return jax.tree.map(_scale, chosen, updates), state
        except ValueError as error:
            raise ValueError(
                "The learning rates do not fit the parameters: they must be one number, or a tree whose every leaf "
                f"stands for a leaf or a branch of the parameters. {error}"
            ) from error

    return optax.GradientTransformation(init, update)


def _scale(rate, branch):
    def scale(leaf):
        if jnp.ndim(rate) and jnp.shape(rate) != jnp.shape(leaf):
            raise ValueError(f"A rate of shape {list(jnp.shape(rate))} meets a parameter of {list(jnp.shape(leaf))}.")
        return -jnp.asarray(rate, leaf.dtype) * leaf

    return jax.tree.map(scale, branch)


def _at_step(rate, count):
    if not jnp.ndim(rate):
        raise ValueError("With per_step=True every rate needs a leading axis of steps; given a single number.")
    if jnp.shape(rate)[0] == 0:
        raise ValueError("With per_step=True every rate needs at least one step; given none.")
    return jnp.take(jnp.asarray(rate), count, axis=0, mode="clip")


def _resolve(rate: Rate, theta: PyTree) -> PyTree:
    return rate(theta) if callable(rate) else rate
