"""Make the tables of README.md and experiments/README.md from recorded results.

    python experiments/make_tables.py --add RUN --hardware "2 CPU cores" [--paper 0.987] [--file result.json]
    python experiments/make_tables.py --compare NAME FILE --hardware "2 CPU cores"    # an experiment of tuning
    python experiments/make_tables.py            # write the tables again
    python experiments/make_tables.py --check    # fail if they are not what the records say

Results are kept in experiments/results.jsonl (one for each reached number), those of the experiments of tuning in
experiments/comparisons.json, those of tasks that arrive in experiments/online_sinusoid.json (which online_sinusoid.py
writes by --json), those of the benchmarks in JSON files beside them. Tables stand between `<!-- NAME -->`
and `<!-- end NAME -->`.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

import comparisons

from jaxmeta.folder import write_atomically

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "experiments" / "results.jsonl"
COMPARISONS = REPO / "experiments" / "comparisons.json"
ONLINE = REPO / "experiments" / "online_sinusoid.json"
BENCHMARK = REPO / "benchmarks" / "meta_step.json"
# Of the strategies in memory.json: the rest is for who runs the benchmark.
IN_README = r"(unrolled\((remat=.step.)?\)|mixed_mode\(\))(, layers (checkpointed|in a Python loop))?|first_order.*"
PAGES = (REPO / "README.md", REPO / "experiments" / "README.md")


def recorded() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def results_table() -> str:
    """Lay out what stands by itself; what was trained under one budget has a table of its own."""
    lines = [
        "| data | task | algorithm, strategy | norm | inner steps (test) | outer steps | result | paper | why not "
        "| min | on | fingerprint |",
        "| --- " * 12 + "|",
    ]
    for row in recorded():
        if not is_under_budget(row):
            lines.append(f"| {' | '.join((trained_and_judged(row), task_of(row), *cells_of(row, result_of(row))))} |")
    return "\n".join(lines)


def budget_table() -> str:
    """Lay out what was trained under a budget and met the same tasks, the best first, each beside MAML of its seed."""
    rows = sorted(filter(is_under_budget, recorded()), key=lambda row: -row["accuracy"])
    if not rows:
        return "Nothing recorded yet."
    check_same_tasks(rows)
    lines = [
        f"{trained_and_judged(rows[0])}, {task_of(rows[0])}:\n",
        "| algorithm, strategy | norm | inner steps (test) | outer steps | result | to MAML | paper | why not | min "
        "| on | fingerprint |",
        "| --- " * 11 + "|",
    ]
    maml = {row.get("seed"): row["accuracy"] for row in rows if row["algorithm"] == "maml"}
    for row in rows:
        ahead = "-"
        if row["algorithm"] != "maml" and row.get("seed") in maml:
            ahead = f"{100 * (row['accuracy'] - maml[row.get('seed')]):+.1f}"
        lines.append(f"| {' | '.join(cells_of(row, f'{result_of(row)} | {ahead}'))} |")
    return "\n".join(lines)


def check_same_tasks(rows: list[dict]) -> None:
    """Refuse rows under a budget that cannot stand in one table."""
    tasks = {(trained_and_judged(row), task_of(row), row.get("episodes_hash")): row["run"] for row in rows}
    if len(tasks) > 1:
        raise SystemExit(
            "Results under a budget stand in one table and meet the same tasks; given those of "
            f"{' and '.join(tasks.values())}: {', '.join(map(str, tasks))}. Leave budget_minutes out of one of them."
        )


def cells_of(row: dict, result: str) -> tuple[str, ...]:
    """Give the cells that both tables of results have."""
    # What has no inner loop has no strategy either.
    steps = f"{row['inner_steps']} ({row['eval_inner_steps']})" if row["metagrad"] or row["inner_steps"] else "-"
    return (
        ", ".join(filter(None, (row["algorithm"], row["metagrad"], ways_of_training(row)))),
        norm_of(row),
        steps,
        str(row["steps"] or "-"),
        result,
        "-" if row.get("paper") is None else paper_of(row),
        row.get("why") or "-",
        minutes_of(row),
        row["hardware"],
        row.get("fingerprint") or "-",
    )


def task_of(row: dict) -> str:
    if "accuracy" not in row:
        return f"{row['shots']} points"
    queries = "1 query" if row["queries"] == 1 else f"{row['queries']} queries"
    turned = {"by chance": ", turned by chance", "none": ", upright"}.get(row.get("turns"), "")
    return f"{row['ways']}-way {row['shots']}-shot, {queries} a class{turned}"


def result_of(row: dict) -> str:
    if "accuracy" in row:
        return f"{100 * row['accuracy']:.1f} +- {100 * row['ci95']:.1f} %"
    return f"mse {row['mse']:.2f} +- {row['ci95']:.2f}"


def is_under_budget(row: dict) -> bool:
    return bool(row.get("budget_minutes") and "accuracy" in row)


def trained_and_judged(row: dict) -> str:
    """Name the data, and what was trained on where that is other data."""
    split = f" ({row['class_split']})" if row.get("class_split") else ""
    trained = row.get("trained_on", row["dataset"])
    return (
        row["dataset"] + split if trained in (row["dataset"], "nothing") else f"{trained}{split}, on {row['dataset']}"
    )


def ways_of_training(row: dict) -> str:
    """Say in which size of task the training differed."""
    units = {"ways": "ways", "shots": "shots" if "accuracy" in row else "points"}
    trained = {name: row.get(f"train_{name}", row[name]) for name in units}
    differing = [f"{trained[name]} {unit}" for name, unit in units.items() if trained[name] != row[name]]
    return f"trained with {' and '.join(differing)}" if differing else ""


def minutes_of(row: dict) -> str:
    """Give the minutes, and of how many that were allowed."""
    return f"{row['minutes']:.1f}" + (f" of {row['budget_minutes']:g}" if row.get("budget_minutes") else "")


def paper_of(row: dict) -> str:
    value = f"{100 * row['paper']:.4g} %" if "accuracy" in row else f"{row['paper']:.2f}"
    return value + (f" ({row['paper_setting']})" if row.get("paper_setting") else "")


def is_reached(row: dict) -> bool:
    """Tell whether a result reaches the paper's number; True where there is none. Its interval counts for nothing."""
    if row.get("paper") is None:
        return True
    if "accuracy" in row:
        return row["accuracy"] >= row["paper"]
    return row["mse"] <= row["paper"]


