"""Features of tasks against NumPy, scikit-learn and SciPy; the configuration that worked on similar tasks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from conftest import load_experiment
from jaxmeta.base import Batch
from jaxmeta.tuning import (
    Experience,
    choice_probabilities,
    expected_scores,
    fit_pca,
    fit_switch,
    landmark_features,
    pca_extractor,
    pca_features,
    project,
    random_extractor,
    statistical_features,
    task_features,
    warm_start,
)

WAYS = 3


@pytest.fixture(scope="module")
def data():
    """Twelve examples of three classes that overlap, four columns of different spread."""
    rng = np.random.default_rng(1)
    targets = np.repeat([0, 1, 2], [3, 4, 5])
    inputs = rng.normal(size=[12, 4]) * [3, 1, 0.5, 0.1] + 1.5 * targets[:, None]
    return Batch(jnp.asarray(inputs, jnp.float32), jnp.asarray(targets), jnp.ones(12))


def padded(batch):
    """The same task with two examples that do not count."""
    more = jnp.full([2, *batch.inputs.shape[1:]], 77.0)
    return Batch(
        jnp.concatenate([batch.inputs, more]),
        jnp.append(batch.targets, jnp.array([1, 2])),
        jnp.append(batch.weights, jnp.zeros(2)),
    )


def test_pca_equals_that_of_sklearn(data):
    theirs = PCA(3).fit(np.asarray(data.inputs))
    ours = fit_pca(data.inputs, 3)
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-4)
    signs = np.sign(np.sum(np.asarray(ours.directions) * theirs.components_, 1))
    np.testing.assert_allclose(ours.directions, theirs.components_ * signs[:, None], atol=1e-4)
    np.testing.assert_allclose(project(ours, data.inputs), theirs.transform(data.inputs) * signs, atol=1e-3)
    white = PCA(3, whiten=True).fit(np.asarray(data.inputs))
    np.testing.assert_allclose(project(ours, data.inputs, whiten=True), white.transform(data.inputs) * signs, atol=1e-3)
    # The sign is ours to choose, and chosen by the largest entry.
    rows = np.asarray(ours.directions)
    assert (np.take_along_axis(rows, np.abs(rows).argmax(1, keepdims=True), 1) > 0).all()


@pytest.mark.parametrize("components", [0, 5, 12])
def test_more_components_than_there_are_are_refused(data, components):
    with pytest.raises(ValueError, match=f"12 examples of 4 numbers have at most 4 principal .* given {components}"):
        fit_pca(data.inputs, components)


def test_statistics_equal_those_of_scipy(data):
    found = np.asarray(statistical_features(data, WAYS))
    everything = np.asarray(data.inputs).ravel()
    shares = np.array([3, 4, 5]) / 12
    means = np.stack([np.asarray(data.inputs)[np.asarray(data.targets) == way].mean(0) for way in range(WAYS)])
    within = np.mean(np.sum((np.asarray(data.inputs) - means[np.asarray(data.targets)]) ** 2, 1))
    between = np.sum(shares * np.sum((means - shares @ means) ** 2, 1))
    expected = [np.log(12), stats.entropy(shares) / np.log(3), everything.mean(), everything.std()]
    expected += [stats.skew(everything), stats.kurtosis(everything), np.log(between / within)]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)


def test_landmarks_equal_leave_one_out(data):
    inputs, targets = np.asarray(data.inputs), np.asarray(data.targets)
    found = np.asarray(landmark_features(data, WAYS))
    for value, classifier in zip(found, (KNeighborsClassifier(1), NearestCentroid()), strict=True):
        predicted = cross_val_predict(classifier, inputs, targets, cv=LeaveOneOut())
        np.testing.assert_allclose(value, accuracy_score(targets, predicted), atol=1e-6)
    # The only one of its class cannot be predicted from the others.
    alone = Batch(data.inputs[:4], jnp.array([0, 0, 0, 1]), jnp.ones(4))
    assert (np.asarray(landmark_features(alone, WAYS)) <= 0.75).all()


def test_a_switch_refuses_features_that_are_no_numbers():
    features, scores = jnp.ones([3, 2]).at[1, 0].set(jnp.nan), jnp.ones([3, 2])
    with pytest.raises(ValueError, match="leave tasks out whose features are not finite"):
        fit_switch(jax.random.key(0), Experience(features, scores))
    with pytest.raises(ValueError, match="NaN for a choice that was not tried; some are infinite"):
        fit_switch(jax.random.key(0), Experience(jnp.ones([3, 2]), scores.at[0, 0].set(jnp.inf)))
    known = jnp.array([[-1.0], [-0.9], [0.9], [1.0]])
    switch = fit_switch(jax.random.key(0), Experience(known, jnp.array([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2)))
    with pytest.raises(ValueError, match="those given are not all finite"):
        choice_probabilities(switch, jnp.array([jnp.nan]))
    # Where nothing can be refused, it is as a task in the middle would be.
    choose = jax.jit(lambda features: choice_probabilities(switch, features))
    np.testing.assert_allclose(choose(jnp.array([jnp.inf])), choose(jnp.zeros(1)), rtol=1e-6)


def test_principal_components_of_a_task(data):
    pca = fit_pca(data.inputs, 2)
    task = Batch(data.inputs[:5], data.targets[:5], data.weights[:5])
    along = np.asarray(project(pca, task.inputs)) / np.sqrt(np.asarray(pca.variances))
    expected = np.concatenate([along.mean(0), 0.5 * np.log(along.var(0) + 1e-4)])
    np.testing.assert_allclose(pca_features(pca, task), expected, rtol=1e-4, atol=1e-5)


def test_examples_that_do_not_count_change_nothing(data):
    pca = fit_pca(data.inputs, 2)
    describe = jax.jit(lambda batch: task_features(pca, batch, WAYS))
    one, other = describe(data), describe(padded(data))
    assert one.shape == (13,) and np.isfinite(one).all()
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    # An empty task has features too, and no NaN.
    assert np.isfinite(describe(data._replace(weights=jnp.zeros(12)))).all()


def test_the_configuration_that_worked_on_similar_tasks():
    """Small tasks want configuration 0, large ones 1; 2 was tried on one task only, and 3 nowhere."""
    nan = np.nan
    features = jnp.array([[1.0, 5.0], [2.0, 5.0], [8.0, 5.0], [9.0, 5.0]])
    scores = jnp.array([[0.9, 0.5, nan, nan], [0.8, 0.4, nan, nan], [0.3, 0.7, 0.6, nan], [0.2, 0.8, nan, nan]])
    experience = Experience(features, scores)
    assert [int(warm_start(experience, jnp.array([x, 5.0]), width=0.3)) for x in (0.0, 1.5, 8.5, 20.0)] == [0, 0, 1, 1]
    # With a wide kernel: the means of what was tried.
    flat = np.asarray(expected_scores(experience, jnp.array([3.0, 5.0]), width=float("inf")))
    np.testing.assert_allclose(flat[:3], [0.55, 0.6, 0.6], rtol=1e-5)
    assert flat[3] == -np.inf
    # By hand: distances in units of the mean one.
    known = (np.asarray(features)[:, 0] - 5) / np.asarray(features)[:, 0].std()
    unit = np.abs(known[:, None] - known).sum() / 12
    kernel = np.exp(-((known - known[1]) ** 2) / (2 * unit**2))
    np.testing.assert_allclose(
        expected_scores(experience, features[1])[:2], kernel @ np.asarray(scores)[:, :2] / kernel.sum(), rtol=1e-4
    )


def test_one_earlier_task_is_what_there_is():
    alone = Experience(jnp.ones([1, 2]), jnp.array([[0.1, 0.7]]))
    np.testing.assert_allclose(expected_scores(alone, jnp.array([4.0, 4.0])), [0.1, 0.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("known", "scores", "new", "width", "message"),
    [
        ([2, 3], [2, 4], [4], 1.0, r"given \[2, 3\], \[2, 4\] and \[4\]"),
        ([2, 3], [3, 4], [3], 1.0, "scores"),
        ([2, 3], [2, 4], [3], 0.0, "width > 0"),
        ([0, 3], [0, 4], [3], 1.0, "needs a task or more"),
    ],
)
def test_experience_that_does_not_fit_is_refused(known, scores, new, width, message):
    with pytest.raises(ValueError, match=message):
        expected_scores(Experience(jnp.ones(known), jnp.ones(scores)), jnp.ones(new), width=width)


@pytest.mark.parametrize("choose", [warm_start, jax.jit(warm_start)])
def test_features_that_are_no_numbers_are_refused_and_not_answered(choose):
    known, scores = jnp.array([[0.0], [9.0]]), jnp.array([[0.9, 0.5], [0.4, 0.8]])
    # Known while a program around it is made, as well.
    closed = jax.jit(lambda new: warm_start(Experience(known, scores), new, width=0.3))
    assert int(closed(jnp.array([8.0]))) == 1 == int(choose(Experience(known, scores), jnp.array([8.0])))
    with pytest.raises(ValueError, match="those of the new task are not all finite"):
        warm_start(Experience(known, scores), jnp.array([jnp.nan]))
    with pytest.raises(ValueError, match="those of earlier tasks are not all finite"):
        warm_start(Experience(known.at[0].set(jnp.inf), scores), jnp.array([8.0]))
    # Where nothing can be refused, it is as a task in the middle would be.
    traced = jax.jit(lambda new: expected_scores(Experience(known, scores), new, width=0.3))
    np.testing.assert_allclose(traced(jnp.array([jnp.nan])), traced(jnp.array([4.5])), rtol=1e-6)
    spoiled = Experience(known * jnp.nan, scores)
    with pytest.raises(ValueError, match="those of earlier tasks"):
        jax.jit(lambda new: warm_start(spoiled, new))(jnp.array([8.0]))


# Extractors, and the switch between them.


def test_random_features_approach_the_gaussian_kernel():
    inputs = jax.random.normal(jax.random.key(0), [8, 3, 3, 1])
    model = random_extractor(20_000, width=0.7)
    params, state = model.init(jax.random.key(1), inputs)
    features, _ = model.embed(params, state, inputs)
    flat = np.asarray(inputs, np.float64).reshape(8, -1)
    squared = np.sum((flat[:, None] - flat) ** 2, -1)
    # The mean squared distance of two of eight, each with itself too.
    np.testing.assert_allclose(features @ features.T, np.exp(-squared / (2 * 0.49 * squared.mean())), atol=0.04)


def test_the_extractor_of_principal_components_is_that_of_sklearn(data):
    model = pca_extractor(2)
    params, state = model.init(jax.random.key(0), data.inputs)
    theirs = PCA(2, whiten=True).fit(np.asarray(data.inputs)).transform(data.inputs)
    np.testing.assert_allclose(np.abs(model.apply(params, state, data.inputs)[0]), np.abs(theirs), atol=1e-3)


def test_a_switch_chooses_by_the_features_of_a_task():
    """Choice 0 is the best where the first feature is below 0, choice 1 above; 2 is never, and the rest is noise."""
    rng = np.random.default_rng(0)

    def tasks(number):
        features = rng.normal(size=[number, 4]) * [1, 5, 0, 1] + [0, 100, 3, 0]
        easy = rng.random(number)
        scores = np.stack([easy + 0.2 * (features[:, 0] < 0), easy + 0.2 * (features[:, 0] > 0), easy + 0.05], 1)
        return jnp.asarray(features, jnp.float32), np.asarray(scores)

    features, scores = tasks(100)
    scores[::3, 2] = np.nan
    switch = fit_switch(jax.random.key(0), Experience(features, jnp.asarray(scores, jnp.float32)))
    new, expected = tasks(200)
    chosen = np.asarray(choice_probabilities(switch, new)).argmax(-1)
    gained = expected[np.arange(200), chosen] - expected.max(1)
    # Where the boundary lies is not known to the last task.
    assert (gained == 0).mean() > 0.9
    assert expected[np.arange(200), chosen].mean() > expected.mean(0).max() + 0.05
    again = fit_switch(jax.random.key(0), Experience(features, jnp.asarray(scores, jnp.float32)))
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (switch, again)), strict=True))
    with pytest.raises(ValueError, match=r"of two tasks and two choices or more; given \[5, 2\] and \[5, 1\]"):
        fit_switch(jax.random.key(0), Experience(jnp.ones([5, 2]), jnp.ones([5, 1])))


def test_linear_maps_of_images():
    planes = load_experiment("planes")
    images = jnp.asarray(np.random.default_rng(0).random([3, 2, 28, 28]), jnp.float32)
    maps = planes.linear_maps(np.random.default_rng(1), 3)
    assert maps.shape == (24, 2, 2)
    # Of none, quarter turns and mirror images exactly: each of the eight once.
    found = [np.asarray(planes.mapped(images, plane)) for plane in maps[:8]]
    expected = [np.rot90(side, turns, (2, 3)) for side in (images, images[..., ::-1]) for turns in range(4)]
    assert (found[0] == images).all()
    assert all(sum((one == other).all() for one in found) == 1 for other in expected)
    # The others are near the first as far as they may reach, and nothing comes in from outside.
    few = planes.linear_maps(np.random.default_rng(1), 9, reach=0.1, turned=False)
    assert few.shape == (9, 2, 2) and 0.01 < np.abs(few[1:] - np.eye(2)).max() < 0.25
    smaller = planes.mapped(jnp.ones([1, 28, 28]), 2 * np.eye(2, dtype=np.float32))
    assert float(smaller[0, 0, 0]) == 0 and float(smaller[0, 14, 14]) == 1 and float(smaller.sum()) == 14**2


@pytest.mark.slow
def test_the_experiment_runs(shared, tmp_path):
    """For a few steps, on the real digits."""
    experiment = load_experiment("mnist_metafeatures")
    sizes = "--steps 4 --tasks 6 --maps 2".split()

    def seeds(*options):
        experiment.main(["--data-dir", str(shared / "data" / "mnist"), "--out", str(tmp_path), *sizes, *options])
        return json.loads((tmp_path / "result.json").read_text())["seeds"]

    two = seeds("--seeds", "2", "--jobs", "2")
    (of_seed,) = seeds("--seeds", "1", "--first-seed", "1")
    # Alone or beside another, a seed gives the same figures.
    assert two[0] != two[1] == of_seed
    assert len(of_seed) == 6 and (tmp_path / "accuracy.png").stat().st_size > 0
    # Nothing was learned in four steps, and a perceptron from scratch knows a digit from fifty examples all the same.
    assert all(set(found) == {"1", "5", "10", "50"} for found in of_seed.values())
    (chosen,) = json.loads((tmp_path / "result.json").read_text())["chosen"]
    assert all(sum(found["times chosen"]) == 6 for of_way in chosen.values() for found in of_way.values())
    assert of_seed["scratch"]["50"] > 0.8 and of_seed["nearest example"]["50"] > 0.8


@pytest.mark.slow
def test_the_experiment_of_the_switch_runs(shared, tmp_path):
    """For a few steps, on real digits, letters and photographs."""
    experiment = load_experiment("extractor_switch")
    data = ("--mnist", str(shared / "data" / "mnist"), "--cifar10", str(shared / "data" / "cifar10"))
    experiment.main([*data, "--out", str(tmp_path), *"--seeds 1 --steps 4 --tasks 20".split()])
    (run,) = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert len(run["accuracy"]) == 9 and all(sum(chosen) == 20 for chosen in run["chosen"].values())
    names = list(run["mean"])[:4]
    for where, found in run["accuracy"].items():
        # What is chosen for every task has the accuracy of what was chosen.
        if max(run["chosen"][where]) == 20:
            assert found["switch"] == pytest.approx(found[names[int(np.argmax(run["chosen"][where]))]])
        assert found["best single one"] == found[run["single"]] and found["best on each task"] > 0
    # It prefers something: what is best in the mean is above what is drawn blindly.
    assert run["mean"]["switch"] > np.mean([run["mean"][name] for name in names])
    # Ten examples a class say more than one, whatever the features.
    assert all(run["accuracy"]["digits, 10"][way] > run["accuracy"]["digits, 1"][way] for way in run["mean"])
    # Examples beyond a task's number weigh nothing.
    source = experiment.tasks_of({"digits": [np.zeros([20, 28, 28, 1], np.uint8)] * 3}, shots=3)
    support = source.sample(jax.random.key(0), source.pool, experiment.SPEC, 2).support
    assert [support.weights[0][support.targets[0] == label].sum() for label in range(3)] == [3, 3, 3]
