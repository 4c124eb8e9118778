"""Means and intervals over tasks, and evaluation on tasks that do not depend on how it is run."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import flat_model
from jaxmeta import (
    CRITERIA,
    Criterion,
    accuracy,
    estimate,
    evaluate,
    init_population,
    load_sinusoid,
    make_evaluator,
    make_mesh,
    make_population_evaluator,
    maml,
    members,
    mlp,
    task_source,
)
from jaxmeta.data import EpisodeSpec

# The package gives a function of this name.
evaluate_module = sys.modules["jaxmeta.evaluate"]


def test_interval_by_hand():
    """Mean 2, s = 1, n = 3, t_{0.975, 2} = 4.3027."""
    result = estimate([1.0, 2.0, 3.0])
    assert result.mean == 2.0
    np.testing.assert_allclose(result.ci95, 4.3027 / np.sqrt(3), rtol=1e-4)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Skewed per-task accuracies, as real ones are: k of 15 queries right with a Beta-distributed chance."""
    rng, truth, covered, rounds = np.random.default_rng(0), 9 / 10, 0, 2000
    for _ in range(rounds):
        per_task = rng.binomial(15, rng.beta(9, 1, size=200)) / 15
        result = estimate(per_task)
        covered += abs(result.mean - truth) <= result.ci95
    # 0.95 within four standard errors of the simulation (0.0049 each).
    assert abs(covered / rounds - 0.95) < 4 * 0.0049


def test_refuses_no_tasks():
    with pytest.raises(ValueError, match=r"given shape \[0\]"):
        estimate([])


@pytest.fixture
def chunks_drawn(monkeypatch):
    """How many tasks each chunk that was prepared for had."""
    drawn, pools_of_tasks = [], evaluate_module.feed.pools_of_tasks

    def pools(*args, num_tasks, **options):
        drawn.append(num_tasks)
        return pools_of_tasks(*args, num_tasks=num_tasks, **options)

    monkeypatch.setattr(evaluate_module.feed, "pools_of_tasks", pools)
    return drawn


@pytest.mark.parametrize("on_mesh", [False, True])
def test_fewer_tasks_are_judged_at_once_where_more_do_not_fit(chunks_drawn, on_mesh, caplog):
    """A thousand queries a task, where training had ten: the same numbers, in less memory; compiled once."""
    learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
    meta_params, state = learner.init(jax.random.key(0), jnp.ones([5, 1]))
    source = task_source(load_sinusoid(), "test", EpisodeSpec(1, 5, 1000))
    mesh = make_mesh(1) if on_mesh else None

    def judged(memory_mib):
        chunks_drawn.clear()
        options = {"num_steps": 2, "task_chunk": 32, "mesh": mesh, "memory_mib": memory_mib}
        evaluator = make_evaluator(learner, CRITERIA["regression"], **options)
        result = evaluator(meta_params, state, source, jax.random.key(1), 40)
        tried = list(chunks_drawn)
        again = evaluator(meta_params, state, source, jax.random.key(1), 40)
        np.testing.assert_array_equal(result.metrics["mse"].per_task, again.metrics["mse"].per_task)
        assert chunks_drawn[len(tried) :] == tried[-1:]
        return result.metrics["mse"].per_task, tried

    with jax.log_compiles():
        freely, sizes = judged(1000)
    assert sizes == [32, 32]  # Compiled, and judged.
    compiled = [line for line in caplog.messages if re.match(r"Finished XLA compilation of jit\(judge", line)]
    assert len(compiled) == 1, compiled
    tightly, sizes = judged(3)
    assert sizes[:2] == [32, 16] and sizes[-1] < 16
    np.testing.assert_allclose(tightly, freely, rtol=1e-4)


def test_a_process_may_judge_alone(monkeypatch):
    """Without a mesh nothing waits for the other processes."""
    monkeypatch.setattr("jaxmeta.processes.from_first", lambda make: pytest.fail("all processes were asked"))
    learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
    meta_params, state = learner.init(jax.random.key(0), jnp.ones([5, 1]))
    source, criterion = task_source(load_sinusoid(), "test", EpisodeSpec(1, 5, 5)), CRITERIA["regression"]
    assert (
        evaluate(learner, meta_params, state, source, jax.random.key(1), criterion=criterion, num_tasks=3).num_tasks
        == 3
    )


def test_a_judgement_that_cannot_fit_is_warned_of():
    learner = maml(mlp(1), inner_optimizer=optax.sgd(0.01), criterion=CRITERIA["regression"])
    meta_params, state = learner.init(jax.random.key(0), jnp.ones([5, 1]))
    source = task_source(load_sinusoid(), "test", EpisodeSpec(1, 5, 10_000))
    evaluator = make_evaluator(learner, CRITERIA["regression"], task_chunk=2, memory_mib=1)
    with pytest.warns(UserWarning, match=r"Judging needs \d+ MiB on each device even with one task at once, and 1 MiB"):
        assert evaluator(meta_params, state, source, jax.random.key(1), 3).num_tasks == 3


