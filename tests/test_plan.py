"""The planner: what fits, what is fastest, and a run that is given less memory than it wants."""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import OPTIMIZER, TASKS, learner_of

from jaxmeta import METAGRADS, make_train_step, plan_steps
from jaxmeta.bench.measure import resident_bytes
from jaxmeta.budget import budget_bytes
from jaxmeta.cli import main
from jaxmeta.config import Config
from jaxmeta.device_memory import compile_lean, memory_at_hand, program_bytes
from jaxmeta.dispatch import compile_steps
from jaxmeta.plan import (
    SAME_GRADIENT,
    SHARE_OF_TIME,
    Candidate,
    DoesNotFit,
    Measured,
    different_chunks,
    divisors,
    fastest_plan,
    fit_plan,
    plan_table,
)
from jaxmeta.planning import plan_run
from jaxmeta.presets import PRESETS
from jaxmeta.train import fit, init_train_state
from jaxmeta.workspace import make_state, open_workspace

# Activations of a few MiB, compiled in no time.
LARGE = "--dataset sinusoid --tasks 8 --queries 4000 --log-every 2 --checkpoint-every 2 --steps 4".split()
LARGE += "--outer-schedule constant --eval-episodes 8 --validation-episodes 4 --eval-queries 10".split()


def measured(candidate, seconds=None):
    """A step whose memory grows with the chunk, and is halved by every strategy that keeps less."""
    num_bytes = 1000 * candidate.task_chunk >> SAME_GRADIENT.index(candidate.metagrad)
    num_bytes >>= candidate.precision == "bfloat16"
    return Measured(candidate, num_bytes, 0.0, seconds)


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (None, Candidate("unrolled", 12)),
        (12000, Candidate("unrolled", 12)),
        (11999, Candidate("unrolled", 6)),
        (3000, Candidate("unrolled", 3)),
        (2000, Candidate("unrolled", 1)),
        (500, Candidate("mixed_mode", 1)),
        (250, Candidate("remat", 1)),
    ],
)
def test_the_first_that_fits(budget, chosen):
    plan = fit_plan(measured, Candidate("unrolled", 12), budget=budget, others=SAME_GRADIENT)
    assert plan.chosen == chosen == plan.tried[-1].candidate
    assert all(one.num_bytes > budget for one in plan.tried[:-1])


def test_a_strategy_that_cannot_serve_is_passed_over():
    def measure(candidate):
        return None if candidate.metagrad == "mixed_mode" else measured(candidate, 1.0)

    options = {"budget": 500, "others": SAME_GRADIENT}
    assert fit_plan(measure, Candidate("unrolled", 2), **options).chosen == Candidate("remat", 1)
    plan = fastest_plan(measure, Candidate("unrolled", 2), chunks=[1, 2], **options)
    assert "mixed_mode" not in {one.candidate.metagrad for one in plan.tried}


def test_what_cannot_fit_says_by_how_much_and_what_would():
    def large(candidate):
        return measured(candidate)._replace(num_bytes=measured(candidate).num_bytes * 2**20)

    with pytest.raises(DoesNotFit, match="needs 125 MiB .* --metagrad remat_group, and 100 MiB may be used: 25 MiB"):
        fit_plan(large, Candidate("unrolled", 4), budget=100 * 2**20, others=SAME_GRADIENT)


def test_a_precision_is_changed_last_and_only_if_allowed():
    wanted = Candidate("unrolled", 4, "float32")
    with pytest.raises(DoesNotFit, match="--metagrad remat_group, and"):
        fit_plan(measured, wanted, budget=70, others=SAME_GRADIENT)
    plan = fit_plan(measured, wanted, budget=70, others=SAME_GRADIENT, precisions=["bfloat16"])
    assert plan.chosen == Candidate("remat_group", 1, "bfloat16")
    assert [one.candidate.precision for one in plan.tried] == ["float32"] * 6 + ["bfloat16"] * 4
    assert "| remat_group | 1 | bfloat16 | 0 | 0.0 | - | chosen |" in plan_table(plan)
    with pytest.raises(DoesNotFit, match="--metagrad remat_group --precision bfloat16, and"):
        fit_plan(measured, wanted, budget=60, others=SAME_GRADIENT, precisions=["bfloat16"])


