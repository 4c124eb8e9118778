"""What a command starts from, before its options are parsed: a preset, or the run that it continues."""

import re
from pathlib import Path

from jaxmeta.algorithms import ALGORITHMS, options_of
from jaxmeta.config import Config, ConfigError, check_dataset, check_name
from jaxmeta.config_json import to_json
from jaxmeta.data import split_name
from jaxmeta.folder import read_config
from jaxmeta.presets import DEFAULT_PRESETS, PRESETS, with_algorithm

# What may differ when a run is continued: none of it changes a step that was already taken.
MAY_CHANGE = {"steps", "data_dir", "tensorboard"}


def split_preset(arguments: list[str]) -> tuple[str, Config, list[str]]:
    """Find what the options start from: a named preset, or that of the dataset, with the algorithm asked for."""
    if arguments and not arguments[0].startswith("-"):
        preset, rest = arguments[0], arguments[1:]
        check_name("preset", preset, PRESETS)
    else:
        dataset = value_of(arguments, "dataset") or "glyphs"
        check_dataset(dataset)
        preset, rest = DEFAULT_PRESETS[split_name(dataset)[0]], arguments
    algorithm = value_of(rest, "algorithm")
    if algorithm is None:
        return preset, PRESETS[preset], rest
    check_name("algorithm", algorithm, ALGORITHMS)
    return f"{preset} with {algorithm}", with_algorithm(PRESETS[preset], algorithm), rest


def stored_config(arguments: list[str]) -> Config | None:
    """Read the configuration of the run that is to be continued, if one is."""
    if "--resume" not in arguments:
        return None
    out = value_of(arguments, "out")
    if out is None:
        raise ConfigError("--resume needs --out RUN, the folder of the run to continue.")
    return read_config(Path(out))


def value_of(arguments: list[str], name: str) -> str | None:
    """Look an option up before the options are parsed: it decides on their defaults."""
    flag, value = f"--{name}", None
    # The last one counts, as it does when they are parsed.
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == flag:
            value = following
        elif argument.startswith(flag + "="):
            value = argument[len(flag) + 1 :]
    return value


def refuse_changes(stored: Config, config: Config, out: Path | None) -> None:
    """Refuse to continue a run with settings that would change the steps it has taken."""
    before, after = to_json(stored), to_json(config)
    changed = [name for name in before if before[name] != after[name] and name not in MAY_CHANGE]
    if changed:
        pairs = ", ".join(f"--{name.replace('_', '-')} {before[name]} -> {after[name]}" for name in changed)
        raise ConfigError(f"The run in {out} cannot be continued with other settings ({pairs}). Leave them out.")
    if config.steps != stored.steps and config.algorithm == "maml++":
        raise ConfigError(
            f"--steps {stored.steps} -> {config.steps} would change the meta-loss of the steps already taken, which "
            "maml++ anneals over the run. Leave it out, or train anew."
        )
    if config.steps != stored.steps and config.outer_schedule != "constant":
        raise ConfigError(
            f"--steps {stored.steps} -> {config.steps} would change the learning rates of the steps already taken, "
            f"since --outer-schedule is {config.outer_schedule}. Leave it out, or train anew."
        )


def default_out(config: Config) -> Path:
    """Name the folder of a run that was given none."""
    size = f"{config.ways}w{config.shots}s" if config.dataset != "sinusoid" else f"{config.shots}s"
    row, place = split_name(config.dataset)
    if row == "folder":
        # What a name is made of everywhere: no slash, no colon, no space.
        name = Path(config.data_dir or place).expanduser().resolve().stem
        row = f"folder-{re.sub('[^A-Za-z0-9_]+', '-', name).strip('-') or 'images'}"
    parts = [row, config.algorithm, size, f"seed{config.seed}"]
    if "metagrad" in options_of(ALGORITHMS[config.algorithm]):
        parts.insert(2, config.metagrad if config.estimator == "exact" else config.estimator)
    return Path("runs") / "-".join(parts)
