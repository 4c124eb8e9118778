"""What Q-learning draws a value to: rewards that were lived through, and what is believed of the state after them.

y = r + discount Q'(s', argmax_a' Q(s', a'))                   one step, double
y = sum_{i<n} discount^i r_i + discount^n Q'(s_n, ...)         n steps
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Transition(NamedTuple):
    """One step of an environment, as it is kept."""

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    done: jax.Array
    next_observation: jax.Array


def q_target(
    reward: jax.Array,
    done: jax.Array,
    next_target: jax.Array,
    next_online: jax.Array | None = None,
    *,
    discount: float,
) -> jax.Array:
    """Compute what Q(s, a) is drawn to: `r + discount (1 - done) Q'(s', argmax_a' Q(s', a'))`.

    Args:
      reward: `[...]`.
      done: `[...]`, where nothing comes after.
      next_target: Q' of the next state, `[..., actions]`.
      next_online: Q of the next state, which chooses the action (double Q-learning); None: Q' chooses itself, the
        plain target, which overestimates where values are noisy.
      discount: What a reward one step later is worth.

    Returns:
      `[...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> float(q_target(1.0, False, jnp.array([2.0, 4.0]), jnp.array([1.0, 0.0]), discount=0.5))
      2.0

    Source: van Hasselt, Guez and Silver, 2016, arXiv 1509.06461.
    """
    chooser = next_target if next_online is None else next_online
    chosen = jnp.take_along_axis(next_target, chooser.argmax(-1)[..., None], -1)[..., 0]
    return reward + discount * jnp.where(done, 0.0, chosen)


def n_step_transition(run: Transition, discount: float) -> Transition:
    """Make one transition of n: from the first observation and action to the last next observation.

    `reward = sum_{i<n} discount^i r_i`, up to where the episode ends, which makes it done. What the policy did in
    between was right for the values it had then: older actions make n-step targets a little off, as in Rainbow.

    Args:
      run: Leaves `[..., n, ...]`, of one environment, in their order.
      discount: What a reward one step later is worth.

    Returns:
      A `Transition` without the axis of n; its next value is to be discounted by `discount^n`.

    Example:
      >>> import jax.numpy as jnp
      >>> o, a = jnp.zeros([3, 1]), jnp.zeros(3, jnp.int32)
      >>> run = Transition(o, a, jnp.array([1.0, 1.0, 8.0]), jnp.array([False, True, False]), o)
      >>> float(n_step_transition(run, 0.5).reward), bool(n_step_transition(run, 0.5).done)
      (1.5, True)
    """
    length = run.reward.shape[-1]
    ended_before = jnp.cumsum(run.done, -1) - run.done > 0
    reward = jnp.where(ended_before, 0.0, run.reward * discount ** jnp.arange(length)).sum(-1)
    # An observation has one more axis than a reward.
    return Transition(
        run.observation[..., 0, :], run.action[..., 0], reward, run.done.any(-1), run.next_observation[..., -1, :]
    )
