"""A population: each member is what it would be alone, and none spoils another."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxmeta as jm
from jaxmeta import population_evaluator
from jaxmeta.cli import main
from jaxmeta.judgement import examine
from jaxmeta.presets import PRESETS
from jaxmeta.sweep_plan import list_runs, plan_runs
from jaxmeta.workspace import one_task, open_workspace

SOURCE = jm.task_source(jm.load_sinusoid(), "train", jm.EpisodeSpec(1, 5, 5))
CRITERION = jm.CRITERIA["regression"]
OPTIMIZER = optax.adam(1e-2)
OPTIONS = {"num_tasks": 4, "num_steps": 6, "steps_per_call": 4}


def make_learner(hyper, metagrad=None):
    optimizer = jm.inner_sgd(hyper["inner_lr"])
    return jm.maml(jm.mlp(1, hidden=(8,)), inner_optimizer=optimizer, criterion=CRITERION, metagrad=metagrad)


def alone(seed, rate, **options):
    """The run of one member by itself, as the command line makes it."""
    key_init, key_train = jax.random.split(jax.random.key(seed))
    learner = make_learner({"inner_lr": rate}, **options)
    state = jm.init_train_state(key_init, learner, OPTIMIZER, SOURCE, num_tasks=4)
    return learner, jm.fit(jm.make_train_step(learner, OPTIMIZER), state, SOURCE, key_train, **OPTIONS)


def assert_close(given, expected):
    for one, other in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def member(tree, place):
    return jax.tree.map(lambda leaf: leaf[place], tree)


@pytest.fixture(scope="module")
def population():
    """Two seeds, and three rates of which the last diverges at its first step."""
    everyone = jm.members([0, 7], inner_lr=[0.01, 0.1, 1e30])
    states = jm.init_population(everyone, make_learner, OPTIMIZER, SOURCE, num_tasks=4)
    traces = []

    def counted(hyper):
        traces.append(1)
        return make_learner(hyper)

    seen = []
    states = jm.fit_population(
        everyone,
        states,
        counted,
        OPTIMIZER,
        SOURCE,
        **OPTIONS,
        callback=lambda states, metrics: seen.append(jax.device_get(metrics["nonfinite"])),
    )
    return everyone, states, len(traces), np.concatenate(seen, axis=1)


def test_a_member_is_its_run_alone(population):
    everyone, states, traces, _ = population
    # One program, whatever the number of members, and of steps in a call.
    assert traces == 1
    for place in (1, 2):
        seed, rate = int(everyone.seeds[place]), float(everyone.hyper["inner_lr"][place])
        assert_close(member(states, place), alone(seed, rate)[1])


def test_a_member_that_diverges_is_told_and_spoils_no_other(population):
    _, states, _, nonfinite = population
    assert states.step.tolist() == [6, 6, 6, 6, 0, 0]
    np.testing.assert_array_equal(nonfinite, [[0] * 6] * 4 + [[1] * 6] * 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(states)))


def test_every_member_is_judged_as_alone(population):
    everyone, states, _, _ = population
    evaluator = jm.make_population_evaluator(make_learner, CRITERION, num_steps=2, task_chunk=4)
    evaluations = evaluator(everyone, states, SOURCE, jax.random.key(1), 10)
    assert len(evaluations) == 6
    learner = make_learner({"inner_lr": 0.1})
    expected = jm.make_evaluator(learner, CRITERION, num_steps=2, task_chunk=4)(
        *member(states, 3)[1:3], SOURCE, jax.random.key(1), 10
    )
    np.testing.assert_allclose(evaluations[3].metrics["mse"].per_task, expected.metrics["mse"].per_task, rtol=1e-4)
    assert evaluations[3].metrics["mse"].per_task.shape == (10,)


def test_members_computed_in_turn_are_those_computed_at_once(population):
    everyone, together, *_ = population
    options, needed, begun = {"num_tasks": 4, "steps_per_call": 4}, {}, []
    for at_once in (6, 2, 1):
        states = jm.init_population(everyone, make_learner, OPTIMIZER, SOURCE, num_tasks=4)
        arguments = everyone, states, make_learner, OPTIMIZER, SOURCE
        program = jm.compile_population(*arguments, **options, member_chunk=at_once)
        needed[at_once] = program.memory_analysis().temp_size_in_bytes

        def counted(*given, program=program):
            begun.append(at_once)  # noqa: B023
            return program(*given)

        assert_close(jm.fit_population(*arguments, **OPTIONS, program=counted), together)
    # Two calls of up to four steps each, by the program that was given.
    assert begun == [6, 6, 2, 2, 1, 1] and needed[1] < needed[6]


def test_members_judged_in_turn_are_those_judged_at_once(population, monkeypatch):
    everyone, states, *_ = population
    taken, plain = [], population_evaluator.in_turn
    monkeypatch.setattr(population_evaluator, "in_turn", lambda *args: taken.append(args[-1]) or plain(*args))
    key, values = jax.random.key(1), []
    for size in (None, 3, 1):
        options = {"num_steps": 2, "task_chunk": 5, "member_chunk": size}
        judged = jm.make_population_evaluator(make_learner, CRITERION, **options)(everyone, states, SOURCE, key, 10)
        values.append([evaluation.metrics["mse"].per_task for evaluation in judged])
    assert taken == [6, 3, 1]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-4)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-4)
    # Nothing fits: fewer members at once, then fewer tasks.
    taken.clear()
    monkeypatch.setattr("jaxmeta.budget.memory_at_hand", lambda: 0)
    evaluator = jm.make_population_evaluator(make_learner, CRITERION, num_steps=2, task_chunk=5)
    with pytest.warns(UserWarning, match="Judging needs"):
        judged = evaluator(everyone, states, SOURCE, key, 10)
    assert taken == [6, 3, 1, 1]
    np.testing.assert_allclose([one.metrics["mse"].per_task for one in judged], values[0], rtol=1e-4)
    # What was allowed comes before what is at hand.
    taken.clear()
    options = {"num_steps": 2, "task_chunk": 5, "memory_mib": 100}
    jm.make_population_evaluator(make_learner, CRITERION, **options)(everyone, states, SOURCE, key, 10)
    assert taken == [6]
    evaluator = jm.make_population_evaluator(make_learner, CRITERION, member_chunk=4)
    with pytest.raises(ValueError, match=r"must divide the 6 members; given 4. Use one of \[1, 2, 3, 6\]"):
        evaluator(everyone, states, SOURCE, key, 10)


def test_one_member_and_a_learner_without_inner_loop():
    """Of an estimator that keeps something of each task, too."""

    def learner_of(hyper):
        return jm.reptile(jm.mlp(1, hidden=(8,)), inner_optimizer=jm.inner_sgd(0.02), criterion=CRITERION)

    for learner, estimator in ((make_learner, jm.pes(num_pairs=1)), (learner_of, None)):
        everyone = jm.members([3], inner_lr=[0.02])
        options = {"num_tasks": 4, "estimator": estimator}
        states = jm.init_population(everyone, learner, OPTIMIZER, SOURCE, **options)
        states = jm.fit_population(everyone, states, learner, OPTIMIZER, SOURCE, **{**OPTIONS, **options})
        key_init, key_train = jax.random.split(jax.random.key(3))
        of_one = learner({"inner_lr": 0.02})
        state = jm.init_train_state(key_init, of_one, OPTIMIZER, SOURCE, **options)
        step = jm.make_train_step(of_one, OPTIMIZER, estimator=estimator)
        assert_close(member(states, 0), jm.fit(step, state, SOURCE, key_train, **OPTIONS))


def test_a_chunk_that_does_not_divide_the_members_is_refused():
    everyone = jm.members([0, 1, 2, 3])
    states = jm.init_population(everyone, lambda hyper: make_learner({"inner_lr": 0.1}), OPTIMIZER, SOURCE, num_tasks=4)
    for chunk in (0, 3):
        with pytest.raises(ValueError, match=rf"must divide the 4 members .* given {chunk}. Use one of \[1, 2, 4\]"):
            jm.fit_population(everyone, states, make_learner, OPTIMIZER, SOURCE, **OPTIONS, member_chunk=chunk)


SWEEP = "--dataset sinusoid --tasks 4 --steps 4 --log-every 2 --checkpoint-every 4 --devices 1".split()
SWEEP += "--outer-schedule constant --task-chunk 4 --eval-episodes 8 --validation-episodes 4 --seeds 4".split()


def test_runs_that_do_not_fit_at_once_are_trained_in_turn(tmp_path, monkeypatch, capsys):
    """Made-up sizes of programs: first fewer runs at once, then fewer tasks, then less of a loop is kept."""
    sizes, compiled, used = iter([9, 5, 4, 3, 3, 2]), [], []

    def compile_population(*args, **options):
        compiled.append((options["member_chunk"], options["task_chunk"], jm.compile_population(*args, **options)))
        return compiled[-1][-1]

    def fit_population(*args, program, **options):
        used.append(program)
        return jm.fit_population(*args, program=program, **options)

    def evaluator(*args, **options):
        used.append(options["member_chunk"])
        return jm.make_population_evaluator(*args, **options)

    monkeypatch.setattr("jaxmeta.planning.program_bytes", lambda program: next(sizes) * 2**20)
    monkeypatch.setattr("jaxmeta.sweep_plan.compile_population", compile_population)
    monkeypatch.setattr("jaxmeta.sweep.fit_population", fit_population)
    monkeypatch.setattr("jaxmeta.sweep.make_population_evaluator", evaluator)
    out = tmp_path / "tight"
    assert main(["train", *SWEEP, "--memory-mib", "2", "--out", str(out)]) == 0
    table = [[cell.strip() for cell in line.split("|")[1:]] for line in (out / "plan.md").read_text().splitlines()[:8]]
    assert table[0][3] == "runs at once" and next(sizes, None) is None
    assert [row[:2] + row[3:5] for row in table[2:]] == [
        ["unrolled", "4", "4", "9"],
        ["unrolled", "4", "2", "5"],
        ["unrolled", "4", "1", "4"],
        ["unrolled", "2", "1", "3"],
        ["unrolled", "1", "1", "3"],
        ["mixed_mode", "1", "1", "2"],
    ]
    assert [one[:2] for one in compiled] == [(4, 4), (2, 4), (1, 4), (1, 2), (1, 1), (1, 1)]
    # The last of them is what trains, and no more are judged at once than are trained.
    assert used[0] == 1 and used[1] is compiled[-1][-1]
    # As planned: a run that goes on by itself is computed as here.
    config = json.loads((out / "seed3" / "config.json").read_text())
    assert (config["task_chunk"], config["metagrad"]) == (1, "mixed_mode")
    values = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]["values"]
    monkeypatch.undo()
    monkeypatch.setattr("jaxmeta.sweep.make_population_evaluator", evaluator)
    assert main(["train", *SWEEP, "--out", str(tmp_path / "roomy")]) == 0
    assert not (tmp_path / "roomy" / "plan.md").exists() and used[-1] == 4
    roomy = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]["values"]
    np.testing.assert_allclose(values, roomy, rtol=1e-4)
    assert main(["train", "--resume", "--out", str(out / "seed3"), "--steps", "6"]) == 0


def test_a_budget_that_no_run_meets_leaves_nothing(tmp_path, capsys):
    out = tmp_path / "none"
    options = "--dataset sinusoid --tasks 2 --queries 100000 --log-every 1 --devices 1 --metagrad first_order".split()
    assert main(["train", *options, "--seeds", "2", "--memory-mib", "1", "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert "run by run, and 1 MiB may be used" in message and "Use fewer --seeds, queries" in message
    assert not out.exists()


def test_an_interruption_while_planning_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(program):
        os.kill(os.getpid(), signal.SIGINT)
        return 2**30

    monkeypatch.setattr("jaxmeta.planning.program_bytes", interrupted)
    out = tmp_path / "stopped"
    assert main(["train", *SWEEP, "--memory-mib", "1", "--out", str(out)]) == 130
    assert not out.exists()


def test_the_images_are_there_already_and_the_runs_are_not(monkeypatch):
    """What a population may use: what is at hand, and what of the program's data is there."""
    monkeypatch.setattr("jaxmeta.budget.memory_at_hand", lambda: 10**9)
    workspace = open_workspace(replace(PRESETS["sinusoid-maml"], tasks=2, log_every=1), pool="device")
    pool = jax.numpy.zeros(1000)
    sources = workspace.sources | {"train": workspace.sources["train"]._replace(pool=pool)}
    runs = list_runs(workspace.config, Path("nowhere"), 3, ())
    planned, states = plan_runs(workspace._replace(sources=sources), runs, None, None, lambda text: None)
    assert planned.plan.budget == 10**9 + pool.nbytes and planned.plan.chosen.members == 3
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(states))


