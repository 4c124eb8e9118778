"""How our meta-step grows: seconds, memory and compilation against tasks, inner steps, filters, shots and devices.

    python benchmarks/scaling.py [--rounds 3] [--json FILE] [--quick]

Around load C (conv4, 28x28, 5-way 5-shot, 8 tasks here) one number is varied at a time; every point is measured in a
process of its own; on a CPU a device is a core. Memory is what XLA sets aside on each device beside arguments and
results. The slope is that of the straight line through log cost against log size: 0 is flat, 1 proportional.

Writes `scaling.json` and the picture `scaling.png` beside this script; with --quick (tiny loads, one round) only a FILE
that is named.
"""

import json
import statistics

import jax
import numpy as np

from costs import machine, parse
from jaxmeta.bench import LOADS, tiny
from jaxmeta.bench.process import measure_in_own_process

CENTRE = {"tasks": 8}
AXES = {
    "tasks": (4, 8, 16, 32),
    "num_steps": (1, 2, 5, 10),
    "size": (16, 32, 64, 128),
    "support": (5, 25, 50, 100),
}
QUICK = {"tasks": (2, 4), "num_steps": (1, 2), "size": (2, 4), "support": (3, 6)}
TITLES = {
    "tasks": "tasks",
    "num_steps": "inner steps",
    "size": "filters",
    "support": "support images",
    "devices": "devices",
}
COSTS = {
    "seconds of a meta-step": lambda row: statistics.median(row["seconds"]),
    "MiB set aside on a device": lambda row: row["temp_bytes"] / 2**20,
    "seconds to compile": lambda row: row["compile_seconds"],
}


def devices_at_hand(about, tasks):
    """Powers of two, up to the devices and the tasks: cores of a CPU, which `jaxmeta.bench` makes devices of."""
    most = about["cores"] if jax.default_backend() == "cpu" else len(jax.devices())
    return tuple(2**power for power in range(min(most, tasks).bit_length()))


def measure(options, about):
    rows, known = [], {}
    load = tiny(LOADS["C"]) if options.quick else LOADS["C"]._replace(**CENTRE)
    at_hand = devices_at_hand(about, load.tasks)
    for axis, values in {**(QUICK if options.quick else AXES), "devices": at_hand}.items():
        for value in values:
            changes, devices = {} if options.quick else CENTRE, None
            if axis == "devices":
                devices = value
            else:
                changes = {**changes, axis: value}
            point = (*load._replace(**changes), devices)
            # The centre lies on every axis: it is measured once.
            if point not in known:
                known[point] = measure_in_own_process(
                    load="C", changes=changes, rounds=options.rounds, quick=options.quick, devices=devices
                )
            rows.append({"axis": axis, "value": value, **known[point]})
            seconds = known[point].get("seconds")
            print(
                f"{TITLES[axis]} {value}: {statistics.median(seconds) if seconds else known[point]['error']}",
                flush=True,
            )
    return rows


def slope(rows, cost):
    """The exponent p of cost ~ size^p, as text."""
    points = [(row["value"], cost(row)) for row in rows if "error" not in row]
    if len(points) < 2:
        return "-"
    sizes, costs = np.log(np.maximum(points, 1e-9)).T
    return f"{np.polyfit(sizes, costs, 1)[0]:.2f}"


def show(rows):
    for axis, title in TITLES.items():
        own = [row for row in rows if row["axis"] == axis]
        print(f"\n| {title} | {' | '.join(str(row['value']) for row in own)} | slope |")
        print("| --- " * (len(own) + 2) + "|")
        for name, cost in COSTS.items():
            cells = ["-" if "error" in row else f"{cost(row):.3g}" for row in own]
            print(f"| {name} | {' | '.join(cells)} | {slope(own, cost)} |")


def draw(path, rows):
    # The object interface, as in jaxmeta/plots.py: pyplot wants a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(COSTS), len(TITLES), sharex="col", sharey="row")
    for line, (name, cost) in zip(panels, COSTS.items(), strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for axes, (axis, title) in zip(line, TITLES.items(), strict=True):
            own = [row for row in rows if row["axis"] == axis and "error" not in row]
            if not own:
                continue
            axes.plot([row["value"] for row in own], [cost(row) for row in own], "o-", color="#0072b2")
            axes.set_title(f"slope {slope(own, cost)}", fontsize=8, loc="right", color="#6a6a6a")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks([row["value"] for row in own], [str(row["value"]) for row in own])
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3)
            if name == list(COSTS)[-1]:
                axes.set_xlabel(title)
    figure.savefig(path, dpi=110)


def main():
    options = parse(__doc__, __file__, 3, "tiny loads and one round: does it run?")
    about = machine()
    rows = measure(options, about)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps({**about, "centre": CENTRE, "rows": rows}, indent=1) + "\n")
        draw(options.json.with_suffix(".png"), rows)


if __name__ == "__main__":
    main()
