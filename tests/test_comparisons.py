"""The tables of what the experiments have shown."""

import json
import sys

import numpy as np
import pytest

from conftest import load_experiment


def test_rows_are_read_from_result_files(tmp_path, monkeypatch):
    seeds = [
        {
            "judged": {
                f"{start}: {way}": {"accuracy": [value + seed / 100, value]}
                for start, value in (("default", 0.4), ("anywhere", 0.3))
                for way in (
                    "learned controller",
                    "random actions",
                    "left as it begins",
                    "hypergradient",
                    "random search, 10 trainings",
                )
            },
            "curve": {"return": [0.0, 0.1] + [0.2] * 6 + [0.3, 0.5]},
        }
        for seed in range(3)
    ]
    for seed in seeds:
        seed["judged"]["anywhere: random actions"]["accuracy"] = [0.1, 0.2]
    result = {"setting": {"episodes": 10}, "seconds": 120.0, "seeds": seeds}
    (tmp_path / "result.json").write_text(json.dumps(result))
    tables = load_experiment("make_tables")
    monkeypatch.setattr(tables, "COMPARISONS", tmp_path / "comparisons.json")
    tables.compare("cifar10_controller", tmp_path / "result.json", "1 core")
    rows = tables.comparisons_table().splitlines()
    assert len(rows) == 2 + 7
    # 30, 30.5 and 31 against 15: 15.5 in the mean; a standard error of 0.5 / sqrt(3), times 4.30 for three seeds.
    assert "| anywhere: learned controller | random actions | +15.5 +- 1.2 points | 3 | 2, 1 core |" in rows[2]
    assert "| gained in the last fifth of episodes | in the first | +35.0 +- 0.0 points |" in rows[-1]


def test_another_run_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    tables = load_experiment("make_tables")
    monkeypatch.setattr(tables, "COMPARISONS", tmp_path / "comparisons.json")
    for name, scratch in (("mnist_metafeatures", 0.5), ("mnist_metafeatures", 0.7)):
        seeds = [{"meta-model": {"1": 0.8}, "scratch": {"1": scratch}}] * 2
        (tmp_path / "result.json").write_text(json.dumps({"seeds": seeds, "seconds": 60.0}))
        tables.compare(name, tmp_path / "result.json", "1 core")
    (_, _, row) = tables.comparisons_table().splitlines()
    assert "| meta-model, examples a class: 1 | from scratch | +10.0 +- 0.0 points | 2 | 1, 1 core |" in row
    with pytest.raises(KeyError):
        tables.compare("mnist", tmp_path / "result.json", "1 core")


