"""Augmentation: keyed, of the same shapes, and what each change may change."""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxmeta import (
    AUGMENTATIONS,
    Episode,
    EpisodeSpec,
    TaskSource,
    augmented,
    check_episode,
    cross_entropy,
    example_batch,
    load_sinusoid,
    task_source,
)
from jaxmeta.config import Config, ConfigError, check_config
from jaxmeta.config_json import from_json, to_json
from jaxmeta.data.augment import _resampled, colour, horizontal_flip, mixup, quarter_turn, random_crop, warp
from jaxmeta.judgement import protocol_of
from jaxmeta.protocols import VARYING, Protocol, fingerprint
from jaxmeta.workspace import open_workspace

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), [12, 8, 8, 3])


def task(weights=None) -> Episode:
    targets = jnp.arange(6, dtype=jnp.int32) // 2
    support, query = (example_batch(images, targets) for images in (IMAGES[:6], IMAGES[6:]))
    return Episode(support, query if weights is None else query._replace(weights=jnp.asarray(weights)))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_row_is_keyed_and_keeps_what_an_episode_is(name):
    augment = jax.jit(AUGMENTATIONS[name])
    one, again, other = augment(KEY, task()), augment(KEY, task()), augment(jax.random.key(5), task())
    check_episode(one)
    np.testing.assert_array_equal(one.query.inputs, again.query.inputs)
    assert not np.array_equal(one.query.inputs, other.query.inputs)
    assert one.query.inputs.min() >= 0 and one.query.inputs.max() <= 1
    assert one.support.inputs.shape == task().support.inputs.shape
    np.testing.assert_allclose(one.query.weights.sum(), 6, rtol=1e-6)


def per_image(change, count=64, image=IMAGES[0]):
    keys = jax.random.split(KEY, count)
    return np.asarray(jax.jit(jax.vmap(lambda key: change(key, image)))(keys))


def test_a_warp_is_an_affine_map_of_the_places():
    """As SciPy computes it; and without a change nothing changes."""
    matrix, shift, centre = np.array([[1.1, -0.1], [0.05, 0.9]], np.float32), np.array([0.4, -0.3], np.float32), 3.5
    found = _resampled(IMAGES[0], matrix, shift)
    for channel in range(3):
        offset = centre + shift - matrix @ np.full(2, centre)
        image = np.asarray(IMAGES[0, ..., channel])
        wanted = scipy.ndimage.affine_transform(image, matrix, offset, order=1, mode="nearest")
        np.testing.assert_allclose(found[..., channel], wanted, atol=1e-5)
    np.testing.assert_allclose(_resampled(IMAGES[0], np.eye(2), np.zeros(2)), IMAGES[0], atol=1e-6)


def test_a_warp_stays_near():
    """A bright square in the middle of a large image stays within it, and no image is as it was."""
    image = jnp.zeros([32, 32, 1]).at[12:20, 12:20].set(1.0)
    warped = per_image(warp, image=image)
    assert warped[:, :8].max() == warped[:, 24:].max() == warped[:, :, :8].max() == warped[:, :, 24:].max() == 0
    assert all(0.5 < each.sum() / image.sum() < 2 for each in warped)
    assert not any(np.allclose(each, image, atol=1e-3) for each in warped)


def test_a_flip_is_its_own_inverse_and_comes_half_of_the_time():
    flipped, plain = per_image(horizontal_flip), np.asarray(IMAGES[0])
    mirrored = sum(np.array_equal(image, plain[:, ::-1]) for image in flipped)
    assert 20 < mirrored < 44 and mirrored + sum(np.array_equal(image, plain) for image in flipped) == 64
    twice = jax.vmap(horizontal_flip)(jax.random.split(KEY, 64), jnp.asarray(flipped))
    np.testing.assert_array_equal(twice, np.broadcast_to(plain, twice.shape))


def test_a_crop_is_a_window_of_the_mirrored_image():
    plain = np.asarray(IMAGES[0])
    wide = np.pad(plain, [(1, 1), (1, 1), (0, 0)], mode="reflect")
    windows = {wide[row : row + 8, column : column + 8].tobytes() for row in range(3) for column in range(3)}
    assert {image.tobytes() for image in per_image(random_crop, 128)} == windows


def test_quarter_turns_are_all_four():
    expected = {np.rot90(np.asarray(IMAGES[0]), quarters).tobytes() for quarters in range(4)}
    assert {np.ascontiguousarray(image).tobytes() for image in per_image(quarter_turn)} == expected


def test_colour_changes_contrast_about_the_mean_and_leaves_grey_grey():
    grey = per_image(colour, image=jnp.full([4, 4, 3], 0.5))
    # A factor in [0.6, 1.4] of brightness; contrast and saturation have nothing to change.
    assert (np.ptp(grey, axis=(1, 2, 3)) < 1e-6).all() and grey.min() >= 0.3 - 1e-6 and grey.max() <= 0.7 + 1e-6
    assert np.ptp(grey[:, 0, 0, 0]) > 0.2