def test_who_is_judged_sees_no_labels(source):
    """A learner that gives back the labels that it is handed is right by chance."""
    learner = maml(flat_model(), inner_optimizer=optax.sgd(0.1))
    cheat = learner._replace(predict=lambda adapted, batch, key: jax.nn.one_hot(batch.targets, 3))
    meta_params, state = learner.init(jax.random.key(0), jnp.ones([2, 16, 16, 1]))
    options = {"criterion": CRITERIA["classification"], "num_tasks": 4}
    result = evaluate(cheat, meta_params, state, source, jax.random.key(1), **options)
    np.testing.assert_allclose(result.metrics["accuracy"].mean, 1 / 3, rtol=1e-6)


def test_more_classes_than_outputs_are_refused(source):
    """A share of the tasks would be wrong whatever is predicted, and nothing would say so."""
    learner = maml(flat_model(outputs=2), inner_optimizer=optax.sgd(0.1))
    meta_params, state = learner.init(jax.random.key(0), jnp.ones([2, 16, 16, 1]))
    options = {"criterion": CRITERIA["classification"], "num_tasks": 4, "num_steps": 0}
    with pytest.raises(ValueError, match="Tasks have 3 classes, and the learner predicts 2"):
        evaluate(learner, meta_params, state, source, jax.random.key(1), **options)
    # Another criterion may read fewer outputs as it likes.
    sums = Criterion(CRITERIA["classification"].loss, {"sum": lambda outputs, targets, weights: outputs.sum()})
    assert (
        evaluate(learner, meta_params, state, source, jax.random.key(1), **options | {"criterion": sums}).num_tasks == 4
    )
    everyone = members([0])
    states = init_population(everyone, lambda _: learner, optax.sgd(0.1), source, num_tasks=2)
    evaluator = make_population_evaluator(lambda _: learner, CRITERIA["classification"], num_steps=0)
    with pytest.raises(ValueError, match="Tasks have 3 classes, and the learner predicts 2"):
        evaluator(everyone, states, source, jax.random.key(1), 4)


def test_same_tasks_whatever_the_chunk(source):
    learner, criterion = maml(flat_model(), inner_optimizer=optax.sgd(0.1)), CRITERIA["classification"]
    meta_params, state = learner.init(jax.random.key(0), jnp.ones([2, 16, 16, 1]))
    results = [
        evaluate(
            learner,
            meta_params,
            state,
            source,
            jax.random.key(1),
            criterion=criterion,
            num_tasks=10,
            num_steps=2,
            task_chunk=chunk,
        )
        for chunk in (1, 4)
    ]
    predicted = results[1].predicted
    assert predicted.outputs.shape == (10, 6, 3) and predicted.weights.all()
    right = predicted.outputs.argmax(-1) == predicted.targets
    np.testing.assert_allclose(right.mean(1), results[1].metrics["accuracy"].per_task, rtol=1e-6)
    results = [result.metrics["loss"] for result in results]
    assert len(results[0].per_task) == len(results[1].per_task) == 10
    np.testing.assert_allclose(results[0].per_task, results[1].per_task, rtol=1e-4)
    assert np.ptp(results[0].per_task) > 0


def test_more_inner_steps_adapt_further():
    """Judged on the support set itself, where every small step of descent must help."""
    criterion = CRITERIA["regression"]
    learner = maml(mlp(1), inner_optimizer=optax.sgd(0.001), criterion=criterion)
    source = task_source(load_sinusoid(), "test", EpisodeSpec(1, 10, 10))

    def sample(*args, **options):
        episodes = source.sample(*args, **options)
        return episodes._replace(query=episodes.support)

    meta_params, state = learner.init(jax.random.key(0), jnp.ones([5, 1]))
    means = []
    for steps in (0, 1, 10):
        evaluator = make_evaluator(learner, criterion, num_steps=steps, task_chunk=50)
        result = evaluator(meta_params, state, source._replace(sample=sample), jax.random.key(1), 200)
        means.append(result.metrics["mse"].mean)
    assert means[0] > means[1] > means[2]


def test_logits_that_are_no_numbers_have_no_accuracy():
    """Whatever argmax says of them; padding says nothing, and infinite logits are numbers."""
    targets, weights = jnp.array([0, 0, 1]), jnp.array([1.0, 1.0, 0.0])
    outputs = jnp.array([[1.0, 0.0], [-jnp.inf, 0.0], [jnp.nan, 0.0]])
    assert float(accuracy(outputs, targets, weights)) == 0.5
    assert np.isnan(accuracy(outputs, targets, jnp.ones(3)))