def test_a_result_below_its_paper_is_recorded_with_the_reason_only(tmp_path, monkeypatch, capsys):
    tables = load_experiment("make_tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results.jsonl")
    result = {"accuracy": 0.95, "ci95": 0.01, "dataset": "omniglot", "algorithm": "maml", "metagrad": "unrolled"}
    result |= {
        "ways": 5,
        "shots": 1,
        "queries": 1,
        "inner_steps": 1,
        "eval_inner_steps": 3,
        "steps": 100,
        "turns": "none",
    }
    result |= {"norm": "inductive", "train_norm": "transductive", "setting": "inductive", "seconds": 120.0}
    result |= {"protocol": "ba9876543210", "fingerprint": "0123456789ab", "episodes_hash": "abc"}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.json").write_text(json.dumps({"dataset": "omniglot", "split": "random"}))
    noted = {"hardware": "1 core", "paper_setting": "transductive", "why": None}
    with pytest.raises(SystemExit, match="say by --why"):
        tables.add(tmp_path, "result.json", **noted, paper=0.987)
    assert not (tmp_path / "results.jsonl").exists()
    assert [tables.is_reached({"mse": mse, "ci95": 0.1, "paper": 0.3}) for mse in (0.3, 0.31)] == [True, False]
    # What is below by less than its interval is below: more noise is no merit.
    with pytest.raises(SystemExit, match="say by --why"):
        tables.add(tmp_path, "result.json", **noted, paper=0.9501)
    tables.add(tmp_path, "result.json", **noted, paper=0.95)
    (tmp_path / "result.json").write_text(json.dumps({**result, "eval_inner_steps": 10}))
    for why in ("interrupted", "100 steps of 60,000"):  # The second is of the same run and rules: it stands for both.
        tables.add(tmp_path, "result.json", **{**noted, "why": why}, paper=0.987)
    heads, _, reached, missed = tables.results_table().splitlines()
    assert "| omniglot (random) | 5-way 1-shot, 1 query a class, upright | maml, unrolled |" in reached
    assert (
        "| inductive (trained transductive) | 1 (3) | 100 | 95.0 +- 1.0 % | 95 % (transductive) | - | 2.0 |" in reached
    )
    assert "| 98.7 % (transductive) | 100 steps of 60,000 | 2.0 | 1 core | 0123456789ab |" in missed
    assert heads.count("|") == reached.count("|") == missed.count("|")
    # Nor by hand: a row that says nothing is named, and no page is written.
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps({**row, "why": None}) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["make_tables.py"])
    monkeypatch.setattr(tables, "PAGES", ())
    assert tables.main() == 1
    assert f"2 points below MAML, without a reason: {tmp_path.name}\n" in capsys.readouterr().err
    # Nor one under MAML's budget that is far below it, and has no paper.
    maml = {**rows[0], "budget_minutes": 15.0, "why": "100 steps"}
    for accuracy, code in ((maml["accuracy"] - 0.03, 1), (maml["accuracy"] - 0.01, 0)):
        slow = {**maml, "algorithm": "slow", "run": "slow", "paper": None, "why": None, "accuracy": accuracy}
        (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (maml, slow)))
        assert tables.main() == code
        assert ("reason: slow\n" in capsys.readouterr().err) == bool(code)
    # What has a budget stands in a table of its own, the best first; the tasks are the same, or there is no table.
    fast = {**maml, "algorithm": "fast", "accuracy": maml["accuracy"] + 0.012, "why": None, "paper": None}
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (rows[0], maml, fast)))
    said, _, _, _, first, second = tables.budget_table().splitlines()
    assert said == "omniglot (random), 5-way 1-shot, 1 query a class, upright:"
    assert first.startswith("| fast, unrolled |") and "| 96.2 +- 1.0 % | +1.2 | - | - | 2.0 of 15 |" in first
    assert second.startswith("| maml, unrolled |") and "| 95.0 +- 1.0 % | - | 95 % (transductive) |" in second
    assert len(tables.results_table().splitlines()) == 3
    (tmp_path / "results.jsonl").write_text(json.dumps(maml) + "\n" + json.dumps({**fast, "ways": 20}) + "\n")
    with pytest.raises(SystemExit, match="meet the same tasks; given those of"):
        tables.budget_table()
    # Nor is one that does not say how it was judged.
    (tmp_path / "results.jsonl").write_text(json.dumps({**maml, "fingerprint": None}) + "\n")
    assert tables.main() == 1 and "Without a fingerprint" in capsys.readouterr().err
    (tmp_path / "results.jsonl").write_text(json.dumps(maml) + "\n")
    slow = {**result, "algorithm": "slow", "budget_minutes": 15.0, "accuracy": maml["accuracy"] - 0.03}
    (tmp_path / "result.json").write_text(json.dumps(slow))
    with pytest.raises(SystemExit, match="2 points below MAML's: say by --why"):
        tables.add(tmp_path, "result.json", **noted, paper=None)
    (tmp_path / "roc.json").write_text(json.dumps({"verification_accuracy": 0.9}))
    with pytest.raises(SystemExit, match="it is not for this table"):
        tables.add(tmp_path, "roc.json", **noted, paper=None)


