"""Episodes: distinct, disjoint, deterministic; splits share no class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta import (
    DATASETS,
    Batch,
    ClassPool,
    Episode,
    EpisodeSpec,
    check_episode,
    example_batch,
    load_sinusoid,
    sample_episode,
    sample_episodes,
    task_source,
)
from jaxmeta.data import check_spec, sample_sinusoids


def identified_pool(counts) -> ClassPool:
    """Images whose first two pixels are their class and their number, so that a draw can be traced."""
    images = np.zeros([len(counts), max(counts), 2, 2, 1], np.uint8)
    images[:, :, 0, 0, 0] = np.arange(len(counts))[:, None]
    images[:, :, 0, 1, 0] = np.arange(max(counts))
    return ClassPool(images, np.asarray(counts, np.int32))


@settings(max_examples=10, deadline=None)
@given(
    counts=st.lists(st.integers(4, 9), min_size=3, max_size=8),
    ways=st.integers(1, 3),
    shots=st.integers(1, 2),
    queries=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_classes_and_images_are_distinct_and_real(counts, ways, shots, queries, seed):
    pool = identified_pool(counts)
    episode = sample_episode(jax.random.key(seed), pool, EpisodeSpec(ways, shots, queries))
    drawn = np.concatenate([np.asarray(batch.inputs).reshape(-1, 4) for batch in episode]) * 255
    targets = np.concatenate([np.asarray(batch.targets) for batch in episode])
    classes, numbers = np.rint(drawn[:, 0]).astype(int), np.rint(drawn[:, 1]).astype(int)
    # Every image once, none of the padding, one class for each target.
    assert len(set(zip(classes, numbers, strict=True))) == ways * (shots + queries)
    assert all(number < counts[cls] for cls, number in zip(classes, numbers, strict=True))
    assert len(set(zip(classes, targets, strict=True))) == ways == len(set(classes))
    assert np.bincount(np.asarray(episode.support.targets), minlength=ways).tolist() == [shots] * ways
    assert np.bincount(np.asarray(episode.query.targets), minlength=ways).tolist() == [queries] * ways


def test_every_class_and_image_is_drawn_about_equally_often():
    pool = identified_pool([6, 6, 6, 6, 6, 6])
    episodes = sample_episodes(jax.random.key(0), pool, EpisodeSpec(2, 1, 1), 3000)
    pixels = np.rint(np.asarray(episodes.support.inputs).reshape(-1, 4) * 255).astype(int)
    counts = np.bincount(pixels[:, 0] * 6 + pixels[:, 1], minlength=36)
    # 6000 draws over 36 images: mean 167, standard deviation about 12.7.
    assert np.abs(counts - 6000 / 36).max() < 5 * np.sqrt(6000 / 36)


def test_episode_is_a_function_of_key_and_task(pool):
    spec, key = EpisodeSpec(3, 1, 2), jax.random.key(7)
    sample = jax.jit(sample_episodes, static_argnums=(2, 3))
    whole, part = sample(key, pool, spec, 8), sample(key, pool, spec, 3, first_task=4)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(one[4:7], other)
    again = sample(jax.random.key(8), pool, spec, 8)
    assert not np.array_equal(whole.support.inputs, again.support.inputs)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EpisodeSpec(13, 1, 1), "13 ways were asked for, but the pool has 12 classes"),
        (EpisodeSpec(5, 4, 3), "4 shots \\+ 3 queries were asked for, but a class of the pool has 6 images"),
        (EpisodeSpec(5, 0, 3), "shots must be at least 1; given 0"),
    ],
)
def test_refuses_what_the_pool_cannot_serve(pool, spec, message):
    with pytest.raises(ValueError, match=message):
        check_spec(spec, pool)


def test_sinusoids_are_sine_waves_in_range():
    episodes = sample_sinusoids(jax.random.key(0), (), EpisodeSpec(1, 30, 30), 200)
    inputs = np.concatenate([episodes.support.inputs, episodes.query.inputs], 1)[..., 0]
    targets = np.concatenate([episodes.support.targets, episodes.query.targets], 1)[..., 0]
    assert np.abs(inputs).max() <= 5 and np.abs(inputs).max() > 4.9
    # y = a sin x + b cos x with a = A cos p and b = -A sin p: fit, then read A and p off.
    for x, y in zip(inputs, targets, strict=True):
        (a, b), residual, *_ = np.linalg.lstsq(np.stack([np.sin(x), np.cos(x)], 1), y, rcond=None)
        amplitude, phase = np.hypot(a, b), np.arctan2(-b, a)
        assert residual[0] < 1e-8 and 0.1 - 1e-3 <= amplitude <= 5 + 1e-3 and -1e-3 <= phase <= np.pi + 1e-3


def test_splits_are_disjoint():
    """For every dataset that needs no files; the others have tests of their own."""
    for name in ("glyphs", "sinusoid"):
        names = DATASETS[name]().class_names
        splits = [set(names[split]) for split in ("train", "validation", "test")]
        assert sum(map(len, splits)) == len(set.union(*splits))


def test_task_source_names_the_split_that_does_not_fit(pool):
    dataset = load_sinusoid()._replace(name="tiny", kind="classification", splits={"test": pool})
    with pytest.raises(ValueError, match="split 'test' of tiny has 12 classes"):
        task_source(dataset, "test", EpisodeSpec(20, 1, 1))


def bad_episodes():
    images, labels = jnp.zeros([4, 8, 8, 1]), jnp.zeros([4], jnp.int32)
    good = example_batch(images, labels)
    yield good._replace(inputs=images.astype(jnp.uint8)), good, "divide uint8 images by 255"
    yield good._replace(targets=labels[:3]), good, "targets must have as many examples"
    yield good._replace(targets=jax.nn.one_hot(labels, 5).astype(jnp.int32)), good, "not one-hot"
    yield good._replace(weights=jnp.ones([4, 1])), good, "weights must be one float"
    yield Batch(jnp.zeros(4), labels, jnp.ones(4)), good, "need a feature axis"
    yield good, example_batch(jnp.zeros([4, 9, 9, 1]), labels), "inputs of one shape"
    yield good, example_batch(images, jnp.zeros(4)), "targets of one dtype"


@pytest.mark.parametrize(("support", "query", "message"), list(bad_episodes()))
def test_check_episode_raises_at_trace_time(support, query, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda episode: check_episode(episode), Episode(support, query))


def test_check_episode_accepts_a_batch_of_tasks(source):
    check_episode(source.sample(jax.random.key(0), source.pool, source.spec, 4), num_task_axes=1)
