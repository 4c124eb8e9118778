"""Every train step is lowered for TPU and CUDA on a CPU: nothing in it is of one backend only."""

import jax
import optax
import pytest
from jax import export

import jaxmeta as jm

# Every row of two tables for two platforms is mostly compilation; `-m slow` runs it.
pytestmark = pytest.mark.slow

SOURCE = jm.task_source(jm.load_sinusoid(), "train", jm.EpisodeSpec(1, 3, 3))
OPTIMIZER = optax.adam(1e-3)
# What a strategy needs to serve the loop at all.
OPTIONS = {"implicit": {"proximal": 1.0}, "truncated": {"num_steps": 1}}


def lower(step, *arguments):
    exported = export.export(jax.jit(step), platforms=["tpu", "cuda"])(*arguments)
    assert exported.platforms == ("tpu", "cuda")


def learner_of(name="unrolled", rate=0.01):
    options = {"num_steps": 2, "metagrad": jm.METAGRADS[name](), **OPTIONS.get(name, {})}
    model, criterion = jm.mlp(1, hidden=(4,)), jm.CRITERIA["regression"]
    return jm.maml(model, inner_optimizer=jm.inner_adam(rate), criterion=criterion, **options)


def lower_step(learner, estimator):
    state = jax.eval_shape(
        lambda: jm.init_train_state(jax.random.key(0), learner, OPTIMIZER, SOURCE, num_tasks=4, estimator=estimator)
    )
    train_step = jm.make_train_step(learner, OPTIMIZER, estimator=estimator, task_chunk=2)

    def step(state, data):
        key = jax.random.wrap_key_data(data)
        return train_step(state, SOURCE.sample(key, (), SOURCE.spec, 4), key)

    lower(step, state, jax.random.key_data(jax.random.key(0)))


@pytest.mark.parametrize("name", jm.METAGRADS)
def test_every_strategy(name):
    lower_step(learner_of(name), jm.exact())


@pytest.mark.parametrize("name", jm.ESTIMATORS)
def test_every_estimator(name):
    lower_step(learner_of(), jm.ESTIMATORS[name]())


def test_a_step_of_a_population():
    """Seeds and rates as one more mapped axis, the rates traced."""

    def step(rates, data):
        def of_member(rate, data):
            key, learner = jax.random.wrap_key_data(data), learner_of(rate=rate)
            state = jm.init_train_state(key, learner, OPTIMIZER, SOURCE, num_tasks=2)
            return jm.make_train_step(learner, OPTIMIZER)(state, SOURCE.sample(key, (), SOURCE.spec, 2), key)

        return jax.vmap(of_member)(rates, data)

    keys = jax.random.split(jax.random.key(0), 2)
    lower(step, jax.numpy.array([0.1, 0.2]), jax.random.key_data(keys))
