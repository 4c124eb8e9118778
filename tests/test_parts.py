"""What a configuration is built into."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from jaxmeta import Episode, example_batch, load_glyphs
from jaxmeta.config import Config
from jaxmeta.parts import build
from jaxmeta.presets import with_algorithm

EXACT = str((jax.lax.Precision.HIGHEST,) * 2)
PRODUCTS = {"dot_general", "conv_general_dilated"}


def precisions_of(jaxpr) -> set:
    """The precisions of all products in a program."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            found.add(str(equation.params["precision"]))
        # What a convolution of ours hands on when it is lowered.
        if "static" in equation.params:
            found.add(str(equation.params["static"].precision))
        for inner in jaxprs_in_params(equation.params):
            found |= precisions_of(inner)
    return found


@pytest.mark.parametrize(("precision", "named"), [("float32", "highest"), ("tf32", "tensorfloat32")])
@pytest.mark.parametrize("algorithm", ["relation", "siamese", "matching-fce", "in-context", "cnp", "r2d2"])
def test_what_stands_on_a_model_computes_as_exactly(algorithm, precision, named):
    """On a GPU a product that says nothing is one of TF32."""
    config = with_algorithm(Config(model="mlp", precision=precision, task_chunk=1), algorithm)
    images = jnp.ones([5, 28, 28, 1])
    learner, batch, key = build(config, load_glyphs()).learner, example_batch(images, jnp.arange(5)), jax.random.key(0)
    params, state = jax.eval_shape(learner.init, key, images)

    def loss(params, state):
        return learner.loss(params, state, Episode(batch, batch), key, 0)[0]

    def logits(params, state):
        return learner.predict(learner.adapt(params, state, batch, key), batch, key)

    with jax.default_matmul_precision(named):
        (asked,) = precisions_of(jax.make_jaxpr(lambda image: image @ image.T)(images[0, :, :, 0]).jaxpr)
    for function in (jax.grad(loss), logits):
        found = precisions_of(jax.make_jaxpr(function)(params, state).jaxpr)
        # A solve and statistics are exact however short the products are.
        assert asked in found and found <= {asked, named, EXACT}
