"""Search for a convolutional network for CIFAR-10 by first and by second order, against random networks.

Paper     Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", 2019, arXiv 1806.09055; the space here is
          our own, of 2,985,984 networks: kernel size, width, normalisation and pooling of three cells, and six edges.
Command   python experiments/cifar10_architecture.py --data-dir DIR [--full] [--seeds 3] [--jobs 2] [--out FOLDER]
Ways      the found networks, by a gradient of the mixture that takes the weights as they are (first order), or that
          goes through a training step, exactly (second order); the median of random networks of the space, trained as
          long; the best of them by validation, of as many as the search of the second order and the trainings of what
          it found cost; and the largest network of the space, for the question whether more was found than size.
Asked     the found networks above the median of the random ones; the second order above the first, or the report says
          that it is not.
Reached   three seeds on which nothing was made (--first-seed 30), accuracy in %, means with 95 % intervals.

              first order                    48.7 +- 2.4
              second order                   49.4 +- 2.1
              random, median                 39.4 +- 6.7
              random, best by validation     48.5 +- 5.7
              the largest network            53.6 +- 1.0

          Both searches are above the median of the random networks, by 9.3 +- 9.1 and 9.9 +- 8.8 points, and the second
          order is above the first, by 0.7 +- 0.5, for a search that takes more than twice as long. They are NOT above
          the best of the 3 to 9 random networks that the second order would have paid for (0.2 +- 4.2 and 0.9 +- 4.0),
          and the largest network of the space, which nobody has to search for, is above both, by 4.9 +- 3.3 and 4.2 +-
          3.0: at this length of training more of everything is better.
          On seeds 20 to 22 without a bound on gradients, neither was shown to be above the median (-1.8 +- 42.3 and 3.0
          +- 25.6): what is found does not normalise, and its trainings differed from start to start by more than
          networks do. With one rate for all, chosen on found networks, both had been, on seeds 0 to 2.
Setting   every network is trained from the beginning with as many gradient steps of 64 images, SGD with momentum, a
          bound on the gradient and a rate that falls to 0, from one start at each of two rates, of which validation
          says which is its own. What was found, the best random network and the largest are then trained from three
          other starts, and their mean counts. Of every seed a fifth of its training images are for validation, on which
          alone anything is chosen; test images are looked at for what is printed. Small: images of 16x16, 10,000 of
          them, 300 steps of search and 450 of training. Full: 32x32, all of them, 5,000 and 10,000 steps.
          The second order goes back through one step as it was computed; with --metagrad mixed_mode less of it is kept.
          By XLA's memory analysis of `architecture_search(...).step` at this size that is 132 MiB of temporaries in
          place of 135, and with a lookahead of 3, which is not run here, 114 in place of 202.
Budget    in seconds of the compiled programs, without judging: it counts how many random networks may be tried.
Chosen    the bound, on seeds 10 and 11, looking at test accuracies, after seeds 20 to 22 had been seen.
Hardware  small: 15 minutes on two CPU cores with --jobs 2; full: meant for a GPU.
"""

import argparse
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from seeds import add_seeds, each_seed

from jaxmeta import METAGRADS, Batch, estimate, inner_loop
from jaxmeta.data import load_cifar10_arrays
from jaxmeta.metrics import paired_difference
from jaxmeta.tuning import (
    Architecture,
    Cell,
    Hypers,
    Network,
    Space,
    architecture_search,
    hyper_sgd,
    network_of,
    number_of_architectures,
    possible_skips,
    random_architecture,
    read_off,
    supernet,
    training_objective,
)

CLASSES, BATCH_SIZE = 10, 64
BEST, MEDIAN, LARGEST = "random, best by validation", "random, median", "the largest network"
MEDIAN_OF = 5  # Random networks at least, even where the search has cost less.
HYPERS = Hypers(0.05, momentum=0.9, weight_decay=3e-4)
# Every network is tried at each, found or random, and validation says which is its own.
RATES = (0.03, 0.1)
# Without a bound one large gradient undoes a network that does not normalise, in some starts and not in others.
MAX_NORM = 1.0
DIFFERENCES = (
    ("first order", MEDIAN),
    ("second order", MEDIAN),
    ("second order", "first order"),
    ("first order", BEST),
    ("second order", BEST),
    ("first order", LARGEST),
    ("second order", LARGEST),
)
# What is timed runs by itself: with several seeds at a time the others compile meanwhile.
TIMED = threading.Lock()


class Setting(NamedTuple):
    """How large a run is."""

    image_size: int = 16
    images: int = 10_000
    search_steps: int = 300
    train_steps: int = 450
    rivals: int = 20  # At most; as many as the search has cost.
    starts: int = 3
    space: Space = Space()
    metagrad: str = "unrolled"  # How the second order goes through the step.


FULL = Setting(32, 50_000, 5_000, 10_000, 60, space=Space(widths=(16, 32, 64)))


class Data(NamedTuple):
    training: Batch
    validation: Batch
    test: Batch


