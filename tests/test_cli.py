"""The command line as a person meets it: results, files, exit codes, interruptions."""

import contextlib
import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from conftest import small_files
from jaxmeta import DATASETS, ESTIMATORS, INNER_OPTIMIZERS, METAGRADS, MODELS, load_glyphs, options_of, parts
from jaxmeta.checkpoint import checkpoint_steps
from jaxmeta.cli import main
from jaxmeta.config import Config, check_config
from jaxmeta.config_json import to_json
from jaxmeta.machine import Machine
from jaxmeta.options import AdaptOptions, CompareOptions, EvaluateOptions, PredictOptions, RunOptions, SweepOptions
from jaxmeta.presets import DEFAULT_PRESETS, PRESETS, with_algorithm

SINUSOID = ["--dataset", "sinusoid", "--tasks", "4", "--log-every", "5", "--checkpoint-every", "5"]
SINUSOID += ["--eval-episodes", "20", "--validation-episodes", "10"]
OPTIONS = (
    "dataset algorithm metagrad ways shots queries inner-steps eval-inner-steps inner-lr outer-lr tasks steps seed"
)
OPTIONS += " norm data-dir out resume devices model-devices coordinator num-processes process-id seeds inner-lrs"
OPTIONS += " plan memory-mib precision split within-alphabet keep-best image-size"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of ten steps at a constant rate, and what it printed."""
    run, said = tmp_path_factory.mktemp("trained") / "run", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["train", *SINUSOID, "--steps", "10", "--outer-schedule", "constant", "--out", str(run)]) == 0
    return run, last_json(said.getvalue())


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that may be spoilt."""
    return shutil.copytree(trained[0], tmp_path / "run")


def last_json(text):
    return json.loads(text.strip().splitlines()[-1])


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def arrays(run, step):
    """Every array of a checkpoint, read without our own code."""
    tree = ocp.StandardCheckpointer().restore((run / "checkpoints" / str(step) / "state").absolute())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--metagrad", "implicit", "--proximal", "1", "--inner-steps", "3"], marks=pytest.mark.slow),
        pytest.param(
            ["--metagrad", "mixed_mode", "--inner-optimizer", "adam", "--inner-lr", "0.01", "--log-grad-norms"],
            marks=pytest.mark.slow,
        ),
        pytest.param(["--estimator", "pes"], marks=pytest.mark.slow),
        pytest.param(["--estimator", "bootstrapped", "--inner-optimizer", "momentum"], marks=pytest.mark.slow),
    ],
    ids=["implicit", "mixed mode", "pes", "bootstrapped"],
)
def test_strategies_and_estimators_train_and_resume(options, tmp_path, capsys):
    """What is kept between steps is saved with the rest: half and half equals the whole."""
    constant = [*SINUSOID, *options, "--outer-schedule", "constant"]
    assert main(["train", *constant, "--steps", "10", "--out", str(tmp_path / "whole")]) == 0
    assert main(["train", *constant, "--steps", "5", "--out", str(tmp_path / "halves")]) == 0
    assert main(["train", "--resume", "--steps", "10", "--out", str(tmp_path / "halves")]) == 0
    for whole, halves in zip(arrays(tmp_path / "whole", 10), arrays(tmp_path / "halves", 10), strict=True):
        np.testing.assert_array_equal(whole, halves)
    assert main(["evaluate", str(tmp_path / "whole"), "--episodes", "10"]) == 0
    assert ("inner_grad_norm_1" in rows(tmp_path / "whole")[0]) == ("--log-grad-norms" in options)


def test_train_leaves_a_whole_run_folder(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *SINUSOID, "--steps", "20", "--out", str(run), "--tensorboard"]) == 0
    result = last_json(capsys.readouterr().out)
    assert result["episodes"] == 20 and result["run"] == str(run) and result["norm"] == "none"
    assert {"mse", "ci95", "ways", "shots", "dataset", "algorithm", "metagrad", "norm", "steps"} <= set(result)
    assert result["setting"] == "inductive" and len(result["protocol"]) == len(result["episodes_hash"]) == 12
    assert json.loads((run / "result.json").read_text()) == result
    for name in ("config.json", "curves.png", "episode.png"):
        assert (run / name).stat().st_size > 0
    steps = [row["step"] for row in rows(run) if "loss" in row]
    assert steps == [5, 10, 15, 20]
    assert list((run / "tensorboard").iterdir())
    # The same numbers again, and another number of steps and tasks.
    assert main(["evaluate", str(run)]) == 0
    assert last_json(capsys.readouterr().out)["mse"] == pytest.approx(result["mse"], rel=1e-5)
    assert main(["evaluate", str(run), "--episodes", "7", "--eval-inner-steps", "0"]) == 0
    other = last_json(capsys.readouterr().out)
    assert other["episodes"] == 7 and other["mse"] != result["mse"]


