"""Tasks that keep arriving: what is kept of them, what is drawn, and that learning from them pays."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import (
    CRITERIA,
    Batch,
    Episode,
    EpisodeSpec,
    TaskBuffer,
    fit_online,
    follow_the_meta_leader,
    from_function,
    inner_sgd,
    maml,
    mlp,
    scratch,
    siamese,
)
from jaxmeta.online import sample_buffer, store

# Operation by operation, many small programs would be compiled.
draw = jax.jit(sample_buffer, static_argnums=(2, 3))
put = jax.jit(store)
REGRESSION = CRITERIA["regression"]
SLOPE = from_function(lambda key, x: jax.random.normal(key, [1, 1]), lambda w, x: x @ w)
INNER = {"inner_optimizer": inner_sgd(0.05), "num_steps": 1, "criterion": REGRESSION}
OPTIONS = {"criterion": REGRESSION, "spec": EpisodeSpec(1, 2, 2), "sizes": [0, 1, 4], "capacity": 3, "num_tasks": 4}


def line(slope: float, seed: int = 0) -> Episode:
    """Four points of y = slope x to learn from, and six to be judged on."""
    x = np.random.default_rng(seed).uniform(-1, 1, [10, 1]).astype(np.float32)
    sets = (Batch(part, np.float32(slope) * part, np.ones(len(part), np.float32)) for part in (x[:4], x[4:]))
    return Episode(*sets)


def lines(rounds: int) -> list[Episode]:
    """Slopes about 5, far from where a network begins."""
    slopes = np.random.default_rng(1).normal(5.0, 0.5, rounds)
    return [line(slope, seed) for seed, slope in enumerate(slopes)]


def marked(number: int, examples: int = 3) -> Batch:
    """A task whose every input is its number."""
    return Batch(np.full([examples, 1], number, np.float32), np.arange(examples), np.ones(examples, np.float32))


def filled(numbers, capacity: int) -> TaskBuffer:
    empty = jax.tree.map(lambda leaf: np.zeros((capacity, *leaf.shape), leaf.dtype), marked(0))
    buffer = TaskBuffer(empty, jnp.int32(0))
    for number in numbers:
        buffer = put(buffer, marked(number))
    return buffer


def only(*leaves) -> TaskBuffer:
    """A buffer of one task."""
    return TaskBuffer(Batch(*(leaf[None] for leaf in leaves)), np.int32(1))


def test_the_buffer_is_a_circle():
    buffer = filled([9, 10, 11, 12, 13, 14], capacity=4)
    assert int(buffer.count) == 6
    np.testing.assert_array_equal(buffer.data.inputs[:, 0, 0], [13, 14, 11, 12])
    np.testing.assert_array_equal(buffer.data.targets, [[0, 1, 2]] * 4)


@pytest.mark.parametrize(("numbers", "expected"), [([7], {7}), ([7, 8], {7, 8}), ([5, 6, 7, 8, 9], {6, 7, 8, 9})])
def test_only_filled_slots_are_drawn(numbers, expected):
    episodes = draw(jax.random.key(0), filled(numbers, capacity=4), EpisodeSpec(1, 2, 1), 60)
    assert set(np.unique(episodes.support.inputs)) == expected == set(np.unique(episodes.query.inputs))


def test_data_is_split_anew_without_overlap_and_by_class():
    """Nine examples of three classes: a support set has two of each class, the query set the third, each once."""
    buffer = only(np.arange(9.0)[:, None], np.repeat(np.arange(3), 3), np.ones(9))
    episodes = draw(jax.random.key(0), buffer, EpisodeSpec(3, 2, 1), 40)
    splits = set()
    for support, query in zip(*(np.asarray(batch.inputs)[..., 0] for batch in episodes), strict=True):
        assert sorted([*support, *query]) == list(range(9))
        assert sorted(support // 3) == [0, 0, 1, 1, 2, 2] and sorted(query // 3) == [0, 1, 2]
        splits.add(tuple(sorted(query)))
    assert len(splits) > 10


def test_padding_is_drawn_last():
    """Of five examples two are padding: both sets together have the three that are real, and weights say so."""
    buffer = only(np.arange(5.0)[:, None], np.zeros([5, 1]), np.array([0.0, 1, 1, 0, 1]))
    episodes = draw(jax.random.key(0), buffer, EpisodeSpec(1, 2, 2), 20)
    for inputs, weights in zip(*episodes.support[::2], strict=True):
        assert set(np.asarray(inputs)[:, 0]) <= {1.0, 2.0, 4.0} and weights.tolist() == [1, 1]
    assert episodes.query.weights.tolist() == [[1, 0]] * 20


def test_judgement_sees_the_data_that_has_arrived_and_no_more():
    """w' = w - 2 a mean over the first n of (w x - y) x; at n = 0 the network is as it was learned."""
    online = follow_the_meta_leader(maml(SLOPE, **INNER), optax.sgd(0.1), **OPTIONS)
    task = line(5.0)
    state = jax.jit(online.init)(jax.random.key(0), task)
    w = float(state.train_state.meta_params["body"][0, 0])
    metrics = jax.jit(online.judge)(state, task, jax.random.key(1))
    (x, y), (test_x, test_y) = ((np.asarray(batch.inputs), np.asarray(batch.targets)) for batch in task)
    for place, size in enumerate(OPTIONS["sizes"]):
        step = 2 * 0.05 * np.mean((w * x - y)[:size] * x[:size]) if size else 0.0
        np.testing.assert_allclose(metrics["mse"][place], np.mean(((w - step) * test_x - test_y) ** 2), rtol=1e-4)