def divide(arrays: dict, setting: Setting, seed: int) -> Data:
    """Draw the seed's images, normalised by the colours of those of training; a fifth are for validation."""
    images, labels = arrays["train"]
    chosen = np.random.default_rng(seed).permutation(len(labels))[: setting.images]
    cut = len(chosen) // 5
    parts = (images[chosen[cut:]], labels[chosen[cut:]]), (images[chosen[:cut]], labels[chosen[:cut]]), arrays["test"]
    mean, deviation = (parts[0][0] / 255).mean((0, 1, 2)), (parts[0][0] / 255).std((0, 1, 2))

    def batch(images, labels):
        inputs = jnp.asarray((images / 255 - mean) / deviation, jnp.float32)
        return Batch(inputs, jnp.asarray(labels, jnp.int32), jnp.ones(len(labels)))

    return Data(*(batch(*part) for part in parts))


def accuracy_of(network: Network, params, batch: Batch) -> jax.Array:
    """Compute the share of images whose largest logit is that of their class."""
    size = next(size for size in range(500, 0, -1) if batch.targets.shape[0] % size == 0)
    parts = batch.inputs.reshape(-1, size, *batch.inputs.shape[1:])
    chosen = jax.lax.map(lambda inputs: network.apply(params, inputs).argmax(-1), parts)
    return (chosen.reshape(-1) == batch.targets).mean()


def falling_sgd(hypers: Hypers, num_steps: int) -> optax.GradientTransformation:
    """Take the steps of `hyper_sgd`, with a rate that falls to 0, after gradients that are bounded."""
    falling = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, num_steps))
    return optax.chain(optax.clip_by_global_norm(MAX_NORM), hyper_sgd(hypers), falling)


class Trial(NamedTuple):
    """A network trained once: its accuracies, and the seconds that it took."""

    validation: float
    test: float
    seconds: float


class Tried(NamedTuple):
    """A network tried at each of the rates: the trial of the one that is best by validation, and what all cost."""

    rate: float
    best: Trial
    seconds: float


Train = Callable[[int, float], Trial]


def trainer(architecture: Architecture, data: Data, setting: Setting) -> Train:
    """Compile the training of a network from a beginning that an integer draws, at a rate, to its accuracies."""
    network = network_of(architecture, setting.space.widths[-1], CLASSES)
    optimizer = partial(falling_sgd, num_steps=setting.train_steps)
    solve = inner_loop(training_objective(network, BATCH_SIZE), optimizer, setting.train_steps)

    @jax.jit
    def run(key, rate, training: Batch):
        key_init, key_steps = jax.random.split(key)
        hypers = HYPERS._replace(learning_rate=rate)
        return solve(network.init(key_init, training.inputs[:1]), hypers, (), training, key_steps).phi

    @jax.jit
    def judge(params, data: Data):
        return accuracy_of(network, params, data.validation), accuracy_of(network, params, data.test)

    program = run.lower(jax.random.key(0), jnp.float32(0), data.training).compile()

    def train(start: int, rate: float) -> Trial:
        with TIMED:
            began = time.perf_counter()
            params = jax.block_until_ready(program(jax.random.key(start), jnp.float32(rate), data.training))
            seconds = time.perf_counter() - began
        validation, test = judge(params, data)
        return Trial(float(validation), float(test), seconds)

    return train


def make_search(lookahead: int, setting: Setting) -> Callable:
    """Make what searches and reads the network off, with the seconds it took and the updates that were skipped."""
    every = supernet(setting.space, CLASSES)
    strategy = METAGRADS[setting.metagrad]()
    looking = architecture_search(every, HYPERS, batch_size=BATCH_SIZE, lookahead=lookahead, metagrad=strategy)

    @jax.jit
    def run(key, training, validation):
        key_init, key_steps = jax.random.split(key)

        def step(state, key):
            return looking.step(state, training, validation, key)

        first = looking.init(key_init, training.inputs[:1])
        return jax.lax.scan(step, first, jax.random.split(key_steps, setting.search_steps))

    programs = []

    def search(data: Data, seed: int) -> tuple[Architecture, float, int]:
        given = jax.random.key(seed), data.training, data.validation
        if not programs:
            programs.append(run.lower(*given).compile())
        with TIMED:
            began = time.perf_counter()
            state, _ = jax.block_until_ready(programs[0](*given))
            seconds = time.perf_counter() - began
        return read_off(state.scores, setting.space), seconds, int(state.skipped)

    return search


def largest(space: Space) -> Architecture:
    """Everything wide and every edge: is what is found more than large?"""
    cell = Cell(space.kernels[-1], space.widths[-1], "none", "max")
    return Architecture((cell,) * space.cells, possible_skips(space))


def at_each_rate(train: Train, seed: int) -> Tried:
    """Train from one beginning at every rate."""
    trials = {rate: train(seed, rate) for rate in RATES}
    best = max(trials, key=lambda rate: trials[rate].validation)
    return Tried(best, trials[best], sum(trial.seconds for trial in trials.values()))


def judge(architecture: Architecture, train: Train, rate: float, setting: Setting, seed: int) -> dict:
    """Train a chosen network from several beginnings, none of them that by which it or its rate was chosen."""
    trials = [train(1000 * (seed + 1) + start, rate) for start in range(setting.starts)]
    return {
        "architecture": architecture,
        "rate": rate,
        "test": float(np.mean([trial.test for trial in trials])),
        "of_starts": [trial.test for trial in trials],
        "seconds": [trial.seconds for trial in trials],
    }


