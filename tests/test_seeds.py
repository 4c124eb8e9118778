"""Seeds of an experiment, one after another or a few at a time."""

import argparse
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from conftest import load_experiment

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def options(*words):
    parser = argparse.ArgumentParser()
    load_experiment("seeds").add_seeds(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(("jobs", "together"), [("1", 1), ("2", 2), ("5", 3)])
def test_results_are_in_order_and_no_more_at_once_than_asked_for(jobs, together):
    # Nobody passes before so many are there: one too few at a time would wait until the time is over.
    barrier, lock, running, most = threading.Barrier(together), threading.Lock(), 0, 0

    def run_seed(seed):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if seed < 7 + together:
            barrier.wait(timeout=60)
        with lock:
            running -= 1
        return seed * 10

    given = options("--seeds", "3", "--first-seed", "7", "--jobs", jobs)
    assert load_experiment("seeds").each_seed(run_seed, given) == [70, 80, 90]
    assert most == together


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_fails_is_not_lost_and_nothing_begins_after_it(jobs, failing):
    begun, other = [], threading.Event()

    def run_seed(seed):
        begun.append(seed)
        if seed == failing:
            raise ValueError(f"of seed {seed}")
        # In threads the other one goes on until the test has seen that the failure did not wait for it.
        assert jobs == "1" or other.wait(timeout=60)
        return seed

    with pytest.raises(ValueError, match=f"of seed {failing}"):
        load_experiment("seeds").each_seed(run_seed, options("--seeds", "4", "--jobs", jobs))
    other.set()
    assert max(begun) <= 1


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--jobs", "0"], ["--jobs", "-1"]])
def test_refuses_counts_below_one(words, capsys):
    with pytest.raises(SystemExit):
        options(*words)
    assert f"1 or more is needed; given {words[1]}" in capsys.readouterr().err


def test_an_interrupt_ends_the_program_while_threads_compute():
    lines = (
        "import signal, threading",
        # Where the tests run in the background, interrupts are ignored by all that they start.
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "from seeds import each_seed",
        "from argparse import Namespace",
        "options = Namespace(first_seed=0, seeds=2, jobs=2)",
        "each_seed(lambda seed: (seed or print('begun', flush=True), threading.Event().wait()), options)",
    )
    program = "\n".join(lines)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=EXPERIMENTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and "Interrupted" in errors and "Traceback" not in errors
