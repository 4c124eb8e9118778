"""A controller that sets hyper-parameters while CIFAR-10 is trained on, learned as a deep Q-network.

Paper     Mnih et al., 2015, "Human-level control through deep reinforcement learning", Nature 518; van Hasselt, Guez
          and Silver, 2016, arXiv 1509.06461. The view of training as a decision process is that of Li and Malik, 2016,
          arXiv 1606.01885, and of Daniel, Taylor and Nowozin, 2016.
Command   python experiments/cifar10_controller.py --data-dir FOLDER [--full] [--seeds 3] [--jobs 2] [--out FOLDER]
Asked     the reward improves with training, above random actions by a clear interval; the report says where it stands
          against the hypergradient at equal cost.
Reached   three seeds on which nothing was made (--first-seed 20), test accuracy in %, means with 95 % intervals; ahead:
          of random actions.

              who sets                        from the default   ahead           from anywhere    ahead
              learned controller              40.7 +- 3.4        18.1 +- 13.1    41.2 +- 2.2      22.0 +- 20.0
              random actions                  22.5 +- 10.8                       19.2 +- 19.4
              left as it begins               40.8 +- 1.6        18.2 +- 9.3     28.9 +- 7.3       9.7 +- 12.4
              best of 16 random settings      40.9 +- 0.5        18.4 +- 10.4
              best of 160 random settings     42.1 +- 0.4        19.5 +- 10.8
              hypergradient                   43.7 +- 1.2        21.2 +- 9.7

          What an episode gains rises from 12.4 (its first fifth) to 31.4 points (its last), by 19.0 +- 7.4. From
          anywhere it is above leaving the hyper-parameters alone by 12.3 +- 8.4; from the default, which is good, it
          gains nothing over leaving that alone (-0.1 +- 4.8). From the best of as many random settings it cannot be
          told apart (-1.4 +- 3.1; from anywhere -0.9 +- 1.8); the hypergradient at equal cost is above it on average,
          NOT clearly (3.0 +- 4.1). It lowers the momentum towards the end on each seed; of the rest the seeds differ.
          Seeds 0 to 2 gave the same: 17.6 +- 9.4 and 20.4 +- 2.9 above random actions, and 17.7 +- 7.2 more reward.
Way       one network judges every action by the hyper-parameters that it would lead to (afterstates), from the rewards
          of five decisions and what is believed of the state after them. Values of each action for itself, from one
          reward, had come no further than to keep away from what kills a classifier (31.3 and 27.4).
Setting   50 decisions an episode, each of 27 joint actions: learning rate, momentum and weight decay are each lowered,
          kept or raised, then a few gradient steps follow; the reward is what validation accuracy gained. Small: 16x16
          images, 8 and 16 channels, 500 steps of 32. Full: the article's network on 32x32 images, 2500 steps of 128.
Budget    every classifier is trained by the same number of gradient steps. What was spent before, on learning the
          controller, on searching or on the hypergradient (a meta-network that decides as often), is a column: the
          longer random search has spent exactly what the controller has, and the hypergradient no more, where a
          training that is differentiated counts 6, as measured in cifar10_metanet.py; in seconds it took less than half
          of what learning the controller did (67 and 154). The controller is learned from episodes that begin anywhere,
          the hypergradient from the default setting. All of them see the same training and validation images; test
          images are looked at once in a run, at its end.
Chosen    how actions are judged and over how many decisions, by validation images on other seeds (10, 11), after test
          figures of another network on seeds 0 to 2 had been seen, in which the controller had failed.
Hardware  small: 13 minutes on two CPU cores with --jobs 2; full: for a GPU.
"""

import argparse
import json
import math
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

from jaxmeta.base import Batch, Episode, Key, PyTree, example_batch
from jaxmeta.data import load_cifar10_arrays
from jaxmeta.folder import write_atomically
from jaxmeta.losses import accuracy
from jaxmeta.metrics import estimate, paired_difference
from jaxmeta.models import mlp
from jaxmeta.tuning import (
    Environment,
    Hypers,
    Network,
    QLearner,
    Range,
    Training,
    afterstate_values,
    conv_net,
    dqn,
    keep_action,
    learn_over_trainings,
    meta_network,
    outputs_in_parts,
    rollout,
    share_moves,
    shares_of,
    training_environment,
    training_objective,
    validation_loss_of,
    values_at,
    whole_training,
)

