"""Everybody's meta-step on the same data and weights, in one command: jaxmeta, PyTorch libraries, plain JAX.

    benchmarks/peers/setup.sh ENVS                       # once: the environments of the others
    python benchmarks/speed.py --peers-python ENVS/torch/bin/python --jaxmeta-peer-python ENVS/jax-meta/bin/python
    python benchmarks/speed.py --quick                   # tiny loads, two rounds: does it run?

Each contender is a fresh process that waits for requests (`peers/harness.py`). Before anything is timed its gradient
is compared, in float64 on a tiny form of the load with two inner steps, with that of plain JAX: who differs is not
timed. On the load itself, in the arithmetic that is timed, the gradient of jaxmeta and that of a PyTorch library are
compared with that library's in float64, where there is one: jaxmeta is not timed if it is three times as far from it.

Then rounds are interleaved: in every round each contender takes steps for a second or two while all others sleep; the
figure of a round is the median of its steps, and medians over rounds are shown. Steps that take longer than --slow
seconds are taken once, cold, and marked so. Contenders that need many gigabytes run alone, after the others. Threads
are those of all cores of the process, on both sides.

Every load is a run of its own; with --add a record keeps those that are not measured anew. Peak memory is that of the
process (VmHWM), before the first step and after all. Writes `speed.json` and `speed.png` beside this script; with
--quick only a FILE that is named.
"""

import argparse
import json
import platform
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

# The harness stands beside the contenders, which are scripts and import it as such.
sys.path.insert(0, str(Path(__file__).with_name("peers")))

from contenders import ENTRIES, OURS, REFERENCE, Failed, Process, run_rounds  # noqa: E402
from harness import cores, write_problem  # noqa: E402
from jaxmeta.bench import LOADS, count_flops, tiny  # noqa: E402
from jaxmeta.bench.loads import draw_episodes, draw_weights  # noqa: E402
from speed_report import draw, tables  # noqa: E402

TOLERANCE = 1e-6
# In float32 five large steps over maxima and rectifiers can be far from float64. How far is chance, within this factor.
AS_FAR = 3.0


