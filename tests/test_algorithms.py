"""Every row of ALGORITHMS against the interface, and MAML against its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import flat_model, tiny_model
from jaxmeta import (
    ALGORITHMS,
    CRITERIA,
    Episode,
    MetaLearner,
    anil,
    baseline,
    baseline_plus_plus,
    boil,
    cavia,
    cnp,
    example_batch,
    fomaml,
    from_function,
    imaml,
    in_context,
    maml,
    maml_plus_plus,
    matching,
    matching_fce,
    meta_curvature,
    meta_sgd,
    metaoptnet,
    metaoptnet_ridge,
    mlp,
    nearest,
    options_of,
    protonet,
    r2d2,
    relation,
    reptile,
    sample_classification,
    scratch,
    siamese,
)

SGD = {"inner_optimizer": optax.sgd(0.1), "num_steps": 2}
CASES = {
    "maml": lambda model: maml(model, **SGD),
    "fomaml": lambda model: fomaml(model, **SGD),
    "imaml": lambda model: imaml(model, **SGD),
    "reptile": lambda model: reptile(model, batch_size=4, **SGD),
    "meta-sgd": lambda model: meta_sgd(model, inner_lr=0.1, num_steps=2),
    "anil": lambda model: anil(model, **SGD),
    "boil": lambda model: boil(model, **SGD),
    "cavia": lambda model: cavia(model, **SGD),
    "maml++": lambda model: maml_plus_plus(model, num_steps=2, multi_step_until=2, first_order_until=1),
    "meta-curvature": lambda model: meta_curvature(model, inner_lr=0.1, num_steps=2),
    "protonet": lambda model: protonet(model, ways=3),
    "matching": lambda model: matching(model, ways=3),
    "matching-fce": lambda model: matching_fce(model, ways=3, reads=2),
    "relation": lambda model: relation(model, ways=3, filters=4),
    "siamese": lambda model: siamese(model, ways=3),
    "nearest": lambda model: nearest(model, ways=3),
    "scratch": lambda model: scratch(model, **SGD),
    "baseline": lambda model: baseline(model, classes=12, ways=3, norm="running", **SGD),
    "baseline++": lambda model: baseline_plus_plus(model, classes=12, ways=3, norm="running", **SGD),
    "r2d2": lambda model: r2d2(model, ways=3),
    "metaoptnet": lambda model: metaoptnet(model, ways=3),
    "metaoptnet-ridge": lambda model: metaoptnet_ridge(model, ways=3),
    "in-context": lambda model: in_context(model, ways=3, width=16, layers=2),
    "cnp": lambda model: cnp(model, ways=3, width=16),
}


def test_every_algorithm_has_a_case():
    assert set(ALGORITHMS) == set(CASES)


@pytest.fixture(scope="module")
def episode(source):
    return jax.tree.map(lambda leaf: leaf[0], source.sample(jax.random.key(3), source.pool, source.spec, 1))


@pytest.fixture(scope="module")
def batches(source):
    """As many images, with their class numbers among all of the pool."""
    drawn = sample_classification(jax.random.key(3), source.pool, source.spec, 1)
    return jax.tree.map(lambda leaf: leaf[0], drawn)


@pytest.mark.parametrize("name", CASES)
def test_interface(name, episode, batches):
    """What a learner is trained on is its own affair; all adapt to tasks."""
    learner = CASES[name](flat_model(context=name == "cavia"))
    assert isinstance(learner, MetaLearner)
    key = jax.random.key(0)
    meta_params, state = learner.init(key, episode.support.inputs)
    trained_on = batches if "classes" in options_of(ALGORITHMS[name]) else episode
    loss, (new_state, metrics) = learner.loss(meta_params, state, trained_on, key, jnp.int32(0))
    assert loss.shape == () and all(value.shape == () for value in metrics.values())
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    adapted = learner.adapt(meta_params, state, episode.support, key)
    assert learner.predict(adapted, episode.query, key).shape == (6, 3)
    jitted = jax.jit(learner.loss)(meta_params, state, trained_on, key, jnp.int32(0))[0]
    np.testing.assert_allclose(loss, jitted, rtol=1e-4)


def line_learner(**options):
    """A scalar model y = w x, whose MAML can be written by hand."""
    model = from_function(lambda key, inputs: jnp.ones(()), lambda w, inputs: w * inputs)
    return maml(model, inner_optimizer=optax.sgd(0.1), criterion=CRITERIA["regression"], **options)


def line_episode():
    x = jnp.array([[1.0], [2.0], [-1.0]])
    return Episode(example_batch(x, 3.0 * x), example_batch(2.0 * x, 6.0 * x))


def test_maml_meta_gradient_by_hand(x64):
    """loss = m (w - 3)^2 with m = mean x^2: w_1 - 3 = (1 - 2 a m) (w_0 - 3)."""
    learner, episode = line_learner(num_steps=2), line_episode()
    params, state = {"body": jnp.float64(1.0), "head": {}}, {}
    loss, grads = jax.value_and_grad(lambda p: learner.loss(p, state, episode, jax.random.key(0), 0)[0])(params)
    contraction, query_m = (1 - 2 * 0.1 * 2.0) ** 2, 8.0
    np.testing.assert_allclose(loss, query_m * (contraction * -2.0) ** 2, rtol=1e-12)
    np.testing.assert_allclose(grads["body"], 2 * query_m * contraction**2 * -2.0, rtol=1e-12)


def test_adapt_takes_another_number_of_steps():
    learner, episode = line_learner(num_steps=1), line_episode()
    params = {"body": jnp.float32(1.0), "head": {}}
    for steps, expected in ((None, 0.6), (0, 1.0), (3, 0.6**3)):
        adapted = learner.adapt(params, {}, episode.support, jax.random.key(0), num_steps=steps)
        np.testing.assert_allclose(3 - adapted.params["body"], 2 * expected, rtol=1e-5)


def predictions(norm, episode):
    learner = maml(tiny_model(), inner_optimizer=optax.sgd(0.1), norm=norm)
    key = jax.random.key(0)
    meta_params, state = learner.init(key, episode.support.inputs)
    adapted = learner.adapt(meta_params, state, episode.support, key)
    return learner.predict(adapted, episode.query, key)


def test_only_the_transductive_form_sees_other_queries(episode):
    query = episode.query
    replaced = query._replace(inputs=query.inputs.at[1:].set(1.0 - query.inputs[1:] ** 2))
    other = episode._replace(query=replaced)
    inductive = [predictions("inductive", one)[0] for one in (episode, other)]
    transductive = [predictions("transductive", one)[0] for one in (episode, other)]
    np.testing.assert_allclose(*inductive, rtol=1e-5, atol=1e-5)
    assert np.abs(transductive[0] - transductive[1]).max() > 1e-3


@pytest.mark.parametrize("norm", ["transductive", "inductive"])
def test_padding_changes_nothing(episode, norm):
    """Examples of weight 0 leave loss and gradient as they are, in both sets."""

    def padded(batch):
        extra = batch._replace(inputs=batch.inputs[:2] * 7.0, targets=batch.targets[:2], weights=jnp.zeros(2))
        return jax.tree.map(lambda one, two: jnp.concatenate([one, two]), batch, extra)

    learner = maml(tiny_model(), inner_optimizer=optax.sgd(0.1), norm=norm)
    key = jax.random.key(0)
    meta_params, state = learner.init(key, episode.support.inputs)
    gradient = jax.jit(jax.value_and_grad(lambda p, e: learner.loss(p, state, e, key, 0)[0]))
    loss, grads = gradient(meta_params, episode)
    padded_loss, padded_grads = gradient(meta_params, Episode(*map(padded, episode)))
    np.testing.assert_allclose(loss, padded_loss, rtol=1e-4)
    assert optax.tree.norm(optax.tree.sub(grads, padded_grads)) < 1e-3 * optax.tree.norm(grads)


def test_refuses_an_unknown_norm():
    with pytest.raises(ValueError, match="given 'batch'"):
        maml(mlp(1), inner_optimizer=optax.sgd(0.1), norm="batch")
