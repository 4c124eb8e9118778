"""Who takes part in `speed.py`, and a contender's process as this side sees it."""

import json
import os
import select
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

PEERS = Path(__file__).with_name("peers")
REPO = Path(__file__).resolve().parents[1]


class Entry(NamedTuple):
    """A contender.

    Attributes:
      name: In the tables.
      arguments: Its script in `peers/`, and what comes before the problem.
      home: Which Python runs it: "own", "peers" or "jaxmeta-peer".
      side: "ours", "torch" or "jax".
      alone: Whether it keeps or takes so much memory on images that it runs while no other is loaded.
    """

    name: str
    arguments: tuple[str, ...]
    home: str
    side: str
    alone: bool = False


OURS, REFERENCE = "jaxmeta", "plain JAX vmap"
ENTRIES = (
    Entry(OURS, ("ours.py",), "own", "ours"),
    Entry("learn2learn", ("torch_peers.py", "learn2learn"), "peers", "torch"),
    Entry("higher", ("torch_peers.py", "higher"), "peers", "torch"),
    Entry("torchopt", ("torch_peers.py", "torchopt"), "peers", "torch"),
    Entry("betty", ("torch_peers.py", "betty"), "peers", "torch"),
    Entry("torch.func loop", ("torch_peers.py", "torch.func-loop"), "peers", "torch"),
    Entry("torch.func vmap", ("torch_peers.py", "torch.func-vmap"), "peers", "torch", alone=True),
    Entry("torch.func compile", ("torch_peers.py", "torch.func-compile"), "peers", "torch", alone=True),
    Entry(REFERENCE, ("jax_peers.py", "plain"), "own", "jax", alone=True),
    Entry("jax-meta", ("jax_peers.py", "jax-meta"), "jaxmeta-peer", "jax", alone=True),
)


class Failed(Exception):
    """A contender that cannot go on; the text is for its row."""


class Process:
    """A contender, started on a problem. Use as a context: it ends with it."""

    def __init__(self, entry: Entry, python: str, problem: Path, flags: list[str], timeout: float):
        self.entry, self._timeout = entry, timeout
        self._errors = tempfile.TemporaryFile("w+")
        script, *names = entry.arguments
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")])),
            # Several processes share one accelerator.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        try:
            self._process = subprocess.Popen(
                [python, PEERS / script, *names, problem, *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                text=True,
                # Ctrl-C is for this side, which ends the others.
                start_new_session=True,
            )
        except OSError as error:
            raise Failed("not installed") from error
        self.about = self._read()
        if "missing" in self.about:
            self.close()
            raise Failed("not installed")
        if "error" in self.about:
            self.close()
            raise Failed(f"failed: {self.about['error']}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def ask(self, request: str) -> dict:
        """Send a request and wait for its answer."""
        try:
            print(request, file=self._process.stdin, flush=True)
        except OSError as error:
            raise Failed(self._reason()) from error
        return self._read()

    def close(self) -> None:
        # Nothing that it holds is worth an orderly end.
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _read(self) -> dict:
        # One line at a time comes, and only when asked for: none is left in the buffer.
        ready, _, _ = select.select([self._process.stdout], [], [], self._timeout)
        if not ready:
            self._process.kill()
            raise Failed(f"more than {self._timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(self._reason())
        return json.loads(line)

    def _reason(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "failed: killed by the system, most likely for memory"
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()
        # Of a library that every contender of a script needs, as PyTorch, before one of them can say so.
        if last and last[-1].startswith("ModuleNotFoundError"):
            return "not installed"
        return f"failed: {last[-1][:200] if last else f'exit code {code}'}"


def run_rounds(processes: list[Process], rounds: int, round_seconds: float, slow_seconds: float, say) -> dict:
    """Warm up all, then interleave: in each round every contender takes its steps once.

    Returns:
      For each contender's name its row: seconds (one figure for each round) and what it told of itself, or a status.
    """
    rows, steps = {}, {}
    for process in processes:
        name = process.entry.name
        try:
            rows[name], steps[name] = _warm_up(process, round_seconds, slow_seconds, say)
        except Failed as failure:
            rows[name] = {"status": str(failure)}
            say(f"  {name}: {failure}")
    for number in range(rounds):
        for process in processes:
            name = process.entry.name
            if "status" in rows[name] or rows[name]["single"]:
                continue
            try:
                _add(rows[name], process.ask(f"go {steps[name]}"))
            except Failed as failure:
                rows[name] = {"status": str(failure)}
        say(f"  round {number + 1} of {rounds}")
    for process in processes:
        if "status" not in rows[process.entry.name]:
            rows[process.entry.name]["matmul_gflops"] = process.ask("matmul")["gflops"]
    return rows


def _warm_up(process: Process, round_seconds: float, slow_seconds: float, say) -> tuple[dict, int]:
    """Compile, take a first step, and a second one to know how many make a round."""
    row = {"seconds": [], "steps": 0, "others_used": 0.0, "alone": process.entry.alone}
    row |= process.about | process.ask("prepare")
    first = process.ask("go 1")
    row["first_step"] = first["seconds"][0]
    say(f"  {process.entry.name}: first step {row['first_step']:.3g} s")
    # A step of a minute is not improved by another to warm it up: it is the only one.
    row["single"] = row["first_step"] > slow_seconds
    if row["single"]:
        _add(row, first)
        return row, 1
    second = process.ask("go 1")["seconds"][0]
    return row, max(1, min(200, round(round_seconds / second)))


def _add(row: dict, answer: dict) -> None:
    """Add a round: its figure is the median of its steps, as one pause must not count."""
    seconds = sorted(answer["seconds"])
    row["seconds"].append(seconds[len(seconds) // 2])
    row["steps"] += len(seconds)
    row["idle_cpu"] = max(row.get("idle_cpu", 0.0), answer["idle_cpu"])
    row["others_used"] = max(row["others_used"], answer["others_used"] or 0.0)
    row |= {name: answer[name] for name in ("loss", "cores_used", "peak_rss", "device_peak")}
