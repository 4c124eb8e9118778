"""A meta-network that chooses for each task from its meta-features: of feature extractors, for example."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxmeta.base import Key
from jaxmeta.tuning.warm_start import Experience


class _Network(nn.Module):
    choices: int
    hidden: Sequence[int]

    @nn.compact
    def __call__(self, features):
        for width in self.hidden:
            features = nn.tanh(nn.Dense(width)(features))
        # Nothing is preferred at first.
        return nn.Dense(self.choices, kernel_init=nn.initializers.zeros)(features)


class Switch(NamedTuple):
    """A fitted meta-network.

    Attributes:
      params: Its weights.
      mean: `[features]`, what is taken off a task's features.
      scale: `[features]`, what they are then multiplied by.
    """

    params: Any
    mean: jax.Array
    scale: jax.Array


def fit_switch(
    key: Key,
    experience: Experience,
    *,
    hidden: Sequence[int] = (16,),
    num_steps: int = 500,
    rate: float = 0.01,
    weight_decay: float = 0.01,
) -> Switch:
    """Fit a meta-network to what was tried on earlier tasks: `max mean_t sum_c softmax(z(features_t))_c score_tc`.

    Scores are taken relative to the task's mean: what matters is which choice is better, not which task is easy.

    Args:
      key: Source of randomness.
      experience: Features of tasks, and the score of each choice on each; not a number where it was not tried.
      hidden: Widths of the hidden layers.
      num_steps: Steps of Adam on all tasks.
      rate: Its learning rate.
      weight_decay: Pull of the weights towards 0, where nothing is preferred.

    Returns:
      A `Switch`.

    Raises:
      ValueError: shapes that do not fit, fewer than two choices or tasks, or (outside `jit`) features or scores that
        are infinite, and features that are no numbers.

    Example:
      >>> features = jnp.array([[-1.0], [-0.9], [0.9], [1.0]])
      >>> scores = jnp.array([[0.9, 0.5], [0.8, 0.5], [0.4, 0.7], [0.5, 0.9]])
      >>> switch = fit_switch(jax.random.key(0), Experience(features, scores))
      >>> choice_probabilities(switch, jnp.array([[-1.0], [1.0]])).argmax(-1).tolist()
      [0, 1]
    """
    features, scores = experience
    if (
        jnp.ndim(features) != 2
        or jnp.ndim(scores) != 2
        or features.shape[0] != scores.shape[0]
        or min(scores.shape) < 2
    ):
        raise ValueError(
            "fit_switch needs features [tasks, features] and scores [tasks, choices], of two tasks and two choices or "
            f"more; given {list(jnp.shape(features))} and {list(jnp.shape(scores))}."
        )
    if not isinstance(features, Tracer) and not np.isfinite(np.asarray(features)).all():
        raise ValueError("fit_switch needs features that are numbers; leave tasks out whose features are not finite.")
    if not isinstance(scores, Tracer) and np.isinf(np.asarray(scores)).any():
        raise ValueError("fit_switch needs finite scores, or NaN for a choice that was not tried; some are infinite.")
    spread = features.std(0)
    scale = jnp.where(spread > 1e-6, 1 / jnp.maximum(spread, 1e-6), 0.0)
    switch = Switch((), features.mean(0), scale)
    tried = ~jnp.isnan(scores)
    gain = jnp.where(tried, scores - jnp.nanmean(scores, 1, keepdims=True), 0.0)
    network = _Network(scores.shape[1], tuple(hidden))
    params = network.init(key, features)["params"]
    optimizer = optax.adamw(rate, weight_decay=weight_decay)

    def loss(params):
        shares = jax.nn.softmax(_logits(network, params, (features - switch.mean) * scale), -1)
        return -jnp.sum(shares * gain, -1).mean()

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)
    return switch._replace(params=params)


def choice_probabilities(switch: Switch, features: jax.Array) -> jax.Array:
    """Say how much a fitted meta-network prefers each choice: `softmax(z(features))`.

    Args:
      switch: From `fit_switch`.
      features: `[..., features]` of tasks.

    Returns:
      `[..., choices]`, each row summing to 1. Take the largest. Under `jit`, where nothing can be refused, a feature
      that is not finite counts as its mean over the tasks of the experience.

    Raises:
      ValueError: (outside `jit`) features that are not finite.

    Example:
      >>> features, scores = jnp.array([[0.0], [1.0]]), jnp.ones([2, 3])
      >>> switch = fit_switch(jax.random.key(0), Experience(features, scores))
      >>> choice_probabilities(switch, features).round(3).tolist()[0]  # all are as good
      [0.3330000042915344, 0.3330000042915344, 0.3330000042915344]
    """
    if not isinstance(features, Tracer) and not np.isfinite(np.asarray(features)).all():
        raise ValueError("choice_probabilities needs features that are numbers; those given are not all finite.")
    hidden = tuple(layer["bias"].shape[0] for layer in _layers(switch.params)[:-1])
    choices = _layers(switch.params)[-1]["bias"].shape[0]
    known = jnp.where(jnp.isfinite(features), (features - switch.mean) * switch.scale, 0.0)
    return jax.nn.softmax(_logits(_Network(choices, hidden), switch.params, known), -1)


def _logits(network: _Network, params, features: jax.Array) -> Any:
    return network.apply({"params": params}, features)


def _layers(params) -> list:
    return [params[f"Dense_{place}"] for place in range(len(params))]
