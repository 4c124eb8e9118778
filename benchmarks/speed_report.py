"""What `speed.py` recorded, as Markdown tables and as a picture."""

import statistics

from contenders import ENTRIES, OURS
from jaxmeta.bench.table import duration, mebibytes

SIDES = {entry.name: entry.side for entry in ENTRIES}
COLORS = {"torch": "#d55e00", "jax": "#7f7f7f", "ours": "#0072b2"}
COLUMNS = (
    "who",
    "seconds a step",
    "min - max (rounds, steps)",
    "ours is faster by",
    "tasks/s",
    "GFLOP/s",
    "of matmul",
    "peak MiB (before)",
    "on the device",
    "compile s",
    "gradient differs by",
    "on the load, from float64",
)


def loads_of(record):
    return list(dict.fromkeys(row["load"] for row in record["rows"]))


def rows_of(record, load):
    return {row["contender"]: row for row in record["rows"] if row["load"] == load}


def median(row):
    """Seconds of a step, None for a row without any."""
    return statistics.median(row["seconds"]) if row.get("seconds") else None


def fastest_peer(rows, side="torch"):
    """The fastest contender of a side; None if none was timed."""
    timed = [row for name, row in rows.items() if SIDES[name] == side and median(row)]
    return min(timed, key=median, default=None)


def tables(record):
    """One table for each load, best first, then a line on the machine."""
    parts = []
    for load in loads_of(record):
        rows = rows_of(record, load)
        first = next(iter(rows.values()))
        parts.append(f"### {load}: {first['description']} ({first['gflop']:.3g} GFLOP)\n\n{table(rows)}")
    return "\n\n".join([*parts, machine(record)])


def table(rows):
    best = max((row["matmul_gflops"] for row in rows.values() if "matmul_gflops" in row), default=None)
    ours = median(rows.get(OURS, {}))
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    for row in sorted(rows.values(), key=lambda row: median(row) or float("inf")):
        cells = [row["status"], *["-"] * (len(COLUMNS) - 2)] if "status" in row else cells_of(row, ours, best)
        lines.append(f"| {row['contender']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cells_of(row, ours, best):
    seconds, figure = row["seconds"], median(row)
    spread = f"{duration(min(seconds))} - {duration(max(seconds))} ({len(seconds)}, {row['steps']})"
    if row["single"]:
        spread = "one step, cold"
    elif row["alone"]:
        spread += ", alone"
    return [
        duration(figure),
        spread,
        f"{figure / ours:.3g}" if ours else "-",
        f"{row['tasks'] / figure:.3g}",
        f"{row['gflop'] / figure:.3g}",
        f"{row['gflop'] / figure / best:.1%}",
        f"{mebibytes(row['peak_rss'])} ({mebibytes(row['rss_before'])})",
        mebibytes(row["device_peak"]),
        f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "-",
        f"{row['gradient_difference']:.0e}",
        "-" if row.get("from_float64") is None else f"{row['from_float64']:.0e}",
    ]


def machine(record):
    rows = [row for row in record["rows"] if "versions" in row]
    versions = {}
    for row in rows:
        versions |= row["versions"]
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    rates = {
        side: max(
            (row["matmul_gflops"] for row in rows if (SIDES[row["contender"]] == "torch") == (side == "torch")),
            default=0,
        )
        for side in ("jax", "torch")
    }
    busy = max((row["others_used"] for row in rows), default=0.0)
    idle = max((row.get("idle_cpu", 0.0) for row in rows), default=0.0)
    return (
        f"{record['processor']}, {record['cores']} cores, {record['device']}, {record['precision']}; {packages}. "
        f"Products of two 2048x2048 matrices: {rates['jax']:.0f} GFLOP/s in JAX, {rates['torch']:.0f} in PyTorch; "
        f"shares are of the better one of the load. While a contender ran, others used {busy:.2f} cores at most; "
        f"a waiting contender used {idle:.2f} CPU seconds between two turns at most."
    )


def draw(path, record):
    """Bars of seconds relative to ours, one panel for each load, on a log axis."""
    # The object interface, as in jaxmeta/plots.py: pyplot wants a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    loads = [load for load in loads_of(record) if median(rows_of(record, load).get(OURS, {}))]
    if not loads:
        return
    columns = min(4, len(loads))
    lines = -(-len(loads) // columns)
    figure = Figure(figsize=(1.5 + 3.1 * columns, 0.6 + 2.9 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    names = [entry.name for entry in ENTRIES if entry.name in {row["contender"] for row in record["rows"]}]
    for number, (axes, load) in enumerate(zip(panels, loads, strict=False)):
        draw_load(axes, names, rows_of(record, load), show_names=number % columns == 0)
    for axes in panels[len(loads) :]:
        axes.set_visible(False)
    figure.supxlabel("seconds of a meta-step, relative to jaxmeta (log scale)", fontsize=10)
    figure.savefig(path, dpi=110)


def draw_load(axes, names, rows, show_names):
    ours = median(rows[OURS])
    for height, name in enumerate(reversed(names)):
        row = rows.get(name, {})
        figure = median(row)
        if figure is None:
            axes.text(
                1.05, height, row.get("status", "not run").split(":")[0], va="center", fontsize=7, color="#6a6a6a"
            )
            continue
        low, high = (value / ours for value in (min(row["seconds"]), max(row["seconds"])))
        # Bars start at 1: to the right is slower than ours, to the left faster.
        axes.barh(height, figure / ours - 1, left=1, color=COLORS[SIDES[name]], height=0.7)
        axes.plot([low, high], [height, height], color="black", linewidth=1)
        if name == OURS:
            axes.plot(1, height, "o", color=COLORS["ours"], markersize=5)
        axes.annotate(
            f" {duration(figure)}",
            (max(figure / ours, high, 1), height),
            va="center",
            fontsize=7,
            annotation_clip=False,
        )
    axes.axvline(1, color=COLORS["ours"], linewidth=1)
    axes.set_xscale("log")
    most = max((median(row) / ours for row in rows.values() if median(row)), default=1)
    least = min((median(row) / ours for row in rows.values() if median(row)), default=1)
    # Room on the right for the labels.
    low, high = 0.8 * least, 2 * max(2, most) ** 1.35
    axes.set_xlim(low, high)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(range(len(names)), list(reversed(names)) if show_names else [""] * len(names), fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xticks([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 100, 1000) if low < tick < high])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    first = next(iter(rows.values()))
    axes.set_title(f"{first['load']}: {first['description'].split(',')[0]}, {first['gflop']:.3g} GFLOP", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