def test_rounds_are_a_function_of_the_key_and_go_on_after_a_stop():
    online = follow_the_meta_leader(maml(SLOPE, **INNER), optax.adam(0.1), meta_updates=3, **OPTIONS)
    tasks, key = lines(5), jax.random.key(3)
    start = partial(jax.jit(online.init), jax.random.key(0), tasks[0])
    whole, metrics = fit_online(online, start(), tasks, key)
    half, first = fit_online(online, start(), tasks[:2], key)
    rest, second = fit_online(online, half, iter(tasks[2:]), key)
    jax.tree.map(np.testing.assert_array_equal, whole, rest)
    np.testing.assert_array_equal(metrics["mse"], np.concatenate([first["mse"], second["mse"]]))
    assert metrics["mse"].shape == (5, 3) and int(whole.train_state.step) == 15 and int(whole.buffer.count) == 5
    other, _ = fit_online(online, start(), tasks, jax.random.key(4))
    assert abs(float(other.train_state.meta_params["body"][0, 0] - whole.train_state.meta_params["body"][0, 0])) > 0


def test_the_regret_is_lower_than_from_scratch():
    tasks, key, options = lines(20), jax.random.key(0), {**OPTIONS, "capacity": 8}
    leader = follow_the_meta_leader(maml(SLOPE, **INNER), optax.adam(0.3), meta_updates=20, **options)
    fresh = follow_the_meta_leader(
        scratch(SLOPE, **{**INNER, "num_steps": 10}), optax.sgd(0.1), meta_updates=0, **options
    )
    regrets = {}
    for name, online in (("leader", leader), ("scratch", fresh)):
        state, metrics = fit_online(online, jax.jit(online.init)(key, tasks[0]), tasks, key)
        regrets[name] = metrics["mse"].sum(0)
    # From one point on: less than half of what training ten times as long from scratch regrets.
    assert (regrets["leader"] < 0.5 * regrets["scratch"]).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"capacity": 0}, "capacity"),
        ({"sizes": []}, "sizes of at least 0"),
        ({"sizes": [5]}, "arrives with 4 examples"),
        ({"spec": EpisodeSpec(1, 3, 2)}, "splits 5"),
    ],
)
def test_refuses_what_the_tasks_cannot_serve(changed, message):
    with pytest.raises(ValueError, match=message):
        learner = follow_the_meta_leader(maml(SLOPE, **INNER), optax.sgd(0.1), **OPTIONS | changed)
        learner.init(jax.random.key(0), line(1.0))


def test_refuses_no_tasks():
    online = follow_the_meta_leader(maml(SLOPE, **INNER), optax.sgd(0.1), **OPTIONS)
    with pytest.raises(ValueError, match="at least one task"):
        fit_online(online, jax.eval_shape(online.init, jax.random.key(0), line(1.0)), [], jax.random.key(0))


def test_what_learns_no_more_shows():
    """A pair of one class needs two examples: with one of each, siamese has no number to learn from."""
    task = Episode(*(Batch(np.eye(6, dtype=np.float32), np.arange(6), np.ones(6, np.float32)) for _ in range(2)))
    options = {"criterion": CRITERIA["classification"], "spec": EpisodeSpec(3, 1, 1), "sizes": [3], "num_tasks": 2}
    online = follow_the_meta_leader(siamese(mlp(6, hidden=(4,)), ways=6), optax.sgd(0.1), meta_updates=1, **options)
    state = jax.jit(online.init)(jax.random.key(0), task)
    _, metrics = fit_online(online, state, [task, task], jax.random.key(1))
    assert np.isfinite(metrics["accuracy"][0]).all() and np.isnan(metrics["accuracy"][1]).all()
