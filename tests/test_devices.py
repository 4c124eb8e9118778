"""Eight devices: the numbers of one, the work really divided, and what does not fit refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxmeta import make_mesh
from jaxmeta.nn import LOWERINGS

PROGRAM = Path(__file__).with_name("many_devices.py")


def run(*cases):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    result = subprocess.run([sys.executable, PROGRAM, *cases], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def measured():
    """One process for what is read from compiled programs and from short runs."""
    return run("same_numbers", "poisoned_padding", "divided_work", "divided_sampling", "lowered")


@pytest.fixture(scope="module")
def trained():
    """And another for whole trainings, and networks."""
    return run("convolution", "whole_training", "population", "host_pool", "divided_model", "sharded_lowerings")


def test_a_mesh_gives_the_numbers_of_one_device(measured):
    """Padding included; whole numbers in the state are those of the first task, and not averaged."""
    errors = measured["same_numbers"]
    assert errors.pop("count, 3 tasks") == errors.pop("count, 9 tasks") == 9
    assert len(errors) == 2
    assert all(error < 2e-5 for error in errors.values()), errors


def test_a_convolution_gives_the_numbers_of_one_device(trained):
    assert trained["convolution"]["error"] < 2e-5


def test_every_lowering_gives_xla_s_gradient_on_a_mesh(trained):
    errors = trained["sharded_lowerings"]
    assert set(errors) == set(LOWERINGS)
    assert all(error < 1e-10 for error in errors.values()), errors


def test_padding_is_exact_whatever_it_holds(measured):
    assert measured["poisoned_padding"]["nonfinite"] == 0
    assert measured["poisoned_padding"]["error"] < 2e-6


def test_fit_on_a_mesh_is_fit_on_one_device(trained):
    whole = trained["whole_training"]
    assert whole["exact"] < 2e-5
    # What evolution estimates is a small difference of losses: their last bits count more.
    assert whole["pes"] < 2e-3
    assert whole["kernel"] == whole["moment"] == "P(None, 'model')"
    assert whole["particles"].startswith("P('tasks'")


def is_divided(one, many, devices):
    """The measure: each device has its share of the arithmetic, sums are exchanged and tasks are not."""
    share = many["flops"] / one["flops"]
    return share < 1.3 / devices and many["all-reduce"] >= 1 and many["all-gather"] == many["all-to-all"] == 0


def test_the_compiled_program_divides_the_work(measured):
    work = measured["divided_work"]
    assert is_divided(work["one"], work["eight"], 8), work
    # One exchange for the gradients, the loss, the metrics and the state together.
    assert work["eight"]["all-reduce"] == 1
    assert work["eight"]["temporaries"] < work["one"]["temporaries"] / 4


def test_the_measure_sees_work_that_is_repeated(measured):
    """Scanning an axis that the partitioner has sharded: right numbers, and every device does everything."""
    work = measured["divided_work"]
    assert not is_divided(work["one"], work["trap"], 8)
    assert work["trap"]["flops"] > 0.9 * work["one"]["flops"] and work["trap"]["all-gather"] > 0


def test_each_device_draws_its_own_tasks(measured):
    work = measured["divided_sampling"]
    assert work["eight"]["flops"] < 1.1 * work["eighth"]["flops"] < 0.2 * work["one"]["flops"]
    assert sum(work["eight"][name] for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute")) == 0


def test_a_large_model_is_divided_over_its_axis(trained):
    model = trained["divided_model"]
    assert model["error"] < 2e-5
    for quantity in ("flops", "arguments", "temporaries"):
        assert model["divided"][quantity] < 0.3 * model["whole"][quantity], quantity


def test_the_sharded_step_lowers_for_tpu_and_cuda(measured):
    assert measured["lowered"] == {"platforms": ["tpu", "cuda"], "devices": 8}


def test_a_pool_on_the_host_feeds_a_mesh(trained):
    """Each device is sent its own tasks, and the numbers are those of a pool on every device."""
    assert trained["host_pool"] == {"same": True, "sent": [2, 2, 2, 2]}


def test_a_mesh_divides_a_population(trained):
    assert trained["population"]["members"] == [7] * 4 and trained["population"]["error"] < 2e-5


def test_a_mesh_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"99 devices were asked for; JAX sees 1 \(cpu\)"):
        make_mesh(99)
    with pytest.raises(ValueError, match="2 devices for a model do not divide the 1 devices"):
        make_mesh(1, model_devices=2)
