"""What a meta-gradient costs against the number of inner steps, for every strategy: memory and time.

    python benchmarks/depth.py [--rounds 5] [--json FILE] [--quick]

The problem is one that all strategies can serve: eight meta-parameters (the weights of two sources of training
data, and the weight decay of each of six arrays) act in the inner objective of a small network with a fixed start and
a proximal term; the outer loss is that on validation data. Of these `first_order()` sees nothing: its meta-gradient is
zero, and its row the price of the inner loop alone. `implicit()` and `truncated(5)` approximate; the last column
says how far from `unrolled()` they and the exact ones are at the most steps (relative, in the 2-norm).

Memory is what XLA sets aside for the compiled meta-gradient beside its arguments and results
(`memory_analysis().temp_size_in_bytes`). The slope is that of the straight line through log cost against log steps from
20 steps on: 0 is flat, 0.5 the square root, 1 proportional. Memory has a second slope, of what grows. Next to the
carries of the loop, each as large as phi (all of them for "step", about 2 sqrt(T) for "group"), lies what one step
needs whatever their number, and bends the line; so the memory of two steps, less their two carries, is taken off
first. `mixed_mode()` keeps no inner gradients here: at a constant rate gradient descent does not need them again. A
loop of one step is no loop for XLA and costs less. Rounds are interleaved, medians are shown.

Writes `depth.json` beside this script, and the picture `depth.png` beside the JSON; with --quick (a small network, few
steps, one round, a smoke test) only a FILE that is named.
"""

import json
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from costs import compile_meta_gradient, machine, parse, time_in_turn
from jaxmeta import (
    first_order,
    forward,
    implicit,
    inner_loop,
    inner_sgd,
    meta_grad,
    mixed_mode,
    truncated,
    unrolled,
)

FULL = {"inputs": 64, "hidden": 256, "classes": 10, "examples": 128, "steps": (1, 2, 5, 10, 20, 50, 100)}
QUICK = FULL | {"hidden": 16, "examples": 8, "steps": (20,)}
FIRST_OF_SLOPE = 20

# Colour, marker and line: strategies that keep something of every step are solid, the others are not.
STRATEGIES = {
    "unrolled()": (unrolled(), "#000000", "o", "-"),
    'unrolled(remat="step")': (unrolled(remat="step"), "#0072b2", "s", "-"),
    "mixed_mode()": (mixed_mode(), "#d55e00", "^", "-"),
    'unrolled(remat="group")': (unrolled(remat="group"), "#56b4e9", "s", "--"),
    'mixed_mode(remat="group", save_gradients=False)': (
        mixed_mode(remat="group", save_gradients=False),
        "#e69f00",
        "^",
        "--",
    ),
    "truncated(5)": (truncated(5), "#009e73", "v", ":"),
    "forward()": (forward(), "#cc79a7", "D", ":"),
    "implicit()": (implicit(), "#8c6bb1", "P", ":"),
    "first_order()": (first_order(), "#7f7f7f", "x", ":"),
}


