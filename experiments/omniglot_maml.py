"""MAML on Omniglot, the four settings of the paper.

Paper     Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
          Networks", 2017, arXiv 1703.03400, table 1 (convolutional MAML) and appendix A.1.
Command   python experiments/omniglot_maml.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  98.7 +- 0.4, 99.9 +- 0.1, 95.8 +- 0.3, 98.9 +- 0.2 %
Setting   60,000 outer steps, Adam 1e-3; 1 inner step of 0.4 (3 at test) and 32 tasks for 5-way,
          5 inner steps of 0.1 and 16 tasks for 20-way; 64 filters, stride 2, statistics of the query
          batch; as many query images as shots; random split of 1200 training characters.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from jaxmeta.config import Config, check_config
from jaxmeta.presets import PRESETS
from jaxmeta.run import train_run

SETTINGS = ("5w1s", "5w5s", "20w1s", "20w5s")
PAPER = {"5w1s": 0.987, "5w5s": 0.999, "20w1s": 0.958, "20w5s": 0.989}


def paper_config(setting: str) -> Config:
    """The preset is the budget of two CPU cores; this is the paper's."""
    return dataclasses.replace(
        PRESETS[f"omniglot-maml-{setting}"],
        split="random",
        outer_lr=1e-3,
        outer_schedule="constant",
        steps=60000,
        checkpoint_every=2000,
        log_every=50,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=[*SETTINGS, "all"])
    parser.add_argument("--data-dir", type=Path, help="a prepared copy, the archives, or a prepared pool")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--steps", type=int, default=60000, help="outer steps; the paper has 60,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue the runs that are there")
    options = parser.parse_args()
    for setting in SETTINGS if options.setting == "all" else (options.setting,):
        config = dataclasses.replace(
            paper_config(setting), data_dir=options.data_dir, steps=options.steps, seed=options.seed
        )
        check_config(config)
        result = train_run(config, options.out / f"omniglot_maml_{setting}_seed{options.seed}", resume=options.resume)
        print(json.dumps({**result, "paper": PAPER[setting]}))


if __name__ == "__main__":
    main()
