"""A population: each member is what it would be alone, and none spoils another."""

import json

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxmeta as jm
from jaxmeta.cli import main

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
    # One program for each length of a call, whatever the number of members.
    assert traces == 2
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
