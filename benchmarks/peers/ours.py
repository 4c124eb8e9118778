"""The meta-step by jaxmeta, as its own benchmark takes it: `python ours.py PROBLEM.npz`, see `harness.py`."""

import jax
import numpy as np
import optax

from harness import Contender, flatten, serve, unflatten, versions_of
from jax_side import configure, device_peak, make_product
from jaxmeta import Batch, Episode
from jaxmeta.bench import Load
from jaxmeta.bench.loads import worth_dividing
from jaxmeta.bench.measure import prepare
from jaxmeta.cores import split_cpu


def make(problem, options):
    load = Load(**vars(problem.load))._replace(input_shape=tuple(problem.load.input_shape))
    if worth_dividing(load):
        # First of all: what `configure` asks of JAX settles the number of devices.
        split_cpu(load.tasks)
    configure(problem, options)
    weights = unflatten(problem.weights)
    batches = (
        Batch(inputs, targets, np.ones(inputs.shape[:2], inputs.dtype))
        for inputs, targets in (problem.support, problem.query)
    )
    episodes, prepared = Episode(*batches), None
    how = {"task_chunk": options.chunk, "precision": options.precision}

    def gradient():
        # By the step that is timed: after one of size 1 down the gradient, the difference is the gradient.
        step = prepare(load, weights, episodes, optimizer=optax.sgd(1.0), **how)
        loss = step.step()
        after = jax.tree.map(np.asarray, step.params())
        return loss, flatten(jax.tree.map(lambda before, after: before - after, weights, after))

    def compile_step():
        nonlocal prepared
        prepared = prepare(load, weights, episodes, **how)
        return {
            "compile_seconds": prepared.compile_seconds,
            "temp_bytes": prepared.temp_bytes,
            "task_chunk": prepared.task_chunk,
        }

    def step():
        return prepared.step()

    about = {"versions": versions_of("jax", "jaxlib", "flax", "optax"), "devices": len(jax.devices())}
    return Contender(gradient, compile_step, step, make_product(options), about, device_peak)


if __name__ == "__main__":
    serve(make)