def is_far_from_maml(row: dict, rows: list[dict]) -> bool:
    """Tell whether an algorithm under a budget is more than 2 points below MAML on the same tasks."""
    tasks = ("dataset", "trained_on", "ways", "shots", "queries", "episodes_hash")
    return is_under_budget(row) and any(
        other["algorithm"] == "maml"
        and is_under_budget(other)
        and all(other.get(key) == row.get(key) for key in tasks)
        and row["accuracy"] < other["accuracy"] - 0.02
        for other in rows
    )


def norm_of(row: dict) -> str:
    """Say whose statistics normalise, in training if that was another, and what the leak test found."""
    found, trained = row.get("setting", row["norm"]), row.get("train_norm", row["norm"])
    noted = [] if trained == row["norm"] else [f"trained {trained}"]
    noted += [] if row["norm"] in (found, "none") else [found]
    return row["norm"] + (f" ({', '.join(noted)})" if noted else "")


def benchmark_table() -> str:
    record = json.loads(BENCHMARK.read_text())
    lines = ["| what | median s | min - max s |", "| --- | --- | --- |"]
    for name, seconds in record["seconds"].items():
        lines.append(
            f"| {name} | {statistics.median(seconds):.4f} | {min(seconds):.4f} - {max(seconds):.4f} ({len(seconds)}) |"
        )
    return "\n".join(lines) + f"\n\n{record['device']}, jax {record['jax']}."


def memory_table() -> str:
    record = json.loads((REPO / "benchmarks" / "memory.json").read_text())
    lines = ["| set-up | strategy | MiB | of plain | seconds |", "| --- | --- | --- | --- | --- |"]
    plain = {}
    for row in record["rows"]:
        # The first row of a set-up is what the others are compared with.
        most = plain.setdefault(row["setup"], row["temp_bytes"])
        if not re.fullmatch(IN_README, row["variant"]):
            continue
        lines.append(
            f"| {row['setup']} | {row['variant']} | {row['temp_bytes'] / 2**20:.0f} | "
            f"1/{most / row['temp_bytes']:.1f} | {statistics.median(row['seconds']):.1f} |"
        )
    return "\n".join(lines) + f"\n\n{record['device']}, {record['cores']} cores, jax {record['jax']}."


