"""The benchmarks: the loads are what they say, the commands say what they should. Speed is never asserted."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from conftest import load_experiment
from jaxmeta.bench import LOADS, count_flops, tiny
from jaxmeta.bench.loads import draw_episodes, draw_weights
from jaxmeta.bench.measure import measure
from jaxmeta.bench.process import measure_in_own_process
from jaxmeta.bench.table import COLUMNS, markdown_table
from jaxmeta.cli import main

REPO = Path(__file__).resolve().parents[1]
# The benchmarks are scripts, which import each other as such.
sys.path[:0] = [str(REPO / "benchmarks"), str(REPO / "benchmarks" / "peers")]

import scaling  # noqa: E402

import contenders  # noqa: E402
import speed  # noqa: E402
import speed_report  # noqa: E402
from jax_networks import make_apply  # noqa: E402
from jax_peers import plain_meta_loss  # noqa: E402

# One inner step and a single layer where layers are alike keep this short; B and C, A1 and A5 differ in numbers only.
COUNTED = [
    LOADS["A1"]._replace(size=400),
    LOADS["B"]._replace(tasks=2),
    LOADS["D"]._replace(tasks=2, num_steps=2),
    LOADS["E"]._replace(tasks=1, size=32),
    LOADS["F"]._replace(tasks=2, depth=1),
]


# A residual network takes long to compile.
@pytest.mark.parametrize(
    "load", [pytest.param(load, marks=[pytest.mark.slow] if load.name == "E" else [], id=load.name) for load in COUNTED]
)
def test_flops_agree_with_xla(load):
    """Of the plain networks of the peers, whose inner steps are a Python loop: XLA counts the body of a loop once."""
    episodes = draw_episodes(load)
    parts = [(batch.inputs, batch.targets) for batch in episodes]
    gradient = jax.jit(jax.grad(plain_meta_loss(load)))
    # Of the program as it is written, before XLA makes it its own: nothing is compiled.
    counted = gradient.lower(draw_weights(load), *parts).cost_analysis()["flops"]
    assert counted == pytest.approx(count_flops(load), rel=0.15)


@pytest.mark.parametrize("names", [("A5",), pytest.param(("C", "E", "F"), marks=pytest.mark.slow)])
def test_tiny_loads_are_measured_and_shown(names):
    """All networks; each load by itself is what the command does."""
    rows = [measure(tiny(LOADS[name]), rounds=2) for name in names]
    for row in rows:
        assert math.isfinite(row["loss"]) and len(row["seconds"]) == 2
        assert min(row["tasks_per_second"], row["gflops"], row["compile_seconds"], row["temp_bytes"]) > 0
    lines = markdown_table(rows).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == list(COLUMNS)
    assert all(line.count("|") == len(COLUMNS) + 1 for line in lines[: len(rows) + 2])


def test_a_curve_over_devices_has_no_more_than_tasks():
    assert scaling.devices_at_hand({"cores": 6}, 8) == (1, 2, 4)
    assert scaling.devices_at_hand({"cores": 64}, 8) == (1, 2, 4, 8)
    assert scaling.devices_at_hand({"cores": 1}, 8) == (1,)


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a single core is a single device")
def test_the_devices_that_share_the_tasks(monkeypatch):
    """Of a curve over devices: as many as were asked for, each with its part of the tasks."""
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    rows = [measure_in_own_process(load="C", rounds=1, devices=devices, quick=True) for devices in (1, 2)]
    assert [row.get("devices") for row in rows] == [1, 2], rows
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)


def test_tiny_keeps_what_a_load_is():
    for load in LOADS.values():
        small = tiny(load)
        assert (small.name, small.network, small.inner_rate) == (load.name, load.network, load.inner_rate)
        assert count_flops(small) < count_flops(load)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((draw_weights(small), draw_episodes(small))))


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    assert main(["bench", "A1", "--quick", "--rounds", "2", "--json", str(tmp_path / "rows.json")]) == 0
    out, errors = capsys.readouterr()
    assert out.splitlines()[2].startswith("| A1: sinusoid")
    assert "A1: sinusoid" in errors and "cpu, " in out
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["load"] == "A1" and row["peak_rss_bytes"] > 2**26


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["B", "--chunk", "5"], "--chunk must divide the 32 tasks of load B; given 5."),
        (["B", "--rounds", "0"], "--rounds must be at least 1; given 0."),
        (["B", "--precision", "tf23"], "Did you mean 'tf32'?"),
        (["BB"], "Unknown load 'BB'. Did you mean 'B'?"),
        (["A1", "--json", "no-folder/rows.json"], "there is no folder no-folder. Make it first."),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    out, errors = capsys.readouterr()
    assert message in errors and not out


def test_what_was_measured_before_an_interruption_is_kept(tmp_path, monkeypatch, capsys):
    def measured(*, load, **options):
        if load == "A5":
            raise KeyboardInterrupt
        return {"load": load, "error": "made up"}

    monkeypatch.setattr("jaxmeta.bench.run.measure_in_own_process", measured)
    assert main(["bench", "A1", "A5", "--json", str(tmp_path / "rows.json")]) == 130
    assert json.loads((tmp_path / "rows.json").read_text()) == [{"load": "A1", "error": "made up"}]


def test_a_card_s_machine_needs_no_more_than_jax_flax_optax_and_chex():
    """What `benchmarks/gpu.py` runs there: our side beside the peers, and a load by itself."""
    blocked = "tyro tensorflow_datasets tensorflow orbax matplotlib PIL fontTools qpax filelock".split()
    request = json.dumps({"load": "A1", "rounds": 1, "quick": True})
    code = f"""
        import runpy, sys
        sys.modules.update(dict.fromkeys({blocked}))
        sys.path[:0] = {[str(REPO / "benchmarks" / "peers")]}
        import ours
        sys.argv = ["jaxmeta.bench", {request!r}]
        runpy.run_module("jaxmeta.bench", run_name="__main__")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["load"] == "A1"


