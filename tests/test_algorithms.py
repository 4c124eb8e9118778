"""Every row of ALGORITHMS against the interface, by one program for each, and MAML against its equations."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import flat_model
from jaxmeta import (
    ALGORITHMS,
    CRITERIA,
    Batch,
    Episode,
    MetaLearner,
    Model,
    example_batch,
    from_function,
    maml,
    mlp,
    reptile,
    sample_classification,
)

REGRESSION = CRITERIA["regression"]


class Case(NamedTuple):
    """What is a fact about a row.

    Attributes:
      options: Of its factory, for tasks of three classes.
      draws: What is another with another key, the network being without noise: "loss", "adapt".
      lets_in: What is another where the network has noise.
      regression: The options that it regresses with, beside or instead of those above; None if it cannot.
      learns: Whether anything is learned across tasks.
      judged_by: What falls in training: the loss, or a metric where the loss is none of the outputs.
    """

    options: dict[str, Any]
    draws: set[str] = set()
    lets_in: set[str] = set()
    regression: dict[str, Any] | None = None
    learns: bool = True
    judged_by: str = "the loss itself"


BOTH = {"loss", "adapt"}
SGD, RATES = {"inner_optimizer": optax.sgd(0.1), "num_steps": 1}, {"inner_lr": 0.1, "num_steps": 1}
TWICE = {"num_steps": 2}
# Of sinusoids, whose slopes are steep.
SMALL, SMALL_RATES = {"inner_optimizer": optax.sgd(0.02)}, {"inner_lr": 0.02}
SMALLER = {"inner_optimizer": optax.sgd(0.01)}
WAYS = {"ways": 3}
PROBE = {"classes": 12, "ways": 3, "norm": "running", **SGD}


def by_steps(options, regression=SMALL, **facts):
    return Case(options, lets_in=BOTH, regression=regression, **facts)


def by_head(regression=None, **options):
    """Noise is for training: an embedding of a support set to adapt to has none."""
    return Case({**WAYS, **options}, lets_in={"loss"}, regression=regression)


CASES = {
    "maml": by_steps(SGD | TWICE),
    # Fewer and longer steps of first order lead nowhere, or away.
    "fomaml": by_steps(SGD, {"inner_optimizer": optax.sgd(0.005), "num_steps": 10}),
    "imaml": by_steps(SGD | TWICE, SMALLER | {"num_steps": 8}),
    "reptile": by_steps(SGD | TWICE | {"batch_size": 4}, SMALLER | {"num_steps": 5}, draws=BOTH, judged_by="loss"),
    "meta-sgd": by_steps(RATES, SMALL_RATES),
    "anil": by_steps(SGD),
    "boil": by_steps(SGD),
    "cavia": by_steps(SGD),
    "maml++": by_steps(RATES | TWICE | {"multi_step_until": 2}, SMALL_RATES),
    "meta-curvature": by_steps(RATES, SMALL_RATES),
    "protonet": by_head(),
    "matching": by_head(),
    "matching-fce": by_head(reads=1),
    "relation": by_head(filters=4),
    "siamese": by_head(),
    "nearest": Case(WAYS, learns=False),
    # Its network is made anew in each task, as it is made: without noise.
    "scratch": Case(SGD, BOTH, BOTH, {"inner_optimizer": optax.adam(0.02), "num_steps": 100}, learns=False),
    "baseline": Case(PROBE, {"adapt"}, BOTH),
    "baseline++": Case(PROBE, {"adapt"}, BOTH),
    "r2d2": by_head(regression={}),
    "metaoptnet": by_head(),
    "metaoptnet-ridge": by_head(),
    "in-context": by_head(regression={}, width=8, layers=1, heads=2),
    "cnp": by_head(regression={}, width=8),
}


def test_every_algorithm_has_a_case():
    assert set(ALGORITHMS) == set(CASES)


def noisy(model: Model) -> Model:
    """Add noise to the inputs, as strong as a number in the state says: one program is then of both networks."""

    def init(key, inputs):
        params, state = model.init(key, inputs)
        return params, {**state, "noise": jnp.zeros(())}

    def with_noise(apply):
        def noisy_apply(params, state, inputs, *, key=None, train=True, weights=None):
            if train and key is not None:
                # Of the key's own numbers: what is drawn from it would cost more to compile than the network.
                angles = (jax.random.key_data(key)[-1] % 1000) * (1.0 + jnp.arange(inputs.shape[0]))
                noise = jnp.sin(angles).reshape(-1, *[1] * (inputs.ndim - 1))
                inputs = inputs + state["noise"] * noise
            return apply(params, state, inputs, key=key, train=train, weights=weights)

        return noisy_apply

    return Model(init, with_noise(model.embed), with_noise(model.apply))


def padded_tasks(sample, source):
    """Two tasks; of the first, an image in either set is padding, so that its classes are of unequal size."""
    drawn = jax.jit(sample, static_argnums=(2, 3))(jax.random.key(3), source.pool, source.spec, 2)
    one, other = (jax.tree.map(lambda leaf, task=task: np.array(leaf[task]), drawn) for task in (0, 1))
    for batch, place in ((one.support, 1), (one.query, 5)):
        # It counts for nothing, and would change everything if it counted.
        batch.inputs[place], batch.targets[place] = 7.0 * batch.inputs[place] + 1.0, batch.targets[place - 1]
        batch.weights[place] = 0.0
    return one, other


@pytest.fixture(scope="module")
def tasks(source):
    return padded_tasks(source.sample, source)


@pytest.fixture(scope="module")
def batches(source):
    """As many images, with their class numbers among all of the pool."""
    return padded_tasks(sample_classification, source)


def unpadded(batch: Batch) -> Batch:
    return jax.tree.map(lambda leaf: leaf[batch.weights > 0], batch)


class Answer(NamedTuple):
    """What a step of training is made of, and what is predicted."""

    loss: jax.Array
    state: Any
    metrics: dict[str, jax.Array]
    grads: Any
    outputs: jax.Array | None = None


def step_of(learner):
    def run(theta, state, key, trained_on, step):
        loss = jax.value_and_grad(learner.loss, has_aux=True)
        (value, (new_state, metrics)), grads = loss(theta, state, trained_on, key, step)
        return Answer(value, new_state, metrics, grads)

    return run


def program(learner):
    """Compile all that is asked of a learner as one program: a step of training, and to adapt and to predict."""

    @jax.jit
    def run(theta, state, key, task, trained_on, step):
        adapted = learner.adapt(theta, state, task.support, key)
        outputs = learner.predict(adapted, task.query, jax.random.fold_in(key, 1))
        return step_of(learner)(theta, state, key, trained_on, step)._replace(outputs=outputs)

    return run


class Walk(NamedTuple):
    """A learner, its beginning, what it is trained on, and its program: compiled once, asked for everything."""

    case: Case
    model: Model
    learner: MetaLearner
    theta: Any
    state: Any
    tasks: tuple[Episode, Episode]
    trained_on: tuple[Episode, Episode]
    program: Any

    def run(self, *, noise=0.0, seed=0, program=None):
        """Ask for the padded task, of the network with so much noise."""
        state = self.state and {**self.state, "noise": jnp.float32(noise)}
        program = self.program if program is None else program
        return program(self.theta, state, jax.random.key(seed), self.tasks[0], self.trained_on[0], jnp.int32(0))


@pytest.fixture(scope="module", params=CASES)
def walk(request, tasks, batches):
    name, case = request.param, CASES[request.param]
    model = noisy(flat_model(context=name == "cavia"))
    learner = ALGORITHMS[name](model, **case.options)
    # Not compiled as one: what most of them draw is of the same shapes, and is compiled once for all.
    theta, state = learner.init(jax.random.key(0), tasks[0].support.inputs)
    # What a learner is trained on is its own affair; all adapt to tasks.
    trained_on = batches if "classes" in case.options else tasks
    return Walk(case, model, learner, theta, state, tasks, trained_on, program(learner))


def test_interface(walk):
    assert isinstance(walk.learner, MetaLearner)
    answer = walk.run()
    assert answer.outputs.shape == (6, 3) and answer.loss.shape == ()
    assert all(value.shape == () for value in answer.metrics.values())
    assert jax.tree.structure(answer.state) == jax.tree.structure(walk.state)


def test_compiled_and_padded_is_as_it_is(walk):
    """Classes of one image and of two, padded and compiled, against real images alone, operation by operation."""
    learner, answer, key = walk.learner, walk.run(), jax.random.key(0)
    if "batch_size" in walk.case.options:
        # What it draws depends on how many there are to draw from; all of them, whatever their number, do not.
        compared = (walk.theta, walk.state, key, walk.trained_on[0], jnp.int32(0))
        nearly = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
        jax.tree.map(nearly, answer._replace(outputs=None), step_of(learner)(*compared))
        learner = reptile(walk.model, **walk.case.options | {"batch_size": 12})
        answer = walk.run(program=program(learner))
    trained_on, (support, query) = (Episode(*map(unpadded, one[0])) for one in (walk.trained_on, walk.tasks))
    alone = step_of(learner)(walk.theta, walk.state, key, trained_on, jnp.int32(0))
    np.testing.assert_allclose(answer.loss, alone.loss, rtol=1e-4)
    # As a whole: the conjugate gradients of iMAML enlarge what rounding makes of single numbers.
    grads = (jax.tree.leaves(a.grads) for a in (answer, alone))
    one, other = (np.concatenate([np.zeros(0), *map(np.ravel, leaves)]) for leaves in grads)
    assert np.linalg.norm(one - other) <= 1e-2 * np.linalg.norm(other)
    adapted = learner.adapt(walk.theta, walk.state, support, key)
    outputs = learner.predict(adapted, query, jax.random.fold_in(key, 1))
    np.testing.assert_allclose(answer.outputs[:5], outputs, rtol=1e-3, atol=1e-4)


def test_key_is_used_where_the_case_says_so(walk):
    for noise, expected in ((0.0, walk.case.draws), (0.5, walk.case.lets_in)):
        one, again, other = (walk.run(noise=noise, seed=seed) for seed in (0, 0, 1))
        jax.tree.map(np.testing.assert_array_equal, one, again)
        changes = {"adapt": np.abs(one.outputs - other.outputs).max(), "loss": np.abs(one.loss - other.loss)}
        assert {what for what, change in changes.items() if change > 0} == expected


def test_labels_of_the_support_set_count(walk):
    """Classes numbered otherwise give other outputs; of a head that compares, the same ones in the other order."""
    task = walk.tasks[0]
    turned = task._replace(support=task.support._replace(targets=(task.support.targets + 1) % 3))
    rest = jax.random.key(0), walk.trained_on[0], jnp.int32(0)
    one, other = (walk.program(walk.theta, walk.state, rest[0], given, *rest[1:]).outputs for given in (task, turned))
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()
    compares = "ways" in walk.case.options and "classes" not in walk.case.options and walk.case.regression is None
    if compares:
        np.testing.assert_allclose(other, np.roll(one, 1, 1), rtol=1e-3, atol=1e-4)


def train(run, theta, *, steps, rate, judged_by, until=-np.inf):
    """Train by Adam on the same tasks again and again; give what each step begins with.

    It ends where the mean of five steps is below `until`.
    """
    values, first, second = [], *([np.zeros_like(leaf) for leaf in jax.tree.leaves(theta)] for _ in range(2))
    leaves, structure = jax.tree.flatten(jax.device_get(theta))
    for step in range(steps):
        answer = run(jax.tree.unflatten(structure, leaves), jnp.int32(step))
        values.append(np.mean(answer.metrics.get(judged_by, answer.loss)))
        if np.mean(values[-5:]) < until:
            break
        grads = [np.mean(leaf, 0) for leaf in jax.tree.leaves(answer.grads)]
        first = [0.9 * one + 0.1 * grad for one, grad in zip(first, grads, strict=True)]
        second = [0.99 * one + 0.01 * grad**2 for one, grad in zip(second, grads, strict=True)]
        scale = rate * np.sqrt(1 - 0.99 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        leaves = [leaf - scale * m / (np.sqrt(v) + 1e-8) for leaf, m, v in zip(leaves, first, second, strict=True)]
    return np.array(values)


def test_loss_falls_in_training(walk):
    def run(theta, step):
        answers = [
            walk.program(theta, walk.state, jax.random.key(0), walk.tasks[0], task, step) for task in walk.trained_on
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *answers)

    values = train(run, walk.theta, steps=8, rate=0.03, judged_by=walk.case.judged_by)
    assert np.isfinite(values).all()
    assert bool(jax.tree.leaves(walk.theta)) == walk.case.learns
    if walk.case.learns:
        assert values[-1] < 0.95 * values[0]


@pytest.fixture(scope="module")
def sinusoids():
    """Four tasks at the same places, so that only the values of a support set tell one from another."""
    places = jnp.linspace(-4.5, 4.0, 10)[:, None]
    tasks = [(1.0, 0.0), (2.0, 0.8), (3.0, 1.6), (4.0, 2.4)]
    support, query = (
        [example_batch(at, amplitude * jnp.sin(at - phase)) for amplitude, phase in tasks]
        for at in (places, places + 0.45)
    )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(Episode, support, query))


@pytest.mark.parametrize("name", CASES)
def test_sinusoids_are_learned_or_refused(name, sinusoids):
    case, factory = CASES[name], ALGORITHMS[name]
    options = {**case.options, "criterion": REGRESSION} | ({"ways": 1} if "ways" in case.options else {})
    model = mlp(1, hidden=(16,), context=3 if name == "cavia" else 0)
    if case.regression is None:
        with pytest.raises(ValueError, match="cannot regress. Use maml and its kin, r2d2, in-context or cnp"):
            factory(model, **options)
        return
    learner, key = factory(model, **options | case.regression), jax.random.key(0)
    theta, state = learner.init(key, sinusoids.support.inputs[0])
    gradient = jax.jit(jax.vmap(step_of(learner), (None, None, None, 0, None)))
    # What says the same of every task, whatever its support set, is wrong by their variance at least.
    least = 0.95 * np.var(sinusoids.query.targets, 0).mean()
    steps = 1000 if case.learns else 1
    values = train(
        lambda theta, step: gradient(theta, state, key, sinusoids, step),
        theta,
        **{"steps": steps, "rate": 0.02, "judged_by": "mse", "until": least},
    )
    assert np.isfinite(values).all() and values[-5:].mean() < least
    task = jax.tree.map(lambda leaf: leaf[0], sinusoids)
    adapted = jax.eval_shape(learner.adapt, theta, state, task.support, key)
    assert jax.eval_shape(learner.predict, adapted, task.query, key).shape == (10, 1)


@pytest.fixture(scope="module")
def episode(source):
    drawn = jax.jit(source.sample, static_argnums=(2, 3))(jax.random.key(3), source.pool, source.spec, 1)
    return jax.tree.map(lambda leaf: leaf[0], drawn)


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


def test_padding_changes_no_gradient(episode):
    """Examples of weight 0 leave loss and gradient as they are, in both sets, whose statistics are the support's."""

    def padded(batch):
        extra = batch._replace(inputs=batch.inputs[:2] * 7.0, targets=batch.targets[:2], weights=jnp.zeros(2))
        return jax.tree.map(lambda one, two: jnp.concatenate([one, two]), batch, extra)

    learner = maml(flat_model(), inner_optimizer=optax.sgd(0.1), norm="inductive")
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
