"""The meta-step in plain JAX, and by jax-meta: `python jax_peers.py NAME PROBLEM.npz`, see `harness.py`."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from harness import OUTER_RATE, Contender, flatten, serve, unflatten, versions_of
from jax_networks import make_apply
from jax_side import compile_timed, configure, device_peak, make_product


def loss_of(outputs, targets):
    if targets.ndim == 2:
        return jnp.mean((outputs - targets) ** 2)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def plain_meta_loss(load, precision="float32"):
    """As a competent user writes it by hand: `vmap` over tasks, the inner steps in a Python loop."""
    apply = make_apply(load, precision)

    def value(params, inputs, targets):
        return loss_of(apply(params, inputs), targets)

    def of_task(theta, support, query):
        phi = theta
        for _ in range(load.num_steps):
            gradient = jax.grad(value)(phi, *support)
            phi = jax.tree.map(lambda leaf, grad: leaf - load.inner_rate * grad, phi, gradient)
        return value(phi, *query)

    return lambda theta, support, query: jax.vmap(of_task, (None, 0, 0))(theta, support, query).mean()


def by_plain(problem, precision):
    params, support, query = on_device(problem)
    optimizer = optax.adam(OUTER_RATE)
    gradient = jax.value_and_grad(plain_meta_loss(problem.load, precision))

    def meta_step(params, state, support, query):
        loss, grads = gradient(params, support, query)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    def take_gradient():
        loss, grads = jax.jit(gradient)(params, support, query)
        return float(loss), flatten(jax.tree.map(np.asarray, grads))

    # A copy: what is donated is gone.
    state = [jax.tree.map(jnp.copy, params), optimizer.init(params)]
    return take_gradient, jax.jit(meta_step, donate_argnums=(0, 1)), state, (support, query)


def by_jax_meta(problem, precision):
    """`MAML.step`; the network is ours, through the pair of functions that it asks for."""
    from jax_meta.metalearners.maml import MAML

    load, apply = problem.load, make_apply(problem.load, precision)
    Model, Batch = namedtuple("Model", "init apply"), namedtuple("Batch", "inputs targets")
    params, support, query = on_device(problem)
    model = Model(lambda key, *_: (params, {}), lambda params, state, inputs, *_: (apply(params, inputs), state))

    class Learner(MAML):
        # Its own loss is cross-entropy; this one is that for classes, and serves the sinusoids too.
        def loss(self, params, state, inputs, targets, args):
            outputs, state = self.model.apply(params, state, inputs, *args)
            loss = loss_of(outputs, targets)
            return loss, (state, {"loss": loss})

    learner = Learner(model, num_steps=load.num_steps, alpha=load.inner_rate)
    train, test = Batch(*support), Batch(*query)
    start, state = learner.init(jax.random.PRNGKey(0), optax.adam(OUTER_RATE), support[0][0])

    def take_gradient():
        gradient = jax.value_and_grad(learner.batch_outer_loss, has_aux=True)
        (loss, _), grads = gradient(start, state.model, train, test, ())
        return float(loss), flatten(jax.tree.map(np.asarray, grads))

    def meta_step(params, state, train, test):
        params, state, logs = learner.train_step(params, state, train, test, ())
        return params, state, logs["outer/loss"].mean()

    return take_gradient, jax.jit(meta_step), [start, state], (train, test)


def on_device(problem):
    return jax.tree.map(jnp.asarray, (unflatten(problem.weights), problem.support, problem.query))


PEERS = {"plain": (by_plain, []), "jax-meta": (by_jax_meta, ["jax-meta"])}


def make(problem, options):
    configure(problem, options)
    by, packages = PEERS[options.name]
    take_gradient, jitted, state, data = by(problem, options.precision)
    compiled = None

    def prepare():
        nonlocal compiled
        compiled, figures = compile_timed(jitted, *state, *data)
        return figures

    def step():
        *state[:], loss = compiled(*state, *data)
        jax.block_until_ready(state)
        return float(loss)

    versions = versions_of("jax", "jaxlib", "flax", "optax", *packages)
    return Contender(take_gradient, prepare, step, make_product(options), {"versions": versions}, device_peak)


if __name__ == "__main__":
    serve(make, list(PEERS))