def test_a_turned_class_is_the_same_in_support_and_query():
    """All images of a class are turned alike, so that classes stay what they are told apart by."""
    marked = jnp.zeros([6, 4, 4, 1]).at[:, 0, 0].set(1.0)
    batch = example_batch(marked, jnp.arange(6, dtype=jnp.int32) // 2)
    seen = set()
    for seed in range(12):
        turned = AUGMENTATIONS["turn"](jax.random.key(seed), Episode(batch, batch))
        np.testing.assert_array_equal(turned.support.inputs, turned.query.inputs)
        corners = np.asarray(turned.support.inputs).reshape(6, -1).argmax(1)
        assert (corners[::2] == corners[1::2]).all()
        seen.add(tuple(corners[::2]))
    assert len(seen) > 6 and set(np.concatenate(list(map(list, seen)))) == {0, 3, 12, 15}


def test_mixup_is_the_loss_of_soft_targets():
    """By hand: the mixed images, and cross-entropy with the shares of both classes as targets."""
    episode = task(weights=[1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    key_pairs, key_shares = jax.random.split(KEY)
    other, share = jax.random.permutation(key_pairs, 6), jax.random.uniform(key_shares, [6])
    share = jnp.where(other == 5, 1.0, share)
    mixed = mixup(KEY, episode)
    np.testing.assert_array_equal(mixed.support.inputs, episode.support.inputs)
    inputs, targets, _ = episode.query
    expected = share[:, None, None, None] * inputs + (1 - share)[:, None, None, None] * inputs[other]
    np.testing.assert_allclose(mixed.query.inputs, jnp.concatenate([expected, expected]), rtol=1e-6)
    weights = jax.random.normal(jax.random.key(3), [8 * 8 * 3, 3])
    outputs = mixed.query.inputs.reshape(12, -1) @ weights
    soft = share[:, None] * jax.nn.one_hot(targets, 3) + (1 - share)[:, None] * jax.nn.one_hot(targets[other], 3)
    by_hand = -(soft * jax.nn.log_softmax(outputs[:6])).sum(1)[:5].mean()
    np.testing.assert_allclose(cross_entropy(outputs, mixed.query.targets, mixed.query.weights), by_hand, rtol=1e-5)


def test_task_i_is_augmented_alike_in_every_batch(source):
    changed = augmented(source, tuple(AUGMENTATIONS))

    @partial(jax.jit, static_argnums=0)
    def draw(count, first):
        return changed.sample(KEY, source.pool, source.spec, count, first_task=first)

    for one, other in zip(jax.tree.leaves(draw(5, 0)), jax.tree.leaves(draw(2, 3)), strict=True):
        np.testing.assert_allclose(one[3:], other, rtol=1e-5, atol=1e-6)
    # Equal samplers are one to `jit`, and no augmentation is no other sampler.
    assert changed.sample == augmented(source, tuple(AUGMENTATIONS)).sample and augmented(source, ()) is source


def test_refusals(source, pool):
    with pytest.raises(ValueError, match="Unknown augmentation 'blur'. Known: crop, flip"):
        augmented(source, ["blur"])
    sines = task_source(load_sinusoid(), "train", EpisodeSpec(1, 5, 5))
    with pytest.raises(ValueError, match="not drawn from a pool of images"):
        augmented(sines, ["flip"])
    oblong = TaskSource(source.sample, pool._replace(images=pool.images[:, :, :8]), source.spec)
    with pytest.raises(ValueError, match="need square images; given 8x16"):
        augmented(oblong, ["turn"])
    for options, message in [
        ({"augment": ("blurr",)}, "Unknown augmentation 'blurr'"),
        ({"augment": ("turn",), "algorithm": "baseline", "inner_steps": 5}, "--algorithm baseline learns those of"),
        ({"episodes": "varied"}, "Unknown episodes 'varied'. Did you mean 'varying'?"),
        ({"episodes": "varying", "within_alphabet": True, "dataset": "omniglot"}, "leave out --within-alphabet"),
        ({"augment": ("flip",), "dataset": "sinusoid", "ways": 1}, "are for images"),
    ]:
        with pytest.raises(ConfigError, match=message):
            check_config(Config(**options))


def test_a_configuration_keeps_them_and_older_ones_had_none():
    config = Config(augment=("crop", "mixup"), episodes="varying")
    values = to_json(config)
    assert from_json({**values, "augment": list(values["augment"])}) == config
    older = {name: value for name, value in to_json(Config()).items() if name not in ("augment", "episodes")}
    assert from_json(older) == Config()


def test_only_training_is_augmented_and_the_judgement_knows_varying_tasks():
    config = Config(filters=4, tasks=4, augment=("crop", "mixup"), episodes="varying", ways=6, shots=2, eval_queries=3)
    workspace = open_workspace(config)
    names = {split: getattr(source.sample, "names", ()) for split, source in workspace.sources.items()}
    assert names == {"train": ("crop", "mixup"), "validation": (), "test": ()}
    protocol = protocol_of(workspace)
    assert protocol.episodes_from == VARYING
    fixed = dataclasses.replace(protocol, episodes_from="sampled")
    assert fingerprint(protocol) != fingerprint(fixed)
    # Where the pool lies is nobody's business.
    assert "pool" not in inspect.signature(Protocol).parameters and "pool" not in vars(config)
