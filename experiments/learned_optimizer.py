"""Learned optimisers on tasks that they were not trained on, beside Adam and SGD with tuned rates.

Paper     Metz, Maheswaranathan, Freeman, Poole and Sohl-Dickstein, 2020, arXiv 2009.11243; Andrychowicz et al., 2016,
          arXiv 1606.04474; Vicol, Metz and Sohl-Dickstein, 2021, arXiv 2112.13835 (PES); Li et al., 2023, arXiv
          2304.12180 (NRES). None has these tasks.
Command   python experiments/learned_optimizer.py --data-dir DIR [--seeds 3] [--jobs 2] [--full] [--out FOLDER]
Asked     a lower training loss than tuned Adam and SGD after 100 and 500 steps, on tasks of other digits; and what is
          five times further than any training in training.
Reached   three seeds, means with 95 % intervals, on digits that nothing was trained on.

                                     100 steps            500 steps            2500 steps
              SGD                    0.617 +- 0.033       0.170 +- 0.013       0.015 +- 0.003
              momentum               0.387 +- 0.021       0.092 +- 0.021       0.007 +- 0.009
              Adam                   0.259 +- 0.048       0.049 +- 0.036       0.005 +- 0.008
              Adam, best rate        0.254 +- 0.043       0.044 +- 0.032
              MLP, NRES              0.193 +- 0.072       0.023 +- 0.007       0.009 +- 0.010
              LSTM, NRES             0.222 +- 0.057       0.027 +- 0.039       0.003 +- 0.009
              MLP, PES               0.233 +- 0.059       0.036 +- 0.034       0.009 +- 0.026
              MLP, full unrolls      0.182 +- 0.042       0.130 +- 0.303       0.257 +- 0.786
              MLP, truncated         0.205 +- 0.064       0.046 +- 0.034       0.093 +- 0.258

          The LSTM by NRES is below Adam at all three: by 0.037 +- 0.010, 0.022 +- 0.018, and five times further, where
          Adam was tuned anew, by 0.0014 +- 0.0012. The MLP by NRES is below it after 100 steps by 0.066 +- 0.046, after
          500 on each seed, by 0.036, 0.011 and 0.031 (0.026 +- 0.034, NOT clearly), and at 2500 above it on average
          (+0.004 +- 0.007). By as many steps of PES the same MLP comes to -0.027 +- 0.039 and -0.013 +- 0.038: not
          clearly below. Those that were trained for 100 steps are below Adam there by 0.078 +- 0.015 and 0.054 +-
          0.034, and further on above it or no better.
          On letters, of which nothing was chosen, losses are ten times smaller: at 100 steps the MLP by NRES has 0.007
          and Adam 0.026 (-0.018 +- 0.015), full unrolls 0.012 (-0.014 +- 0.011), the LSTM 0.016 (-0.010 +- 0.017); at
          500 the MLP is where Adam is (0.002, -0.0004 +- 0.0024), the LSTM 0.0045.
          After a third of the steps, by PES, nothing was clear but the unrolls of 100.
Setting   a task: five digits of MNIST (0 to 4 in training, each under 25 linear maps of the plane a class of its own; 5
          to 9 held out; without MNIST the letters of glyphs), 60 images of 7x7 of each, a random projection of them, a
          perceptron of 8 to 32 units begun at a random scale; mini-batches of 32. Weights begin as Adam at its tuned
          rate. By PES or NRES, which draws noise once a task, in unrolls of 20 of 500 steps, or by back-propagation,
          full or truncated, through 100 steps. Each rival takes the same number of steps on the same held-out tasks
          from the same starts; the rates of Adam and SGD are tuned on training tasks for each column anew, the last
          too, which favours them there; "best rate" is that which is best on the judged tasks, which no tuning can
          know. Of a learned optimiser, the mean of its weights over each quarter of its training is tried on those
          training tasks, for up to twice as many steps as it was trained for, and the best is judged in all columns.
          The loss is that of all training images of a task.
Chosen    that there are stages, how many steps, NRES, and the constant of the logarithm of the losses, on other seeds
          (10 to 12), looking at tasks of the held-out digits; what the network may do to a step on seed 10 likewise, as
          were the schedule past the network, the maps of the training digits (by how hard their tasks are for Adam) and
          the mean of the weights. Earlier runs of seeds 0 to 2 were seen. The letters were not.
Hardware  small: 22 minutes on two CPU cores with --jobs 2 (asked: 20); full: one GPU.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from planes import linear_maps, mapped
from seeds import add_seeds, each_seed

from jaxmeta import (
    METAGRADS,
    ClassPool,
    EpisodeSpec,
    TaskSource,
    exact,
    fit,
    init_train_state,
    make_train_step,
    nres,
    pes,
)
from jaxmeta.base import Estimator, MetaLearner
from jaxmeta.data import DataError, load_glyphs, load_mnist, sample_episodes
from jaxmeta.dispatch import compile_steps
from jaxmeta.losses import cross_entropy
from jaxmeta.metagrad import skip_diverged
from jaxmeta.metrics import estimate, paired_difference
from jaxmeta.tuning import LearnedOptimizer, lstm_optimizer, mlp_optimizer, optimizer_learner, varied_mlp

WAYS, POOLED, CEILING = 5, 4, 10.0
MAPS, IMAGES_OF_A_DIGIT = 25, 600
BOUND = "Adam, best rate"
RIVALS: dict[str, tuple[Callable, np.ndarray]] = {
    "SGD": (optax.sgd, np.geomspace(0.2, 5.0, 8)),
    "momentum": (functools.partial(optax.sgd, momentum=0.9), np.geomspace(0.05, 1.0, 8)),
    "Adam": (optax.adam, np.geomspace(0.02, 0.25, 12)),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    horizon: int = 500  # Judged after a fifth of it, all of it and five times as much.
    unroll: int = 20
    steps: int = 1200  # Outer steps by evolution strategies.
    differentiated: int = 120  # Outer steps by back-propagation, each of which costs more.
    tasks: int = 8
    stages: int = 4  # After each the weights are kept; which of them is judged, training tasks say.
    pairs: int = 4
    rate: float = 3e-3  # The LSTM takes a third of it.
    log_above: float = 0.3  # Losses below it count little.
    judged_tasks: int = 64  # And as many of training to tune the rates of the rivals on.
    hidden: tuple[int, ...] = (16, 16)
    units: tuple[int, ...] = (8,)
    batch_size: int = 32


FULL = Setting(
    steps=5000, differentiated=1500, tasks=32, pairs=8, rate=1e-3, judged_tasks=256, hidden=(32, 32), units=(20,)
)


def make_sources(data_dir: Path | None) -> tuple[TaskSource, dict[str, TaskSource]]:
    """Load the tasks of training, and by name those that are held out, of other classes."""
    few = EpisodeSpec(WAYS, 12, 8)
    try:
        digits = load_mnist(data_dir=data_dir)
    except DataError:
        if data_dir is not None:
            raise
        print("Tasks of letters: there are no digits.", flush=True)
        glyphs = load_glyphs()
        return source_of(glyphs.splits["train"], few), {"letters": source_of(glyphs.splits["test"], few)}
    held_out = {
        "digits": source_of(digits.splits["validation"], EpisodeSpec(WAYS, 60, 20)),
        "letters": source_of(load_glyphs().splits["test"], few),
    }
    # A digit a little turned, slanted and stretched is a digit of its own, about as hard to tell from itself as two of
    # those held out are: 0 to 4 alone are all easy, and so are digits under maps that go far.
    images = jnp.asarray(digits.splits["train"].images[:, :IMAGES_OF_A_DIGIT, :, :, 0], jnp.float32)
    maps = linear_maps(np.random.default_rng(0), MAPS, reach=0.5, turned=False)
    views = np.concatenate([np.asarray(jnp.rint(mapped(images, plane)), np.uint8) for plane in maps])
    training = views[..., None], np.full(len(views), IMAGES_OF_A_DIGIT, np.int32)
    return source_of(training, EpisodeSpec(WAYS, 60, 20)), held_out


def source_of(pool, spec: EpisodeSpec) -> TaskSource:
    """Make tasks of images of 7x7."""
    images, counts = pool
    classes, number, height, width, _ = images.shape
    blocks = images.reshape(classes, number, height // POOLED, POOLED, width // POOLED, POOLED, 1)
    small = blocks.mean((3, 5), np.float32).round().astype(np.uint8)
    return TaskSource(sample_episodes, jax.device_put(ClassPool(small, counts)), spec)


def learner_of(transform, init, setting: Setting, **options) -> MetaLearner:
    # Groups of steps: one short program, and memory for horizons of any length.
    options = {"batch_size": setting.batch_size, "metagrad": METAGRADS["remat_group"]()} | options
    options |= {"ceiling": CEILING, "log_above": setting.log_above}
    return optimizer_learner(varied_mlp(WAYS), transform, init=init, num_steps=setting.unroll, **options)


@functools.cache
def curves_of(transform, setting: Setting, points: int) -> Callable:
    """Make `(theta, episodes, keys) -> losses after each of some unrolls, [tasks, points]`: one program for all."""
    learner = learner_of(transform, None, setting)

    def of_task(theta, episode, key):
        _, (inner, _, _) = learner.unroll(theta, (), None, episode, key, 0, num_steps=0)

        def body(inner, _):
            _, (inner, adapted, (_, metrics)) = learner.unroll(theta, (), inner, episode, key, 0)
            outputs = learner.predict(adapted, episode.support, key)
            loss = cross_entropy(outputs, episode.support.targets, episode.support.weights)
            return inner, {
                "loss": jnp.where(loss < CEILING, loss, CEILING),
                "validation_loss": metrics["validation_loss"],
                "diverged": metrics["diverged"],
            }

        return jax.lax.scan(body, inner, length=points)[1]

    return jax.jit(jax.vmap(of_task, in_axes=(None, 0, 0)))


def loss_curves(transform, thetas: list, episodes, key, setting: Setting, length: int = 5) -> dict[str, np.ndarray]:
    """Train on every task with each of the thetas, for so many horizons; losses `[thetas, tasks, points]`."""
    keys = jax.random.split(key, episodes.support.weights.shape[0])
    program = curves_of(transform, setting, length * setting.horizon // setting.unroll)
    curves = [jax.device_get(program(theta, episodes, keys)) for theta in thetas]
    return jax.tree.map(lambda *each: np.stack(each), *curves)


def columns(setting: Setting) -> dict[int, int]:
    """Name the points of a curve that are judged: the number of steps, and its place."""
    return {
        steps: steps // setting.unroll - 1 for steps in (setting.horizon // 5, setting.horizon, 5 * setting.horizon)
    }


class Contender(NamedTuple):
    """A learned optimiser, and how it is trained."""

    optimizer: LearnedOptimizer
    options: dict  # Of `optimizer_learner`.
    estimator: Estimator
    steps: int
    rate: float
    horizon: int  # Steps of the trainings that it is trained on.


def contenders(setting: Setting) -> dict[str, Contender]:
    mlp, short_mlp = (
        mlp_optimizer(hidden=setting.hidden, step_size=0.01, horizon=horizon)
        for horizon in (setting.horizon, setting.horizon // 5)
    )
    lstm = lstm_optimizer(hidden=setting.units, step_size=0.01, horizon=setting.horizon)
    short = {"num_unrolls": setting.horizon // 5 // setting.unroll}
    evolved = {"num_pairs": setting.pairs, "num_unrolls": setting.horizon // setting.unroll}
    guarded = skip_diverged(exact(), max_norm=1.0)
    fewer, fifth = min(setting.steps, setting.differentiated), setting.horizon // 5
    rate, horizon = setting.rate, setting.horizon
    return {
        "MLP, NRES": Contender(mlp, {}, nres(**evolved), setting.steps, rate, horizon),
        "LSTM, NRES": Contender(lstm, {}, nres(**evolved), setting.steps, rate / 3, horizon),
        "MLP, PES": Contender(mlp, {}, pes(**evolved), setting.steps, rate, horizon),
        "MLP, full unrolls": Contender(short_mlp, short, guarded, fewer, rate, fifth),
        "MLP, truncated": Contender(short_mlp, {**short, "truncate": True}, guarded, fewer, rate, fifth),
    }


def trainer(contender: Contender, source: TaskSource, setting: Setting) -> Callable:
    """Make `(theta, key) -> theta after each stage, metrics on the way`, which compiles once for all seeds."""
    optimizer, options, estimator, steps, rate, _ = contender
    learner = learner_of(optimizer.transform, optimizer.init, setting, **options)
    rates = optax.cosine_decay_schedule(rate, steps, 0.05)
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates))
    train_step = make_train_step(learner, outer, estimator=estimator)
    programs = []

    def train(theta, key):
        rows, on_the_way = [], []

        def callback(train_state, metrics):
            rows.append({name: float(np.mean(values)) for name, values in metrics.items()})
            on_the_way.append(jax.tree.map(jnp.copy, train_state.meta_params))

        train_state = init_train_state(key, learner, outer, source, num_tasks=setting.tasks, estimator=estimator)
        train_state = train_state._replace(meta_params=theta)
        per_call = min(20, steps)
        calls = {"num_tasks": setting.tasks, "steps_per_call": per_call}
        if not programs:
            programs.append(compile_steps(train_step, train_state, source, key, **calls))
        calls |= {"callback": callback, "program": programs[0]}
        thetas = []
        for stage in range(1, setting.stages + 1):
            # A multiple of the steps of a call, so that its program serves all stages.
            end = steps if stage == setting.stages else steps * stage // setting.stages // per_call * per_call
            if end > int(train_state.step):
                on_the_way.clear()
                train_state = fit(train_step, train_state, source, key, num_steps=end, **calls)
                # Steps of theta are noisy: their mean is judged (Polyak and Juditsky, 1992).
                thetas.append(jax.tree.map(lambda *each: jnp.stack(each).mean(0), *on_the_way))
        return thetas, rows

    return train


def losses_at(curves: dict[str, np.ndarray], setting: Setting, place: int = 0) -> dict[int, float]:
    """Give the mean losses of a curve where they are judged, as far as it goes."""
    losses = curves["loss"][place].mean(0)
    return {steps: float(losses[point]) for steps, point in columns(setting).items() if point < len(losses)}


def run_seed(seed: int, sources, trained: dict[str, tuple[Contender, Callable]], setting: Setting) -> dict:
    """Tune the rivals, train the contenders, judge all on the held-out tasks."""
    training, held_out = sources
    key_tuning, key_judged, key_curves, key_train = jax.random.split(jax.random.key(seed), 4)
    tuning = training.sample(key_tuning, training.pool, training.spec, setting.judged_tasks)
    judged = {
        name: source.sample(key_judged, source.pool, source.spec, setting.judged_tasks)
        for name, source in held_out.items()
    }
    first, *_ = judged
    result = {"seed": seed, "rates": {}, "curves": {}, "meta_training": {}, "seconds": {}, "stages": {}}
    result["loss"] = {name: {} for name in judged}

    def keep(name, curves, place=0):
        steps = [setting.unroll * (point + 1) for point in range(curves["loss"].shape[-1])]
        means = {kind: values[place].mean(0).tolist() for kind, values in curves.items()}
        result["curves"][name] = {"steps": steps, **means}

    for name, (make, rates) in RIVALS.items():
        began = time.time()
        rates = list(rates.astype(np.float32))
        tuned = loss_curves(make, rates, tuning, key_curves, setting)["loss"].mean(1)
        best = {steps: float(rates[tuned[:, point].argmin()]) for steps, point in columns(setting).items()}
        result["rates"][name] = best
        for where, episodes in judged.items():
            tried = sorted(set(best.values()))
            curves = loss_curves(make, [np.float32(rate) for rate in tried], episodes, key_curves, setting)
            places = {steps: tried.index(rate) for steps, rate in best.items()}
            row = {steps: losses_at(curves, setting, place)[steps] for steps, place in places.items()}
            result["loss"][where][name] = row
            if where == first:
                for steps, place in places.items():
                    keep(f"{name} tuned for {steps}", curves, place)
        result["seconds"][name] = round(time.time() - began, 1)
        print(f"seed {seed}: {name} {result['loss'][first][name]} at rates {best}", flush=True)
    for where, episodes in judged.items():
        # What no tuning can know: the rate that is best on the very tasks that are judged.
        make, rates = RIVALS["Adam"]
        curves = loss_curves(make, list(rates.astype(np.float32)), episodes, key_curves, setting, length=1)
        every = [losses_at(curves, setting, place) for place in range(len(rates))]
        result["loss"][where][BOUND] = {steps: min(row[steps] for row in every) for steps in every[0]}
    for number, (name, (contender, train)) in enumerate(trained.items()):
        optimizer, horizon, began = contender.optimizer, contender.horizon, time.time()
        key_init, key_fit = jax.random.split(jax.random.fold_in(key_train, number))
        # Adam at its tuned rate is where the training of the optimiser begins.
        begin = optimizer.as_adam(optimizer.init(key_init), result["rates"]["Adam"][setting.horizon])
        thetas, rows = train(begin, key_fit)
        # Chosen on the tasks that the rates of the rivals are; twice as far too, or what is about to diverge is kept.
        far = 2 if horizon == setting.horizon else 1
        tried = loss_curves(optimizer.transform, thetas, tuning, key_curves, setting, length=far)["loss"].mean(1)
        points = [max(steps // setting.unroll, 1) - 1 for steps in (horizon // 5, horizon, 2 * horizon)]
        kept = int(np.log(tried[:, points] + 1e-3).mean(1).argmin())
        result["stages"][name] = kept + 1
        for where, episodes in judged.items():
            length = 5 if where == first else far
            curves = loss_curves(optimizer.transform, [thetas[kept]], episodes, key_curves, setting, length)
            result["loss"][where][name] = losses_at(curves, setting)
            if where == first:
                keep(name, curves)
        result["meta_training"][name] = rows
        result["seconds"][name] = round(time.time() - began, 1)
        print(f"seed {seed}: {name} {result['loss'][first][name]} in {result['seconds'][name]} s", flush=True)
    return result


def summary(runs: list[dict], where: str) -> dict:
    """Mean and 95 % interval over seeds of every loss, and of its difference from tuned Adam's."""
    table = {}
    for name, row in runs[0]["loss"][where].items():
        for steps in row:
            of_seeds, of_adam = ([run["loss"][where][of][steps] for run in runs] for of in (name, "Adam"))
            mean, difference = estimate(of_seeds), paired_difference(of_seeds, of_adam)
            table.setdefault(name, {})[steps] = {
                "mean": mean.mean,
                "ci95": mean.ci95,
                "minus_adam": difference.mean,
                "minus_adam_ci95": difference.ci95,
            }
    return table