def test_members_of_a_population_give_way_first():
    def measure(candidate):
        return measured(candidate)._replace(num_bytes=1000 * candidate.members * candidate.task_chunk)

    plan = fit_plan(measure, Candidate("unrolled", 4, members=6), budget=2000)
    assert [(one.candidate.task_chunk, one.candidate.members) for one in plan.tried] == [(4, 6), (4, 3), (4, 1), (2, 1)]
    assert plan.chosen == Candidate("unrolled", 2, members=1)
    assert "| metagrad | task chunk | precision | runs at once | MiB a device |" in plan_table(plan)
    assert "runs at once" not in plan_table(fit_plan(measured, Candidate("unrolled", 4), budget=None))


@pytest.mark.parametrize("speed, chosen", [(2.0, "bfloat16"), (1.02, "float32"), (0.5, "float32")])
def test_a_precision_is_taken_where_it_is_faster(speed, chosen):
    """By more than a moment's noise: it changes what is computed."""

    def measure(candidate):
        return measured(candidate, (speed if candidate.precision == "float32" else 1.0) / candidate.task_chunk)

    plan = fastest_plan(
        measure, Candidate("unrolled", 1, "float32"), chunks=[1, 2], budget=None, precisions=["bfloat16"]
    )
    assert plan.chosen == Candidate("unrolled", 2, chosen)
    assert sum(one.candidate.precision == "bfloat16" for one in plan.tried) == 1


@settings(deadline=None)
@given(st.integers(1, 48), st.integers(1, 48), st.floats(0.2, 60), st.integers(1000, 60000))
def test_the_fastest_that_fits(num_tasks, wanted, best_chunk, budget):
    """Where time has one valley the search ends at its bottom, or at the edge of memory; it never tries one twice."""
    chunks = divisors(num_tasks)
    wanted = min(chunks, key=lambda size: abs(size - wanted))

    def measure(candidate):
        one = measured(candidate)
        seconds = abs(np.log(candidate.task_chunk / best_chunk)) + 0.1 + 0.01 * SAME_GRADIENT.index(candidate.metagrad)
        return one._replace(step_seconds=seconds if one.num_bytes <= budget else None)

    plan = fastest_plan(measure, Candidate("unrolled", wanted), chunks=chunks, budget=budget, others=SAME_GRADIENT)
    assert plan.chosen.task_chunk in chunks
    tried = [one.candidate for one in plan.tried]
    assert len(set(tried)) == len(tried)
    timed = [one for one in plan.tried if one.step_seconds is not None]
    chosen = next(one for one in plan.tried if one.candidate == plan.chosen)
    assert chosen.num_bytes <= budget
    assert SHARE_OF_TIME * chosen.step_seconds <= min(one.step_seconds for one in timed)


@pytest.mark.parametrize("gain, chosen", [(0.97, ("unrolled", 2)), (0.9, ("mixed_mode", 1))])
def test_what_a_clock_may_err_by_changes_nothing(gain, chosen):
    def measure(candidate):
        seconds = gain ** (2 - candidate.task_chunk) * (gain if candidate.metagrad == "mixed_mode" else 1.0)
        return measured(candidate)._replace(step_seconds=seconds)

    plan = fastest_plan(
        measure, Candidate("unrolled", 2), chunks=[1, 2], budget=None, others=("unrolled", "mixed_mode")
    )
    assert plan.chosen == Candidate(*chosen)


