"""Sine waves that keep arriving: the regret of follow-the-meta-leader, and of what it is compared with.

Paper     Finn, Rajeswaran, Kakade and Levine, "Online Meta-Learning", 2019, arXiv 1902.08438, section 5:
          the same four ways on images; the sine waves are those of Finn et al., 2017, arXiv 1703.03400.
Command   python experiments/online_sinusoid.py [--rounds 100] [--seed 0]
Expected  the paper has no number for sine waves, only an order: follow-the-meta-leader regrets least. Here it does
          from 5 and 10 points (154 and 85; joint training 438 and 229, from scratch 1380 and 224), and in the last 25
          rounds from 20 points too. Over all rounds 20 noiseless points are enough for the 200 steps from scratch (35,
          to 64 and 91). "Train on everything" is judged after it has learned from all 20 points of the task, as in the
          paper, however many the others have seen: its column of 0 points is no fair comparison.
Setting   100 tasks, 20 points each, judged on 100 others after 0, 5, 10 and 20 points; 100 outer steps of 8 stored
          tasks a round, Adam 1e-3; five inner steps of 0.01 with exact second order, 20 in judgement; fine-tuning 100
          steps of 0.01; from scratch 200 steps of Adam 1e-2. Regret is against who knows every wave: the sum of errors.
Hardware  about a minute on two CPU cores.
"""

import argparse

import jax
import numpy as np
import optax

from jaxmeta import (
    CRITERIA,
    EpisodeSpec,
    OnlineLearner,
    Protocol,
    episodes_hash,
    fingerprint,
    fit_online,
    fixed_source,
    follow_the_meta_leader,
    inner_adam,
    inner_sgd,
    load_sinusoid,
    maml,
    mlp,
    scratch,
    task_source,
)

POINTS, TEST_POINTS, SIZES = 20, 100, (0, 5, 10, 20)
REGRESSION = CRITERIA["regression"]


def after_learning(online: OnlineLearner) -> OnlineLearner:
    """Judge on each task when it has been learned from like all others, as the paper's "train on everything"."""
    return online._replace(judge=lambda state, task, key: online.judge(online.learn(state, task, key), task, key))


def contenders() -> dict[str, tuple[OnlineLearner, int, int]]:
    """Make who is compared, with the inner steps in learning and in judgement, as a protocol tells them."""

    def online(learner, **options):
        options = {"criterion": REGRESSION, "spec": EpisodeSpec(1, 10, 10), "sizes": SIZES, "capacity": 100} | options
        return follow_the_meta_leader(learner, optax.adam(1e-3), **{"meta_updates": 100} | options)

    options = {"inner_optimizer": inner_sgd(0.01), "criterion": REGRESSION}
    # Without inner steps the outer loss is that of one network for all tasks.
    joint = maml(mlp(1), num_steps=0, **options)
    fresh = scratch(mlp(1), **{**options, "inner_optimizer": inner_adam(0.01)}, num_steps=200)
    return {
        "follow the meta-leader": (online(maml(mlp(1), num_steps=5, **options), num_steps=20), 5, 20),
        "joint training, fine-tuned": (online(joint, num_steps=100), 0, 100),
        "train on everything": (after_learning(online(joint)), 0, 0),
        "from scratch": (online(fresh, meta_updates=0), 200, 200),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="tasks that arrive")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    key_tasks, key_init, key = jax.random.split(jax.random.key(options.seed), 3)
    source = task_source(load_sinusoid(), "train", EpisodeSpec(1, POINTS, TEST_POINTS))
    episodes = jax.device_get(source.sample(key_tasks, source.pool, source.spec, options.rounds))
    tasks = [jax.tree.map(lambda leaf, t=t: leaf[t], episodes) for t in range(options.rounds)]
    late = max(1, options.rounds // 4)
    heads = [f"{size} points" for size in SIZES]
    spec = {"ways": 1, "shots": POINTS, "queries": TEST_POINTS, "episodes": options.rounds, "seed": options.seed}
    digest = episodes_hash(fixed_source(episodes), key_tasks, options.rounds)
    print(f"All meet the tasks {digest}, one after the other.")
    print(f"Regret after {options.rounds} rounds by points seen, and the error in the last {late} rounds.\n")
    late_heads = [f"late, {size:>2}" for size in SIZES]
    print(f"| {'':26} | {' | '.join(f'{head:>9}' for head in heads)} | {' | '.join(late_heads)} | fingerprint  |")
    print(f"| --- {'| --- ' * (2 * len(SIZES) + 1)}|")
    for name, (online, train_steps, eval_steps) in contenders().items():
        steps = {"train_inner_steps": train_steps, "eval_inner_steps": eval_steps}
        protocol = Protocol("sinusoid", "arriving", "train", **spec, **steps, norm="none")
        _, metrics = fit_online(online, online.init(key_init, tasks[0]), tasks, key)
        errors = np.asarray(metrics["mse"], np.float64)
        regrets = " | ".join(f"{value:9.1f}" for value in errors.sum(0))
        lates = " | ".join(f"{value:8.3f}" for value in errors[-late:].mean(0))
        print(f"| {name:26} | {regrets} | {lates} | {fingerprint(protocol)} |", flush=True)


if __name__ == "__main__":
    main()