CLASSES = 10
RANGES = {
    "learning_rate": Range(1e-3, 1.0),
    "momentum": Range(0.0, 0.98, "linear"),
    "weight_decay": Range(1e-5, 1e-1),
}
DEFAULT = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
# Of a range, from end to end.
LEVELS = 10
# What a training that is differentiated counts, in trainings: about as many times as long in cifar10_metanet.py.
DIFFERENTIATED = 6
# Of the meta-network, each tried in as many trainings as there are environments.
CANDIDATES = 3


class Setting(NamedTuple):
    """How much of everything; episodes are a multiple of the environments."""

    image_size: int = 16
    widths: tuple[int, ...] = (8, 16)
    hidden: int = 32
    train: int = 10000
    validation: int = 256
    test: int = 10000
    batch_size: int = 32
    num_decisions: int = 50
    steps_between: int = 10
    num_environments: int = 8
    episodes: int = 160
    short_search: int = 16
    updates: int = 8
    starts: int = 2

    @property
    def iterations(self) -> int:
        return self.episodes * self.num_decisions // self.num_environments

    @property
    def meta_steps(self) -> int:
        """Those of the meta-network that cost what the controller does."""
        return (self.episodes - CANDIDATES * self.num_environments) // (DIFFERENTIATED * self.starts)

    @property
    def trainings_by_gradient(self) -> int:
        """Trainings that the steps of the meta-network and the trials of its candidates cost."""
        return self.meta_steps * DIFFERENTIATED * self.starts + CANDIDATES * self.num_environments


FULL = Setting(32, (64, 128), 512, 45000, 5000, 10000, 128, 50, 50, 32, 2048, 32, 16)
CHANGES = ("image_size", "train", "validation", "test", "num_decisions", "steps_between", "episodes")
WAYS = ("learned", "at random", "left alone")
# Who goes on from the hyper-parameters that a training begins with; the others bring their own.
BEGIN = ("learned controller", "random actions", "left as it begins")


class Ended(NamedTuple):
    """Classifiers `[judged, ...]` after their last step; values are those of each decision, by hyper-parameter."""

    params: PyTree
    diverged: jax.Array
    validation: jax.Array
    values: dict[str, jax.Array]


# Trains classifiers from given beginnings by `num_decisions * steps_between` gradient steps each.
Contender = Callable[[Training, Episode, Key], Ended]


def load(setting: Setting, data_dir: Path | None, seed: int, random_data: bool) -> tuple[Episode, Batch]:
    """Draw training and validation images from the official training ones; test images from the official test ones."""
    rng = np.random.default_rng(seed)
    if random_data:
        shape = (setting.train + setting.validation, setting.image_size, setting.image_size, 3)
        arrays = {part: (rng.integers(0, 256, shape, np.uint8), np.arange(shape[0]) % 10) for part in ("train", "test")}
    else:
        arrays = load_cifar10_arrays(data_dir=data_dir, image_size=setting.image_size)

    def batch(part: str, chosen: np.ndarray) -> Batch:
        images, labels = (array[chosen] for array in arrays[part])
        return example_batch(jnp.asarray(images / np.float32(127.5) - 1), jnp.asarray(labels, jnp.int32))

    order = rng.permutation(len(arrays["train"][1]))
    train, validation = order[: setting.train], order[setting.train :][: setting.validation]
    test = rng.permutation(len(arrays["test"][1]))[: setting.test]
    return Episode(batch("train", train), batch("train", validation)), batch("test", test)


