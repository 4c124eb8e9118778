"""Pictures of a run. matplotlib is imported when one is drawn."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmeta.base import Batch, Episode
from jaxmeta.verification import Roc, area_under_roc, equal_error_rate

GOOD, BAD, TRUTH = "#2a7f3f", "#b3261e", "#444444"


def _figure(width: float, height: float):
    # The object interface: pyplot keeps figures alive and wants a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_curves(path: Path, rows: list[dict[str, Any]], metric: str) -> None:
    """Draw loss and metric against the outer step, training as a line and validation as dots.

    Args:
      path: Where to write the PNG.
      rows: Rows of `metrics.jsonl`.
      metric: "accuracy" or "mse".
    """
    names = ["loss"] if metric == "mse" else ["loss", metric]
    figure = _figure(5.5 * len(names), 3.6)
    for axes, name in zip(np.ravel(figure.subplots(1, len(names))), names, strict=True):
        train = [(row["step"], row[name]) for row in rows if name in row]
        valid = [row for row in rows if f"validation_{name}_ci95" in row and f"validation_{name}" in row]
        if train:
            steps, values = np.array(train).T
            axes.plot(steps, values, color="#9db7d5", linewidth=0.8, label="training tasks")
            if len(values) >= 20:
                width = len(values) // 20
                smooth = np.convolve(values, np.ones(width) / width, "valid")
                middle = steps[(width - 1) // 2 :][: len(smooth)]
                axes.plot(middle, smooth, color="#1f4e8c", linewidth=1.6, label="training, smoothed")
        if valid:
            axes.errorbar(
                [row["step"] for row in valid],
                [row[f"validation_{name}"] for row in valid],
                [row[f"validation_{name}_ci95"] for row in valid],
                fmt="o",
                color="#d9730d",
                markersize=4,
                capsize=2,
                label="validation, 95 % interval",
            )
        axes.set_xlabel("outer step")
        axes.set_ylabel("mean squared error" if metric == "mse" else f"query {name}")
        if name == "loss":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_image_episode(
    path: Path, episode: Episode, outputs: np.ndarray | None, title: str, names: Sequence[str] = ()
) -> None:
    """Draw one task: a row for each class with its name, its support images, and its query images as predicted.

    Args:
      path: Where to write the PNG.
      episode: One task of images.
      outputs: Logits of the query set `[queries, ways]`; None where nothing is predicted yet.
      title: Above the picture.
      names: The name of each class of the task; without, they are numbered.
    """
    support, query = episode
    # Where ways vary, a task may have fewer than there are outputs.
    present = int(np.max(np.asarray(support.targets))) + 1
    ways = present if outputs is None else outputs.shape[-1]
    names = [*names, *(f"class {way}" for way in range(len(names), ways))]
    rows, columns = min(present, 10), 8
    predicted = None if outputs is None else np.argmax(outputs, -1)
    of_class = [[_examples(batch, way)[:columns] for way in range(rows)] for batch in episode]
    shots, queries = (max(map(len, of_batch)) for of_batch in of_class)
    # Beside the images: a column for the names, twice as wide, and a narrow gap between support and query.
    widths = [2.0, *[1.0] * shots, 0.25, *[1.0] * queries]
    # Wide enough for the title, however few images there are.
    figure = _figure(max(5.5, 0.95 * sum(widths)), 1.1 * rows + 0.8)
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    _name_rows(grid, names)
    for start, label in ((1, "support"), (2 + shots, "query" if predicted is None else "query: predicted")):
        # Above the titles of single images, which have two lines. The first makes room for both; the second, which is
        # longer, makes no column wider.
        where = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 8}
        grid[0, start].annotate(label, (0, 1), (0, 24), **where).set_in_layout(start == 1)
    parts = ((1, support, of_class[0], None), (2 + shots, query, of_class[1], predicted))
    for start, batch, places, taken_for in parts:
        for way, row in enumerate(places):
            for axes, index in zip(grid[way, start:], row, strict=False):
                _show(axes, np.asarray(batch.inputs[index]), 1)
                if taken_for is not None:
                    color = GOOD if taken_for[index] == way else BAD
                    axes.set_title(_broken(names[taken_for[index]], 15, 2), fontsize=7, color=color)
    figure.savefig(path, dpi=110)


def plot_task(path: Path, support: np.ndarray, query: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draw what a task is made of: one row for each class, its name, its support and its query images.

    Args:
      path: Where to write the PNG.
      support: Images `[ways, shots, height, width, channels]` uint8.
      query: Images `[ways, queries, height, width, channels]` uint8.
      names: `[ways]`, the name of each class.
      title: Above the picture.
    """
    rows, columns = min(len(names), 20), 10
    support, query = support[:rows, :columns], query[:rows, :columns]
    shots, queries = support.shape[1], query.shape[1]
    hidden = f" (the first {rows} of {len(names)} classes)" if rows < len(names) else ""
    # Beside the images: a column for the names, twice as wide, and a narrow gap between support and query.
    widths = [2.0, *[1.0] * shots, 0.25, *[1.0] * queries]
    figure = _figure(max(5.5, 0.95 * sum(widths)), 0.9 * rows + 0.9)
    figure.suptitle(title + hidden, fontsize=10)
    grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    _name_rows(grid, names)
    for start, batch, label in ((1, support, "support"), (2 + shots, query, "query")):
        grid[0, start].set_title(label, fontsize=9, loc="left")
        for row, images in zip(grid, batch, strict=False):
            for axes, image in zip(row[start:], images, strict=False):
                _show(axes, image, 255)
    figure.savefig(path, dpi=110)


