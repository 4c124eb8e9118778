"""Contractions of many examples in blocks whose patches or tiles stay in the cache: memory is the slower part."""

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
        block = max(size for size in range(1, min(examples, fitting) + 1) if examples % size == 0)
        # Little more than the cache is not worth a loop, nor are examples without a divisor near what fits.
        if examples < 4 * fitting or 4 * block < fitting:
            return contract(first, second)

        def blocks(images):
            return images.reshape(-1, block, *images.shape[1:])

        if missing == "kernel":
            zeros = jnp.zeros_like(jax.eval_shape(contract, first, second))
            pairs = (blocks(first), blocks(second))
            return jax.lax.scan(lambda total, pair: (total + contract(*pair), None), zeros, pairs)[0]
        if missing == "input":
            images = jax.lax.map(lambda image: contract(first, image), blocks(second))
        else:
            images = jax.lax.map(lambda image: contract(image, second), blocks(first))
        return images.reshape(examples, *images.shape[2:])

    return blockwise
