"""The space of architectures, all of its networks as one, and the search by first and second order."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import load_experiment
from jaxmeta.base import Batch
from jaxmeta.inner import inner_loop, meta_grad
from jaxmeta.metagrad import mixed_mode
from jaxmeta.tuning import (
    Architecture,
    Cell,
    Hypers,
    Network,
    Space,
    architecture_search,
    check_space,
    hyper_sgd,
    mixture_of,
    network_of,
    number_of_architectures,
    possible_skips,
    random_architecture,
    read_off,
    supernet,
    training_objective,
)

SPACE = Space(cells=2, kernels=(1, 3), widths=(2, 4))
KEY = jax.random.key(0)


def images(examples=6, size=8, channels=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=[examples, size, size, channels]), jnp.float32)


def weights_of(architecture, params, space):
    """Cut the weights of one network out of those of all: what it would have been, trained alone."""
    channels = space.widths[-1]
    widths = [channels, *(cell.width for cell in architecture.cells)]

    def reach(node):
        return max(widths[start] for start, end in [(node - 1, node), *architecture.skips] if end == node)

    found = {"stem": params["stem"]}
    for place, cell in enumerate(architecture.cells, start=1):
        of_cell = params[f"cell{place}"]
        kernel = of_cell[f"kernel{cell.kernel}"][:, :, : reach(place), : cell.width]
        found[f"cell{place}"] = {"kernel": kernel, "bias": of_cell["bias"][: cell.width]}
    head = params["head"]
    return found | {"head": {"kernel": head["kernel"][: reach(len(architecture.cells) + 1)], "bias": head["bias"]}}


def test_a_mixture_of_one_is_that_network():
    """Kernel sizes, widths, normalisation, pooling and edges, each by its own code on either side."""
    every = supernet(SPACE, 5)
    inputs = images()
    params = every.init(KEY, inputs)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    together = jax.jit(every.apply)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(6):
        architecture = random_architecture(rng, SPACE)
        alone = network_of(architecture, SPACE.widths[-1], 5)
        given = alone.apply(weights_of(architecture, params, SPACE), inputs)
        np.testing.assert_allclose(
            given, together(params, mixture_of(architecture, SPACE), inputs), rtol=2e-4, atol=2e-5
        )
        fresh, cut = alone.init(KEY, inputs), weights_of(architecture, params, SPACE)
        assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, cut)
        seen.add(architecture)
    assert len(seen) > 3


def test_the_space_is_counted_by_listing_it():
    space = Space(cells=2, kernels=(1, 3), widths=(2,), norms=("none", "instance"), pools=("max",))
    assert possible_skips(space) == ((0, 2), (0, 3), (1, 3))
    cells = list(itertools.product(space.kernels, space.widths, space.norms, space.pools))
    edges = list(itertools.product([False, True], repeat=3))
    assert number_of_architectures(space) == len(cells) ** 2 * len(edges) == 128
    drawn = {random_architecture(np.random.default_rng(seed), space) for seed in range(1500)}
    assert len(drawn) == 128
    assert number_of_architectures(Space()) >= 10_000


def test_what_is_read_off_is_what_was_put_in():
    for seed in range(5):
        architecture = random_architecture(np.random.default_rng(seed), Space())
        scores = jax.tree.map(lambda share: 3 * share - 1, mixture_of(architecture, Space()))
        assert read_off(scores, Space()) == architecture
    with pytest.raises(ValueError, match="widths are not finite: the search has diverged"):
        read_off(supernet(SPACE, 2).init_scores() | {"widths": jnp.full([2, 2], jnp.nan)}, SPACE)
    with pytest.raises(ValueError, match=r"kernels \(1, 3\); given 2 cells with \(5, 1\)"):
        mixture_of(Architecture((Cell(5, 2, "none", "max"), Cell(1, 2, "none", "max")), ()), SPACE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": 0}, "cells of 1 or more"),
        ({"kernels": ()}, "different kernels to choose from"),
        ({"widths": (4, 4)}, "different widths"),
        ({"widths": (8, 4)}, "in increasing order"),
        ({"kernels": (2,)}, "must be odd"),
        ({"norms": ("batch",)}, "Unknown norms 'batch'"),
        ({"pools": ("min",)}, "there are max, mean"),
    ],
)
def test_a_space_with_nothing_to_choose_from_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_space(SPACE._replace(**change))
    with pytest.raises(ValueError, match=message):
        supernet(SPACE._replace(**change), 2)


def linear_problem():
    """The smallest network that has every choice but the ones that are not smooth."""
    space = Space(cells=1, kernels=(1, 3), widths=(1, 2), norms=("none",), pools=("mean",))
    rng = np.random.default_rng(1)
    data = Batch(jnp.asarray(rng.normal(size=[6, 4, 4, 1])), jnp.asarray(rng.integers(0, 2, 6), jnp.int32), jnp.ones(6))
    return supernet(space, 2), data


@pytest.mark.parametrize(
    ("lookahead", "metagrad"),
    [pytest.param(0, None, marks=pytest.mark.slow), (2, None), pytest.param(2, mixed_mode(), marks=pytest.mark.slow)],
)
def test_the_gradient_of_the_scores_is_exact(x64, lookahead, metagrad):
    """Against finite differences of training and validating by hand; with none ahead the weights are fixed."""
    every, data = linear_problem()
    hypers = Hypers(0.3, momentum=0.5, weight_decay=0.1)
    options = {"lookahead": lookahead, "metagrad": metagrad, "scores_optimizer": optax.sgd(1.0)}
    search = architecture_search(every, hypers, batch_size=5, **options)
    state = search.init(KEY, data.inputs)
    # Somewhere on the way, with a momentum.
    step = jax.jit(search.step)
    state = step(state, data, data, jax.random.key(5))[0]
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, state)
    new, _ = step(state, data, data, jax.random.key(7))
    gradient = jax.tree.map(lambda before, after: before - after, state.scores, new.scores)

    @jax.jit
    def value(scores):
        def objective(params, theta, _, data, key):
            net = Network(None, lambda params, inputs, **_: every.apply(params, every.mixture(scores), inputs))
            return training_objective(net, 5)(params, hypers, (), data, key)

        key = jax.random.split(jax.random.key(7))[0]
        solve = inner_loop(objective, hyper_sgd(hypers), lookahead)
        begin = lambda *arguments, **options: solve(*arguments, opt_state=state.opt_state, **options)  # noqa: E731
        (loss, _), _ = meta_grad(objective, begin, start=lambda _: state.params)(jnp.zeros(()), (), data, data, key)
        return loss

    for name in ("kernels", "widths", "skips"):
        flat = np.asarray(state.scores[name])
        for place in np.ndindex(*flat.shape):
            step = np.zeros_like(flat)
            step[place] = 1e-5
            ends = [value(state.scores | {name: jnp.asarray(flat + sign * step)}) for sign in (1, -1)]
            np.testing.assert_allclose(gradient[name][place], (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-9)


def stripes(examples, seed):
    """Horizontal or vertical stripes at any phase: no single pixel tells which."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, examples)
    waves = np.where(np.arange(8) % 2, 1.0, -1.0) * rng.choice([-1, 1], [examples, 1])
    pixels = np.where(targets[:, None, None] == 0, waves[:, :, None], waves[:, None, :])
    pixels = np.broadcast_to(pixels, [examples, 8, 8]) + 0.1 * rng.normal(size=[examples, 8, 8])
    return Batch(jnp.asarray(pixels[..., None], jnp.float32), jnp.asarray(targets), jnp.ones(examples))