@pytest.mark.slow
def test_classification_run_on_glyphs(tmp_path, capsys):
    run = tmp_path / "run"
    small = ["--filters", "4", "--tasks", "4", "--steps", "10", "--eval-episodes", "20", "--validation-episodes", "8"]
    small += ["--norm", "inductive", "--within-alphabet", "--eval-inner-steps", "1", "--eval-queries", "3"]
    assert main(["train", "glyphs-maml-5w1s", *small, "--out", str(run)]) == 0
    result = last_json(capsys.readouterr().out)
    assert result["within_alphabet"] is True
    assert 0.15 < result["accuracy"] <= 1 and 0 < result["ci95"] < 1
    assert (result["ways"], result["shots"], result["dataset"], result["norm"]) == (5, 1, "glyphs", "inductive")
    assert (run / "episode.png").stat().st_size > 5000
    # What it takes to use the run without its data, and how sure its predictions are.
    data, calibration = (json.loads((run / name).read_text()) for name in ("data.json", "calibration.json"))
    assert data["kind"] == "classification" and data["classes"] > 500 and data["recipe"]["bright_ink"] is True
    assert calibration["tasks"] == 8 and 0 <= calibration["error_after"] <= 1 and calibration["temperature"] > 0


def start(run, steps=100000, every=5):
    """Train in a process of its own and wait for its first checkpoint."""
    options = ["--steps", steps, "--checkpoint-every", every, "--outer-schedule", "constant", "--out", run]
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxmeta", "train", *SINUSOID, *map(str, options)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not checkpoint_steps(run / "checkpoints"):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, capsys):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed, steps=2000, every=20)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    reached = checkpoint_steps(killed / "checkpoints")[-1]
    assert 20 <= reached < 2000
    # A row cut off in the middle, as a kill may leave it.
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 99')
    steps = str(reached + 35)
    assert main(["train", "--resume", "--out", str(killed), "--steps", steps]) == 0
    assert capsys.readouterr().err.startswith(f"resumed from step {reached}\n")
    constant = [*SINUSOID, "--checkpoint-every", "20", "--outer-schedule", "constant"]
    assert main(["train", *constant, "--steps", steps, "--out", str(whole)]) == 0
    for one, other in zip(arrays(killed, int(steps)), arrays(whole, int(steps)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["step"] for row in rows(killed)] == [row["step"] for row in rows(whole)]


def test_interrupt_saves_and_leaves_with_130(tmp_path):
    run = tmp_path / "run"
    process = start(run)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    stopped = int(err.split("Stopped at step ")[1].split(";")[0])
    assert stopped in checkpoint_steps(run / "checkpoints")
    assert "Traceback" not in err
    # What it is about can be seen already.
    assert (run / "episode.png").stat().st_size > 5000 and not (run / "curves.png").exists()


def test_full_disk_keeps_the_last_checkpoint(run, capsys):
    """A limit on the size of a file stands in for a full disk: writing fails in the middle of a checkpoint."""
    arguments = ["train", "--resume", "--out", str(run), "--steps", "15"]
    with small_files(2000):
        assert main(arguments) == 1
    out, error = capsys.readouterr()
    assert out == "" and "jaxmeta: The checkpoint of step 15 could not be written" in error
    assert main(arguments) == 0 and "resumed from step 10" in capsys.readouterr().err


def test_full_disk_is_noticed_before_writing(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    monkeypatch.setattr("jaxmeta.checkpoint.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert main(["train", *SINUSOID, "--steps", "5", "--out", str(run)]) == 1
    error = capsys.readouterr().err
    assert "The checkpoint of step 5 needs 0." in error and "where 0.0 MB are free" in error
    assert "Traceback" not in error and not list((run / "checkpoints").glob("*"))


def test_nonfinite_loss_stops_and_keeps_the_last_good_checkpoint(run, capsys):
    # The rate of a run cannot be changed from the command line: this makes it diverge from here on.
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "outer_lr": 1e30}))
    assert main(["train", "--resume", "--steps", "50", "--out", str(run)]) == 1
    error = capsys.readouterr().err
    assert "not a finite number at step" in error and "The last good checkpoint is that of step 10." in error
    assert checkpoint_steps(run / "checkpoints") == [5, 10]
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    assert main(["evaluate", str(run)]) == 0


