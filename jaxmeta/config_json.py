"""A configuration as plain values, as it lies in a run's folder."""

from pathlib import Path
from typing import Any

from jaxmeta.config import Config, ConfigError, check_config

# Options that runs of earlier versions did not have, with what they did.
ADDED_LATER = {
    "keep_best": 1,
    "image_size": None,
    "episodes": "fixed",
    "augment": (),
    "inner_batch": None,
    "eval_inner_batch": None,
    "scale": None,
    "damping": None,
}


def to_json(config: Config) -> dict[str, Any]:
    """Turn a configuration into plain values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()}


def from_json(values: dict[str, Any]) -> Config:
    """Rebuild a configuration from plain values.

    Args:
      values: From `to_json`.

    Returns:
      The configuration.

    Raises:
      ConfigError: if it is damaged or of another version.
    """
    defaults = vars(Config())
    # Matching networks had no factor.
    earlier = {"scale": 1.0} if values.get("algorithm") in ("matching", "matching-fce") else {}
    values = {**ADDED_LATER, **earlier, **values}
    # JSON knows no tuples.
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if set(values) != set(defaults):
        odd = sorted(set(values) ^ set(defaults))
        raise ConfigError(f"The stored configuration is damaged or of another version: see {', '.join(odd)}.")
    for name, default in defaults.items():
        number, text = (int, type(None)), (str, type(None))
        whole = ("task_chunk", "train_ways", "image_size", "inner_batch", "eval_inner_batch")
        real = {name: (float, int, type(None)) for name in ("scale", "damping")}
        optional = {**dict.fromkeys(whole, number), "data_dir": text, **real}
        kinds = optional.get(name, (float, int) if isinstance(default, float) else (type(default),))
        if type(values[name]) not in kinds:
            raise ConfigError(f"The stored configuration is damaged: it has {name}={values[name]!r}.")
    data_dir = values.get("data_dir")
    config = Config(**{**values, "data_dir": None if data_dir is None else Path(data_dir)})
    check_config(config)
    return config
