"""Learners that compare images, against their equations written again in NumPy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxmeta import (
    ALGORITHMS,
    CRITERIA,
    DATASETS,
    Batch,
    ClassPool,
    Dataset,
    Episode,
    conv4,
    example_batch,
    from_function,
    matching,
    matching_fce,
    protonet,
    relation,
    siamese,
)
from jaxmeta.algorithms import NEEDS_PAIRS
from jaxmeta.algorithms.embedding import NEVER
from jaxmeta.algorithms.siamese import pair_weights
from jaxmeta.config import ConfigError
from jaxmeta.models import full_context, relation_module
from jaxmeta.nn import conv2d
from jaxmeta.presets import PRESETS, with_algorithm
from jaxmeta.workspace import open_workspace

KEY = jax.random.key(0)
IDENTITY = from_function(lambda key, x: {}, lambda params, x: x)
FACTORIES = {
    "protonet": protonet,
    "matching": matching,
    "matching-fce": lambda model, **options: matching_fce(model, reads=2, **options),
    "relation": lambda model, **options: relation(model, filters=4, hidden=3, **options),
    "siamese": siamese,
}
# Features are the inputs: vectors, and for one more case maps.
CASES = {**dict.fromkeys(FACTORIES, (5,)), "relation-maps": (4, 4, 2)}


def learner_and_episode(case):
    """A task of classes 0, 1 and 3 for a learner of four, whose features are the inputs."""
    rng = np.random.default_rng(0)

    def batch(targets):
        inputs = rng.normal(size=[len(targets), *CASES[case]])
        return example_batch(jnp.asarray(inputs, jnp.float32), jnp.array(targets))

    episode = Episode(batch([0, 1, 1, 3]), batch([0, 1, 3]))
    learner = FACTORIES[case.removesuffix("-maps")](IDENTITY, ways=4)
    return learner, jax.jit(learner.init)(KEY, episode.support.inputs)[0], episode


def with_padding(batch, place):
    """The batch with two images of class 2 that do not count, in its midst."""
    extra = Batch(7.0 * batch.inputs[:2] + 1.0, jnp.array([2, 2]), jnp.zeros(2))
    parts = zip(batch, extra, strict=True)
    return Batch(*(jnp.concatenate([one[:place], two, one[place:]]) for one, two in parts))


@pytest.mark.parametrize("case", CASES)
def test_padding_changes_nothing_and_an_absent_class_is_never_predicted(case):
    learner, params, episode = learner_and_episode(case)

    def run(episode):
        outputs = learner.predict(learner.adapt(params, {}, episode.support, KEY), episode.query, KEY)
        return outputs, *jax.value_and_grad(lambda p: learner.loss(p, {}, episode, KEY, 0)[0])(params)

    padded = Episode(with_padding(episode.support, 2), with_padding(episode.query, 1))
    (outputs, loss, gradient), (more_outputs, same_loss, same_gradient) = jax.jit(
        lambda *episodes: [run(one) for one in episodes]
    )(episode, padded)
    np.testing.assert_allclose(more_outputs[jnp.array([0, 3, 4])], outputs, rtol=1e-4)
    np.testing.assert_allclose(loss, same_loss, rtol=1e-4)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(same_gradient), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert (outputs[:, 2] == NEVER).all() and (more_outputs[:, 2] == NEVER).all()
    assert (jnp.delete(outputs, 2, axis=1) > -1e3).all()


def predicted(learner, support, query, params=None):
    params = {"body": {}, "head": {} if params is None else params}
    return np.asarray(learner.predict(learner.adapt(params, {}, support, KEY), query, KEY))


def by_hand():
    support = example_batch(jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]), jnp.array([0, 1, 1]))
    return support, example_batch(jnp.array([[2.0, 0.0]]), jnp.array([0]))


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_matching_by_hand(scale):
    support, query = by_hand()
    votes = np.exp(scale * np.array([1.0, 0.0, np.sqrt(0.5)]))
    outputs = predicted(matching(IDENTITY, ways=3, scale=scale), support, query)[0]
    np.testing.assert_allclose(np.exp(outputs), [votes[0] / votes.sum(), votes[1:].sum() / votes.sum(), 0], rtol=1e-5)


def test_protonet_by_hand():
    # The prototype of class 1 is (1.5, 2.5).
    outputs = predicted(protonet(IDENTITY, ways=3), *by_hand())[0]
    np.testing.assert_allclose(outputs, [-1.0, -(0.5**2) - 2.5**2, NEVER])


def test_siamese_by_hand():
    # 1 - |dx| - 2 |dy|; class 1 has the better of -5 and -6.
    params = {"alpha": jnp.array([-1.0, -2.0]), "beta": jnp.float32(1.0)}
    outputs = predicted(siamese(IDENTITY, ways=3), *by_hand(), params)[0]
    np.testing.assert_allclose(outputs, [0.0, -5.0, NEVER])


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def lstm_step(params, inputs, hidden, cell):
    """One step of the LSTM, by its equations."""
    gates = {
        gate: inputs @ params[f"i{gate}"]["kernel"] + hidden @ params[f"h{gate}"]["kernel"] + params[f"h{gate}"]["bias"]
        for gate in "ifgo"
    }
    cell = sigmoid(gates["f"]) * cell + sigmoid(gates["i"]) * np.tanh(gates["g"])
    return sigmoid(gates["o"]) * np.tanh(cell), cell


def test_full_context_equals_an_lstm_in_numpy():
    reads, size, rng = 3, 3, np.random.default_rng(1)
    support, queries = rng.normal(size=[4, size]), rng.normal(size=[2, size])
    context = full_context(reads)
    params = jax.tree.map(np.array, jax.jit(context.init)(KEY, jnp.asarray(support, jnp.float32)))
    for leaf in jax.tree.leaves(params):
        leaf += 0.3 * rng.normal(size=leaf.shape)  # So that biases count.

    expected = support.copy()
    for direction, order in (("forward", range(4)), ("backward", range(3, -1, -1))):
        hidden = cell = np.zeros(size)
        for place in order:
            hidden, cell = lstm_step(params["support"][direction]["OptimizedLSTMCell_0"], support[place], hidden, cell)
            expected[place] += hidden
    given = jax.jit(context.support)(params, jnp.asarray(support, jnp.float32), jnp.ones(4))
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)

    hidden = cell = np.zeros([2, size])
    for _ in range(reads):
        votes = np.exp(hidden @ expected.T)
        read = votes / votes.sum(1, keepdims=True) @ expected
        inputs = np.concatenate([queries, read], 1)
        output, cell = lstm_step(params["query"]["OptimizedLSTMCell_0"], inputs, hidden, cell)
        hidden = output + queries
    found = jax.jit(context.query)(params, jnp.asarray(queries, jnp.float32), given, jnp.ones(4))
    np.testing.assert_allclose(found, hidden, rtol=1e-4, atol=1e-5)


def test_full_context_reads_the_support_set_in_order():
    learner, params, episode = learner_and_episode("matching-fce")
    turned = jax.tree.map(lambda leaf: leaf[::-1], episode.support)
    one, other = (
        jax.jit(lambda support: learner.predict(learner.adapt(params, {}, support, KEY), episode.query, KEY))(support)
        for support in (episode.support, turned)
    )
    assert np.abs(one - other)[:, [0, 1, 3]].max() > 1e-3


def normalised(hidden, params):
    """Normalise each pair by itself, then rectify."""
    axes = tuple(range(1, hidden.ndim))
    centred = hidden - hidden.mean(axes, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + 1e-5)
    return np.maximum(scaled * params["scale"] + params["bias"], 0)


def pooled(hidden):
    height, width = hidden.shape[1] // 2 * 2, hidden.shape[2] // 2 * 2
    squares = hidden[:, :height, :width].reshape(-1, height // 2, 2, width // 2, 2, hidden.shape[-1])
    return squares.max((2, 4))


@pytest.mark.parametrize("maps", [True, False])
def test_relation_module_equals_the_one_of_maps_laid_over_each_other(maps):
    rng = np.random.default_rng(2)
    shape = (5, 5, 2) if maps else (2,)
    classes, queries = (jnp.asarray(rng.normal(size=[number, *shape]), jnp.float32) for number in (2, 3))
    init, compare = relation_module(filters=4, hidden=3)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + np.float32(0.3) * rng.normal(size=leaf.shape).astype(np.float32),
        jax.jit(init)(KEY, queries),
    )
    of_class, of_query, second = (params[name] for name in ("first_of_class", "first_of_query", "second"))

    def layer(hidden, kernel, bias):
        return np.asarray(conv2d(jnp.asarray(hidden), kernel) if maps else hidden @ kernel) + bias

    pairs = np.stack([np.concatenate([one, other], -1) for other in queries for one in classes])
    kernel = np.concatenate([of_class["kernel"], of_query["kernel"]], -2)
    hidden = normalised(layer(pairs, kernel, of_query["bias"]), params["GroupNorm_0"])
    hidden = pooled(hidden) if maps else hidden
    hidden = normalised(layer(hidden.astype(np.float32), second["kernel"], second["bias"]), params["GroupNorm_1"])
    hidden = (pooled(hidden) if maps else hidden).reshape(6, -1)
    hidden = np.maximum(hidden @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    expected = (hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]).reshape(3, 2)
    np.testing.assert_allclose(jax.jit(compare)(params, classes, queries), expected, rtol=1e-3, atol=1e-4)


def test_relation_loss_in_numpy():
    learner, params, episode = learner_and_episode("relation")
    support, query = episode
    _, compare = relation_module(filters=4, hidden=3)
    # The two examples of class 1 are added up.
    sums = jnp.stack([support.inputs[0], support.inputs[1] + support.inputs[2], support.inputs[3]])
    scores = sigmoid(np.asarray(jax.jit(compare)(params["head"], sums, query.inputs)))
    loss, (_, metrics) = jax.jit(learner.loss)(params, {}, episode, KEY, 0)
    np.testing.assert_allclose(loss, np.square(scores - np.eye(3)).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (scores.argmax(1) == np.arange(3)).mean())


def test_siamese_loss_and_pair_weights_in_numpy():
    learner, params, (support, query) = learner_and_episode("siamese")
    query = query._replace(weights=jnp.array([1.0, 1.0, 0.0]))
    loss = jax.jit(learner.loss)(params, {}, Episode(support, query), KEY, 0)[0]
    alpha, losses = np.asarray(params["head"]["alpha"]), {True: [], False: []}
    for image, target in zip(query.inputs[:2], query.targets[:2], strict=True):
        for other, other_target in zip(support.inputs, support.targets, strict=True):
            same = bool(target == other_target)
            p = sigmoid(np.abs(image - other) @ alpha)
            losses[same].append(-np.log(p if same else 1 - p))
    # Three pairs of one class, five of two.
    assert len(losses[True]) == 3 and len(losses[False]) == 5
    np.testing.assert_allclose(loss, 0.5 * np.mean(losses[True]) + 0.5 * np.mean(losses[False]), rtol=1e-5)

    same = query.targets[:, None] == support.targets
    weights = pair_weights(same, query.weights[:, None] * support.weights)
    np.testing.assert_allclose(weights[:2], np.where(same[:2], 0.5 / 3, 0.5 / 5), rtol=1e-6)
    assert (weights[2] == 0).all()


def test_siamese_refuses_tasks_without_a_pair_of_one_class():
    learner, params, episode = learner_and_episode("siamese")
    nothing = jax.tree.map(lambda leaf: leaf[:0], episode.query)
    with pytest.raises(ValueError, match="given 4 support and 0 query images.* one image only, make a second"):
        jax.jit(learner.loss)(params, {}, Episode(episode.support, nothing), KEY, 0)
    other = episode.query._replace(targets=jnp.array([2, 2, 2]))
    with pytest.raises(ValueError, match=r"support classes \[0, 1, 3\] and query classes \[2\]"):
        learner.loss(params, {}, Episode(episode.support, other), KEY, 0)

    # Compiled, the targets are not known: what cannot be refused is no number, and training stops at it.
    def value(params, targets):
        return learner.loss(params, {}, episode._replace(query=other._replace(targets=targets)), KEY, 0)[0]

    loss = jax.jit(jax.value_and_grad(value))
    for targets, known in ((other.targets, False), (jnp.array([2, 2, 3]), True)):
        # Nor is its gradient a number: parameters that stayed as they are would hide it from who looks at them alone.
        assert all((np.isfinite(leaf) == known).all() for leaf in jax.tree.leaves(loss(params, targets)))


def test_siamese_refuses_a_dataset_with_a_class_of_one_image(monkeypatch):
    pool = ClassPool(np.zeros([6, 2, 28, 28, 1], np.uint8), np.array([2, 2, 2, 2, 1, 2], np.int32))
    splits, names = ("train", "validation", "test"), tuple("abcdef")
    dataset = Dataset("glyphs", "classification", dict.fromkeys(splits, pool), dict.fromkeys(splits, names))
    monkeypatch.setitem(DATASETS, "glyphs", lambda **options: dataset)
    config, given = PRESETS["glyphs-maml-5w1s"], "1 of 6 classes .* 'train' of glyphs, the first is 'e'"
    with pytest.raises(ConfigError, match=f"siamese .* {given}.* one image only, make a second one"):
        open_workspace(with_algorithm(config, "siamese"))
    # Of others it is the shots and queries that are too many.
    with pytest.raises(ConfigError, match="a class of .* has 1 images"):
        open_workspace(with_algorithm(config, "protonet"))
    assert set(NEEDS_PAIRS) <= set(ALGORITHMS)


@pytest.mark.parametrize("name", FACTORIES)
def test_regression_is_refused(name):
    with pytest.raises(ValueError, match="cannot regress"):
        FACTORIES[name](IDENTITY, ways=2, criterion=CRITERIA["regression"])


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="positive scale; given 0"):
        matching(IDENTITY, ways=2, scale=0.0)
    with pytest.raises(ValueError, match="reads"):
        matching_fce(IDENTITY, ways=2, reads=0)
    with pytest.raises(ValueError, match="halvings from 0 to 4; given 5"):
        conv4(2, halvings=5)
    small = relation(conv4(2, filters=2, maps=True, halvings=2), ways=2)
    with pytest.raises(ValueError, match=r"needs 4x4 or more; given \[2, 2\]"):
        jax.eval_shape(small.init, KEY, jnp.ones([2, 8, 8, 1]))


def test_other_learners_take_maps_as_vectors():
    _, _, (support, query) = learner_and_episode("relation-maps")
    flat = [batch._replace(inputs=batch.inputs.reshape(len(batch.targets), -1)) for batch in (support, query)]
    learner = protonet(IDENTITY, ways=4)
    np.testing.assert_array_equal(predicted(learner, support, query), predicted(learner, *flat))
    model = conv4(2, filters=3, maps=True, halvings=2)
    params, state = jax.eval_shape(model.init, KEY, support.inputs)
    features, _ = jax.eval_shape(model.embed, params, state, jnp.ones([1, 28, 21, 2]))
    assert features.shape == (1, 7, 5, 3) and flatten_dict(params["head"])[("Dense_0", "kernel")].shape == (3, 2)
