"""What the experiments on tasks of images share: their settings, the options of the command, a run for each setting."""

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
# The papers' budget on characters: 60,000 steps of Adam 1e-3, and 1200 characters for training, of which 100 choose the
# checkpoint here. Presets of photographs have theirs.
_CHARACTERS = {
    "split": "random",
    "outer_lr": 1e-3,
    "outer_schedule": "constant",
    "steps": 60000,
    "checkpoint_every": 2000,
    "log_every": 50,
}


def paper_config(setting: str, algorithm: str, changes: Mapping[str, Any], data: str = "omniglot") -> Config:
    """Begin from the preset of the data and take the paper's budget.

    Args:
      setting: One of `SETTINGS`; of photographs those of 5 ways.
      algorithm: A row of `ALGORITHMS`.
      changes: What the paper has otherwise.
      data: "omniglot" or "mini-imagenet".

    Returns:
      The checked configuration.
    """
    config = with_algorithm(PRESETS[f"{data}-maml-{setting}"], algorithm)
    shared = _CHARACTERS if data == "omniglot" else {}
    config = dataclasses.replace(config, **{**shared, **changes})
    check_config(config)
    return config


def as_in_maml(setting: str) -> tuple[str, ...]:
    """Give the protocols of a paper that judges as MAML's: its own, and that of everybody."""
    return ("maml-20way" if setting.startswith("20w") else "maml", "default")


def run_settings(
    description: str | None,
    algorithm: str,
    *,
    paper: Mapping[str, float | None],
    changes: Callable[[str], Mapping[str, Any]] = lambda setting: {},
    protocols: Callable[[str], Sequence[str]] = lambda setting: ("default",),
    data: str = "omniglot",
) -> None:
    """Run an experiment from the command line and print lines of JSON for each of its settings.

    The first line is the result by the run's own protocol, which training ends with (`result.json`); one for each
    further protocol follows (`PROTOCOL.json`).

    Args:
      description: What `--help` says: the header of the experiment's file.
      algorithm: A row of `ALGORITHMS`.
      paper: The paper's accuracy by setting, None where it has none; there is a run for each.
      changes: What the paper has otherwise than `paper_config`, by setting.
      protocols: Rows of `PROTOCOLS` that the run is judged by too, by setting: the paper's, and the inductive one.
      data: As for `paper_config`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=[*paper, "all"])
    parser.add_argument("--data-dir", type=Path, help="where the data is, as for `jaxmeta train`")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--steps", type=int, help="outer steps; the paper's if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue the runs that are there")
    options = parser.parse_args()
    with said_plainly(parser):
        for setting in paper if options.setting == "all" else (options.setting,):
            wanted = {**changes(setting), "data_dir": options.data_dir, "seed": options.seed}
            if options.steps:
                wanted["steps"] = options.steps
            config = paper_config(setting, algorithm, wanted, data)
            out = options.out / f"{data}_{algorithm}_{setting}_seed{options.seed}"
            print(json.dumps({**train_run(config, out, resume=options.resume), "paper": paper[setting]}), flush=True)
            for name in protocols(setting):
                result = evaluate_run(out, protocol=name)
                write_atomically(out / f"{name}.json", json.dumps(result, indent=2) + "\n")
                print(json.dumps(result), flush=True)


@contextlib.contextmanager
def said_plainly(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End the program with a sentence and an exit code where `jaxmeta` would: 2 for what cannot be, 130 for Ctrl-C."""
    try:
        yield
    except (ConfigError, DataError) as error:
        parser.exit(2, f"{error}\n")
    except Interrupted as stopped:
        parser.exit(130, f"{stopped}\n")