def show(table: dict, where: str, seeds: int) -> None:
    """Print the losses, and by how much they differ from Adam's."""
    steps = list(table["Adam"])
    print(f"\nTraining loss on held-out {where}, mean of {seeds} seeds with its 95 % interval.\n")
    print(f"| {'':18} | {' | '.join(f'{number:>9} steps  ' for number in steps)} |")
    print(f"| --- {'| --- ' * len(steps)}|")
    for name, row in table.items():
        cells = (f"{row[at]['mean']:.4f} +- {row[at]['ci95']:.4f}" if at in row else " " * 16 for at in steps)
        print(f"| {name:18} | {' | '.join(cells)} |")
    print("\nLess tuned Adam's on the same seeds: below 0 is better.\n")
    for name, row in table.items():
        gaps = ((row[at]["minus_adam"], row[at]["minus_adam_ci95"]) if at in row else None for at in steps)
        cells = (f"{gap[0]:+.4f} +- {gap[1]:.4f}" if gap else " " * 17 for gap in gaps)
        print(f"| {name:18} | {' | '.join(cells)} |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="for two CPU cores; the default")
    size.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--data-dir", type=Path, help="a folder with MNIST; without one, glyphs where there is none")
    add_seeds(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/learned_optimizer"))
    parser.add_argument("--only", nargs="+", choices=contenders(Setting()), help="contenders; all if not given")
    for name in ("steps", "horizon", "unroll", "tasks", "judged-tasks"):
        parser.add_argument(f"--{name}", type=int, help=f"default {getattr(Setting(), name.replace('-', '_'))}")
    options = parser.parse_args(arguments)
    names = ("steps", "horizon", "unroll", "tasks", "judged_tasks")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    setting = dataclasses.replace(FULL if options.full else Setting(), **changes)
    if setting.horizon % (5 * setting.unroll):
        parser.error("the horizon must be a multiple of five unrolls, or there is no point of a curve at a fifth of it")
    began = time.time()
    sources = make_sources(options.data_dir)
    chosen = {name: one for name, one in contenders(setting).items() if name in (options.only or contenders(setting))}
    trained = {name: (one, trainer(one, sources[0], setting)) for name, one in chosen.items()}
    runs = each_seed(lambda seed: run_seed(seed, sources, trained, setting), options)
    tables = {where: summary(runs, where) for where in sources[1]}
    for where, table in tables.items():
        show(table, where, options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "setting": dataclasses.asdict(setting),
        "seconds": round(time.time() - began),
        "tables": tables,
        "runs": runs,
    }
    (options.out / "results.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
