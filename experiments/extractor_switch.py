"""One switch chooses a feature extractor for every task from its meta-features, beside every single extractor.

Paper     none; prototypes are those of Snell, Swersky and Zemel, 2017, arXiv 1703.05175, the random features those of
          Rahimi and Recht, 2007. Choosing an algorithm by features of the task: Rice, 1976, "The Algorithm Selection
          Problem".
Command   python experiments/extractor_switch.py --mnist DIR --cifar10 DIR [--full] [--jobs 2] [--out FOLDER]
Ways      principal components, random Fourier features, and Conv-4 and ResNet-12 trained as prototypical networks,
          each of which says by the nearest class mean of its features; the one that is best on the tasks of the second
          part; the switch, which sees the examples of a task and not where it is from; and the best on each task,
          which nobody knows beforehand, and which is the highest of four accuracies with noise.
Asked     the switch above every single extractor, or the report says that it is not.
Reached   it is NOT: it is below the best single one. Three seeds that were not seen before (--first-seed 40), accuracy
          in %, means with 95 % intervals.

                                       digits          letters         photographs     all
              principal components     76.4 +- 4.5     75.5 +- 1.4     41.8 +- 3.2     64.6 +- 3.0
              random features          78.7 +- 2.0     76.2 +- 0.2     43.7 +- 1.3     66.2 +- 0.2
              Conv-4                   81.7 +- 6.5     88.5 +- 4.7     48.2 +- 5.7     72.8 +- 3.4
              ResNet-12                83.2 +- 3.9     88.5 +- 2.7     46.2 +- 2.2     72.6 +- 1.4
              best single one          81.7 +- 6.5     88.5 +- 4.7     48.2 +- 5.7     72.8 +- 3.4
              switch                   79.7 +- 2.7     88.2 +- 4.6     42.3 +- 2.5     70.0 +- 1.4
              best on each task        87.6 +- 2.1     92.5 +- 1.6     54.1 +- 3.1     78.1 +- 0.7

          The switch less the best single one is -2.8 +- 2.1 points, less principal components +5.5 +- 4.1, less random
          features +3.9 +- 1.6. What it loses it loses on photographs: classes of the second part, of digits and
          photographs three each, are few to learn from which extractor suits what.
Setting   a task: three classes of digits, of letters of many scripts, or of photographs in grey, all 28x28, with 1, 3
          or 10 examples a class. The classes are in three parts, of digits and photographs by the seed: Conv-4 and
          ResNet-12 are trained on the first, the switch is fitted to tasks of the second, all are judged on the third.
          The means are of all three sources and numbers of examples alike.
Budget    small: 13 minutes with --jobs 2, beside other work.
Hardware  small: two CPU cores; full: meant for a GPU.
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
from seeds import add_seeds, each_seed

from jaxmeta import (
    ClassPool,
    Episode,
    EpisodeSpec,
    Model,
    TaskSource,
    accuracy,
    conv4,
    estimate,
    fit,
    init_train_state,
    load_glyphs,
    load_mnist,
    make_train_step,
    protonet,
    resnet12,
    sample_episodes,
    within_groups,
)
from jaxmeta.data import load_cifar10_arrays
from jaxmeta.data.episodes import GroupedPool, sample_within_groups
from jaxmeta.metrics import paired_difference
from jaxmeta.tuning import (
    Experience,
    choice_probabilities,
    fit_pca,
    fit_switch,
    pca_extractor,
    random_extractor,
    task_features,
)

SIZE, WAYS, SHOTS, PER_CLASS = 28, 3, (1, 3, 10), 200
SPEC = EpisodeSpec(WAYS, max(SHOTS), queries=10)
# Of the classes of digits and of photographs, in an order that the seed draws.
PARTS = {"train": slice(0, 4), "validation": slice(4, 7), "test": slice(7, 10)}
SOURCES = ("digits", "letters", "photographs")
SINGLE, SWITCH, ORACLE = "best single one", "switch", "best on each task"


class Setting(NamedTuple):
    """How large everything is; `tasks` are those of each source and number of examples."""

    filters: int = 16
    width: int = 8
    steps: int = 300
    tasks: int = 150


FULL = Setting(64, 64, 10_000, 1000)


class Tasks(NamedTuple):
    """Classes in groups, and the examples of a class in a task, 0 for any of SHOTS."""

    pool: GroupedPool
    shots: jax.Array


def sample_few(key, pool: Tasks, spec: EpisodeSpec, num_tasks: int, *, first_task=0) -> Episode:
    """Draw tasks of one source each; examples beyond the task's shots weigh nothing."""
    episodes = sample_within_groups(key, pool.pool, spec, num_tasks, first_task=first_task)

    def weigh(targets, key):
        number = jnp.where(pool.shots > 0, pool.shots, jax.random.choice(key, jnp.array(SHOTS)))
        own = targets[:, None] == jnp.arange(spec.ways)
        # How many of its class have come so far, this one with them.
        return ((jnp.cumsum(own, 0) * own).sum(1) <= number).astype(jnp.float32)

    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 1)))(first_task + jnp.arange(num_tasks))
    weights = jax.vmap(weigh)(episodes.support.targets, keys)
    return episodes._replace(support=episodes.support._replace(weights=weights))


