"""Pools on the host: the episodes of the device to the bit, read ahead, and no thread that stays."""

import json
import threading
import time

import jax
import numpy as np
import optax
import pytest

from conftest import flat_model
from jaxmeta import (
    CRITERIA,
    EpisodeSpec,
    TaskSource,
    augmented,
    evaluate,
    feed,
    fit,
    init_train_state,
    load_glyphs,
    make_train_step,
    maml,
    on_host,
    protonet,
    sample_classification,
    sample_episodes,
    sample_varying,
    task_source,
    within_groups,
)
from jaxmeta.cli import main
from jaxmeta.data.lookup import HostImages
from jaxmeta.judged_tasks import episodes_hash

SAMPLERS = {"episodes": sample_episodes, "classification": sample_classification, "varying": sample_varying}
NAMES = ("crop", "turn", "mixup")


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("jaxmeta-read")]


@pytest.fixture
def both(pool, source) -> tuple[TaskSource, TaskSource]:
    return source, source._replace(pool=on_host(pool))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_host_pool_gives_the_episodes_of_a_device_pool(both, name):
    """Called as always, and read ahead as `fit` and evaluators do."""
    device, host = (source._replace(sample=SAMPLERS[name]) for source in both)

    @jax.jit
    def draw(key, pool, first_task):
        return device.sample(key, pool, device.spec, 4, first_task=first_task)

    key = jax.random.key(3)
    expected = draw(key, device.pool, 2)
    assert_same(expected, draw(key, host.pool, 2))
    with feed.pools_of_tasks(host, key, [2], num_tasks=4, mesh=None) as pools:
        assert_same(expected, draw(key, next(pools), 2))
    with feed.pools_of_steps(host, key, [5], num_tasks=4, at_once=3, mesh=None) as pools:
        read = next(pools)
    for index in np.arange(3, dtype=np.int32):
        of_step = feed.step_keys(key, 5 + index)[0]
        assert_same(draw(of_step, device.pool, 0), draw(of_step, feed.at_step(read, index), 0))
    # Nothing but the numbers of images is ever on the device as a whole.
    assert sum(leaf.size for leaf in jax.tree.leaves(host.pool)) == 12


@pytest.mark.slow
def test_groups_and_augmentation_are_read_ahead_too(both):
    groups = ["a"] * 4 + ["b"] * 5 + ["c"] * 3
    device, host = (augmented(within_groups(source, groups), NAMES) for source in both)
    assert feed.is_fed(host) and not feed.is_fed(device)
    key = jax.random.key(3)
    with feed.pools_of_tasks(host, key, [0], num_tasks=4, mesh=None) as pools:
        read = next(pools)
    draw = jax.jit(lambda key, source_pool: device.sample(key, source_pool, device.spec, 4))
    assert_same(draw(key, device.pool), draw(key, read))
    assert episodes_hash(device, key, 5) == episodes_hash(host, key, 5)


@pytest.mark.slow
def test_training_from_a_host_pool(both, monkeypatch):
    """Dispatches divided, since their images are too many; a resume from within a call; an evaluation.

    The callback is called when it would have been, with the metrics of all steps. To the bit the numbers are the same
    in programs that are compiled as a user's are: see test_devices.py, for one device and several. The old fusions that
    this process compiles by round differently here and there.
    """
    learner, optimizer, key = protonet(flat_model(), ways=3), optax.sgd(0.1), jax.random.key(1)
    # A step has 2 tasks of 12 images of 16x16: room for two steps.
    monkeypatch.setattr(feed, "MOST_BYTES", 2 * 2 * 12 * 256 + 1)
    assert feed.steps_at_once(both[1], 2, 5) == 2 and feed.steps_at_once(both[0], 2, 5) == 5
    step, results = make_train_step(learner, optimizer), []
    for source in both:
        state, losses = init_train_state(jax.random.key(0), learner, optimizer, source, num_tasks=2), []
        options = {"num_tasks": 2, "steps_per_call": 5, "callback": lambda _, rows, to=losses: to.append(rows["loss"])}
        for stop in (3, 12):
            state = fit(step, state, source, key, num_steps=stop, **options)
        assert [len(rows) for rows in losses] == [3, 2, 5, 2]
        judged = evaluate(
            learner,
            state.meta_params,
            state.state,
            source,
            key,
            criterion=CRITERIA["classification"],
            num_tasks=7,
            task_chunk=3,
        )
        results.append((state, losses, judged.metrics["loss"].per_task))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    assert not reading_threads()