def test_nonfinite_loss_before_the_first_checkpoint(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *SINUSOID, "--steps", "50", "--outer-lr", "1e30", "--out", str(run)]) == 1
    assert "There was no checkpoint yet: delete" in capsys.readouterr().err


def test_a_finished_run_is_not_judged_again(run, trained, capsys):
    result = trained[1]
    assert main(["train", "--resume", "--out", str(run)]) == 0
    out, error = capsys.readouterr()
    assert last_json(out) == result and "nothing was left to do" in error
    assert main(["train", "--resume", "--out", str(run), "--steps", "5"]) == 2
    assert "is at step 10 already" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(run), "--steps", "15"]) == 0
    longer = last_json(capsys.readouterr().out)
    assert longer["steps"] == 15 and longer["seconds"] > result["seconds"]


def test_damaged_checkpoint_is_passed_over(run, capsys):
    for path in (run / "checkpoints" / "10" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert "checkpoint of step 10 is damaged and was passed over\nresumed from step 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: jaxmeta"),
        (["trian"], "Did you mean 'train'?"),
        (["train", "--dataset", "omniglt"], "Unknown dataset 'omniglt'. Did you mean 'omniglot'?"),
        (["train", "--dataset", "floder:photos"], "Unknown dataset 'floder'. Did you mean 'folder'?"),
        (["train", "--dataset", "folder"], "needs its path: --dataset folder:PATH"),
        (["train", "--dataset", "folder:/no/such"], "There is no folder /no/such, and no CSV of this name"),
        (["train", "--image-size", "84"], "--image-size 84 is nothing to --dataset glyphs"),
        (["train", "glyphs-maml-5w1"], "Did you mean 'glyphs-maml-5w1s'?"),
        (["train", "--algorithm", "mam"], "Unknown algorithm 'mam'. Did you mean 'maml'?"),
        (["train", "--metagrad", "first-order"], "Did you mean 'first_order'?"),
        (["train", "--estimator", "pse"], "Did you mean 'pes'?"),
        (["train", "--inner-optimizer", "adm"], "Did you mean 'adam'?"),
        (["train", "--proximal", "-1"], "--proximal must be 0 or more; given -1"),
        (["train", "--estimator", "pes", "--metagrad", "remat"], "--estimator pes differentiates nothing"),
        (["train", "--dataset", "sinusoid", "--metagrad", "implicit"], "without a proximal term"),
        (["train", "--dataset", "sinusoid", "--metagrad", "forward"], "at most 256 are allowed"),
        (
            ["train", "--dataset", "sinusoid", "--metagrad", "truncated", "--inner-steps", "3"],
            "(1) of 3 steps",
        ),
        (["train", "--datset", "glyphs"], "--dataset"),
        (["train", "--ways", "five"], "five"),
        (["train", "--ways", "0"], "--ways must be at least 1; given 0"),
        (["train", "--ways", "1"], "--ways must be at least 2"),
        (["train", "--split", "random"], "--split random is for --dataset omniglot"),
        (["train", "--dataset", "sinusoid", "--within-alphabet"], "The classes of sinusoid are in no groups"),
        (["train", "--within-alphabet", "--ways", "40"], "the largest group of split 'validation' of glyphs has 36"),
        (["train", "--dataset", "mnist", "--data-dir", "/no/such/folder"], "No mnist in data_dir /no/such/folder"),
        (["train", "--dataset", "sinusoid", "--data-dir", "x"], "--dataset sinusoid reads no data"),
        (["train", "--dataset", "omniglot", "--split", "rndom", "--data-dir", "x"], "no split 'rndom'"),
        (["train", "--seed", "-1"], "--seed must be at least 0"),
        (["train", "--seed", "5000000000"], "--seed must be below 2**32"),
        (["train", "--dataset", "sinusoid", "--model", "conv4"], "--model conv4 does not fit --dataset sinusoid"),
        (["train", "--inner-lr", "-1"], "--inner-lr must be a positive number; given -1"),
        (["train", "--outer-lr", "nan"], "--outer-lr must be a positive number; given nan"),
        (["train", "--ways", "9999"], "9999 ways were asked for"),
        (["train", "--shots", "15", "--eval-queries", "15"], "15 shots + 15 queries were asked for"),
        (
            ["train", "--algorithm", "protonet", "--inner-lr", "0.1"],
            "has no inner learning rate: leave it out",
        ),
        (["plan", "--algorithm", "protonet", "--inner-lr", "0.1"], "has no inner learning rate: leave it out"),
        (["train", "--model", "mlp", "--filters", "48"], "--filters 48 is nothing to --model mlp: leave it out"),
        (["plan", "--model", "resnet12", "--context", "7"], "--context 7 is nothing to --model resnet12"),
        (["train", "--inner-batch", "5"], "--inner-batch 5 is nothing to --algorithm maml"),
        (["train", "--scale", "5"], "--scale 5.0 is nothing to --algorithm maml"),
        (["train", "--algorithm", "protonet", "--inner-lrs", "0.4"], "has no inner learning rate: leave it out"),
        (["train", "--log-every", "7"], "--checkpoint-every must be a multiple of --log-every 7"),
        (["train", "--task-chunk", "5"], "--task-chunk must divide --tasks"),
        (["train", "--dataset", "omniglot", "--data-dir", "/no/such/folder"], "/no/such/folder"),
        (["train", "--resume"], "--resume needs --out"),
        (["train", "--devices", "3"], "3 devices were asked for; JAX sees 1 (cpu)"),
        (["train", "--model-devices", "2"], "2 devices for a model do not divide the 1 devices"),
        (["train", "--process-id", "0"], "missing: --coordinator, --num-processes"),
        (["train", "--resume", "--out", "nowhere"], "There is no run in nowhere"),
        (["evaluate", "nowhere"], "There is no run in nowhere"),
        (["evaluate"], "RUN"),
        (["compare", "nowhere", "nowhere"], "There is no run in nowhere"),
        (["compare", "nowhere"], "RUN"),
        (["list", "datasets"], "takes no options"),
    ],
)
def test_bad_input_is_refused_with_2_and_nothing_written(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert code == 2
    assert message in " ".join((said.err + said.out).split())
    assert not list(tmp_path.iterdir())


def test_an_existing_run_is_never_overwritten(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    assert main(["train", *SINUSOID, "--out", str(run)]) == 2
    assert f"{run} exists and holds no run" in capsys.readouterr().err
    assert main(["train", *SINUSOID, "--out", str(run / "notes.txt" / "deep")]) == 2
    assert "notes.txt is a file" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
    (run / "config.json").write_text("{}")
    assert main(["train", *SINUSOID, "--out", str(run)]) == 2
    assert f"The run folder {run} exists. Continue it with --resume" in capsys.readouterr().err


def test_a_damaged_configuration_is_refused(tmp_path, capsys):
    whole = to_json(Config())
    cases = (
        (b"{", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (json.dumps({**whole, "ways": "five"}).encode(), "ways='five'"),
        (json.dumps({**whole, "tasks": True}).encode(), "tasks=True"),
        (json.dumps({**whole, "task_chunk": "4"}).encode(), "task_chunk='4'"),
        (json.dumps({**whole, "tasks": 0}).encode(), "--tasks must be at least 1"),
        (json.dumps({**whole, "dataset": "sinusoids"}).encode(), "Did you mean 'sinusoid'?"),
        (json.dumps({**whole, "wayz": 5}).encode(), "see wayz"),
        (b'{"dataset": "sinusoid"}', "damaged or of another version"),
    )
    for data, message in cases:
        (tmp_path / "config.json").write_bytes(data)
        assert main(["evaluate", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_diverged_evaluation_is_null(tmp_path, capsys):
    """Adaptation that diverges at test time is said in valid JSON, and never chosen as the best."""
    run = tmp_path / "run"
    assert main(["train", *SINUSOID, "--steps", "10", "--eval-inner-steps", "500", "--out", str(run)]) == 0
    out, _ = capsys.readouterr()
    assert main(["evaluate", str(run), "--eval-inner-steps", "1"]) == 0
    assert last_json(capsys.readouterr().out)["mse"] > 0
    assert "Infinity" not in out + (run / "metrics.jsonl").read_text() and "NaN" not in out


@pytest.mark.slow
def test_a_diverged_adaptation_has_no_accuracy(tmp_path, capsys):
    """It is not that of guessing, and the tasks are counted."""
    sizes = "--model mlp --steps 2 --tasks 2 --validation-episodes 4 --eval-episodes 6 --metagrad first_order".split()
    run = ["--inner-lr", "1e8", "--inner-steps", "1", "--eval-inner-steps", "100", "--out", str(tmp_path / "run")]
    assert main(["train", *sizes, *run]) == 0
    result = last_json(capsys.readouterr().out)
    assert result["accuracy"] is None and result["diverged_episodes"] == 6


def test_a_run_is_not_continued_with_other_settings(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *SINUSOID, "--steps", "5", "--out", str(run)]) == 0
    assert main(["train", "--resume", "--out", str(run), "--inner-lr", "0.5"]) == 2
    assert "--inner-lr 0.01 -> 0.5" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(run), "--steps", "10"]) == 2
    assert "--outer-schedule is cosine" in capsys.readouterr().err
    assert main(["train", "glyphs-maml-5w1s", "--resume", "--out", str(run)]) == 2
    assert "leave the preset 'glyphs-maml-5w1s' out" in capsys.readouterr().err


def help_of(name, capsys):
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
    return capsys.readouterr().out


def test_help_explains_every_option_with_its_default(capsys):
    text = help_of("train", capsys)
    for name in OPTIONS.split():
        assert f"--{name} " in text or f"--{name}," in text, name
    # Every option has a line "(default: ...)".
    words = " ".join(text.replace("│", " ").split())
    assert words.count("(default:") == sum(
        map(len, map(dataclasses.fields, (Config, RunOptions, Machine, SweepOptions)))
    )
    judging = ((EvaluateOptions, "evaluate"), (CompareOptions, "compare"))
    for options, name in (*judging, (AdaptOptions, "adapt"), (PredictOptions, "predict")):
        words = " ".join(help_of(name, capsys).replace("│", " ").split())
        fields = [field for field in dataclasses.fields(options) if field.default is not dataclasses.MISSING]
        assert words.count("(default:") == len(fields) and any(place in words for place in ("RUN", "SAVED"))
        assert all(f"--{field.name.replace('_', '-')}" in words for field in fields)


def test_list_names_every_row(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for table in (DATASETS, METAGRADS, ESTIMATORS, INNER_OPTIMIZERS, MODELS, PRESETS):
        assert all(name in text for name in table)


def test_a_closed_pipe_is_no_crash():
    result = subprocess.run(f"{sys.executable} -m jaxmeta list | head -c 1", shell=True, capture_output=True, text=True)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


def test_every_preset_is_valid_and_every_dataset_has_one():
    for preset in PRESETS.values():
        check_config(preset)
    assert set(DEFAULT_PRESETS) == set(DATASETS)
    assert PRESETS["glyphs-maml-5w1s"] == Config()


def given_to(algorithm, monkeypatch):
    """Record what the command line gives to the factory of an algorithm."""
    factory, given = parts.ALGORITHMS[algorithm], []

    def recording(model, **options):
        given.append(options)
        return factory(model, **options)

    monkeypatch.setitem(parts.ALGORITHMS, algorithm, recording)
    monkeypatch.setattr(parts, "options_of", lambda _: options_of(factory))
    return given


@pytest.mark.parametrize(
    ("algorithm", "field", "option", "value"),
    [
        ("reptile", "inner_batch", "batch_size", 3),
        ("reptile", "eval_inner_batch", "eval_batch_size", 4),
        ("matching", "scale", "scale", 7.0),
        ("baseline++", "scale", "scale", 7.0),
        ("imaml", "damping", "damping", 0.0),
    ],
)
def test_an_option_of_an_algorithm_reaches_it_only_if_it_is_given(algorithm, field, option, value, monkeypatch):
    given = given_to(algorithm, monkeypatch)
    config = dataclasses.replace(with_algorithm(Config(model="mlp", task_chunk=1), algorithm), **{field: None})
    glyphs = load_glyphs()
    for one in (config, dataclasses.replace(config, **{field: value})):
        parts.build(one, glyphs)
    without, with_it = given
    assert option not in without and with_it == {**with_it, **{option: value}}
    assert set(with_it) - set(without) == {option}


def test_maml_plus_plus_anneals_over_the_shares_of_its_paper(monkeypatch):
    """All losses count in the first tenth of a training, and its first half is of first order."""
    given = given_to("maml++", monkeypatch)
    config = dataclasses.replace(with_algorithm(Config(model="mlp", task_chunk=1), "maml++"), steps=300)
    parts.build(config, load_glyphs())
    assert (given[0]["multi_step_until"], given[0]["first_order_until"]) == (30, 150)
