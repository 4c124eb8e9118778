"""What test_devices.py runs in a process with eight virtual devices: measures, printed as JSON."""

import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

import jaxmeta as jm
from conftest import flat_model, tiny_model
from jaxmeta import devices, feed
from jaxmeta.nn import LOWERINGS, Conv

OPTIMIZER = optax.adam(1e-2)
SINES = jm.task_source(jm.load_sinusoid(), "train", jm.EpisodeSpec(1, 5, 5))
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def distance(one, other) -> float:
    """The greatest relative error of a leaf; whole numbers must be the same."""
    errors = [0.0]
    for a, b in zip(jax.tree.leaves(jax.device_get(one)), jax.tree.leaves(jax.device_get(other)), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        errors.append(float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3)))
    return max(errors)


def measure(step, *arguments) -> dict:
    """Read the work of one device, and what devices exchange, from the compiled program.

    XLA counts the body of a loop once: only programs with as many chunks can be compared.
    """
    compiled = jax.jit(step).lower(*arguments).compile()
    text = compiled.as_text()
    exchanged = {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}
    memory = compiled.memory_analysis()
    sizes = {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes}
    return {"flops": compiled.cost_analysis()["flops"], **exchanged, **sizes}


def sine_learner(hidden=(8,)):
    return jm.maml(jm.mlp(1, hidden=hidden), inner_optimizer=optax.sgd(0.01), criterion=jm.CRITERIA["regression"])


def counting(learner):
    """Add a counter and a flag to the state: neither may be averaged."""

    def loss(meta_params, state, episode, key, step):
        value, (inner, metrics) = learner.loss(meta_params, state["inner"], episode, key, step)
        return value, ({"inner": inner, "count": state["count"] + 1, "flag": ~state["flag"]}, metrics)

    return learner._replace(loss=loss)


def pair(num_tasks, mesh, *, learner=None, source=SINES, estimator=None, task_chunk=None, batches=1):
    """Take steps on one device and on a mesh; return both states and their metrics."""
    learner = sine_learner() if learner is None else learner
    state = jm.init_train_state(jax.random.key(0), learner, OPTIMIZER, source, num_tasks=num_tasks, estimator=estimator)
    if "counting" in learner.loss.__qualname__:
        state = state._replace(state={"inner": state.state, "count": jnp.int32(7), "flag": jnp.array(False)})
    results = []
    for options in ({}, {"mesh": mesh, "task_chunk": task_chunk}):
        step, taken = jax.jit(jm.make_train_step(learner, OPTIMIZER, estimator=estimator, **options)), state
        for batch in range(batches):
            episodes = source.sample(jax.random.key(batch), source.pool, source.spec, num_tasks)
            taken, metrics = step(taken, episodes, jax.random.key(5))
        results.append((taken, metrics))
    return results


def convolution() -> dict:
    return {"error": distance(*pair(5, jm.make_mesh(3), learner=image_learner(), source=images()))}


class LoweredBody(nn.Module):
    """A convolution of two channels by one lowering; depthwise for the one that is for that."""

    lowering: str
    groups: int

    @nn.compact
    def __call__(self, inputs, *, train, weights=None):
        inputs = jnp.concatenate([inputs, jnp.cos(inputs)], -1)
        hidden = jnp.tanh(Conv(4, feature_group_count=self.groups, lowering=self.lowering)(inputs))
        return hidden.reshape(hidden.shape[0], -1)


def sharded_lowerings() -> dict:
    """In float64 the meta-gradient of every lowering on three devices, against XLA's own convolution on one."""
    jax.config.update("jax_enable_x64", True)
    source, errors = images(), {}
    episodes = source.sample(jax.random.key(0), source.pool, source.spec, 5)
    episodes = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, episodes)

    def meta_gradient(lowering, groups, mesh):
        model = jm.from_linen(LoweredBody(lowering, groups), nn.Dense(3))
        learner = jm.maml(model, inner_optimizer=optax.sgd(0.1), num_steps=2)
        state = jm.init_train_state(jax.random.key(0), learner, optax.sgd(1.0), source, num_tasks=5)
        state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, state)
        step = jax.jit(jm.make_train_step(learner, optax.sgd(1.0), mesh=mesh))
        after, _ = step(state, episodes, jax.random.key(5))
        return jax.tree.map(lambda before, after: before - np.asarray(after), state.meta_params, after.meta_params)

    for lowering in LOWERINGS:
        groups = 2 if lowering == "shifts" else 1
        errors[lowering] = distance(
            meta_gradient(lowering, groups, jm.make_mesh(3)), meta_gradient("xla", groups, None)
        )
    jax.config.update("jax_enable_x64", False)
    return errors


