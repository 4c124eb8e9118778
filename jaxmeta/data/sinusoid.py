"""The regression problem of the MAML paper: sine waves of random amplitude and phase."""

import jax
import jax.numpy as jnp

from jaxmeta.base import Episode, Key, example_batch
from jaxmeta.data.episodes import EpisodeSpec, task_keys
from jaxmeta.data.pools import Dataset


def sample_sinusoids(
    key: Key, pool: tuple, spec: EpisodeSpec, num_tasks: int, *, first_task: int | jax.Array = 0
) -> Episode:
    """Draw tasks `y = A sin(x - p)`, A in [0.1, 5], p in [0, pi], x in [-5, 5], all uniform.

    Args:
      key: Source of randomness.
      pool: Unused, `()`: every task is made from the key.
      spec: `shots` support and `queries` query points; `ways` is 1.
      num_tasks: Number of tasks.
      first_task: Number of the first one.

    Returns:
      An `Episode`, inputs and targets `[num_tasks, points, 1]` float32.

    Example:
      >>> import jax
      >>> sample_sinusoids(jax.random.key(0), (), EpisodeSpec(1, 5, 10), 4).query.targets.shape
      (4, 10, 1)

    Source: Finn, Abbeel and Levine, 2017, arXiv 1703.03400, section 5.1.
    """

    def one_task(key):
        key_amplitude, key_phase, key_inputs = jax.random.split(key, 3)
        amplitude = jax.random.uniform(key_amplitude, [], minval=0.1, maxval=5.0)
        phase = jax.random.uniform(key_phase, [], minval=0.0, maxval=jnp.pi)
        inputs = jax.random.uniform(key_inputs, [spec.shots + spec.queries, 1], minval=-5.0, maxval=5.0)
        targets = amplitude * jnp.sin(inputs - phase)
        support_inputs, query_inputs = jnp.split(inputs, [spec.shots])
        support_targets, query_targets = jnp.split(targets, [spec.shots])
        return Episode(example_batch(support_inputs, support_targets), example_batch(query_inputs, query_targets))

    return jax.vmap(one_task)(task_keys(key, num_tasks, first_task=first_task))


def load_sinusoid(*, data_dir: object = None) -> Dataset:
    """Give the sinusoid problem as a `Dataset` without arrays: its tasks are unlimited.

    Args:
      data_dir: Unused; there is nothing to read.

    Returns:
      A `Dataset` of kind "regression". Training, validation and test tasks differ by their keys.

    Example:
      >>> load_sinusoid().kind
      'regression'
    """
    splits = ("train", "validation", "test")
    return Dataset("sinusoid", "regression", dict.fromkeys(splits, ()), dict.fromkeys(splits, ()))
