"""What the Omniglot experiments share: the four settings, the options of the command, one run for each setting."""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmeta.config import Config, ConfigError, check_config
from jaxmeta.data import DataError
from jaxmeta.folder import write_atomically
from jaxmeta.presets import PRESETS, with_algorithm
from jaxmeta.run import Interrupted, evaluate_run, train_run

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
    protocols: Sequence[str] = ("default",),
) -> None:
    """Run an experiment from the command line and print lines of JSON for each of its settings.

    The first line is the result by the paper's own rules, which training ends with (`result.json`); one for each
    further protocol follows (`PROTOCOL.json`).

    Args:
      description: What `--help` says: the header of the experiment's file.
      algorithm: A row of `ALGORITHMS`.
      paper: The paper's accuracy by setting; there is a run for each.
      changes: What the paper has otherwise than `paper_config`, by setting.
      protocols: Rows of `PROTOCOLS` that the run is judged by too; first of all inductively, where the paper is not.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=[*paper, "all"])
    parser.add_argument("--data-dir", type=Path, help="a prepared copy, the archives, or a prepared pool")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--steps", type=int, help="outer steps; the paper's if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue the runs that are there")
    options = parser.parse_args()
    with said_plainly(parser):
        _run_settings(options, algorithm, paper, changes, protocols)


@contextlib.contextmanager
def said_plainly(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End the program with a sentence and an exit code where `jaxmeta` would: 2 for what cannot be, 130 for Ctrl-C."""
    try:
        yield
    except (ConfigError, DataError) as error:
        parser.exit(2, f"{error}\n")
    except Interrupted as stopped:
        parser.exit(130, f"{stopped}\n")


def _run_settings(options, algorithm, paper, changes, protocols) -> None:
    for setting in paper if options.setting == "all" else (options.setting,):
        wanted = {**changes(setting), "data_dir": options.data_dir, "seed": options.seed}
        if options.steps:
            wanted["steps"] = options.steps
        config = paper_config(setting, algorithm, wanted)
        out = options.out / f"omniglot_{algorithm}_{setting}_seed{options.seed}"
        print(json.dumps({**train_run(config, out, resume=options.resume), "paper": paper[setting]}), flush=True)
        for name in protocols:
            result = evaluate_run(out, protocol=name)
            write_atomically(out / f"{name}.json", json.dumps(result, indent=2) + "\n")
            print(json.dumps(result), flush=True)
