"""The benchmark: the loads are what they say, the command says what it should. Speed is never asserted."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxmeta.bench import LOADS, count_flops
from jaxmeta.bench.loads import draw_episodes, make_learner
from jaxmeta.metagrad import exact


def bench(*arguments, **options):
    command = [sys.executable, "-m", "jaxmeta", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


# Sizes at which products outweigh everything else, as in the loads themselves, and one inner step: XLA counts the
# body of a loop once. The other loads with these networks differ in numbers only.
COUNTED = [
    LOADS["A1"]._replace(size=400),
    LOADS["B"]._replace(tasks=2),
    LOADS["D"]._replace(tasks=2, num_steps=1),
    LOADS["E"]._replace(tasks=2, size=32),
    LOADS["F"]._replace(tasks=2, depth=1),
]


@pytest.mark.parametrize("load", COUNTED, ids=lambda load: load.name)
def test_flops_agree_with_xla(load):
    learner, episodes = make_learner(load), jax.eval_shape(lambda: draw_episodes(load))
    weights, state = jax.eval_shape(learner.init, jax.random.key(0), jnp.zeros([1, *load.input_shape]))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), load.tasks))

    def gradient(weights, state, episodes, keys):
        return exact().value_and_grad(learner, weights, state, (), episodes, keys, 0)[:2]

    # Of the program as it is written, before XLA makes it its own: nothing is compiled.
    counted = jax.jit(gradient).lower(weights, state, episodes, keys).cost_analysis()["flops"]
    assert counted == pytest.approx(count_flops(load), rel=0.15)