@pytest.mark.slow
def test_a_strategy_with_a_rule_of_its_own_takes_traced_rates():
    everyone = jm.members([3], inner_lr=[0.05, 0.1])

    def learner_of(hyper):
        return make_learner(hyper, metagrad=jm.mixed_mode())

    states = jm.init_population(everyone, learner_of, OPTIMIZER, SOURCE, num_tasks=4)
    states = jm.fit_population(everyone, states, learner_of, OPTIMIZER, SOURCE, **OPTIONS)
    assert_close(member(states, 1), alone(3, 0.1, metagrad=jm.mixed_mode())[1])


def test_an_empty_axis_is_refused():
    with pytest.raises(ValueError, match="needs at least one value of each; given none of inner_lr"):
        jm.members([0, 1], inner_lr=[])


@pytest.mark.slow
def test_a_sweep_on_the_command_line_is_its_runs_alone(tmp_path, capsys):
    """Two seeds and two rates as one program; one rate diverges, which is told and counted."""
    small = ["train", "--dataset", "sinusoid", "--tasks", "4", "--steps", "10", "--log-every", "5"]
    small += ["--checkpoint-every", "5", "--eval-episodes", "12", "--validation-episodes", "5"]
    sweep, alone = tmp_path / "sweep", tmp_path / "alone"
    assert main([*small, "--seed", "3", "--seeds", "2", "--inner-lrs", "0.02", "1e30", "--out", str(sweep)]) == 0
    out, err = capsys.readouterr()
    table = json.loads(out.splitlines()[-1])
    assert json.loads((sweep / "summary.json").read_text()) == table
    fine, diverged = table["rows"]
    assert (fine["inner_lr"], fine["seeds"], fine["judged"], diverged["judged"]) == (0.02, 2, 2, 0)
    assert diverged["mse"] is None and len(table["diverged"]) == 2 and "was not finite" in err
    # The interval over two seeds, by Student's t with one degree of freedom.
    assert fine["mse"] == pytest.approx(np.mean(fine["values"]))
    assert fine["ci95"] == pytest.approx(12.7062 * abs(np.subtract(*fine["values"])) / 2, rel=1e-4)
    assert main([*small, "--seed", "4", "--inner-lr", "0.02", "--out", str(alone)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["mse"] == pytest.approx(fine["values"][1], rel=1e-4)
    run = sweep / "seed4-inner-lr0.02"
    judged = json.loads((run / "result.json").read_text())
    assert all(table[name] == judged[name] for name in ("setting", "protocol", "fingerprint", "episodes_hash"))
    assert table["setting"] == "inductive" and len(table["protocol"]) == len(table["episodes_hash"]) == 12
    assert_close(*(checkpoint_of(folder) for folder in (run, alone)))
    assert main(["evaluate", str(run)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["mse"] == pytest.approx(fine["values"][1], rel=1e-4)
    assert main([*small, "--seeds", "2", "--out", str(sweep)]) == 2


@pytest.mark.slow
def test_each_run_of_a_sweep_is_examined_by_its_own_rate(tmp_path, monkeypatch, capsys):
    moved = {}

    def recording(workspace, state, protocol):
        """Adapt by the learner that the leak test is of: a step is as long as its rate."""
        task, key = one_task(workspace.sources["test"]), jax.random.key(0)
        adapted = workspace.parts.learner.adapt(state.meta_params, state.state, task.support, key, num_steps=1)
        start = workspace.parts.learner.adapt(state.meta_params, state.state, task.support, key, num_steps=0)
        moved[workspace.config.inner_lr] = optax.tree.norm(optax.tree.sub(adapted.params, start.params))
        return examine(workspace, state, protocol)

    monkeypatch.setattr("jaxmeta.sweep.examine", recording)
    small = ["train", "--dataset", "sinusoid", "--tasks", "2", "--steps", "1", "--log-every", "1", "--outer-lr", "1e-9"]
    small += ["--checkpoint-every", "1", "--eval-episodes", "4", "--validation-episodes", "2"]
    assert main([*small, "--inner-lrs", "0.01", "0.04", "--out", str(tmp_path / "sweep")]) == 0
    np.testing.assert_allclose(moved[0.04], 4 * moved[0.01], rtol=1e-4)


def checkpoint_of(run):
    return ocp.StandardCheckpointer().restore((run / "checkpoints" / "10" / "state").absolute())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1; given 0"),
        (["--inner-lrs", "0.1", "-1"], "--inner-lrs must be positive numbers; given -1"),
        (["--inner-lrs", "0.1", "0.1"], "must differ"),
        (["--seeds", "2", "--resume", "--out", "nowhere"], "There is no run in nowhere"),
        (["--seeds", "2", "--metagrad", "implicit"], "without a proximal term"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *([] if "--resume" in options else ["--dataset", "sinusoid"]), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
