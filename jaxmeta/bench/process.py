"""A load in a process of its own: memory is that of one load, and nothing is warm from another."""

import json
import signal
import subprocess
import sys
from typing import Any

from jaxmeta.bench.loads import LOADS


def measure_in_own_process(**request: Any) -> dict[str, Any]:
    """Start `python -m jaxmeta.bench` for one load, wait, and return its row.

    Args:
      **request: Plain values, as `jaxmeta.bench.__main__` takes them.

    Returns:
      The row; with an "error" if the process came to an end without one.
    """
    command = [sys.executable, "-m", "jaxmeta.bench", json.dumps(request)]
    # A session of its own: Ctrl-C reaches this process, which then ends the other one.
    result = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    if result.returncode == 0:
        return json.loads(result.stdout.splitlines()[-1])
    load = LOADS[request["load"]]
    return {"load": load.name, "description": load.description, "error": _reason(result)}


def _reason(result: subprocess.CompletedProcess) -> str:
    if result.returncode == -signal.SIGKILL:
        return "failed: killed by the system, most likely for memory; try a smaller --chunk"
    last = result.stderr.strip().splitlines()
    return f"failed: {last[-1] if last else f'exit code {result.returncode}'}"
