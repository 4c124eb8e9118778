"""Shared fixtures. Compiled programs are kept between runs; nothing here needs a network."""

import contextlib
import gc
import importlib.util
import os
import resource
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
# Set before JAX is imported, and inherited by the command lines that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPO / ".pytest_cache" / "compiled"))
# Also the smallest programs: what one process of tests has compiled, the others need not.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAXMETA_CACHE", str(REPO / ".pytest_cache" / "data"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests themselves are in as many processes as there are cores.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
# On a clean checkout most of the time is compilation. What is tested is our arithmetic: machine code that is not
# optimised, of fusions that are compiled the old way, takes a quarter of the time to make, and the problems here are
# small. (test_devices.py and test_sharding.py keep the new way: the old one computes padded tasks of several devices
# wrongly in jax 0.10.2.)
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
# Which line each operation came from is a fifth of the work of handing a program to XLA; what JAX says of its errors
# does not need it.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from jaxmeta import ClassPool, EpisodeSpec, TaskSource, from_linen, sample_episodes  # noqa: E402
from jaxmeta.nn import BatchNorm, Conv, max_pool_2x2  # noqa: E402


def pytest_collection_finish():
    """What was imported stays: the collector need not look through it again and again while programs are traced."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def times_compiled(name, caplog):
    """Count the programs of a jitted function that `jax.log_compiles` told of, also those read from the cache."""
    return sum(line.startswith(f"Finished XLA compilation of jit({name})") for line in caplog.messages)


class TinyBody(nn.Module):
    """One block of conv4: everything that it is made of, at a fraction of the compilation."""

    @nn.compact
    def __call__(self, inputs, train, weights=None):
        hidden = BatchNorm()(Conv(4, strides=2, use_bias=False)(inputs), train=train, weights=weights)
        return max_pool_2x2(nn.relu(hidden)).mean((1, 2))


def load_experiment(name):
    """Import a script of `experiments/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, REPO / "experiments" / f"{name}.py")
    experiment = importlib.util.module_from_spec(spec)
    # As when it is run: beside it lies what experiments share.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO / "experiments")
        spec.loader.exec_module(experiment)
    return experiment


def slowly(names, often):
    """Give the parameters of a walk: those that are run every time, and the others, marked slow."""
    assert set(often) <= set(names)
    return [pytest.param(name, marks=() if name in often else pytest.mark.slow) for name in names]


def tiny_model():
    """A three-way classifier of 16x16 images."""
    return from_linen(TinyBody(), nn.Dense(3))


class FlatBody(nn.Module):
    """A layer and a normalisation, for what is not about convolutions: a fraction of the compilation again."""

    context: bool = False

    @nn.compact
    def __call__(self, inputs, train, weights=None):
        hidden = nn.Dense(4)(inputs.reshape(inputs.shape[0], -1))
        hidden = BatchNorm()(hidden, train=train, weights=weights)
        if self.context:
            hidden = hidden + self.param("context", nn.initializers.zeros, (4,))
        return nn.relu(hidden)


def flat_model(*, context=False, outputs=3):
    """A classifier of anything, three-way if nothing else is said."""
    return from_linen(FlatBody(context), nn.Dense(outputs))


@contextlib.contextmanager
def small_files(limit):
    """Let this process write no file of more bytes, as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    jax.config.update("jax_enable_compilation_cache", False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture
def x64():
    """Compute in float64 for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it skip without it."""
    path = Path(os.environ.get("JAXMETA_SHARED", REPO.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no real data: {path / 'data'} is missing (set JAXMETA_SHARED)")
    return path


@pytest.fixture(scope="session")
def pool() -> ClassPool:
    """Twelve classes of six to ten 16x16 images: a coarse pattern for the class, noise for the image."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(20, 200, [12, 1, 4, 4, 1]).repeat(4, 2).repeat(4, 3)
    images = (patterns + rng.integers(-15, 55, [12, 10, 16, 16, 1])).astype(np.uint8)
    counts = np.arange(12, dtype=np.int32) % 5 + 6
    for images_of_class, count in zip(images, counts, strict=True):
        images_of_class[count:] = 0
    return ClassPool(images, counts)


@pytest.fixture(scope="session")
def source(pool) -> TaskSource:
    """A source of 3-way 2-shot tasks with 2 queries."""
    return TaskSource(sample_episodes, jax.tree.map(jnp.asarray, pool), EpisodeSpec(3, 2, 2))