@pytest.mark.parametrize("lookahead", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_search_finds_the_width_that_is_enough(lookahead):
    """Four channels tell more than one; the mixture decides, and the same key finds the same."""
    space = Space(cells=1, kernels=(1, 3), widths=(1, 4), norms=("none",), pools=("max",))
    every = supernet(space, 2)
    search = architecture_search(
        every, Hypers(0.1, momentum=0.9), batch_size=32, lookahead=lookahead, scores_optimizer=optax.adam(0.05)
    )
    training, validation = stripes(64, 0), stripes(64, 1)

    @jax.jit
    def run(key):
        state = search.init(key, training.inputs)
        return jax.lax.scan(
            lambda state, key: search.step(state, training, validation, key), state, jax.random.split(key, 100)
        )

    state, metrics = run(jax.random.key(3))
    again, _ = run(jax.random.key(3))
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (state, again)), strict=True))
    loss = np.asarray(metrics["loss"])
    assert loss[-10:].mean() < 0.5 * loss[:10].mean() and int(state.skipped) == 0
    assert metrics["entropy"][-1] < metrics["entropy"][0]
    assert read_off(state.scores, space).cells[0].width == 4


def test_what_smooths_training_is_not_what_a_network_is_judged_by():
    """Nor are weights of training examples looked up for those of validation."""
    every, data = linear_problem()
    weighed = jnp.array([0.0, 0.0, 9.0])
    plain, smooth = (
        architecture_search(every, hypers, batch_size=4)
        for hypers in (Hypers(0.0), Hypers(0.0, label_smoothing=0.5, augmentation=1.0, example_weights=weighed))
    )
    training, key = jax.tree.map(lambda leaf: leaf[:3], data), jax.random.key(3)
    losses = [search.step(search.init(KEY, data.inputs), training, data, key)[1]["loss"] for search in (plain, smooth)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    with pytest.raises(ValueError, match="no dropout to set; given hypers with 0.1"):
        architecture_search(every, Hypers(0.1, dropout=0.1), batch_size=4)


@pytest.mark.parametrize("side", [1, 3])
def test_images_too_small_for_the_cells_are_refused(side):
    inputs = jnp.zeros([1, side, 8, 1])
    architecture = random_architecture(np.random.default_rng(0), SPACE)
    for init in (supernet(SPACE, 2).init, network_of(architecture, 2, 2).init):
        with pytest.raises(ValueError, match=rf"2 cells halve .*4x4 or more; given {side}x8"):
            init(KEY, inputs)


def test_scores_stay_where_they_are_while_the_loss_is_no_number():
    every, data = linear_problem()
    search = architecture_search(every, Hypers(0.1), batch_size=4)
    state = search.init(KEY, data.inputs)
    data = data._replace(inputs=jnp.nan * data.inputs)
    step = jax.jit(search.step)
    for number in range(3):
        state, metrics = step(state, data, data, jax.random.key(number))
    # No step is taken, and all are counted.
    assert int(metrics["skipped"]) == 3
    for before, after in zip(*map(jax.tree.leaves, (search.init(KEY, data.inputs).params, state.params)), strict=True):
        np.testing.assert_array_equal(before, after)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.scores))
    with pytest.raises(ValueError, match="lookahead of 0 or more; given -1"):
        architecture_search(every, Hypers(0.1), batch_size=4, lookahead=-1)


@pytest.mark.slow
def test_the_experiment_runs(shared, tmp_path):
    """For a few steps, on the real images."""
    experiment = load_experiment("cifar10_architecture")
    sizes = "--seeds 1 --search-steps 2 --train-steps 30 --rivals 2".split()
    experiment.main(["--data-dir", str(shared / "data" / "cifar10"), "--out", str(tmp_path), *sizes])
    (record,) = json.loads((tmp_path / "result.json").read_text())["seeds"]
    assert len(record["rivals"]) == 2
    best = record[experiment.BEST]
    # As many as were paid for, and of those the best by validation, not by test images.
    tried = record["rivals"][: best["of"]]
    assert best["architecture"] == max(tried, key=lambda rival: rival["validation"])["architecture"]
    assert sum(rival["seconds"] for rival in tried[:-1]) < best["paid"]
    for name in ("first order", "second order", experiment.BEST):
        found = record[name]
        assert 0.1 < found["test"] < 0.6 and len(found["seconds"]) == 3 and len(set(found["of_starts"])) > 1
    assert all(0.05 < rival["test"] < 0.6 and rival["seconds"] > 0 for rival in record["rivals"])
