"""What a meta-step costs, and what of it is sampling; ours beside a plain vmapped convolution.

    python benchmarks/meta_step.py [--rounds 5] [--json FILE] [--plain]

Times one jitted train step (5-way 1-shot, 32 tasks, strided conv4, exact second order), the
sampling of its episodes alone (also with 15 queries a class), and with --plain the same step with XLA's own convolution
(slow: minutes on a CPU). Rounds are interleaved; medians are shown.
"""

import argparse
import json
import platform
import statistics
import time
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxmeta import (
    ClassPool,
    EpisodeSpec,
    TaskSource,
    from_linen,
    init_train_state,
    make_train_step,
    maml,
    sample_episodes,
)
from jaxmeta.models.conv4 import Conv4Body
from jaxmeta.nn import BatchNorm
from jaxmeta.plan import choose_task_chunk

TASKS = 32


class PlainBody(nn.Module):
    """conv4 with `flax.linen.Conv`, everything else the same."""

    @nn.compact
    def __call__(self, inputs, *, train, weights=None):
        hidden = inputs
        for _ in range(4):
            hidden = nn.Conv(64, (3, 3), strides=2, use_bias=False)(hidden)
            hidden = nn.relu(BatchNorm()(hidden, train=train, weights=weights))
        return hidden.mean((1, 2))


def step_of(body, pool, queries, chunk):
    learner = maml(from_linen(body, nn.Dense(5)), inner_optimizer=optax.sgd(0.4))
    optimizer, key = optax.adam(1e-3), jax.random.key(0)
    source = TaskSource(sample_episodes, pool, EpisodeSpec(5, 1, queries))
    train_state = init_train_state(key, learner, optimizer, source, num_tasks=TASKS)
    episodes = jax.jit(lambda key: sample_episodes(key, pool, source.spec, TASKS))(key)
    run = jax.jit(make_train_step(learner, optimizer, task_chunk=chunk))
    return partial(run, train_state, episodes, key)


def timed(call):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--plain", action="store_true", help="also time XLA's own convolution")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    pool = ClassPool(rng.integers(0, 256, [1200, 20, 28, 28, 1]).astype(np.uint8), np.full([1200], 20, np.int32))
    pool = jax.device_put(pool)
    chunk = choose_task_chunk(TASKS, 10 * 28 * 28)
    chunk_15 = choose_task_chunk(TASKS, 80 * 28 * 28)
    strided = Conv4Body(64, "stride")

    def sampling(queries):
        sample = jax.jit(lambda key, pool: sample_episodes(key, pool, EpisodeSpec(5, 1, queries), TASKS))
        return partial(sample, jax.random.key(0), pool)

    calls = {
        "sample, 1 query": sampling(1),
        "meta-step, 1 query": step_of(strided, pool, 1, chunk),
        "sample, 15 queries": sampling(15),
        "meta-step, 15 queries": step_of(strided, pool, 15, chunk_15),
    }
    if options.plain:
        calls["meta-step, 1 query, plain vmapped XLA convolution"] = step_of(PlainBody(), pool, 1, TASKS)
    first = {name: timed(call) for name, call in calls.items()}
    times = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            times[name].append(timed(call))

    device = jax.devices()[0]
    print(
        f"{device.device_kind}, {platform.machine()}, jax {jax.__version__}, chunks of {chunk} and {chunk_15} tasks\n"
    )
    print("| what | median s | min - max s | first call s |\n|---|---|---|---|")
    for name, values in times.items():
        print(
            f"| {name} | {statistics.median(values):.4f} | {min(values):.4f} - {max(values):.4f} | {first[name]:.1f} |"
        )
    shares = {
        queries: statistics.median(times[f"sample, {queries}"]) / statistics.median(times[f"meta-step, {queries}"])
        for queries in ("1 query", "15 queries")
    }
    print(
        "\nsampling as a share of the meta-step: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"device": device.device_kind, "jax": jax.__version__, "seconds": times, "first": first}, file)


if __name__ == "__main__":
    main()
