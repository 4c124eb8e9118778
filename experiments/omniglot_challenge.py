"""The Omniglot challenge: 20 official runs of 20-way one-shot classification within one alphabet.

Paper     Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction",
          2015, Science 350(6266), and Lake, Salakhutdinov and Tenenbaum, "The Omniglot challenge: a 3-year progress
          report", 2019, arXiv 1902.03477.
Command   python experiments/omniglot_challenge.py background --data-dir DIR --runs-dir DIR     (also small1, small2,
          and hausdorff, which learns nothing)
Expected  errors with 30 background alphabets: people 4.5 %, BPL 3.3 %, a convolutional net 13.5 %; with the two sets
          of 5: BPL 4.3 and 4.0, a convolutional net 24.0 and 22.3; distances between drawings, not learned, 38.8 %.
Setting   a prototypical network: pooled conv4 of 64 filters, statistics of training; tasks of 20 characters of one
          alphabet, one drawing each, two queries; training alphabets rotated too, and every drawing a little turned,
          stretched, slanted and shifted anew; Adam 2e-3 with a cosine.
Reached   15.0 +- 5.2 % (small1) and 10.5 +- 2.8 % (small2) with --steps 2000, after 10 and 7 minutes on one CPU core;
          with 30 alphabets 5.3 +- 2.7 % after 8000 steps (the default; half an hour on two cores with other work
          beside it), 6.8 +- 3.0 % after 3000 (7 minutes).
Budget    8000 outer steps of 4 tasks; fewer with --steps.
Hardware  2 CPU cores.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

from jaxmeta.config import check_config
from jaxmeta.data import load_challenge_drawings
from jaxmeta.hausdorff import hausdorff_error
from jaxmeta.machine import Machine, open_mesh
from jaxmeta.presets import PRESETS, with_algorithm
from jaxmeta.protocols import CHALLENGE, Protocol, fingerprint, protocol_hash
from jaxmeta.run import evaluate_run, train_run
from settings import said_plainly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", choices=["background", "small1", "small2", "hausdorff"])
    parser.add_argument("--data-dir", type=Path, help="Omniglot: a prepared copy, the archives, or a prepared pool")
    parser.add_argument("--runs-dir", type=Path, required=True, help="the folder of one_shot_all_runs.zip")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with said_plainly(parser):
        run(options)


def hausdorff(runs_dir: Path) -> dict:
    """Judge by distances of drawings, which nothing is learned for, and say how as for a learner."""
    began = time.monotonic()
    error = hausdorff_error(load_challenge_drawings(runs_dir))
    size = {"ways": 20, "shots": 1, "queries": 1, "within_alphabet": True, "episodes": len(error.per_task)}
    loop = {"train_inner_steps": 0, "eval_inner_steps": 0, "norm": "none"}
    fixed = {"episodes_from": CHALLENGE, "trained_on": "nothing", "trained_split": "nothing"}
    protocol = Protocol(CHALLENGE, "official", "test", **size, **loop, **fixed)
    hashes = {"protocol": protocol_hash(protocol), "fingerprint": fingerprint(protocol)}
    said = {"dataset": CHALLENGE, "algorithm": "modified Hausdorff distance", "metagrad": None, "steps": 0}
    said |= {"inner_steps": 0, "eval_inner_steps": 0, "norm": "none", "setting": protocol.setting}
    value = {"error": error.mean, "accuracy": 1 - error.mean, "ci95": error.ci95}
    return {**value, **size, **said, **hashes, "seconds": time.monotonic() - began}


def run(options) -> None:
    out = options.out / f"omniglot_challenge_{options.split}_seed{options.seed}"
    if options.split == "hausdorff":
        result = hausdorff(options.runs_dir)
        out.mkdir(parents=True, exist_ok=True)
        (out / "challenge.json").write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result))
        return
    config = dataclasses.replace(
        with_algorithm(PRESETS["omniglot-maml-20w1s"], "protonet"),
        split=options.split,
        data_dir=options.data_dir,
        within_alphabet=True,
        # As another hand would have drawn it.
        augment=("warp",),
        model="conv4",
        norm="running",
        queries=2,
        eval_queries=1,
        tasks=4,
        outer_lr=2e-3,
        steps=options.steps,
        log_every=20,
        checkpoint_every=200,
        validation_episodes=400,
        eval_episodes=400,
        seed=options.seed,
    )
    check_config(config)
    mesh = open_mesh(Machine(), config.tasks)
    train_run(config, out, mesh=mesh)
    result = evaluate_run(out, protocol="omniglot-challenge", data_dir=options.runs_dir, mesh=mesh)
    (out / "challenge.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