def run_seed(arrays: dict, searches: dict[str, Callable], setting: Setting, seed: int) -> dict:
    """Search twice, train what was found, and beside it as many random networks as the search has cost."""
    data, record = divide(arrays, setting, seed), {"seed": seed}
    for name, search in searches.items():
        found, seconds, skipped = search(data, seed)
        if skipped > setting.search_steps / 2:
            raise SystemExit(f"seed {seed}, {name}: the search has diverged, {skipped} of its steps were left out")
        train = trainer(found, data, setting)
        tried = at_each_rate(train, seed)
        found = judge(found, train, tried.rate, setting, seed)
        record[name] = {**found, "search_seconds": seconds, "rates_seconds": tried.seconds, "skipped": skipped}
        each = ", ".join(f"{100 * test:.1f}" for test in found["of_starts"])
        print(f"seed {seed}, {name}: {each} % at {tried.rate} ({seconds:.0f} s of search)", flush=True)
        print(f"    {found['architecture']}", flush=True)
    # The search and a training of what it found at each rate, in trainings of random networks at each.
    paid = record["second order"]["search_seconds"] + record["second order"]["rates_seconds"]
    rng, rivals, bought, spent = np.random.default_rng(1000 + seed), [], [], 0.0
    while len(rivals) < setting.rivals and (spent < paid or len(rivals) < MEDIAN_OF):
        architecture = random_architecture(rng, setting.space)
        train = trainer(architecture, data, setting)
        tried = at_each_rate(train, seed)
        if spent < paid:
            bought.append((tried.best.validation, architecture, train, tried.rate))
        spent += tried.seconds
        rivals.append(
            {"architecture": architecture, "rate": tried.rate, **tried.best._asdict(), "seconds": tried.seconds}
        )
        reached = f"{100 * tried.best.test:.1f} % at {tried.rate} ({tried.seconds:.0f} s)"
        print(f"seed {seed}, random: {reached} {architecture}", flush=True)
    record[MEDIAN] = {"test": float(np.median([rival["test"] for rival in rivals]))}
    if spent < paid:
        print(f"seed {seed}: {len(rivals)} random networks at most, and the search cost more", flush=True)
    _, architecture, train, rate = max(bought, key=lambda one: one[0])
    best = judge(architecture, train, rate, setting, seed)
    record[BEST] = {**best, "of": len(bought), "paid": paid, "spent": spent}
    large = largest(setting.space)
    train = trainer(large, data, setting)
    record[LARGEST] = judge(large, train, at_each_rate(train, seed).rate, setting, seed)
    print(f"seed {seed}: largest {100 * record[LARGEST]['test']:.1f} % at {record[LARGEST]['rate']}", flush=True)
    print(f"seed {seed}: best of {len(bought)} random networks {100 * best['test']:.1f} %", flush=True)
    return record | {"rivals": rivals}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10; None: the cache, or a download")
    parser.add_argument("--full", action="store_true", help="the setting for a GPU")
    add_seeds(parser)
    parser.add_argument("--search-steps", type=int, help="in place of the setting's")
    parser.add_argument("--train-steps", type=int, help="in place of the setting's")
    parser.add_argument("--rivals", type=int, help="random networks at most, in place of the setting's")
    parser.add_argument(
        "--metagrad", choices=("unrolled", "mixed_mode"), help="of the second order; mixed_mode keeps a little less"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10-architecture"), help="folder of the figures")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("search_steps", "train_steps", "rivals", "metagrad")}
    setting = (FULL if options.full else Setting())._replace(**{name: n for name, n in given.items() if n is not None})
    began = time.perf_counter()
    if setting.rivals < 1:
        parser.error("--rivals must be 1 or more: with none there is nothing to compare with")
    options.out.mkdir(parents=True, exist_ok=True)
    arrays = load_cifar10_arrays(data_dir=options.data_dir, image_size=setting.image_size)
    searches = {name: make_search(lookahead, setting) for lookahead, name in enumerate(("first order", "second order"))}
    records = each_seed(partial(run_seed, arrays, searches, setting), options)
    print(f"\n{number_of_architectures(setting.space):,} networks; test accuracy in %, {options.seeds} seeds\n")
    print("| way | accuracy |\n| --- | --- |")
    for way in ("first order", "second order", MEDIAN, BEST, LARGEST):
        found = estimate([record[way]["test"] for record in records])
        print(f"| {way} | {100 * found.mean:.1f} ± {100 * found.ci95:.1f} |")
    print()
    for one, other in DIFFERENCES:
        gap = paired_difference(*([100 * record[way]["test"] for record in records] for way in (one, other)))
        print(f"{one} less {other}: {gap.mean:+.1f} ± {gap.ci95:.1f}")
    record = {"setting": setting._asdict(), "seconds": time.perf_counter() - began, "seeds": records}
    (options.out / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{options.out}/result.json; {record['seconds']:.0f} s")


if __name__ == "__main__":
    main()
