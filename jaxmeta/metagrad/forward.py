"""Forward-mode differentiation of the inner loop: for few meta-parameters and any number of steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxmeta.base import Loop, MetaGrad
from jaxmeta.metagrad.closures import NO_FORWARD_DERIVATIVE, hoist, trace
from jaxmeta.metagrad.leaves import check_count, is_float, split_floats
from jaxmeta.metagrad.paths import rematerialise, run_loop
from jaxmeta.metagrad.strategies import inner_gradient


def forward(*, max_meta_params: int = 256) -> MetaGrad:
    """Carry the derivative with respect to theta beside phi: exact, memory constant in the number of steps.

    `Z_{t+1} = (d step / d phi) Z_t + d step / d theta,  Z_t = d phi_t / d theta`

    Memory and time are those of the forward pass times one more than the number of
    meta-parameters: for learning rates, weights of a loss, regularisation.

    Args:
      max_meta_params: The most numbers to differentiate with respect to. All that the loop
        takes count, a learned start too, when the meta-gradient depends on them.

    Returns:
      A `MetaGrad`. It raises ValueError at trace time above `max_meta_params`.

    Raises:
      ValueError: for less than one meta-parameter.

    Example:
      >>> from jaxmeta import inner_loop
      >>> import jax, jax.numpy as jnp, optax
      >>> def objective(phi, theta, state, data, key):
      ...     return 0.5 * jnp.sum(phi**2), ()
      >>> solve = inner_loop(objective, lambda theta: optax.sgd(theta), 2, forward())
      >>> adapted = lambda theta: solve(jnp.ones(()), theta, (), (), jax.random.key(0)).phi
      >>> round(float(jax.grad(adapted)(0.1)), 6)  # -2 (1 - 0.1)
      -1.8

    Source: Franceschi, Donini, Frasconi and Pontil, 2017, arXiv 1703.01785.
    """
    check_count("forward", "max_meta_params", max_meta_params, 1)

    def solve(loop: Loop):
        # What the loop closes over is hoisted into arguments, or the rule would not see it.
        run, hoisted = hoist(trace(lambda inputs: run_loop(loop._replace(inputs=inputs)), loop.inputs), 1)
        leaves, names, rest, merge = split_floats((loop.inputs, hoisted))
        # A start that is theta, and the anchor too, is one value: it is carried once.
        places = {id(leaf): place for place, leaf in reversed(list(enumerate(leaves)))}
        floats = [leaves[place] for place in sorted(places.values())]
        names = [_short(names[place]) for place in sorted(places.values())]
        number = {id(leaf): number for number, leaf in enumerate(floats)}
        numbers = [number[id(leaf)] for leaf in leaves]

        def run_from(floats, rest):
            inputs, hoisted = merge([floats[number] for number in numbers], rest)
            return run(inputs, *hoisted)

        def rule(primals, tangents):
            (floats, rest), (tangents, _) = primals, tangents
            floats = [jnp.asarray(leaf) for leaf in floats]
            moving = [place for place, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]
            _check_number([(names[place], floats[place]) for place in moving], max_meta_params)

            def of_moving(leaves):
                moved = list(floats)
                for place, leaf in zip(moving, leaves, strict=True):
                    moved[place] = leaf
                return run_from(moved, rest)

            try:
                outputs, jacobian = _jacobian(of_moving, [floats[place] for place in moving])
            except TypeError as error:
                if "custom_vjp" not in str(error) and "forwards" not in str(error):
                    raise
                raise TypeError(NO_FORWARD_DERIVATIVE.format("forward()")) from error
            direction = jnp.concatenate([jnp.ravel(tangents[place]) for place in moving])
            return outputs, jax.tree.map(lambda rows, output: _contract(direction, rows, output), jacobian, outputs)

        with_rule = jax.custom_jvp(run_from)
        with_rule.defjvp(rule, symbolic_zeros=True)
        return with_rule(floats, rest)

    return MetaGrad(inner_gradient, *rematerialise(None)[:1], solve)


def _jacobian(function, leaves):
    """Return `outputs` and their derivatives, rows `[meta-parameters, ...]`, by one pass with all tangents."""
    sizes = [leaf.size for leaf in leaves]
    total, dtype = sum(sizes), jnp.result_type(*leaves)
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]

    def along(basis_vector):
        pieces = jnp.split(basis_vector, ends[:-1])
        tangents = [piece.reshape(leaf.shape).astype(leaf.dtype) for piece, leaf in zip(pieces, leaves, strict=True)]
        return jax.jvp(function, (leaves,), (tangents,))

    return jax.vmap(along, out_axes=(None, 0))(jnp.eye(total, dtype=dtype))


def _contract(direction, rows, output):
    if not is_float(output):
        return np.zeros(jnp.shape(output), jax.dtypes.float0)  # Whole numbers have no derivative.
    return jnp.tensordot(direction.astype(output.dtype), rows, 1, precision="highest")


def _check_number(leaves, max_meta_params):
    total = sum(math.prod(leaf.shape) for _, leaf in leaves)
    if total > max_meta_params:
        largest = sorted(leaves, key=lambda item: -math.prod(item[1].shape))[:3]
        listed = ", ".join(f"{name} {list(leaf.shape)}" for name, leaf in largest)
        raise ValueError(
            f"forward() would carry {total} derivatives of every inner parameter; at most {max_meta_params} are "
            f"allowed (max_meta_params). The largest of {len(leaves)} leaves: {listed}. Use "
            "unrolled(remat='group') or mixed_mode(), whose cost does not depend on the number of meta-parameters."
        )


def _short(name: str) -> str:
    """Turn a path in `(inputs, hoisted)` into what a caller would recognise."""
    return name.removeprefix("[0].") if name.startswith("[0]") else f"closed-over value {name.removeprefix('[1]')}"
