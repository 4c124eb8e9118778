"""What the experiments of learning to tune have shown: comparisons read from the files that they write.

Each reader turns a result file into rows of figures by seed, of one way and of the other that it is compared with;
`make_tables.py --compare NAME FILE` records them in `comparisons.json`, of which the table of README.md is made.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxmeta.metrics import paired_difference


class Comparison(NamedTuple):
    """One way against another, seed by seed.

    Attributes:
      what: The way.
      against: The other.
      figures: Of the way, a seed each.
      others: Of the other.
      unit: Of both.
    """

    what: str
    against: str
    figures: list[float]
    others: list[float]
    unit: str = "points"


Rows = Iterator[Comparison]


def metanet(record: dict[str, Any]) -> Rows:
    pairs = (
        ("meta-network", "default"),
        ("meta-network", "random search"),
        ("meta-network", "random search, falling rates"),
        ("meta-network, online", "default"),
        ("meta-network, online", "random search"),
        ("rate 30 times too small, meta-network", "best fixed rate"),
        ("rate 30 times too large, meta-network", "best fixed rate"),
        ("flipped labels, re-weighting", "flipped labels, plain"),
        ("flipped labels, re-weighting, stopped by validation", "flipped labels, plain, stopped by validation"),
        ("flipped labels, re-weighting", "flipped labels, plain, clean images added, stopped by validation"),
        ("flipped labels, re-weighting", "flipped labels, plain, clean images alone, stopped by validation"),
    )
    for pair in pairs:
        if all(name in record["results"] for name in pair):
            first, second = ([run["test"] for run in record["results"][name]] for name in pair)
            # Some parts are run on more seeds than others, which begin with the same.
            seeds = min(len(first), len(second))
            yield Comparison(*pair, first[:seeds], second[:seeds])


def architecture(record: dict[str, Any]) -> Rows:
    pairs = (
        ("first order", "random, median"),
        ("second order", "random, median"),
        ("second order", "random, best by validation"),
        ("second order", "first order"),
        ("second order", "the largest network"),
    )
    for pair in pairs:
        yield Comparison(*pair, *([100 * seed[name]["test"] for seed in record["seeds"]] for name in pair))


def controller(record: dict[str, Any]) -> Rows:
    def accuracies(name):
        return [100 * statistics.mean(seed["judged"][name]["accuracy"]) for seed in record["seeds"]]

    many = f"default: random search, {record['setting']['episodes']} trainings"
    for start, other in (
        ("anywhere", "anywhere: random actions"),
        ("anywhere", "anywhere: left as it begins"),
        ("default", "default: random actions"),
        ("default", "default: left as it begins"),
        ("default", many),
        ("default", "default: hypergradient"),
    ):
        name = f"{start}: learned controller"
        yield Comparison(name, other.split(": ")[1], accuracies(name), accuracies(other))
    returns = [[100 * value for value in seed["curve"]["return"]] for seed in record["seeds"]]
    # As many of each seed: environments that run together may end an episode or two more.
    number = min(map(len, returns))
    fifth = number // 5
    parts = slice(number - fifth, number), slice(fifth)
    last, first = ([statistics.mean(curve[part]) for curve in returns] for part in parts)
    yield Comparison("gained in the last fifth of episodes", "in the first", last, first)


def learned_optimizer(record: dict[str, Any]) -> Rows:
    """Each at what it was trained for; how far those of 500 steps go beyond that, on the digits.

    Against Adam with a tuned rate; and where training ends at 500, with a rate that falls until then.
    """
    judged_at = dict.fromkeys(("MLP, NRES", "LSTM, NRES", "MLP, PES"), (100, 500, 2500))
    judged_at |= dict.fromkeys(("MLP, full unrolls", "MLP, truncated"), (100,))
    for where in record["runs"][0]["loss"]:
        losses = [run["loss"][where] for run in record["runs"]]
        rivals = {"SGD", "momentum", "Adam", "Adam, falling", "Adam, best rate"}
        unknown = set(losses[0]) - set(judged_at) - rivals
        if unknown:
            raise ValueError(f"No row is made of {', '.join(sorted(unknown))}; say in {__name__} where it is judged.")
        for name in (name for name in judged_at if name in losses[0]):
            for steps in judged_at[name] if where == "digits" else judged_at[name][:2]:
                what = f"{where}, {name}: loss after {steps} steps"
                figures, *others = (
                    [of_seed[of][str(steps)] for of_seed in losses]
                    for of in (name, "Adam", "Adam, falling")
                    if of in losses[0]
                )
                yield Comparison(what, "tuned Adam", figures, others[0], "nats")
                if steps == 500 and others[1:]:
                    yield Comparison(what, "tuned Adam, falling rate", figures, others[1], "nats")


def mnist(record: dict[str, Any]) -> Rows:
    pairs = (
        ("meta-model", "scratch"),
        ("meta-model", "nearest example"),
        ("meta-model, learned optimiser", "scratch"),
        ("meta-model, learned optimiser", "meta-model"),
    )
    for pair in pairs:
        for shots in record["seeds"][0]["meta-model"]:
            if all(name in record["seeds"][0] for name in pair):
                figures = ([100 * seed[name][shots] for seed in record["seeds"]] for name in pair)
                against = pair[1].replace("scratch", "from scratch")
                yield Comparison(f"{pair[0]}, examples a class: {shots}", against, *figures)


def extractor_switch(record: dict[str, Any]) -> Rows:
    for other in record["runs"][0]["mean"]:
        if other not in ("switch", "best on each task"):  # The last knows what nobody can.
            yield Comparison(
                "switch", other, *([run["mean"][way] for run in record["runs"]] for way in ("switch", other))
            )


READERS: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "cifar10_metanet": metanet,
    "cifar10_architecture": architecture,
    "cifar10_controller": controller,
    "learned_optimizer": learned_optimizer,
    "mnist_metafeatures": mnist,
    "extractor_switch": extractor_switch,
}


def table(records: dict[str, dict[str, Any]]) -> str:
    """Lay out what is recorded: means of the difference over seeds, with 95 % intervals."""
    lines = ["| experiment | what | against | difference | seeds | min, on |", "| --- " * 6 + "|"]
    for name, record in records.items():
        for row in map(lambda values: Comparison(*values), record["rows"]):
            gap = paired_difference(row.figures, row.others)
            digits = 1 if row.unit == "points" else 4
            lines.append(
                f"| `{name}.py` | {row.what} | {row.against} | {gap.mean:+.{digits}f} +- {gap.ci95:.{digits}f} "
                f"{row.unit} | {len(row.figures)} | {record['minutes']:.0f}, {record['hardware']} |"
            )
    return "\n".join(lines)
