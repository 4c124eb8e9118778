"""Tasks of varying ways and shots: the sizes of Meta-Dataset's sampling, and padding that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import flat_model, times_compiled
from jaxmeta import (
    ClassPool,
    Episode,
    EpisodeSpec,
    TaskSource,
    check_episode,
    init_train_state,
    make_train_step,
    maml,
    protonet,
    sample_varying,
)
from jaxmeta.data import check_varying
from jaxmeta.data.varying import _sizes, choose_varying

# Few, since each is compiled: fewer ways than the fewest of the paper, an image of each class, and plenty.
SPECS = (EpisodeSpec(3, 4, 2), EpisodeSpec(6, 1, 1), EpisodeSpec(8, 8, 5))
draw = jax.jit(choose_varying, static_argnums=(2, 3))


def counted_pool(counts, per_class=None) -> ClassPool:
    """A pool of which only the numbers of images matter."""
    per_class = max(counts) if per_class is None else per_class
    return ClassPool(np.zeros([len(counts), per_class, 1, 1, 1], np.uint8), np.asarray(counts, np.int32))


def drawn(pool, spec, seed, num_tasks=8):
    """Choose tasks; give for each the real places and targets of support and query."""
    chosen = draw(jax.random.key(seed), pool, spec, num_tasks)
    for task in range(num_tasks):
        episode = jax.tree.map(lambda leaf, task=task: np.asarray(leaf[task]), chosen)
        yield [(batch.inputs[batch.weights == 1], batch.targets[batch.weights == 1]) for batch in episode], episode


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(2, 30), min_size=9, max_size=9),
    spec=st.sampled_from(SPECS),
    seed=st.integers(0, 1000),
)
def test_sizes_are_those_of_meta_dataset(counts, spec, seed):
    pool = counted_pool(counts, per_class=30)
    check_varying(spec, pool)
    for ((places, targets), (query_places, query_targets)), episode in drawn(pool, spec, seed):
        ways = len(set(targets))
        assert min(5, spec.ways) <= ways <= spec.ways and set(targets) == set(query_targets) == set(range(ways))
        classes = [set(places[targets == way, 0]) | set(query_places[query_targets == way, 0]) for way in range(ways)]
        # One class of the pool for each target, another for each.
        assert all(len(of_way) == 1 for of_way in classes) and len(set.union(*classes)) == ways
        sizes = np.array([counts[of_way.pop()] for of_way in classes])
        queries = min(spec.queries, sizes.min() // 2)
        assert np.bincount(query_targets).tolist() == [queries] * ways
        shots = np.bincount(targets)
        assert (shots >= 1).all() and (shots <= sizes - queries).all() and shots.sum() <= spec.ways * spec.shots
        # Every image once, real ones only, support and query apart.
        images = [tuple(place) for place in np.concatenate([places, query_places])]
        assert len(set(images)) == len(images) and all(number < counts[cls] for cls, number in images)
        for batch, size in zip(episode, (spec.shots, spec.queries), strict=True):
            assert batch.weights.shape == (spec.ways * size,) and set(batch.weights) <= {0.0, 1.0}
            assert (batch.targets[batch.weights == 0] == 0).all()


def test_ways_are_uniform_and_shots_follow_the_formula():
    """The sizes again, from the numbers drawn, by the paper's formula in floating point."""
    spec, counts = EpisodeSpec(8, 10, 4), jnp.array([20, 40, 15, 60, 25, 30, 90, 110])
    keys = jax.random.split(jax.random.key(0), 4000)
    queries, shots = jax.jit(jax.vmap(lambda key: _sizes(key, counts, spec, 110)))(keys)
    ways = np.asarray((shots > 0).sum(1))
    assert np.bincount(ways)[5:].min() > 0.22 * 4000 and (np.asarray(queries) == 4).all()
    for key, task_ways, drawn_shots in list(zip(keys, ways, np.asarray(shots), strict=True))[:50]:
        key_beta, key_imbalance = jax.random.split(key, 3)[1:]
        beta = int(jax.random.randint(key_beta, [], 1, 2**16 + 1)) / 2**16
        level = np.asarray(jax.random.randint(key_imbalance, [8], 0, 1024))
        images = np.asarray(counts)[:task_ways]
        size = min(80, int(np.ceil(beta * np.minimum(100, images - 4)).sum()))
        shares = np.exp(np.log(0.5) + level[:task_ways] * np.log(4) / 1024) * images
        wanted = np.minimum(np.floor(shares / shares.sum() * (size - task_ways)) + 1, images - 4)
        # exp(a) is rounded to 1/256: at the edge of a whole number that is one image.
        wrong = np.abs(wanted - drawn_shots[:task_ways])
        assert wrong.max() <= 1 and wrong.mean() < 0.5


