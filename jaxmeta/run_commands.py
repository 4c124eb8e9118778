"""`jaxmeta evaluate`, `verify`, `compare`, `adapt` and `predict`: what is done with trained runs."""

import sys
from typing import Any

import tyro

from jaxmeta.config import ConfigError, check_name
from jaxmeta.machine import Machine, open_mesh
from jaxmeta.options import AdaptOptions, CompareOptions, EvaluateOptions, PairsOptions, PredictOptions
from jaxmeta.parts import is_convolutional


def evaluate_command(arguments: list[str]) -> dict[str, Any]:
    """Run `jaxmeta evaluate` with what follows it."""
    from jaxmeta.folder import read_config
    from jaxmeta.run import evaluate_run

    options = tyro.cli(EvaluateOptions, args=arguments, prog="jaxmeta evaluate")
    check_name("split", options.split, ("test", "validation", "train"))
    _check_least(options, episodes=2, eval_inner_steps=0, ensemble=1, ways=1, shots=1)
    config = read_config(options.run)
    result = evaluate_run(
        options.run,
        episodes=options.episodes,
        inner_steps=options.eval_inner_steps,
        split=options.split,
        latest=options.latest,
        data_dir=options.data_dir,
        mesh=open_mesh(Machine(), config.eval_episodes, divide_cpu=is_convolutional(config)),
        protocol=options.protocol,
        ensemble=options.ensemble,
        dataset=options.dataset,
        ways=options.ways,
        shots=options.shots,
    )
    _say_damaged(result)
    return result


def verify_command(arguments: list[str]) -> dict[str, Any]:
    """Run `jaxmeta verify` with what follows it."""
    from jaxmeta.verify_run import verify_run

    options = tyro.cli(PairsOptions, args=arguments, prog="jaxmeta verify")
    result = verify_run(
        options.run,
        pairs=options.pairs,
        listed=options.list,
        split=options.split,
        data_dir=options.data_dir,
        images=options.images,
        latest=options.latest,
        picture=options.picture or options.run / "roc.png",
    )
    _say_damaged(result)
    return result


def compare_command(arguments: list[str]) -> dict[str, Any]:
    """Run `jaxmeta compare` with what follows it."""
    from jaxmeta.compare import compare_runs
    from jaxmeta.folder import read_config

    options = tyro.cli(CompareOptions, args=arguments, prog="jaxmeta compare")
    _check_least(options, episodes=2)
    config = read_config(options.first)
    mesh = open_mesh(Machine(), config.eval_episodes, divide_cpu=is_convolutional(config))
    result = compare_runs(**vars(options), mesh=mesh)
    if not result["paired"]:
        print("the two runs met different tasks, so that no difference between them is given", file=sys.stderr)
    return result


def serve_command(command: str, arguments: list[str]) -> dict[str, Any]:
    """Run `jaxmeta adapt` or `jaxmeta predict` with what follows it."""
    from jaxmeta.serve import commands

    kind = {"adapt": AdaptOptions, "predict": PredictOptions}[command]
    options = tyro.cli(kind, args=arguments, prog=f"jaxmeta {command}")
    result = getattr(commands, command)(**vars(options))
    for sentence in (*result["notes"], *(f"skipped: {sentence}" for sentence in result["skipped"])):
        print(sentence, file=sys.stderr)
    return result


def _say_damaged(result: dict[str, Any]) -> None:
    for step in result["damaged_checkpoints"]:
        print(f"checkpoint of step {step} is damaged and was passed over", file=sys.stderr)


def _check_least(options, **least: int) -> None:
    for name, number in least.items():
        value = getattr(options, name)
        if value is not None and value < number:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {number}; given {value}.")
