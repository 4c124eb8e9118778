"""What the Omniglot experiments share: the four settings, the options of the command, one run for each setting."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxmeta.config import Config, check_config
from jaxmeta.presets import PRESETS, with_algorithm
from jaxmeta.run import train_run

SETTINGS = ("5w1s", "5w5s", "20w1s", "20w5s")


def paper_config(setting: str, algorithm: str, changes: Mapping[str, Any]) -> Config:
    """Begin from the preset of two CPU cores and take the paper's budget: 60,000 steps of Adam 1e-3, random split.

    Args:
      setting: One of `SETTINGS`.
      algorithm: A row of `ALGORITHMS`.
      changes: What the paper has otherwise.

    Returns:
      The checked configuration.
    """
    config = dataclasses.replace(
        with_algorithm(PRESETS[f"omniglot-maml-{setting}"], algorithm),
        split="random",
        outer_lr=1e-3,
        outer_schedule="constant",
        steps=60000,
        checkpoint_every=2000,
        log_every=50,
    )
    config = dataclasses.replace(config, **changes)
    check_config(config)
    return config


def run_settings(
    description: str | None,
    algorithm: str,
    *,
    paper: Mapping[str, float],
    changes: Callable[[str], Mapping[str, Any]] = lambda setting: {},
) -> None:
    """Run an experiment from the command line and print a line of JSON for each of its settings.

    Args:
      description: What `--help` says: the header of the experiment's file.
      algorithm: A row of `ALGORITHMS`.
      paper: The paper's accuracy by setting; there is a run for each.
      changes: What the paper has otherwise than `paper_config`, by setting.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=[*paper, "all"])
    parser.add_argument("--data-dir", type=Path, help="a prepared copy, the archives, or a prepared pool")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--steps", type=int, help="outer steps; the paper's if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue the runs that are there")
    options = parser.parse_args()
    for setting in paper if options.setting == "all" else (options.setting,):
        wanted = {**changes(setting), "data_dir": options.data_dir, "seed": options.seed}
        if options.steps:
            wanted["steps"] = options.steps
        config = paper_config(setting, algorithm, wanted)
        out = options.out / f"omniglot_{algorithm}_{setting}_seed{options.seed}"
        print(json.dumps({**train_run(config, out, resume=options.resume), "paper": paper[setting]}))
