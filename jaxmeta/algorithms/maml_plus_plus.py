"""MAML++: MAML with what makes its training stable.

    phi_{t+1} = phi_t - alpha_{layer, t} grad L_support(phi_t, gamma_t, beta_t)   learned rates, per layer and step
    loss = sum_t v_t L_query(phi_{t+1}, gamma_t, beta_t)                          multi-step loss, v annealed

with a scale gamma_t and shift beta_t of every normalisation for each step, first-order gradients
in the beginning, and a cosine schedule of the outer rate (an option of the outer optimiser). The
paper's running statistics of each step are not kept: a step normalises by the support set's own.

Antoniou, Edwards and Storkey, "How to Train Your MAML", 2019, arXiv 1810.09502.
"""

import warnings
from typing import Unpack

import jax
import jax.numpy as jnp

from jaxmeta.algorithms.gradient import Adaptation, gradient_learner
from jaxmeta.algorithms.options import StrategyOptions
from jaxmeta.base import MetaLearner, Model, PyTree
from jaxmeta.inner import inner_sgd, learning_rates
from jaxmeta.metagrad import check_count, first_order


def maml_plus_plus(
    model: Model,
    *,
    inner_lr: float = 0.1,
    multi_step_until: int = 0,
    first_order_until: int = 0,
    **options: Unpack[StrategyOptions],
) -> MetaLearner:
    """Make MAML++: learned rates and normalisations per step, multi-step loss, annealed order.

    Args:
      model: The network; all its parameters but the scales and shifts of normalisations are adapted.
        A normalisation is told by the statistics that it keeps in the state, or by having a parameter
        called `scale`, and none but it and a `bias`, as those of Flax have.
      inner_lr: What every learning rate begins with.
      multi_step_until: Outer steps over which the loss goes from the mean over inner steps to the
        last one alone; 0 begins with the last alone. The paper takes 10 of 100 epochs.
      first_order_until: Outer steps whose gradients are of first order; 50 of 100 epochs.
      **options: See `StrategyOptions`; num_steps is 5 if left out, and more steps in `adapt` go on
        with the rates of the last.

    Returns:
      A `MetaLearner` whose meta-parameters are `{"params", "rates", "norms"}`: the initialisation,
      a rate for each array `[num_steps]`, and the scales and shifts by path `[num_steps, ...]`.
      Its `init` warns of a model that keeps a state and has no scale or shift that it can tell.

    Raises:
      ValueError: as `maml`; for a number of steps below 1.

    Example:
      >>> from jaxmeta import conv4
      >>> learner = maml_plus_plus(conv4(5), num_steps=5, multi_step_until=1000, first_order_until=5000)

    Source: Antoniou, Edwards and Storkey, 2019, arXiv 1810.09502.
    """
    num_steps = options.pop("num_steps", 5)
    check_count("maml_plus_plus", "num_steps", num_steps, 1)
    check_count("maml_plus_plus", "multi_step_until", multi_step_until, 0)
    check_count("maml_plus_plus", "first_order_until", first_order_until, 0)

    def init(key, inputs):
        params, state = model.init(key, inputs)
        paths = _norm_paths(params, state)
        norms = {path: jnp.repeat(leaf[None], num_steps, axis=0) for path, leaf in _leaves(params) if path in paths}
        phi = {path: leaf for path, leaf in _leaves(params) if path not in paths}
        return {"params": params, "rates": learning_rates(phi, inner_lr, num_steps=num_steps), "norms": norms}, state

    def start(theta):
        return {path: leaf for path, leaf in _leaves(theta["params"]) if path not in theta["norms"]}

    def params(phi, theta, index):
        norms = {path: jnp.take(rows, index, axis=0, mode="clip") for path, rows in theta["norms"].items()}
        chosen = phi | norms
        return jax.tree_util.tree_map_with_path(lambda path, _: chosen[jax.tree_util.keystr(path)], theta["params"])

    def step_weights(step):
        """Give v: equal shares at first, then less and less to all but the last step."""
        done = jnp.minimum(step / multi_step_until, 1.0)
        others = (1.0 - done) / num_steps
        return jnp.full([num_steps], others).at[-1].set(1.0 - (num_steps - 1) * others)

    options["metagrad"] = options.get("metagrad")
    shared = {
        "inner_optimizer": inner_sgd(lambda theta: theta["rates"], per_step=True),
        "num_steps": num_steps,
        "step_weights": step_weights if multi_step_until else None,
    }
    adaptation = Adaptation(init, start, params)
    learner = gradient_learner(model, adaptation, **shared, **options)
    if not first_order_until:
        return learner
    early = gradient_learner(model, adaptation, **shared, **{**options, "metagrad": first_order()})

    def loss(theta, state, episode, key, step):
        return jax.lax.cond(step < first_order_until, early.loss, learner.loss, theta, state, episode, key, step)

    return learner._replace(loss=loss, unroll=None)


def _leaves(params: PyTree) -> list[tuple[str, jax.Array]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]


def _norm_paths(params: PyTree, state: PyTree) -> set[str]:
    """Find the scales and shifts of normalisations, whatever their layers are called."""
    leaves = jax.tree_util.tree_leaves_with_path
    statistics = set()
    for path, leaf in leaves(state):
        # A layer is at one path in both trees, but that linen puts the name of a collection after "body" or "head".
        statistics |= {(owner, jnp.shape(leaf)) for owner in (path[:-1], path[:1] + path[2:-1])}
    names = {}
    for path, _ in leaves(params):
        names.setdefault(path[:-1], set()).add(str(getattr(path[-1], "key", "")))
    scaled = {owner for owner, own in names.items() if "scale" in own and own <= {"scale", "bias"}}
    found = {
        jax.tree_util.keystr(path)
        for path, leaf in leaves(params)
        if path[:-1] in scaled or (path[:-1], jnp.shape(leaf)) in statistics
    }
    if jax.tree.leaves(state) and not found:
        warnings.warn(
            "maml_plus_plus finds no scale or shift of a normalisation in a model that keeps a state: none will have "
            "values for each step. Let them lie beside their statistics, at one path in the parameters and the state.",
            stacklevel=3,
        )
    return found