def init_network(key, sizes):
    widths = [sizes["inputs"], sizes["hidden"], sizes["hidden"], sizes["classes"]]
    layers = {}
    for number, (width_in, width_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        key, key_layer = jax.random.split(key)
        layers[f"kernel_{number}"] = jax.random.normal(key_layer, [width_in, width_out]) * width_in**-0.5
        layers[f"bias_{number}"] = jnp.zeros([width_out])
    return layers


def cross_entropy_of(phi, batch):
    hidden, targets = batch
    for number in range(3):
        hidden = (jnp.tanh(hidden) if number else hidden) @ phi[f"kernel_{number}"] + phi[f"bias_{number}"]
    return -jnp.take_along_axis(jax.nn.log_softmax(hidden), targets[:, None], axis=-1).mean()


def training_loss(phi, theta, state, sources, key):
    value = sum(weight * cross_entropy_of(phi, batch) for weight, batch in zip(theta["weights"], sources, strict=True))
    decay = sum(theta["decay"][name] * jnp.sum(jnp.square(leaf)) for name, leaf in phi.items())
    return value + 0.5 * decay, ()


def validation_loss(phi, theta, state, batch, key):
    return cross_entropy_of(phi, batch), ()


def make_problem(sizes):
    keys = jax.random.split(jax.random.key(0), 6)
    teacher, start = init_network(keys[0], sizes), init_network(keys[1], sizes)
    batches = []
    for key in keys[2:5]:
        inputs = jax.random.normal(key, [sizes["examples"], sizes["inputs"]])
        targets = jnp.argmax(jnp.tanh(inputs) @ teacher["kernel_0"][:, : sizes["classes"]], axis=-1)
        batches.append((inputs, targets))
    # The second source is noise: its labels belong to other examples.
    batches[1] = (batches[1][0], jnp.roll(batches[1][1], 1))
    theta = {"weights": (jnp.float32(0.5), jnp.float32(0.5)), "decay": {name: jnp.float32(0.01) for name in start}}
    return start, (theta, (), tuple(batches[:2]), batches[2], keys[5])


def measure(start, args, sizes, rounds):
    rows, compiled, exact = [], [], None
    for steps in sizes["steps"]:
        for name, (metagrad, *_) in STRATEGIES.items():
            solve = inner_loop(training_loss, inner_sgd(0.2), steps, metagrad, proximal=0.5)
            gradient = meta_grad(validation_loss, solve, start=lambda theta: start)
            expected = None if name == "unrolled()" else exact
            row, call, grads = compile_meta_gradient(gradient, args, expected)
            if expected is None:
                exact = grads
            rows.append({"strategy": name, "steps": steps, **row})
            compiled.append(call)
    time_in_turn(rows, compiled, args, rounds)
    return rows


def mebibytes(row):
    return row["temp_bytes"] / 2**20


def median_seconds(row):
    return statistics.median(row["seconds"])


COSTS = {"temporary memory, MiB": mebibytes, "seconds for a meta-gradient": median_seconds}


def slope(rows, cost):
    """The exponent p of cost ~ steps^p, as text."""
    rows = [row for row in rows if row["steps"] >= FIRST_OF_SLOPE]
    if len(rows) < 2:
        return "-"
    exponent = np.polyfit(np.log([row["steps"] for row in rows]), np.log([cost(row) for row in rows]), 1)[0]
    return f"{abs(exponent) if abs(exponent) < 0.005 else exponent:.2f}"


def slope_of_growth(rows, carry_bytes):
    """The exponent of the memory that grows with the number of steps, see above."""
    of_two = [row["temp_bytes"] for row in rows if row["steps"] == 2]
    return slope(rows, lambda row: row["temp_bytes"] - of_two[0] + 2 * carry_bytes) if of_two else "-"


def show(rows, all_steps, carry_bytes):
    for title, cost in COSTS.items():
        print(f"\n| {title}, steps: | {' | '.join(map(str, all_steps))} | slope | of growth | gradient difference |")
        print("|---" * (len(all_steps) + 4) + "|")
        for name in STRATEGIES:
            own = [row for row in rows if row["strategy"] == name]
            cells = [f"{cost(row):.3g}" for row in own] + [slope(own, cost)]
            cells += [slope_of_growth(own, carry_bytes) if cost is mebibytes else "-"]
            print(f"| {name} | {' | '.join(cells)} | {own[-1]['gradient_difference']:.1e} |")


def draw(path, rows):
    # The object interface, as in jaxmeta/plots.py: pyplot wants a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, 2)
    for axes, (title, cost) in zip(all_axes, COSTS.items(), strict=True):
        for name, (_, color, marker, line) in STRATEGIES.items():
            own = [row for row in rows if row["strategy"] == name]
            axes.plot(
                [row["steps"] for row in own],
                [cost(row) for row in own],
                color=color,
                marker=marker,
                linestyle=line,
                # Where lines lie on each other, the smaller marker is drawn over the larger.
                markersize=7 if marker == "s" else 5,
                label=name,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sorted({row["steps"] for row in rows}), minor=False)
        axes.set_xticks([], minor=True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.set_xlabel("inner steps")
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.3)
    add_guides(all_axes[0], rows)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


def add_guides(axes, rows):
    """Short grey lines of slope 1 above the highest and of slope 1/2 below the lowest curve that grows."""
    grown = [row for row in rows if row["steps"] == FIRST_OF_SLOPE]
    heights = {row["strategy"]: mebibytes(row) for row in grown}
    ends = np.array([FIRST_OF_SLOPE, 5 * FIRST_OF_SLOPE])
    guides = {
        "proportional": (1.0, 1.6 * heights["unrolled()"], "bottom"),
        "square root": (0.5, 0.6 * heights['mixed_mode(remat="group", save_gradients=False)'], "top"),
    }
    for label, (power, height, side) in guides.items():
        line = height * (ends / FIRST_OF_SLOPE) ** power
        axes.plot(ends, line, color="#9a9a9a", linewidth=1)
        middle, raised = np.sqrt(ends.prod()), np.sqrt(line.prod()) * (1.12 if side == "bottom" else 0.88)
        align = "right" if side == "bottom" else "left"
        axes.text(middle, raised, label, color="#6a6a6a", fontsize=9, ha=align, va=side)


def main():
    options = parse(__doc__, __file__, 5, "a small network, one length, one round: does it run?")
    sizes, about = QUICK if options.quick else FULL, machine()
    start, args = make_problem(sizes)
    carry_bytes = sum(leaf.nbytes for leaf in start.values())
    rows = measure(start, args, sizes, options.rounds)
    show(rows, sizes["steps"], carry_bytes)
    if options.json:
        record = {**about, "sizes": sizes, "carry_bytes": carry_bytes, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
        draw(options.json.with_suffix(".png"), rows)


if __name__ == "__main__":
    main()
