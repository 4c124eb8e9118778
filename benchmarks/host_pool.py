"""How fast training is from a pool on the host, against one on the device: conv4 at two sizes of images.

    python benchmarks/host_pool.py [--rounds 5] [--json FILE] [--quick]

Both are MAML of one inner step, 5-way 1-shot with 15 queries, as `fit` runs it; the images are random bytes. The two
pools take turns in every round, so that a busy moment hits both; medians are shown, and the share of the device pool's
rate that the host pool reaches, round by round. `read` is the rate at which the worker threads alone could feed.

Writes `host_pool.json` beside this script; with --quick (small networks, one round, a smoke test) only a FILE that is
named.
"""

import json
import statistics
import time

import jax
import numpy as np
import optax

from costs import machine, parse
from jaxmeta import (
    ClassPool,
    EpisodeSpec,
    TaskSource,
    compile_steps,
    conv4,
    fit,
    init_train_state,
    make_train_step,
    maml,
    on_host,
    sample_episodes,
)
from jaxmeta.feed import DEPTH, pools_of_steps, steps_at_once

# Images of the training split: classes, images of each, size and channels; and a step of the load.
SIZES = {
    "omniglot": {"pool": (1028, 20, 28, 28, 1), "filters": 64, "tasks": 8, "chunk": 4, "steps": 3},
    "mini_imagenet": {"pool": (64, 600, 84, 84, 3), "filters": 32, "tasks": 4, "chunk": 1, "steps": 2},
}
DISPATCHES = 12
QUICK = {"filters": 4, "tasks": 2, "chunk": 2, "steps": 2}


def measure(size, rounds):
    """Give tasks per second of both pools, by round, and of the reading alone."""
    images = np.random.default_rng(0).integers(0, 256, size["pool"], dtype=np.uint8)
    pool = ClassPool(images, np.full(size["pool"][:1], size["pool"][1], np.int32))
    on_device = TaskSource(sample_episodes, jax.device_put(pool), EpisodeSpec(5, 1, 15))
    sources = {"device": on_device, "host": on_device._replace(pool=on_host(pool))}
    learner = maml(conv4(5, filters=size["filters"]), inner_optimizer=optax.sgd(0.4))
    optimizer, key = optax.adam(1e-3), jax.random.key(0)
    step = make_train_step(learner, optimizer, task_chunk=size["chunk"])
    options = {"num_tasks": size["tasks"], "steps_per_call": size["steps"]}
    begin = jax.device_get(init_train_state(key, learner, optimizer, on_device, num_tasks=size["tasks"]))
    programs = {name: compile_steps(step, begin, source, key, **options) for name, source in sources.items()}
    rates = {name: [] for name in sources}
    # The first round warms up.
    for _ in range(rounds + 1):
        for name, source in sources.items():
            state, calls = jax.device_put(begin), []
            # Not counted are the first dispatches, for which is read ahead before they begin, and the last, while which
            # nothing is read: in between a dispatch is read for each that is computed.
            fit(
                step,
                state,
                source,
                key,
                num_steps=DISPATCHES * size["steps"],
                program=programs[name],
                callback=lambda state, metrics, calls=calls: calls.append(time.perf_counter()),
                **options,
            )
            counted = calls[1 + DEPTH : -DEPTH]
            rates[name].append((len(counted) - 1) * size["steps"] * size["tasks"] / (counted[-1] - counted[0]))
    at_once = steps_at_once(sources["host"], size["tasks"], size["steps"])
    starts = range(0, 8 * at_once, at_once)
    with pools_of_steps(sources["host"], key, starts, num_tasks=size["tasks"], at_once=at_once, mesh=None) as pools:
        jax.block_until_ready(next(pools))
        clock = time.perf_counter()
        count = sum(1 for read in pools if jax.block_until_ready(read))
        read = count * at_once * size["tasks"] / (time.perf_counter() - clock)
    return {**{name: of_rounds[1:] for name, of_rounds in rates.items()}, "read": read}


def main():
    """Measure, print a table and write the figures."""
    options = parse(__doc__, __file__, rounds=5, quick="small networks, one round: does it run?")
    report = {"machine": machine(), "rounds": options.rounds, "tasks_per_second": {}}
    print("\n| images | device pool, tasks/s | host pool, tasks/s | host / device | read, tasks/s |")
    print("| --- | --- | --- | --- | --- |")
    for name, size in SIZES.items():
        rates = measure(size | QUICK if options.quick else size, options.rounds)
        share = statistics.median(host / device for host, device in zip(rates["host"], rates["device"], strict=True))
        device, host = (statistics.median(rates[pool]) for pool in ("device", "host"))
        print(f"| {name} | {device:.1f} | {host:.1f} | {share:.1%} | {rates['read']:.0f} |", flush=True)
        report["tasks_per_second"][name] = {**rates, "share": share}
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
