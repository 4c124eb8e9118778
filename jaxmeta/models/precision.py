"""How exactly a model computes: real float32, TF32 products, or bfloat16 with parameters kept in float32."""

import jax
import jax.numpy as jnp

from jaxmeta.base import Model, PyTree

# Of matrix products, as JAX names it. In bfloat16 the operands are rounded already.
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}


def in_precision(model: Model, precision: str) -> Model:
    """Let a model compute in a precision; what derives from it, to any order, follows.

    Parameters, the state and the outputs stay in float32: an inner loop adds up float32 steps. In bfloat16 products add
    up in float32 and give bfloat16, gradients too: that of a parameter is rounded where a product ends, when it has
    been summed over examples and positions, and is float32 from there on. On a CPU "tf32" changes nothing; on a GPU
    JAX's own default is TF32, and what a learner computes beside its model (a head) goes by
    `jax.default_matmul_precision`, which `--precision` sets for both.

    Args:
      model: The model.
      precision: "float32": float32 products; "tf32": products of mantissas with 10 bits, on hardware
        that has them; "bfloat16": parameters and inputs are rounded to mantissas of 7 bits, and
        normalisation statistics are computed in float32. What is in float64 stays in float64.

    Returns:
      The `Model`.

    Raises:
      ValueError: for another name.

    Example:
      >>> from jaxmeta import mlp
      >>> model = in_precision(mlp(1), "bfloat16")
      >>> params, state = model.init(jax.random.key(0), jnp.ones([4, 1]))
      >>> params["head"]["kernel"].dtype, model.apply(params, state, jnp.ones([4, 1]))[0].dtype
      (dtype('float32'), dtype('float32'))

    Source: Micikevicius et al., 2018, arXiv 1710.03740.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is none of: {', '.join(PRECISIONS)}.")

    def computed(function):
        def compute(params, state, inputs, **options):
            with jax.default_matmul_precision(PRECISIONS[precision]):
                if precision != "bfloat16":
                    return function(params, state, inputs, **options)
                params, inputs = _cast(params, jnp.bfloat16), _cast(inputs, jnp.bfloat16)
                outputs, state = function(params, state, inputs, **options)
                return _cast(outputs, jnp.float32), _cast(state, jnp.float32)

        return compute

    head = None if model.head is None else computed(model.head)
    return Model(model.init, computed(model.embed), computed(model.apply), head)


def _cast(tree: PyTree, dtype) -> PyTree:
    """Cast the floats that are not wider than float32: a check in float64 stays one."""
    narrow = (jnp.float32, jnp.bfloat16)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.asarray(leaf).dtype in narrow else leaf, tree)