def test_large_classes_do_not_overflow():
    """At the numbers of the paper: shares of 50 classes of ImageNet's size, in 32 bits."""
    spec, counts = EpisodeSpec(50, 10, 10), jnp.full([50], 1300)
    _, shots = jax.jit(jax.vmap(lambda key: _sizes(key, counts, spec, 1300)))(jax.random.split(jax.random.key(0), 200))
    total = np.asarray(shots).sum(1)
    assert (total <= 500).all() and total.max() > 450 and (np.asarray(shots) >= 0).all()


def test_tasks_are_a_function_of_key_and_number(pool):
    spec, key = EpisodeSpec(6, 2, 3), jax.random.key(1)
    sample = jax.jit(sample_varying, static_argnums=(2, 3))
    whole, part = sample(key, pool, spec, 6), sample(key, pool, spec, 2, first_task=3)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(one[3:5], other)
    check_episode(whole, num_task_axes=1)


def padded_and_not(pool):
    """One task as it is drawn, and the same without its padding."""
    sample = jax.jit(sample_varying, static_argnums=(2, 3))
    episodes = sample(jax.random.key(2), pool, EpisodeSpec(8, 3, 3), 1)
    padded = jax.tree.map(lambda leaf: leaf[0], episodes)
    bare = Episode(*(jax.tree.map(lambda leaf, b=batch: leaf[np.asarray(b.weights) == 1], batch) for batch in padded))
    assert all(len(b.weights) < len(p.weights) for b, p in zip(bare, padded, strict=True))
    return padded, bare


@pytest.mark.parametrize("make", ["protonet", "maml"])
def test_padding_changes_nothing(pool, make):
    learner = (
        protonet(flat_model(), ways=8)
        if make == "protonet"
        else maml(flat_model(outputs=8), inner_optimizer=optax.sgd(0.1), num_steps=2)
    )
    padded, bare = padded_and_not(pool)
    meta_params, state = learner.init(jax.random.key(0), padded.support.inputs)

    @jax.jit
    def loss(meta_params, episode):
        return jax.value_and_grad(lambda m: learner.loss(m, state, episode, jax.random.key(1), 0)[0])(meta_params)

    (value, grads), (expected, expected_grads) = loss(meta_params, padded), loss(meta_params, bare)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_nothing_is_compiled_again_for_another_size(pool, caplog):
    source = TaskSource(sample_varying, jax.device_put(pool), EpisodeSpec(8, 2, 2))
    learner, optimizer = protonet(flat_model(), ways=8), optax.sgd(0.1)
    begin = jax.jit(lambda key: init_train_state(key, learner, optimizer, source, num_tasks=3))
    state = begin(jax.random.key(0))
    train_step, traces, sizes = make_train_step(learner, optimizer), [], set()

    @jax.jit
    def step(*args):
        traces.append(1)
        return train_step(*args)

    sample = jax.jit(lambda key: source.sample(key, source.pool, source.spec, 3))
    for seed in range(3):
        episodes = sample(jax.random.key(seed))
        sizes |= set(np.asarray(episodes.support.weights.sum(1)).tolist())
        with jax.log_compiles():
            state, metrics = step(state, episodes, jax.random.key(seed))
        assert np.isfinite(metrics["loss"])
    assert len(sizes) > 3 and len(traces) == 1 and times_compiled("step", caplog) == 1


def test_refuses_what_a_pool_cannot_serve():
    with pytest.raises(ValueError, match="Up to 7 ways were asked for, but the pool has 6 classes"):
        check_varying(EpisodeSpec(7, 1, 1), counted_pool([5] * 6))
    with pytest.raises(ValueError, match="a class of the pool has 1. Leave classes with fewer than two images out"):
        check_varying(EpisodeSpec(5, 1, 1), counted_pool([5] * 5 + [1]))
    with pytest.raises(ValueError, match="more than can be drawn in proportion with 32 bits"):
        check_varying(EpisodeSpec(5, 200_000, 1), counted_pool([5000] * 6))
    with pytest.raises(ValueError, match="queries must be at least 1; given 0"):
        check_varying(EpisodeSpec(5, 1, 0), counted_pool([5] * 6))
