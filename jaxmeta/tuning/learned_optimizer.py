"""Optimisers that are learned: one small network steps every parameter, whatever tree it belongs to.

They are optax transformations whose weights are the theta of an inner loop:
`inner_loop(objective, optimizer.transform, num_steps)`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta.base import Key, PyTree
from jaxmeta.inner.loop import check_same
from jaxmeta.metagrad import check_count
from jaxmeta.tuning.accumulators import accumulate, column, flatten_leaves, kept_dtype, widest_dtype
from jaxmeta.tuning.optimizer_networks import (
    TIMESCALES,
    Perceptron,
    Recurrent,
    count_features,
    features_of,
    progress_of,
    root_mean_square,
    shared_features,
    spread,
)

# The network changes a step by a factor of at most exp(5), so that no weights make it overflow.
MAX_LOG_SIZE = 5.0
# Normalised momenta of this size halve what is added to them; by the default decays those of mere noise are larger.
IDLE = 0.1


class LearnedOptimizer(NamedTuple):
    """An optimiser with weights of its own, as pure functions.

    Attributes:
      init: `(key) -> theta`, the weights. They begin as Adam of rate step_size, the
        mean over all decays, because the network's last layer is zero.
      transform: `(theta) -> optax.GradientTransformation`, as `inner_loop` takes an optimiser.
      as_sgd: `(theta, rate, *, momentum=0.0) -> theta`, the same weights set to be gradient descent exactly.
      as_adam: `(theta, rate, *, b1=0.9, b2=0.999) -> theta`, set to be Adam exactly.
    """

    init: Callable[..., PyTree]
    transform: Callable[[PyTree], optax.GradientTransformation]
    as_sgd: Callable[..., PyTree]
    as_adam: Callable[..., PyTree]


class LearnedState(NamedTuple):
    """What a learned optimiser keeps of each parameter.

    Attributes:
      count: Steps taken, int32.
      momenta: Means of the gradients, leaves `[decays, ...]`.
      moments: Means of the squared gradients, leaves `[decays, ...]`.
      carry: Hidden states of the network, `[parameters, units]` over all leaves; `()` where it has none.
    """

    count: jax.Array
    momenta: PyTree
    moments: PyTree
    carry: PyTree


def mlp_optimizer(
    *,
    hidden: Sequence[int] = (16, 16),
    momenta: Sequence[float] = (0.5, 0.9, 0.99),
    moments: Sequence[float] = (0.999,),
    step_size: float = 1e-3,
    horizon: float = TIMESCALES[-1],
    eps: float = 1e-8,
) -> LearnedOptimizer:
    """Make a per-parameter perceptron that turns features of a parameter's gradients into its step.

    `phi <- phi - step_size exp(5 tanh((s + h . p) / 5)) (c . (g, m, m / sqrt(v)) + a (c' phi / r + d))`,
    `(d, s) = f(features; w)`, `theta = (c, c', h, w)`

    The features of each parameter: its gradient (logarithm and sign, and over the root of its second moments), momenta
    over that root, the logarithm of the root, its value over the root mean square of its leaf; and, the same for all of
    a leaf, that root mean square r and the number of steps taken. c is the path on which d = c' = 0, s = h = 0 is SGD
    or Adam. h is a schedule: p is 1 and the same features of the number of steps. `a = A^2 / (A^2 + 0.01)`, A the root
    mean square of the `m / sqrt(v)`, is near 1 where gradients come and 0 where none do: a parameter that the loss does
    not depend on stays where it is.

    Args:
      hidden: Widths of the network's layers.
      momenta: Decays of the means of the gradients, m.
      moments: Decays of the means of the squared gradients, v.
      step_size: The unit of c and of d. Smaller makes it stiffer to noise in the weights, as `pes` adds.
      horizon: Steps after which the features of progress, and with them the schedule, stand still. Set it to the
        length of training that the weights are learned on: then a longer one shows no values never seen.
      eps: Added to the root of the second moments; its square below the root, as in `inner_adam`.

    Returns:
      A `LearnedOptimizer`. Its transformation works on any tree of floating-point parameters; it raises ValueError for
      a state of another tree, for weights of another optimiser, and where the parameters are not handed in.

    Raises:
      ValueError: no layers, decays outside [0, 1), or numbers that are not positive.

    Example:
      >>> from jaxmeta import inner_loop
      >>> optimizer = mlp_optimizer(hidden=(4,))
      >>> theta = optimizer.as_sgd(optimizer.init(jax.random.key(0)), 0.5)
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum((phi - data) ** 2), ()
      >>> solve = inner_loop(objective, optimizer.transform, num_steps=3)
      >>> round(float(solve(jnp.zeros(()), theta, (), 8.0, jax.random.key(0)).phi), 4)
      7.0

    Source: Metz, Maheswaranathan, Freeman, Poole and Sohl-Dickstein, 2020, arXiv 2009.11243, and Metz, Freeman,
    Harrison, Maheswaranathan and Sohl-Dickstein, 2022, arXiv 2203.11860.
    """
    return _optimizer("mlp_optimizer", Perceptron, hidden, momenta, moments, step_size, horizon, eps)


def lstm_optimizer(
    *,
    hidden: Sequence[int] = (20, 20),
    momenta: Sequence[float] = (0.5, 0.9, 0.99),
    moments: Sequence[float] = (0.999,),
    step_size: float = 1e-3,
    horizon: float = TIMESCALES[-1],
    eps: float = 1e-8,
) -> LearnedOptimizer:
    """Make a per-parameter LSTM: as `mlp_optimizer`, with a memory of each parameter's own.

    `h, (d, s) = f(h, features; w)`

    Args:
      hidden: Units of each layer of LSTM cells.
      momenta: As in `mlp_optimizer`, as is all that follows.
      moments: See there.
      step_size: See there.
      horizon: See there.
      eps: See there.

    Returns:
      A `LearnedOptimizer`; its state holds two numbers for each parameter and unit.

    Raises:
      ValueError: As `mlp_optimizer`.

    Example:
      >>> optimizer = lstm_optimizer(hidden=(3,))
      >>> step = optimizer.transform(optimizer.as_sgd(optimizer.init(jax.random.key(0)), 0.5))
      >>> params = {"kernel": jnp.ones([2, 2])}
      >>> updates, state = step.update(params, step.init(params), params)
      >>> round(float(updates["kernel"][0, 0]), 4), state.carry[0][0].shape
      (-0.5, (4, 3))

    Source: Andrychowicz, Denil, Gomez, Hoffman, Pfau, Schaul, Shillingford and de Freitas, 2016, arXiv 1606.04474.
    """
    return _optimizer("lstm_optimizer", Recurrent, hidden, momenta, moments, step_size, horizon, eps)


def _optimizer(who, network_of, hidden, momenta, moments, step_size, horizon, eps) -> LearnedOptimizer:
    _check(who, hidden, momenta, moments, step_size, horizon, eps)
    network: Any = network_of(tuple(hidden))

    def init(key: Key):
        of_each, of_all = count_features(momenta, moments)
        features, shared = jnp.zeros([1, of_each]), jnp.zeros([1, of_all])
        weights = network.init(key, network.first_carry(1, features.dtype), features, shared, (1,))["params"]
        path = {
            "gradient": jnp.zeros(()),
            "schedule": jnp.zeros([1 + len(TIMESCALES)]),
            "momenta": jnp.zeros([len(momenta)]),
            "parameter": jnp.zeros(()),
            "adam": jnp.full([len(momenta), len(moments)], 1.0 / (len(momenta) * len(moments))),
        }
        return {"network": weights, "path": path}

    shapes = jax.tree.map(jnp.shape, jax.eval_shape(init, jax.random.key(0)))

    def step_of(theta, gradient, param, momentum, moment, scales, sizes, count, carry):
        """Step all parameters at once: `[parameters]`, means `[decays, parameters]`, `[leaves]` root mean squares."""
        mean = momentum / (1 - column(momenta, momentum) ** count)
        root = jnp.sqrt(moment / (1 - column(moments, moment) ** count) + eps**2) + eps
        adam = mean[:, None] / root
        relative = param / spread(scales, sizes)
        features = features_of(gradient, relative, root, adam)
        age = jnp.minimum(count, horizon)
        shared = shared_features(scales, age)
        carry, outputs = network.apply({"params": theta["network"]}, carry, features, shared, sizes)
        path = theta["path"]
        known = path["gradient"] * gradient
        known += jnp.tensordot(path["momenta"], momentum, 1, precision="highest")
        known += jnp.tensordot(path["adam"], adam, 2, precision="highest")
        # Of parameters without gradients nothing would tell the network that they drift, and steps along phi itself,
        # not its ratio to the leaf, grow with it: so trainings broke down soon after the last step learned on.
        activity = jnp.mean(jnp.square(adam), (0, 1))
        free = (outputs[:, 0] + path["parameter"] * relative) * activity / (activity + IDLE**2)
        # Past the network, so that a rate that rises and falls is learned as fast as one that stands.
        progress = jnp.concatenate([jnp.ones(1, age.dtype), progress_of(age)])
        size = outputs[:, 1] + jnp.dot(path["schedule"], progress, precision="highest")
        size = MAX_LOG_SIZE * jnp.tanh(size / MAX_LOG_SIZE)
        return -step_size * jnp.exp(size) * (known + free), carry

    def transform(theta):
        _check_theta(who, shapes, theta)

        def begin(params):
            if not jax.tree.leaves(params):
                raise ValueError(f"{who} was given a tree without parameters; give it at least one array.")

            def zeros(decays):
                return jax.tree.map(lambda leaf: jnp.zeros([len(decays), *jnp.shape(leaf)], kept_dtype(leaf)), params)

            carry = network.first_carry(sum(jnp.size(leaf) for leaf in jax.tree.leaves(params)), widest_dtype(params))
            return LearnedState(jnp.int32(0), zeros(momenta), zeros(moments), carry)

        def update(updates, state: Any, params=None):
            if params is None:
                raise ValueError(f"{who} sees the parameters: call update(updates, state, params).")
            for what, tree in (("parameters", params), ("gradients", updates)):
                check_same(f"The state of {who} is not of these {what}", jax.eval_shape(begin, tree), state)
            squares = jax.tree.map(lambda leaf: jnp.square(leaf.astype(kept_dtype(leaf))), updates)
            new = accumulate(momenta, updates, state.momenta), accumulate(moments, squares, state.moments)
            leaves, treedef = jax.tree.flatten(updates)
            wide, sizes = widest_dtype(updates), tuple(leaf.size for leaf in leaves)
            gradient, param = (flatten_leaves(tree, wide) for tree in (updates, params))
            momentum, moment = (flatten_leaves(tree, wide, axes=1) for tree in new)
            scales = jnp.stack([root_mean_square(leaf.astype(wide)) for leaf in jax.tree.leaves(params)])
            count = (state.count + 1).astype(wide)
            steps, carry = step_of(theta, gradient, param, momentum, moment, scales, sizes, count, state.carry)
            parts = jnp.split(steps, np.cumsum(sizes)[:-1])
            # Weights in another precision than the parameters must not change what a scan carries.
            steps = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
            carry = jax.tree.map(lambda new, old: new.astype(old.dtype), carry, state.carry)
            return jax.tree.unflatten(treedef, steps), LearnedState(state.count + 1, *new, carry)

        return optax.GradientTransformation(begin, update)

    def known_path(theta, **values):
        path = {name: jnp.zeros_like(leaf) for name, leaf in theta["path"].items()}
        for name, (place, value) in values.items():
            path[name] = path[name].at[place].set(value / step_size)
        silent = jax.tree.map(jnp.zeros_like, theta["network"]["output"])
        return {"network": {**theta["network"], "output": silent}, "path": path}

    def as_sgd(theta, rate, *, momentum=0.0):
        if momentum == 0:
            return known_path(theta, gradient=((), rate))
        # A trace is a mean without its factor 1 - decay.
        return known_path(theta, momenta=(_place(who, "momenta", momenta, momentum), rate / (1 - momentum)))

    def as_adam(theta, rate, *, b1=0.9, b2=0.999):
        place = _place(who, "momenta", momenta, b1), _place(who, "moments", moments, b2)
        return known_path(theta, adam=(place, rate))

    return LearnedOptimizer(init, transform, as_sgd, as_adam)


def _place(who, what, decays, wanted):
    if wanted not in decays:
        raise ValueError(f"This {who} has {what} of decays {tuple(decays)}; given {wanted}. Make it with {what}=(...).")
    return list(decays).index(wanted)


def _check_theta(who, shapes, theta):
    given = jax.tree.map(jnp.shape, theta)
    if given != shapes:
        raise ValueError(
            f"theta is not of this {who}: weights of shapes {shapes} are needed; given {given}. Use the weights that "
            "init of an optimiser with the same layers and decays made."
        )


def _check(who, hidden, momenta, moments, step_size, horizon, eps):
    for name, numbers in (("hidden", hidden), ("momenta", momenta), ("moments", moments)):
        if len(numbers) == 0:
            raise ValueError(f"{who} needs at least one number in {name}; given none.")
    for width in hidden:
        check_count(who, "widths in hidden", width, 1)
    for decay in (*momenta, *moments):
        if not 0 <= decay < 1:
            raise ValueError(f"{who} needs decays in [0, 1); given {decay}.")
    for name, number in (("step_size", step_size), ("horizon", horizon), ("eps", eps)):
        if not 0 < number < float("inf"):
            raise ValueError(f"{who} needs {name} > 0; given {number}.")
