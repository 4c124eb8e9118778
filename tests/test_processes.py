"""Two local processes train one run: the same checkpoint as one process, one voice, one end."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxmeta import LoweringTable
from jaxmeta.cli import main
from jaxmeta.folder import lowerings_file, save_lowerings
from jaxmeta.nn.processor import device_name

# Five tasks for two processes: one is padding.
OPTIONS = ["--dataset", "sinusoid", "--tasks", "5", "--log-every", "5", "--checkpoint-every", "5"]
OPTIONS += ["--eval-episodes", "12", "--validation-episodes", "5", "--outer-schedule", "constant"]


def together(*arguments):
    """Run a command in two processes; return `(code, stdout, stderr)` of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = ["--coordinator", address, "--num-processes", "2", "--process-id"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxmeta", *map(str, arguments), *joined, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=150) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *spoken) for process, spoken in zip(started, said, strict=True)]


def arrays(run, step):
    tree = ocp.StandardCheckpointer().restore((run / "checkpoints" / str(step) / "state").absolute())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_two_processes_leave_the_checkpoint_of_one(tmp_path, capsys, monkeypatch):
    """Stopped and resumed on the way, which a single process is not; the first reads a table of lowerings for both."""
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    save_lowerings(lowerings_file(device_name()), LoweringTable("cpu"))
    two, one = tmp_path / "two", tmp_path / "one"
    for arguments in (["train", *OPTIONS, "--steps", "5"], ["train", "--resume", "--steps", "10"]):
        (code, out, err), (other_code, other_out, other_err) = together(*arguments, "--out", two)
        assert code == other_code == 0, err + other_err
        result = json.loads(out.splitlines()[-1])
        assert "validation mse" in err and "{" not in other_out and "validation" not in other_err
    assert main(["train", *OPTIONS, "--steps", "10", "--out", str(one)]) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    np.testing.assert_allclose(result["mse"], alone["mse"], rtol=1e-4)
    assert json.loads((two / "result.json").read_text()) == result
    for given, expected in zip(arrays(two, 10), arrays(one, 10), strict=True):
        np.testing.assert_allclose(given, expected, rtol=2e-5, atol=1e-6)
    steps = [[json.loads(line)["step"] for line in (run / "metrics.jsonl").open()] for run in (two, one)]
    assert steps[0] == steps[1]


def test_what_stops_the_first_process_stops_the_other(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (code, out, err), (other_code, other_out, other_err) = together("train", *OPTIONS, "--out", tmp_path)
    assert (code, other_code) == (2, 1)
    assert "holds no run" in err and "The first process could not go on" in other_err
    assert "Traceback" not in err + other_err and "{" not in out + other_out
