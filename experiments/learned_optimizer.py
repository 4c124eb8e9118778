"""A learned optimiser on tasks that it was not trained on, beside Adam and SGD with tuned rates.

Paper     Metz, Maheswaranathan, Freeman, Poole and Sohl-Dickstein, 2020, arXiv 2009.11243; Andrychowicz et al., 2016,
          arXiv 1606.04474; Vicol, Metz and Sohl-Dickstein, 2021, arXiv 2112.13835 (PES). None has these tasks.
Command   python experiments/learned_optimizer.py --data-dir DIR [--seeds 3] [--full] [--out FOLDER]
"""

import argparse
import dataclasses
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import ClassPool, EpisodeSpec, TaskSource, sample_episodes
from jaxmeta.base import Episode, MetaLearner
from jaxmeta.data import DataError, load_glyphs, load_mnist
from jaxmeta.losses import cross_entropy
from jaxmeta.metagrad import METAGRADS, exact, pes, skip_diverged
from jaxmeta.metrics import estimate
from jaxmeta.train import fit, init_train_state, make_train_step
from jaxmeta.tuning import LearnedOptimizer, lstm_optimizer, mlp_optimizer, optimizer_learner, varied_mlp

WAYS = 5
CEILING = 10.0
RATES = {"SGD": np.logspace(-2, 1, 13), "momentum": np.logspace(-3, 0, 13), "Adam": np.logspace(-4, -0.5, 15)}
RIVALS = {"SGD": optax.sgd, "momentum": partial(optax.sgd, momentum=0.9), "Adam": optax.adam}


@dataclasses.dataclass(frozen=True)
class Setting:
    horizon: int = 500  # Steps of a training, in training; judged at a fifth, all and five times as many.
    unroll: int = 20
    outer_steps: int = 600
    tasks: int = 8
    pairs: int = 4
    outer_rate: float = 3e-3
    judged_tasks: int = 64
    hidden: tuple[int, ...] = (16, 16)
    units: tuple[int, ...] = (16,)
    batch_size: int = 32


def sources(data_dir: Path | None) -> dict[str, TaskSource]:
    """Load the tasks of training and those that are held out, of other classes, as images of 7x7."""
    try:
        dataset, held_out, spec = load_mnist(data_dir=data_dir), "validation", EpisodeSpec(WAYS, 60, 20)
    except DataError:
        if data_dir is not None:
            raise
        dataset, held_out, spec = load_glyphs(), "test", EpisodeSpec(WAYS, 12, 8)
    print(f"Tasks of {dataset.name}.")

    def source(split):
        images = np.asarray(dataset.splits[split].images, np.float32)
        classes, number = images.shape[:2]
        small = images.reshape(classes, number, 7, 4, 7, 4, 1).mean((3, 5)).round().astype(np.uint8)
        return TaskSource(sample_episodes, jax.device_put(ClassPool(small, dataset.splits[split].counts)), spec)

    return {"training": source("train"), "held out": source(held_out)}


def learner_of(optimizer, setting: Setting, **options) -> MetaLearner:
    options = {"num_steps": setting.unroll, "batch_size": setting.batch_size, "ceiling": CEILING} | options
    return optimizer_learner(varied_mlp(WAYS), optimizer.transform, init=optimizer.init, **options)


def curves(learner: MetaLearner, theta, episodes: Episode, key, points: int):
    """Train on each task; the loss on all its training examples and on its queries after each unroll, `[tasks, points]`."""

    def of_task(episode, key):
        key_begin, key_loop = jax.random.split(key)
        _, (inner, _, _) = learner.unroll(theta, (), None, episode, key_begin, 0, num_steps=0)

        def body(inner, _):
            _, (inner, adapted, (_, metrics)) = learner.unroll(theta, (), inner, episode, key_loop, 0)
            loss = cross_entropy(learner.predict(adapted, episode.support, key), *episode.support[1:])
            return inner, (jnp.where(loss < CEILING, loss, CEILING), metrics["validation_loss"])

        return jax.lax.scan(body, inner, length=points)[1]

    # One task after the other, their rates or weights at once.
    return jax.vmap(of_task)(episodes, jax.random.split(key, episodes.support.inputs.shape[0]))
