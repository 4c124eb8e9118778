"""Values of actions by where they lead: one network judges the hyper-parameters that an action would set.

    Q(s, a) = V(o, clip(shares + move_a, 0, 1))

The moves of a `training_environment` are known; only what follows them has to be learned. An action that was never
tried is judged by others that led near.
"""

import jax
import jax.numpy as jnp

from jaxmeta.base import Model


def afterstate_values(model: Model, moves: jax.Array) -> Model:
    """Make a Q-network for a `training_environment` of a network with one output: `Q(s, a) = V(o, shares after a)`.

    Actions that lead to the same place, as those that go on beyond an end of a range, have the same value.

    Args:
      model: V, with one output: `mlp(1)`. It sees the observation with the shares, its last features, moved, and put on
        [-2, 2].
      moves: `[actions, hyper-parameters]`, from `share_moves`.

    Returns:
      A `Model` from observations `[examples, features]` to values `[examples, actions]`. Its features are V's, of
      every action: `[examples * actions, ...]`.

    Raises:
      ValueError: in `init`, observations with fewer features than there are hyper-parameters; in `apply`, a model of
        more outputs than one.

    Example:
      >>> from jaxmeta.models import mlp
      >>> from jaxmeta.tuning import share_moves
      >>> model = afterstate_values(mlp(1), share_moves(2, 10))
      >>> params, state = model.init(jax.random.key(0), jnp.ones([4, 13]))
      >>> model.apply(params, state, jnp.ones([4, 13]))[0].shape
      (4, 9)

    Source: Sutton and Barto, 2018, "Reinforcement Learning", 2nd edition, section 6.8, of afterstates.
    """
    num_actions, num_hypers = moves.shape

    def after(observations):
        if observations.shape[-1] < num_hypers:
            raise ValueError(
                f"afterstate_values moves the last {num_hypers} features of an observation; given "
                f"{observations.shape[-1]} features."
            )
        shares = jnp.clip(observations[:, None, -num_hypers:] + moves, 0, 1)
        rest = observations[:, None, :-num_hypers]
        rest = jnp.broadcast_to(rest, (*shares.shape[:2], rest.shape[-1]))
        return jnp.concatenate([rest, 4 * shares - 2], -1).reshape(-1, observations.shape[-1])

    def init(key, inputs):
        return model.init(key, after(inputs))

    def embed(params, state, inputs, **options):
        return model.embed(params, state, after(inputs), **options)

    def apply(params, state, inputs, **options):
        values, state = model.apply(params, state, after(inputs), **options)
        if values.shape[1:] != (1,):
            raise ValueError(f"afterstate_values needs a model of one output; this has {list(values.shape[1:])}.")
        return values.reshape(-1, num_actions), state

    return Model(init, embed, apply)
