"""Several trained learners that predict together."""

import math

import jax

from jaxmeta.base import MetaLearner


def ensemble_learner(learner: MetaLearner, kind: str) -> MetaLearner:
    """Let several trained learners predict together: each adapts by itself, and their predictions are averaged.

        p(y | x) = 1 / K sum_k softmax(outputs_k(x))_y;  in regression the mean of the outputs

    Args:
      learner: The algorithm, of which there are K sets of meta-parameters.
      kind: "classification" or "regression".

    Returns:
      A `MetaLearner` whose meta-parameters and state have a leading axis `[K]`. Its outputs are
      log-probabilities, so that every loss and metric of logits serves. For judging, not for training.

    Raises:
      ValueError: for another kind.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxmeta import linear, maml
      >>> learner = maml(linear(3), inner_optimizer=optax.sgd(0.1))
      >>> keys, inputs = jax.random.split(jax.random.key(0), 4), jnp.ones([2, 8])
      >>> theta, state = jax.vmap(lambda key: learner.init(key, inputs))(keys)
      >>> theta["head"]["kernel"].shape, ensemble_learner(learner, "classification").adapt is None
      ((4, 8, 3), False)

    Source: Antoniou, Edwards and Storkey, 2019, arXiv 1810.09502, section 5: the five best of validation.
    """
    if kind not in ("classification", "regression"):
        raise ValueError(f"ensemble_learner needs kind='classification' or 'regression'; given {kind!r}.")

    def adapt(meta_params, state, support, key, *, num_steps=None):
        # One after the other: as much memory as one of them, and the same arithmetic as alone.
        return jax.lax.map(lambda one: learner.adapt(*one, support, key, num_steps=num_steps), (meta_params, state))

    def predict(adapted, batch, key):
        outputs = jax.lax.map(lambda one: learner.predict(one, batch, key), adapted)
        if kind == "regression":
            return outputs.mean(0)
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=0) - math.log(outputs.shape[0])

    return learner._replace(adapt=adapt, predict=predict, unroll=None)