def same_numbers() -> dict:
    errors = {}
    # Fewer tasks than devices, and more: the last device of three has one task in its two chunks of two.
    for num_tasks, mesh in ((3, jm.make_mesh(8)), (9, jm.make_mesh(3))):
        one, many = pair(num_tasks, mesh, learner=counting(sine_learner()), task_chunk=2, batches=2)
        errors[f"counter, {num_tasks} tasks"] = distance(one, many)
        errors[f"count, {num_tasks} tasks"] = int(many[0].state["count"])
    return errors


def images() -> jm.TaskSource:
    rng = np.random.default_rng(0)
    pool = jm.ClassPool(rng.integers(0, 255, [6, 8, 16, 16, 1]).astype(np.uint8), np.full([6], 8, np.int32))
    return jm.TaskSource(jm.sample_episodes, jax.tree.map(jnp.asarray, pool), jm.EpisodeSpec(3, 2, 2))


def image_learner():
    return jm.maml(tiny_model(), inner_optimizer=optax.sgd(0.1), norm="inductive")


def poisoned_padding() -> dict:
    """Tasks that do not count hold NaN: nothing of it may be seen."""
    learner, mesh = sine_learner(), jm.make_mesh(4)
    state = jm.init_train_state(jax.random.key(0), learner, OPTIMIZER, SINES, num_tasks=6)
    episodes = SINES.sample(jax.random.key(0), SINES.pool, SINES.spec, 8)
    spoilt = jax.tree.map(lambda leaf: leaf.at[6:].set(jnp.nan), episodes)
    key = jax.random.key(5)
    expected = jax.jit(jm.make_train_step(learner, OPTIMIZER))(
        state, jax.tree.map(lambda leaf: leaf[:6], episodes), key
    )
    given = jax.jit(jm.make_train_step(learner, OPTIMIZER, mesh=mesh), static_argnames="num_tasks")(
        state, spoilt, key, num_tasks=6
    )
    return {"error": distance(given, expected), "nonfinite": float(given[1]["nonfinite"])}


def whole_training() -> dict:
    """fit on a mesh draws the tasks of one device, padded; the state goes in and comes out where it belongs."""
    learner, grid, num_tasks = sine_learner(), jm.make_mesh(8, model_devices=2), 6
    errors, fitted = {}, None
    for name, estimator in (("exact", None), ("pes", jm.pes(num_pairs=1))):
        key, states = jax.random.key(3), []
        for mesh in (None, grid):
            state = jm.init_train_state(key, learner, OPTIMIZER, SINES, num_tasks=num_tasks, estimator=estimator)
            step = jm.make_train_step(learner, OPTIMIZER, estimator=estimator, mesh=mesh)
            options = {"num_tasks": num_tasks, "num_steps": 4, "steps_per_call": 2, "mesh": mesh}
            states.append(jm.fit(step, state, SINES, key, **options))
        errors[name] = distance(*states)
        fitted = states[1]
    # Of as many tasks as places, what an estimator keeps of each is where the task is.
    state = jm.init_train_state(key, learner, OPTIMIZER, SINES, num_tasks=8, estimator=jm.pes(num_pairs=1))
    particles = jax.tree.leaves(devices.place(state, grid).estimator_state)
    kernel = fitted.meta_params["body"]["Dense_0"]["kernel"]
    return {
        **errors,
        "kernel": str(kernel.sharding.spec),
        "moment": str(fitted.opt_state[0].mu["body"]["Dense_0"]["kernel"].sharding.spec),
        "particles": str(particles[0].sharding.spec),
    }


def population() -> dict:
    """Seven members on several devices, at once or in turn: a place is filled up, and nothing is exchanged."""

    def make_learner(hyper):
        optimizer = jm.inner_sgd(hyper["inner_lr"])
        return jm.maml(jm.mlp(1, hidden=(8,)), inner_optimizer=optimizer, criterion=jm.CRITERIA["regression"])

    states, everyone = [], jm.members(range(7), inner_lr=[0.05])
    # Two on each of four devices, four on each of two, and two groups whose networks are divided as well.
    four, two, model = jm.make_mesh(4), jm.make_mesh(2), jm.make_mesh(4, model_devices=2)
    ways = ((None, None), (four, None), (four, 1), (two, 2), (model, 4))
    for mesh, at_once in ways:
        first = jm.init_population(everyone, make_learner, OPTIMIZER, SINES, num_tasks=2)
        options = {"num_tasks": 2, "num_steps": 3, "steps_per_call": 2, "mesh": mesh, "member_chunk": at_once}
        states.append(jm.fit_population(everyone, first, make_learner, OPTIMIZER, SINES, **options))
    whole, *divided = states
    return {
        "error": max(distance(whole, state) for state in divided),
        "members": [state.step.shape[0] for state in divided],
    }