def test_a_memory_map_is_read_and_not_loaded(both, pool, tmp_path):
    np.save(tmp_path / "images.npy", pool.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    placed = on_host(pool._replace(images=mapped))
    assert placed.images.array is mapped
    key, (device, _) = jax.random.key(0), both
    draw = jax.jit(lambda key, pool: device.sample(key, pool, device.spec, 3))
    assert_same(draw(key, device.pool), draw(key, placed))
    with feed.pools_of_tasks(device._replace(pool=placed), key, [0], num_tasks=3, mesh=None) as pools:
        assert_same(draw(key, device.pool), draw(key, next(pools)))
    # And without a program around it.
    assert_same(draw(key, device.pool), sample_episodes(key, placed, device.spec, 3))


def test_host_images_are_the_rows_asked_for(pool):
    places = np.random.default_rng(0).integers(0, [12, 10], [5, 7, 2])
    np.testing.assert_array_equal(HostImages(pool.images).read(places), pool.images[places[..., 0], places[..., 1]])


def test_reading_ahead_is_ordered_bounded_and_ends():
    begun = []

    def read(number):
        begun.append(number)
        time.sleep(0.02 * (number % 2))
        return number

    with feed.read_ahead(read, range(20), depth=2) as numbers:
        assert [next(numbers) for _ in range(3)] == [0, 1, 2]
        # Three were given, and two more begun.
        assert max(begun) <= 4
    assert not reading_threads() and max(begun) <= 4


def test_an_error_of_a_reader_is_raised_in_the_caller():
    def read(number):
        if number == 2:
            raise OSError("the disk is gone")
        return number

    seen = []
    with pytest.raises(OSError, match="the disk is gone"), feed.read_ahead(read, range(9)) as numbers:
        seen.extend(numbers)
    assert not reading_threads()


class BrokenArray(np.ndarray):
    """Images that cannot be read."""

    def reshape(self, *shape, **options):
        raise OSError("the disk is gone")


def test_fit_stops_where_the_images_cannot_be_read(both, pool):
    device, _ = both
    learner, optimizer = maml(flat_model(), inner_optimizer=optax.sgd(0.1)), optax.sgd(0.1)
    state = init_train_state(jax.random.key(0), learner, optimizer, device, num_tasks=2)
    broken = device._replace(pool=on_host(pool._replace(images=pool.images.view(BrokenArray))))
    with pytest.raises(OSError, match="the disk is gone"):
        fit(make_train_step(learner, optimizer), state, broken, jax.random.key(1), num_tasks=2, num_steps=4)
    assert not reading_threads()


def test_an_interrupted_fit_leaves_no_thread(both):
    learner, optimizer = maml(flat_model(), inner_optimizer=optax.sgd(0.1)), optax.sgd(0.1)
    state = init_train_state(jax.random.key(0), learner, optimizer, both[1], num_tasks=2)

    def interrupt(state, metrics):
        raise KeyboardInterrupt

    options = {"num_tasks": 2, "num_steps": 1000, "steps_per_call": 2, "callback": interrupt}
    with pytest.raises(KeyboardInterrupt):
        fit(make_train_step(learner, optimizer), state, both[1], jax.random.key(1), **options)
    assert not reading_threads()


def test_a_sampler_of_ones_own_works_without_reading_ahead(both):
    device, host = (
        source._replace(sample=lambda key, *args, **options: sample_episodes(jax.random.key(7), *args, **options))
        for source in both
    )
    assert not feed.is_fed(host)
    assert_same(
        device.sample(jax.random.key(0), device.pool, device.spec, 2),
        jax.jit(lambda key: host.sample(key, host.pool, host.spec, 2))(jax.random.key(0)),
    )


def test_auto_takes_the_device_while_half_of_its_memory_is_enough():
    glyphs = load_glyphs()
    wanted = sum(pool.images.nbytes for pool in glyphs.splits.values())
    assert feed.choose_pool(glyphs, "auto", 2 * wanted) == "device"
    assert feed.choose_pool(glyphs, "auto", 2 * wanted - 2) == "host"
    assert feed.choose_pool(glyphs, "host", 2 * wanted) == "host" == feed.choose_pool(glyphs, "host")
    assert feed.choose_pool(glyphs, "device", 1) == "device"
    with pytest.raises(ValueError, match="on the 'device' or on the 'host'; given 'disk'"):
        task_source(glyphs, "train", EpisodeSpec(5, 1, 1), pool="disk")


@pytest.mark.slow
def test_a_run_with_a_host_pool_is_the_run_with_a_device_pool(tmp_path):
    """Whole: training, validation, resume and judgement; where the pool lies is not in the protocol."""
    shape = ["--filters", "4", "--tasks", "4", "--log-every", "5", "--checkpoint-every", "10", "--steps", "10"]
    shape += ["--validation-episodes", "4", "--eval-episodes", "8", "--eval-queries", "2", "--augment", "crop", "mixup"]
    results = {}
    for pool in ("device", "host"):
        out = tmp_path / pool
        assert main(["train", *shape, "--pool", pool, "--out", str(out)]) == 0
        results[pool] = json.loads((out / "result.json").read_text())
    differing = {name for name in results["host"] if results["host"][name] != results["device"][name]}
    assert differing <= {"run", "seconds"}
