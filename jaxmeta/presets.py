"""Named configurations, and what a dataset or an algorithm starts from."""

import dataclasses
import math
from typing import Any

from jaxmeta.config import Config

# The query set as in MAML's code: as many images of a class as shots, in training and in evaluation.
_OMNIGLOT = Config(
    dataset="omniglot",
    norm="transductive",
    filters=64,
    queries=1,
    eval_queries=1,
    tasks=32,
    steps=4500,
    checkpoint_every=250,
)
# Finn et al. 2017: five steps of 0.01, on photographs of 84 x 84.
_TWENTY_WAY = {"ways": 20, "inner_steps": 5, "eval_inner_steps": 5, "inner_lr": 0.1, "tasks": 16}
_FIVE_SHOT = {"shots": 5, "queries": 5, "eval_queries": 5}
# MAML's setting for mini-ImageNet, for all photographs.
_PHOTOGRAPHS = Config(
    norm="transductive",
    model="conv4",
    queries=15,
    inner_steps=5,
    eval_inner_steps=10,
    inner_lr=0.01,
    outer_lr=1e-3,
    outer_schedule="constant",
    tasks=4,
    steps=60000,
    log_every=50,
    checkpoint_every=1000,
)

PRESETS = {
    "glyphs-maml-5w1s": Config(),
    "omniglot-maml-5w1s": _OMNIGLOT,
    "omniglot-maml-5w5s": dataclasses.replace(_OMNIGLOT, **_FIVE_SHOT),
    "omniglot-maml-20w1s": dataclasses.replace(_OMNIGLOT, **_TWENTY_WAY),
    "omniglot-maml-20w5s": dataclasses.replace(_OMNIGLOT, **_TWENTY_WAY, **_FIVE_SHOT),
    # Five digits to train on, five to validate with.
    "mnist-maml-5w1s": Config(dataset="mnist", norm="transductive", filters=64),
    # Photographs of your own, as mini-ImageNet's in MAML; five images of a class do.
    "folder-maml-5w1s": Config(
        dataset="folder",
        model="conv4",
        queries=4,
        eval_queries=4,
        inner_steps=5,
        eval_inner_steps=10,
        inner_lr=0.01,
        outer_lr=1e-3,
        tasks=4,
    ),
    # Four, three and three classes.
    "cifar10-maml-3w1s": dataclasses.replace(_PHOTOGRAPHS, dataset="cifar10", ways=3),
    "cifar-fs-maml-5w1s": dataclasses.replace(_PHOTOGRAPHS, dataset="cifar_fs"),
    "fc100-maml-5w1s": dataclasses.replace(_PHOTOGRAPHS, dataset="fc100"),
    "cub-maml-5w1s": dataclasses.replace(_PHOTOGRAPHS, dataset="cub"),
    "vgg-flowers-maml-5w1s": dataclasses.replace(_PHOTOGRAPHS, dataset="vgg_flowers"),
    "fgvc-aircraft-maml-5w1s": dataclasses.replace(_PHOTOGRAPHS, dataset="fgvc_aircraft"),
    "mini-imagenet-maml-5w1s": dataclasses.replace(_PHOTOGRAPHS, dataset="mini_imagenet"),
    "mini-imagenet-maml-5w5s": dataclasses.replace(_PHOTOGRAPHS, dataset="mini_imagenet", shots=5, tasks=2),
    "tiered-imagenet-maml-5w1s": dataclasses.replace(_PHOTOGRAPHS, dataset="tiered_imagenet"),
    "quickdraw-maml-5w1s": Config(dataset="quickdraw", filters=64),
    # Of many people there are two images.
    "faces-maml-5w1s": Config(dataset="faces", model="conv4", queries=1, eval_queries=1),
    "sinusoid-maml": Config(
        dataset="sinusoid",
        model="mlp",
        ways=1,
        shots=5,
        queries=10,
        eval_queries=100,
        inner_lr=0.01,
        eval_inner_steps=1,
        outer_lr=1e-3,
        tasks=25,
        steps=70000,
        log_every=500,
        checkpoint_every=5000,
    ),
}

