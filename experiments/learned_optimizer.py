"""Learned optimisers on tasks that they were not trained on, beside Adam and SGD with tuned rates.

Paper     Metz, Maheswaranathan, Freeman, Poole and Sohl-Dickstein, 2020, arXiv 2009.11243; Andrychowicz et al., 2016,
          arXiv 1606.04474; Vicol, Metz and Sohl-Dickstein, 2021, arXiv 2112.13835 (PES); Li et al., 2023, arXiv
          2304.12180 (NRES). None has these tasks.
Command   python experiments/learned_optimizer.py --data-dir DIR [--seeds 3] [--jobs 2] [--full] [--out FOLDER]
Asked     a lower training loss than tuned Adam and SGD after 100 and 500 steps, on tasks of other digits; and what is
          five times further than any training in training.
Reached   three seeds on which nothing was made (--first-seed 40), means with 95 % intervals, on digits that nothing was
          trained on. Both that were trained by NRES are below Adam after 100 and 500 steps, and not at 2500.

                                     100 steps            500 steps            2500 steps
              SGD                    0.617 +- 0.014       0.179 +- 0.009       0.016 +- 0.008
              momentum               0.388 +- 0.015       0.094 +- 0.020       0.006 +- 0.005
              Adam                   0.254 +- 0.009       0.049 +- 0.004       0.005 +- 0.006
              Adam, best rate        0.254 +- 0.009       0.049 +- 0.004
              Adam, falling          0.251 +- 0.008       0.053 +- 0.006       0.034 +- 0.030
              MLP, NRES              0.215 +- 0.029       0.036 +- 0.003       0.014 +- 0.017
              LSTM, NRES             0.226 +- 0.011       0.033 +- 0.002       0.010 +- 0.017
              MLP, PES               0.247 +- 0.049       0.045 +- 0.015       0.023 +- 0.032
              MLP, full unrolls      0.220 +- 0.038       0.124 +- 0.127       0.203 +- 0.117
              MLP, truncated         0.216 +- 0.014       0.048 +- 0.020       0.044 +- 0.027

          Less Adam's, on the same tasks: the MLP by NRES -0.039 +- 0.024, -0.013 +- 0.004 and +0.010 +- 0.017, the LSTM
          -0.028 +- 0.003, -0.015 +- 0.005 and +0.006 +- 0.016. Five times further than any training in training they
          are above it on average: nothing breaks down, and nothing is gained. That they know when training ends is
          not all: Adam whose rate falls to the 500th step, tuned, is no better there than Adam (+0.004 +- 0.009). As
          many steps of PES show nothing. Those that were trained for 100 steps are below Adam there (truncated by 0.038
          +- 0.019, full unrolls NOT clearly: 0.034 +- 0.047), and further on no better or far above.
          On letters, of which nothing was chosen, losses are ten times smaller: at 100 steps the MLP by NRES has 0.015,
          the LSTM 0.015 and Adam 0.025 (-0.010 +- 0.010 and -0.009 +- 0.007); at 500 all are at 0.002.
          On seeds 20 to 22, before rates were tuned on four times as many tasks, less Adam's: the MLP -0.052 +- 0.059,
          -0.024 +- 0.012, +0.002 +- 0.006; the LSTM -0.031 +- 0.059, -0.014 +- 0.006, +0.004 +- 0.002.
Setting   a task: five digits of MNIST (0 to 4 in training, each under 25 linear maps of the plane a class of its own; 5
          to 9 held out; without MNIST the letters of glyphs), 60 images of 7x7 of each, a random projection of them, a
          perceptron of 8 to 32 units begun at a random scale; mini-batches of 32. Weights begin as Adam at its tuned
          rate. By PES or NRES, which draws noise once a task, in unrolls of 20 of 500 steps, or by back-propagation,
          full or truncated, through 100 steps. Each rival takes the same number of steps on the same 256 held-out
          tasks (a quarter of them beyond 500 steps) from the same starts; the rates of Adam and SGD are tuned on as
          many training tasks for each column anew, the last too, which favours them there; "best rate" is that which is
          best on the judged tasks, which no tuning can know. Of a learned optimiser, the mean of its weights over each
          quarter of its training is tried on a quarter of those training tasks, for up to twice as many steps as it was
          trained for, and the best is judged in all columns. The loss is that of all training images of a task.
Chosen    that there are stages, how many steps, NRES, and the constant of the logarithm of the losses, on other seeds
          (10 to 12), looking at tasks of the held-out digits; what the network may do to a step on seed 10 likewise, as
          were the schedule past the network, the maps of the training digits (by how hard their tasks are for Adam) and
          the mean of the weights. Held-out digits are the same in all seeds, their tasks are not. That 8 units do in
          place of 16, and cost less, was seen on seeds 10 and 11. Runs of seeds 0 to 2 and 20 to 22 were seen
          before the last changes: more tasks to tune and to judge on. The letters were not. The row of rates that fall
          was run by itself (--only, without a name), after the others.
Budget    small: 18.5 minutes with --jobs 2, without that row.
Hardware  small: two CPU cores; full: one GPU.
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


@dataclasses.dataclass(frozen=True)
class Setting:
    horizon: int = 500  # Judged after a fifth of it, all of it and five times as much.
    unroll: int = 20
    steps: int = 1000  # Outer steps by evolution strategies.
    differentiated: int = 80  # Outer steps by back-propagation, each of which costs more.
    tasks: int = 8
    stages: int = 4  # After each the weights are kept; which of them is judged, training tasks say.
    pairs: int = 4
    rate: float = 3e-3  # The LSTM takes a third of it.
    log_above: float = 0.3  # Losses below it count little.
    judged_tasks: int = 256  # Held out; beyond the horizon a quarter of them are.
    tuned_tasks: int = 256  # Of training, by which the rates of the rivals are chosen; stages, by a quarter of them.
    hidden: tuple[int, ...] = (8, 8)
    units: tuple[int, ...] = (8,)
    batch_size: int = 32


FULL = Setting(
    steps=5000,
    differentiated=1500,
    tasks=32,
    pairs=8,
    rate=1e-3,
    judged_tasks=1024,
    tuned_tasks=1024,
    hidden=(32, 32),
    units=(20,),
)


@functools.cache
def rivals_of(setting: Setting) -> dict[str, tuple[Callable, np.ndarray]]:
    """Give what learned optimisers are compared with: how each is made of a rate, and the rates to choose from."""
    return {
        "SGD": (optax.sgd, np.geomspace(0.2, 5.0, 8)),
        "momentum": (functools.partial(optax.sgd, momentum=0.9), np.geomspace(0.05, 1.0, 8)),
        "Adam": (optax.adam, np.geomspace(0.02, 0.25, 12)),
        # Somebody knew how long training will last, as those that are learned do.
        "Adam, falling": (
            lambda rate: optax.adam(optax.cosine_decay_schedule(rate, setting.horizon, 0.05)),
            np.geomspace(0.03, 0.5, 10),
        ),
    }


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


def quarter_of(episodes):
    return jax.tree.map(lambda leaf: leaf[: max(1, leaf.shape[0] // 4)], episodes)


def judge(transform, thetas: list, places: dict[int, int], episodes, key, setting: Setting) -> tuple[dict, dict]:
    """Judge thetas on held-out tasks, of which a quarter go on beyond the horizon.

    Args:
      transform: The optimiser of a theta.
      thetas: What there is to judge.
      places: Which of them counts after how many steps.

    Returns:
      `{steps: mean loss}`, and `{steps: its curve}` of means over tasks.
    """
    losses, curves = {}, {}
    for length, part in ((1, episodes), (5, quarter_of(episodes))):
        wanted = {steps: place for steps, place in places.items() if (steps > setting.horizon) == (length > 1)}
        for place in sorted(set(wanted.values())):
            curve = loss_curves(transform, [thetas[place]], part, key, setting, length)
            means = {kind: values[0].mean(0).tolist() for kind, values in curve.items()}
            for steps in (steps for steps in wanted if wanted[steps] == place):
                losses[steps], curves[steps] = means["loss"][columns(setting)[steps]], means
    return dict(sorted(losses.items())), curves


def run_seed(seed: int, sources, trained: dict[str, tuple[Contender, Callable]], setting: Setting) -> dict:
    """Tune the rivals, train the contenders, judge all on the held-out tasks."""
    training, held_out = sources
    key_tuning, key_judged, key_curves, key_train = jax.random.split(jax.random.key(seed), 4)
    tuning = training.sample(key_tuning, training.pool, training.spec, setting.tuned_tasks)
    few = quarter_of(tuning)
    judged = {
        name: source.sample(key_judged, source.pool, source.spec, setting.judged_tasks)
        for name, source in held_out.items()
    }
    first, *_ = judged
    result = {"seed": seed, "rates": {}, "curves": {}, "meta_training": {}, "seconds": {}, "stages": {}}
    result["loss"] = {name: {} for name in judged}

    def judge_all(name, transform, thetas, places):
        for where, episodes in judged.items():
            # On the first alone, beyond the horizon too.
            here = {steps: place for steps, place in places.items() if where == first or steps <= setting.horizon}
            result["loss"][where][name], curves = judge(transform, thetas, here, episodes, key_curves, setting)
            for steps, means in curves.items() if where == first else ():
                # What is learned has one curve, of which the last that comes is the longest.
                label = f"{name} tuned for {steps}" if name in rivals else name
                ends = [setting.unroll * (point + 1) for point in range(len(means["loss"]))]
                result["curves"][label] = {"steps": ends, **means}

    rivals = rivals_of(setting)
    for name, (make, rates) in rivals.items():
        began = time.time()
        rates = list(rates.astype(np.float32))
        near, far = (
            loss_curves(make, rates, part, key_curves, setting, length)["loss"].mean(1)
            for part, length in ((tuning, 1), (few, 5))
        )
        places = {
            steps: int((near if steps <= setting.horizon else far)[:, point].argmin())
            for steps, point in columns(setting).items()
        }
        result["rates"][name] = {steps: float(rates[place]) for steps, place in places.items()}
        judge_all(name, make, rates, places)
        result["seconds"][name] = round(time.time() - began, 1)
        print(f"seed {seed}: {name} {result['loss'][first][name]} at rates {result['rates'][name]}", flush=True)
    # What no tuning can know: the rate that is best on the very tasks that are judged.
    make, rates = rivals["Adam"]
    every = loss_curves(make, list(rates.astype(np.float32)), judged[first], key_curves, setting, length=1)["loss"]
    near = {steps: point for steps, point in columns(setting).items() if steps <= setting.horizon}
    result["loss"][first][BOUND] = {steps: float(every[..., point].mean(1).min()) for steps, point in near.items()}
    for number, (name, (contender, train)) in enumerate(trained.items()):
        optimizer, horizon, began = contender.optimizer, contender.horizon, time.time()
        key_init, key_fit = jax.random.split(jax.random.fold_in(key_train, number))
        # Adam at its tuned rate is where the training of the optimiser begins.
        begin = optimizer.as_adam(optimizer.init(key_init), result["rates"]["Adam"][setting.horizon])
        thetas, rows = train(begin, key_fit)
        # Chosen on tasks that the rates of the rivals are; twice as far too, or what is about to diverge is kept.
        far = 2 if horizon == setting.horizon else 1
        tried = loss_curves(optimizer.transform, thetas, few, key_curves, setting, length=far)["loss"].mean(1)
        points = [max(steps // setting.unroll, 1) - 1 for steps in (horizon // 5, horizon, 2 * horizon)]
        kept = int(np.log(tried[:, points] + 1e-3).mean(1).argmin())
        result["stages"][name] = kept + 1
        judge_all(name, optimizer.transform, [thetas[kept]], dict.fromkeys(columns(setting), 0))
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
    parser.add_argument(
        "--only", nargs="*", choices=contenders(Setting()), help="these contenders, or none; default all"
    )
    for name in ("steps", "horizon", "unroll", "tasks", "judged-tasks", "tuned-tasks"):
        parser.add_argument(f"--{name}", type=int, help=f"default {getattr(Setting(), name.replace('-', '_'))}")
    options = parser.parse_args(arguments)
    names = ("steps", "horizon", "unroll", "tasks", "judged_tasks", "tuned_tasks")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    setting = dataclasses.replace(FULL if options.full else Setting(), **changes)
    if setting.horizon % (5 * setting.unroll):
        parser.error("the horizon must be a multiple of five unrolls, or there is no point of a curve at a fifth of it")
    began = time.time()
    sources = make_sources(options.data_dir)
    wanted = contenders(setting) if options.only is None else options.only
    chosen = {name: one for name, one in contenders(setting).items() if name in wanted}
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
