"""Does our second-order MAML gradient equal that of public PyTorch libraries? In float64, on the same numbers.

    python benchmarks/peers/agree.py --peers-python PEERS/bin/python [--metagrad unrolled remat] [--json FILE]

Draws weights and tasks from a seed, takes the meta-gradient of conv4 here, has `torch_side.py` take it with
learn2learn, higher and torch.func in an environment of their own (see README.md), and compares. Exits with 1 if
anything differs by more than 1e-6 of its norm, or if the first-order gradient does not: then the check cannot fail.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta
from harness import write_problem
from jaxmeta import METAGRADS, Batch, Episode, conv4, exact, maml

jax.config.update("jax_enable_x64", True)

TOLERANCE = 1e-6
TASKS, WAYS, QUERIES, FILTERS, SIZE = 4, 5, 3, 64, 28


class Case(NamedTuple):
    """One problem; `downsample` is that of `conv4`."""

    name: str
    downsample: str
    shots: int
    num_steps: int
    inner_rate: float


# Rates with which adaptation lowers the query loss on this data.
CASES = (
    Case("pool, 1 shot, 1 step", "pool", 1, 1, 0.05),
    Case("pool, 5 shots, 3 steps", "pool", 5, 3, 0.05),
    Case("stride, 1 shot, 1 step", "stride", 1, 1, 0.4),
    Case("stride, 5 shots, 3 steps", "stride", 5, 3, 0.4),
)


def by_name(tree):
    """Flatten nested dicts to `{"body/Conv_0/kernel": array, ...}`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def draw_weights(rng, model):
    """Draw every parameter; scales and biases too, whose errors would hide at their initial 1 and 0."""

    def draw(path, shape):
        noise = rng.standard_normal(shape.shape)
        if path[-1].key == "kernel":
            return noise * np.sqrt(2.0 / np.prod(shape.shape[:-1]))
        return 0.1 * noise + (path[-1].key == "scale")

    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, SIZE, SIZE, 1]))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def draw_episodes(rng, shots):
    """Draw tasks whose classes are random images, seen through noise so that there is something to learn."""
    classes = rng.random([TASKS, WAYS, 1, SIZE, SIZE, 1])

    def draw(examples):
        images = classes + 0.5 * rng.standard_normal([TASKS, WAYS, examples, SIZE, SIZE, 1])
        labels = np.broadcast_to(np.arange(WAYS, dtype=np.int32)[:, None], [TASKS, WAYS, examples])
        flat = (TASKS, WAYS * examples)
        # Not `example_batch`: its weights are float32, which the shares of the examples in BatchNorm would be too.
        return Batch(images.reshape(*flat, SIZE, SIZE, 1), labels.reshape(flat), np.ones(flat, np.float64))

    return Episode(draw(shots), draw(QUERIES))


def our_gradient(case, metagrad, theta, episodes):
    """The mean query loss over tasks and its gradient, by the library's public functions."""
    model = conv4(WAYS, filters=FILTERS, downsample=case.downsample)
    strategy = METAGRADS[metagrad]()
    learner = maml(model, inner_optimizer=optax.sgd(case.inner_rate), num_steps=case.num_steps, metagrad=strategy)
    estimator = exact()

    @jax.jit
    def run(theta, episodes):
        _, state = learner.init(jax.random.key(0), episodes.support.inputs[0])
        keys = jax.random.split(jax.random.key(0), TASKS)
        (loss, _), gradient, _ = estimator.value_and_grad(learner, theta, state, (), episodes, keys, 0)
        return loss, gradient

    loss, gradient = run(theta, episodes)
    narrow = {name: leaf.dtype for name, leaf in by_name(gradient).items() if leaf.dtype != np.float64}
    if loss.dtype != np.float64 or narrow:
        raise TypeError(f"everything must be float64; the loss is {loss.dtype}, and {narrow}.")
    return float(loss), by_name(gradient)


