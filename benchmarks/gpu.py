"""Everything that is measured on a GPU machine, in one command that needs no network.

    python benchmarks/gpu.py --out FOLDER [--peers-python PYTHON] [--loads B C D] [--rounds 5] [--quick]

Needs a checkout (jaxmeta need not be installed), JAX with its GPU plugin, Flax, Optax and Chex; PyTorch and the other
libraries where there are some. What is missing is a row that says so. On a machine without a GPU the same runs on the
CPU: a dry run.

Writes into FOLDER: `gpu.json` (card, driver, versions, what products and copies reach), `speed-tf32.json`,
`speed-float32.json` and `speed-bfloat16.json` with their pictures, and `report.md` with all tables. Each part is
written as soon as it is known, so that a run that is cut short leaves what it had.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
REPO = BENCHMARKS.parent
PACKAGES = (
    "jax jaxlib jax-cuda12-plugin jax-cuda13-plugin flax optax chex numpy torch learn2learn higher torchopt betty-ml"
).split()

# Run in a process of its own, which gives the card back to the contenders when it ends.
RATES = """
import json, sys, time
import jax, jax.numpy as jnp
size, repeats, copied = (8192, 20, 2**28) if jax.default_backend() != "cpu" else (1024, 2, 2**22)
if "quick" in sys.argv:
    size, repeats, copied = 512, 2, 2**20
def seconds(call, argument):
    call(argument).block_until_ready()
    best = float("inf")
    for _ in range(8):
        begin = time.perf_counter()
        for _ in range(repeats):
            result = call(argument)
        result.block_until_ready()
        best = min(best, (time.perf_counter() - begin) / repeats)
    return best
rates = {"device": jax.devices()[0].device_kind, "backend": jax.default_backend(), "size": size}
for name, dtype, precision in (
    ("float32", jnp.float32, "highest"), ("tf32", jnp.float32, "tensorfloat32"), ("bfloat16", jnp.bfloat16, "default"),
):
    matrix = jax.random.normal(jax.random.key(0), [size, size]).astype(dtype)
    product = jax.jit(lambda matrix, precision=precision: jnp.matmul(matrix, matrix, precision=precision))
    rates[name + "_gflops"] = 2 * size**3 / 1e9 / seconds(product, matrix)
vector = jnp.ones([copied], jnp.float32)
rates["copy_gigabytes_per_second"] = 2 * vector.nbytes / 1e9 / seconds(jax.jit(lambda vector: vector + 1), vector)
stats = jax.local_devices()[0].memory_stats() or {}
rates["device_bytes"] = stats.get("bytes_limit")
print(json.dumps(rates))
"""


def environment():
    paths = [str(REPO), os.environ.get("PYTHONPATH")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # Every one that is given up on would otherwise retry a download.
        "HF_HUB_OFFLINE": "1",
    }


def output_of(command):
    """What a command prints, or None where it does not exist or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if result.returncode:
        print(result.stderr[-2000:], file=sys.stderr)
        return None
    return result.stdout.strip()


def versions(python):
    """Versions of what is installed for a Python."""
    if python == sys.executable:
        found = {"python": platform.python_version()}
        for name in PACKAGES:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return found
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import json, sys, gpu; "
    return json.loads(output_of([python, "-c", code + "print(json.dumps(gpu.versions(sys.executable)))"]) or "{}")


def describe(options):
    query = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    rates = output_of([sys.executable, "-c", RATES, *(["quick"] if options.quick else [])])
    return {
        "card": output_of(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]),
        "cpu_cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": versions(sys.executable),
        "peers_versions": versions(options.peers_python),
        "rates": json.loads(rates) if rates else None,
    }


def about_lines(record):
    rates = record["rates"] or {}
    lines = [f"- card, driver: {record['card'] or 'none: a dry run on the CPU'}"]
    lines += [
        f"- {name}: {', '.join(f'{k} {v}' for k, v in record[name].items())}" for name in ("versions", "peers_versions")
    ]
    if rates:
        products = ", ".join(
            f"{name} {rates[name + '_gflops'] / 1e3:.3g} TFLOP/s" for name in ("float32", "tf32", "bfloat16")
        )
        lines.append(f"- products of two {rates['size']}x{rates['size']} matrices on {rates['device']}: {products}")
        lines.append(f"- copies, read and written: {rates['copy_gigabytes_per_second']:.4g} GB/s")
    return lines


def run_speed(options, precision, device):
    command = [sys.executable, str(BENCHMARKS / "speed.py"), "--device", device, "--precision", precision]
    command += ["--rounds", str(options.rounds), "--json", str(options.out / f"speed-{precision}.json")]
    command += ["--peers-python", options.peers_python, "--slow", "5", "--together"]
    for name, values in (("--loads", options.loads), ("--peers", options.peers)):
        command += [name, *values] if values else []
    command += ["--quick"] if options.quick else []
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment())
    return result.stdout if result.returncode == 0 else f"failed with exit code {result.returncode}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--peers-python", default=sys.executable, help="runs the PyTorch libraries; this Python")
    parser.add_argument("--loads", nargs="+", metavar="LOAD")
    parser.add_argument("--peers", nargs="+", metavar="NAME")
    parser.add_argument("--precisions", nargs="+", choices=["float32", "tf32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scaling", action="store_true", help="also how our step grows, by scaling.py")
    parser.add_argument("--quick", action="store_true", help="tiny loads: does it run?")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    record = describe(options)
    (options.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    report = ["# Meta-steps on a GPU", "", *about_lines(record), ""]
    quick = ["--quick"] if options.quick else []
    device = "gpu" if record["rates"] and record["rates"]["backend"] != "cpu" else "cpu"
    for precision in options.precisions or ["tf32", "float32", "bfloat16"]:
        report += [f"## {precision}", "", run_speed(options, precision, device), ""]
        (options.out / "report.md").write_text("\n".join(report))
    if options.scaling:
        command = [sys.executable, str(BENCHMARKS / "scaling.py"), "--json", str(options.out / "scaling.json")]
        result = subprocess.run([*command, *quick], stdout=subprocess.PIPE, text=True, env=environment())
        report += ["## How our step grows", "", result.stdout, ""]
        (options.out / "report.md").write_text("\n".join(report))
    print("\n".join(report))
    print(f"{time.monotonic() - begin:.0f} s in all; in {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