def _name_rows(grid: np.ndarray, names: Sequence[str]) -> None:
    """Write the name of each class into the first column; of all others only the images are seen."""
    for axes in grid.flat:
        axes.set_axis_off()
    for row, name in zip(grid, names, strict=False):
        place = {"transform": row[0].transAxes, "ha": "right", "va": "center"}
        row[0].text(1, 0.5, _broken(name, 22, 4), fontsize=9, color=TRUTH, **place)


def _show(axes, image: np.ndarray, brightest: int) -> None:
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=brightest)


def _broken(name: str, width: int, most: int) -> str:
    """Break a name into lines; of one that is too long the end is left, which tells more ("character01/rot090")."""
    # Also broken after a slash or an underscore, as in "Greek/character01".
    lines = [re.sub("\0 ?", "", line) for line in textwrap.wrap(re.sub(r"([/_])(?=\S)", r"\1\0 ", name), width)]
    if len(lines) > most:
        lines = [f"...{lines[-most][3 - width :]}", *lines[len(lines) - most + 1 :]]
    # Anything may be the name of a folder: a dollar sign begins no formula here.
    return "\n".join(lines).replace("$", r"\$")


def _examples(batch: Batch, way: int) -> np.ndarray:
    return np.flatnonzero((np.asarray(batch.targets) == way) & (np.asarray(batch.weights) > 0))


def plot_regression_episode(
    path: Path, episode: Episode, curves: dict[str, tuple[np.ndarray, np.ndarray]], title: str
) -> None:
    """Draw one regression task: its support points, its query points and predicted curves.

    Args:
      path: Where to write the PNG.
      episode: One task with inputs and targets `[points, 1]`.
      curves: Lines to draw by label, each inputs and outputs `[points]`.
      title: Above the picture.
    """
    figure = _figure(6.0, 3.8)
    axes = figure.subplots()
    order = np.argsort(np.asarray(episode.query.inputs)[:, 0])
    axes.plot(
        np.asarray(episode.query.inputs)[order, 0],
        np.asarray(episode.query.targets)[order, 0],
        color=TRUTH,
        linewidth=1.2,
        linestyle=":",
        label="truth",
    )
    for (label, (inputs, outputs)), color in zip(curves.items(), ("#9db7d5", "#d9730d", GOOD, BAD), strict=False):
        order = np.argsort(inputs)
        axes.plot(inputs[order], outputs[order], color=color, linewidth=1.6, label=label)
    axes.scatter(episode.support.inputs[:, 0], episode.support.targets[:, 0], color="black", zorder=3, label="support")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_roc(path: Path, curves: dict[str, Roc], title: str = "Are two images of one class?") -> None:
    """Draw receiver operating characteristics, each with its area and a dot at its equal error rate.

    Args:
      path: Where to write the PNG.
      curves: What `roc` gave, by label.
      title: Above the picture.
    """
    figure = _figure(5.2, 4.8)
    axes = figure.subplots()
    # Where false alarms are as frequent as misses, and guessing.
    axes.plot([0, 1], [1, 0], color=TRUTH, linewidth=0.6, linestyle=":")
    axes.plot([0, 1], [0, 1], color=TRUTH, linewidth=0.8, linestyle="--", label="guessing")
    for number, (label, curve) in enumerate(curves.items()):
        rate = equal_error_rate(curve)
        text = f"{label}: area {area_under_roc(curve):.3f}, equal error {100 * rate:.1f} %"
        color = f"C{number}"
        axes.plot(curve.false_positive_rate, curve.true_positive_rate, color=color, linewidth=1.6, label=text)
        axes.plot([rate], [1 - rate], "o", color=color, markersize=4, clip_on=False, zorder=3)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("different pairs called the same")
    axes.set_ylabel("same pairs called the same")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)


def plot_series(path: Path, at: Sequence[float], series: dict[str, list[tuple[float, float]]], x: str, y: str) -> None:
    """Draw means with their 95 % intervals against what grows by factors.

    Args:
      path: Where to write the PNG.
      at: Positive numbers, the places on a logarithmic axis.
      series: Mean and half the interval at each place, by label.
      x: Name of the axis.
      y: Name of the other.
    """
    figure = _figure(6.4, 4.4)
    axes = figure.subplots()
    for number, (label, values) in enumerate(series.items()):
        means, halves = np.array(values, float).T
        axes.errorbar(at, means, np.where(np.isfinite(halves), halves, 0), color=f"C{number}", marker="o", label=label)
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{place:g}" for place in at])
    axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