def load(mnist: Path | None, cifar10: Path | None) -> dict[str, list[np.ndarray]]:
    """Give the images `[images, 28, 28, 1]` of each of the ten digits and of the ten kinds of photographs."""
    digits = load_mnist(data_dir=mnist).splits
    of_training = [
        digits[split].images[row][: digits[split].counts[row]] for split in ("train", "validation") for row in range(5)
    ]
    images, labels = load_cifar10_arrays(data_dir=cifar10, image_size=SIZE)["train"]
    grey = np.rint(images.mean(-1, keepdims=True)).astype(np.uint8)
    return {"digits": of_training, "photographs": [grey[labels == label] for label in range(10)]}


def divide(data: dict[str, list[np.ndarray]], seed: int) -> dict[str, dict[str, list[np.ndarray]]]:
    """Draw which classes are in which part, and some images of each; the letters have parts of their own."""
    rng, letters = np.random.default_rng(seed), load_glyphs().splits
    orders = {name: rng.permutation(len(classes)) for name, classes in data.items()}

    def some(images):
        return images[rng.permutation(len(images))[:PER_CLASS]]

    parts = {}
    for part, places in PARTS.items():
        parts[part] = {name: [some(data[name][label]) for label in order[places]] for name, order in orders.items()}
        parts[part]["letters"] = list(letters[part].images)
    return parts


def tasks_of(classes: dict[str, list[np.ndarray]], shots: int = 0) -> TaskSource:
    """Make a source of tasks with so many examples a class, each of one of the sources of images."""
    all_images = [images for of_source in classes.values() for images in of_source]
    counts = np.array([len(images) for images in all_images], np.int32)
    padded = np.zeros([len(counts), counts.max(), SIZE, SIZE, 1], np.uint8)
    for images, into in zip(all_images, padded, strict=True):
        into[: len(images)] = images
    pool = jax.device_put(ClassPool(padded, counts))
    groups = [name for name, of_source in classes.items() for _ in of_source]
    grouped = within_groups(TaskSource(sample_episodes, pool, SPEC), groups)
    return TaskSource(sample_few, Tasks(grouped.pool, jnp.int32(shots)), SPEC)


class Extractor(NamedTuple):
    """A model with what its `init`, or its training, has made."""

    model: Model
    params: dict
    state: dict


def make_extractors(source: TaskSource, setting: Setting, key) -> dict[str, Extractor]:
    """Fit the first two to images, and train the networks on tasks, of the first part."""
    episodes = source.sample(key, source.pool, SPEC, 40)
    images = episodes.query.inputs.reshape(-1, SIZE, SIZE, 1)
    found = {}
    for name, model in {
        "principal components": pca_extractor(32),
        "random features": random_extractor(512),
    }.items():
        found[name] = Extractor(model, *model.init(key, images))
    for name, model in {
        "Conv-4": conv4(WAYS, filters=setting.filters),
        "ResNet-12": resnet12(WAYS, width=setting.width),
    }.items():
        learner = protonet(model, ways=WAYS)
        optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, setting.steps))
        begin = init_train_state(key, learner, optimizer, source, num_tasks=8)
        step = make_train_step(learner, optimizer)
        in_a_call = min(50, setting.steps)
        trained = fit(step, begin, source, key, num_tasks=8, num_steps=setting.steps, steps_per_call=in_a_call)
        found[name] = Extractor(model, trained.meta_params, trained.state)
    return found


@partial(jax.jit, static_argnames="model")
def scores_of(model: Model, params, state, episodes: Episode) -> jax.Array:
    """Say the class of each query by the nearest class mean of features; accuracies `[tasks]`."""
    learner = protonet(model, ways=WAYS)

    def of_task(episode: Episode):
        adapted = learner.adapt(params, state, episode.support, jax.random.key(0))
        outputs = learner.predict(adapted, episode.query, jax.random.key(0))
        return accuracy(outputs, episode.query.targets, episode.query.weights)

    return jax.lax.map(of_task, episodes, batch_size=25)


