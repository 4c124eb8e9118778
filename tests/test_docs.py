"""What is written runs: docstring examples, README blocks, and every public name is documented."""

import contextlib
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmeta
from jaxmeta.cli import main

REPO = Path(__file__).resolve().parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(jaxmeta.__path__, "jaxmeta.")
    if not module.name.endswith(("__main__", "omniglot_builder"))
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    results = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert results.failed == 0


def public_functions():
    for module in (jaxmeta, jaxmeta.check):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield name, value


@pytest.mark.parametrize(("name", "function"), list(public_functions()))
def test_public_functions_are_documented(name, function):
    documentation = inspect.getdoc(function) or ""
    assert "Args:" in documentation or not inspect.signature(function).parameters
    assert "Example:" in documentation and ">>>" in documentation
    for parameter in inspect.signature(function).parameters.values():
        assert re.search(rf"\b{parameter.name}\b", documentation), f"{name} does not explain {parameter.name}"


def readme_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", readme_blocks("python"))
def test_python_blocks_of_the_readme_run(block, capsys):
    """Each by itself, as a program of its own would run it."""
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_the_two_set_up_lines_stand_first_and_alone():
    train, test = readme_blocks("bash")[:2]
    for line in (train, test):
        assert len(line.strip().splitlines()) == 1 and "python3 -m venv" in line and "pip install" in line
    assert "jaxmeta train" in train and "pytest" in test
    assert test.strip() in (REPO / ".ci" / "run").read_text()
    # Syntax: the shell accepts both.
    subprocess.run(["bash", "-n", "-c", train + test], check=True)


def test_tables_are_what_was_recorded():
    script = REPO / "experiments" / "make_tables.py"
    result = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_command_lines_in_the_readme_parse(capsys):
    """Each `jaxmeta ...` line beyond the first two blocks names options that exist."""
    lines = [line for block in readme_blocks("bash")[2:] for line in block.splitlines() if line.startswith("jaxmeta ")]
    assert lines
    helps = {}
    for line in lines:
        _, *words = line.split("#")[0].split()
        command = tuple(words[: 2 if words[0] == "data" else 1])
        if command not in helps:
            with contextlib.suppress(SystemExit):
                main([*command, "--help"])
            helps[command] = capsys.readouterr().out
        assert helps[command], command
        for word in words:
            if word.startswith("--"):
                assert re.search(rf"{word.split('=')[0]}(?![\w-])", helps[command]), f"{line}: {word}"
