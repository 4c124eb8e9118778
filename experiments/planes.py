"""Images under linear maps of the plane: further classes for tasks of training."""

import jax
import jax.numpy as jnp
import numpy as np

# Ends of the maps: radians, shear, and the logarithm of the scale along each axis.
MAX_TURN, MAX_SHEAR, MAX_SCALE = 0.7, 0.8, 0.44


def linear_maps(rng: np.random.Generator, number: int, *, reach: float = 1.0, turned: bool = True) -> np.ndarray:
    """Draw maps of the plane, the first of which is none.

    Args:
      rng: Source of randomness.
      number: How many.
      reach: How far they go, as a share of the ends above.
      turned: Each in all quarter turns, and mirrored: eight times as many.

    Returns:
      `[number or 8 * number, 2, 2]`.
    """
    quarter, mirror = np.array([[0, -1], [1, 0]]), np.diag([1, -1])
    square = [np.linalg.matrix_power(quarter, turns) @ side for side in (np.eye(2), mirror) for turns in range(4)]
    drawn = [np.eye(2)]
    for _ in range(number - 1):
        angle, shear, *scales = reach * rng.uniform(-1, 1, 4) * (MAX_TURN, MAX_SHEAR, MAX_SCALE, MAX_SCALE)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        drawn.append(turn @ np.array([[1, shear], [0, 1]]) @ np.diag(np.exp(scales)))
    if turned:
        drawn = [symmetry @ one for one in drawn for symmetry in square]
    return np.stack(drawn).astype(np.float32)


def mapped(images: jax.Array, plane: jax.Array) -> jax.Array:
    """Show images `[..., 28, 28]` under a linear map about their centre, interpolated, 0 outside."""
    side = images.shape[-1]
    middle = (side - 1) / 2
    places = jnp.stack(jnp.meshgrid(*[jnp.arange(side) - middle] * 2, indexing="ij"), -1) @ plane.T + middle

    def one(image):
        return jax.scipy.ndimage.map_coordinates(image, [places[..., 0], places[..., 1]], order=1)

    return jax.lax.map(one, images.reshape(-1, side, side), batch_size=600).reshape(images.shape)
