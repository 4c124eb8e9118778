"""Where did the NaN come from? The first inner step, leaf and quantity that is not a finite number."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxmeta.base import Loop, MetaGrad
from jaxmeta.metagrad import unrolled
from jaxmeta.metagrad.leaves import is_float, name_of

# In the order in which they are computed within a step, forward and backward.
FORWARD = ("input", "loss", "gradient", "optimiser state", "phi")
BACKWARD = ("phi", "optimiser state", "gradient", "input")


class NonFinite(NamedTuple):
    """The first number that is not finite.

    Attributes:
      backward: False for a value, on the way through the inner loop; True for the derivative
        of the meta-loss by that value, on the way back.
      step: The inner step, the first being 0; None for an input of the loop.
      quantity: "input", "loss", "gradient", "optimiser state" or "phi" (both after the step).
      leaf: The leaf of it, as a path.
    """

    backward: bool
    step: int | None
    quantity: str
    leaf: str

    def __str__(self):
        """Say it in a sentence."""
        way = "on the way back, the derivative of the meta-loss by " if self.backward else ""
        when = "" if self.step is None else f" of inner step {self.step} (the first is 0)"
        return f"First not finite: {way}the {self.quantity} {self.leaf}".rstrip() + when + "."


def find_nonfinite(run: Callable[[MetaGrad], Any], metagrad: MetaGrad | None = None) -> NonFinite | None:
    """Run a computation with a watched strategy and name the first number that is not finite.

    Slow, as every inner step reports to the host: for finding out, not for training.

    Args:
      run: Computes a meta-gradient with the strategy it is given:
        `lambda metagrad: jax.grad(loss_with(metagrad))(theta)`. A function that it jits must
        be made inside of it.
      metagrad: The strategy to watch; `unrolled()` if None.

    Returns:
      A `NonFinite`, whose `str` is a sentence; None if the inner loop's inputs, its steps, and the
      derivatives by them were finite. Forward before backward; of all tasks the earliest step,
      backward the latest. `forward()` has no way back: of its derivatives only the inputs' are seen.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxmeta import inner_loop
      >>> def objective(phi, theta, state, data, key):
      ...     return jnp.sum(phi["alive"] ** 2 + 0.0 * phi["dead"] ** 2), ()
      >>> def run(metagrad):
      ...     solve = inner_loop(objective, optax.adam(0.1), 3, metagrad)
      ...     def meta_loss(theta):
      ...         return objective(solve(theta, (), (), (), jax.random.key(0)).phi, (), (), (), None)[0]
      ...     return jax.grad(meta_loss)({"alive": jnp.ones(2), "dead": jnp.ones(2)})
      >>> print(find_nonfinite(run))  # doctest: +NORMALIZE_WHITESPACE
      First not finite: on the way back, the derivative of the meta-loss by the gradient ['dead']
      of inner step 2 (the first is 0).
    """
    found: list[NonFinite] = []
    jax.block_until_ready(run(_watched(unrolled() if metagrad is None else metagrad, found)))
    jax.effects_barrier()
    return min(found, key=_order, default=None)


def _order(finding: NonFinite):
    if finding.backward:
        # On the way back the last step comes first, and the inputs of the loop last.
        return 1, finding.step is None, -(finding.step or 0), BACKWARD.index(finding.quantity), finding.leaf
    return 0, finding.step is not None, finding.step or 0, FORWARD.index(finding.quantity), finding.leaf


def _watched(metagrad: MetaGrad, found: list) -> MetaGrad:
    """Wrap the hooks of a strategy so that each reports what it sees."""
    # The step being traced; its gradient is traced within it.
    current: dict[str, Any] = {"index": -1}

    def grad(objective):
        gradient = metagrad.grad(objective)

        def watched(*args):
            grads, aux = gradient(*args)
            _report(found, "loss", aux, current["index"])
            _report(found, "gradient", grads, current["index"])
            (grads,) = _watch_backward(found, [("gradient", grads)], current["index"])
            return grads, aux

        return watched

    def step(step_fn):
        def watched(inputs, carry, index):
            current["index"] = index
            (phi, opt_state), per_step = step_fn(inputs, carry, index)
            _report(found, "optimiser state", opt_state, index)
            _report(found, "phi", phi, index)
            return _watch_backward(found, (("phi", phi), ("optimiser state", opt_state)), index), per_step

        return metagrad.step(watched)

    def solve(loop: Loop):
        outside = jnp.int32(-1)
        inputs = loop.inputs
        _report(found, "input", inputs._asdict(), outside)
        (watched,) = _watch_backward(found, [("input", inputs._asdict())], outside)
        return metagrad.solve(loop._replace(inputs=inputs._replace(**watched)))

    return MetaGrad(grad, step, solve, metagrad.check)


def _report(found, quantity, tree, index):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_float(leaf):
            jax.debug.callback(partial(_record, found, False, quantity, name_of(path)), jnp.isfinite(leaf).all(), index)


def _watch_backward(found, named_trees, index):
    """Return the trees as a tuple; report the cotangents that arrive at their leaves."""

    def watch(quantity, path, leaf):
        if not is_float(leaf):
            return leaf
        return _watch.bind(leaf, index, callback=partial(_record, found, True, quantity, name_of(path)))

    return tuple(jax.tree_util.tree_map_with_path(partial(watch, quantity), tree) for quantity, tree in named_trees)


def _record(found, backward, quantity, leaf, finite, index):
    if not finite.all():
        step = int(index.max())
        found.append(NonFinite(backward, None if step < 0 else step, quantity, leaf))


# An identity whose tangent, when it is transposed, reports the cotangent. A `custom_vjp` would do
# the same and shut out strategies that go forwards.
_watch, _watch_tangent = Primitive("watch"), Primitive("watch_tangent")


def _watch_jvp(primals, tangents, *, callback):
    value, index = primals
    return _watch.bind(value, index, callback=callback), _watch_tangent.bind(tangents[0], index, callback=callback)


def _watch_transpose(cotangent, value, index, *, callback):
    if type(cotangent) is not ad.Zero:
        jax.debug.callback(callback, jnp.isfinite(cotangent).all(), index)
    return [cotangent, None]


for _primitive in (_watch, _watch_tangent):
    _primitive.def_impl(lambda value, index, **params: value)
    _primitive.def_abstract_eval(lambda value, index, **params: value)
    mlir.register_lowering(_primitive, lambda context, value, index, **params: [value])
batching.primitive_batchers[_watch] = lambda args, axes, **params: (_watch.bind(*args, **params), axes[0])
batching.primitive_batchers[_watch_tangent] = lambda args, axes, **params: (
    _watch_tangent.bind(*args, **params),
    axes[0],
)
ad.primitive_jvps[_watch] = _watch_jvp
ad.primitive_jvps[_watch_tangent] = lambda primals, tangents, **params: (
    _watch_tangent.bind(*primals, **params),
    _watch_tangent.bind(tangents[0], primals[1], **params),
)
ad.primitive_transposes[_watch_tangent] = _watch_transpose
