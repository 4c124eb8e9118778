"""Sine waves that keep arriving: the regret of follow-the-meta-leader, and of what it is compared with.

Paper     Finn, Rajeswaran, Kakade and Levine, "Online Meta-Learning", 2019, arXiv 1902.08438, section 5:
          the same four ways on images; the sine waves are those of Finn et al., 2017, arXiv 1703.03400.
Command   python experiments/online_sinusoid.py [--rounds 100] [--seed 0] [--json FILE]
Expected  the paper has no number for sine waves, only an order: follow-the-meta-leader regrets least. Here it does
          from 5 and 10 points, and in the last 25 rounds from 20 points too; over all rounds 20 noiseless points are
          enough for the 200 steps from scratch. The figures are in experiments/README.md, made of online_sinusoid.json
          by make_tables.py; an interval is over the tasks that arrived. "Train on everything" is judged after it has
          learned from all 20 points of the task, as in the paper, however many the others have seen: its column of 0
          points is no fair comparison.
Setting   100 tasks, 20 points each, judged on 100 others after 0, 5, 10 and 20 points; 100 outer steps of 8 stored
          tasks a round, Adam 1e-3; five inner steps of 0.01 with exact second order, 20 in judgement; fine-tuning 100
          steps of 0.01; from scratch 200 steps of Adam 1e-2. Regret is against who knows every wave: the sum of errors.
Budget    100 rounds of 100 outer steps; about a minute.
Hardware  two CPU cores.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import optax

from jaxmeta import (
    CRITERIA,
    EpisodeSpec,
    OnlineLearner,
    Protocol,
    episodes_hash,
    estimate,
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
from jaxmeta.folder import write_atomically

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


def judged(errors, late: int) -> dict[str, list]:
    """Sum the errors of all rounds and average those of the last, `[rounds, sizes]`, each with its interval."""
    columns = list(zip(*errors, strict=True))
    regrets = [[len(column) * value for value in estimate(column)[:2]] for column in columns]
    return {"regret": regrets, "late": [list(estimate(column[-late:])[:2]) for column in columns]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="tasks that arrive")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args()
    began = time.perf_counter()
    key_tasks, key_init, key = jax.random.split(jax.random.key(options.seed), 3)
    source = task_source(load_sinusoid(), "train", EpisodeSpec(1, POINTS, TEST_POINTS))
    episodes = jax.device_get(source.sample(key_tasks, source.pool, source.spec, options.rounds))
    tasks = [jax.tree.map(lambda leaf, t=t: leaf[t], episodes) for t in range(options.rounds)]
    late = max(2, options.rounds // 4)
    spec = {"ways": 1, "shots": POINTS, "queries": TEST_POINTS, "episodes": options.rounds, "seed": options.seed}
    digest = episodes_hash(fixed_source(episodes), key_tasks, options.rounds)
    print(f"All meet the tasks {digest}, one after the other.")
    print(f"Regret after {options.rounds} rounds by points seen, and the error in the last {late} rounds.\n")
    rows = []
    for name, (online, train_steps, eval_steps) in contenders().items():
        steps = {"train_inner_steps": train_steps, "eval_inner_steps": eval_steps}
        protocol = Protocol("sinusoid", "arriving", "train", **spec, **steps, norm="none")
        _, metrics = fit_online(online, online.init(key_init, tasks[0]), tasks, key)
        row = {"name": name, **judged(metrics["mse"], late), "fingerprint": fingerprint(protocol)}
        rows.append(row)
        figures = zip(SIZES, row["regret"], row["late"], strict=True)
        told = ", ".join(f"{size}: {regret:.1f} ({late:.3f})" for size, (regret, _), (late, _) in figures)
        print(f"{name:26}  {told}  {row['fingerprint']}", flush=True)
    if options.json:
        record = {"rounds": options.rounds, "late": late, "sizes": SIZES, "episodes_hash": digest, "rows": rows}
        record |= {"seed": options.seed, "seconds": time.perf_counter() - began}
        write_atomically(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
