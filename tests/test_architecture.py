"""The structure of the package: who may import whom, what an import costs, how long a file is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmeta

PACKAGE = Path(jaxmeta.__file__).parent
# Reading order: a room imports only from rooms before it, or from itself.
ROOMS = [
    "base",
    "nn",
    "losses",
    "metagrad",
    "inner",
    "check",
    "models",
    "algorithms",
    "data",
    "metrics",
    "calibration",
    "verification",
    "hausdorff",
    "device_memory",
    "plan",
    "checkpoint",
    "processes",
    "budget",
    "devices",
    "cores",
    # What a pool on the host feeds, and the program that is fed.
    "feed",
    "dispatch",
    "step_plan",
    "train",
    "evaluate",
    "online",
    "tuning",
    # Values that say how a number was got; the evaluation itself knows nothing of them.
    "protocols",
    "judged_tasks",
    "paper_protocols",
    "ensemble",
    "population",
    "population_evaluator",
    "config",
    "config_json",
    "presets",
    "parts",
    "machine",
    "bench",
    "plots",
    "report",
    "folder",
    "workspace",
    # What is asked for, what a result says, and a run made ready to be judged by a protocol.
    "request",
    "judgement",
    "candidate",
    "verify_run",
    "planning",
    "run",
    "sweep_plan",
    "sweep",
    "compare",
    "serve",
    "start",
    "options",
    "data_commands",
    "run_commands",
    "cli",
    "__main__",
]
# Who may import what is heavy or belongs to one room.
ONLY_IN = {
    "flax": {"nn", "models", "tuning"},
    "orbax": {"checkpoint"},
    "tensorflow_datasets": {"data"},
    "tyro": {"config", "options", "run_commands", "cli"},
    "matplotlib": {"plots", "data"},
    "tensorflow": set(),
    "torch": set(),
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "jaxmeta":
                yield from (f"jaxmeta.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_up(path):
    here = room(path)
    assert here in ROOMS, f"{here} is a new room: give it a place in ROOMS"
    for name in imports(path):
        top, *rest = name.split(".")
        assert here in ONLY_IN.get(top, {here}), f"{path} imports {name}"
        # The table of a room's own members, and the version, may come from anywhere.
        if top == "jaxmeta" and rest and rest[0] in ROOMS:
            assert ROOMS.index(rest[0]) <= ROOMS.index(here), f"{path} imports {name}, a room below it"
        elif top == "jaxmeta":
            assert here == "cli", f"{path} imports {name} through the package's front door"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path):
    limit = 150 if room(path) == "algorithms" else 300
    assert len(path.read_text().splitlines()) <= limit


def test_import_is_light():
    """Nothing heavy is loaded beyond jax, flax and optax; what the rest takes is 0.2 s or so."""
    heavy = ["tensorflow", "tensorflow_datasets", "orbax.checkpoint", "matplotlib", "PIL", "tyro", "rich.progress"]
    code = f"import sys, jaxmeta; print([module for module in {heavy} if module in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_version_is_in_the_changelog():
    assert f"## {jaxmeta.__version__}" in (PACKAGE.parent / "CHANGELOG.md").read_text()