def their_gradients(case, theta, episodes, peers_python, folder):
    """What `torch_side.py` answers: versions, and for every peer the loss and the gradient in our layout."""
    problem, answer = folder / f"{case.name}.problem.npz", folder / f"{case.name}.peers.npz"
    load = {
        "network": "conv4",
        "downsample": case.downsample,
        "outputs": WAYS,
        "num_steps": case.num_steps,
        "inner_rate": case.inner_rate,
    }
    write_problem(problem, load, theta, *((batch.inputs, batch.targets) for batch in episodes))
    subprocess.run([peers_python, Path(__file__).with_name("torch_side.py"), problem, answer], check=True)
    with np.load(answer) as file:
        answers = dict(file)
    versions = json.loads(str(answers.pop("versions")))
    peers = {}
    for key, value in answers.items():
        peer, name = key.split("/", 1)
        peers.setdefault(peer, {})[name] = value
    return versions, {peer: (float(values.pop("loss")), values) for peer, values in peers.items()}


def difference(ours, theirs):
    """`|ours - theirs| / |theirs|` of all numbers of two trees in one vector."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"the gradients have different leaves: {sorted(ours.keys() ^ theirs.keys())}.")
    distance = np.sqrt(sum(np.sum((ours[name] - theirs[name]) ** 2) for name in ours))
    return float(distance / np.sqrt(sum(np.sum(leaf**2) for leaf in theirs.values())))


def compare(ours, theirs):
    """Relative differences of the gradient, of the loss, and of the leaf that differs most."""
    (loss, gradient), (their_loss, their_gradient) = ours, theirs
    leaves = {name: difference({name: gradient[name]}, {name: their_gradient[name]}) for name in gradient}
    return {
        "gradient": difference(gradient, their_gradient),
        "loss": abs(loss - their_loss) / abs(their_loss),
        "worst_leaf": max(leaves.values()),
        "worst_leaf_name": max(leaves, key=leaves.get),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", required=True, help="the Python that has torch, learn2learn and higher")
    parser.add_argument(
        "--metagrad",
        nargs="+",
        choices=list(METAGRADS),
        default=["unrolled"],
        help="strategies to judge; those that are not exact by design (first_order) do not agree",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()

    rows, versions = [], {}
    print("| case | metagrad | peer | gradient | loss | worst leaf | control: first order |\n" + "|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            rng = np.random.default_rng(options.seed)
            theta = draw_weights(rng, conv4(WAYS, filters=FILTERS, downsample=case.downsample))
            episodes = draw_episodes(rng, case.shots)
            versions, peers = their_gradients(case, theta, episodes, options.peers_python, Path(folder))
            # The control: what the same comparison says of a gradient that is known to be another one.
            _, without_second_order = our_gradient(case, "first_order", theta, episodes)
            for metagrad in options.metagrad:
                ours = our_gradient(case, metagrad, theta, episodes)
                for peer, theirs in peers.items():
                    row = {"case": case.name, "metagrad": metagrad, "peer": peer, **compare(ours, theirs)}
                    row["control"] = difference(without_second_order, theirs[1])
                    rows.append(row)
                    figures = " | ".join(f"{row[name]:.1e}" for name in ("gradient", "loss", "worst_leaf", "control"))
                    print(f"| {case.name} | {metagrad} | {peer} | {figures} |", flush=True)

    worst = max(row[name] for row in rows for name in ("gradient", "loss", "worst_leaf"))
    control = min(row["control"] for row in rows)
    agreed = worst <= TOLERANCE < control
    print(f"\nworst {worst:.1e}, smallest control {control:.1e}: {'agreed' if agreed else 'NOT AGREED'} to {TOLERANCE}")
    if options.json:
        ours = {module.__name__: module.__version__ for module in (jaxmeta, jax, flax, optax, np)}
        record = {
            "problem": {"tasks": TASKS, "ways": WAYS, "queries": QUERIES, "filters": FILTERS, "seed": options.seed},
            "cases": [case._asdict() for case in CASES],
            "ours": {"python": platform.python_version(), **ours},
            "theirs": versions,
            "tolerance": TOLERANCE,
            "agreed": agreed,
            "rows": rows,
        }
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(0 if agreed else 1)


if __name__ == "__main__":
    main()
