"""The networks in plain Flax: `flax.linen.Conv`, `BatchNorm`, `max_pool`, named as jaxmeta's are."""

import flax.linen as nn
import jax
import jax.numpy as jnp

HEADS = 4


def normalised(hidden):
    return nn.BatchNorm(use_running_average=False, epsilon=1e-5, param_dtype=hidden.dtype)(hidden)


class Mlp(nn.Module):
    size: int

    @nn.compact
    def __call__(self, inputs):
        for _ in range(2):
            inputs = nn.relu(nn.Dense(self.size)(inputs))
        return inputs


class Conv4(nn.Module):
    size: int

    @nn.compact
    def __call__(self, images):
        for _ in range(4):
            images = nn.relu(normalised(nn.Conv(self.size, (3, 3))(images)))
            images = nn.max_pool(images, (2, 2), strides=(2, 2))
        return images.reshape(images.shape[0], -1)


class ResidualBlock(nn.Module):
    filters: int

    @nn.compact
    def __call__(self, images):
        hidden = nn.leaky_relu(normalised(nn.Conv(self.filters, (3, 3), use_bias=False)(images)), 0.1)
        hidden = nn.leaky_relu(normalised(nn.Conv(self.filters, (3, 3), use_bias=False)(hidden)), 0.1)
        hidden = normalised(nn.Conv(self.filters, (3, 3), use_bias=False)(hidden))
        shortcut = normalised(nn.Conv(self.filters, (1, 1), use_bias=False)(images))
        return nn.max_pool(nn.leaky_relu(hidden + shortcut, 0.1), (2, 2), strides=(2, 2))


class ResNet12(nn.Module):
    size: int

    @nn.compact
    def __call__(self, images):
        for filters in (self.size, self.size * 5 // 2, self.size * 5, self.size * 10):
            images = ResidualBlock(filters)(images)
        return images.mean((1, 2))


def transformer(params, inputs):
    """Of plain arrays, the layers in a Python loop."""

    def normalise(hidden):
        centred = hidden - hidden.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    hidden = inputs @ params["embed"] + params["position"]
    examples, length, width = hidden.shape
    for layer in range(params["mix"].shape[0]):
        projected = (normalise(hidden) @ params["project"][layer]).reshape(examples, length, HEADS, -1)
        query, key, value = jnp.split(projected, 3, axis=-1)
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / (width // HEADS) ** 0.5
        attended = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
        hidden = hidden + attended.reshape(hidden.shape) @ params["mix"][layer]
        hidden = hidden + jax.nn.gelu(normalise(hidden) @ params["up"][layer]) @ params["down"][layer]
    return normalise(hidden).mean(1) @ params["output"]


def rounded(leaf):
    """In bfloat16, but not what a check computes in float64."""
    return leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf


BODIES = {"mlp": Mlp, "conv4": Conv4, "resnet12": ResNet12}


def make_apply(load, precision="float32"):
    """`params, inputs -> outputs` of a load's network, with the statistics of the batch."""

    def apply(params, inputs):
        if precision == "bfloat16":
            params, inputs = jax.tree.map(rounded, (params, inputs))
        outputs = network(params, inputs)
        return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))

    def network(params, inputs):
        if load.network == "transformer":
            return transformer(params["body"], inputs)
        # The statistics are made anew in every call, and thrown away.
        features, _ = BODIES[load.network](load.size).apply({"params": params["body"]}, inputs, mutable=["batch_stats"])
        return features @ params["head"]["kernel"] + params["head"]["bias"]

    return apply
