"""The rows of the benchmark as a Markdown table."""

import statistics
from typing import Any

COLUMNS = (
    "load",
    "seconds a step",
    "min - max (rounds)",
    "tasks/s",
    "GFLOP/s",
    "of matmul",
    "compile s",
    "XLA temp MiB a device",
    "peak host MiB",
    "peak device MiB",
    "tasks at once",
)


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Write rows of `measure`, or of loads that failed, as a table with a line on the machine below.

    Args:
      rows: At least one.

    Returns:
      Markdown.

    Example:
      >>> print(markdown_table([{"load": "B", "description": "conv4", "error": "killed"}]).splitlines()[2])
      | B: conv4 | killed | - | - | - | - | - | - | - | - | - |
    """
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    for row in rows:
        cells = _cells(row) if "error" not in row else [row["error"], *["-"] * (len(COLUMNS) - 2)]
        lines.append(f"| {row['load']}: {row['description']} | {' | '.join(cells)} |")
    measured = [row for row in rows if "error" not in row]
    if measured:
        about = measured[0]
        rate = max(row["matmul_gflops"] for row in measured)
        lines += ["", f"{about['device']}, {about['cores']} CPU cores, jax {about['jax']}, {about['precision']}; "]
        lines[-1] += f"a product of two 2048x2048 matrices: {rate:.0f} GFLOP/s."
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds"]
    return [
        duration(statistics.median(seconds)),
        f"{duration(min(seconds))} - {duration(max(seconds))} ({len(seconds)})",
        f"{row['tasks_per_second']:.3g}",
        f"{row['gflops']:.3g}",
        f"{row['gflops'] / row['matmul_gflops']:.1%}",
        f"{row['compile_seconds']:.1f}",
        mebibytes(row["temp_bytes"]),
        mebibytes(row["peak_rss_bytes"]),
        mebibytes(row["device_peak_bytes"]),
        str(row["task_chunk"]),
    ]


def duration(seconds: float) -> str:
    """Write the length of a step.

    Args:
      seconds: Its length.

    Returns:
      Three digits, in milliseconds below 0.1 s.

    Example:
      >>> duration(0.00029), duration(1.234), duration(80.0)
      ('0.290 ms', '1.23 s', '80.0 s')
    """
    value, unit = (1e3 * seconds, "ms") if seconds < 0.1 else (seconds, "s")
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f} {unit}"


def mebibytes(count: float | None) -> str:
    """Write a number of bytes in MiB, or a dash where it is not known.

    Args:
      count: Bytes.

    Returns:
      Whole MiB; a digit more below ten.

    Example:
      >>> mebibytes(5 * 2**20), mebibytes(300 * 2**20), mebibytes(None)
      ('5.0', '300', '-')
    """
    if count is None:
        return "-"
    return f"{count / 2**20:.{1 if count < 10 * 2**20 else 0}f}"