@settings(deadline=None)
@given(st.integers(1, 48), st.integers(1, 48), st.integers(1, 9))
def test_no_program_is_tried_under_two_names(num_tasks, wanted, num_devices):
    """Tasks of a device in one chunk are one program, whatever the chunk could be."""
    wanted = min(divisors(num_tasks), key=lambda size: abs(size - wanted))
    on_device = -(-num_tasks // num_devices)
    chunks = different_chunks(num_tasks, wanted, on_device)
    programs = [-(-on_device // size) for size in chunks]
    assert wanted in chunks and len(set(programs)) == len(programs)
    # None is left out.
    assert set(programs) == {-(-on_device // size) for size in divisors(num_tasks)}
    tried = []
    with pytest.raises(DoesNotFit):
        fit_plan(lambda one: tried.append(one) or measured(one), Candidate("unrolled", wanted), budget=0, chunks=chunks)
    assert {one.task_chunk for one in tried} <= set(chunks) and min(tried[-1].task_chunk, on_device) == 1


@pytest.mark.parametrize(
    "num_tasks, wanted, on_device, sizes",
    [(24, 8, 5, [8, 3, 1]), (40, 40, 5, [40, 4, 2, 1]), (32, 32, 4, [32, 2, 1]), (12, 12, 12, [12, 6, 3, 1])],
)
def test_smaller_chunks_are_tried_by_halves(num_tasks, wanted, on_device, sizes):
    """Of those that are other programs: what stands for several need not divide what is wanted."""
    tried, chunks = [], different_chunks(num_tasks, wanted, on_device)
    with pytest.raises(DoesNotFit):
        fit_plan(lambda one: tried.append(one) or measured(one), Candidate("unrolled", wanted), budget=0, chunks=chunks)
    assert [one.task_chunk for one in tried] == sizes


def fresh_state(source):
    return init_train_state(jax.random.key(0), learner_of(), OPTIMIZER, source, num_tasks=TASKS)


def test_prediction_is_what_xla_says_and_a_chunk_costs_less(source):
    def program(chunk):
        train_step = make_train_step(learner_of(), OPTIMIZER, task_chunk=chunk)
        state = jax.eval_shape(lambda: fresh_state(source))
        return compile_steps(train_step, state, source, jax.random.key(0), num_tasks=TASKS)

    one, whole = program(1), program(TASKS)
    memory = one.memory_analysis()
    # The state is donated and counts once, beside the pool; what comes back beyond it is a few metrics.
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((fresh_state(source), source.pool)))
    assert program_bytes(one) == pytest.approx(memory.temp_size_in_bytes + held, rel=0.02)
    assert program_bytes(one) < program_bytes(whole)


def test_fit_runs_a_program_that_was_compiled_before(source):
    train_step = make_train_step(learner_of(), OPTIMIZER, task_chunk=2)
    key, options = jax.random.key(3), {"num_tasks": TASKS, "steps_per_call": 4}

    program = compile_steps(train_step, fresh_state(source), source, key, **options)
    lengths = []

    def counted(*args):
        lengths.append(int(args[-1]))
        return program(*args)

    given_one = fit(train_step, fresh_state(source), source, key, num_steps=6, program=counted, **options)
    own = fit(train_step, fresh_state(source), source, key, num_steps=6, **options)
    assert lengths == [4, 2]
    for one, other in zip(jax.tree.leaves(given_one), jax.tree.leaves(own), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("search", [False, True])
def test_steps_of_one_s_own_are_planned(source, search, monkeypatch):
    """The first that fits, or the fastest: trained by its program, it is what was wanted but for rounding."""
    key = jax.random.key(0)

    def make_step(way):
        learner = learner_of(metagrad=METAGRADS[way.metagrad]())
        return make_train_step(learner, OPTIMIZER, task_chunk=way.task_chunk)

    def planned(**options):
        options |= {"num_tasks": TASKS, "metagrads": ["unrolled", "remat"], "task_chunk": TASKS}
        return plan_steps(make_step, fresh_state(source), source, key, **options)

    whole = planned()
    assert whole.plan.chosen == Candidate("unrolled", TASKS) and len(whole.plan.tried) == 1
    needed = whole.plan.tried[0].num_bytes
    assert needed == program_bytes(whole.program)
    if search:
        plan = planned(search=True).plan
        assert len(plan.tried) > 2 and all(one.step_seconds > 0 for one in plan.tried)
        return
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((fresh_state(source), source.pool)))
    monkeypatch.setattr("jaxmeta.budget.memory_at_hand", lambda: needed - held - 1)
    smaller = planned()
    assert smaller.plan.chosen.task_chunk < TASKS and program_bytes(smaller.program) < needed
    rows = []
    for step, program, _ in (whole, smaller):
        keep = lambda state, metrics: rows.append([metrics["loss"], metrics["grad_norm"]])  # noqa: E731
        fit(step, fresh_state(source), source, key, num_tasks=TASKS, num_steps=1, program=program, callback=keep)
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-5)
    monkeypatch.setattr("jaxmeta.budget.memory_at_hand", lambda: 0)
    with pytest.raises(ValueError, match="A step needs .* MiB may be used"):
        planned()
    assert planned(memory_mib=1000).plan.chosen.task_chunk == TASKS
    # A strategy that cannot serve is passed over; shapes will do.
    shapes = jax.eval_shape(lambda: fresh_state(source))
    options = {"num_tasks": TASKS, "metagrads": ["unrolled", "remat"], "memory_mib": 1000}
    way = plan_steps(lambda way: make_step(way) if way.metagrad == "remat" else None, shapes, source, key, **options)
    assert way.plan.chosen == Candidate("remat", TASKS)
    with pytest.raises(ValueError, match="'remat' cannot serve, and there is no other"):
        plan_steps(lambda way: None, shapes, source, key, **options)


def test_memory_at_hand_is_a_share_of_the_machine():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory_at_hand() * len(jax.local_devices()) < total


def test_what_is_there_already_is_not_asked_for_again(monkeypatch):
    """The data and the state are in the program's bytes, and no longer in the memory at hand."""
    monkeypatch.setattr("jaxmeta.budget.memory_at_hand", lambda: 10**8)
    workspace = open_workspace(replace(PRESETS["sinusoid-maml"], tasks=2, log_every=1))
    pool = jnp.zeros(1000)
    sources = workspace.sources | {"train": workspace.sources["train"]._replace(pool=pool)}
    begin = partial(make_state, workspace, jax.random.key(0))
    planned = plan_run(workspace._replace(sources=sources), begin, jax.random.key(0))
    assert planned.plan.budget == 10**8 + pool.nbytes + sum(leaf.nbytes for leaf in jax.tree.leaves(begin()))
    # What is on the host is not there yet.
    assert budget_bytes(None, (np.zeros(1000), pool, 1.0), shared=False) == 10**8 + pool.nbytes


def test_a_learner_without_a_strategy_is_said_to_have_none():
    """Prototypical networks differentiate no loop: nothing is called unrolled, and no strategy is tried."""
    workspace = open_workspace(Config(algorithm="protonet", model="mlp", tasks=2, task_chunk=1, log_every=1))
    begin, said = partial(make_state, workspace, jax.random.key(0)), []
    planned = plan_run(workspace, begin, jax.random.key(0), search=True, say=said.append)
    assert [line.split(":")[0] for line in said] == ["1 task at once", "2 tasks at once"]
    assert planned.plan.chosen.metagrad is None and planned.workspace.config.metagrad == Config.metagrad
    assert [line.split(" | ")[0] for line in plan_table(planned.plan).splitlines()[2:4]] == ["| -", "| -"]
    large = Measured(planned.plan.chosen, 3 * 2**20, 0.0, None)
    with pytest.raises(DoesNotFit, match=r"--task-chunk \d, and 1 MiB may be used"):
        fit_plan(lambda candidate: large, planned.plan.chosen, budget=2**20)


def stored(out):
    return json.loads((out / "config.json").read_text())


@pytest.mark.slow
def test_a_run_with_less_memory_takes_smaller_chunks(tmp_path, capsys):
    roomy, tight = tmp_path / "roomy", tmp_path / "tight"
    assert main(["train", *LARGE, "--task-chunk", "8", "--out", str(roomy)]) == 0
    said = capsys.readouterr()
    needed = int(said.err.split(" MiB a device")[0].split()[-1])
    assert stored(roomy)["task_chunk"] == 8 and not (roomy / "plan.md").exists()
    budget = str(needed // 2 + 1)
    assert main(["train", *LARGE, "--task-chunk", "8", "--memory-mib", budget, "--out", str(tight)]) == 0
    assert stored(tight)["task_chunk"] < 8 and "does not fit" in (tight / "plan.md").read_text()
    one, other = (json.loads((out / "result.json").read_text())["mse"] for out in (roomy, tight))
    assert one == pytest.approx(other, rel=1e-4)


def test_a_run_takes_a_precision_where_nothing_else_fits(tmp_path, monkeypatch):
    """The memory of the programs is made up: a CPU computes bfloat16 in float32, and saves none."""
    sizes = iter([3 * 2**20, 2**20])
    monkeypatch.setattr("jaxmeta.planning.program_bytes", lambda program: next(sizes))
    out, wanted = tmp_path / "run", ["--task-chunk", "1", "--metagrad", "first_order", "--memory-mib", "2"]
    precisions = ["--precisions", "float32", "bfloat16"]
    assert main(["train", *LARGE, *wanted, *precisions, "--out", str(out)]) == 0
    assert stored(out)["precision"] == "bfloat16" and next(sizes, None) is None
    table = (out / "plan.md").read_text()
    assert "| first_order | 1 | float32 | 3 |" in table and "| first_order | 1 | bfloat16 | 1 |" in table
    # A run that goes on stays as it is, whatever is allowed.
    sizes = iter([3 * 2**20, 2**20])
    again = ["--precisions", "float32", "--memory-mib", "2", "--steps", "6"]
    assert main(["train", "--resume", "--out", str(out), *again]) == 2
    assert stored(out)["precision"] == "bfloat16"


def test_plan_shows_the_precisions_that_it_may_take(monkeypatch, capsys):
    """TF32 is float32 on a CPU, and no way of its own."""
    sizes = iter([3 * 2**20, 2**20])
    monkeypatch.setattr("jaxmeta.planning.program_bytes", lambda program: next(sizes))
    arguments = [*LARGE, "--plan", "quick", "--task-chunk", "1", "--metagrad", "first_order", "--memory-mib", "2"]
    assert main(["plan", *arguments, "--precisions", "tf32", "bfloat16"]) == 0
    table = capsys.readouterr().out
    assert "| bfloat16 | 1 |" in table and "tf32" not in table


def test_a_budget_that_cannot_be_met_leaves_nothing(tmp_path, capsys):
    out = tmp_path / "none"
    assert (
        main(["train", *LARGE, "--queries", "100000", "--task-chunk", "1", "--memory-mib", "1", "--out", str(out)]) == 2
    )
    message = capsys.readouterr().err
    assert "and 1 MiB may be used" in message and "too much. Use fewer queries" in message
    assert not out.exists()


@pytest.mark.slow
def test_a_plan_that_is_searched_for_is_kept_and_resumed(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *LARGE, "--plan", "auto", "--out", str(out)]) == 0
    table = (out / "plan.md").read_text()
    metagrad, chunk = next(line for line in table.splitlines() if "chosen" in line).split("|")[1:3]
    assert (stored(out)["metagrad"], stored(out)["task_chunk"]) == (metagrad.strip(), int(chunk))
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(out), "--steps", "6", "--plan", "auto"]) == 0
    assert capsys.readouterr().err.count(" at once: compiled") == 1
    assert stored(out)["task_chunk"] == int(chunk)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "atuo"], "Unknown plan 'atuo'. Did you mean 'auto'?"),
        (["--memory-mib", "0"], "--memory-mib must be at least 1"),
        (["--precisions", "bfloat61"], "Unknown precision 'bfloat61'. Did you mean 'bfloat16'?"),
        (["--precisions", "bfloat16", "--seeds", "2"], "--precisions are for a single run"),
        (["--plan", "auto", "--seeds", "2"], "are for a single run"),
    ],
)
def test_bad_requests(tmp_path, capsys, arguments, message):
    assert main(["train", *LARGE, *arguments, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_plan_shows_what_was_tried_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *LARGE]) == 0
    table = capsys.readouterr().out
    assert table.count("chosen") == 1 and "no faster" in table and "five percent faster" in table
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_plan_renews_the_table_of_lowerings(tmp_path, monkeypatch, capsys):
    path = tmp_path / "lowerings.json"
    monkeypatch.setattr("jaxmeta.planning.lowerings_file", lambda kind: path)
    small = (
        "--dataset glyphs --filters 2 --tasks 2 --ways 2 --log-every 1 --plan quick --lowerings --inner-steps 0".split()
    )
    assert main(["plan", *small]) == 0
    said = capsys.readouterr().out
    assert f"Written: {path}" in said and "kernel of" in said
    rows = json.loads(path.read_text())["rows"]
    assert {row["platform"] for row in rows} == {"cpu"} and {row["case"]["missing"] for row in rows} > {"output"}