def depth_table() -> str:
    record = json.loads((REPO / "benchmarks" / "depth.json").read_text())
    depths = [steps for steps in record["sizes"]["steps"] if steps != 2]
    by_strategy = {}
    for row in record["rows"]:
        cell = f"{row['temp_bytes'] / 2**20:.3g} / {1e3 * statistics.median(row['seconds']):.3g}"
        by_strategy.setdefault(row["strategy"], {})[row["steps"]] = cell
    lines = [
        f"| MiB / ms | {' | '.join(f'T = {steps}' for steps in depths)} |",
        "| --- " * (len(depths) + 1) + "|",
    ]
    for strategy, cells in by_strategy.items():
        lines.append(f"| {strategy} | {' | '.join(cells[steps] for steps in depths)} |")
    return "\n".join(lines)


def speed_table() -> str:
    """Our seconds and everybody's, load by load; only what one run of benchmarks/speed.py recorded."""
    path = REPO / "benchmarks" / "speed.json"
    if not path.exists():
        return "Not recorded yet: run benchmarks/speed.py."
    record = json.loads(path.read_text())
    loads, cells = {}, {}
    for row in record["rows"]:
        loads[row["load"]] = row["description"]
        cells.setdefault(row["contender"], {})[row["load"]] = row
    lines = [f"| seconds a meta-step | {' | '.join(loads)} |", "| --- " * (len(loads) + 1) + "|"]
    for name, rows in cells.items():
        lines.append(f"| {name} | {' | '.join(speed_cell(rows.get(load)) for load in loads)} |")
    by_load = {load: {name: rows[load] for name, rows in cells.items() if load in rows} for load in loads}
    ratios = [f"{ratio:.2f}" if (ratio := ratio_to_fastest(rows)) else "-" for rows in by_load.values()]
    lines.append(f"| fastest PyTorch peer / jaxmeta | {' | '.join(ratios)} |")
    legend = "; ".join(f"{load}: {text}" for load, text in loads.items())
    note = f"{legend}. Medians of {record['rounds']} interleaved rounds; * one cold step; - not run."
    about = f"{record['processor']}, {record['cores']} cores, {record['device']}, {record['precision']}."
    return "\n".join(lines) + f"\n\n{note}\n{about}"


def speed_cell(row: dict | None) -> str:
    if row is None:
        return "-"
    if not row.get("seconds"):
        return row["status"].split(":")[0]
    seconds = statistics.median(row["seconds"])
    text = f"{1e3 * seconds:.2f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
    return text + (" *" if row["single"] else "")


def ratio_to_fastest(rows: dict[str, dict]) -> float | None:
    """How many times longer the fastest PyTorch library takes than jaxmeta; None where one of them is missing."""
    seconds = {name: statistics.median(row["seconds"]) for name, row in rows.items() if row.get("seconds")}
    torch = [value for name, value in seconds.items() if rows[name].get("versions", {}).get("torch")]
    return min(torch) / seconds["jaxmeta"] if torch and "jaxmeta" in seconds else None


def comparisons_table() -> str:
    return comparisons.table(json.loads(COMPARISONS.read_text()))


def online_table() -> str:
    """Lay out what experiments/online_sinusoid.py wrote."""
    if not ONLINE.exists():
        return "Not recorded yet: run experiments/online_sinusoid.py --json experiments/online_sinusoid.json."
    record = json.loads(ONLINE.read_text())
    columns = [f"{kind}, {size} points" for kind in ("regret", f"last {record['late']}") for size in record["sizes"]]
    lines = [f"| way | {' | '.join(columns)} | fingerprint |", "| --- " * (len(columns) + 2) + "|"]
    for row in record["rows"]:
        cells = [f"{value:.1f} +- {interval:.1f}" for value, interval in row["regret"]]
        cells += [f"{value:.3f} +- {interval:.3f}" for value, interval in row["late"]]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['fingerprint']} |")
    return "\n".join(lines)


TABLES = {
    "online": online_table,
    "comparisons": comparisons_table,
    "results": results_table,
    "budget": budget_table,
    "benchmark": benchmark_table,
    "memory": memory_table,
    "depth": depth_table,
    "speed": speed_table,
}