def say(text):
    print(text, file=sys.stderr, flush=True)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="+", metavar="LOAD", help=f"of {', '.join(LOADS)}; all")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help="contenders beside jaxmeta; all")
    parser.add_argument("--peers-python", default=sys.executable, help="runs the PyTorch libraries; this Python")
    parser.add_argument("--jaxmeta-peer-python", default=sys.executable, help="runs jax-meta; this Python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-seconds", type=float, default=2.0, help="how long a contender's turn is")
    parser.add_argument("--slow", type=float, default=20.0, help="a longer step is taken only once")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds to wait for any answer")
    parser.add_argument("--chunk", type=int, help="tasks that jaxmeta computes at once; what it chooses")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument(
        "--precision",
        choices=["float32", "tf32", "bfloat16"],
        default="float32",
        help="of products: tf32 on a GPU; bfloat16 also of what is between them, in PyTorch by autocast",
    )
    parser.add_argument("--together", action="store_true", help="nobody runs alone: there is memory for all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="speed.json beside this script if not --quick")
    parser.add_argument(
        "--add", action="store_true", help="keep the other loads of the JSON file; same machine and rounds"
    )
    parser.add_argument("--quick", action="store_true", help="tiny loads, A1 and B unless named: does it run?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.round_seconds = min(options.rounds, 2), 0.1
    elif options.json is None:
        options.json = Path(__file__).with_suffix(".json")
    options.loads = options.loads or (["A1", "B"] if options.quick else list(LOADS))
    names = [entry.name for entry in ENTRIES]
    options.peers = names if options.peers is None else [OURS, *options.peers]
    for kind, given, known in (("load", options.loads, list(LOADS)), ("peer", options.peers, names)):
        for name in given:
            if name not in known:
                parser.error(f"unknown {kind} {name!r}; there are: {', '.join(known)}")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1; given {options.rounds}")
    return options


def write(load, dtype, folder):
    episodes = draw_episodes(load, dtype)
    parts = ((batch.inputs, batch.targets) for batch in episodes)
    path = folder / f"{load.name}-{np.dtype(dtype).name}.npz"
    write_problem(path, load._asdict(), draw_weights(load, dtype), *parts)
    return path


class Race:
    """What all loads share: the options, a folder for problems, and who agreed on which network."""

    def __init__(self, options, folder):
        self.options, self.folder, self.differences = options, folder, {}
        self.entries = [entry for entry in ENTRIES if entry.name in options.peers]

    def start(self, entry, problem):
        options = self.options
        homes = {"peers": options.peers_python, "jaxmeta-peer": options.jaxmeta_peer_python, "own": sys.executable}
        flags = ["--device", options.device, "--precision", options.precision]
        if entry.name == OURS and options.chunk and not str(problem).endswith("float64.npz"):
            flags += ["--chunk", str(options.chunk)]
        return Process(entry, homes[entry.home], problem, flags, options.timeout)

    def agreement(self, load):
        """For each contender the relative difference of its gradient, or why there is none. Once for a network."""
        if load.network not in self.differences:
            say(f"{load.network}: comparing gradients in float64")
            problem = write(tiny(load)._replace(num_steps=2), np.float64, self.folder)
            reference = next(entry for entry in ENTRIES if entry.name == REFERENCE)
            expected = self.gradient(reference, problem)
            if isinstance(expected, str):
                raise SystemExit(f"{REFERENCE}, which all are compared with: {expected}")
            found = {}
            for entry in self.entries:
                gradient = expected if entry.name == REFERENCE else self.gradient(entry, problem)
                found[entry.name] = gradient if isinstance(gradient, str) else difference(gradient, expected)
                say(f"  {entry.name}: {found[entry.name]}")
            self.differences[load.network] = found
        return self.differences[load.network]

    def gradient(self, entry, problem):
        """A contender's gradient by name, or what became of it in words."""
        answer = self.folder / "gradient.npz"
        answer.unlink(missing_ok=True)
        try:
            with self.start(entry, problem) as process:
                process.ask(f"gradient {answer}")
            with np.load(answer) as file:
                return dict(file)
        except Failed as failure:
            return str(failure)

    def errors_as_timed(self, load, problem, taking_part):
        """How far from float64 on the load itself jaxmeta's gradient is, and that of a PyTorch library, by name."""
        ours = next((entry for entry in taking_part if entry.name == OURS), None)
        peer = next((entry for entry in taking_part if entry.side == "torch" and not entry.alone), None)
        if ours is None or peer is None:
            return {}
        exact = self.gradient(peer, write(load, np.float64, self.folder))
        found = {entry.name: self.gradient(entry, problem) for entry in (ours, peer)}
        if failed := [answer for answer in (exact, *found.values()) if isinstance(answer, str)]:
            say(f"{load.name}: not compared with float64: {failed[0]}")
            return {}
        errors = {name: difference(gradient, exact) for name, gradient in found.items()}
        if not np.isfinite(errors[peer.name]):
            say(f"{load.name}: not compared with float64: {peer.name} gives no number")
            return {}
        say(f"{load.name}: from float64 differ {', '.join(f'{name} {error:.1e}' for name, error in errors.items())}")
        if AS_FAR * errors[peer.name] >= 1:
            say(f"{load.name}: too few digits are left to tell a wrong gradient")
        return errors

    def run(self, load):
        """All rows of one load."""
        differences = self.agreement(load)
        load = tiny(load) if self.options.quick else load
        say(f"{load.name}: {load.description}")
        problem = write(load, np.float32, self.folder)
        rows, taking_part = {}, []
        for entry in self.entries:
            found = differences[entry.name]
            if isinstance(found, str):
                rows[entry.name] = {"status": found}
            elif not found <= TOLERANCE:
                rows[entry.name] = {"status": f"another gradient: {found:.1e} away", "gradient_difference": found}
            else:
                taking_part.append(entry)
        errors = self.errors_as_timed(load, problem, taking_part)
        allowed = AS_FAR * max((error for name, error in errors.items() if name != OURS), default=0.0) + TOLERANCE
        if errors and not errors[OURS] <= allowed:
            rows[OURS] = {"status": f"another gradient: {errors[OURS]:.1e} from float64, {allowed:.1e} are allowed"}
            taking_part = [entry for entry in taking_part if entry.name != OURS]
        images = len(load.input_shape) == 3 and not self.options.together and not self.options.quick
        together = [entry for entry in taking_part if not (entry.alone and images)]
        groups = [together, *([entry] for entry in taking_part if entry not in together)]
        for group in groups:
            rows |= self.group(group, problem)
        gflop = count_flops(load) / 1e9
        common = {"load": load.name, "description": load.description, "tasks": load.tasks, "gflop": gflop}
        known = {
            name: {"gradient_difference": found, "from_float64": errors.get(name)}
            for name, found in differences.items()
        }
        return [{**common, "contender": entry.name, **known[entry.name], **rows[entry.name]} for entry in self.entries]

    def group(self, entries, problem):
        options, rows, processes = self.options, {}, []
        with ExitStack() as stack:
            for entry in entries:
                try:
                    processes.append(stack.enter_context(self.start(entry, problem)))
                except Failed as failure:
                    rows[entry.name] = {"status": str(failure)}
            rows |= run_rounds(processes, options.rounds, options.round_seconds, options.slow, say)
        for entry in entries:
            rows[entry.name]["alone"] = len(entries) == 1
        return rows


def difference(ours, theirs):
    """`|ours - theirs| / |theirs|` of all numbers in one vector."""
    if ours.keys() != theirs.keys():
        return float("inf")
    distance = np.sqrt(sum(np.sum((ours[name] - theirs[name]) ** 2) for name in theirs))
    return float(distance / np.sqrt(sum(np.sum(leaf**2) for leaf in theirs.values())))


def processor():
    """The name of the processor, for the note under the table."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def rows_kept(options, record):
    """What a record has of other loads, which were a run of their own too; it must be of the same machine."""
    if not options.add:
        return []
    if options.json is None or not options.json.exists():
        raise SystemExit(f"--add needs a record to add to; there is none at {options.json}.")
    earlier = json.loads(options.json.read_text())
    if differing := [name for name, value in record.items() if earlier.get(name) != value]:
        name = differing[0]
        raise SystemExit(f"--add: {options.json} has {name} {earlier.get(name)!r}, and this run {record[name]!r}.")
    return [row for row in earlier["rows"] if row["load"] not in options.loads]


def in_order(rows):
    """Rows by load, as loads are listed."""
    return sorted(rows, key=lambda row: list(LOADS).index(row["load"]))


def main(arguments=None):
    options = parse(arguments)
    record = {
        "device": options.device,
        "processor": processor(),
        "cores": cores(),
        "precision": options.precision,
        "rounds": options.rounds,
        "round_seconds": options.round_seconds,
        "quick": options.quick,
    }
    record["rows"] = rows_kept(options, record)
    with tempfile.TemporaryDirectory() as folder:
        race = Race(options, Path(folder))
        for name in options.loads:
            record["rows"] = in_order([*record["rows"], *race.run(LOADS[name])])
            # After every load: an hour's work is not lost with the last one.
            if options.json:
                options.json.write_text(json.dumps(record, indent=1) + "\n")
    print(tables(record))
    if options.json:
        draw(options.json.with_suffix(".png"), record)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
