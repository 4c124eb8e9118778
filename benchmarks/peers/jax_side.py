"""What contenders in JAX share, and nothing of jaxmeta."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from harness import MATMUL_SIZE


def configure(problem, options):
    """Set what is global: the dtype of the problem, the precision of products, no compilation from earlier runs."""
    jax.config.update("jax_enable_x64", problem.support[0].dtype == np.float64)
    jax.config.update("jax_enable_compilation_cache", False)
    precisions = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}
    jax.config.update("jax_default_matmul_precision", precisions[options.precision])
    if (jax.default_backend() == "cpu") != (options.device == "cpu"):
        raise RuntimeError(f"--device {options.device} was asked for, and JAX runs on {jax.default_backend()}")


def compile_timed(jitted, *arguments):
    """The compiled program, and what it took and takes."""
    begin = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    seconds = time.perf_counter() - begin
    return compiled, {"compile_seconds": seconds, "temp_bytes": compiled.memory_analysis().temp_size_in_bytes}


def make_product(options):
    dtype = jnp.bfloat16 if options.precision == "bfloat16" else jnp.float32
    matrix = jnp.asarray(np.random.default_rng(0).random((MATMUL_SIZE, MATMUL_SIZE), np.float32), dtype)
    product = jax.jit(jnp.matmul)
    return lambda: product(matrix, matrix).block_until_ready()


def device_peak():
    figures = jax.local_devices()[0].memory_stats()
    return None if figures is None else figures.get("peak_bytes_in_use")
