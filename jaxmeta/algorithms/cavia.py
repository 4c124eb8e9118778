"""CAVIA: adapt a few context parameters that the network reads, and nothing else.

    c_0 = 0;  c_{t+1} = c_t - a grad_c L_support(f(x, c_t; theta))
    theta <- theta - b grad_theta mean_tasks L_query(f(x, c_T; theta))

Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson, "Fast Context Adaptation via
Meta-Learning", 2019, arXiv 1810.03642.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from jaxmeta.algorithms.gradient import Adaptation, gradient_learner
from jaxmeta.algorithms.options import GradientOptions
from jaxmeta.base import MetaLearner, Model, PyTree


def cavia(model: Model, **options: Unpack[GradientOptions]) -> MetaLearner:
    """Make CAVIA: the inner loop moves the parameters called `context`, from zero.

    Args:
      model: A network that reads parameters called `context`, as `mlp(1, context=5)` (inputs beside
        the image's or the point's own) and `conv4(5, context=100)` (scale and shift of the channels
        of the third block) do.
      **options: See `GradientOptions`; inner_optimizer is needed, in the paper of rate 1, and num_steps is 2 if left
        out.

    Returns:
      A `MetaLearner` whose meta-parameters are those of the model.

    Raises:
      ValueError: as `maml`; at `init`, for a model without context parameters.

    Example:
      >>> import optax
      >>> from jaxmeta import CRITERIA, mlp
      >>> regression = CRITERIA["regression"]
      >>> learner = cavia(mlp(1, context=5), inner_optimizer=optax.sgd(1.0), criterion=regression)

    Source: Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson, 2019, arXiv 1810.03642.
    """
    options.setdefault("num_steps", 2)

    def init(key, inputs):
        theta, state = model.init(key, inputs)
        if not _context_of(theta):
            raise ValueError(
                "cavia needs a model with parameters called `context`, as conv4(ways, context=100) and "
                "mlp(1, context=5) have; given one without."
            )
        return theta, state

    def start(theta):
        return jax.tree.map(jnp.zeros_like, _context_of(theta))

    def params(phi, theta, index):
        def choose(path, leaf):
            return phi.get(jax.tree_util.keystr(path), leaf)

        return jax.tree_util.tree_map_with_path(choose, theta)

    return gradient_learner(model, Adaptation(init, start, params), **options)


def _context_of(theta: PyTree) -> dict[str, jax.Array]:
    """Give the context parameters by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(theta)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if _name(path[-1]) == "context"}


def _name(entry) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", "")))
