"""The experiments on tasks of images: what each asks for can be trained, and every algorithm has one."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from conftest import load_experiment
from jaxmeta import ALGORITHMS, PROTOCOLS, run
from jaxmeta.config import check_config
from jaxmeta.presets import PRESETS

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
BY_SETTINGS = sorted(path for path in EXPERIMENTS.glob("*.py") if "    run_settings(" in path.read_text())
# They have no header: they serve the experiments.
SERVE = {"comparisons", "make_tables", "planes", "seeds", "settings"}
# They learn nothing before they see a task: they are in the table of all.
IN_THE_TABLE_OF_ALL = {"nearest", "scratch"}


def asked_of(path, monkeypatch, tmp_path):
    """Run an experiment with nothing trained, and give the configurations and protocols that it asks for."""
    settings, configs, protocols = load_experiment("settings"), [], []

    def train_run(config, out, *, resume):
        configs.append(config)
        return {"run": str(out)}

    def evaluate_run(out, *, protocol):
        protocols.append(protocol)
        return {}

    monkeypatch.setitem(sys.modules, "settings", settings)
    monkeypatch.setattr(settings, "train_run", train_run)
    monkeypatch.setattr(settings, "evaluate_run", evaluate_run)
    monkeypatch.setattr(settings, "write_atomically", lambda path, text: json.loads(text))
    monkeypatch.setattr(sys, "argv", [path.name, "all", "--out", str(tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    return configs, protocols


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem)
def test_a_header_says_what_a_reader_needs(path):
    header = path.read_text().split('"""')[1]
    words = re.findall(r"\n([A-Z][a-z]+) {2,}", header)
    if path.stem in SERVE:
        assert not words
        return
    assert {"Paper", "Command", "Setting", "Budget", "Hardware"} <= set(words)
    # What a paper reached, or where it has no number, what was asked for.
    assert {"Expected", "Asked"} & set(words)


@pytest.mark.parametrize("path", BY_SETTINGS, ids=lambda path: path.stem)
def test_an_experiment_asks_for_what_can_be_trained_and_judged(path, monkeypatch, tmp_path, capsys):
    configs, protocols = asked_of(path, monkeypatch, tmp_path)
    header = path.read_text().split('"""')[1]
    assert f"python experiments/{path.name} " in header and ("arXiv" in header or "Workshop" in header)
    assert len(configs) >= 2 and protocols and set(protocols) <= set(PROTOCOLS)
    for config in configs:
        check_config(config)
        assert re.search(rf"\nBudget .*\b{config.steps:,} ", header)
    # Each setting is a run of its own, and one says what its paper reached.
    runs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    papers = [run for run in runs if "paper" in run]
    assert len({run["run"] for run in papers}) == len(configs) and all(
        run["paper"] is None or 0 < run["paper"] < 1 for run in papers
    )


def test_every_algorithm_has_an_experiment(monkeypatch, tmp_path, capsys):
    found = set()
    for path in BY_SETTINGS:
        found |= {config.algorithm for config in asked_of(path, monkeypatch, tmp_path)[0]}
    monkeypatch.setattr(run, "train_run", lambda config, out: found.add(config.algorithm))
    monkeypatch.setattr(run, "evaluate_run", lambda out, shots: {})
    monkeypatch.setattr(sys, "argv", ["sinusoid_cnp.py", "--out", str(tmp_path)])
    runpy.run_path(str(EXPERIMENTS / "sinusoid_cnp.py"), run_name="__main__")
    assert found | IN_THE_TABLE_OF_ALL == set(ALGORITHMS) and not found & IN_THE_TABLE_OF_ALL


def test_the_table_of_all_is_of_all(monkeypatch, tmp_path, capsys):
    experiment, trained = load_experiment("omniglot_two_cores"), []

    def train_run(config, out, mesh):
        trained.append((config.algorithm, config.norm))
        out.mkdir()
        return {"seconds": 901.0 if config.algorithm == "maml" else 899.0}

    monkeypatch.setattr(experiment, "train_run", train_run)
    monkeypatch.setattr(experiment, "steps_in", lambda config, seconds: 300)
    monkeypatch.setattr(sys, "argv", ["omniglot_two_cores.py", "--out", str(tmp_path)])
    experiment.main()
    within = [json.loads(line)["within_budget"] for line in capsys.readouterr().out.splitlines()]
    # The default table: statistics of the support set for all that are trained by tasks.
    of_training = ("baseline", "baseline++")
    assert trained == [(name, "running" if name in of_training else "inductive") for name in ALGORITHMS]
    assert within == [name != "maml" for name in ALGORITHMS]
    kept = json.loads((tmp_path / "omniglot_two_cores_maml_seed0" / "result.json").read_text())
    assert (kept["budget_minutes"], kept["within_budget"]) == (15.0, False)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "protonet", "--norm", "running"])
    experiment.main()
    assert trained[-1] == ("protonet", "running")
    assert (tmp_path / "omniglot_two_cores_protonet_running_seed0" / "result.json").exists()


def test_all_run_under_one_budget_in_settings_that_can_be_trained():
    experiment = load_experiment("omniglot_two_cores")
    for algorithm in ALGORITHMS:
        config = experiment.config_of(algorithm, None, 0)
        check_config(config)
        same = ("dataset", "split", "ways", "shots", "eval_queries", "model", "filters", "eval_episodes", "seed")
        reference = experiment.config_of("maml", None, 0)
        differing = {name for name in same if getattr(config, name) != getattr(reference, name)}
        # The relation network compares maps.
        assert differing <= ({"model"} if algorithm == "relation" else set()), algorithm
    assert PRESETS["omniglot-maml-5w1s"].norm == "transductive"