SPLIT = """
import jax
from jaxmeta.machine import Machine, open_mesh
mesh = open_mesh(Machine(devices={devices}), 4, divide_cpu={divide})
print(1 if mesh is None else mesh.size, len(jax.devices()))
"""


@pytest.mark.parametrize(("devices", "divide", "most"), [(None, True, 4), (None, False, 1), (1, True, 1)])
def test_cores_are_devices_where_that_pays(devices, divide, most):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    code = SPLIT.format(devices=devices, divide=divide)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    size = min(most, len(os.sched_getaffinity(0)))
    assert run.stdout.split() == [str(size), str(size)]


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux keeps what is freed")
def test_what_compiling_has_freed_goes_back_to_the_system():
    """A hundred MiB of small pieces, freed but for the last, above which alone the library gives back by itself."""
    # What the first program of a process makes stays.
    compile_lean(jax.jit(lambda x: x + 2).lower(1.0))
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    pieces = [ctypes.c_void_p(library.malloc(1000)) for _ in range(100_000)]
    for piece in pieces:
        ctypes.memset(piece, 1, 1000)
    for piece in pieces[:-1]:
        library.free(piece)
    before = resident_bytes("VmRSS")
    assert compile_lean(jax.jit(lambda x: x + 1).lower(1.0))(2.0) == 3.0
    assert before - resident_bytes("VmRSS") > 70e6
    library.free(pieces[-1])