def host_pool() -> dict:
    """The same training from a pool on the host, to the bit, on four devices with a place filled up."""
    key, on_devices, mesh, results = jax.random.key(3), images(), jm.make_mesh(4), []
    on_host = on_devices._replace(pool=jm.on_host(jax.device_get(on_devices.pool)))
    learner = jm.protonet(flat_model(), ways=3)
    evaluator = jm.make_evaluator(learner, jm.CRITERIA["classification"], mesh=mesh)
    for plain in (on_devices, on_host):
        source = jm.augmented(plain, ("turn", "mixup"))
        state = jm.init_train_state(key, learner, OPTIMIZER, source, num_tasks=5)
        step = jm.make_train_step(learner, OPTIMIZER, mesh=mesh, task_chunk=2)
        state = jm.fit(step, state, source, key, num_tasks=5, num_steps=5, steps_per_call=2, mesh=mesh)
        judged = evaluator(state.meta_params, state.state, plain, key, 6)
        results.append([state, judged.metrics["loss"].per_task])
    one, other = map(jax.tree.leaves, jax.device_get(results))
    with feed.pools_of_tasks(on_host, key, [0], num_tasks=8, mesh=mesh) as pools:
        shards = next(pools).images.query.addressable_shards
    return {"same": all(map(np.array_equal, one, other)), "sent": [shard.data.shape[1] for shard in shards]}


def divided_work() -> dict:
    """Eight chunks everywhere: of 8 tasks on one device, of 1 on each of eight."""
    learner, mesh, key = sine_learner((64, 64)), jm.make_mesh(8), jax.random.key(0)
    state = jm.init_train_state(key, learner, OPTIMIZER, SINES, num_tasks=64)
    episodes = SINES.sample(key, SINES.pool, SINES.spec, 64)
    placed = devices.place(state, mesh)
    sharded = jax.device_put(episodes, NamedSharding(mesh, PartitionSpec("tasks")))
    return {
        "one": measure(jm.make_train_step(learner, OPTIMIZER, task_chunk=8), state, episodes, key),
        "eight": measure(jm.make_train_step(learner, OPTIMIZER, task_chunk=1, mesh=mesh), placed, sharded, key),
        # The trap: the scan goes over an axis that the partitioner was told to divide.
        "trap": measure(jm.make_train_step(learner, OPTIMIZER, task_chunk=8), placed, sharded, key),
    }


def divided_sampling() -> dict:
    """The program of a whole outer step as fit runs it, against one device with an eighth of the tasks."""
    programs = {}
    for name, mesh, num_tasks in (("eighth", None, 1), ("one", None, 8), ("eight", jm.make_mesh(8), 8)):
        source, key = images(), jax.random.key(0)

        def draw(key, pool, source=source, mesh=mesh, num_tasks=num_tasks):
            if mesh is None:
                return source.sample(key, pool, source.spec, num_tasks)
            return devices.sample_on_each_device(source.sample, source.spec, num_tasks, mesh)(key, pool)

        pool = source.pool if mesh is None else devices.replicate(source.pool, mesh)
        programs[name] = measure(draw, key, pool)
    return programs


def divided_model() -> dict:
    """A wide network on two groups of four devices: numbers, work and memory."""
    learner, grid = sine_learner((256, 256)), jm.make_mesh(8, model_devices=4)
    key = jax.random.key(0)
    state = jm.init_train_state(key, learner, OPTIMIZER, SINES, num_tasks=4)
    episodes = SINES.sample(key, SINES.pool, SINES.spec, 4)
    step = jm.make_train_step(learner, OPTIMIZER, mesh=grid)
    whole = jax.device_put(state, NamedSharding(grid, PartitionSpec()))
    divided = devices.place(state, grid)
    expected = jax.jit(jm.make_train_step(learner, OPTIMIZER))(state, episodes, key)
    return {
        "error": distance(jax.jit(step)(divided, episodes, key), expected),
        "whole": measure(step, whole, episodes, key),
        "divided": measure(step, divided, episodes, key),
    }


def lowered() -> dict:
    """The sharded step is lowered for accelerators, on a machine that has none."""
    learner, mesh, data = sine_learner(), jm.make_mesh(8, model_devices=2), jax.random.key_data(jax.random.key(0))
    state = jm.init_train_state(jax.random.key(0), learner, OPTIMIZER, SINES, num_tasks=6)
    step = jm.make_train_step(learner, OPTIMIZER, mesh=mesh)

    def run(state, data):
        key = jax.random.wrap_key_data(data)
        return step(state, SINES.sample(key, (), SINES.spec, 6), key)

    exported = export.export(jax.jit(run), platforms=["tpu", "cuda"])(devices.place(state, mesh), data)
    return {"platforms": exported.platforms, "devices": exported.nr_devices}


if __name__ == "__main__":
    import sys

    cases = (
        convolution,
        same_numbers,
        poisoned_padding,
        whole_training,
        population,
        host_pool,
        divided_work,
        divided_sampling,
        divided_model,
        lowered,
        sharded_lowerings,
    )
    chosen = sys.argv[1:] or [case.__name__ for case in cases]
    print(json.dumps({case.__name__: case() for case in cases if case.__name__ in chosen}))