def make_learner(environment: Environment, setting: Setting) -> QLearner:
    iterations = setting.iterations
    rate = optax.linear_schedule(1e-3, 1e-4, iterations * setting.updates)
    return dqn(
        environment,
        afterstate_values(mlp(1, hidden=(64, 64)), share_moves(len(RANGES), LEVELS)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        discount=0.98,
        temperature=optax.exponential_decay(0.05, iterations, 0.04),
        num_environments=setting.num_environments,
        capacity=iterations * setting.num_environments,
        batch_size=128,
        updates=setting.updates,
        learn_after=min(500, iterations),
        steps_ahead=min(5, setting.num_decisions),
    )


def make_learn(learner: QLearner, setting: Setting) -> Callable:
    """Compile the whole of Q-learning as one scan: to the network, and the return of each episode."""

    @jax.jit
    def run(key, data):
        start = learner.init(key, data)
        return jax.lax.scan(lambda state, _: learner.iterate(state, data), start, length=setting.iterations)

    def learn(key, data: Episode) -> tuple[PyTree, dict]:
        state, metrics = jax.device_get(run(key, data))
        curve = {"return": metrics["return"][metrics["done"]].tolist(), "loss": metrics["loss"].tolist()}
        return state.params, curve | {"diverged": int(metrics["failed"].sum())}

    return learn


def make_play(environment: Environment, learner: QLearner, setting: Setting) -> Callable:
    """Compile once what trains by any of the policies: which is a place in `WAYS`."""

    def play(states: Training, data: Episode, key, network: PyTree, which):
        def policy(observation, key):
            learned = learner.policy(network)(observation, key)
            at_random = jax.random.randint(key, [], 0, environment.num_actions)
            return jnp.stack([learned, at_random, keep_action(environment)])[which]

        def one(state, key):
            ended, trace = rollout(environment, policy, state, data, key, setting.num_decisions)
            # What is observed before a decision was used after the one before.
            used = jnp.concatenate([trace.observation[1:, -len(RANGES) :], ended.shares[None]])
            values = values_at(RANGES, used)
            return Ended(ended.params, ended.diverged, ended.now.accuracy, values)

        return jax.vmap(one)(states, jax.random.split(key, states.decisions.shape[0]))

    return jax.jit(play)


def search(begin, play, network: PyTree, setting: Setting, states: Training, data: Episode, key) -> dict:
    """Train with random settings, from anywhere; keep the best of a few, and of as many as the controller had episodes.

    Of many, the best three of single trainings are tried from as many given beginnings as the meta-networks are, and
    those trainings count.
    """
    shares, found = [], []
    for part in range(setting.episodes // setting.num_environments - CANDIDATES):
        key_of_part = jax.random.fold_in(key, part)
        drawn = begin(jax.random.split(key_of_part, setting.num_environments), data)
        shares.append(drawn.shares)
        found.append(reached(play(drawn, data, key_of_part, network, WAYS.index("left alone"))))
    shares, found = np.concatenate(shares), np.concatenate(found)

    def tried(start):
        of_start = states._replace(shares=jnp.broadcast_to(start, states.shares.shape))
        return reached(play(of_start, data, key, network, WAYS.index("left alone"))).mean()

    few = setting.short_search
    best = [shares[place] for place in np.argsort(found)[-CANDIDATES:]]
    return {few: shares[found[:few].argmax()], setting.episodes: max(best, key=tried)}


def reached(ended: Ended) -> np.ndarray:
    """Give the accuracies on validation images; of what diverged, that of guessing."""
    return np.where(ended.diverged, 1 / CLASSES, ended.validation)


def make_tune_by_gradient(network: Network, setting: Setting) -> Callable:
    """Make what learns a meta-network, which decides as often on as much, at the cost of what the controller learned.

    It learns over whole trainings. Of what it is at the end, was at its best, and was on the mean of its last third,
    the one is kept that leads classifiers from the given beginnings to the highest validation accuracy. Returns what
    trains by it, and how many trainings diverged and steps were not taken.
    """
    controller = meta_network(RANGES, Hypers(**DEFAULT))
    train = whole_training(
        training_objective(network, setting.batch_size),
        validation_loss_of(network, setting.batch_size),
        controller,
        num_rounds=setting.num_decisions,
        num_steps=setting.steps_between,
        averaged_rounds=0,
    )
    meta_steps = setting.meta_steps
    begin, step = learn_over_trainings(
        train,
        validation_loss_of(network, setting.validation),
        controller,
        optax.adam(0.15, b1=0.8, b2=0.95),
        schedule=optax.cosine_decay_schedule(1.0, meta_steps, 0.1),
        max_norm=0.3,
        max_rise=0.15,
        max_loss=1.5 * math.log(CLASSES),
    )

    @jax.jit
    def learn(key, data: Episode):
        def one(state, key):
            keys = jax.random.split(key, setting.starts)
            params = jax.vmap(lambda key: network.init(key, data.support.inputs[:1]))(keys)
            state, _ = step(state, params, data.support, data.query, key)
            return state, state.theta

        state, thetas = jax.lax.scan(one, begin(controller.init(key)), jax.random.split(key, meta_steps))
        mean = jax.tree.map(lambda leaf: leaf[-max(1, meta_steps // 3) :].mean(0), thetas)
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), state.theta, state.best_theta, mean)

    @jax.jit
    def train_by(theta, states: Training, data: Episode, key) -> Ended:
        def one(state, key):
            trained = train(theta, state.params, data.support, key)
            reached = accuracy(network.apply(trained.params, data.query.inputs), *data.query[1:])
            values = {name: getattr(trained.hypers, name) for name in RANGES}
            return Ended(trained.params, ~jnp.isfinite(optax.tree.norm(trained.params)), reached, values)

        return jax.vmap(one)(states, jax.random.split(key, states.decisions.shape[0]))

    def tune(states: Training, data: Episode, key):
        key_learn, key_try = jax.random.split(key)
        state, candidates = jax.block_until_ready(learn(key_learn, data))
        thetas = [jax.tree.map(lambda leaf, place=place: leaf[place], candidates) for place in range(CANDIDATES)]
        tried = [jax.device_get(train_by(theta, states, data, key_try)) for theta in thetas]
        best = np.argmax([reached(ended).mean() for ended in tried])
        return partial(train_by, thetas[best]), {"diverged": int(state.diverged), "skipped": int(state.skipped)}

    return tune


def contenders(play, network: PyTree, searched: dict[int, np.ndarray], by_gradient, setting: Setting) -> dict:
    """Make what is compared, with the gradient steps that each spent beforehand. Another rival is another row."""
    many, a_training = setting.episodes, setting.num_decisions * setting.steps_between

    def of(way: str, start=None) -> Contender:
        def train(states, data, key):
            if start is not None:
                states = states._replace(shares=jnp.broadcast_to(start, states.shares.shape))
            return play(states, data, key, network, WAYS.index(way))

        return train

    return {
        "learned controller": (of("learned"), many * a_training),
        "random actions": (of("at random"), 0),
        "left as it begins": (of("left alone"), 0),
        "hypergradient": (by_gradient, setting.trainings_by_gradient * a_training),
    } | {
        f"random search, {number} trainings": (of("left alone", start), number * a_training)
        for number, start in searched.items()
    }


def accuracies_on(network: Network, params: PyTree, test: Batch) -> jax.Array:
    """Look at the test images, 500 at a time, with each of several classifiers `[judged, ...]`."""

    def of_one(params):
        return accuracy(outputs_in_parts(network, params, test.inputs), *test[1:])

    return jax.lax.map(of_one, params)


def judge(train: Contender, on_test: Callable, states: Training, data: Episode, test: Batch, key) -> dict:
    """Train and look at the test images; a classifier that diverged guesses."""
    ended = jax.device_get(train(states, data, key))
    accuracies = np.where(ended.diverged, 1 / CLASSES, on_test(ended.params, test))
    medians = {name: np.median(values, 0).tolist() for name, values in ended.values.items()}
    return {"accuracy": accuracies.tolist(), "diverged": int(ended.diverged.sum()), "hyper_parameters": medians}


class Programs(NamedTuple):
    """What compiles once for all seeds: see `make_programs`."""

    learn: Callable
    begin: Callable
    play: Callable
    tune_by_gradient: Callable
    on_test: Callable


def make_programs(setting: Setting) -> Programs:
    network = conv_net(CLASSES, widths=setting.widths, hidden=setting.hidden)
    environment = training_environment(
        network,
        RANGES,
        num_decisions=setting.num_decisions,
        steps_between=setting.steps_between,
        batch_size=setting.batch_size,
        levels=LEVELS,
    )
    learner = make_learner(environment, setting)
    return Programs(
        make_learn(learner, setting),
        jax.jit(jax.vmap(environment.reset, (0, None))),
        make_play(environment, learner, setting),
        make_tune_by_gradient(network, setting),
        jax.jit(partial(accuracies_on, network)),
    )


def run_seed(setting: Setting, options: argparse.Namespace, programs: Programs, seed: int) -> dict:
    data, test = load(setting, options.data_dir, seed, options.random_data)
    begin, play = programs.begin, programs.play
    key_learn, key_search, key_start, key_judge, key_gradient, key_tried = jax.random.split(jax.random.key(seed), 6)
    record, began = {"seed": seed, "judged": {}}, time.perf_counter()
    params, record["curve"] = programs.learn(key_learn, data)
    record["seconds_learning"], began = time.perf_counter() - began, time.perf_counter()
    tried = begin(jax.random.split(key_tried, setting.num_environments), data)
    searched = search(begin, play, params, setting, tried, data, key_search)
    record["seconds_searching"], began = time.perf_counter() - began, time.perf_counter()
    by_gradient, record["by_gradient"] = programs.tune_by_gradient(tried, data, key_gradient)
    record["seconds_by_gradient"], began = time.perf_counter() - began, time.perf_counter()
    # All begin from the same weights and hyper-parameters, and all but the hypergradient see mini-batches in one order.
    anywhere = begin(jax.random.split(key_start, setting.num_environments), data)
    default = anywhere._replace(shares=jnp.broadcast_to(shares_of(RANGES, DEFAULT), anywhere.shares.shape))
    for name, (train, spent) in contenders(play, params, searched, by_gradient, setting).items():
        for start, states in (("default", default), ("anywhere", anywhere))[: 2 if name in BEGIN else 1]:
            result = judge(train, programs.on_test, states, data, test, key_judge)
            record["judged"][f"{start}: {name}"] = result | {"gradient_steps_before": spent}
    record["seconds_judging"] = time.perf_counter() - began
    print(json.dumps({name: value for name, value in record.items() if name.startswith("se")}), flush=True)
    return record


def report(records: list[dict], setting: Setting) -> str:
    """Lay out the learning curve and the test accuracies: means over seeds with 95 % intervals, in per cent."""
    parts = np.array_split(np.arange(min(len(record["curve"]["return"]) for record in records)), 5)
    lines = ["| episodes | return (validation accuracy gained, points) |", "| --- | --- |"]
    for part in parts:
        means = [100 * np.mean(np.asarray(record["curve"]["return"])[part]) for record in records]
        lines.append(f"| {part[0] + 1}-{part[-1] + 1} | {shown(means)} |")
    fifths = [
        [100 * np.mean(np.asarray(record["curve"]["return"])[part]) for record in records]
        for part in (parts[0], parts[-1])
    ]
    gap = paired_difference(fifths[1], fifths[0])
    lines += ["", f"last fifth less first: {gap.mean:+.1f} +- {gap.ci95:.1f}"]
    lines += ["", f"Test accuracy after {setting.num_decisions * setting.steps_between} gradient steps:", ""]
    lines += ["| begins at: who sets | accuracy | ahead of random | diverged | steps before |", "| --- " * 5 + "|"]

    def means_of(name):
        return [100 * np.mean(record["judged"][name]["accuracy"]) for record in records]

    for name in records[0]["judged"]:
        rows = [record["judged"][name] for record in records]
        ahead = paired_difference(means_of(name), means_of(f"{name.split(':')[0]}: random actions"))
        diverged = f"{sum(row['diverged'] for row in rows)} of {sum(len(row['accuracy']) for row in rows)}"
        gap = f"{ahead.mean:+.1f} +- {ahead.ci95:.1f}"
        lines.append(f"| {name} | {shown(means_of(name))} | {gap} | {diverged} | {rows[0]['gradient_steps_before']} |")
    lines.append("")
    many = f"default: random search, {setting.episodes} trainings"
    for start, other in (
        ("default", "default: hypergradient"),
        ("default", many),
        ("default", "default: left as it begins"),
        ("anywhere", "anywhere: left as it begins"),
        ("anywhere", many),
    ):
        gap = paired_difference(means_of(f"{start}: learned controller"), means_of(other))
        lines.append(f"{start}: learned controller less {other}: {gap.mean:+.1f} +- {gap.ci95:.1f} points")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    return "{:.1f} +- {:.1f}".format(*estimate(values)[:2])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", dest="setting", action="store_const", const=Setting(), default=Setting())
    size.add_argument("--full", dest="setting", action="store_const", const=FULL)
    parser.add_argument("--data-dir", type=Path, help="a folder with CIFAR-10")
    parser.add_argument("--random-data", action="store_true", help="images of noise: does it run?")
    add_seeds(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10_controller"))
    for name in CHANGES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="instead of the setting's")
    options = parser.parse_args(arguments)
    changed = {name: getattr(options, name) for name in CHANGES if getattr(options, name) is not None}
    setting = options.setting._replace(**changed)
    fewest = CANDIDATES * setting.num_environments + max(DIFFERENTIATED * setting.starts, setting.short_search)
    if setting.episodes < fewest or setting.episodes % setting.num_environments:
        parser.error(
            f"--episodes must be a multiple of {setting.num_environments}, which run side by side, and {fewest} or "
            "more, or they do not pay for a step of the hypergradient and for the short search"
        )
    began = time.perf_counter()
    records = each_seed(partial(run_seed, setting, options, make_programs(setting)), options)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"setting": setting._asdict(), "start": DEFAULT, "ranges": RANGES, "seeds": records}
    result["seconds"] = time.perf_counter() - began
    write_atomically(options.out / "result.json", json.dumps(result, indent=1) + "\n")
    print(report(records, setting))


if __name__ == "__main__":
    main()
