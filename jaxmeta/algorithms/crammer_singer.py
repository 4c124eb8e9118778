"""The support vector machine of Crammer and Singer as a differentiable function of its examples.

    min_alpha  1/2 sum_k |sum_n alpha_nk f_n|^2 - sum_n alpha_{n, y_n}
    subject to alpha_nk <= C [k = y_n],  sum_k alpha_nk = 0;   w_k = sum_n alpha_nk f_n

A quadratic programme, solved by interior points (qpax). Which bounds are met at its solution is then
fixed, and what is left is a linear system: solving that again, in a form that can be differentiated,
gives the solution to machine precision and its derivative by the implicit function theorem.

Crammer and Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector
Machines", 2001; Amos and Kolter, "OptNet", 2017, arXiv 1703.00443.
"""

import jax
import jax.numpy as jnp

from jaxmeta.algorithms.adapted import class_weights, present_classes, values_of
from jaxmeta.base import Batch

# Interior points need about 10 steps in float64. In float32 they never fall below qpax's own tolerance, and all
# are taken; 15 still miss the solution where C |f|^2 is in the thousands.
SOLVER_STEPS = 20


def svm_weights(support: Batch, ways: int, regularization: float) -> jax.Array:
    """Train a support vector machine: `1/2 sum_k |w_k|^2 + C sum_n max_k (1 - [k = y_n] - (w_{y_n} - w_k) . f_n)`.

    Args:
      support: Features `[examples, features]`, class numbers, and weights: C of an example is multiplied by its own.
      ways: Number of classes; one without an example takes no part, and its w_k is 0.
      regularization: C.

    Returns:
      The w_k as columns, `[features, ways]`.

    Raises:
      ImportError: without the library qpax.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmeta import example_batch
      >>> support = example_batch(jnp.array([[1.0], [-1.0]]), jnp.array([0, 1]))
      >>> svm_weights(support, 2, 1.0).round(2).tolist()  # the margin (w_0 - w_1) f is 1
      [[0.5, -0.5]]

    Source: Crammer and Singer, 2001; Lee et al., 2019, arXiv 1904.03758.
    """
    features, weights, dtype = support.inputs, support.weights, support.inputs.dtype
    examples, size = features.shape[0], features.shape[0] * ways
    present = present_classes(support, ways)
    present = present | ~present.any()
    # The numbers of padding and of absent classes are kept out of the sums, and their bounds are loose: they end
    # as zeros well inside, where bounds of zero on both sides would leave interior points no interior.
    real = (weights[:, None] > 0) & present
    # On a GPU, products are else of TF32: coarser than the least eigenvalue.
    with jax.default_matmul_precision("highest"):
        gram = features @ features.T
        largest = jax.lax.stop_gradient(jnp.max(jnp.diag(gram) * (weights > 0)))
        largest = jnp.maximum(largest, 1e-12)
        # Solve for x = alpha / unit, of order 1, and divide what is minimised so that its quadratic part is too.
        unit = jnp.minimum(regularization, 1 / largest)
        products = jnp.where(real[:, None] & real[None], gram[:, :, None] / largest, 0)
        quadratic = jnp.einsum("nmk,kl->nkml", products, jnp.eye(ways, dtype=dtype)).reshape(size, size)
        # Positive definite also where there are more examples than features.
        ridge = jnp.finfo(dtype).eps ** (2 / 3)
        quadratic += jnp.diag(jnp.where(real, ridge, 1).ravel().astype(dtype))
        linear = jnp.where(real, values_of(support, ways) / (unit * largest), 0).ravel()
        bounds = jnp.where(real, regularization / unit * class_weights(support, ways), 1).ravel().astype(dtype)
        sums = jnp.kron(jnp.eye(examples, dtype=dtype), present.astype(dtype)[None])
        alpha = unit * _solve(quadratic, linear, sums, bounds, examples).reshape(examples, ways)
        return features.T @ jnp.where(real, alpha, 0)


def _solve(quadratic, linear, sums, bounds, examples):
    """Minimise `1/2 x Q x - l x` subject to `A x = 0, x <= h`."""
    size = linear.shape[0]
    zeros, identity = jnp.zeros(examples, linear.dtype), jnp.eye(size, dtype=linear.dtype)
    tolerance = 1e-5 if linear.dtype == jnp.float32 else 1e-8
    problem = jax.lax.stop_gradient((quadratic, -linear, sums, zeros, identity, bounds))
    _, slack, dual, *_ = quadratic_solver()(*problem, solver_tol=tolerance, max_iter=SOLVER_STEPS)
    slack, dual = slack.reshape(examples, -1), dual.reshape(examples, -1)
    # Were all bounds of an example met, its sum could not be zero: at least the loosest is not.
    free = ((dual <= slack) | (slack == slack.max(1, keepdims=True))).ravel()
    stationary = jnp.concatenate([quadratic, sums.T], 1)  # Q x + A^T nu = l
    at_bound = jnp.eye(size, size + examples, dtype=linear.dtype)  # x = h
    balanced = jnp.pad(sums, [(0, 0), (0, examples)])  # A x = 0
    matrix = jnp.concatenate([jnp.where(free[:, None], stationary, at_bound), balanced])
    right = jnp.concatenate([jnp.where(free, linear, bounds), zeros])
    return jnp.linalg.solve(matrix, right)[:size]


def quadratic_solver():
    """Import the solver: `(Q, q, A, b, G, h)` of `min 1/2 x Q x + q x, A x = b, G x <= h` to x, slack, dual, ...

    Raises:
      ImportError: says how to install it.
    """
    try:
        from qpax import solve_qp
    except ImportError as error:
        raise ImportError(
            "metaoptnet solves a quadratic programme with qpax, which is missing: pip install qpax."
        ) from error
    return solve_qp