@pytest.mark.parametrize("name", ["A1", "B", "F"])
def test_plain_jax_computes_in_bfloat16_where_it_is_asked_to(name):
    """Products and convolutions, of which none is left in float32; a check in float64 is rounded nowhere."""
    load = tiny(LOADS[name])
    arguments = draw_weights(load), draw_episodes(load).support.inputs[0]
    program = str(jax.make_jaxpr(make_apply(load, "bfloat16"))(*arguments))
    products = re.findall(r":(\S+)\[[^]]*\] = (?:dot_general|conv_general_dilated)", program)
    assert products and set(products) == {"bf16"}
    outputs = make_apply(load, "bfloat16")(*arguments)
    difference = np.abs(outputs - make_apply(load)(*arguments)).max()
    assert outputs.dtype == np.float32 and 1e-5 < difference < 0.3


@pytest.mark.slow
def test_the_script_for_a_card_runs_dry(tmp_path):
    """All parts on tiny loads: a table and a file for each precision; PyTorch may not be."""
    command = [sys.executable, str(REPO / "benchmarks" / "gpu.py"), "--out", str(tmp_path), "--loads", "A1"]
    command += ["--peers", "plain JAX vmap", "learn2learn", "--precisions", "float32", "bfloat16"]
    result = subprocess.run([*command, "--quick", "--rounds", "1"], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    report = (tmp_path / "report.md").read_text()
    of_float32, of_bfloat16 = report.split("## bfloat16")
    assert "## float32" in of_float32 and "| jaxmeta |" in of_float32 and "| jaxmeta |" in of_bfloat16
    assert json.loads((tmp_path / "gpu.json").read_text())["rates"]["backend"] == jax.default_backend()
    for precision in ("float32", "bfloat16"):
        record = json.loads((tmp_path / f"speed-{precision}.json").read_text())
        rows = {row["contender"]: row for row in record["rows"]}
        assert record["precision"] == precision and rows["jaxmeta"]["seconds"] and rows["plain JAX vmap"]["seconds"]
        assert rows["learn2learn"].get("seconds") or rows["learn2learn"]["status"] == "not installed"


@pytest.mark.slow
def test_the_curves_are_measured_over_every_axis(tmp_path, monkeypatch):
    # The tests' own: one device, which is all that there would be.
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    path = tmp_path / "scaling.json"
    command = [sys.executable, str(REPO / "benchmarks" / "scaling.py"), "--quick", "--rounds", "1", "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = json.loads(path.read_text())["rows"]
    assert {row["axis"] for row in rows} == set(scaling.TITLES) and not any("error" in row for row in rows)
    # A point on the axis of devices is of so many.
    assert all(row["devices"] == row["value"] for row in rows if row["axis"] == "devices")
    assert all(f"| {title} |" in result.stdout for title in scaling.TITLES.values())
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_an_interruption_ends_the_measuring_process():
    command = [sys.executable, "-m", "jaxmeta", "bench", "E", "--rounds", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()
    # Now it starts, or has just started, the process that measures.
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors


FAKE = """
    import sys
    from harness import Contender, serve

    def make(problem, options):
        if options.name == "absent":
            import a_library_that_nobody_has
        steps = iter([0.5, 0.25, 0.125])
        def step():
            print("libraries print what they like")
            return next(steps)
        gradient = lambda: (1.5, problem.weights)
        return Contender(gradient, dict, step, lambda: None, {"versions": {"fake": "1"}})

    serve(make, ["present", "absent"])
"""


def test_the_protocol_of_the_contenders(tmp_path, monkeypatch):
    """Requests and answers, by a contender that computes nothing: no PyTorch is needed."""
    harness = REPO / "benchmarks" / "peers" / "harness.py"
    (tmp_path / "harness.py").write_text(harness.read_text())
    (tmp_path / "fake.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.setattr(contenders, "PEERS", tmp_path)
    load = tiny(LOADS["A1"])
    problem = speed.write(load, np.float64, tmp_path)

    def start(name):
        entry = contenders.Entry("learn2learn", ("fake.py", name), "own", "torch")
        return contenders.Process(entry, sys.executable, problem, [], 30.0)

    with pytest.raises(contenders.Failed, match="^not installed$"):
        start("absent")
    # What a script needs before it can answer, as PyTorch.
    (tmp_path / "needy.py").write_text("import a_library_that_nobody_has\n")
    entry = contenders.Entry("learn2learn", ("needy.py", "any"), "own", "torch")
    with pytest.raises(contenders.Failed, match="^not installed$"):
        contenders.Process(entry, sys.executable, problem, [], 30.0)
    with start("present") as process:
        assert process.ask(f"gradient {tmp_path / 'answer.npz'}")["loss"] == 1.5
        with np.load(tmp_path / "answer.npz") as answer:
            expected = draw_weights(load, np.float64)["body"]["Dense_1"]["kernel"]
            np.testing.assert_array_equal(answer["body/Dense_1/kernel"], expected)
        assert process.ask("go 2")["loss"] == 0.25
        rows = contenders.run_rounds([process], 1, 0.0, 20.0, lambda text: None)
        # The first step of the warming up is its last; the next one fails, which is a row and not a crash.
        assert rows["learn2learn"]["status"].startswith("failed: StopIteration")


@pytest.mark.parametrize("error, timed", [(2e-3, True), (4e-3, False), (np.nan, False)])
def test_speed_times_no_arithmetic_that_a_library_would_beat(tmp_path, monkeypatch, error, timed):
    """On the load itself, and its own arithmetic: no farther from float64 than a library's, but for chance."""
    race = speed.Race(speed.parse(["--quick", "--peers", "learn2learn"]), tmp_path)
    race.differences["mlp"] = {"jaxmeta": 0.0, "learn2learn": 0.0}
    away = {"jaxmeta": error, "learn2learn": 1e-3}

    def gradient(entry, problem):
        return {"kernel": np.ones(3) + (0.0 if problem.name.endswith("float64.npz") else away[entry.name])}

    monkeypatch.setattr(race, "gradient", gradient)
    monkeypatch.setattr(race, "group", lambda entries, problem: {entry.name: {"seconds": [1.0]} for entry in entries})
    ours, theirs = race.run(LOADS["A1"])
    np.testing.assert_allclose([ours["from_float64"], theirs["from_float64"]], [error, 1e-3])
    assert ("seconds" in ours) == timed and theirs["seconds"] == [1.0]
    assert timed or ours["status"].startswith("another gradient: ")


def test_a_record_of_speed_takes_further_loads(tmp_path, monkeypatch):
    """Of the same machine and as many rounds; in the order of the loads, each measured once."""
    monkeypatch.setattr(speed.Race, "run", lambda race, load: [{"load": load.name, "contender": "jaxmeta"}])
    monkeypatch.setattr(speed, "tables", lambda record: "")
    monkeypatch.setattr(speed, "draw", lambda path, record: None)
    file = tmp_path / "speed.json"

    def run(*arguments):
        speed.main([*arguments, "--json", str(file)])
        return [row["load"] for row in json.loads(file.read_text())["rows"]]

    with pytest.raises(SystemExit, match="there is none at"):
        run("--loads", "B", "--add")
    assert run("--loads", "D", "B") == ["B", "D"]
    assert run("--loads", "C", "B", "--add") == ["B", "C", "D"]
    with pytest.raises(SystemExit, match="has rounds 5, and this run 3"):
        run("--loads", "A1", "--add", "--rounds", "3")
    assert run("--loads", "A1") == ["A1"]


@pytest.mark.slow
def test_speed_compares_times_and_reports_who_is_missing(tmp_path, capsys):
    file = tmp_path / "speed.json"
    arguments = ["--quick", "--loads", "A1", "--rounds", "1", "--json", str(file)]
    speed.main([*arguments, "--peers", "plain JAX vmap", "higher", "--peers-python", str(tmp_path / "no-python")])
    record = json.loads(file.read_text())
    rows = {row["contender"]: row for row in record["rows"]}
    assert rows["higher"]["status"] == "not installed"
    assert rows["jaxmeta"]["gradient_difference"] < 1e-12 and rows["jaxmeta"]["peak_rss"] > 2**26
    assert all(len(rows[name]["seconds"]) == 1 for name in ("jaxmeta", "plain JAX vmap"))
    table = capsys.readouterr().out
    assert "| higher | not installed |" in table and "| jaxmeta | " in table
    assert (tmp_path / "speed.png").stat().st_size > 5000


def test_the_table_of_the_readme_is_made_from_the_record(tmp_path, monkeypatch):
    common = {"description": "conv4, 1 step", "tasks": 2, "gflop": 1.0, "gradient_difference": 0.0, "single": False}
    rows = [
        {"contender": "jaxmeta", "seconds": [0.5, 0.4, 0.6], "versions": {"jax": "1"}},
        {"contender": "learn2learn", "seconds": [1.5], "versions": {"torch": "1"}},
        {"contender": "torch.func vmap", "seconds": [3.0], "versions": {"torch": "1"}},
        {"contender": "plain JAX vmap", "seconds": [0.01], "versions": {"jax": "1"}, "single": True},
        {"contender": "jax-meta", "status": "not installed"},
    ]
    about = {"processor": "P", "cores": 2, "device": "cpu", "precision": "float32", "rounds": 3}
    record = {**about, "rows": [{"load": "B", **common, **row} for row in rows]}
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.json").write_text(json.dumps(record))
    module = load_experiment("make_tables")
    monkeypatch.setattr(module, "REPO", tmp_path)
    page = module.filled("<!-- speed -->\nold\n<!-- end speed -->")
    for line in (
        "| jaxmeta | 0.50 s |",
        "| learn2learn | 1.50 s |",
        "| plain JAX vmap | 10.00 ms * |",
        "| jax-meta | not installed |",
        "| fastest PyTorch peer / jaxmeta | 3.00 |",
    ):
        assert line in page
    assert speed_report.fastest_peer(speed_report.rows_of(record, "B"))["contender"] == "learn2learn"
