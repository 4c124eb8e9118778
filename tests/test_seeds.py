"""Seeds of an experiment, one after another or a few at a time."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from conftest import load_experiment

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.mark.parametrize(("jobs", "together"), [(1, 1), (2, 2), (5, 3)])
def test_results_are_in_order_and_no_more_at_once_than_asked_for(jobs, together):
    each_seed = load_experiment("seeds").each_seed
    # Nobody passes before so many are there: one too few at a time would wait until the time is over.
    barrier, lock, running, most = threading.Barrier(together), threading.Lock(), 0, 0

    def run_seed(seed):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if seed < together:
            barrier.wait(timeout=60)
        with lock:
            running -= 1
        return seed * 10

    assert each_seed(run_seed, 3, jobs) == [0, 10, 20]
    assert most == together


def test_what_fails_in_a_thread_is_not_lost():
    def run_seed(seed):
        if seed == 1:
            raise ValueError("of seed 1")
        return seed

    for jobs in (1, 2):
        with pytest.raises(ValueError, match="of seed 1"):
            load_experiment("seeds").each_seed(run_seed, 3, jobs)


def test_an_interrupt_ends_the_program_while_threads_compute():
    lines = (
        "import threading",
        "from seeds import each_seed",
        "each_seed(lambda seed: (print('begun', flush=True), threading.Event().wait()), 2, 2)",
    )
    program = "\n".join(lines)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=EXPERIMENTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted" in errors and "Traceback" not in errors