def test_tasks_that_arrive_have_a_table(tmp_path, monkeypatch):
    """From what the experiment writes; between marks that stand next to each other, too."""
    tables, experiment = load_experiment("make_tables"), load_experiment("online_sinusoid")
    monkeypatch.setattr(tables, "ONLINE", tmp_path / "online.json")
    page = "before\n<!-- online -->\n<!-- end online -->\nafter\n"
    assert "Not recorded yet" in tables.filled(page)
    # Five rounds of two sizes: 4, then 2 in the last two, without a spread.
    errors = np.array([[1380.0, 4.0], [1380.0, 4.0], [1380.0, 4.0], [1380.0, 2.0], [1380.0, 2.0]])
    row = {"name": "a way", **experiment.judged(errors, 2), "fingerprint": "0123456789ab"}
    record = {"sizes": [0, 5], "late": 2, "rows": [row]}
    (tmp_path / "online.json").write_text(json.dumps(record))
    page = tables.filled(page)
    assert "| way | regret, 0 points | regret, 5 points | last 2, 0 points | last 2, 5 points | fingerprint |" in page
    # t for four degrees of freedom is 2.776, the deviation sqrt(1.2): 5 * 2.776 * sqrt(1.2 / 5).
    assert "| a way | 6900.0 +- 0.0 | 16.0 +- 6.8 | 1380.000 +- 0.000 | 2.000 +- 0.000 | 0123456789ab |" in page
    assert page.startswith("before\n<!-- online -->\n| way") and page.endswith("<!-- end online -->\nafter\n")
    assert tables.filled(page) == page


def test_learned_optimizers_on_what_they_are_judged_on():
    """Only those that were run, letters no further than 500 steps; a name that has no place is not left out."""
    reader = load_experiment("comparisons").learned_optimizer
    losses = {"Adam": {"100": 0.3, "500": 0.1, "2500": 0.01}, "MLP, NRES": {"100": 0.2, "500": 0.05, "2500": 0.02}}
    losses["MLP, truncated"] = losses["MLP, NRES"]
    losses["Adam, falling"] = {"100": 0.4, "500": 0.06, "2500": 0.06}
    rows = list(reader({"runs": [{"loss": {"digits": losses, "letters": losses}}] * 2}))
    assert [row.what for row in rows] == [
        *(f"digits, MLP, NRES: loss after {steps} steps" for steps in (100, 500, 500, 2500)),
        "digits, MLP, truncated: loss after 100 steps",
        *(f"letters, MLP, NRES: loss after {steps} steps" for steps in (100, 500, 500)),
        "letters, MLP, truncated: loss after 100 steps",
    ]
    assert rows[1].figures == rows[2].figures == [0.05, 0.05]
    assert rows[1].others == [0.1, 0.1] and rows[2].others == [0.06, 0.06]
    assert [row.against for row in rows[:3]] == ["tuned Adam", "tuned Adam", "tuned Adam, falling rate"]
    with pytest.raises(ValueError, match="No row is made of LSTM, PES"):
        list(reader({"runs": [{"loss": {"digits": losses | {"LSTM, PES": {}}}}]}))


def test_the_switch_against_every_single_extractor():
    reader = load_experiment("comparisons").extractor_switch
    mean = {"components": 60.0, "best single one": 64.0, "switch": 65.0, "best on each task": 80.0}
    rows = list(reader({"runs": [{"mean": mean}, {"mean": mean | {"switch": 63.0}}]}))
    assert [row.against for row in rows] == ["components", "best single one"]
    assert all(row.what == "switch" and row.figures == [65.0, 63.0] for row in rows) and rows[1].others == [64.0, 64.0]


def test_parts_of_more_seeds_are_compared_on_those_that_both_have():
    reader = load_experiment("comparisons").metanet
    results = {"default": [1.0, 2.0, 3.0], "meta-network": [2.0, 4.0, 6.0], "random search, falling rates": [5.0]}
    rows = list(reader({"results": {name: [{"test": value} for value in found] for name, found in results.items()}}))
    assert [(row.figures, row.others) for row in rows] == [([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]), ([2.0], [5.0])]
