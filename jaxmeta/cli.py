"""The command line: parse, call, translate errors into exit codes.

0 done, 1 something went wrong on the way, 2 the caller asked for something that cannot
be, 130 interrupted.
"""

import importlib.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial

import tyro

from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.bench import LOADS
from jaxmeta.config import ConfigError, changed, check_config, check_name, refuse_idle_numbers
from jaxmeta.data import DATASET_NAMES, DataError
from jaxmeta.data.cache import cache_dir
from jaxmeta.data_commands import run_data_command
from jaxmeta.inner import INNER_OPTIMIZERS
from jaxmeta.machine import Machine, open_mesh
from jaxmeta.metagrad import ESTIMATORS, METAGRADS
from jaxmeta.models import MODELS
from jaxmeta.options import BenchOptions, PlanOptions, SweepOptions, TrainOptions
from jaxmeta.paper_protocols import PROTOCOLS
from jaxmeta.parts import is_convolutional
from jaxmeta.presets import PRESETS
from jaxmeta.processes import is_first, is_joined, leave
from jaxmeta.run_commands import compare_command, evaluate_command, serve_command, verify_command
from jaxmeta.start import default_out, refuse_changes, split_preset, stored_config

USAGE = """\
usage: jaxmeta COMMAND [OPTIONS]

Learning to learn on images, with exact second-order meta-gradients.

commands:
  train [PRESET]   meta-train into a run folder and print its accuracy on held-out classes
  plan [PRESET]    time the ways of computing a run's step on this machine
  evaluate RUN     judge a run's best checkpoint
  verify RUN       judge a run by pairs: are two images of one class?
  compare RUN RUN  judge two runs on the same tasks, and the difference between them
  adapt RUN        teach a run new classes by a folder of a few images, and label others
  predict SAVED    label images with what adapt --save kept
  bench [LOAD ...] measure what a meta-step costs on this machine
  data COMMAND     prepared datasets: list, prepare, verify, clear, show
  list             what there is: presets, datasets, algorithms, strategies, models

`jaxmeta COMMAND --help` explains every option with its default.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
      arguments: What follows the program's name; that of the process if None.

    Returns:
      The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {
        "train": _train,
        "plan": _plan,
        "evaluate": _printed(evaluate_command),
        "verify": _printed(verify_command),
        "compare": _printed(compare_command),
        "adapt": _printed(partial(serve_command, "adapt")),
        "predict": _printed(partial(serve_command, "predict")),
        "bench": _bench,
        "data": run_data_command,
        "list": _list,
    }
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(USAGE, end="")
            return 0 if arguments else 2
        if arguments[0] == "--version":
            from jaxmeta import __version__

            print(__version__)
            return 0
        check_name("command", arguments[0], commands)
        _prepare_jax()
        commands[arguments[0]](arguments[1:])
        sys.stdout.flush()
        return 0
    except (ConfigError, DataError) as error:
        return _fail(2, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except BrokenPipeError:
        # The reader of our output is gone; nothing may be flushed to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, FloatingPointError) as error:
        return _fail(1, str(error))
    except RuntimeError as error:
        if not is_joined():
            raise
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return _fail(1, f"Another process of this run is gone, or this one failed ({what}). Go on with --resume.")


def _train(arguments: list[str]) -> None:
    from jaxmeta.run import Interrupted, train_run
    from jaxmeta.sweep import train_sweep

    preset, start, rest = split_preset(arguments)
    stored = stored_config(rest)
    if stored and rest is not arguments:
        raise ConfigError(f"--resume goes on with the run's own settings: leave the preset {preset!r} out.")
    options = tyro.cli(
        TrainOptions,
        args=rest,
        default=TrainOptions(stored or start),
        prog="jaxmeta train [PRESET]",
        description=f"Meta-train into a run folder, then judge the best checkpoint on held-out classes. "
        f"Presets: {', '.join(PRESETS)}. Defaults below are those of {'the run' if stored else preset}.",
    )
    config, place = options.config, options.place
    check_config(config)
    refuse_idle_numbers(config, changed(config, stored or start))
    if stored is not None:
        refuse_changes(stored, config, place.out)
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError("--tensorboard needs tensorboardX. Install it with: pip install 'jaxmeta[tensorboard]'.")
    several = options.sweep != SweepOptions()
    # What is divided among the devices: tasks of one run, or the runs of several.
    shared = options.sweep.seeds * max(len(options.sweep.inner_lrs), 1) if several else config.tasks
    mesh = open_mesh(options.machine, max(shared, 1), divide_cpu=is_convolutional(config))
    out = place.out or default_out(config)
    try:
        if several:
            machine = options.machine
            if machine.plan != Machine.plan or machine.precisions:
                raise ConfigError("--plan and --precisions are for a single run: leave them out, or --seeds.")
            if options.machine.pool == "host":
                raise ConfigError("--pool host is for a single run: leave it out, or --seeds and --inner-lrs.")
            if place.resume:
                raise ConfigError("--seeds and --inner-lrs begin anew; each of their runs can be resumed by itself.")
            limits = {"mesh": mesh, "memory_mib": machine.memory_mib}
            return _print_result(train_sweep(config, out, **vars(options.sweep), **limits))
        machine = options.machine
        limits = {"search": machine.plan == "auto", "memory_mib": machine.memory_mib, "pool": machine.pool}
        limits["precisions"] = machine.precisions
        result = train_run(config, out, resume=place.resume, mesh=mesh, **limits)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        raise KeyboardInterrupt from stopped
    if is_first():
        _print_result(result)


def _plan(arguments: list[str]) -> None:
    from jaxmeta.planning import show_plan

    preset, start, rest = split_preset(arguments)
    options = tyro.cli(
        PlanOptions,
        args=rest,
        default=PlanOptions(start),
        prog="jaxmeta plan [PRESET]",
        description=f"Time the ways of computing a step of a run here, and show which is chosen; nothing is trained. "
        f"Presets: {', '.join(PRESETS)}. Defaults below are those of {preset}.",
    )
    check_config(options.config)
    refuse_idle_numbers(options.config, changed(options.config, start))
    mesh = open_mesh(options.machine, options.config.tasks, divide_cpu=is_convolutional(options.config))
    table = show_plan(
        options.config,
        mesh=mesh,
        search=options.machine.plan == "auto",
        memory_mib=options.machine.memory_mib,
        precisions=options.machine.precisions,
        lowerings=options.lowerings,
        pool=options.machine.pool,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if is_first():
        print(table)


def _bench(arguments: list[str]) -> None:
    from jaxmeta.bench.run import check_request, run_loads
    from jaxmeta.bench.table import markdown_table

    options = tyro.cli(BenchOptions, args=arguments, prog="jaxmeta bench")
    names = list(dict.fromkeys(options.loads)) or list(LOADS)
    check_request(names, options.rounds, options.quick, options.chunk, options.precision)
    if options.json and not options.json.parent.is_dir():
        raise ConfigError(f"--json {options.json}: there is no folder {options.json.parent}. Make it first.")
    rows, how = [], {"rounds": options.rounds, "quick": options.quick, "task_chunk": options.chunk}
    for row in run_loads(
        names, **how, precision=options.precision, say=lambda text: print(text, file=sys.stderr, flush=True)
    ):
        rows.append(row)
        # After every load: an interruption costs the load that it meets.
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(markdown_table(rows))
    failed = [row["load"] for row in rows if "error" in row]
    if failed:
        raise OSError(f"these loads failed: {', '.join(failed)}")


def _list(arguments: list[str]) -> None:
    if arguments:
        if arguments == ["--help"] or arguments == ["-h"]:
            print("usage: jaxmeta list\n\nPrint the values of every axis, and the presets.")
            return
        raise ConfigError(f"`jaxmeta list` takes no options; given {' '.join(arguments)}.")
    tables = {
        "presets": PRESETS,
        "datasets": DATASET_NAMES,
        "algorithms": ALGORITHMS,
        "metagrads": METAGRADS,
        "estimators": ESTIMATORS,
        "inner optimizers": INNER_OPTIMIZERS,
        "models": MODELS,
        "protocols": PROTOCOLS,
        "loads": LOADS,
    }
    for name, table in tables.items():
        print(f"{name + ':':17} {', '.join(table)}")


def _prepare_jax() -> None:
    """Keep compiled programs between processes, and the libraries' chatter off the screen."""
    import jax

    # What matters of it arrives as an exception, and is said in one sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Ours is said as it is, to a person.
    logging.basicConfig(format="%(message)s")
    warnings.filterwarnings("ignore", module="orbax.*")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _print_result(result: dict) -> None:
    print(json.dumps(result))


def _printed(command: Callable[[list[str]], dict]) -> Callable[[list[str]], None]:
    return lambda arguments: _print_result(command(arguments))


def _fail(code: int, message: str) -> int:
    print(f"jaxmeta: {message}", file=sys.stderr)
    leave(code)
    return code
