"""The train step and fit: chunks, compilation, exact resumption, lowering for other hardware."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from conftest import flat_model, times_compiled
from jaxmeta import EpisodeSpec, MetaLearner, TaskSource, fit, init_train_state, make_train_step, maml, sample_episodes
from jaxmeta.dispatch import compile_steps
from jaxmeta.train import _norm

TASKS = 6
OPTIMIZER = optax.adam(1e-2)


def learner_of(**options):
    return maml(flat_model(), inner_optimizer=optax.sgd(0.1), **options)


def setup(source, **options):
    learner = learner_of()
    state = init_train_state(jax.random.key(0), learner, OPTIMIZER, source, num_tasks=TASKS)
    sample = jax.jit(source.sample, static_argnums=(2, 3))
    episodes = sample(jax.random.key(1), source.pool, source.spec, TASKS)
    return state, make_train_step(learner, OPTIMIZER, **options), episodes


def relative_error(one, other):
    return float(optax.tree.norm(optax.tree.sub(one, other)) / optax.tree.norm(other))


def test_vmapped_tasks_equal_a_python_loop(x64, source):
    learner, key = learner_of(), jax.random.key(2)
    train_state, _, episodes = setup(source)
    # The outer step is plain descent of rate 1: its difference is the meta-gradient.
    train_step = jax.jit(make_train_step(learner, optax.sgd(1.0), task_chunk=2))
    train_state = train_state._replace(opt_state=optax.sgd(1.0).init(train_state.meta_params))
    new_state, metrics = train_step(train_state, episodes, key)
    gradient = jax.jit(jax.value_and_grad(lambda p, s, e, k: learner.loss(p, s, e, k, 0)[0]))
    total, losses = None, []
    for task in range(TASKS):
        episode = jax.tree.map(lambda leaf, task=task: leaf[task], episodes)
        loss, grads = gradient(train_state.meta_params, train_state.state, episode, jax.random.fold_in(key, task))
        losses.append(loss)
        total = grads if total is None else optax.tree.add(total, grads)
    mean = jax.tree.map(lambda leaf: leaf / TASKS, total)
    taken = optax.tree.sub(train_state.meta_params, new_state.meta_params)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-6)
    # The parameters are float32; the difference of two of them is good to about 1e-6.
    assert relative_error(taken, mean) < 1e-5


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_equal_the_whole(source, chunk):
    train_state, whole, episodes = setup(source)
    _, chunked, _ = setup(source, task_chunk=chunk)
    key = jax.random.key(2)
    expected, given = jax.jit(whole)(train_state, episodes, key), jax.jit(chunked)(train_state, episodes, key)
    np.testing.assert_allclose(given[1]["loss"], expected[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(given[1]["grad_norm"], expected[1]["grad_norm"], rtol=1e-4)
    assert relative_error(given[0].state, expected[0].state) < 1e-5


@pytest.mark.parametrize("chunk", [2, 6])
def test_a_counter_in_the_state_survives(source, chunk):
    """Whole numbers are not averaged: a counter that every task raises by one is raised by one."""
    learner = learner_of()

    def loss(meta_params, state, episode, key, step):
        value, (inner, metrics) = learner.loss(meta_params, state["inner"], episode, key, step)
        return value, ({"inner": inner, "count": state["count"] + 1}, metrics)

    train_state, _, episodes = setup(source)
    counting = train_state._replace(state={"inner": train_state.state, "count": jnp.int32(7)})
    step = jax.jit(make_train_step(learner._replace(loss=loss), OPTIMIZER, task_chunk=chunk))
    for _ in range(2):
        counting, _ = step(counting, episodes, jax.random.key(0))
    assert counting.state["count"] == 9 and counting.state["count"].dtype == jnp.int32


def test_chunk_must_divide(source):
    train_state, train_step, episodes = setup(source, task_chunk=4)
    with pytest.raises(ValueError, match="task_chunk=4 does not divide the 6 tasks"):
        jax.eval_shape(train_step, train_state, episodes, jax.random.key(0))


def test_second_call_does_not_compile_again(source, caplog):
    train_state, train_step, episodes = setup(source, task_chunk=2)
    traces = []

    @jax.jit
    def counted(*args):
        traces.append(1)
        return train_step(*args)

    for seed in range(3):
        with jax.log_compiles():
            train_state, _ = counted(train_state, episodes, jax.random.key(seed))
    assert len(traces) == 1 and times_compiled("counted", caplog) == 1


def fresh(source, seed=0):
    return init_train_state(jax.random.key(seed), learner_of(), OPTIMIZER, source, num_tasks=TASKS)


def test_loss_falls_and_fit_stops_where_told(source):
    """On one fixed batch of tasks, so that the comparison is not one between tasks."""
    train_step = make_train_step(learner_of(), OPTIMIZER, task_chunk=2)
    fixed = TaskSource(lambda key, *a, **k: sample_episodes(jax.random.key(5), *a, **k), source.pool, source.spec)
    losses = []
    fit(
        train_step,
        fresh(source),
        fixed,
        jax.random.key(0),
        num_tasks=TASKS,
        num_steps=75,
        steps_per_call=10,
        callback=lambda state, metrics: losses.extend(np.asarray(metrics["loss"]).tolist()),
    )
    assert len(losses) == 75 and losses[-1] < 0.7 * losses[0]


def test_ten_steps_equal_five_and_five_bit_for_bit(source):
    train_step = make_train_step(learner_of(), OPTIMIZER, task_chunk=2)
    options, key = {"num_tasks": TASKS, "steps_per_call": 5}, jax.random.key(9)
    options["program"] = compile_steps(train_step, fresh(source), source, key, **options)
    whole = fit(train_step, fresh(source), source, key, num_steps=10, **options)
    half = fit(train_step, fresh(source), source, key, num_steps=5, **options)
    half = jax.tree.map(jnp.asarray, jax.device_get(half))
    again = fit(train_step, half, source, key, num_steps=10, **options)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_nonfinite_loss_stops_with_its_step(source):
    """A sampler that poisons step 7: no callback sees the spoilt state."""

    def sample(key, pool, spec, num_tasks):
        episodes = sample_episodes(key, pool, spec, num_tasks)
        bad = jnp.all(jax.random.key_data(key) == jax.random.key_data(key_of_step(7)))
        inputs = jnp.where(bad, jnp.nan, episodes.query.inputs)
        return episodes._replace(query=episodes.query._replace(inputs=inputs))

    root = jax.random.key(0)

    def key_of_step(step):
        return jax.random.split(jax.random.fold_in(root, step - 1))[0]

    seen = []
    with pytest.raises(FloatingPointError, match="at step 7"):
        fit(
            make_train_step(learner_of(), OPTIMIZER),
            fresh(source),
            source._replace(sample=sample),
            root,
            num_tasks=TASKS,
            num_steps=20,
            steps_per_call=5,
            callback=lambda state, metrics: seen.append(int(state.step)),
        )
    assert seen == [5]


def test_more_classes_than_outputs_are_asked_about(source):
    """The pool has tasks of three classes; a network of two outputs has no loss for the third."""
    learner = maml(flat_model(outputs=2), inner_optimizer=optax.sgd(0.1))
    train_state = init_train_state(jax.random.key(0), learner, OPTIMIZER, source, num_tasks=TASKS)
    with pytest.raises(FloatingPointError, match="at step 1.*an output for each class"):
        fit(make_train_step(learner, OPTIMIZER), train_state, source, jax.random.key(0), num_tasks=TASKS, num_steps=2)


@pytest.mark.parametrize("size", [1, 5000])
def test_the_norm_of_a_gradient_is_that_of_all_its_numbers(source, size):
    """Of a small network's at once; also where a leaf is one number."""

    def loss(theta, state, episode, key, step):
        return theta["one"] * 3.0 + (2.0 * theta["many"]).sum(), (state, {})

    theta = {"one": jnp.ones(()), "many": jnp.ones([size, 2])}
    learner = MetaLearner(lambda *_: (theta, {}), lambda *_, **__: None, lambda *_: None, loss)
    train_state = init_train_state(jax.random.key(0), learner, OPTIMIZER, source, num_tasks=2)
    episodes = source.sample(jax.random.key(1), source.pool, source.spec, 2)
    _, metrics = make_train_step(learner, OPTIMIZER)(train_state, episodes, jax.random.key(2))
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(9.0 + 4.0 * 2 * size), rtol=1e-6)


def test_the_norm_of_divided_leaves_is_taken_where_they_lie():
    """A small network whose shape says over which axis of a mesh it is divided: it is not laid end to end."""
    mesh = jax.sharding.AbstractMesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    by_column = jax.NamedSharding(mesh, jax.P(None, "model"))
    theta = {"divided": jax.ShapeDtypeStruct([4, 6], jnp.float32, sharding=by_column)}
    assert jax.eval_shape(_norm, theta).shape == ()


@pytest.mark.parametrize("norm", ["transductive", "inductive"])
def test_train_step_lowers_for_tpu_and_cuda(source, norm):
    learner = learner_of(norm=norm)
    train_state = init_train_state(jax.random.key(0), learner, OPTIMIZER, source, num_tasks=TASKS)
    train_step = make_train_step(learner, OPTIMIZER, task_chunk=2)

    def run(train_state, pool, data):
        key = jax.random.wrap_key_data(data)
        return train_step(train_state, sample_episodes(key, pool, EpisodeSpec(3, 2, 2), TASKS), key)

    data = jax.random.key_data(jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (train_state, source.pool, data))
    exported = export.export(jax.jit(run), platforms=["tpu", "cuda"])(*shapes)
    assert exported.platforms == ("tpu", "cuda")