def filled(text: str) -> str:
    for name, make in TABLES.items():
        marks = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        if marks[0] in text:
            before, rest = text.split(marks[0], 1)
            text = f"{before}{marks[0]}{make()}\n{marks[1]}{rest.split(marks[1], 1)[1]}"
    return text


def add(run: Path, file: str, **noted) -> None:
    """Record a run's result; `--file` names another JSON in its folder than result.json."""
    result = json.loads((run / file).read_text())
    if "accuracy" not in result and "mse" not in result:
        raise SystemExit(f"{run / file} has no accuracy and no mean squared error: it is not for this table.")
    row = {**result, **noted, "run": run.name}
    if "seconds" in result:
        row["minutes"] = result["seconds"] / 60
    else:
        row["minutes"] = json.loads((run / "result.json").read_text())["seconds"] / 60
    if (run / "config.json").exists():
        config = json.loads((run / "config.json").read_text())
        if config["dataset"] == "omniglot":
            row["class_split"] = config["split"]
    rows = recorded()
    if not is_reached(row) and not noted["why"]:
        raise SystemExit(f"{run} does not reach the paper's {noted['paper']}: say by --why what kept it from it.")
    if is_far_from_maml(row, rows) and not noted["why"]:
        raise SystemExit(f"{run} is more than 2 points below MAML's: say by --why what kept it from it.")
    # A run that was repeated, or judged anew by the same rules, takes the place of what it had shown before.
    rules = ("run", "protocol", "eval_inner_steps")
    same = [index for index, kept in enumerate(rows) if all(kept.get(key) == row.get(key) for key in rules)]
    if same:
        rows[same[0]] = row
    else:
        rows.append(row)
    check_same_tasks(list(filter(is_under_budget, rows)))
    write_atomically(RESULTS, "".join(json.dumps(kept) + "\n" for kept in rows))


def compare(name: str, file: Path, hardware: str) -> None:
    """Record what an experiment of tuning has shown, in place of what it had shown before."""
    record = json.loads(file.read_text())
    kept = json.loads(COMPARISONS.read_text()) if COMPARISONS.exists() else {}
    kept[name] = {"rows": list(comparisons.READERS[name](record)), "minutes": record["seconds"] / 60}
    kept[name]["hardware"] = hardware
    COMPARISONS.write_text(json.dumps({name: kept[name] for name in comparisons.READERS if name in kept}, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="RUN", help="run folder whose result is to be recorded")
    parser.add_argument("--file", default="result.json", help="file in the run folder with the result")
    parser.add_argument(
        "--compare", nargs=2, metavar=("NAME", "FILE"), help=f"result file of one of {', '.join(comparisons.READERS)}"
    )
    parser.add_argument("--hardware", help="what it ran on")
    parser.add_argument("--paper", type=float, help="the paper's number, as a fraction or an error")
    parser.add_argument("--paper-setting", help="'transductive' where the paper's number is and ours is not")
    parser.add_argument("--why", help="what kept the result from the paper's number, where it was not reached")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    options = parser.parse_args()
    if options.add:
        if not options.hardware:
            parser.error("--add needs --hardware, what the result was reached on")
        noted = {"hardware": options.hardware, "paper": options.paper, "paper_setting": options.paper_setting}
        noted["why"] = options.why
        add(options.add, options.file, **noted)
    if options.compare:
        name, file = options.compare
        if not options.hardware or name not in comparisons.READERS:
            parser.error(f"--compare needs --hardware and one of {', '.join(comparisons.READERS)}; given {name}")
        compare(name, Path(file), options.hardware)
    stale = [page for page in PAGES if filled(page.read_text()) != page.read_text()]
    rows = recorded()
    below = [row for row in rows if not is_reached(row) or is_far_from_maml(row, rows)]
    unexplained = [row["run"] for row in below if not row.get("why")]
    if unexplained:
        print(
            f"Below their papers, or 2 points below MAML, without a reason: {', '.join(unexplained)}", file=sys.stderr
        )
        return 1
    unknown = [row["run"] for row in rows if not row.get("fingerprint")]
    if unknown:
        print(f"Without a fingerprint of how they were judged: {', '.join(unknown)}. Run them anew.", file=sys.stderr)
        return 1
    if options.check:
        for page in stale:
            print(f"{page.relative_to(REPO)} is out of date: run python experiments/make_tables.py", file=sys.stderr)
        return 1 if stale else 0
    for page in stale:
        page.write_text(filled(page.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