def experience_of(extractors: dict[str, Extractor], pca, episodes: Episode) -> Experience:
    """Try every extractor on every task, and describe the tasks."""
    scores = [scores_of(*extractor, episodes) for extractor in extractors.values()]
    described = jax.lax.map(lambda batch: task_features(pca, batch, WAYS), episodes.support, batch_size=25)
    return Experience(described, jnp.stack(scores, 1))


def run_seed(data: dict, setting: Setting, seed: int) -> dict:
    """Train extractors, fit the switch to the second part, judge all on the third."""
    key_train, key_known, key_test, key_fit = jax.random.split(jax.random.key(seed), 4)
    training = tasks_of(data["train"])
    extractors = make_extractors(training, setting, key_train)
    pixels = training.sample(key_train, training.pool, SPEC, 40).query.inputs
    pca = fit_pca(pixels.reshape(-1, SIZE, SIZE, 1), 16)

    def tried(part: str, key) -> dict[tuple[str, int], Experience]:
        found = {}
        for place, (name, shots) in enumerate((name, shots) for name in SOURCES for shots in SHOTS):
            source = tasks_of({name: data[part][name]}, shots)
            episodes = source.sample(jax.random.fold_in(key, place), source.pool, SPEC, setting.tasks)
            found[name, shots] = experience_of(extractors, pca, episodes)
        return found

    known, judged = tried("validation", key_known), tried("test", key_test)
    experience = jax.tree.map(lambda *parts: jnp.concatenate(parts), *known.values())
    switch = fit_switch(key_fit, experience)
    single = int(experience.scores.mean(0).argmax())
    result: dict = {"seed": seed, "single": list(extractors)[single], "accuracy": {}, "chosen": {}}
    for (name, shots), (features, scores) in judged.items():
        chosen = choice_probabilities(switch, features).argmax(-1)
        ways = {one: scores[:, place] for place, one in enumerate(extractors)}
        ways[SINGLE] = scores[:, single]
        ways[SWITCH] = jnp.take_along_axis(scores, chosen[:, None], 1)
        ways[ORACLE] = scores.max(1)
        where = f"{name}, {shots}"
        result["accuracy"][where] = {way: 100 * float(found.mean()) for way, found in ways.items()}
        result["chosen"][where] = np.bincount(chosen, minlength=len(extractors)).tolist()
    result["mean"] = {way: float(np.mean([row[way] for row in result["accuracy"].values()])) for way in ways}
    print(f"seed {seed}: {', '.join(f'{way} {mean:.1f}' for way, mean in result['mean'].items())}", flush=True)
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder with the four files of MNIST; None: the cache or a download")
    parser.add_argument("--cifar10", type=Path, help="folder with CIFAR-10; None: the cache or a download")
    parser.add_argument("--full", action="store_true", help="the setting for a GPU")
    add_seeds(parser)
    parser.add_argument("--steps", type=int, help="outer steps of the networks, in place of the setting's")
    parser.add_argument("--tasks", type=int, help="of each source and size, in place of the setting's")
    parser.add_argument("--out", type=Path, default=Path("runs/extractor-switch"), help="folder of the figures")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("steps", "tasks") if getattr(options, name) is not None}
    setting = (FULL if options.full else Setting())._replace(**given)
    began = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    data = load(options.mnist, options.cifar10)
    runs = each_seed(lambda seed: run_seed(divide(data, seed), setting, seed), options)
    print(f"\nAccuracy in % on classes not met before, {options.seeds} seeds, 95 % intervals\n")
    print(f"| way | {' | '.join(SOURCES)} | all |\n| --- {'| --- ' * (len(SOURCES) + 1)}|")
    for way in runs[0]["mean"]:
        cells = []
        for name in SOURCES:
            of_name = [f"{name}, {shots}" for shots in SHOTS]
            cells.append(estimate([np.mean([run["accuracy"][where][way] for where in of_name]) for run in runs]))
        cells.append(estimate([run["mean"][way] for run in runs]))
        print(f"| {way} | {' | '.join(f'{cell.mean:.1f} ± {cell.ci95:.1f}' for cell in cells)} |")
    print()
    for other in [way for way in runs[0]["mean"] if way not in (SWITCH, ORACLE)]:
        gap = paired_difference(*([run["mean"][way] for run in runs] for way in (SWITCH, other)))
        print(f"{SWITCH} less {other}: {gap.mean:+.1f} ± {gap.ci95:.1f}")
    record = {"setting": setting._asdict(), "seconds": time.perf_counter() - began, "runs": runs}
    (options.out / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{options.out}/result.json; {record['seconds']:.0f} s")


if __name__ == "__main__":
    main()
