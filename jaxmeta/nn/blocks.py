"""Contractions of many examples, block by block, so that what one block needs stays in the cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def in_blocks(contract: Callable, missing: str, fitting: int) -> Callable:
    """Let a contraction of two of input, kernel and output go through at most `fitting` examples at once, in a loop."""

    def blockwise(first, second):
        examples = (second if missing == "input" else first).shape[0]
        # In a program that is exported for any number of examples, that number is a symbol: there are no blocks of it.
        if not isinstance(examples, int):
            return contract(first, second)
        # Little more than what fits is not worth a loop, nor are examples without a divisor near it.
        if examples < 4 * fitting:
            return contract(first, second)
        block = max(size for size in range(1, fitting + 1) if examples % size == 0)
        if 4 * block < fitting:
            return contract(first, second)

        def blocks(images):
            return images.reshape(-1, block, *images.shape[1:])

        if missing == "kernel":
            one = jax.eval_shape(contract, first, second)
            # A sum of many bfloat16 numbers would not be one.
            zeros = jnp.zeros(one.shape, jnp.promote_types(one.dtype, jnp.float32))
            pairs = (blocks(first), blocks(second))
            return jax.lax.scan(lambda total, pair: (total + contract(*pair), None), zeros, pairs)[0].astype(one.dtype)
        if missing == "input":
            images = jax.lax.map(lambda image: contract(first, image), blocks(second))
        else:
            images = jax.lax.map(lambda image: contract(image, second), blocks(first))
        return images.reshape(examples, *images.shape[2:])

    return blockwise