# What `--dataset NAME` alone starts from.
DEFAULT_PRESETS = {
    "glyphs": "glyphs-maml-5w1s",
    "omniglot": "omniglot-maml-5w1s",
    "mnist": "mnist-maml-5w1s",
    "cifar10": "cifar10-maml-3w1s",
    "cifar_fs": "cifar-fs-maml-5w1s",
    "fc100": "fc100-maml-5w1s",
    "cub": "cub-maml-5w1s",
    "vgg_flowers": "vgg-flowers-maml-5w1s",
    "fgvc_aircraft": "fgvc-aircraft-maml-5w1s",
    "mini_imagenet": "mini-imagenet-maml-5w1s",
    "tiered_imagenet": "tiered-imagenet-maml-5w1s",
    "quickdraw": "quickdraw-maml-5w1s",
    "faces": "faces-maml-5w1s",
    "sinusoid": "sinusoid-maml",
    "folder": "folder-maml-5w1s",
}

# Where a class has no more than this, and where it may have less than any number.
IMAGES_OF_A_CLASS = {"glyphs": 20, "omniglot": 20}
UNEVEN = ("faces", "folder")

_NO_LOOP = {"inner_steps": 0, "eval_inner_steps": 0}
# A head on features: one query image is not seen through the others, whatever MAML's setting for the dataset.
_HEAD = {**_NO_LOOP, "norm": "inductive", "queries": 5}
# A head on frozen features; a hundred steps are what the paper's passes through a support set come to. A step of
# training is on 160 images, in two batches for the statistics of normalisation.
_PROBE = {"inner_optimizer": "momentum", "inner_lr": 0.01, "inner_steps": 100, "eval_inner_steps": 100}
_PRETRAINED = {**_PROBE, "norm": "running", "queries": 15, "tasks": 2}

# What `--algorithm NAME` changes in the preset of the dataset: what the algorithm cannot do without, or is known by.
# All else stays as the dataset's preset has it for MAML; a paper's setting as a whole is in its file in `experiments/`.
ALGORITHM_DEFAULTS: dict[str, dict[str, Any]] = {
    "maml": {},
    "fomaml": {},
    # Damped: after 1200 tasks of Omniglot the loss of a new network is 1.20, and 1.36 without.
    "imaml": {"proximal": 2.0, "damping": 10.0, "inner_steps": 16, "eval_inner_steps": 16, "inner_lr": 0.1},
    "reptile": {
        "inner_optimizer": "adam-no-momentum",
        "inner_lr": 1e-3,
        "inner_steps": 5,
        "eval_inner_steps": 50,
        "queries": 9,
        "outer_optimizer": "sgd",
        "outer_lr": 1.0,
        "outer_schedule": "linear",
    },
    "meta-sgd": {},
    "anil": {"inner_steps": 5, "eval_inner_steps": 5, "inner_lr": 0.1},
    "boil": {},
    "cavia": {"inner_lr": 1.0, "context": 100, "inner_steps": 2, "eval_inner_steps": 2},
    "maml++": {"inner_steps": 5, "eval_inner_steps": 5, "inner_lr": 0.1, "keep_best": 5},
    "meta-curvature": {},
    "protonet": _HEAD,
    "matching": _HEAD,
    "matching-fce": _HEAD,
    "relation": {**_HEAD, "model": "conv4-maps"},
    "siamese": _HEAD,
    # Nothing is learned: a step is there to make a run of it.
    "nearest": {**_NO_LOOP, "steps": 1},
    "scratch": {
        "norm": "inductive",
        "inner_optimizer": "adam",
        "inner_lr": 0.01,
        "inner_steps": 100,
        "eval_inner_steps": 100,
        "steps": 1,
    },
    "baseline": _PRETRAINED,
    "baseline++": _PRETRAINED,
    "r2d2": _HEAD,
    "metaoptnet": _HEAD,
    "metaoptnet-ridge": _HEAD,
    "in-context": {**_HEAD, "outer_lr": 1e-3},
    "cnp": {**_HEAD, "outer_lr": 1e-3},
}


def with_algorithm(config: Config, algorithm: str) -> Config:
    """Exchange the algorithm of a configuration, and with it what that begins with.

    Args:
      config: A preset.
      algorithm: A row of `ALGORITHMS`.

    Returns:
      The configuration.

    Example:
      >>> config = with_algorithm(PRESETS["glyphs-maml-5w1s"], "protonet")
      >>> config.inner_steps, config.queries
      (0, 5)
    """
    defaults = dict(ALGORITHM_DEFAULTS[algorithm])
    if "queries" in defaults:
        # The paper's number or the dataset's, whichever is more, as far as a class has images: MAML needs one alone.
        most = IMAGES_OF_A_CLASS.get(config.dataset, math.inf) - config.shots
        wanted = max(config.queries, min(defaults["queries"], most))
        defaults["queries"] = config.queries if config.dataset in UNEVEN else int(wanted)
    return dataclasses.replace(config, algorithm=algorithm, **defaults)
