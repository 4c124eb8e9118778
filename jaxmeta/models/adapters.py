"""Adapters that lift a plain function or a Flax module to a `Model`."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxmeta.base import Model


def from_function(init: Callable[..., Any], apply: Callable[..., jax.Array]) -> Model:
    """Lift a stateless network written as two plain functions.

    Args:
      init: `(key, inputs) -> params`, any tree.
      apply: `(params, inputs) -> outputs [examples, ...]`.

    Returns:
      A `Model`; its features are its outputs and its head is empty.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = from_function(lambda key, x: jnp.zeros([x.shape[-1], 1]), lambda w, x: x @ w)
      >>> params, state = model.init(jax.random.key(0), jnp.ones([4, 3]))
      >>> outputs, _ = model.apply(params, state, jnp.ones([4, 3]))
      >>> outputs.shape
      (4, 1)
    """

    def init_model(key, inputs):
        return {"body": init(key, inputs), "head": {}}, {}

    def apply_model(params, state, inputs, *, key=None, train=True, weights=None):
        return apply(params["body"], inputs), state

    return Model(init_model, apply_model, apply_model)


def from_linen(body: nn.Module, head: nn.Module | None = None) -> Model:
    """Lift a Flax linen module, or a body with a head.

    `train` and `weights` are passed to modules whose `__call__` names them. Collections
    other than the parameters (normalisation statistics) make up the state.

    Args:
      body: Inputs to features, or to outputs if there is no head.
      head: Features to outputs.

    Returns:
      A `Model`.

    Raises:
      ValueError: in `init`, for an `nn.BatchNorm` that keeps a running mean: what a support set leaves behind are to be
        its statistics. Give it momentum=0.0, or take `jaxmeta.nn.BatchNorm`, which knows padding too.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> model = from_linen(nn.Dense(8), nn.Dense(2))
      >>> params, state = model.init(jax.random.key(0), jnp.ones([4, 3]))
      >>> features, _ = model.embed(params, state, jnp.ones([4, 3]))
      >>> features.shape
      (4, 8)
    """
    modules = {"body": body} if head is None else {"body": body, "head": head}

    def init_part(module, key, inputs):
        key_params, key_dropout = jax.random.split(key)
        keys = {"params": key_params, "dropout": key_dropout}
        with nn.intercept_methods(_without_running_means):
            outputs, variables = module.init_with_output(keys, inputs, **_options(module, True, None))
        return outputs, variables.pop("params", {}), variables

    def apply_part(name, params, state, inputs, key, train, weights):
        module = modules[name]
        variables = {"params": params[name], **state[name]}
        rngs = None if key is None else {"dropout": key}
        options = _options(module, train, weights)
        with nn.intercept_methods(_without_dropout) if key is None else contextlib.nullcontext():
            if train and state[name]:
                return module.apply(variables, inputs, rngs=rngs, mutable=list(state[name]), **options)
            return module.apply(variables, inputs, rngs=rngs, **options), state[name]

    return _compose(modules, init_part, apply_part)


def from_nnx(make_body: Callable[[nnx.Rngs], nnx.Module], make_head: Callable | None = None) -> Model:
    """Lift a Flax nnx module, or a body with a head, given by their constructors.

    Args:
      make_body: `(rngs) -> module`, inputs to features, or to outputs without a head.
      make_head: `(rngs) -> module`, features to outputs.

    Returns:
      A `Model`. Parameters are the module's `nnx.Param`; random streams start from the key of each
      call; everything else it holds is state.

    Raises:
      ValueError: for an `nnx.BatchNorm` that keeps a running mean, as `from_linen`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> model = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
      >>> params, state = model.init(jax.random.key(0), jnp.ones([4, 3]))
      >>> outputs, _ = model.apply(params, state, jnp.ones([4, 3]))
      >>> outputs.shape
      (4, 2)
    """
    makers = {"body": make_body} if make_head is None else {"body": make_body, "head": make_head}
    # Built once without arrays, for the structure that parameters are put back into.
    built = {name: nnx.eval_shape(lambda make=make: make(nnx.Rngs(0))) for name, make in makers.items()}
    for module in built.values():
        for _, part in nnx.iter_graph(module):
            if isinstance(part, nnx.BatchNorm):
                _check_momentum("nnx", part.momentum)
    blueprints = {name: nnx.split(module, nnx.Param, nnx.RngState, ...) for name, module in built.items()}

    def run(name, params, rest, inputs, key, train, weights):
        graph, param_shapes, noise_shapes, rest_shapes = blueprints[name]
        noise = _noise(nnx.to_pure_dict(noise_shapes), jax.random.key(0) if key is None else key)
        states = _restore(param_shapes, params), _restore(noise_shapes, noise), _restore(rest_shapes, rest)
        module = nnx.merge(graph, *states)
        module.train() if train else module.eval()
        if key is None:
            module.set_attributes(deterministic=True, raise_if_not_found=False)
        outputs = module(inputs, **_options(module, train, weights))
        _, _, _, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return outputs, nnx.to_pure_dict(rest)

    def init_part(name, key, inputs):
        _, params, _, rest = nnx.split(makers[name](nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
        params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
        return run(name, params, rest, inputs, key, True, None)[0], params, rest

    def apply_part(name, params, state, inputs, key, train, weights):
        outputs, rest = run(name, params[name], state[name], inputs, key, train, weights)
        return outputs, rest if train else state[name]

    return _compose({name: name for name in makers}, init_part, apply_part)


def with_flat_features(model: Model) -> Model:
    """Let a model's features be vectors: maps `[examples, ...]` are flattened, its outputs stay.

    Args:
      model: Any model.

    Returns:
      The `Model`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = with_flat_features(from_function(lambda key, x: {}, lambda params, x: x))
      >>> model.embed({"body": {}, "head": {}}, {}, jnp.ones([2, 4, 4, 3]))[0].shape
      (2, 48)
    """

    def embed(*arguments, **options):
        features, state = model.embed(*arguments, **options)
        return features.reshape(features.shape[0], -1), state

    # The head is of the features as they were.
    return model._replace(embed=embed, head=None)


def _without_dropout(call, args, kwargs, context):
    """Pass inputs through dropout layers unchanged, in a module that is asked to train without a key."""
    if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
        return args[0]
    return call(*args, **kwargs)


def _without_running_means(call, args, kwargs, context):
    """Refuse what keeps an average over calls, of which a support set would be a small part."""
    if isinstance(context.module, nn.BatchNorm):
        _check_momentum("nn", context.module.momentum)
    return call(*args, **kwargs)


def _check_momentum(whose: str, momentum: float) -> None:
    if momentum != 0:
        raise ValueError(
            f"{whose}.BatchNorm of momentum {momentum} keeps a running mean, of which a support set changes a share of "
            f"{1 - momentum:.2g}. Give it momentum=0.0, so that it keeps the statistics of its last batch, or take "
            "jaxmeta.nn.BatchNorm."
        )


def _compose(parts, init_part, apply_part) -> Model:
    """Chain a body and an optional head into a `Model`."""

    def init(key, inputs):
        params, state, outputs = {"head": {}}, {"head": {}}, inputs
        for name, part in parts.items():
            key, key_part = jax.random.split(key)
            outputs, params[name], state[name] = init_part(part, key_part, outputs)
        return params, state

    def embed(params, state, inputs, *, key=None, train=True, weights=None):
        features, body_state = apply_part("body", params, state, inputs, key, train, weights)
        return features, {**state, "body": body_state}

    def head(params, state, features, *, key=None, train=True, weights=None):
        if "head" not in parts:
            return features, state
        key = None if key is None else jax.random.fold_in(key, 1)
        outputs, head_state = apply_part("head", params, state, features, key, train, weights)
        return outputs, {**state, "head": head_state}

    def apply(params, state, inputs, *, key=None, train=True, weights=None):
        features, state = embed(params, state, inputs, key=key, train=train, weights=weights)
        return head(params, state, features, key=key, train=train, weights=weights)

    return Model(init, embed, apply, head)


def _options(module, train: bool, weights) -> dict:
    """Pick the keywords that a module's `__call__` names."""
    names = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in (("train", train), ("weights", weights)) if name in names}


def _noise(shapes, key):
    """Fill the random streams of a module from a key: a key of its own for each, its count at zero."""
    leaves, structure = jax.tree.flatten(shapes)
    filled = [
        jax.random.fold_in(key, index)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for index, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, filled)


def _restore(shapes, values):
    restored = jax.tree.map(lambda leaf: leaf, shapes)
    nnx.replace_by_pure_dict(restored, values)
    return restored
